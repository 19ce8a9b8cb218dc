"""Render a shifted segment, find what is under-constrained, and repair it frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from faithfusion_studio.cameras import Camera, Segment, offset_laterally, offset_profile
from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.scene import Scene

if TYPE_CHECKING:
    from faithfusion_studio.repair.base import Reference, RepairBatch, Repairer


@dataclass(frozen=True, eq=False)
class RepairedFrame:
    """One frame of a shifted path, before and after repair."""

    frame: int
    """Index in the recorded trajectory."""
    camera: Camera
    rendered: Float32[Tensor, "H W 3"]
    repaired: Float32[Tensor, "H W 3"]
    depth: Float32[Tensor, "H W"]
    """Depth of the repaired pixels where the repairer knows it, else of the render; m along z, 0 = none."""
    eig: Float32[Tensor, "H W"]
    """Nats, before the repair."""
    calibrated: Float32[Tensor, "H W"]
    ucr: Bool[Tensor, "H W"]
    confidence: Float32[Tensor, "H W"]
    alpha: Float32[Tensor, "H W"]
    """Opacity of the render."""
    rendered_depth: Float32[Tensor, "H W"]
    """Expected depth of the render, m along z."""
    pixel_provenance: UInt8[Tensor, "H W"]
    """0 render, 1 reprojected, 2 generated."""
    accepted: bool = True
    notes: tuple[str, ...] = ()

    @property
    def hpr_changed(self) -> int:
        """High-precision pixels that differ from the render; always 0."""
        return int(((self.rendered != self.repaired).any(-1) & ~self.ucr).sum())


UNGATED = -1.0
"""A threshold that every pixel is above."""


def working_scale(scene: Scene) -> float:
    """Resolution to repair and learn at, over the recorded one: that of the reconstruction."""
    trained = scene.metadata.get("reconstruction", {})
    if "scale" in trained:
        return float(trained["scale"])
    return min(1.0, 640 / scene.trajectory.cameras[0].width)


def repair_stage(
    scene: Scene, stage: Stage, repairer: Repairer, *, size: tuple[int, int] | None = None
) -> Iterator[RepairedFrame]:
    """Repair every frame of a stage; stop iterating to cancel.

    Views and EIG are computed where the scene is; repairers and their frames stay on the CPU.

    Args:
        scene: Needs a recording and stored evidence.
        stage: Segment, lateral offset and threshold.
        repairer: What fills the under-constrained regions.
        size: Width and height to work at; None takes the resolution the scene was trained at.

    Raises:
        TrajectoryError: The segment is outside the drive.
        MissingFisherError: The scene has no evidence to compute EIG from.
    """
    cameras = stage_cameras(scene, stage)
    yield from repair_cameras(scene, stage, repairer, cameras, range(*stage.segment), size=size)


def stage_cameras(scene: Scene, stage: Stage) -> tuple[Camera, ...]:
    """The cameras of a stage, at their recorded size: the segment moved sideways along the stage's profile.

    Raises:
        TrajectoryError: The segment is outside the drive.
    """
    path = scene.trajectory.segment(Segment(*stage.segment))
    amount = offset_profile(path, stage.lateral_offset, stage.profile)
    return offset_laterally(path, amount).cameras


def repair_cameras(
    scene: Scene,
    stage: Stage,
    repairer: Repairer,
    cameras: Sequence[Camera],
    frames: Sequence[int],
    *,
    size: tuple[int, int] | None = None,
) -> Iterator[RepairedFrame]:
    """Repair views from anywhere, such as another camera of the rig; stop iterating to cancel.

    Args:
        scene: Needs a recording and stored evidence.
        stage: Threshold, and whether the repair is gated.
        repairer: What fills the under-constrained regions.
        cameras: The views.
        frames: The recorded frame each belongs to.
        size: Width and height to work at; None takes the resolution the scene was trained at.
    """
    window = len(cameras) if repairer.info.video else 1
    references = RecordedReferences(scene, size)
    for start in range(0, len(cameras), window):
        chosen = slice(start, start + window)
        sized = [_sized(camera, scene, size) for camera in cameras[chosen]]
        yield from _repair_window(scene, stage, repairer, sized, frames[chosen], references)


def _sized(camera: Camera, scene: Scene, size: tuple[int, int] | None) -> Camera:
    return camera.scaled(working_scale(scene)) if size is None else camera.resized(*size)


class RecordedReferences:
    """Recorded frames with the depth rendered at their poses, kept while the segment moves past them."""

    KEPT = 32
    """A frame serves several novel views before it falls behind; this many stay in memory."""

    def __init__(self, scene: Scene, size: tuple[int, int] | None) -> None:
        self._scene, self._size = scene, size
        self._cache: dict[int, Reference] = {}

    def around(self, cameras: Sequence[Camera]) -> tuple[Reference, ...]:
        from faithfusion_studio.repair import select_references

        assert self._scene.capture is not None
        candidates = self._scene.capture.trajectory.cameras
        wanted = dict.fromkeys(
            index for camera in cameras for index in select_references(camera, candidates)
        )
        for index in wanted:
            self._cache[index] = self._cache.pop(index, None) or self._load(index)
        for index in list(self._cache)[: -max(self.KEPT, len(wanted))]:
            del self._cache[index]
        return tuple(self._cache[index] for index in wanted)

    def _load(self, index: int) -> Reference:
        from faithfusion_studio.render.views import apply_exposure, render_view
        from faithfusion_studio.repair import Reference, anchor_depth

        capture = self._scene.capture
        assert capture is not None
        frame = capture.frames[index]
        camera = _sized(frame.camera, self._scene, self._size)
        view = render_view(self._scene, camera)
        depth = view.depth.cpu()
        if capture.points is not None:
            depth = anchor_depth(depth, camera, capture.points.xyz)
        # Colours are looked up up to twice as finely as the repair, which keeps it sharp.
        finest = min(1.0, 2 * camera.width / frame.camera.width)
        image = frame.image(
            (round(frame.camera.width * finest), round(frame.camera.height * finest))
        )
        if self._scene.exposures is not None:
            image = apply_exposure(
                image, _inverse_exposure(self._scene.exposures[index].cpu())
            ).clamp(0, 1)
        mask = frame.mask((camera.width, camera.height))
        return Reference(
            image=image, depth=depth, alpha=view.alpha.cpu(), camera=camera, dynamic_mask=mask
        )


def _inverse_exposure(exposure: Float32[Tensor, "3 4"]) -> Float32[Tensor, "3 4"]:
    """The correction that takes a recorded frame to the scene's own colours."""
    inverse = torch.linalg.inv(exposure[:, :3])
    return torch.cat([inverse, -(inverse @ exposure[:, 3:])], dim=1)


