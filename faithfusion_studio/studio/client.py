"""One browser: its view, picture, timeline, tabs and keys, wired together."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import viser

from faithfusion_studio.cameras import Camera, Trajectory
from faithfusion_studio.errors import StudioError
from faithfusion_studio.rig import Rig, rig_of, single
from faithfusion_studio.scene import Scene
from faithfusion_studio.studio.chosen import Drawn
from faithfusion_studio.studio.keys import keys, pass_on, register
from faithfusion_studio.studio.legend import legend
from faithfusion_studio.studio.lens import ClientPose
from faithfusion_studio.studio.object_outlines import ObjectOutlines
from faithfusion_studio.studio.offset_handle import OffsetHandle
from faithfusion_studio.studio.panels.look import add_look_panel
from faithfusion_studio.studio.panels.quality import add_quality_panel
from faithfusion_studio.studio.panels.timeline import WIDTH as TIMELINE_WIDTH
from faithfusion_studio.studio.panels.timeline import add_timeline_panel
from faithfusion_studio.studio.player import Player
from faithfusion_studio.studio.scene_graph import PathGraph
from faithfusion_studio.studio.stroke_pad import StrokePad
from faithfusion_studio.studio.vehicle_outlines import VehicleOutlines
from faithfusion_studio.studio.view_state import CALLBACK_ERRORS, View, ViewState, describe
from faithfusion_studio.studio.viewport import Viewport
from faithfusion_studio.studio.window import ClientWindow, PathFollower

DOCK_WIDTH = 384
ONE_LINE_OF_TABS = "<style>[role=tab]{padding-inline:9px!important}</style>"
"""With the spacing of the viewer's own theme the last tab falls below the others."""
UPDATE_INTERVAL = 0.1
"""Panels show a new session state at most this often, s."""

VISER_START = (3.0, 3.0, 3.0)
"""Where viser's page stands until it has heard of our first camera."""
FIRST_POSE_SECONDS = 2.0
REST_SECONDS = 0.3
"""A new page's camera stands where it was asked to once it has not moved for so long."""

_log = logging.getLogger(__name__)


