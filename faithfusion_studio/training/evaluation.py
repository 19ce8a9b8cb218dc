"""What engines are worth on clips with truth: nearness, both regions, flicker, and whether confidence tells error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.cameras import Trajectory, offset_laterally
from faithfusion_studio.fusion.batches import RecordedReferences, render_batch
from faithfusion_studio.fusion.reconstruction import Reconstruction
from faithfusion_studio.fusion.schedule import ReconstructionConfig
from faithfusion_studio.information.fisher import recorded_fisher
from faithfusion_studio.io import load_scene, save_scene
from faithfusion_studio.metrics import psnr
from faithfusion_studio.metrics.lpips_weights import missing_weights
from faithfusion_studio.metrics.perceptual import load_lpips
from faithfusion_studio.metrics.regions import bad_half, region_psnr
from faithfusion_studio.metrics.temporal import flow_from_depth, warp_error
from faithfusion_studio.repair.base import FrameRepair, RepairBatch, Repairer, RepairResult
from faithfusion_studio.repair.gated import repair_batch
from faithfusion_studio.repair.reprojection import ReprojectionRepairer
from faithfusion_studio.scene import Scene
from faithfusion_studio.synthetic.raytrace import trace_view
from faithfusion_studio.synthetic.recording import drive, record
from faithfusion_studio.synthetic.street import Family, StreetConfig, build_street

TEST_OFFSETS = (1.0, 3.0, 6.0, -2.0)
"""m; positive = left."""
TEST_FRAMES, TEST_SIZE = 48, (480, 270)
TEST_STEPS = 1800
TEST_GAUSSIANS = 150_000

CONFIDENCE_EDGES = (0.25, 0.5, 0.75)
"""Between the four classes of confidence in which the error is counted."""


class SharedReprojection(ReprojectionRepairer):
    """A reprojection that several engines stand on, made once per batch."""

    def __init__(self) -> None:
        super().__init__()
        self._made: tuple[RepairBatch, list[FrameRepair]] | None = None

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair]:
        """The frames of the batch, from memory where it is the one before."""
        if self._made is None or self._made[0] is not batch:
            self._made = (batch, list(super().repair(batch)))
        yield from self._made[1]


@dataclass(frozen=True)
class Scores:
    """One engine on one clip; means over its frames."""

    psnr: float
    psnr_ucr: float
    """In the under-constrained region, dB; NaN without any."""
    good_change: float
    """In the better half of the render's pixels, dB over the render."""
    bad_change: float
    lpips: float
    """AlexNet; NaN without its weights."""
    warp: float
    """Temporal warp error along the true flow, mean absolute difference."""
    seconds: float
    """Per frame, by the clock."""
    confidence_error: tuple[float, ...]
    """Mean absolute error of changed pixels by class of confidence, lowest first; NaN where empty."""
    confidence_count: tuple[int, ...]
    """Pixels in each class."""


@dataclass(frozen=True)
class ClipComparison:
    """All engines on one clip; "render" and "truth" among them."""

    scene: str
    offset: float
    first: int
    """Index of the first frame."""
    ucr_share: float
    scores: Mapping[str, Scores]


def compare_clip(
    batch: RepairBatch,
    truth: Float[Tensor, "T H W 3"],
    depths: Float[Tensor, "T H W"],
    engines: Sequence[Repairer],
    *,
    scene: str,
    offset: float,
    first: int,
) -> ClipComparison:
    """Repair a clip with every engine, gated as always, and compare with the truth.

    Args:
        batch: Renders and references of neighbouring frames.
        truth: What they should be.
        depths: m along z, for the flow; the true ones where they are known.
        engines: Their names must differ.
        scene: Name of the scene.
        offset: Lateral, m.
        first: Index of the first frame.
    """
    lpips = load_lpips() if missing_weights("alex") is None else None
    flows = [
        flow_from_depth(depths[t], batch.cameras[t], batch.cameras[t + 1], depths[t + 1])
        for t in range(len(truth) - 1)
    ]

    def scores(images: Tensor, seconds: float, result: RepairResult | None) -> Scores:
        regions = [
            region_psnr(batch.renders[t], images[t], truth[t], bad_half(batch.renders[t], truth[t]))
            for t in range(len(truth))
        ]
        errors, counts = _by_confidence(result, batch, truth)
        return Scores(
            psnr=_mean(psnr(a, b) for a, b in zip(images, truth, strict=True)),
            psnr_ucr=_mean(psnr(a, b, u) for a, b, u in zip(images, truth, batch.ucr, strict=True)),
            good_change=_mean(region.good_change for region in regions),
            bad_change=_mean(region.bad_change for region in regions),
            lpips=math.nan
            if lpips is None
            else _mean(lpips(a, b) for a, b in zip(images, truth, strict=True)),
            warp=_mean(warp_error(images[t], images[t + 1], f).l1 for t, f in enumerate(flows)),
            seconds=seconds / len(truth),
            confidence_error=errors,
            confidence_count=counts,
        )

    found = {"render": scores(batch.renders, 0.0, None)}
    for engine in engines:
        started = time.perf_counter()
        result = repair_batch(engine, batch)
        found[engine.name] = scores(result.rgb, time.perf_counter() - started, result)
    found["truth"] = scores(truth, 0.0, None)
    return ClipComparison(scene, offset, first, float(batch.ucr.float().mean()), found)


