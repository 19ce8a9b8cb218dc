"""Long work as generators: one yield per step, so the worker can look at its queue in between.

What is sent into a job at a step is None or "stop" (end early and keep what was done); to drop
everything the worker closes the generator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera, Segment, offset_laterally
from faithfusion_studio.editing.boxes import follow_box
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.io import is_writable
from faithfusion_studio.repair.base import RepairStep
from faithfusion_studio.rig_video import choose_cameras, export_steps
from faithfusion_studio.scene import Scene
from faithfusion_studio.session.commands import CommandError, ExportRequest
from faithfusion_studio.session.engines import Engines


class JobError(StudioError):
    """A job that cannot go on."""


@dataclass(frozen=True, eq=False)
class JobStep:
    """Where a job stands between two steps."""

    done: int
    total: int
    seconds_left: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SessionState` that are new."""
    scene: Callable[[], Scene] | None = None
    """Gives a copy of the scene as it stands; called only when one is published."""
    label: str | None = None
    """What the job is at now, where that changes on the way."""
    entry: JobResult | None = None
    """A part of the job that is done and becomes an entry of the history at once."""
    picture: Float32[Tensor, "H W 3"] | None = None
    """What it is making, roughly, [0, 1]."""


@dataclass(frozen=True, eq=False)
class JobResult:
    """What a job leaves behind."""

    scene: Scene | None = None
    label: str | None = None
    """Name of the history entry; None puts `scene` in the place of the current one."""
    optimizer_state: object = None
    notice: str | None = None
    files: tuple[str, ...] = ()
    """What an export has written."""


Job: TypeAlias = Generator[JobStep, "str | None", JobResult]


class _Clock:
    """Time left, from the pace of the steps so far; the first step counts separately."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def left(self, done: int, total: int) -> float | None:
        if done <= 0:
            return None
        return (time.monotonic() - self._start) / done * (total - done)


def require_finite(scene: Scene) -> None:
    """Refuse to show or keep a scene with a number in it that is not one.

    Raises:
        JobError: A parameter of a Gaussian is NaN or infinite.
    """
    for gaussians in (scene.background, *(node.gaussians for node in scene.nodes)):
        for name in ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN"):
            if not bool(torch.isfinite(getattr(gaussians, name)).all()):
                raise JobError(
                    f"the optimisation left the finite numbers (in {name}); the last good state "
                    "is kept. Fuse again with fewer steps or other frames."
                )


def fisher_job(engines: Engines, scene: Scene) -> Job:
    """Sum the evidence of the recorded views."""
    clock = _Clock()
    work = engines.recorded_evidence(scene)
    while True:
        try:
            done, total = next(work)
        except StopIteration as end:
            fisher = end.value
            break
        asked = yield JobStep(done, total, clock.left(done, total))
        if asked == "stop":
            work.close()
            raise JobError("the evidence is not complete; EIG needs all recorded views.")
    return JobResult(
        replace(scene, fisher=fisher), notice=f"Evidence of {fisher.num_views} views is ready."
    )


def follow_job(scene: Scene, name: str, optimizer_state: object = None) -> Job:
    """Follow an annotated vehicle through the sweeps; the optimiser's state goes on to the new entry."""
    clock = _Clock()
    work = follow_box(scene, name)
    while True:
        try:
            done, total = next(work)
        except StopIteration as end:
            followed = end.value
            break
        yield JobStep(done, total, clock.left(done, total))
    track = next(box for box in followed.capture.boxes if box.name == name)
    notice = (
        f"{name} was found in {len(track.timestamps)} of {len(followed.capture.sweeps)} sweeps; it "
        f"travels {track.travel:.1f} m."
    )
    return JobResult(followed, f"Follow {name}", optimizer_state, notice)


def repair_job(engines: Engines, scene: Scene, stage: Stage, preview: bool) -> Job:
    """Render and repair the frames of a stage, one per step."""
    clock = _Clock()
    total = stage.segment[1] - stage.segment[0]
    frames: tuple[RepairedFrame, ...] = ()
    if (yield JobStep(0, total)) == "stop":
        return JobResult()
    for frame in engines.repair(scene, stage):
        if isinstance(frame, RepairStep):
            if (yield _between_frames(frame, len(frames), total, clock)) == "stop":
                break
            continue
        frames = (*frames, frame)
        changes = {"preview": frame} if preview else {"frames": frames, "stage": stage}
        asked = yield JobStep(len(frames), total, clock.left(len(frames), total), changes)
        if asked == "stop":
            break
    if preview:
        return JobResult()
    accepted = sum(frame.accepted for frame in frames)
    notice = (
        f"Repaired {len(frames)} of {total} frames at {stage.lateral_offset:+g} m; "
        f"{accepted} are accepted."
    )
    if not any(float(frame.ucr.float().mean()) > 0.005 for frame in frames):
        notice += (
            " Hardly a pixel is under-constrained at this threshold; lower it in the tab Look."
        )
    return JobResult(notice=notice)


def _between_frames(step: RepairStep, done: int, total: int, clock: _Clock) -> JobStep:
    """Progress of an engine that is at work on a frame, or on several frames in one go."""
    if step.frames > 1:
        left = clock.left(step.done, step.total) if done == 0 else None
        return JobStep(step.done, step.total, left, picture=step.picture)
    return JobStep(done, total, clock.left(done, total), picture=step.picture)


# ------------------------------------------------------------------------------------- exports


def export_cameras(scene: Scene, request: ExportRequest) -> tuple[Camera, ...]:
    """The cameras an export follows: the chosen ones of the rig, moved sideways with it.

    Raises:
        SceneError: The scene has no recording.
        TrajectoryError: The segment is outside the drive.
        CommandError: The camera path "segment" came without a segment.
        VideoError: A camera is not on the rig.
    """
    trajectory = scene.trajectory
    names = list(dict.fromkeys(camera.name for camera in trajectory.cameras))
    wanted = choose_cameras(names, request.cameras) if request.cameras else names[:1]
    start, stop = 0, len(trajectory)
    offset = 0.0 if request.camera_path == "recorded" else request.lateral_offset
    if request.camera_path == "segment":
        if request.segment is None:
            raise CommandError("no segment is chosen; set one in the timeline first.")
        start, stop = request.segment
        trajectory.segment(Segment(start, stop))
    indices = [i for i in range(start, stop) if trajectory.cameras[i].name in wanted]
    if not indices:
        raise CommandError(
            f"frames {start}-{stop - 1} have no picture of camera {', '.join(wanted)!r}."
        )
    return offset_laterally(trajectory.select(indices), offset).cameras


def export_job(engines: Engines, scene: Scene, before: Scene, request: ExportRequest) -> Job:
    """Write a video, pictures or a scene file; closing it leaves nothing under the final name."""
    path = Path(request.path)
    if is_writable(path):
        yield JobStep(0, 1)
        lost = engines.save(scene, path)
        return JobResult(notice=" ".join([f"Exported {path}.", *lost]), files=(request.path,))
    cameras = export_cameras(scene, request)
    clock = _Clock()
    work = engines.export_video(scene, cameras, request, before)
    try:
        total = export_steps(cameras, path, request.arrange)
        yield JobStep(0, total)
        for done in work:
            yield JobStep(done, total, clock.left(done, total))
    finally:
        close = getattr(work, "close", None)
        if close is not None:
            close()
    files = engines.export_files(cameras, request, before)
    return JobResult(notice=f"Exported {', '.join(files)}.", files=files)
