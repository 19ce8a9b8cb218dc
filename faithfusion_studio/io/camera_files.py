"""Camera files: our `cameras.json`, and nerfview's path JSON.

`cameras.json`: `cameras.{name}` = PINHOLE width height fx fy cx cy; `frames[]` = file, camera,
`world_from_camera` (4x4 camera-to-world, OpenCV axes, m), optional `time` (s) and
`world_from_ego`; `fps`. nerfview's path: `camera_path[]` = camera_to_world (flat 4x4, OpenGL
axes), fov (vertical, degrees), aspect; `keyframes[]` likewise under the key `matrix`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faithfusion_studio.cameras import Camera, Trajectory, trajectory_from_cameras
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.capture_files import (
    DEFAULT_FPS,
    CaptureError,
    Shot,
    finite_number,
    image_side,
    index_times,
    make_camera,
    matrix4,
    positive_number,
    read_json,
    text,
)

OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def is_cameras_json(content: dict[str, Any]) -> bool:
    """Whether a JSON object has the layout of our cameras.json."""
    return isinstance(content.get("cameras"), dict) and isinstance(content.get("frames"), list)


def is_path_json(content: dict[str, Any]) -> bool:
    """Whether a JSON object has the layout of a nerfview path."""
    return isinstance(content.get("camera_path"), list) or isinstance(
        content.get("keyframes"), list
    )


def shots_of_cameras_json(content: dict[str, Any], path: Path) -> list[Shot]:
    """The frames of our cameras.json, in file order.

    Args:
        content: The parsed file.
        path: Where it came from, for errors.

    Raises:
        CaptureError: A missing key, a value of the wrong kind, or a pose that is not rigid.
    """
    if not is_cameras_json(content):
        raise CaptureError(
            f"{path}: has the keys {', '.join(sorted(content)[:8]) or '(none)'}; expected cameras "
            "and frames."
        )
    lenses = {
        name: _lens(value, f"{path}: camera {name!r}") for name, value in content["cameras"].items()
    }
    fps = positive_number(content.get("fps", DEFAULT_FPS), f"{path}: fps")
    frames = content["frames"]
    names = [_camera_name(frame, lenses, f"{path}: frame {i}") for i, frame in enumerate(frames)]
    shots = []
    for i, (frame, name, index_time) in enumerate(
        zip(frames, names, index_times(names, fps), strict=True)
    ):
        what = f"{path}: frame {i}"
        size, intrinsics = lenses[name]
        time = finite_number(frame.get("time", index_time), f"{what}: time")
        pose = matrix4(frame.get("world_from_camera"), f"{what}: world_from_camera")
        ego = frame.get("world_from_ego")
        mask = frame.get("dynamic_mask")
        shots.append(
            Shot(
                file=text(frame.get("file", ""), f"{what}: file"),
                camera=make_camera(pose, intrinsics, size, time=time, name=name),
                ego_to_world=None
                if ego is None
                else torch.from_numpy(matrix4(ego, f"{what}: world_from_ego")),
                dynamic_mask=None if mask is None else text(mask, f"{what}: dynamic_mask"),
            )
        )
    return shots


def _camera_name(frame: Any, lenses: dict[str, Any], what: str) -> str:
    if not isinstance(frame, dict):
        raise CaptureError(f"{what} is a {type(frame).__name__}; expected an object.")
    if "camera" not in frame and len(lenses) == 1:
        return next(iter(lenses))
    name = frame.get("camera")
    if not isinstance(name, str) or name not in lenses:
        raise CaptureError(
            f"{what} uses the camera {str(name)[:40]!r}; expected one of "
            f"{', '.join(list(lenses)[:8]) or '(no camera is defined)'}."
        )
    return name


def _lens(value: Any, what: str) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    if not isinstance(value, dict):
        raise CaptureError(f"{what} is a {type(value).__name__}; expected an object.")
    model = value.get("model", "PINHOLE")
    bent = [k for k in ("k1", "k2", "k3", "k4", "p1", "p2") if value.get(k)]
    if model != "PINHOLE" or bent:
        raise CaptureError(
            f"{what} has the lens model {str(model)[:40]} {' '.join(bent)}; expected PINHOLE "
            "without distortion, so undistort the images first."
        )
    size = (
        image_side(value.get("width"), f"{what}: width"),
        image_side(value.get("height"), f"{what}: height"),
    )
    fx = positive_number(value.get("fx"), f"{what}: fx")
    fy = positive_number(value.get("fy", fx), f"{what}: fy")
    cx = finite_number(value.get("cx", size[0] / 2), f"{what}: cx")
    cy = finite_number(value.get("cy", size[1] / 2), f"{what}: cy")
    return size, (fx, fy, cx, cy)


# ------------------------------------------------------------------------------------------ paths


def read_camera_path(path: Path | str, *, size: tuple[int, int] = (960, 540)) -> Trajectory:
    """A path of cameras from our cameras.json (images not needed) or nerfview's path JSON.

    Args:
        path: The file.
        size: Width and height for nerfview paths that state no render size.

    Raises:
        CaptureError: The file is missing, of another kind, empty, or has a broken pose.
    """
    path = Path(path)
    content = read_json(path)
    if is_cameras_json(content):
        shots = shots_of_cameras_json(content, path)
        if not shots:
            raise CaptureError(f"{path}: has 0 frames; at least one camera is needed.")
        egos = [shot.ego_to_world for shot in shots if shot.ego_to_world is not None]
        return trajectory_from_cameras(
            [shot.camera for shot in shots],
            torch.stack(egos) if len(egos) == len(shots) else None,
        )
    if is_path_json(content):
        return trajectory_from_cameras(_nerfview_cameras(content, path, size))
    raise CaptureError(
        f"{path}: has the keys {', '.join(sorted(content)[:8]) or '(none)'}; expected cameras and "
        "frames (our cameras.json) or camera_path (nerfview)."
    )


def camera_path_stems(path: Path | str) -> list[str]:
    """One unique output name per camera of a path: the stem of its `file`, else its index.

    Raises:
        CaptureError: As `read_camera_path`.
    """
    path = Path(path)
    content = read_json(path)
    if not is_cameras_json(content):
        return [f"{i:06d}" for i in range(len(read_camera_path(path)))]
    files = [shot.file for shot in shots_of_cameras_json(content, path)]
    stems = [Path(name.replace("\\", "/")).stem for name in files]
    if all(stems) and len(set(stems)) == len(stems) and not any("\0" in s for s in stems):
        return stems
    return [f"{i:06d}" for i in range(len(stems))]


def _nerfview_cameras(
    content: dict[str, Any], path: Path, default: tuple[int, int]
) -> list[Camera]:
    entries = content.get("camera_path") or content.get("keyframes")
    if not isinstance(entries, list) or not entries:
        raise CaptureError(f"{path}: the path has 0 cameras; add key frames and save it again.")
    key = "camera_to_world" if content.get("camera_path") else "matrix"
    fps = positive_number(content.get("fps", DEFAULT_FPS), f"{path}: fps")
    width, height = default
    if "render_width" in content and "render_height" in content:
        width = image_side(content["render_width"], f"{path}: render_width")
        height = image_side(content["render_height"], f"{path}: render_height")
    cameras = []
    for i, entry in enumerate(entries):
        what = f"{path}: camera {i}"
        if not isinstance(entry, dict):
            raise CaptureError(f"{what} is a {type(entry).__name__}; expected an object.")
        pose = matrix4(entry.get(key), f"{what}: {key}") @ OPENGL_TO_OPENCV
        fov = positive_number(entry.get("fov", content.get("default_fov", 50.0)), f"{what}: fov")
        if fov >= 179:
            raise CaptureError(f"{what}: fov is {fov:g} degrees; expected less than 179.")
        focal = 0.5 * height / math.tan(math.radians(fov) / 2)
        time = i / fps
        if entry.get("render_time") is not None:
            time = finite_number(entry["render_time"], f"{what}: render_time")
        intrinsics = (focal, focal, width / 2, height / 2)
        cameras.append(make_camera(pose, intrinsics, (width, height), time=time, name=""))
    return cameras


def write_camera_path(
    trajectory: Trajectory, path: Path | str, *, files: Sequence[str] | None = None
) -> None:
    """Write a path of cameras as our cameras.json.

    Args:
        trajectory: What to write; times and, where recorded, ego poses are kept.
        path: The file to write, atomically.
        files: One image name per camera; default is a running number.

    Raises:
        CaptureError: The file cannot be written; nothing is left behind.
    """
    if files is None:
        files = [f"{i:06d}.jpg" for i in range(len(trajectory))]
    content = cameras_json(trajectory, files)
    with write_atomically(Path(path), CaptureError) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def cameras_json(
    trajectory: Trajectory,
    files: Sequence[str],
    masks: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """The content of our cameras.json for a path and its image names."""
    lenses: dict[str, dict[str, Any]] = {}
    frames = []
    for i, camera in enumerate(trajectory.cameras):
        name = _lens_name(lenses, camera)
        frame: dict[str, Any] = {
            "file": files[i],
            "camera": name,
            "time": camera.time,
            "world_from_camera": camera.camtoworld.tolist(),
        }
        if not trajectory.ego_is_camera:
            frame["world_from_ego"] = trajectory.ego_to_worlds[i].tolist()
        if masks is not None and masks[i] is not None:
            frame["dynamic_mask"] = masks[i]
        frames.append(frame)
    return {
        "world": "metres; x forward, y left, z up; world_from_camera is camera-to-world, OpenCV axes",
        "fps": _fps(trajectory),
        "cameras": lenses,
        "frames": frames,
    }


def _lens_name(lenses: dict[str, dict[str, Any]], camera: Camera) -> str:
    """The name under which a camera's lens is listed; lenses that differ get numbered names."""
    K = camera.K
    lens = {
        "model": "PINHOLE",
        "width": camera.width,
        "height": camera.height,
        "fx": float(K[0, 0]),
        "fy": float(K[1, 1]),
        "cx": float(K[0, 2]),
        "cy": float(K[1, 2]),
    }
    name = camera.name
    number = 1
    while name in lenses and lenses[name] != lens:
        number += 1
        name = f"{camera.name}#{number}"
    lenses.setdefault(name, lens)
    return name


def _fps(trajectory: Trajectory) -> float:
    times = sorted(set(trajectory.timestamps))
    steps = [b - a for a, b in zip(times, times[1:], strict=False) if b > a]
    return round(1 / float(np.median(steps)), 6) if steps else DEFAULT_FPS
