"""What the session's jobs are made of, as one bundle of functions; the tests bring their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.batches import working_scale
from faithfusion_studio.fusion.parts import FusionParts
from faithfusion_studio.fusion.repairing import engine_device
from faithfusion_studio.scene import Scene, StoredFisher
from faithfusion_studio.session.commands import ExportRequest
from faithfusion_studio.video import WITH_BEFORE, VideoOptions


@dataclass(frozen=True)
class RepairEngine:
    """A repair engine as the panel shows it."""

    name: str
    title: str
    description: str
    licence: str
    seconds_per_frame: float | None = None
    """Estimate for this machine and the recorded size; None where it is not known."""
    problem: str | None = None
    """Why it cannot be used here, one sentence; None when it can."""
    terms: str = ""
    """Of the licence that has to be accepted before it can be used; empty where none has."""

    @property
    def label(self) -> str:
        """Its title, and whether it can be used."""
        if self.problem is None:
            return self.title
        return f"{self.title} ({'licence' if self.terms else 'missing'})"


def list_engines(scene: Scene) -> tuple[RepairEngine, ...]:
    """All engines that are built in, with what each would cost on frames of this scene."""
    from faithfusion_studio.repair import REPAIRERS
    from faithfusion_studio.repair.listing import engine_facts

    size = None
    if scene.capture is not None:
        camera = scene.capture.trajectory.cameras[0].scaled(working_scale(scene))
        size = (camera.height, camera.width)
    engines = []
    for name in REPAIRERS:
        facts = engine_facts(name)
        info, seconds = facts.info, None
        if size is not None and facts.seconds is not None:
            own = facts.seconds(1, *size, engine_device(info))
            seconds = own + _viewing_seconds(scene, *size)
        terms = ""
        if facts.must_accept and facts.entry is not None:
            licence = facts.entry.licence
            terms = f"{licence.name} ({licence.url}): {licence.terms}"
        engines.append(
            RepairEngine(
                name, info.title, info.summary, info.licence, seconds, facts.problem, terms
            )
        )
    return tuple(engines)


def accept_licence(name: str) -> None:
    """Remember that the licence of an engine's weights was accepted at this machine.

    Raises:
        RepairError: The engine asks for none.
    """
    from faithfusion_studio.repair.model_store import accept_by_name

    accept_by_name(name)


def _viewing_seconds(scene: Scene, height: int, width: int) -> float:
    """About how long the view, its EIG and one reference take on two cores, for the estimate."""
    return 0.1 + scene.num_gaussians / 2e5 * (0.2 + 0.6 * height * width / (640 * 360))


def recorded_evidence(scene: Scene) -> Generator[tuple[int, int], None, StoredFisher]:
    """Sum the evidence of the recorded views; yields (done, total), returns the result."""
    from faithfusion_studio.information import accumulate_fisher

    return accumulate_fisher(scene)


def export_video(
    scene: Scene, cameras: Sequence[Camera], request: ExportRequest, before: Scene
) -> Iterator[int]:
    """Write a video or a folder of pictures; yields how many frames are done."""
    from faithfusion_studio.rig_video import export_rig

    options = _video_options(request, before)
    return export_rig(scene, cameras, Path(request.path), options, arrange=request.arrange)


def export_files(
    cameras: Sequence[Camera], request: ExportRequest, before: Scene
) -> tuple[str, ...]:
    """The files a request writes; several layers one after the other are one video each."""
    from faithfusion_studio.rig_video import rig_files

    options = _video_options(request, before)
    return tuple(map(str, rig_files(cameras, request.path, options, request.arrange)))


def _video_options(request: ExportRequest, before: Scene) -> VideoOptions:
    return VideoOptions(
        layers=request.layers,
        layout=request.layout,
        fps=request.fps,
        size=request.size,
        caption=request.caption,
        provenance=request.provenance,
        before=before if request.layout in WITH_BEFORE else None,
    )


def save(scene: Scene, path: Path) -> list[str]:
    """Write a scene file, format by suffix; returns sentences about what the format lost."""
    from faithfusion_studio.io import save_scene

    return save_scene(scene, path)


def load(path: Path) -> Scene:
    """Read a scene file."""
    from faithfusion_studio.io import load_scene

    return load_scene(path)


@contextlib.contextmanager
def thread_limit(count: int) -> Iterator[None]:
    """While open, this thread's renders use at most so many cores, and pictures go before them."""
    from faithfusion_studio.render.cpu import thread_limit as limit
    from faithfusion_studio.render.priority import background

    with limit(count), background():
        yield


@dataclass(frozen=True)
class Engines(FusionParts):
    """The functions the jobs call; those of fusion are its own."""

    list_engines: Callable[[Scene], tuple[RepairEngine, ...]] = list_engines
    accept_licence: Callable[[str], None] = accept_licence
    recorded_evidence: Callable[[Scene], Generator[tuple[int, int], None, StoredFisher]] = (
        recorded_evidence
    )
    export_video: Callable[..., Iterator[int]] = export_video
    export_files: Callable[..., tuple[str, ...]] = export_files
    save: Callable[[Scene, Path], list[str]] = save
    load: Callable[[Path], Scene] = load
    thread_limit: Callable[[int], AbstractContextManager[None]] = thread_limit
