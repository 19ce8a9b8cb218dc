"""Run folders of Inria's 3DGS: `point_cloud/iteration_*/point_cloud.ply`, and a list of cameras.

`cameras.json` is a list of {id, img_name, width, height, position, rotation (camera -> world, OpenCV
axes), fx, fy}; the principal point is the middle. The images are elsewhere, so the cameras become a
path, not a recording.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from faithfusion_studio.cameras import Trajectory, TrajectoryError, trajectory_from_cameras
from faithfusion_studio.io.capture_files import (
    DEFAULT_FPS,
    MAX_JSON_BYTES,
    CaptureError,
    image_side,
    make_camera,
    matrix4,
    positive_number,
)
from faithfusion_studio.io.inria_ply import read_ply
from faithfusion_studio.io.splat_files import splat_scene
from faithfusion_studio.scene import Scene

TRAINING_PATH = "training cameras"
"""Name of the path the cameras of a run become."""
_ITERATION = re.compile(r"iteration_(\d{1,12})")


def inria_point_cloud(folder: Path) -> Path | None:
    """The splats of the last iteration of a run folder; None where it is none."""
    place = folder / "point_cloud"
    if not place.is_dir():
        return None
    found = [
        (int(m[1]), p / "point_cloud.ply")
        for p in place.iterdir()
        if (m := _ITERATION.fullmatch(p.name)) and (p / "point_cloud.ply").is_file()
    ]
    return max(found)[1] if found else None


def read_inria_run(folder: Path) -> Scene:
    """The splats of the last iteration, with the training cameras as a saved path.

    Raises:
        SplatFileError: The splats are damaged.
        CaptureError: The cameras are.
    """
    file = inria_point_cloud(folder)
    assert file is not None
    notes = [f"Opened {file.relative_to(folder)}."]
    cameras = folder / "cameras.json"
    path = _training_path(cameras) if cameras.is_file() else None
    if path is None:
        notes.append("The run has no cameras.json, so there is no path to render.")
    scene = splat_scene(*read_ply(file), folder, notes)
    return Scene(
        scene.background,
        metadata=scene.metadata,
        paths={} if path is None else {TRAINING_PATH: path},
    )


def _training_path(path: Path) -> Trajectory | None:
    try:
        data = path.read_bytes()
        entries = json.loads(data) if len(data) <= MAX_JSON_BYTES else None
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, RecursionError) as error:
        raise CaptureError(f"{path}: not valid JSON; write the file again.") from error
    if not isinstance(entries, list):
        raise CaptureError(f"{path}: holds no list; expected the cameras of an Inria run.")
    cameras = [
        _camera(entry, index, f"{path}: camera {index}") for index, entry in enumerate(entries)
    ]
    try:
        return trajectory_from_cameras(cameras) if cameras else None
    except TrajectoryError as error:
        raise CaptureError(f"{path}: {error}") from error


def _camera(entry: Any, index: int, what: str):
    if not isinstance(entry, dict):
        raise CaptureError(f"{what} is a {type(entry).__name__}; expected an object.")
    size = (
        image_side(entry.get("width"), f"{what}: width"),
        image_side(entry.get("height"), f"{what}: height"),
    )
    rotation, position = entry.get("rotation"), entry.get("position")
    if not isinstance(rotation, list) or not isinstance(position, list) or len(position) != 3:
        raise CaptureError(f"{what} has no rotation and position; expected 3x3 and 3 numbers.")
    rows = [
        [*row, value] if isinstance(row, list) else row
        for row, value in zip(rotation, position, strict=False)
    ]
    pose = matrix4(rows, f"{what}: rotation and position")
    fx = positive_number(entry.get("fx"), f"{what}: fx")
    fy = positive_number(entry.get("fy", fx), f"{what}: fy")
    # Rounding leaves the rotations of these files slightly off.
    u, _, vt = np.linalg.svd(pose[:3, :3])
    pose[:3, :3] = u @ vt
    lens = (fx, fy, size[0] / 2, size[1] / 2)
    return make_camera(pose, lens, size, time=index / DEFAULT_FPS, name="")
