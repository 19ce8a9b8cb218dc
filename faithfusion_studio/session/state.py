"""What the session tells the outside: one frozen value, replaced as a whole."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.annotating import Annotation
from faithfusion_studio.boxes import BoxTrack
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.gaussians import Gaussians, Provenance
from faithfusion_studio.render.device import device_name
from faithfusion_studio.scene import Scene

_log = logging.getLogger(__name__)

JobKind: TypeAlias = Literal["repair", "fusion", "fisher", "follow", "export", "save"]


@dataclass(frozen=True, eq=False)
class JobState:
    """How far a job is."""

    kind: JobKind
    label: str
    """For people, e.g. "Repair +3 m, frames 10-30"."""
    done: int = 0
    total: int = 0
    """In units of the job: frames or steps; 0 where unknown."""
    seconds_left: float | None = None
    paused: bool = False
    asked: str = ""
    """"pausing" or "stopping" from the request until the job reached its next step."""
    picture: Float32[Tensor, "H W 3"] | None = None
    """What it is making, roughly, [0, 1]; of engines that can tell."""


@dataclass(frozen=True)
class NodeInfo:
    """A moving object of the scene."""

    name: str
    category: str
    num_gaussians: int
    hidden: bool = False
    locked: bool = False
    color: tuple[float, float, float] | None = None
    """RGB in [0, 1]."""


@dataclass(frozen=True)
class VehicleInfo:
    """An annotated vehicle of the recording."""

    name: str
    category: str
    size: tuple[float, float, float]
    """Length, width, height, m."""
    travel: float
    """Largest distance between two of its places, m."""
    times: tuple[float, ...]
    """Of all keyframes, s, ascending."""
    by_hand: tuple[float, ...]
    """Of those set by hand, s, ascending."""


@dataclass(frozen=True, eq=False)
class SessionState:
    """Everything the panels show that is not of one browser."""

    job: JobState | None = None
    """What the worker is doing."""
    export: JobState | None = None
    """What the export thread is doing."""
    error: str | None = None
    """The last thing that went wrong, one sentence."""
    error_id: int = 0
    """Rises with every error, so that each is shown once."""
    notice: str | None = None
    """The last good news, one sentence."""
    notice_id: int = 0
    frames: tuple[RepairedFrame, ...] = ()
    """The strip of the last repair."""
    preview: RepairedFrame | None = None
    """The last single frame that was repaired only to look at it."""
    stage: Stage | None = None
    """What `frames` were repaired for."""
    filling: Gaussians | None = None
    """Splats that "Fill empty" would add, while they are only looked at."""
    loss_curve: tuple[tuple[int, float], ...] = ()
    psnr_curve: tuple[tuple[int, float], ...] = ()
    """Recorded views, dB."""
    moved_curve: tuple[tuple[int, float], ...] = ()
    """Share of the trusted pixels that look different than before the stage, 0..1."""
    plan: tuple[Stage, ...] = ()
    """Stages of the last fusion."""
    plan_done: int = 0
    """How many of them are done."""
    psnr_before: float | None = None
    """Recorded views before the first step of the last fusion, dB."""
    undo_label: str | None = None
    redo_label: str | None = None
    history: tuple[str, ...] = ()
    cursor: int = 0
    """Entry of `history` that is shown."""
    unsaved: bool = False
    path: str | None = None
    """The file this scene was last read from or written to."""
    exports: tuple[str, ...] = ()
    """Files written in this session."""
    fisher_ready: bool = False
    has_recording: bool = False
    device: str = ""
    """What draws and learns, for people."""
    num_gaussians: int = 0
    num_generated: int = 0
    provenance: tuple[tuple[str, int], ...] = ()
    """Splats by where they came from."""
    nodes: tuple[NodeInfo, ...] = ()
    vehicles: tuple[VehicleInfo, ...] = ()
    """What is annotated in the recording, in its order."""


def scene_facts(scene: Scene) -> dict[str, Any]:
    """The fields of `SessionState` that follow from the scene."""
    parts = [scene.background.provenance, *(n.gaussians.provenance for n in scene.nodes)]
    counts = torch.bincount(torch.cat(parts).long(), minlength=len(Provenance)).tolist()
    return {
        "fisher_ready": scene.fisher is not None
        and len(scene.fisher.blocks) == scene.num_gaussians,
        "has_recording": scene.capture is not None,
        "device": device_name(scene.device),
        "num_gaussians": scene.num_gaussians,
        "num_generated": sum(counts) - counts[Provenance.RECORDED],
        "provenance": tuple((p.name.lower(), counts[p]) for p in Provenance if counts[p]),
        "nodes": tuple(
            NodeInfo(n.name, n.category, len(n.gaussians), n.hidden, n.locked, n.color)
            for n in scene.nodes
        ),
        "vehicles": tuple(map(_vehicle, () if scene.capture is None else scene.capture.boxes)),
    }


def _vehicle(track: BoxTrack) -> VehicleInfo:
    keyframes = Annotation.from_track(track).keyframes
    length, width, height = track.size.tolist()
    return VehicleInfo(
        track.name,
        track.category,
        (length, width, height),
        track.travel,
        tuple(keyframe.time for keyframe in keyframes),
        tuple(keyframe.time for keyframe in keyframes if keyframe.by_hand),
    )


def sentence(error: BaseException, label: str) -> str:
    """One sentence for the user about anything that went wrong in `label`."""
    if isinstance(error, StudioError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{label} stopped: no space left on the disk; make room and try again."
    text = " ".join(str(error).split())
    memory = isinstance(error, MemoryError) or "memory" in text.lower()
    if isinstance(error, (MemoryError, RuntimeError)) and memory:
        return f"{label} stopped: not enough memory; choose fewer frames or a smaller size."
    what = f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
    return f"{label} failed ({what}); the last good state is kept, details are in the terminal."


class StateBoard:
    """The current `SessionState`; a notifier thread tells the newest one to whoever listens.

    Writers never wait for listeners, and a listener that is slow gets fewer, newer states.
    """

    def __init__(self, state: SessionState) -> None:
        self._state = state
        self._condition = threading.Condition(threading.RLock())
        self._version = 1
        self._told: dict[Callable[[SessionState], None], int] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._tell, name="session-notifier", daemon=True)
        self._thread.start()

    @property
    def state(self) -> SessionState:
        """The newest state."""
        return self._state

    def change(self, **changes: Any) -> None:
        """Replace fields; an error or a notice also gets a new id."""
        with self._condition:
            for text, number in (("error", "error_id"), ("notice", "notice_id")):
                if changes.get(text) is not None:
                    changes[number] = getattr(self._state, number) + 1
            self._state = replace(self._state, **changes)
            self._version += 1
            self._condition.notify_all()

    def change_job(self, **changes: Any) -> None:
        """Replace fields of the job, if one runs."""
        with self._condition:
            if self._state.job is not None:
                self.change(job=replace(self._state.job, **changes))

    def change_export(self, **changes: Any) -> None:
        """Replace fields of the export, if one runs."""
        with self._condition:
            if self._state.export is not None:
                self.change(export=replace(self._state.export, **changes))

    def add_exports(self, paths: tuple[str, ...]) -> None:
        """Remember files that were written, the newest last."""
        with self._condition:
            others = tuple(p for p in self._state.exports if p not in paths)
            self.change(exports=(*others, *paths))

    def subscribe(self, call: Callable[[SessionState], None]) -> Callable[[], None]:
        """Tell `call` the state now and after changes; returns the function that ends it."""
        with self._condition:
            self._told[call] = 0
            self._condition.notify_all()

        def unsubscribe() -> None:
            with self._condition:
                self._told.pop(call, None)

        return unsubscribe

    def close(self) -> None:
        """Tell what is still untold, then end."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def _tell(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or bool(self._behind()))
                calls, state, version = self._behind(), self._state, self._version
                if not calls:
                    return
                for call in calls:
                    self._told[call] = version
            for call in calls:
                try:
                    call(state)
                except Exception:  # one listener must not silence the others
                    _log.exception("a listener of the session failed")

    def _behind(self) -> list[Callable[[SessionState], None]]:
        return [call for call, version in self._told.items() if version < self._version]
