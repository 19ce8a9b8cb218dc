"""Speed of the studio as a browser sees it: a client of a started `ff-studio`, from outside.

The page moves its camera on a small closed loop, 50 poses a second as a browser does, and every
picture that arrives is recognised: it is compared with small renderings of all poses of the loop made
beforehand, so the time of a picture counts from the very camera it was drawn from.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from faithfusion_studio.bench.browser import (
    Arrival,
    Lens,
    Page,
    page_camera,
    pictures,
    running_studio,
)
from faithfusion_studio.bench.measuring import Timing, torch_threads
from faithfusion_studio.bench.report import BenchConfig, BenchError, Report
from faithfusion_studio.bench.street import bench_scene, street_recording
from faithfusion_studio.cameras import Camera
from faithfusion_studio.information import accumulate_fisher
from faithfusion_studio.io import save_scene
from faithfusion_studio.render.views import render_view
from faithfusion_studio.scene import Scene

PROTOCOL = (
    "a websocket client of a started ff-studio, on the same machine: 50 cameras a second on a closed loop "
    "of the viewing direction, counted after two seconds; every picture is recognised by comparing it with "
    "renderings of the loop, and its time counts from sending the camera it was drawn from to having "
    "received it. Then the same while fusion runs, started by the page's own buttons; fusion_steps are those it made "
    "meanwhile, warm-up included."
)
POSES = 120
"""Of the loop; it is closed after 2.4 s."""
INTERVAL = 0.02
"""Between camera messages, s; a browser sends no faster."""
YAW, PITCH = math.radians(12), math.radians(5)
"""Half extents of the loop."""
THUMBNAIL = (64, 36)
FRAMES = 12
"""Recorded frames that fusion trains on."""
SEGMENT, OFFSET = (4, 7), 3.0
"""Frames repaired and distilled, and how far beside the path, m."""
WARM_UP = 2.0
"""Moving before anything is counted, s, at most half of what counts: the studio first learns what fits
its time budget."""
TAIL = 1.0
"""After the last move, s: so long a picture of the last cameras is waited for."""
STEPS = 2000
"""Of fusion: more than it gets done in any measurement."""
PATIENCE = 300.0
"""For repair and the start of fusion, s."""
SURE = 0.7
"""A picture is recognised where the nearest pose fits this much better than poses a little off."""


def run_view(config: BenchConfig) -> Report:
    """Latency and pictures a second while the camera moves, without and with fusion."""
    with torch_threads(1):
        return _measured(recorded_street(config), config)


def _measured(scene: Scene, config: BenchConfig) -> Report:
    assert scene.capture is not None
    start = scene.capture.trajectory.cameras[0]
    fov = 2 * math.atan(0.5 * start.height / float(start.K[1, 1]))
    lens = Lens(*config.size, fov)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "street.ckpt"
        save_scene(scene, path)
        with running_studio(path) as address:
            page = Page(address, lens)
            page.send_pose(start)
            page.wait_until(lambda: page.has("Button", "Start fusion"), "the studio's page", 60.0)
            page.idle(2.5)
            loop = loop_poses(start, page.lens)
            references = np.stack([_thumbnail(scene, camera) for camera in loop])
            alone = Drag(page, loop, references).run(config.seconds)
            start_fusion(page)
            before = steps_done(page.widgets)
            fusing = Drag(page, loop, references).run(config.seconds)
            steps = steps_done(page.widgets) - before
            notes = [] if _is_fusing(page) else ["fusion ended before the measurement did."]
            page.close()
    return Report(
        "view",
        config,
        {**alone.figures(""), **fusing.figures("_during_fusion")},
        (
            Timing("picture drawn from a camera sent, alone", alone.ages, ()),
            Timing("any camera sent to a picture as new, alone", alone.waits, ()),
            Timing("picture drawn from a camera sent, during fusion", fusing.ages, ()),
            Timing("any camera sent to a picture as new, during fusion", fusing.waits, ()),
        ),
        {
            "cameras_sent": float(alone.sent),
            "pictures": float(len(alone.ages)),
            "pictures_during_fusion": float(len(fusing.ages)),
            "recognised": alone.recognised,
            "recognised_during_fusion": fusing.recognised,
            "fusion_steps": float(steps),
        },
        notes=tuple(notes),
        protocol=PROTOCOL,
    )


def recorded_street(config: BenchConfig) -> Scene:
    """The generated street with a recording of itself and the evidence of its frames."""
    scene = bench_scene(config.gaussians, config.seed)
    scene = replace(scene, capture=street_recording(scene, FRAMES, config.recorded))
    evidence = accumulate_fisher(scene, max_views=4)
    while True:
        try:
            next(evidence)
        except StopIteration as end:
            return replace(scene, fisher=end.value)


def loop_poses(start: Camera, lens: Lens) -> list[Camera]:
    """A closed loop of the viewing direction around that of a camera, which stands still."""
    poses = []
    for phase in np.linspace(0, 2 * math.pi, POSES, endpoint=False):
        yaw, pitch = YAW * math.cos(phase), PITCH * math.sin(phase)
        turn = _about(1, yaw) @ _about(0, pitch)
        pose = start.camtoworld.clone()
        pose[:3, :3] = pose[:3, :3] @ turn
        poses.append(page_camera(pose, lens))
    return poses


def _about(axis: int, angle: float) -> torch.Tensor:
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    out = torch.eye(3, dtype=torch.float64)
    out[i, i] = out[j, j] = math.cos(angle)
    out[i, j], out[j, i] = -math.sin(angle), math.sin(angle)
    return out


def _thumbnail(scene: Scene, camera: Camera) -> np.ndarray:
    small = camera.resized(4 * THUMBNAIL[0], 4 * THUMBNAIL[1])
    return shrunk(render_view(scene, small).rgb.numpy())


def shrunk(rgb: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] as a small grey one of zero mean."""
    import cv2

    grey = cv2.resize(rgb.astype(np.float32).mean(-1), THUMBNAIL, interpolation=cv2.INTER_AREA)
    return grey - grey.mean()


