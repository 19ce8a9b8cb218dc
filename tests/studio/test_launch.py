"""A served studio and a bare websocket client: pictures arrive, state is shared, views are not."""

import contextlib
import threading
import time

import msgspec
import pytest
import zstandard
from street_scene import recorded_camera, street, without_recording
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from faithfusion_studio.session.commands import RemoveNode
from faithfusion_studio.session.session import Session
from faithfusion_studio.studio.app import ServeError, launch
from faithfusion_studio.studio.lens import pose_of

CANVAS = (320, 180)
pytestmark = pytest.mark.filterwarnings("ignore:Queued a:UserWarning")
"""A browser may leave while its window is being built."""


class Browser:
    """Speaks viser's protocol: sends a camera, collects what comes back."""

    def __init__(self, port, camera=None):
        self.socket = connect(
            f"ws://127.0.0.1:{port}", subprotocols=["viser-v1.1.1"], proxy=None, max_size=None
        )
        self.messages = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.look_through(camera or recorded_camera(0))

    def _read(self):
        decompressor = zstandard.ZstdDecompressor()
        with contextlib.suppress(ConnectionClosed):
            for raw in self.socket:
                size = int.from_bytes(raw[8:16], "little")
                inner = msgspec.msgpack.decode(decompressor.decompress(raw[16 : 16 + size]))
                self.messages.extend(inner["messages"])

    def look_through(self, camera):
        pose = pose_of(camera, CANVAS)
        matrix = camera.camtoworld
        self.send(
            "ViewerCameraMessage",
            wxyz=pose.wxyz,
            position=pose.position,
            fov=pose.fov,
            near=0.01,
            far=1000.0,
            image_height=CANVAS[1],
            image_width=CANVAS[0],
            look_at=(matrix[:3, 3] + 8 * matrix[:3, 2]).tolist(),
            up_direction=(-matrix[:3, 1]).tolist(),
        )

    def send(self, kind, **fields):
        self.socket.send(msgspec.msgpack.encode({"type": kind, **fields}))

    def set_widget(self, label, value):
        found = self.wait_for(lambda: self._widget(label))
        self.send("GuiUpdateMessage", uuid=found, updates={"value": value})

    def _widget(self, label):
        """The newest widget of that name: the timeline is built after the tabs."""
        for message in reversed(self.messages):
            if message.get("props", {}).get("label") == label:
                return message["uuid"]
        return None

    def count(self, kind):
        return sum(message["type"] == kind for message in self.messages)

    def wait_for(self, condition, seconds=20.0):
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.02)

    def wait_for_window(self):
        """The keys are registered last."""
        self.wait_for(lambda: any("List of all keys" in str(m.get("props")) for m in self.messages))

    def close(self):
        self.socket.close()
        self._thread.join(timeout=5)


@pytest.fixture
def session(scene, tmp_path):
    made = Session(scene, run_folder=tmp_path / "run")
    yield made
    made.close(save=False)


@pytest.fixture
def studio(session):
    made = launch(session, port=0)
    yield made
    made.close()


@pytest.fixture
def browser(studio):
    made = Browser(studio.port)
    made.wait_for_window()
    yield made
    made.close()


def test_a_browser_gets_a_picture_and_all_tabs(studio, browser):
    browser.wait_for(lambda: browser.count("BackgroundImageMessage"))
    for tab in ("Look", "Repair", "Fuse", "Quality", "Export", "Scene", "Drive"):
        browser.wait_for(lambda tab=tab: f"'{tab}'" in str(browser.messages))
    assert studio.url == f"http://127.0.0.1:{studio.port}/"


def test_widgets_change_the_view_of_their_own_browser_only(studio, browser):
    other = Browser(studio.port)
    other.wait_for_window()
    browser.set_widget("Offset (+ left)", 3.0)
    mine, theirs = (one.view for one in studio.clients)
    browser.wait_for(lambda: mine.get().offset == 3.0)
    assert theirs.get().offset == 0.0
    browser.set_widget("Layer", "Depth")
    browser.wait_for(lambda: mine.get().layer == "depth")
    other.close()


def test_moving_along_the_path_moves_the_browsers_camera(studio, browser):
    browser.set_widget("Frame", 5)
    browser.wait_for(lambda: browser.count("SetCameraPositionMessage") >= 2)
    view = studio.clients[0].view
    assert view.get().frame == 5
    position = studio.clients[0].window.pose().position
    assert position == pytest.approx(tuple(recorded_camera(5).position.tolist()))


