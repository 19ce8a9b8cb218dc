"""nerfstudio and instant-ngp `transforms.json`: OpenGL poses, intrinsics shared or per frame.

Source: nerfstudio data conventions. Poses are camera-to-world with OpenGL axes (y up, z back);
points of `ply_file_path` are in the same world. The world is kept as the file has it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from faithfusion_studio.io.camera_files import OPENGL_TO_OPENCV
from faithfusion_studio.io.capture_files import (
    DEFAULT_FPS,
    CaptureError,
    Shot,
    build_capture,
    finite_number,
    image_side,
    image_size,
    index_times,
    inside,
    make_camera,
    matrix4,
    natural_key,
    positive_number,
    read_json,
    text,
)
from faithfusion_studio.io.point_files import read_points
from faithfusion_studio.lens import Lens, lens_of
from faithfusion_studio.scene import Capture

_OPENCV = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
"""Coefficients in the order of COLMAP's FULL_OPENCV."""
_FISHEYE = ("k1", "k2", "k3", "k4")
_PINHOLE_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")


def read_transforms_json(path: Path) -> Capture:
    """A recording from a `transforms.json`; frames are ordered by name, `fps` apart (10 if unsaid).

    Raises:
        CaptureError: A missing key, a panorama, a broken pose, or missing images.
    """
    content = read_json(path)
    root = path.parent
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise CaptureError(f"{path}: has 0 frames; at least 2 are needed.")
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise CaptureError(
                f"{path}: frame {i} is a {type(frame).__name__}; expected an object."
            )
        text(frame.get("file_path"), f"{path}: frame {i}: file_path")
    fps = positive_number(content.get("fps", DEFAULT_FPS), f"{path}: fps")
    frames = sorted(frames, key=lambda frame: natural_key(frame["file_path"]))
    folders = [Path(frame["file_path"]).parent.name for frame in frames]
    names = folders if len(set(folders)) > 1 else [""] * len(folders)
    shots = []
    for frame, name, time in zip(frames, names, index_times(names, fps), strict=True):
        what = f"{path}: {frame['file_path'][:80]}"
        file = _with_suffix(root, frame["file_path"])
        values = {**content, **frame}
        size = _size(values, inside(root, file), what)
        pose = matrix4(frame.get("transform_matrix"), f"{what}: transform_matrix")
        camera = make_camera(
            pose @ OPENGL_TO_OPENCV, _intrinsics(values, size, what), size, time=time, name=name
        )
        shots.append(
            Shot(file, camera, None, _mask(root, frame), mask_keeps=True, lens=_lens(values, what))
        )
    shots.sort(key=lambda shot: shot.camera.time)
    points = None
    if isinstance(content.get("ply_file_path"), str):
        cloud = inside(root, content["ply_file_path"])
        points = read_points(cloud) if cloud.is_file() else None
    return build_capture(
        root, root, shots, points=points, source=f"transforms.json of {root.resolve().name}"
    )


def _with_suffix(root: Path, name: str) -> str:
    """The file name, with the suffix that Blender-style files leave out."""
    if inside(root, name).is_file():
        return name
    for suffix in (".png", ".jpg", ".jpeg"):
        if inside(root, name + suffix).is_file():
            return name + suffix
    return name


def _size(values: dict[str, Any], path: Path, what: str) -> tuple[int, int]:
    if "w" in values and "h" in values:
        return image_side(values["w"], f"{what}: w"), image_side(values["h"], f"{what}: h")
    # A frame without a readable image is left out later; any size will do for it.
    return image_size(path) or (1, 1)


def _intrinsics(
    values: dict[str, Any], size: tuple[int, int], what: str
) -> tuple[float, float, float, float]:
    width, height = size
    if "fl_x" in values:
        fx = positive_number(values["fl_x"], f"{what}: fl_x")
    elif "camera_angle_x" in values:
        angle = positive_number(values["camera_angle_x"], f"{what}: camera_angle_x")
        fx = 0.5 * width / float(np.tan(min(angle, math.pi - 1e-3) / 2))
    else:
        raise CaptureError(f"{what} has neither fl_x nor camera_angle_x; add the focal length.")
    fy = positive_number(values.get("fl_y", fx), f"{what}: fl_y")
    cx = finite_number(values.get("cx", width / 2), f"{what}: cx")
    cy = finite_number(values.get("cy", height / 2), f"{what}: cy")
    return fx, fy, cx, cy


def _lens(values: dict[str, Any], what: str) -> Lens | None:
    """The distortion of a frame; k4 is the fourth term of a fisheye lens, of other lenses a divisor."""
    model = values.get("camera_model", "OPENCV")
    fisheye = model == "OPENCV_FISHEYE" or values.get("is_fisheye") is True
    if not fisheye and model not in _PINHOLE_MODELS:
        raise CaptureError(
            f"{what} has the camera model {str(model)[:40]}; expected a perspective or fisheye lens "
            f"({', '.join(_PINHOLE_MODELS)}, OPENCV_FISHEYE)."
        )
    names = _FISHEYE if fisheye else _OPENCV
    numbers = tuple(finite_number(values.get(k, 0.0), f"{what}: {k}") for k in names)
    return lens_of("OPENCV_FISHEYE" if fisheye else "FULL_OPENCV", numbers)


def _mask(root: Path, frame: dict[str, Any]) -> str | None:
    """The file of a frame's mask, black where to ignore; None where there is none."""
    name = frame.get("mask_path")
    return name if isinstance(name, str) and inside(root, name).is_file() else None