def start_fusion(page: Page) -> None:
    """Offset, segment, repair, start: by the widgets a person would use."""
    page.set("Slider", "Offset (+ left)", OFFSET)
    page.set("MultiSlider", "Segment", list(SEGMENT))
    page.idle(1.0)
    page.set("Button", "Repair segment", True)
    page.wait_until(
        lambda: not page.property("Button", "Start fusion", "disabled"), "repair", PATIENCE
    )
    page.set("Slider", "Steps", STEPS)
    page.idle(0.3)
    page.set("Button", "Start fusion", True)
    page.wait_until(
        lambda: _is_fusing(page) and steps_done(page.widgets) > 0,
        "the first step of fusion",
        PATIENCE,
    )


def _is_fusing(page: Page) -> bool:
    return bool(page.property("ButtonGroup", "Job", "visible"))


def steps_done(widgets: Mapping[str, Mapping[str, Any]]) -> int:
    """Steps of fusion that the widgets of a page say are done; 0 where they say nothing."""
    said = [str(widget.get("content", "")) for widget in widgets.values()]
    found = [re.search(rf"· (\d+) / {STEPS}\b", text) for text in said]
    return max((int(match[1]) for match in found if match), default=0)


@runtime_checkable
class Mover(Protocol):
    """What a drag needs of a page."""

    def send_pose(self, camera: Camera) -> float:
        """Say where the camera stands; returns when it was sent, s."""
        ...

    def receive(self, timeout: float) -> Arrival | None:
        """The next frame of the socket; None if there was none in time."""
        ...

    def take(self, arrival: Arrival) -> None:
        """Follow what a frame says about widgets and the camera."""
        ...


class Drag:
    """A camera that moves for a while, and the pictures that came back.

    Args:
        page: A connected page.
        loop: Poses to go through again and again.
        references: [P, h, w] what each of them looks like.
    """

    def __init__(self, page: Mover, loop: list[Camera], references: np.ndarray) -> None:
        self._page, self._loop = page, loop
        self._references = references.reshape(len(loop), -1)
        self.ages: tuple[float, ...] = ()
        """From the camera a picture was drawn from to the picture, ms."""
        self.waits: tuple[float, ...] = ()
        """From each camera sent to the first picture as new as it, ms."""
        self.sent = 0
        self.recognised = 0.0
        """Share of the pictures whose camera was found."""
        self._fps = 0.0

    def run(self, seconds: float) -> Drag:
        """Move for the warm-up and `seconds` more; only the latter count."""
        warm_up = min(WARM_UP, seconds / 2)
        sent, arrivals = self._move(warm_up + seconds)
        for arrival in arrivals:
            self._page.take(arrival)
        begin, end = sent[0] + warm_up, sent[-1]
        drawn = [(at, self._drawn_from(at, data, sent)) for at, data in pictures(arrivals)]
        moving = [(at, index) for at, index in drawn if begin <= at <= end]
        shown = [(at, index) for at, index in drawn if index is not None and at >= begin]
        if not shown or not moving:
            raise BenchError("bench: no picture arrived while the camera moved.")
        self.recognised = sum(index is not None for _, index in moving) / len(moving)
        self._fps = len(moving) / (end - begin)
        self.ages = tuple(1e3 * (at - sent[index]) for at, index in shown if at <= end)
        counted = [k for k, t in enumerate(sent) if t >= begin]
        self.sent = len(counted)
        last = arrivals[-1].at  # a camera that was never shown has waited at least till then
        self.waits = tuple(
            1e3 * (min((at for at, index in shown if index >= k), default=last) - sent[k])
            for k in counted
        )
        return self

    def _move(self, seconds: float) -> tuple[list[float], list[Arrival]]:
        """Send poses at a steady pace; returns when each was sent, and everything that came in."""
        sent: list[float] = []
        arrivals: list[Arrival] = []
        begin = time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            due = begin + len(sent) * INTERVAL
            if now >= due:
                sent.append(self._page.send_pose(self._loop[len(sent) % POSES]))
            arrival = self._page.receive(due + INTERVAL - now if now >= due else due - now)
            if arrival is not None:
                arrivals.append(arrival)
        end = time.perf_counter() + TAIL
        while (left := end - time.perf_counter()) > 0:
            arrival = self._page.receive(left)
            if arrival is not None:
                arrivals.append(arrival)
        return sent, arrivals

    def _drawn_from(self, at: float, data: bytes, sent: list[float]) -> int | None:
        """Which of the cameras sent a picture shows; None where that is not sure."""
        import cv2

        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if raw is None:
            return None
        seen = shrunk(raw[:, :, ::-1] / 255).reshape(-1)
        error = np.square(self._references - seen).mean(1)
        best = int(error.argmin())
        around = np.arange(best + 5, best + POSES - 4) % POSES
        if error[best] > SURE * error[around].min():
            return None
        newest = max(k for k, t in enumerate(sent) if t <= at)
        index = newest - (newest - best) % POSES
        return index if index >= 0 else None

    def figures(self, when: str) -> dict[str, float]:
        """The keys of the report for this drag."""
        return {
            f"p50{when}_ms": float(np.percentile(self.ages, 50)),
            f"p95{when}_ms": float(np.percentile(self.ages, 95)),
            f"p95_wait{when}_ms": float(np.percentile(self.waits, 95)),
            "fps_during_fusion" if when else "fps_moving": self._fps,
        }
