"""The contract of every repair engine, and the one place where its output is gated.

Engines never see a scene: the caller renders everything they need into a `RepairBatch`. They return
one `FrameRepair` after the other, so a caller may stop between frames. `repair_frames` checks what
an engine returns, matches its colours to the render, keeps HPR pixels bit-exact and rejects frames
that drift; nothing else may hand repaired pixels on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import StudioError
from faithfusion_studio.repair.gate import GateConfig, blend_gate, drift, match_colors


class RepairError(StudioError):
    """An engine, a batch or an engine's answer that cannot be used."""


class MissingWeightsError(RepairError):
    """Weights that are not on this machine: which file, how big, its licence, where to put it."""


class PixelProvenance(IntEnum):
    """Where a pixel of a repaired frame comes from."""

    RENDER = 0
    REPROJECTED = 1
    GENERATED = 2


@dataclass(frozen=True)
class RepairerInfo:
    """What a person should know about an engine before it runs."""

    title: str
    summary: str
    """One sentence."""
    licence: str
    needs_weights: bool = False
    references: bool = True
    video: bool = False
    """True where frames of a batch influence each other."""
    window: int = 0
    """Frames a batch should have at most, for video engines; 0 is the whole segment."""
    lead_in: int = 0
    """Views it wants before the first frame, sliding from the recorded pose to the path."""
    depth: bool = False
    minimum_vram_gib: float = 0.0
    """GPU memory needed; 0 where a CPU is enough."""
    released_eig: bool = False
    """True where the batch must carry EIG of the form "released", which public weights were trained on."""


@dataclass(frozen=True)
class RepairBudget:
    """What a repair may use."""

    seconds: float | None = None
    """Refuse early when the engine's estimate is longer; None never refuses."""
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class Reference:
    """A recorded image with the depth the scene has at its pose."""

    image: Float32[Tensor, "hi wi 3"]
    """Recorded colours in [0, 1]; may be finer than the depth (sharper repairs)."""
    depth: Float32[Tensor, "h w"]
    """Metres along z at the recorded pose, rendered or measured; 0 where nothing is (sky)."""
    camera: Camera
    """Of the size of `depth`."""
    alpha: Float32[Tensor, "h w"] | None = None
    """Opacity that belongs to `depth`; None where depth > 0 says it all."""
    dynamic_mask: Bool[Tensor, "h w"] | None = None
    """True where something moves; used only for novel frames of the same time."""
    trust: Float32[Tensor, "h w"] | None = None
    """Weight in [0, 1] of the depth, for instance 1 - calibrated EIG; None is 1."""


@dataclass(frozen=True, eq=False)
class RepairBatch:
    """Novel views of one segment and everything an engine may look at."""

    renders: Float32[Tensor, "T H W 3"]
    """Colours in [0, 1]."""
    alphas: Float32[Tensor, "T H W"]
    depths: Float32[Tensor, "T H W"]
    """Expected depth, m along z; 0 where nothing is."""
    eig: Float32[Tensor, "T H W"]
    """Nats, >= 0."""
    calibrated_eig: Float32[Tensor, "T H W"]
    """In [0, 1] by the scene's own map."""
    coverage: Bool[Tensor, "T H W"]
    ucr: Bool[Tensor, "T H W"]
    """True where pixels may change; all others (HPR) come back bit-exact."""
    cameras: tuple[Camera, ...]
    """One per frame, of size W x H, with its time."""
    references: tuple[Reference, ...]
    """Recorded frames around the segment; engines choose among them per frame."""
    moving: Bool[Tensor, "T H W"] | None = None
    """Pixels that show something that moves; references of another time say nothing about them."""
    anchor: Float32[Tensor, "H W 3"] | None = None
    """Recorded image that starts the clip, for video engines."""
    released_eig: Float32[Tensor, "T H W"] | None = None
    """EIG in nats by the released formula, for engines whose weights expect it."""
    lead_in: RepairBatch | None = None
    """Views that slide from the recorded pose to the first frame; not repaired themselves."""
    eig_threshold: float = 0.4
    seed: int = 0
    budget: RepairBudget = field(default_factory=RepairBudget)


@dataclass(frozen=True, eq=False)
class WarpFeatures:
    """What the recorded frames say about a novel view; input of learned engines."""

    fused: Float32[Tensor, "H W 3"]
    """Weighted mean of the warped references; 0 where nothing was seen."""
    weight: Float32[Tensor, "H W"]
    """Summed weight."""
    variance: Float32[Tensor, "H W"]
    """Colour variance among the references, mean over channels."""
    best: Float32[Tensor, "H W 3"]
    """Colour of the single best reference."""
    best_weight: Float32[Tensor, "H W"]
    depth: Float32[Tensor, "H W"]
    """Consensus depth, m along z; 0 = sky."""


