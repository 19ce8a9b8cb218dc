"""One render loop per browser client: newest camera + newest snapshot -> picture.

Nothing queues: the loop always draws what is newest, coarse while the camera moves (as large as fits
the frame-time budget) and full once it has rested. Whatever goes wrong becomes a line on the picture.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from faithfusion_studio.errors import StudioError
from faithfusion_studio.scene import Scene
from faithfusion_studio.studio.compose import Stills, black, compose, with_message
from faithfusion_studio.studio.layers import ViewLayers
from faithfusion_studio.studio.lens import ClientPose, fit_size
from faithfusion_studio.studio.view_state import Measurement, View, ViewState, describe

REST_SECONDS = 0.15
"""So long after the last movement the picture is drawn in full."""
MEASURE_SECONDS = 0.5
"""So long after the last movement EIG is measured for the histogram, if the layer did not need it."""
MIN_INTERVAL = 1 / 30
"""At most 30 pictures a second: browsers repaint slower when flooded."""
COARSE_BUDGET = 0.06
"""Time a picture may take while moving, s."""
FULL_BUDGET = 0.45
"""Time a picture may take at rest, s."""
MAX_PIXELS = 1280 * 800
MIN_PIXELS = 160 * 96
JPEG_QUALITY = 82

_log = logging.getLogger(__name__)


@runtime_checkable
class Screen(Protocol):
    """The browser side of a viewport."""

    def pose(self) -> ClientPose | None:
        """The newest camera; None before the first message."""
        ...

    def show(self, image: UInt8[np.ndarray, "H W 3"], quality: int) -> None:
        """Replace the picture."""
        ...


class FrameBudget:
    """How many pixels fit a time, learned from the pictures drawn so far."""

    def __init__(self, seconds: float, pixels: int) -> None:
        self._seconds = seconds
        self.pixels = pixels

    def learn(self, pixels: int, seconds: float) -> None:
        """Move towards what would have filled the budget; half way, so that one hiccup passes."""
        wanted = pixels * self._seconds / max(seconds, 1e-4)
        wanted = min(max(wanted, self.pixels * 0.25), self.pixels * 2.0)
        mixed = 0.5 * self.pixels + 0.5 * wanted
        self.pixels = int(min(max(mixed, MIN_PIXELS), MAX_PIXELS))


@dataclass(frozen=True)
class _Shown:
    """What the last picture was drawn from."""

    pose: ClientPose
    state: ViewState
    version: int
    stills: object
    coarse: bool


def threads_for_viewport() -> int:
    """Threads one picture may use: all cores, moving always wins."""
    return max(1, os.cpu_count() or 1)


class Viewport:
    """Draws for one client in a thread of its own."""

    def __init__(
        self,
        screen: Screen,
        session: Any,
        view: View,
        *,
        before: Callable[[], Scene | None] = lambda: None,
    ) -> None:
        self._screen = screen
        self._session = session
        self._view = view
        self._before = before
        self._stills = Stills(session)
        self._wake = threading.Event()
        self._closed = False
        self._coarse = FrameBudget(COARSE_BUDGET, 480 * 270)
        self._full = FrameBudget(FULL_BUDGET, 960 * 600)
        self._pose: ClientPose | None = None
        self._last: _Shown | None = None
        self._layers: ViewLayers | None = None
        self._moved_at = 0.0
        self._sent_at = 0.0
        self._sent: deque[float] = deque(maxlen=30)
        self._measured: tuple[ClientPose, int, str] | None = None
        self._unsubscribe = view.subscribe(lambda _state: self.wake())
        self._thread = threading.Thread(target=self._run, name="viewport", daemon=True)

    def start(self) -> None:
        """Begin drawing."""
        self._thread.start()

    def wake(self) -> None:
        """Something may have changed: camera, view or scene."""
        self._wake.set()

    def close(self) -> None:
        """Stop drawing; returns once the picture in progress is done, at most after a few seconds."""
        self._closed = True
        self._unsubscribe()
        self._wake.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)

    def probe(self, x: float, y: float) -> str:
        """What is at a picture position (0..1), in words; also published with the measurement."""
        layers = self._layers
        if layers is None:
            return ""
        with drawing_threads():
            words = layers.probe(x, y)
        self._view.publish_measurement(replace(self._view.measurement, probe=words))
        return words

    def _run(self) -> None:
        wait = 0.0
        while not self._closed:
            self._wake.wait(timeout=wait)
            self._wake.clear()
            if self._closed:
                return
            try:
                wait = self.step()
            except Exception as error:  # noqa: BLE001 - one bad picture must not end the loop
                wait = 0.5
                self._fail(error)

    def step(self, now: float | None = None) -> float:
        """Draw one picture if anything changed.

        Args:
            now: Monotonic time, s; only tests give it.

        Returns:
            How long to wait for news before looking again, s.
        """
        now = time.monotonic() if now is None else now
        pose, state = self._screen.pose(), self._view.get()
        if pose is None or pose.width < 2 or pose.height < 2:
            return 0.1
        if self._pose is None or not pose.resembles(self._pose):
            first = self._pose is None
            self._pose = pose
            self._moved_at = now if not first else -1.0
            self._session.note_viewer_activity()
        elif (pose.width, pose.height) != (self._pose.width, self._pose.height):
            self._pose = pose
        early = self._sent_at + MIN_INTERVAL - now
        if early > 0:
            return early
        resting = now - self._moved_at
        coarse = resting < REST_SECONDS or state.playing
        snapshot = self._session.store.latest()
        shown = _Shown(self._pose, state, snapshot.version, self._still_key(state), coarse)
        if not self._is_shown(shown):
            self._draw(shown, snapshot.scene)
            return 0.0 if coarse else 0.1
        if coarse:
            return max(REST_SECONDS - resting, 0.01) if not state.playing else 0.05
        self._measure_at_rest(shown, snapshot.scene, resting)
        return 0.1

    def _is_shown(self, wanted: _Shown) -> bool:
        last = self._last
        if last is None:
            return False
        fine_enough = wanted.coarse or not last.coarse
        return fine_enough and replace(last, coarse=wanted.coarse) == wanted

    def _still_key(self, state: ViewState) -> object:
        if not {state.layer, state.compare_with} & {"repaired", "confidence"}:
            return None
        session_state = self._session.state
        return (id(session_state.frames), id(getattr(session_state, "preview", None)))

    def _draw(self, shown: _Shown, scene: Scene) -> None:
        budget = self._coarse if shown.coarse else self._full
        size = fit_size(shown.pose.width, shown.pose.height, budget.pixels)
        start = time.perf_counter()
        with drawing_threads():
            layers = self._layers_of(scene, shown, size)
            old = self._before()
            before = (
                None
                if old is None or old is scene
                else ViewLayers(old, layers.camera, layers.eig_form)
            )
            self._stills.scene = scene
            picture = compose(shown.state, layers, before, self._stills)
        self._screen.show(with_message(picture.image, picture.problem), JPEG_QUALITY)
        seconds = time.perf_counter() - start
        budget.learn(size[0] * size[1], seconds)
        self._last, self._layers = shown, layers
        self._report(shown, size, seconds, picture.problem, layers)

    def _layers_of(self, scene: Scene, shown: _Shown, size: tuple[int, int]) -> ViewLayers:
        """The layers drawn last if only the view changed, so that switching needs no new rendering."""
        last, layers = self._last, self._layers
        if (
            last is not None
            and layers is not None
            and layers.scene is scene
            and last.pose == shown.pose
            and (last.state.frame, last.state.eig_form) == (shown.state.frame, shown.state.eig_form)
            and layers.camera.width >= size[0]
        ):
            return layers
        camera = shown.pose.camera(*size, time=frame_time(scene, shown.state.frame))
        return ViewLayers(scene, camera, shown.state.eig_form)

    def _report(
        self,
        shown: _Shown,
        size: tuple[int, int],
        seconds: float,
        problem: str,
        layers: ViewLayers,
    ) -> None:
        self._sent_at = time.monotonic()
        self._sent.append(self._sent_at)
        recent = [t for t in self._sent if self._sent_at - t < 1.0]
        old = self._view.measurement
        histogram, eig_max = old.histogram, old.eig_max
        if shown.state.needs_eig and scene_has_evidence(layers.scene) and not problem:
            if not shown.coarse:
                histogram, eig_max = layers.histogram(), layers.eig_max
                self._measured = (shown.pose, shown.version, shown.state.eig_form)
        elif not scene_has_evidence(layers.scene):
            histogram = ()
        moved = self._last is None or not shown.pose.resembles(self._last.pose)
        self._view.publish_measurement(
            Measurement(
                ms=seconds * 1e3,
                fps=float(len(recent)) if shown.coarse else 0.0,
                size=(layers.camera.width, layers.camera.height),
                coarse=shown.coarse,
                histogram=histogram,
                eig_max=eig_max,
                probe="" if moved or shown.coarse else old.probe,
                problem=problem,
                version=shown.version,
            )
        )

    def _measure_at_rest(self, shown: _Shown, scene: Scene, resting: float) -> None:
        """The histogram is live in every layer: while nothing else happens, EIG is drawn small."""
        key = (shown.pose, shown.version, shown.state.eig_form)
        busy = self._session.state.job is not None
        if busy or resting < MEASURE_SECONDS or self._measured == key:
            return
        self._measured = key
        if not scene_has_evidence(scene):
            return
        size = fit_size(shown.pose.width, shown.pose.height, 320 * 200)
        camera = shown.pose.camera(*size, time=frame_time(scene, shown.state.frame))
        with drawing_threads():
            layers = ViewLayers(scene, camera, shown.state.eig_form)
            histogram, eig_max = layers.histogram(), layers.eig_max
        self._view.publish_measurement(
            replace(self._view.measurement, histogram=histogram, eig_max=eig_max)
        )

    def _fail(self, error: Exception) -> None:
        """Say on the picture what happened and stay alive; the same failure is drawn once."""
        words = str(error) if isinstance(error, StudioError) else describe(error)
        _log.warning("a picture could not be drawn: %s", words, exc_info=error)
        pose = self._pose
        if pose is None:
            return
        snapshot, state = self._session.store.latest(), self._view.get()
        self._last = _Shown(pose, state, snapshot.version, self._still_key(state), coarse=False)
        self._layers = None
        size = fit_size(pose.width, pose.height, 640 * 400)
        self._screen.show(with_message(black(size), words), JPEG_QUALITY)
        self._view.publish_measurement(replace(self._view.measurement, problem=words))


def frame_time(scene: Scene, frame: int) -> float:
    """Time of a recorded frame, s; 0 without a recording."""
    if scene.capture is None or not scene.capture.trajectory.cameras:
        return 0.0
    cameras = scene.capture.trajectory.cameras
    return cameras[min(max(frame, 0), len(cameras) - 1)].time


def scene_has_evidence(scene: Scene) -> bool:
    """Whether EIG can be computed: the stored evidence belongs to these Gaussians."""
    return scene.fisher is not None and scene.fisher.blocks.shape[0] == scene.num_gaussians


class drawing_threads:  # noqa: N801 - reads as a statement: `with drawing_threads():`
    """The core's thread budget of a picture, without gradients."""

    def __enter__(self) -> None:
        from faithfusion_studio.render.cpu import thread_limit

        self._limit = thread_limit(threads_for_viewport())
        self._no_grad = torch.no_grad()
        self._limit.__enter__()
        self._no_grad.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._no_grad.__exit__(*error)
        self._limit.__exit__(*error)