def test_flying_away_is_noticed_and_coming_back_too(studio, browser):
    view = studio.clients[0].view
    time.sleep(0.8)  # messages from before our own first move no longer count
    browser.look_through(recorded_camera(7))
    browser.wait_for(lambda: not view.get().follow)
    browser.look_through(recorded_camera(0))
    browser.wait_for(lambda: view.get().follow)


def test_a_link_with_a_camera_is_respected(studio):
    elsewhere = Browser(studio.port, recorded_camera(8))
    elsewhere.wait_for_window()
    one = studio.clients[0]
    elsewhere.wait_for(lambda: elsewhere.count("BackgroundImageMessage"))
    assert not one.view.get().follow
    assert one.window.pose().position[0] == pytest.approx(8.0)
    elsewhere.close()


def test_a_failing_widget_is_a_message_and_the_studio_goes_on(studio, browser):
    browser.set_widget("Layer", "No such layer")
    browser.wait_for(lambda: browser.count("NotificationShowMessage"))
    browser.set_widget("Layer", "Opacity")
    browser.wait_for(lambda: studio.clients[0].view.get().layer == "alpha")


def test_a_closed_tab_ends_its_threads_and_keeps_the_session(studio, session, browser):
    extra = Browser(studio.port)
    extra.wait_for_window()
    extra.wait_for(lambda: extra.count("BackgroundImageMessage"))
    one = studio.clients[1]
    extra.close()
    browser.wait_for(lambda: len(studio.clients) == 1)
    browser.wait_for(lambda: not (one.viewport._thread.is_alive() or one._thread.is_alive()))
    browser.set_widget("Layer", "Depth")
    browser.wait_for(lambda: studio.clients[0].view.get().layer == "depth")


def test_session_errors_are_shown_once_to_everybody(studio, session, browser):
    session.submit(RemoveNode("no such car"))
    browser.wait_for(lambda: "no such car" in str(browser.messages))
    shown = browser.count("NotificationShowMessage")
    browser.set_widget("Layer", "Depth")
    time.sleep(0.5)
    assert browser.count("NotificationShowMessage") == shown


def test_shift_click_tells_the_value_at_a_pixel(studio, browser):
    view = studio.clients[0].view
    browser.wait_for(lambda: view.measurement.ms > 0 and not view.measurement.coarse)
    browser.send(
        "ScenePointerMessage",
        event_type="click",
        ray_origin=(0.0, 0.0, 1.5),
        ray_direction=(1.0, 0.0, 0.0),
        screen_pos=((0.5, 0.95),),
        modifier="shift",
    )
    browser.wait_for(lambda: "opacity" in view.measurement.probe)


def test_the_share_relay_stays_closed(studio, browser):
    browser.send("ShareUrlRequest")
    time.sleep(0.5)
    assert studio._server._share_tunnel is None


def test_malformed_messages_do_not_end_the_studio(studio, browser):
    rogue = Browser(studio.port)
    rogue.socket.send(b"\xc1not msgpack")
    rogue.wait_for(lambda: not rogue._thread.is_alive())
    again = Browser(studio.port)
    again.wait_for(lambda: again.count("BackgroundImageMessage"))
    again.close()


def test_a_busy_port_is_passed_over_and_told(studio, session):
    second = launch(session, port=studio.port)
    assert second.port != studio.port
    second.close()


def test_an_address_that_is_not_ours_is_refused_in_one_sentence(session):
    with pytest.raises(ServeError, match="not an address of this machine"):
        launch(session, host="192.0.2.1", port=0)
    with pytest.raises(ServeError, match="does not exist"):
        launch(session, port=70000)


def test_another_host_gets_a_token_in_its_url(session):
    made = launch(session, host="0.0.0.0", port=0)
    assert made.token and made.url.endswith(f"/?token={made.token}")
    made.close()


def test_a_scene_without_recording_opens(capsys, tmp_path):
    session = Session(without_recording(street()), run_folder=tmp_path)
    made = launch(session, port=0)
    one = Browser(made.port)
    one.wait_for(lambda: one.count("BackgroundImageMessage"))
    one.close()
    made.close()
    session.close(save=False)
    assert "http" not in capsys.readouterr().out