class ClientStudio:
    """Everything one browser has: its view, window, viewport, panels and keys."""

    def __init__(self, client: viser.ClientHandle, session: Any) -> None:
        self._session = session
        self._client = client
        self._news = threading.Event()
        self._moved = self._view_changed = False
        self._closed = False
        self.window = ClientWindow(client)
        scene = session.store.latest().scene
        self.view = View(
            _first_view(scene),
            num_frames=_num_frames(scene),
            window=self.window,
            rig=_rig(scene),
        )
        self.follower = PathFollower(self.window, self._recorded)
        self.window.set_clock(self._time)
        self.viewport = Viewport(
            self.window, session, self.view, before=lambda: session.before_scene
        )
        self.player = Player(self.view)
        self.graph = PathGraph(client, self._snap)
        self.handle = OffsetHandle(client.scene, self.window.pose, self.view)
        self.outlines = ObjectOutlines(client.scene, session, self.view)
        self.vehicles = VehicleOutlines(client.scene, session, self.view)
        self.pad = StrokePad(client.scene, self.view, partial(self._draw, "stroke"))
        self._updates: list[Callable[[Any], None]] = []
        self._errors_seen = session.state.error_id
        self._notices_seen = session.state.notice_id
        self._moving = threading.RLock()
        self._place: tuple[int, float, float, bool] | None = None
        self._unsubscribe = session.subscribe(lambda _state: self._news.set())
        self._thread = threading.Thread(target=self._watch, name="panels", daemon=True)

    def open(self) -> None:
        """Build the window and begin drawing."""
        recorded = self._recorded()
        if recorded is not None:
            self.graph.draw_recording(recorded)
        self._start_on_path()
        self.view.subscribe(self._follow)
        self.view.subscribe(self._on_view)
        self._follow(self.view.get())
        self._client.camera.on_update(self._on_camera)
        self._camera_moved()
        self.viewport.start()
        self.player.start()
        self._build(self._client.gui)
        self._client.scene.on_click(modifier="shift")(self._probe)
        self._client.scene.on_click()(self._pick)
        self._client.scene.on_click(modifier="cmd/ctrl")(self._touched)
        self._client.scene.on_rect_select(modifier="cmd/ctrl")(self._framed)
        self._news.set()
        self._thread.start()

    def close(self) -> None:
        """The browser is gone; nothing of the session is."""
        self._closed = True
        self._unsubscribe()
        self._news.set()
        self.player.close()
        self.viewport.close()

    def _build(self, gui: Any) -> None:
        gui.configure_theme(
            dark_mode=True, show_logo=False, show_share_button=False, brand_color=(64, 156, 255)
        )
        gui.set_panel_label("FaithFusion Studio")
        gui.main_panel.dock_right()
        gui.main_panel.set_width(DOCK_WIDTH)
        card = gui.add_html(_overlay(legend(self.view.get(), self.view.measurement)))
        tabs = gui.add_tab_group()
        for title, builder in _tabs():
            with tabs.add_tab(title), reported(self.view):
                self._updates.append(builder(gui, self._session, self.view))
        timeline = gui.add_panel()
        with timeline.add_tab("Drive"):
            update = add_timeline_panel(gui, self._session, self.view, self.back_to_path)
            self._updates.append(update)
        timeline.float(x=12, y=-12, width=TIMELINE_WIDTH)
        pass_on(gui)
        register(gui, self.view, keys(self._session, self.view, self.back_to_path))

        def show_legend(_news: Any) -> None:
            text = _overlay(legend(self.view.get(), self.view.measurement))
            if card.content != text:
                card.content = text

        self.view.subscribe(show_legend)
        self.view.on_measured(show_legend)

    def back_to_path(self) -> None:
        """From free flight back to the shown path."""
        state = self.view.get()
        if state.follow:
            self.follower.go(state.frame, state.offset, state.fov_scale)
        self.view.set(follow=True)

    def _recorded(self) -> Trajectory | None:
        capture = self._session.store.latest().scene.capture
        return None if capture is None or not capture.trajectory.cameras else capture.trajectory

    def _time(self) -> float:
        recorded = self._recorded()
        if recorded is None:
            return 0.0
        return recorded.cameras[min(self.view.get().frame, len(recorded) - 1)].time

    def _start_on_path(self) -> None:
        """On the first recorded camera, unless the address asked for another one."""
        camera = self.follower.camera(0, 0.0)
        if camera is None:
            return
        asked_for = self._first_pose(camera)
        if asked_for is None:
            self.follower.go(0, 0.0, 1.0)
        else:
            self.view.set(follow=False)

    def _first_pose(self, start: Camera) -> ClientPose | None:
        """The pose the address asked for, once the page has come to rest; None if it is `start`."""
        deadline = time.monotonic() + FIRST_POSE_SECONDS
        place, since = start.position.tolist(), time.monotonic()
        last = self.window.pose()
        while time.monotonic() < deadline:
            pose = self.window.pose()
            if pose is not None and math.dist(pose.position, place) < 1e-2:
                return None
            if pose != last:
                last, since = pose, time.monotonic()
            rested = time.monotonic() - since > REST_SECONDS
            if rested and pose is not None and not _is_viser_start(pose):
                return pose
            time.sleep(0.02)
        return None

    def _snap(self, frame: int) -> None:
        self.view.set(frame=frame, offset=0.0, follow=True, playing=False)

    def _follow(self, state: ViewState) -> None:
        """Move the browser's camera when the place on the path changed."""
        shown = self.follower.path(state.offset)
        place = (state.frame, state.offset, state.fov_scale, state.follow)
        with self._moving:
            if place != self._place:
                moved = self._place is not None
                self._place = place
                if moved and state.follow:
                    self.follower.go(state.frame, state.offset, state.fov_scale)
        self.graph.update(state, shown)
        self.handle.update(state, shown)

    def _on_view(self, _state: ViewState) -> None:
        self._view_changed = True
        self._news.set()

    async def _on_camera(self, _camera: Any) -> None:
        """In viser's event loop, so that no thread stands between a movement and its picture."""
        self.viewport.wake()
        self._moved = True
        self._news.set()

    def _camera_moved(self) -> None:
        """Notice that the camera was moved away from the shown path, or back onto it."""
        state = self.view.get()
        with self._moving:
            if self._place is None or self._place[:2] != (state.frame, state.offset):
                return  # we are about to move the camera ourselves
            on_path = self.follower.is_on_path(state.frame, state.offset)
            fits = self.follower.fits_canvas(state.frame, state.offset, state.fov_scale)
            if on_path and not fits:
                self.follower.go(state.frame, state.offset, state.fov_scale)
            changed = state.follow != on_path and self.view.num_frames > 0
            if changed:
                self._place = (state.frame, state.offset, state.fov_scale, on_path)
        if changed:
            self.view.set(follow=on_path, playing=state.playing and on_path)

    def _probe(self, event: Any) -> None:
        if event.client is None or event.screen_pos is None:
            return
        x, y = event.screen_pos
        with reported(self.view):
            self.viewport.probe(float(x), float(y))

    def _pick(self, event: Any) -> None:
        """A click selects the object it hits, or none; or it says where a vehicle is."""
        if event.client is None or event.screen_pos is None:
            return
        if self.view.get().placing != "off":
            self._draw("place", [event.screen_pos], self.view.current_camera())
            return
        x, y = event.screen_pos
        with reported(self.view):
            name = self.viewport.object_at(float(x), float(y))
            box = "" if name else self.vehicles.hit(float(x), float(y))
            self.view.set(selected=name, vehicle=box or self.view.get().vehicle)

    def _touched(self, event: Any) -> None:
        if event.screen_pos is not None:
            self._draw("stroke", [event.screen_pos], self.view.current_camera())

    def _framed(self, event: Any) -> None:
        corners = [event.screen_min, event.screen_max]
        self._draw("rectangle", corners, self.view.current_camera())

    def _draw(self, kind: Any, places: list[tuple[float, float]], camera: Camera | None) -> None:
        if camera is None:
            return
        points = tuple((float(x) * camera.width, float(y) * camera.height) for x, y in places)
        with reported(self.view):
            self.view.publish_drawn(Drawn(kind, points, camera))

    def _watch(self) -> None:
        """Shows the newest session state; the writer never waits for a browser."""
        shown = None
        while not self._closed:
            self._news.wait()
            self._news.clear()
            if self._closed:
                return
            if self._moved:
                self._moved = False
                with reported(self.view):
                    self._camera_moved()
            state = self._session.state
            if state is not shown or self._view_changed:
                self._view_changed = False
                self._announce(state)
                self.graph.draw_filling(getattr(state, "filling", None))
                with reported(self.view):
                    self.outlines.update(self.view.get(), self._time())
                    self.vehicles.update(self.view.get(), self._time())
                    self.pad.update(self.view.get())
                for update in self._updates:
                    with reported(self.view):
                        update(state)
            if state is not shown:
                self.viewport.wake()
            shown = state
            threading.Event().wait(UPDATE_INTERVAL)

    def _announce(self, state: Any) -> None:
        if state.error_id > self._errors_seen and state.error:
            self.view.notify("Not done", state.error, error=True)
        if state.notice_id > self._notices_seen and state.notice:
            self.view.notify(state.notice)
        self._errors_seen, self._notices_seen = state.error_id, state.notice_id


