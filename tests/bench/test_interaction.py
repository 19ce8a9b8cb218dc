"""The page without a screen: viser's wire format, recognising pictures, and the whole topic once."""

import math
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import torch

from faithfusion_studio.bench import BenchConfig, BenchError, run_bench
from faithfusion_studio.bench.browser import Arrival, Lens, Page, messages, page_camera, pictures
from faithfusion_studio.bench.interaction import (
    INTERVAL,
    POSES,
    STEPS,
    Drag,
    loop_poses,
    shrunk,
    steps_done,
)
from faithfusion_studio.bench.street import bench_camera
from faithfusion_studio.cameras import Camera
from faithfusion_studio.session.state import JobState
from faithfusion_studio.studio.widgets import JobBar


def _frame(*sent: dict) -> bytes:
    """A frame as viser's server packs it."""
    import msgspec
    import zstandard

    inner = msgspec.msgpack.encode({"messages": sent, "timestampSec": 0.0})
    packed = zstandard.ZstdCompressor(level=1).compress(inner)
    sizes = len(inner).to_bytes(8, "little") + len(packed).to_bytes(8, "little")
    return sizes + packed + bytes(-len(packed) % 8) + b"raw arrays follow"


def test_frames_of_the_server_are_unpacked():
    sent = [
        {"type": "BackgroundImageMessage", "rgb_data": b"jpeg"},
        {"type": "BackgroundImageMessage", "rgb_data": None},
        {"type": "GuiUpdateMessage", "uuid": "a", "updates": {"visible": True}},
    ]
    assert messages(_frame(*sent)) == sent
    assert list(pictures([Arrival(3.0, _frame(*sent))])) == [(3.0, b"jpeg")]


def test_the_message_of_a_moved_camera_is_one_viser_reads(monkeypatch):
    from viser import _messages
    from viser.infra._messages import Message

    page = object.__new__(Page)
    page.lens = Lens(640, 360, 0.7)
    page._socket = sent = type("Socket", (), {"send": lambda self, data: packed.append(data)})()
    packed: list[bytes] = []
    camera = page_camera(bench_camera((640, 360)).camtoworld, page.lens)
    page.send_pose(camera)
    page.send(type="GuiUpdateMessage", uuid="u", updates={"value": True})
    assert sent is page._socket
    pose, press = (Message.deserialize(data) for data in packed)
    assert isinstance(pose, _messages.ViewerCameraMessage)
    assert isinstance(press, _messages.GuiUpdateMessage)
    assert (pose.image_width, pose.image_height, pose.fov) == (640, 360, 0.7)
    ahead = np.array(pose.look_at) - np.array(pose.position)
    np.testing.assert_allclose(ahead / 8, camera.camtoworld[:3, 2], atol=1e-6)


def test_the_lens_of_the_page_has_its_field_of_view():
    camera = page_camera(torch.eye(4), Lens(640, 360, 1.0), (320, 180))
    assert 2 * math.atan(90 / float(camera.K[1, 1])) == pytest.approx(1.0)
    assert float(camera.K[0, 2]) == 160


def _picture(camera: Camera) -> np.ndarray:
    """A sky of stripes that turns with the camera; [36, 64, 3] in 0..1."""
    forward = camera.camtoworld[:3, 2].numpy()
    x = np.arange(64) / 64 + 4 * math.atan2(forward[1], forward[0])
    y = np.arange(36) / 36 + 4 * math.asin(float(forward[2]))
    stripes = np.sin(9 * x)[None] * np.sin(7 * y + 1)[:, None] + np.sin(23 * x + 3 * y[:, None])
    return np.repeat(0.5 + 0.2 * stripes[..., None], 3, axis=2).astype(np.float32)


class _FakePage:
    """A page whose pictures come a known number of cameras late, every so many cameras."""

    def __init__(self, late: int, every: int):
        self.late, self.every = late, every
        self.sent: list[Camera] = []
        self.now = 100.0
        self.waiting: list[Arrival] = []

    def clock(self) -> float:
        return self.now

    def send_pose(self, camera: Camera) -> float:
        self.sent.append(camera)
        index = len(self.sent) - 1 - self.late
        if index >= 0 and len(self.sent) % self.every == 0:
            pixels = (_picture(self.sent[index])[:, :, ::-1] * 255).astype(np.uint8)
            jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
            message = {"type": "BackgroundImageMessage", "rgb_data": jpeg}
            self.waiting.append(Arrival(self.now + 0.001, _frame(message)))
        return self.now

    def receive(self, timeout: float) -> Arrival | None:
        if self.waiting:
            self.now += 0.001
            return self.waiting.pop()
        self.now += timeout
        return None

    def take(self, arrival: Arrival) -> None:
        pass


@pytest.mark.parametrize(("late", "every"), [(0, 1), (3, 5), (9, 4)])
def test_the_age_of_a_picture_counts_from_the_camera_it_shows(monkeypatch, late, every):
    page = _FakePage(late, every)
    monkeypatch.setattr("faithfusion_studio.bench.interaction.time.perf_counter", page.clock)
    loop = loop_poses(bench_camera((64, 36)), Lens(64, 36, 0.6))
    assert len(loop) == POSES
    references = np.stack([shrunk(_picture(camera)) for camera in loop])
    drag = Drag(page, loop, references).run(3.0)
    assert drag.recognised == 1
    expected = 1e3 * (late * INTERVAL + 0.001)
    np.testing.assert_allclose(drag.ages, expected, atol=3)
    figures = drag.figures("")
    assert figures["fps_moving"] == pytest.approx(1 / (every * INTERVAL), rel=0.1)
    assert figures["p95_ms"] == pytest.approx(expected, abs=3)
    slowest = expected + 1e3 * (every - 1) * INTERVAL
    middle = np.sort(drag.waits)[: len(drag.waits) - late - every]
    assert middle.max() == pytest.approx(slowest, abs=3)


def test_a_picture_that_shows_none_of_the_poses_is_not_counted(monkeypatch):
    page = _FakePage(0, 2)
    monkeypatch.setattr("faithfusion_studio.bench.interaction.time.perf_counter", page.clock)
    loop = loop_poses(bench_camera((64, 36)), Lens(64, 36, 0.6))
    noise = np.random.default_rng(0).normal(size=(POSES, 36, 64)).astype(np.float32)
    with pytest.raises(BenchError, match="no picture"):
        Drag(page, loop, noise).run(2.0)


def test_steps_of_fusion_are_read_off_the_page():
    """The line below the bar of the tab Fuse, as the studio writes it; elsewhere the same job is named."""
    job = JobState("fusion", "Fusion +3 m, frames 4-6", done=73, total=STEPS, seconds_left=60.0)
    gui = MagicMock()
    JobBar(gui).show(job)
    line = gui.add_html.return_value
    texts = {"1": {"content": line.content}, "2": {"content": "Fusion 73/2000 · 31 ms"}, "3": {}}
    assert steps_done(texts) == 73
    assert steps_done({"3": {}}) == 0


def test_the_studio_is_measured_from_outside_with_and_without_fusion():
    config = BenchConfig(2500, (320, 180), repeats=1, seconds=1.2, recorded=(310, 94))
    report = run_bench("view", config)
    assert all(isinstance(v, float) and 0 < v < math.inf for v in report.figures.values())
    assert report.figures["p50_ms"] <= report.figures["p95_ms"] <= report.figures["p95_wait_ms"]
    assert report.counts["recognised"] > 0.8
    assert report.counts["cameras_sent"] > 50
    assert report.notes == ()
