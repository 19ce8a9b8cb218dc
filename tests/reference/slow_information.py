"""Golden files for the slow twin of the information passes, which lives in `bench/brute_force.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.bench.brute_force import (
    SlowScene,
    SlowView,
    chain,
    fisher,
    information_gain,
    nats,
    pixel_jacobians,
    record_jacobians,
)

__all__ = [
    "GOLDEN",
    "SlowScene",
    "SlowView",
    "chain",
    "fisher",
    "information_gain",
    "load_golden",
    "nats",
    "pixel_jacobians",
    "record_jacobians",
]
GOLDEN = Path(__file__).with_name("golden")


def load_golden(name: str) -> tuple[dict[str, np.ndarray], SlowScene, list[SlowView], SlowView]:
    """The arrays of a golden file, its scene, its recorded views and its novel view."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        data = {key: file[key] for key in file.files}
    t = {k: torch.from_numpy(np.asarray(v)) for k, v in data.items()}
    scene = SlowScene(
        t["means"], t["quats"], t["scales"], t["opacities"], t["sh"], int(data["sh_degree"])
    )
    size = (int(data["W"]), int(data["H"]))
    views = [
        SlowView(v, K, *size, t["background"])
        for v, K in zip(t["train_viewmats"], t["train_Ks"], strict=True)
    ]
    return data, scene, views, SlowView(t["novel_viewmat"], t["novel_K"], *size, t["background"])
