"""A recording as a COLMAP folder, binary, which is what other trainers read.

Layout: https://colmap.github.io/format.html; read back by `io.read_capture`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from faithfusion_studio.bench.report import BenchError
from faithfusion_studio.scene import Capture
from faithfusion_studio.transforms import rotmat_to_quat

PINHOLE = 1
"""COLMAP's number of the model fx, fy, cx, cy."""


def write_colmap(capture: Capture, frames: Sequence[int], folder: Path) -> None:
    """Write some frames of a recording, and all its points.

    Args:
        capture: With points.
        frames: Which frames.
        folder: Gets images/ and sparse/0/; must not hold them yet.

    Raises:
        BenchError: The recording has no points.
    """
    if capture.points is None:
        raise BenchError("bench: this recording has no 3D points, which the peer starts from.")
    model, images = folder / "sparse" / "0", folder / "images"
    model.mkdir(parents=True)
    images.mkdir()
    cameras, registered = bytearray(), bytearray()
    for number, index in enumerate(frames, start=1):
        frame = capture.frames[index]
        camera, K = frame.camera, frame.camera.K
        lens = (float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))
        cameras += struct.pack("<IiQQ4d", number, PINHOLE, camera.width, camera.height, *lens)
        data = frame.encoded()
        name = f"{index:06d}{'.png' if data[:4] == bytes([137, 80, 78, 71]) else '.jpg'}"
        (images / name).write_bytes(data)
        view = camera.viewmat.double()
        pose = (*rotmat_to_quat(view[:3, :3]).tolist(), *view[:3, 3].tolist())
        registered += struct.pack("<I7dI", number, *pose, number)
        registered += name.encode() + b"\0" + struct.pack("<Q", 0)
    count = struct.pack("<Q", len(frames))
    (model / "cameras.bin").write_bytes(count + cameras)
    (model / "images.bin").write_bytes(count + registered)
    xyz, rgb = capture.points.xyz.tolist(), capture.points.rgb.tolist()
    points = struct.pack("<Q", len(xyz)) + b"".join(
        struct.pack("<Q3d3BdQ", number, *place, *color, 0.0, 0)
        for number, (place, color) in enumerate(zip(xyz, rgb, strict=True), start=1)
    )
    (model / "points3D.bin").write_bytes(points)
