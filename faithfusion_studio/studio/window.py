"""The browser side of one client: its camera, its picture, its messages and downloads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import viser
from jaxtyping import UInt8

from faithfusion_studio.cameras import Camera, Trajectory
from faithfusion_studio.studio.lens import ClientPose, pose_of

ECHO_SECONDS = 1.5
"""So long after a move of ours the browser may still report the poses we sent it."""
SETTLE_SECONDS = 0.25
"""So long after a move of ours other poses are taken for states on the way."""
LOOK_DISTANCE = 8.0
"""Distance of the point the mouse orbits around, m."""


class ClientWindow:
    """One connected browser. Poses of our own making count at once, before the browser confirms them."""

    def __init__(self, client: viser.ClientHandle) -> None:
        self.client = client
        self._lock = threading.Lock()
        self._sent: deque[tuple[ClientPose, float]] = deque(maxlen=64)
        self._time: Callable[[], float] = lambda: 0.0

    def set_clock(self, time_of_frame: Callable[[], float]) -> None:
        """Where `current_camera` takes the time of moving objects from."""
        self._time = time_of_frame

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height of the picture, pixels of the device."""
        camera = self.client.camera
        return max(camera.image_width, 2), max(camera.image_height, 2)

    def pose(self) -> ClientPose | None:
        """The newest camera: ours while the browser has not caught up, else the browser's."""
        try:
            reported = self._reported()
        except AssertionError:  # viser: no camera message yet
            return None
        now = time.monotonic()
        with self._lock:
            while self._sent and now - self._sent[0][1] > ECHO_SECONDS:
                self._sent.popleft()
            if not self._sent:
                return reported
            target, since = self._sent[-1]
            echo = any(reported.stands_like(pose) for pose, _ in self._sent)
            if not echo and now - since > SETTLE_SECONDS:
                self._sent.clear()
                return reported
        return replace(target, width=reported.width, height=reported.height)

    def _reported(self) -> ClientPose:
        camera = self.client.camera
        x, y, z = (float(v) for v in camera.position)
        qw, qx, qy, qz = (float(v) for v in camera.wxyz)
        width, height = self.canvas
        return ClientPose((x, y, z), (qw, qx, qy, qz), float(camera.fov), width, height)

    def move_to(self, camera: Camera, fov_scale: float) -> ClientPose:
        """Put the browser's camera on one of ours; returns the pose it will have."""
        target = pose_of(camera, self.canvas, fov_scale)
        pose = camera.camtoworld.numpy()
        with self._lock:
            self._sent.append((target, time.monotonic()))
        handle = self.client.camera
        with self.client.atomic():
            handle.up_direction = _safe_up(handle.look_at - handle.position, -pose[:3, 1])
            handle.position = pose[:3, 3]
            handle.look_at = pose[:3, 3] + LOOK_DISTANCE * pose[:3, 2]
            handle.up_direction = -pose[:3, 1]
            handle.fov = target.fov
        return target

    def show(self, image: UInt8[np.ndarray, "H W 3"], quality: int) -> None:
        """Replace the picture."""
        self.client.scene.set_background_image(image, format="jpeg", jpeg_quality=quality)
        self.client.flush()  # viser gathers messages for up to two windows of 1/60 s otherwise

    def notify(self, title: str, body: str, error: bool) -> None:
        """Show a short message; errors stay longer."""
        self.client.add_notification(
            title,
            body,
            auto_close_seconds=12.0 if error else 5.0,
            color="red" if error else "blue",
        )

    def download(self, name: str, data: bytes) -> None:
        """Hand a file to the browser."""
        self.client.send_file_download(name, data, save_immediately=True)

    def current_camera(self) -> Camera | None:
        """What the client looks through, at full size; None before its first message."""
        pose = self.pose()
        return None if pose is None else pose.camera(pose.width, pose.height, self._time())


def _safe_up(forward: np.ndarray, up: np.ndarray) -> np.ndarray:
    """An up direction viser accepts with the present viewing direction, which may be parallel to it."""
    cosine = abs(float(forward @ up)) / max(float(np.linalg.norm(forward)), 1e-9)
    return up if cosine < 0.999 else np.roll(up, 1)


class PathFollower:
    """Keeps the client's camera on the shown path, and notices when the user flies away."""

    def __init__(self, window: ClientWindow, trajectory: Callable[[], Trajectory | None]) -> None:
        self._window = window
        self._trajectory = trajectory
        self._offset_path: tuple[int, float, Trajectory] | None = None

    def camera(self, frame: int, offset: float) -> Camera | None:
        """Camera of the shown path; None without a recording."""
        path = self.path(offset)
        if path is None:
            return None
        return path.cameras[min(max(frame, 0), len(path) - 1)]

    def path(self, offset: float) -> Trajectory | None:
        """The recorded path moved sideways, m; the last one is kept."""
        from faithfusion_studio.cameras import offset_laterally

        recorded = self._trajectory()
        if recorded is None:
            return None
        kept = self._offset_path
        if kept is None or kept[:2] != (id(recorded), offset):
            kept = (id(recorded), offset, offset_laterally(recorded, offset))
            self._offset_path = kept
        return kept[2]

    def go(self, frame: int, offset: float, fov_scale: float) -> None:
        """Move the browser's camera onto the shown path."""
        camera = self.camera(frame, offset)
        if camera is not None:
            self._window.move_to(camera, fov_scale)

    def is_on_path(self, frame: int, offset: float) -> bool:
        """Whether the browser's camera stands where the path says."""
        camera, pose = self.camera(frame, offset), self._window.pose()
        if camera is None or pose is None:
            return False
        return pose.stands_like(pose_of(camera, self._window.canvas))

    def fits_canvas(self, frame: int, offset: float, fov_scale: float) -> bool:
        """Whether the lens still suits the canvas, whose shape changes with window and panels."""
        camera, pose = self.camera(frame, offset), self._window.pose()
        if camera is None or pose is None:
            return True
        return abs(pose.fov - pose_of(camera, self._window.canvas, fov_scale).fov) < 5e-3
