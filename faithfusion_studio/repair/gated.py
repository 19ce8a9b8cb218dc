"""The one place where an engine's output is checked and gated.

What an engine returns is checked, its colours are matched to the render, HPR pixels stay bit-exact, and
frames that drift are rejected.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from faithfusion_studio.repair.base import (
    FrameRepair,
    PixelProvenance,
    RepairBatch,
    Repairer,
    RepairError,
    RepairResult,
    RepairStep,
)
from faithfusion_studio.repair.gate import GateConfig, blend_gate, drift, match_colors
from faithfusion_studio.repair.limits import check_limits


def repair_batch(
    repairer: Repairer, batch: RepairBatch, config: GateConfig | None = None
) -> RepairResult:
    """Repair all frames of a batch and gate them.

    Args:
        repairer: The engine.
        batch: Renders [T, H, W, 3], their EIG and UCR, and the recorded references.
        config: Gate and checks.

    Returns:
        Frames in which every HPR pixel is the render's, bit for bit.

    Raises:
        RepairError: See `repair_frames`.
    """
    frames = list(repair_frames(repairer, batch, config))
    depths = [frame.depth for frame in frames]
    notes = dict.fromkeys(note for frame in frames for note in frame.notes)
    total = sum(frame.seconds for frame in frames)
    return RepairResult(
        rgb=torch.stack([frame.rgb for frame in frames]),
        confidence=torch.stack([frame.confidence for frame in frames]),
        pixel_provenance=torch.stack([frame.pixel_provenance for frame in frames]),
        rejected=tuple(frame.rejected for frame in frames),
        depth=None if None in depths else torch.stack([d for d in depths if d is not None]),
        features=tuple(frame.features for frame in frames),
        timings={"total": total, "per_frame": total / len(frames)},
        notes=tuple(notes),
    )


def repair_frames(
    repairer: Repairer, batch: RepairBatch, config: GateConfig | None = None
) -> Iterator[FrameRepair]:
    """Repair and gate frame by frame; stop iterating to cancel.

    Args:
        repairer: The engine.
        batch: See `RepairBatch`.
        config: Gate and checks.

    Raises:
        RepairError: The batch is inconsistent, the engine would take longer than the budget, or
            its answer has wrong shapes, values or frame count.
    """
    for item in repair_steps(repairer, batch, config):
        if isinstance(item, FrameRepair):
            yield item


def repair_steps(
    repairer: Repairer, batch: RepairBatch, config: GateConfig | None = None
) -> Iterator[FrameRepair | RepairStep]:
    """`repair_frames` that also tells where the engine stands between two frames.

    Closing it at a step cancels the engine there.
    """
    _check_batch(batch)
    check_limits(repairer, batch)
    config = config or GateConfig()
    frames = repairer.repair(batch)
    count, spent = 0, 0.0
    try:
        while True:
            begin = time.perf_counter()
            frame = next(frames, None)
            if frame is None:
                break
            if isinstance(frame, RepairStep):
                spent += time.perf_counter() - begin
                yield frame
                continue
            if count == len(batch.cameras):
                raise RepairError(
                    f"{repairer.info.title} returned more than the {count} frames it was given; "
                    "choose another engine."
                )
            _check_frame(repairer, batch, frame, count)
            gated = _gate(batch, frame, count, config)
            count += 1
            yield replace(gated, seconds=spent + time.perf_counter() - begin)
            spent = 0.0
    finally:
        close = getattr(frames, "close", None)
        if close is not None:
            close()
    if count != len(batch.cameras):
        raise RepairError(
            f"{repairer.info.title} returned {count} frames instead of {len(batch.cameras)}; "
            "choose another engine."
        )


def _gate(batch: RepairBatch, frame: FrameRepair, t: int, config: GateConfig) -> FrameRepair:
    """The frame with HPR pixels of the render, colours matched, or rejected."""
    render, ucr, calibrated = batch.renders[t], batch.ucr[t], batch.calibrated_eig[t]
    evidence = frame.pixel_provenance != int(PixelProvenance.RENDER)
    trusted = (1 - calibrated).clamp(0, 1)
    kept = torch.where(ucr, torch.zeros_like(trusted), trusted)
    check = ~ucr & evidence
    matched = match_colors(frame.rgb, render, check, config)
    amount = drift(frame.rgb, render, check, config)
    if amount > config.drift_limit:
        reason = (
            f"frame {t} was rejected: where the scene is well known the repair differs from the "
            f"render by {amount:.2f} (limit {config.drift_limit:.2f}); choose another engine or a "
            "smaller lateral offset."
        )
        none = torch.zeros_like(frame.pixel_provenance)
        return replace(frame, rgb=render, confidence=kept, pixel_provenance=none, rejected=reason)
    gate = blend_gate(calibrated, ucr, batch.coverage[t], batch.eig_threshold, config)
    gate = torch.where(evidence, gate, torch.zeros_like(gate))
    changed = gate > 0
    blended = (render + gate[..., None] * (matched - render)).clamp(0, 1)
    return replace(
        frame,
        rgb=torch.where(changed[..., None], blended, render),
        confidence=torch.where(changed, frame.confidence.clamp(0, 1), kept),
        pixel_provenance=torch.where(
            changed, frame.pixel_provenance, torch.zeros_like(frame.pixel_provenance)
        ),
    )


def _check_batch(batch: RepairBatch) -> None:
    """Raise where the parts of a batch do not belong together."""
    count, height, width = batch.renders.shape[:3]
    if count == 0 or len(batch.cameras) != count:
        raise RepairError(
            f"the batch has {count} renders and {len(batch.cameras)} cameras; "
            "give one camera per render, and at least one."
        )
    for camera in batch.cameras:
        if (camera.height, camera.width) != (height, width):
            raise RepairError(
                f"a camera is {camera.width}x{camera.height} but its render {width}x{height}; "
                "resize the camera."
            )
    maps = ("alphas", "depths", "eig", "calibrated_eig", "coverage", "ucr")
    for name in maps:
        shape = tuple(getattr(batch, name).shape)
        if shape != (count, height, width):
            raise RepairError(
                f"{name} has shape {shape}; expected {(count, height, width)}, like the renders."
            )
    for name in ("renders", "depths", "calibrated_eig"):
        if not bool(torch.isfinite(getattr(batch, name)).all()):
            raise RepairError(f"{name} contains NaN or infinity; check the scene's Gaussians.")


def _check_frame(repairer: Repairer, batch: RepairBatch, frame: FrameRepair, t: int) -> None:
    """Raise where an engine returned something unusable."""
    height, width = batch.renders.shape[1:3]
    expected = {
        "rgb": (height, width, 3),
        "confidence": (height, width),
        "pixel_provenance": (height, width),
    }
    for name, shape in expected.items():
        found = tuple(getattr(frame, name).shape)
        if found != shape:
            raise RepairError(
                f"{repairer.info.title} returned {name} of shape {found} for frame {t}, expected "
                f"{shape}; choose another engine."
            )
    for name in ("rgb", "confidence"):
        values = getattr(frame, name)
        if not bool(torch.isfinite(values).all()):
            raise RepairError(
                f"{repairer.info.title} returned NaN or infinity in {name} of frame {t}; "
                "choose another engine."
            )
        if float(values.min()) < -1e-3 or float(values.max()) > 1 + 1e-3:
            raise RepairError(
                f"{repairer.info.title} returned {name} outside [0, 1] for frame {t}; "
                "choose another engine."
            )
