"""Render a shifted segment, find what is under-constrained, and repair it frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from faithfusion_studio.cameras import (
    Camera,
    Segment,
    offset_laterally,
    offset_profile,
)
from faithfusion_studio.fusion.batches import RecordedReferences, render_batch, sized_camera
from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.rig import by_camera
from faithfusion_studio.scene import Scene

if TYPE_CHECKING:
    from faithfusion_studio.repair.base import (
        Repairer,
        RepairerInfo,
        RepairStep,
    )


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
    moving: Bool[Tensor, "H W"] | None = None
    """Pixels that show a moving object, which the background must not learn; None where nothing moves."""
    accepted: bool = True
    notes: tuple[str, ...] = ()

    @property
    def hpr_changed(self) -> int:
        """High-precision pixels that differ from the render; always 0."""
        return int(((self.rendered != self.repaired).any(-1) & ~self.ucr).sum())


UNGATED = -1.0
"""A threshold that every pixel is above."""


def repair_stage(
    scene: Scene, stage: Stage, repairer: Repairer, *, size: tuple[int, int] | None = None
) -> Iterator[RepairedFrame]:
    """Repair every frame of a stage; stop iterating to cancel.

    Views and EIG are computed where the scene is; frames stay on the CPU. An engine that asks for GPU
    memory runs on a GPU where there is one, the others on the CPU.

    Args:
        scene: Needs a recording and stored evidence.
        stage: Segment, lateral offset and threshold.
        repairer: What fills the under-constrained regions.
        size: Width and height to work at; None takes the resolution the scene was trained at.

    Raises:
        TrajectoryError: The segment is outside the drive.
        MissingFisherError: The scene has no evidence to compute EIG from.
        RepairError: The engine would take hopelessly long here.
    """
    for item in repair_stage_steps(scene, stage, repairer, size=size):
        if isinstance(item, RepairedFrame):
            yield item


def repair_stage_steps(
    scene: Scene, stage: Stage, repairer: Repairer, *, size: tuple[int, int] | None = None
) -> Iterator[RepairedFrame | RepairStep]:
    """`repair_stage` that also tells where a slow engine stands between two frames."""
    cameras = stage_cameras(scene, stage)
    frames = range(*stage.segment)
    yield from _repair_in_windows(scene, stage, repairer, cameras, frames, size)


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
    for item in _repair_in_windows(scene, stage, repairer, cameras, frames, size):
        if isinstance(item, RepairedFrame):
            yield item


def _repair_in_windows(
    scene: Scene,
    stage: Stage,
    repairer: Repairer,
    cameras: Sequence[Camera],
    frames: Sequence[int],
    size: tuple[int, int] | None,
) -> Iterator[RepairedFrame | RepairStep]:
    """As many views at once as the engine wants to see together."""
    from faithfusion_studio.repair.limits import refuse_hopeless

    info = repairer.info
    window = (info.window or len(cameras)) if info.video else 1
    references = RecordedReferences(scene, size)
    first = sized_camera(cameras[0], scene, size)
    refuse_hopeless(repairer, len(cameras), first.height, first.width, engine_device(info))
    # A clip is of one camera: cut from one camera of the rig to another, it would show no motion.
    order = by_camera([camera.name for camera in cameras]) if window > 1 else range(len(cameras))
    names = [cameras[i].name for i in order]
    for chosen in _clips(names, window):
        seen = _with_context(names, chosen, info.context)
        indices = [order[i] for i in seen]
        sized = [sized_camera(cameras[i], scene, size) for i in indices]
        clip = [frames[i] for i in indices]
        kept = range(chosen.start - seen.start, chosen.stop - seen.start)
        yield from _repair_window(scene, stage, repairer, sized, clip, references, kept)


def _clips(names: Sequence[str], window: int) -> Iterator[range]:
    """Ranges of at most `window` frames, none of which holds two cameras."""
    start = 0
    while start < len(names):
        stop = start + 1
        while stop < min(len(names), start + window) and names[stop] == names[start]:
            stop += 1
        yield range(start, stop)
        start = stop


def _with_context(names: Sequence[str], chosen: range, context: tuple[int, int]) -> range:
    """A clip with as many of its camera's frames before and after it as an engine wants to see."""
    start, stop, name = chosen.start, chosen.stop, names[chosen.start]
    while start > max(0, chosen.start - context[0]) and names[start - 1] == name:
        start -= 1
    while stop < min(len(names), chosen.stop + context[1]) and names[stop] == name:
        stop += 1
    return range(start, stop)


def engine_device(info: RepairerInfo) -> str:
    """Where an engine runs: on a GPU where it asks for one and one is there, else on the CPU."""
    return "cuda" if info.minimum_vram_gib and torch.cuda.is_available() else "cpu"


def _lead_in(recorded: Camera, target: Camera, count: int) -> list[Camera]:
    """Views at the time of one frame that slide from its recorded pose to the pose of the novel view."""
    start, stop = recorded.camtoworld[:3, 3], target.camtoworld[:3, 3]
    views = []
    for i in range(count):
        pose = target.camtoworld.clone()
        pose[:3, 3] = torch.lerp(start, stop, i / count)
        views.append(target.moved(pose))
    return views


def _repair_window(
    scene: Scene,
    stage: Stage,
    repairer: Repairer,
    cameras: Sequence[Camera],
    frames: Sequence[int],
    references: RecordedReferences,
    kept: range,
) -> Iterator[RepairedFrame | RepairStep]:
    """The frames of one batch whose indices are `kept`; the others help these."""
    from faithfusion_studio.repair import GateConfig, RepairBudget, RepairStep, repair_steps

    # Below any calibrated EIG by more than the ramp of the gate, every pixel is open.
    threshold = stage.eig_threshold if stage.gated else UNGATED
    info, (width, height) = repairer.info, (cameras[0].width, cameras[0].height)
    released = info.released_eig
    if len(cameras) > 1:
        # Of a long window the recorded frames are what takes long before the first frame is repaired.
        for _ in references.loading(cameras, stage.references):
            yield RepairStep(0, len(cameras), "loading recorded frames")
    batch = render_batch(
        scene, cameras, references, threshold, chosen=stage.references, released_eig=released
    )
    lead_in = None
    if info.lead_in:
        ramp = _lead_in(scene.trajectory.cameras[frames[0]], cameras[0], info.lead_in)
        lead_in = render_batch(scene, ramp, references, threshold, released_eig=released)
    batch = replace(
        batch,
        lead_in=lead_in,
        anchor=references.picture(frames[0], width, height) if info.video else None,
        seed=stage.seed,
        budget=RepairBudget(device=engine_device(info)),
    )
    i = -1
    for result in repair_steps(repairer, batch, GateConfig(strength=stage.strength)):
        if isinstance(result, RepairStep):
            yield result
            continue
        i += 1
        if i not in kept:
            continue
        frame = frames[i]
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
            moving=None if batch.moving is None else batch.moving[i],
            accepted=result.rejected is None,
            notes=notes,
        )
        if i + 1 == kept.stop < len(frames):
            return