def _mean(values: Iterator[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _by_confidence(
    result: RepairResult | None, batch: RepairBatch, truth: Tensor
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Mean absolute error and number of the changed pixels in each class of confidence."""
    if result is None:
        return (), ()
    changed = (result.rgb != batch.renders).any(-1)
    error = (result.rgb - truth).abs().mean(-1)[changed]
    kind = torch.bucketize(result.confidence[changed], torch.tensor(CONFIDENCE_EDGES))
    parts = [error[kind == k] for k in range(len(CONFIDENCE_EDGES) + 1)]
    means = tuple(float(part.mean()) if len(part) else math.nan for part in parts)
    return means, tuple(len(part) for part in parts)


def street_scene(seed: int, family: Family, path: Trajectory, file: Path) -> Scene:
    """The reconstruction of a test street with its evidence; kept in a file."""
    if not file.exists():
        street = build_street(StreetConfig(seed=seed, family=family))
        config = ReconstructionConfig(
            steps=TEST_STEPS, scale=1.0, max_gaussians=TEST_GAUSSIANS, seed=0
        )
        work = Reconstruction(record(street, path), config)
        for _ in work.run():
            pass
        scene = work.scene()
        file.parent.mkdir(parents=True, exist_ok=True)
        save_scene(replace(scene, fisher=recorded_fisher(scene)), file)
    return load_scene(file)


def compare_on_street(
    seed: int,
    family: Family,
    engines: Sequence[Repairer],
    folder: Path,
    *,
    firsts: Sequence[int] = (20,),
    length: int = 8,
    offsets: Sequence[float] = TEST_OFFSETS,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[ClipComparison]:
    """Clips of one test street, repaired by every engine as the studio repairs them.

    Args:
        seed: Of the street; test streets have seeds of 400 and more, training never.
        family: Of the street.
        engines: What to compare.
        folder: Where reconstructions are kept.
        firsts: First frames of the clips.
        length: Frames of a clip.
        offsets: Lateral offsets, m.
        say: Told what is being done.
    """
    street = build_street(StreetConfig(seed=seed, family=family))
    path = drive(street, TEST_FRAMES, TEST_SIZE)
    say(f"street {seed} ({family})")
    scene = street_scene(seed, family, path, folder / f"{family}-{seed}.ckpt")
    references = RecordedReferences(scene, None)
    for first in firsts:
        for offset in offsets:
            cameras = offset_laterally(path, offset).cameras[first : first + length]
            batch = render_batch(scene, cameras, references)
            views = [trace_view(street, camera) for camera in cameras]
            yield compare_clip(
                batch,
                torch.stack([torch.from_numpy(view.rgb) for view in views]),
                torch.stack([torch.from_numpy(view.depth) for view in views]),
                engines,
                scene=f"{family} {seed}",
                offset=offset,
                first=first,
            )


COLUMNS = {
    "psnr": ("PSNR dB", 2),
    "psnr_ucr": ("UCR dB", 2),
    "good_change": ("good half dB", 2),
    "bad_change": ("bad half dB", 2),
    "lpips": ("LPIPS", 3),
    "warp": ("warp error", 4),
    "seconds": ("s per frame", 2),
}


def clip_table(rows: Sequence[ClipComparison]) -> list[str]:
    """Means per offset and engine as lines of Markdown."""
    head = ["offset", "engine", *(title for title, _ in COLUMNS.values())]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for offset in dict.fromkeys(row.offset for row in rows):
        own = [row for row in rows if row.offset == offset]
        for name in own[0].scores:
            cells = [f"{offset:+g} m", name]
            for field, (_, digits) in COLUMNS.items():
                value = _mean(getattr(row.scores[name], field) for row in own)
                cells.append("-" if math.isnan(value) else f"{value:.{digits}f}")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def confidence_table(rows: Sequence[ClipComparison]) -> list[str]:
    """Mean absolute error of changed pixels by class of confidence, and their share, as Markdown."""
    edges = (0.0, *CONFIDENCE_EDGES, 1.0)
    classes = [f"{a:g} to {b:g}" for a, b in zip(edges, edges[1:], strict=False)]
    lines = ["| engine | " + " | ".join(classes) + " |", "|" + "---|" * (len(classes) + 1)]
    for name, some in rows[0].scores.items():
        if not some.confidence_count:
            continue
        counts = np.array([row.scores[name].confidence_count for row in rows], float)
        errors = np.nan_to_num([row.scores[name].confidence_error for row in rows])
        total = counts.sum(0)
        means = (errors * counts).sum(0) / np.maximum(total, 1)
        shares = total / max(1, total.sum())
        cells = [f"{m:.3f} ({s:.0%})" for m, s in zip(means, shares, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines
