"""Recordings on disk: which layout a folder has, and our own `cameras.json` folders both ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from faithfusion_studio.cameras import Trajectory
from faithfusion_studio.io.annotations import annotations_json, boxes_of, lanes_of
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.camera_files import (
    cameras_json,
    is_cameras_json,
    shots_of_cameras_json,
)
from faithfusion_studio.io.capture_files import (
    CaptureError,
    build_capture,
    finite_number,
    inside,
    matrix4,
    read_json,
)
from faithfusion_studio.io.colmap import find_model, read_colmap, read_colmap_points
from faithfusion_studio.io.drivestudio_capture import (
    is_drivestudio_folder,
    read_drivestudio_capture,
)
from faithfusion_studio.io.point_files import read_points, read_sweep, write_points
from faithfusion_studio.io.transforms_json import read_transforms_json
from faithfusion_studio.scene import Capture, PointCloud

CaptureLayout = Literal["cameras.json", "transforms.json", "drivestudio", "colmap"]


def capture_layout(folder: Path) -> CaptureLayout | None:
    """Which recording a folder holds, by its content; None where it holds none."""
    path = folder / "cameras.json"
    if path.is_file() and is_cameras_json(_object(path)):
        return "cameras.json"
    if (folder / "transforms.json").is_file():
        return "transforms.json"
    if is_drivestudio_folder(folder):
        return "drivestudio"
    return "colmap" if find_model(folder) is not None else None


def _object(path: Path) -> dict[str, Any]:
    """A JSON object, empty for the list that Inria run folders keep under the same name."""
    try:
        return read_json(path)
    except CaptureError:
        if path.read_bytes()[:64].lstrip().startswith(b"["):
            return {}
        raise


def capture_root(folder: Path) -> Path | None:
    """The folder itself or its `recorded/`, whichever holds a recording; None where neither does."""
    for candidate in (folder, folder / "recorded"):
        if candidate.is_dir() and capture_layout(candidate) is not None:
            return candidate
    return None


def read_capture(path: Path) -> Capture:
    """A recording from a folder, or from the camera file inside one.

    Args:
        path: A folder with `cameras.json`, `transforms.json`, a COLMAP model or DriveStudio's layout, or
            such a file.

    Raises:
        CaptureError: There is no recording, or it cannot be used.
    """
    if path.is_file():
        if path.name == "transforms.json" or not is_cameras_json(read_json(path)):
            return read_transforms_json(path)
        return read_cameras_json(path)
    root = capture_root(path)
    if root is None:
        found = sorted(p.name for p in path.iterdir())[:6] if path.is_dir() else []
        raise CaptureError(
            f"{path}: no recording here (found {', '.join(found) or 'nothing'}); expected "
            "cameras.json, transforms.json, images/ with a COLMAP model in sparse/0, or a folder "
            "processed by DriveStudio (images/, intrinsics/, ego_pose/)."
        )
    layout = capture_layout(root)
    if layout == "cameras.json":
        return read_cameras_json(root / "cameras.json")
    if layout == "transforms.json":
        return read_transforms_json(root / "transforms.json")
    return read_drivestudio_capture(root) if layout == "drivestudio" else read_colmap(root)


def read_cameras_json(path: Path) -> Capture:
    """A recording from our cameras.json; points come from points3d.ply, else from sparse/0.

    Raises:
        CaptureError: A missing key, a broken pose, zero frames, or missing images.
    """
    content = read_json(path)
    root = path.parent
    shots = shots_of_cameras_json(content, path)
    capture = build_capture(
        root,
        root,
        shots,
        points=_points(root),
        source=str(content.get("source", content.get("pose_source", "")))[:1000]
        or f"cameras.json of {root.resolve().name}",
        licence=str(content.get("licence", ""))[:1000],
    )
    return replace(
        capture,
        lidar=_sweeps(root, content, path),
        boxes=boxes_of(content, path),
        lanes=lanes_of(content, path),
    )


def _points(root: Path) -> PointCloud | None:
    if (root / "points3d.ply").is_file():
        return read_points(root / "points3d.ply")
    model = find_model(root)
    return None if model is None else read_colmap_points(model)


def _sweeps(root: Path, content: dict[str, Any], path: Path) -> tuple[torch.Tensor, ...]:
    """LiDAR sweeps of the frames that name one, in the world; missing files are passed over."""
    unit = finite_number(content.get("lidar_unit_m", 0.004), f"{path}: lidar_unit_m")
    sweeps = []
    for i, frame in enumerate(content["frames"]):
        name = frame.get("lidar")
        if not isinstance(name, str) or "world_from_lidar" not in frame:
            continue
        pose = matrix4(frame["world_from_lidar"], f"{path}: frame {i}: world_from_lidar")
        file = inside(root, name)
        if file.is_file():
            sweeps.append(read_sweep(file, pose, unit))
    return tuple(sweeps)


def write_cameras_json(recording: Capture | Trajectory, folder: Path | str) -> None:
    """Write a recording as a folder: images/, cameras.json, points3d.ply; a bare path without images.

    Args:
        recording: Images are written as they were recorded, byte for byte.
        folder: Made if need be; cameras.json is written last, so that it never names missing files.

    Raises:
        CaptureError: The folder cannot be written, or an image cannot be read.
    """
    folder = Path(folder)
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaptureError(
            f"{folder}: cannot be made ({error.strerror}); choose another folder."
        ) from error
    if isinstance(recording, Trajectory):
        content = cameras_json(recording, [f"images/{i:06d}.jpg" for i in range(len(recording))])
    else:
        content = _write_images(recording, folder)
        if recording.points is not None:
            write_points(recording.points, folder / "points3d.ply")
    with write_atomically(folder / "cameras.json", CaptureError) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _write_images(capture: Capture, folder: Path) -> dict[str, Any]:
    files: list[str] = []
    masks: list[str | None] = []
    for i, frame in enumerate(capture.frames):
        data = frame.encoded()
        suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg"
        # Names may hold folders of a rig ("front/000012"); a file name must not.
        stem = "".join(c if c.isalnum() or c in "-_.+" else "_" for c in frame.name).lstrip(".")
        name = f"images/{stem or f'{i:06d}'}{suffix}"
        if name in files:
            name = f"images/{i:06d}_{stem}{suffix}"
        files.append(name)
        with write_atomically(folder / name, CaptureError) as temporary:
            temporary.write_bytes(data)
        masks.append(None)
        if frame.dynamic_mask is not None:
            masks[-1] = f"masks/{Path(name).stem}.png"
            (folder / "masks").mkdir(exist_ok=True)
            with write_atomically(
                folder / f"masks/{Path(name).stem}.png", CaptureError
            ) as temporary:
                temporary.write_bytes(frame.dynamic_mask)
    content = cameras_json(capture.trajectory, files, masks)
    about = {"source": capture.source, "licence": capture.licence}
    return {**about, **content, **annotations_json(capture)}