@contextlib.contextmanager
def reported(view: View) -> Iterator[None]:
    """Whatever fails in a panel becomes a message; the studio goes on."""
    try:
        yield
    except StudioError as error:
        view.notify("Not possible", str(error), error=True)
    except CALLBACK_ERRORS as error:
        _log.exception("a panel failed")
        view.notify("A panel could not be updated", describe(error), error=True)


def _is_viser_start(pose: ClientPose) -> bool:
    return math.dist(pose.position, VISER_START) < 1e-3


def _num_frames(scene: Scene) -> int:
    return 0 if scene.capture is None else len(scene.capture.trajectory)


def _rig(scene: Scene) -> Rig:
    return rig_of(scene.capture.trajectory) if scene.capture and len(scene.capture) else single(0)


def _first_view(scene: Scene) -> ViewState:
    rig = _rig(scene)
    count = len(rig)
    start, stop = (10, 31) if count > 40 else (count // 4, max(3 * count // 4, 1))
    return ViewState(
        segment=rig.segment(start, max(stop, start + 1)),
        filmstrip="cameras" if rig.several else "off",
    )


def _tabs() -> list[tuple[str, Callable[[Any, Any, View], Callable[[Any], None]]]]:
    """The tabs in the order of the work; those of the session's part are found by name."""
    return [
        ("Look", add_look_panel),
        ("Repair", _panel("repair")),
        ("Fuse", _panel("fusion")),
        ("Quality", add_quality_panel),
        ("Objects", _panel("objects")),
        ("Export", _panel("export")),
        ("Scene", _panel("scene")),
    ]


def _panel(name: str) -> Callable[[Any, Any, View], Callable[[Any], None]]:
    module = f"faithfusion_studio.studio.panels.{name}"
    if find_spec(module) is None:
        return _missing_panel
    return getattr(import_module(module), f"add_{name}_panel")


def _missing_panel(gui: Any, _session: Any, _view: View) -> Callable[[Any], None]:
    gui.add_markdown("Not part of this installation.")
    return lambda _state: None


def _overlay(card: str) -> str:
    """The legend lies on the picture beside the dock; notifications come up on the other side."""
    return (
        f'<div style="position:fixed;right:{DOCK_WIDTH + 12}px;top:12px;max-width:380px;pointer-events:none;'
        f'z-index:5;">{card}</div>{ONE_LINE_OF_TABS}'
    )
