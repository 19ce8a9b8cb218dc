"""The contract of every repair engine.

Engines never see a scene: the caller renders everything they need into a `RepairBatch`. They return
one `FrameRepair` after the other, so a caller may stop between frames. `gated.repair_frames` checks what
an engine returns; nothing else may hand repaired pixels on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import StudioError


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
    context: tuple[int, int] = (0, 0)
    """Frames before and after those of a batch that it wants to see besides; they come out of other batches."""
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