@dataclass(frozen=True, eq=False)
class FrameRepair:
    """One repaired frame."""

    rgb: Float32[Tensor, "H W 3"]
    confidence: Float32[Tensor, "H W"]
    """0..1; how far `rgb` can be believed."""
    pixel_provenance: UInt8[Tensor, "H W"]
    """A `PixelProvenance` per pixel; RENDER also means that the engine had no evidence."""
    depth: Float32[Tensor, "H W"] | None = None
    """Metres along z, where the engine gives one."""
    features: WarpFeatures | None = None
    rejected: str | None = None
    """Why the whole frame was refused (then `rgb` is the render), else None."""
    notes: tuple[str, ...] = ()
    """Sentences for the user."""
    seconds: float = 0.0
    """Time the engine spent on it."""


@dataclass(frozen=True)
class RepairStep:
    """Where a long-running engine stands before its next frame; it can be stopped here."""

    done: int
    total: int
    what: str
    frames: int = 1
    """How many frames come out of these steps together."""
    picture: Float32[Tensor, "H W 3"] | None = None
    """What a frame of the clip would be if it ended here, roughly, [0, 1]; None where that is not known."""


@dataclass(frozen=True, eq=False)
class RepairResult:
    """All frames of a batch."""

    rgb: Float32[Tensor, "T H W 3"]
    confidence: Float32[Tensor, "T H W"]
    pixel_provenance: UInt8[Tensor, "T H W"]
    rejected: tuple[str | None, ...]
    depth: Float32[Tensor, "T H W"] | None = None
    features: tuple[WarpFeatures | None, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by name: "total" and "per_frame"."""
    notes: tuple[str, ...] = ()


@runtime_checkable
class Repairer(Protocol):
    """A repair engine: T frames in, T frames out, seeded, no file access while it runs."""

    name: str
    info: RepairerInfo

    def estimate_seconds(self, frames: int, height: int, width: int, device: str = "cpu") -> float:
        """Expected time for a batch, s."""
        ...

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair | RepairStep]:
        """The T frames in order, and steps between them; closing the iterator cancels."""
        ...


def _reprojection() -> Repairer:
    from faithfusion_studio.repair.reprojection import ReprojectionRepairer

    return ReprojectionRepairer()


def _refiner() -> Repairer:
    from faithfusion_studio.repair.refiner import RefinerRepairer

    return RefinerRepairer()


def _eigent_tiny() -> Repairer:
    from faithfusion_studio.repair.eigent_tiny import EigentTinyRepairer

    return EigentTinyRepairer()


def _eigent_tiny_rvc() -> Repairer:
    from faithfusion_studio.repair.eigent_tiny import TWO_STEPS, EigentTinyRepairer

    return EigentTinyRepairer(config=TWO_STEPS)


def _cascade() -> Repairer:
    from faithfusion_studio.repair.cascade import CascadeRepairer

    return CascadeRepairer()


def _difix() -> Repairer:
    from faithfusion_studio.repair.difix import load_difix

    return load_difix()


def _eigent_vace() -> Repairer:
    from faithfusion_studio.repair.eigent_vace import load_eigent_vace

    return load_eigent_vace()


def _eigent_cogvideox() -> Repairer:
    from faithfusion_studio.repair.eigent_cogvideox import load_cogvideox

    return load_cogvideox()


REPAIRERS: dict[str, Callable[[], Repairer]] = {
    "reprojection": _reprojection,
    "refiner": _refiner,
    "eigent-tiny": _eigent_tiny,
    "eigent-tiny-rvc": _eigent_tiny_rvc,
    "cascade": _cascade,
    "difix": _difix,
    "eigent-vace": _eigent_vace,
    "eigent-cogvideox": _eigent_cogvideox,
}
"""Engines by name; calling the value loads the engine."""


def create_repairer(name: str) -> Repairer:
    """The engine with this name, loaded.

    Raises:
        RepairError: No engine has this name.
        MissingWeightsError: It needs weights that are not here.
    """
    if name not in REPAIRERS:
        known = ", ".join(sorted(REPAIRERS))
        raise RepairError(f'there is no repair engine called "{name}"; choose one of: {known}.')
    return REPAIRERS[name]()


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
    from faithfusion_studio.repair.limits import check_limits

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
