"""A recording as a folder that other tools read: COLMAP's binary model, or nerfstudio's transforms.json.

Images are written as they were recorded, byte for byte; bent ones straightened, so that every camera
is a pinhole. COLMAP is also told of a rig whose cameras are fixed to each other. Ego poses, LiDAR and
annotations have no place in either; our own cameras.json keeps them. Layouts: https://colmap.github.io/format.html and nerfstudio's data conventions.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from faithfusion_studio.cameras import Camera, Trajectory
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.camera_files import OPENGL_TO_OPENCV
from faithfusion_studio.io.capture_files import CaptureError
from faithfusion_studio.io.colmap_rigs import frames_bytes, rigs_bytes
from faithfusion_studio.io.point_files import write_points
from faithfusion_studio.rig import mounts, rig_of
from faithfusion_studio.scene import Capture
from faithfusion_studio.transforms import rotmat_to_quat

PINHOLE = 1
"""COLMAP's number of the model fx, fy, cx, cy."""


def write_colmap(capture: Capture, folder: Path | str) -> None:
    """Write `images/` and a binary model in `sparse/0/`, points included.

    Raises:
        CaptureError: The folder cannot be written, or an image cannot be read.
    """
    folder = Path(folder)
    names = _images(capture, folder)
    model = _folder(folder / "sparse" / "0")
    rig, cameras = mounts(capture.trajectory), {}
    numbers, registered = [], bytearray()
    for image, (frame, name) in enumerate(zip(capture.frames, names, strict=True), start=1):
        # On a rig every camera is a sensor of its own, also where lenses are alike.
        key = (frame.camera.name if rig is not None else "", _pinhole(frame.camera))
        number = cameras.setdefault(key, len(cameras) + 1)
        view = frame.camera.viewmat.double()
        pose = (*rotmat_to_quat(view[:3, :3]).tolist(), *view[:3, 3].tolist())
        registered += struct.pack("<I7dI", image, *pose, number)
        registered += name.removeprefix("images/").encode() + b"\0" + struct.pack("<Q", 0)
        numbers.append(number)
    lenses = b"".join(
        struct.pack("<IiQQ4d", number, PINHOLE, *pinhole[4:], *pinhole[:4])
        for (_, pinhole), number in cameras.items()
    )
    _write(model / "cameras.bin", struct.pack("<Q", len(cameras)) + lenses)
    _write(model / "images.bin", struct.pack("<Q", len(names)) + bytes(registered))
    _write(model / "points3D.bin", _points(capture))
    if rig is not None and len(cameras) == len(capture.camera_names):
        _write_rig(capture.trajectory, *rig, numbers, model)
    else:  # those of an earlier model would contradict the images
        for name in ("rigs.bin", "frames.bin"):
            (model / name).unlink(missing_ok=True)


def _write_rig(
    trajectory: Trajectory, reference: int, seats: Tensor, numbers: list[int], model: Path
) -> None:
    """`rigs.bin` and `frames.bin`; `numbers` is the COLMAP camera of each frame."""
    rig = rig_of(trajectory)
    ids = [numbers[rig.track(camera)[0]] for camera in range(len(rig.names))]
    seen = {number: seat.numpy() for number, seat in zip(ids, seats, strict=True)}
    frames = []
    for row in rig.table:
        lead = row[reference]
        assert lead is not None  # the reference is in every moment
        taken = [(ids[c], frame + 1) for c, frame in enumerate(row) if frame is not None]
        frames.append((trajectory.cameras[lead].camtoworld.numpy(), taken))
    _write(model / "rigs.bin", rigs_bytes(ids[reference], seen))
    _write(model / "frames.bin", frames_bytes(frames))


def _points(capture: Capture) -> bytes:
    if capture.points is None:
        return struct.pack("<Q", 0)
    layout = np.dtype(
        [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")]
    )
    rows = np.zeros(len(capture.points.xyz), layout)
    rows["id"] = np.arange(1, len(rows) + 1)
    rows["xyz"], rows["rgb"] = capture.points.xyz.numpy(), capture.points.rgb.numpy()
    return struct.pack("<Q", len(rows)) + rows.tobytes()


def write_transforms_json(capture: Capture, folder: Path | str) -> None:
    """Write `images/`, `transforms.json` with OpenGL poses, and `points3d.ply`.

    Raises:
        CaptureError: The folder cannot be written, or an image cannot be read.
    """
    folder = Path(folder)
    frames = []
    for frame, name in zip(capture.frames, _images(capture, folder), strict=True):
        fx, fy, cx, cy, width, height = _pinhole(frame.camera)
        pose = frame.camera.camtoworld.numpy() @ OPENGL_TO_OPENCV
        shape = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": width, "h": height}
        frames.append({"file_path": name, **shape, "transform_matrix": pose.tolist()})
    content: dict[str, Any] = {"camera_model": "PINHOLE", "frames": frames}
    if capture.points is not None:
        content["ply_file_path"] = "points3d.ply"
        write_points(capture.points, folder / "points3d.ply")
    _write(folder / "transforms.json", json.dumps(content, indent=1).encode())


def _pinhole(camera: Camera) -> tuple[float, float, float, float, int, int]:
    K = camera.K
    fx, fy, cx, cy = (float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return fx, fy, cx, cy, camera.width, camera.height


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaptureError(
            f"{path}: cannot be made ({error.strerror}); choose another folder."
        ) from error
    return path


def _write(path: Path, data: bytes) -> None:
    with write_atomically(path, CaptureError) as temporary:
        temporary.write_bytes(data)


def _images(capture: Capture, folder: Path) -> list[str]:
    """Writes every image; names keep the order of time and, in a rig, a folder per camera."""
    _folder(folder / "images")
    several, names = len(capture.camera_names) > 1, []
    rig = rig_of(capture.trajectory)
    for i, frame in enumerate(capture.frames):
        data = frame.encoded()
        suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg"
        stem = f"{rig.moment_of(i) if several else i:06d}"
        inner = "".join(c if c.isalnum() or c in "-_" else "_" for c in frame.camera.name)
        name = f"images/{inner or 'camera'}/{stem}" if several else f"images/{stem}"
        _folder((folder / name).parent)
        _write(folder / f"{name}{suffix}", data)
        names.append(f"{name}{suffix}")
    return names