def render_batch(
    scene: Scene,
    cameras: Sequence[Camera],
    references: RecordedReferences,
    eig_threshold: float = 0.4,
) -> RepairBatch:
    """Everything a repair engine is given about some views, on the CPU.

    Args:
        scene: Needs stored evidence.
        cameras: Novel views, all of one size.
        references: The scene's recorded frames.
        eig_threshold: tau on calibrated EIG.

    Raises:
        MissingFisherError: The scene has no evidence to compute EIG from.
    """
    from faithfusion_studio.information import eig_map, split_regions
    from faithfusion_studio.render.views import rasterize_view
    from faithfusion_studio.repair import RepairBatch

    with torch.no_grad():
        views = [rasterize_view(scene, camera) for camera in cameras]
        maps = [eig_map(scene, c, view=v) for c, v in zip(cameras, views, strict=True)]
        return RepairBatch(
            renders=torch.stack([view.rgb.clamp(0, 1) for view in views]).cpu(),
            alphas=torch.stack([view.alpha for view in views]).cpu(),
            depths=torch.stack([view.depth for view in views]).cpu(),
            eig=torch.stack([m.eig for m in maps]).cpu(),
            calibrated_eig=torch.stack([m.calibrated for m in maps]).cpu(),
            coverage=torch.stack([m.coverage for m in maps]).cpu(),
            ucr=torch.stack([split_regions(m, eig_threshold).ucr for m in maps]).cpu(),
            cameras=tuple(cameras),
            references=references.around(cameras),
            eig_threshold=eig_threshold,
        )


def _repair_window(
    scene: Scene,
    stage: Stage,
    repairer: Repairer,
    cameras: Sequence[Camera],
    frames: Sequence[int],
    references: RecordedReferences,
) -> Iterator[RepairedFrame]:
    from faithfusion_studio.repair import repair_frames

    # Below any calibrated EIG by more than the ramp of the gate, every pixel is open.
    threshold = stage.eig_threshold if stage.gated else UNGATED
    batch = render_batch(scene, cameras, references, threshold)
    repaired = repair_frames(repairer, batch)
    for i, (frame, result) in enumerate(zip(frames, repaired, strict=True)):
        depth = batch.depths[i]
        if result.depth is not None:
            depth = torch.where(result.depth > 0, result.depth, depth)
        notes = result.notes if result.rejected is None else (*result.notes, result.rejected)
        yield RepairedFrame(
            frame=frame,
            camera=cameras[i],
            rendered=batch.renders[i],
            repaired=result.rgb,
            depth=depth,
            eig=batch.eig[i],
            calibrated=batch.calibrated_eig[i],
            ucr=batch.ucr[i],
            confidence=result.confidence,
            alpha=batch.alphas[i],
            rendered_depth=batch.depths[i],
            pixel_provenance=result.pixel_provenance,
            accepted=result.rejected is None,
            notes=notes,
        )
