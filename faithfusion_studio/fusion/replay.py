"""Accepted repaired frames in the compact form in which they are learned, replayed and counted as evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from faithfusion_studio.boxes import inside_box
from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.losses import SparseDepth, TrainingView, eig_weight
from faithfusion_studio.fusion.novel_depth import agreed_depth, unhidden_points
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.schedule import FusionConfig, Weighting
from faithfusion_studio.scene import Scene

GENERATED = 2
"""`PixelProvenance.GENERATED`."""
SPACING = 0.15
"""Measured points are thinned to one per cube of this side, m."""


@dataclass(frozen=True, eq=False)
class RepairedView:
    """One accepted repaired frame, about seven bytes a pixel; 255 stands for 1."""

    frame: int
    """Index in the recorded trajectory."""
    camera: Camera
    pixels: UInt8[Tensor, "H W 3"]
    confidence: UInt8[Tensor, "H W"]
    """The repairer's, less where pixels were generated."""
    calibrated: UInt8[Tensor, "H W"]
    """Calibrated EIG before the repair."""
    gain: UInt8[Tensor, "H W"]
    """EIG before the repair, over the cap of the weighting "logdet"."""
    ucr: Bool[Tensor, "H W"]
    weighting: Weighting
    evidence: float
    """Share of a recorded pixel's evidence that a pixel of full confidence counts."""
    depth: SparseDepth | None = None

    @property
    def weight(self) -> Float32[Tensor, "H W"]:
        """How much each pixel is believed in training, 0..1; 0 is never learned."""
        trust, calibrated, gain = (
            values.to(torch.float32) / 255
            for values in (self.confidence, self.calibrated, self.gain)
        )
        return eig_weight(calibrated, trust, self.weighting, eig=gain, eig_cap=1.0)

    @property
    def evidence_weight(self) -> Float32[Tensor, "H W"]:
        """Share of a recorded pixel's evidence each pixel counts: by confidence, and only where it was repaired."""
        return self.evidence / 255 * self.confidence * self.ucr

    def training_view(self, factor: float = 1.0) -> TrainingView:
        """To learn from, with all weights times a factor."""
        return TrainingView(
            camera=self.camera,
            image=self.pixels.to(torch.float32) / 255,
            weight=factor * self.weight,
            depth=self.depth,
            source="repaired",
        )


def repaired_views(
    frames: Sequence[RepairedFrame], scene: Scene, config: FusionConfig, weighting: Weighting
) -> tuple[RepairedView, ...]:
    """Frames as they are learned.

    Args:
        frames: Accepted ones.
        scene: Whose measured points give depth, where the plan asks for it.
        config: The plan.
        weighting: How much each pixel is believed, times the repairer's confidence.
    """
    points = measured_points(scene) if config.novel_depth == "points" else None
    return tuple(_repaired_view(frame, points, config, weighting) for frame in frames)


def _repaired_view(
    frame: RepairedFrame, points: Tensor | None, config: FusionConfig, weighting: Weighting
) -> RepairedView:
    trust = torch.where(frame.pixel_provenance == GENERATED, config.generated_confidence, 1.0)
    if frame.moving is not None:
        # Only the background is learned; what it learned here would stand in the street at all times.
        trust = trust.masked_fill(frame.moving, 0)
    depth = agreed_depth(frame) if config.novel_depth == "consensus" else None
    if points is not None:
        depth = unhidden_points(points, frame.camera, SPACING)
    return RepairedView(
        frame=frame.frame,
        camera=frame.camera,
        pixels=_bytes(frame.repaired),
        confidence=_bytes(trust * frame.confidence),
        calibrated=_bytes(frame.calibrated),
        gain=_bytes(frame.eig / config.eig_cap),
        ucr=frame.ucr,
        weighting=weighting,
        evidence=config.evidence,
        depth=depth,
    )


def _bytes(values: Tensor) -> Tensor:
    return (values.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def measured_points(scene: Scene) -> Float32[Tensor, "M 3"] | None:
    """Measured points of what does not move, world, m, thinned: laser scans outside of all boxes, else the cloud."""
    capture = scene.capture
    if capture is None:
        return None
    scans = [_outside_boxes(scan, scene, time) for time, scan in capture.sweeps]
    if not scans and capture.points is not None:
        scans = [capture.points.xyz]
    if not scans:
        return None
    points = torch.cat(scans)
    cell = torch.floor(points / SPACING).long()
    _, inverse = torch.unique(cell, dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1 if len(inverse) else 0,), len(points))
    first.scatter_reduce_(0, inverse, torch.arange(len(points)), "amin")
    return points[first]


def _outside_boxes(scan: Tensor, scene: Scene, time: float) -> Tensor:
    """A scan without what lies in the box of a vehicle at that time."""
    assert scene.capture is not None
    keep = torch.ones(len(scan), dtype=torch.bool)
    for box in scene.capture.boxes:
        pose = box.pose_at(time)
        if pose is not None:
            keep &= ~inside_box(scan, pose, 1.1 * box.size)
    return scan[keep]
