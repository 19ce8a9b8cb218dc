"""One render loop per browser client: newest camera + newest snapshot -> picture.

Nothing queues: the loop always draws what is newest, coarse while the camera moves (as large as fits
the frame-time budget) and full once it has rested. A full picture that would keep somebody waiting is
preceded by a coarse one, and given up before its expensive part when the camera has moved on.
Whatever goes wrong becomes a line on the picture.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from faithfusion_studio.errors import StudioError
from faithfusion_studio.scene import Scene
from faithfusion_studio.studio.compose import Stills, black, compose, with_message
from faithfusion_studio.studio.layers import LayerCache, Superseded, ViewLayers
from faithfusion_studio.studio.lens import ClientPose, fit_size
from faithfusion_studio.studio.pacing import MAX_PIXELS, FrameBudget
from faithfusion_studio.studio.view_state import Measurement, View, ViewState, describe

REST_SECONDS = 0.15
"""So long after the last movement the picture is drawn in full."""
MEASURE_SECONDS = 0.5
"""So long after the last movement EIG is measured for the histogram, if the layer did not need it."""
MEASURED_PIXELS = 640 * 360
"""At most so many pixels are measured then: few enough not to keep the next movement waiting."""
MIN_INTERVAL = 1 / 30
"""At most 30 pictures a second: browsers repaint slower when flooded."""
COARSE_BUDGET = 0.03
"""Time a picture may take while moving, s. A camera waits for at most two pictures: one that was
begun before it came, and its own."""
FULL_BUDGET = 0.45
"""Time a picture may take at rest, s."""
NOTICED = 0.12
"""An answer at rest that takes longer than this is drawn coarse first, s."""
TELL_INTERVAL = 0.25
"""While moving, panels hear of new measurements this often, s."""
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


@dataclass(frozen=True)
class _Shown:
    """What the last picture was drawn from."""

    pose: ClientPose
    state: ViewState
    version: int
    stills: object
    coarse: bool


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
        self._budgets: dict[tuple[bool, ...], FrameBudget] = {}
        self._cache, self._cache_before = LayerCache(), LayerCache()
        self._pose: ClientPose | None = None
        self._last: _Shown | None = None
        self._layers: ViewLayers | None = None
        self._moved_at = 0.0
        self._begun_at = 0.0
        self._told_at = 0.0
        self._sent: deque[float] = deque(maxlen=40)
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
        """What is at a picture position (0..1) and why it is uncertain, in words; also published.

        The splats that cause half of a pixel's uncertainty are highlighted from then on.
        """
        layers = self._layers
        if layers is None:
            return ""
        try:
            with drawing():
                words, why = layers.probe(x, y), layers.explain(x, y)
        except Superseded:
            return ""
        if why is not None:
            words = f"{words} · {why.words()}"
            self._view.set(highlight=tuple(why.causes().tolist()))
        self._view.publish_measurement(replace(self._view.measurement, probe=words))
        return words

    def object_at(self, x: float, y: float) -> str:
        """Name of the object at a picture position (0..1); empty for none."""
        layers = self._layers
        if layers is None or not layers.scene.nodes:
            return ""
        with drawing():
            return layers.object_at(x, y)

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
        early = self._begun_at + MIN_INTERVAL - now
        if early > 0:
            return early
        resting = now - self._moved_at
        coarse = resting < REST_SECONDS or state.playing
        snapshot = self._session.store.latest()
        shown = _Shown(self._pose, state, snapshot.version, self._still_key(state), coarse)
        if not self._is_shown(shown):
            if self._is_slow_answer(shown, snapshot.scene):
                shown = replace(shown, coarse=True)
            self._begun_at = now
            self._draw(shown, snapshot.scene)
            return 0.0 if shown.coarse or self._last is not shown else 0.1
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

    def _budget(self, shown: _Shown) -> FrameBudget:
        """What was learned about pictures of this kind: EIG and a second side take longer."""
        state = shown.state
        kind = (shown.coarse, state.needs_eig, state.compare != "off")
        if kind not in self._budgets:
            coarse = FrameBudget(COARSE_BUDGET, 480 * 270)
            full = FrameBudget(FULL_BUDGET, MAX_PIXELS, calm=1)  # at rest few pictures are drawn
            self._budgets[kind] = coarse if shown.coarse else full
        return self._budgets[kind]

    def _is_slow_answer(self, shown: _Shown, scene: Scene) -> bool:
        """Whether somebody at rest changed the view and would wait noticeably for the full picture."""
        last = self._last
        if shown.coarse or last is None or last.state == shown.state:
            return False
        pose, budget = shown.pose, self._budget(shown)
        size = fit_size(pose.width, pose.height, budget.pixels(pose.width * pose.height))
        found = self._cache.find(scene, pose, shown.state, size)
        if found is not None and found.ready(shown.state):
            return False
        return budget.expected > NOTICED

    def _draw(self, shown: _Shown, scene: Scene) -> None:
        pose, budget = shown.pose, self._budget(shown)
        size = fit_size(pose.width, pose.height, budget.pixels(pose.width * pose.height))
        start = time.perf_counter()
        with drawing():
            layers = self._layers_of(self._cache, scene, shown, size)
            anew = not layers.ready(shown.state)
            old = self._before()
            before = None
            if old is not None and old is not scene:
                before = self._layers_of(self._cache_before, old, shown, size)
            self._stills.scene = scene
            try:
                picture = compose(shown.state, layers, before, self._stills)
            except Superseded:
                return
        self._screen.show(with_message(picture.image, picture.problem), JPEG_QUALITY)
        seconds = time.perf_counter() - start
        if anew:
            budget.learn(seconds)
        last, self._last, self._layers = self._last, shown, layers
        stays = not shown.coarse or (last is not None and last.pose == shown.pose)
        self._report(shown, seconds, picture.problem, layers, stays)

    def _layers_of(
        self, cache: LayerCache, scene: Scene, shown: _Shown, size: tuple[int, int]
    ) -> ViewLayers:
        state = shown.state
        depth = not shown.coarse or "depth" in (state.layer, state.compare_with)
        layers = cache.get(scene, shown.pose, state, size, depth=depth)
        layers.superseded = (lambda: False) if shown.coarse else self._moved_on
        return layers

    def _moved_on(self) -> bool:
        """Whether there is a newer camera than the one being drawn."""
        newest = self._screen.pose()
        return newest is not None and self._pose is not None and not newest.resembles(self._pose)

    def _report(
        self, shown: _Shown, seconds: float, problem: str, layers: ViewLayers, stays: bool
    ) -> None:
        now = time.monotonic()
        self._sent.append(now)
        recent = [t for t in self._sent if now - t < 1.0]
        old = self._view.measurement
        histogram, eig_max = old.histogram, old.eig_max
        if shown.state.needs_eig and scene_has_evidence(layers.scene) and not problem:
            if not shown.coarse:
                histogram, eig_max = layers.histogram, layers.eig_max
                self._measured = (shown.pose, shown.version, shown.state.eig_form)
        elif not scene_has_evidence(layers.scene):
            histogram = ()
        tell = not shown.coarse or now - self._told_at > TELL_INTERVAL or problem != old.problem
        if tell:
            self._told_at = now
        self._view.publish_measurement(
            Measurement(
                ms=seconds * 1e3,
                fps=float(len(recent)) if shown.coarse else 0.0,
                size=(layers.camera.width, layers.camera.height),
                coarse=shown.coarse,
                histogram=histogram,
                eig_max=eig_max,
                probe=old.probe if stays else "",
                problem=problem,
                version=shown.version,
            ),
            tell=tell,
        )

    def _measure_at_rest(self, shown: _Shown, scene: Scene, resting: float) -> None:
        """The histogram is live in every layer: while nothing else happens, EIG is drawn unseen."""
        key = (shown.pose, shown.version, shown.state.eig_form)
        busy = self._session.state.job is not None
        if busy or resting < MEASURE_SECONDS or self._measured == key:
            return
        self._measured = key
        if not scene_has_evidence(scene):
            return
        size = fit_size(shown.pose.width, shown.pose.height, MEASURED_PIXELS)
        with drawing():
            layers = self._layers_of(self._cache, scene, shown, size)
            try:
                histogram, eig_max = layers.histogram, layers.eig_max
            except Superseded:
                self._measured = None
                return
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
        self._cache.clear()
        self._cache_before.clear()
        size = fit_size(pose.width, pose.height, 640 * 400)
        self._screen.show(with_message(black(size), words), JPEG_QUALITY)
        self._view.publish_measurement(replace(self._view.measurement, problem=words))


def scene_has_evidence(scene: Scene) -> bool:
    """Whether EIG can be computed: the stored evidence belongs to these Gaussians."""
    return scene.fisher is not None and scene.fisher.blocks.shape[0] == scene.num_gaussians


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """While open, this thread draws for somebody: before all work in the background."""
    from faithfusion_studio.render.priority import foreground

    with foreground(), torch.no_grad():
        yield
