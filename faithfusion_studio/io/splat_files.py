"""What all readers and writers of plain splat files share: usable rows, and the scene around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.ply import SplatFileError
from faithfusion_studio.scene import Scene

MAX_COORDINATE = 1e6
MAX_LOG_SCALE = 20.0
MAX_LOGIT = 30.0


def keep_finite(gaussians: Gaussians, path: Path) -> tuple[Gaussians, int]:
    """The usable Gaussians and the number of those left out.

    Opacity logits of +-infinity, which 8-bit files produce, are clamped; anything else that is not
    finite, farther than 1e6 m or larger than exp(20) m is dropped.

    Raises:
        SplatFileError: There is no usable Gaussian.
    """
    good = usable_rows(gaussians)
    total = len(gaussians)
    kept = int(good.sum())
    if kept == 0:
        raise SplatFileError(
            f"{path}: has {total:,} Gaussians and none with finite values; expected at least one, "
            "so export the scene again."
        )
    logits = gaussians.logit_opacities.clone()
    infinite = torch.isinf(logits)
    logits[infinite] = logits[infinite].clamp(-MAX_LOGIT, MAX_LOGIT)
    clean = Gaussians(
        gaussians.means,
        gaussians.log_scales,
        gaussians.quats,
        logits,
        gaussians.sh0,
        gaussians.shN,
        gaussians.provenance,
    )
    return (clean, 0) if kept == total else (clean.select(good), total - kept)


def usable_rows(g: Gaussians) -> Bool[Tensor, "N"]:
    """Which Gaussians are finite and of a possible place and size; opacity may be infinite."""
    good = ~torch.isnan(g.logit_opacities)
    for values in (g.means, g.log_scales, g.quats, g.sh0.flatten(1), g.shN.flatten(1)):
        # One sum over everything is far quicker than a look at every value, and nearly always enough.
        if not bool(torch.isfinite(values.sum())):
            good &= torch.isfinite(values).all(1)
    good &= (g.means.abs() <= MAX_COORDINATE).all(1)
    good &= (g.log_scales <= MAX_LOG_SCALE).all(1)
    return good & (g.quats.abs().amax(1) > 0)


def require_rows(gaussians: Gaussians, path: Path) -> None:
    """Raise a SplatFileError where there is nothing to write."""
    if len(gaussians) == 0:
        raise SplatFileError(f"{path}: the scene has 0 Gaussians; there is nothing to write.")


def dropped_note(dropped: int, total: int) -> str:
    """The sentence that tells how many Gaussians were left out on reading."""
    return f"{dropped:,} of {total:,} Gaussians were left out because they were not finite."


def splat_scene(gaussians: Gaussians, dropped: int, path: Path, notes: Sequence[str] = ()) -> Scene:
    """A scene of one set of Gaussians, which says where it came from and what was left out."""
    told = [dropped_note(dropped, dropped + len(gaussians))] if dropped else []
    return Scene(gaussians, metadata={"source": path.name, "notes": [*told, *notes]})
