"""A browser without a screen: a websocket client that speaks to a running studio as viser's page does.

Wire format of viser 1.1.1: to the server one msgpack map per message; from it frames of two 64-bit
lengths, then zstd-compressed msgpack {"messages": [...]}, then raw arrays, which are not needed here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from faithfusion_studio.bench.report import BenchError
from faithfusion_studio.cameras import Camera
from faithfusion_studio.transforms import look_at, rotmat_to_quat

START_SECONDS = 60.0
LOOK_DISTANCE = 8.0
"""Distance of the point the mouse would orbit around, m."""


@dataclass(frozen=True)
class Lens:
    """Canvas and vertical field of view of the page."""

    width: int
    height: int
    """Pixels of the device."""
    fov: float
    """Rad."""


@dataclass(frozen=True)
class Arrival:
    """A frame of the socket, still packed."""

    at: float
    """`time.perf_counter()` when it was complete, s."""
    data: bytes


@contextmanager
def running_studio(scene: Path) -> Iterator[str]:
    """Start `ff-studio` on a scene file in a process of its own; gives the address to connect to.

    Raises:
        BenchError: The process ended, or said no address within a minute.
    """
    code = "from faithfusion_studio.cli import entry; entry()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "view", str(scene), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=scene.parent,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        if not line:
            said = process.stderr.read().strip().splitlines()
            raise BenchError(
                f"bench: ff-studio did not start: {said[-1] if said else 'it said nothing'}."
            )
        yield f"ws://127.0.0.1:{json.loads(line)['port']}"
    finally:
        process.kill()  # the scene is a temporary one; nothing of it is to be kept
        process.communicate()


class Page:
    """One connected page: what it was told, where its camera stands, and what a person can do in it.

    Args:
        address: ws:// address of the studio.
        lens: Canvas and field of view.
    """

    def __init__(self, address: str, lens: Lens) -> None:
        from websockets.sync.client import connect
        from websockets.typing import Subprotocol

        protocol = Subprotocol(f"viser-v{version('viser')}")
        self._socket = connect(address, subprotocols=[protocol], max_size=None, compression=None)
        self.lens = lens
        self.widgets: dict[str, dict[str, Any]] = {}
        """Type, label and properties of every widget, by uuid."""
        self._camera = {
            "position": [3.0, 3.0, 3.0],
            "look_at": [0.0, 0.0, 0.0],
            "up": [0.0, 0.0, 1.0],
        }
        self._dirty = False

    def close(self) -> None:
        """Close the tab."""
        self._socket.close()

    def send(self, **message: Any) -> None:
        """One message to the server."""
        import msgspec

        self._socket.send(msgspec.msgpack.encode(message))

    def send_pose(self, camera: Camera) -> float:
        """Say where the camera stands; returns when it was sent, s."""
        pose = camera.camtoworld
        position, ahead, up = pose[:3, 3], pose[:3, 3] + LOOK_DISTANCE * pose[:3, 2], -pose[:3, 1]
        sent = time.perf_counter()
        self.send(
            type="ViewerCameraMessage",
            wxyz=rotmat_to_quat(pose[:3, :3]).tolist(),
            position=position.tolist(),
            fov=self.lens.fov,
            near=0.01,
            far=1000.0,
            image_height=self.lens.height,
            image_width=self.lens.width,
            look_at=ahead.tolist(),
            up_direction=up.tolist(),
        )
        return sent

    def receive(self, timeout: float) -> Arrival | None:
        """The next frame of the socket; None if there was none in time."""
        try:
            data = self._socket.recv(timeout=max(timeout, 0.0))
        except TimeoutError:
            return None
        return Arrival(time.perf_counter(), data if isinstance(data, bytes) else data.encode())

    def wait_until(self, reached: Callable[[], bool], what: str, seconds: float) -> None:
        """Behave like an idle page until something is so.

        Raises:
            BenchError: It did not become so in time.
        """
        end = time.perf_counter() + seconds
        while not reached():
            if time.perf_counter() > end:
                raise BenchError(f"bench: {what} did not happen within {seconds:.0f} s.")
            arrival = self.receive(0.1)
            if arrival is not None:
                self.take(arrival)
            if self._dirty:
                self._dirty = False
                self._echo()

    def idle(self, seconds: float) -> None:
        """Behave like an idle page for a while."""
        end = time.perf_counter() + seconds
        self.wait_until(lambda: time.perf_counter() >= end, "waiting", seconds + 60)

    def take(self, arrival: Arrival) -> None:
        """Follow what a frame says about widgets and the camera."""
        for message in messages(arrival.data):
            kind = message.get("type", "")
            if kind == "GuiUpdateMessage" and message["uuid"] in self.widgets:
                self.widgets[message["uuid"]].update(message["updates"])
            elif kind.startswith("Gui") and "props" in message:
                widget = {"type": kind, "value": message.get("value"), **message["props"]}
                self.widgets[message["uuid"]] = widget
            elif kind.startswith("SetCamera"):
                self._moved_by_server(kind, message)

    def _moved_by_server(self, kind: str, message: dict[str, Any]) -> None:
        if kind == "SetCameraPositionMessage":
            # The page keeps looking the same way when it is moved.
            shift = [
                a - b for a, b in zip(message["position"], self._camera["position"], strict=True)
            ]
            ahead = zip(self._camera["look_at"], shift, strict=True)
            self._camera["look_at"] = [a + b for a, b in ahead]
            self._camera["position"] = message["position"]
        elif kind == "SetCameraLookAtMessage":
            self._camera["look_at"] = message["look_at"]
        elif kind == "SetCameraUpDirectionMessage":
            self._camera["up"] = message["position"]
        elif kind == "SetCameraFovMessage":
            self.lens = Lens(self.lens.width, self.lens.height, message["fov"])
        else:
            return
        self._dirty = True

    def _echo(self) -> None:
        places = [torch.tensor(self._camera[k]).double() for k in ("position", "look_at", "up")]
        self.send_pose(page_camera(look_at(*places), self.lens))

    def widget(self, kind: str, label: str) -> str:
        """The uuid of a widget.

        Raises:
            BenchError: There is none of this kind and label.
        """
        for uuid, found in self.widgets.items():
            if found["type"] == f"Gui{kind}Message" and found.get("label") == label:
                return uuid
        raise BenchError(f"bench: the studio has no {kind.lower()} {label!r}; this bench is older.")

    def has(self, kind: str, label: str) -> bool:
        """Whether such a widget has been announced."""
        return any(
            w["type"] == f"Gui{kind}Message" and w.get("label") == label
            for w in self.widgets.values()
        )

    def set(self, kind: str, label: str, value: Any) -> None:
        """Move a slider or press a button (value True), as a person would."""
        self.send(type="GuiUpdateMessage", uuid=self.widget(kind, label), updates={"value": value})

    def property(self, kind: str, label: str, name: str) -> Any:
        """A property of a widget as last told."""
        return self.widgets[self.widget(kind, label)].get(name)


def page_camera(
    camtoworld: torch.Tensor, lens: Lens, size: tuple[int, int] | None = None
) -> Camera:
    """Our camera of a page's pose, on its canvas or on a smaller grid of the same shape."""
    width, height = size or (lens.width, lens.height)
    focal = height / 2 / torch.tan(torch.tensor(lens.fov / 2, dtype=torch.float64))
    K = torch.eye(3, dtype=torch.float64)
    K[0, 0] = K[1, 1] = focal
    K[0, 2], K[1, 2] = width / 2, height / 2
    return Camera(camtoworld.double(), K, width, height)


def messages(data: bytes) -> list[dict[str, Any]]:
    """The messages of a frame from the server."""
    import msgspec
    import zstandard

    size, packed = (int.from_bytes(data[i : i + 8], "little") for i in (0, 8))
    plain = zstandard.ZstdDecompressor().decompress(data[16 : 16 + packed], max_output_size=size)
    return msgspec.msgpack.decode(plain)["messages"]


def pictures(arrivals: list[Arrival]) -> Iterator[tuple[float, bytes]]:
    """When each background picture arrived, and its JPEG bytes."""
    for arrival in arrivals:
        for message in messages(arrival.data):
            if message.get("type") == "BackgroundImageMessage" and message.get("rgb_data"):
                yield arrival.at, message["rgb_data"]
