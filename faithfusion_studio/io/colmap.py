"""COLMAP models, binary and text: cameras, images in order of time, and points.

Layout: https://colmap.github.io/format.html. Poses are stored world -> camera, quaternions wxyz,
pixel centres at +0.5. Ids are neither contiguous nor in order of time, so frames are ordered by
name. Rig and frame files of COLMAP 3.12 and later are not needed: every image has its own pose.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.io.capture_files import (
    DEFAULT_FPS,
    MAX_IMAGE_SIDE,
    CaptureError,
    Shot,
    build_capture,
    make_camera,
    natural_key,
    point_cloud,
    require_rigid,
)
from faithfusion_studio.lens import DISTORTIONS, Lens, lens_of
from faithfusion_studio.scene import Capture, PointCloud
from faithfusion_studio.transforms import invert_rigid, quat_to_rotmat

# Name, number of parameters, number of leading focal lengths; the rest after cx, cy is distortion.
MODELS: tuple[tuple[str, int, int], ...] = (
    ("SIMPLE_PINHOLE", 3, 1),
    ("PINHOLE", 4, 2),
    ("SIMPLE_RADIAL", 4, 1),
    ("RADIAL", 5, 1),
    ("OPENCV", 8, 2),
    ("OPENCV_FISHEYE", 8, 2),
    ("FULL_OPENCV", 12, 2),
    ("FOV", 5, 2),
    ("SIMPLE_RADIAL_FISHEYE", 4, 1),
    ("RADIAL_FISHEYE", 5, 1),
    ("THIN_PRISM_FISHEYE", 12, 2),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16, 2),
    ("SIMPLE_DIVISION", 4, 1),
    ("DIVISION", 5, 2),
    ("SIMPLE_FISHEYE", 3, 1),
    ("FISHEYE", 4, 2),
    ("EUCM", 6, 2),
    ("EQUIRECTANGULAR", 2, 0),
)
_SIDE = re.compile(r"(?P<index>\d+)[_-](?P<side>[A-Za-z][A-Za-z0-9]*)")
MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", ".")


@dataclass(frozen=True)
class ColmapCamera:
    """Intrinsics of one COLMAP camera."""

    width: int
    height: int
    intrinsics: tuple[float, float, float, float]
    """fx, fy, cx, cy in pixels."""
    lens: Lens | None = None
    """Its distortion; None for a pinhole."""


@dataclass(frozen=True, eq=False)
class ColmapImage:
    """One registered image."""

    image_id: int
    camera_id: int
    name: str
    camtoworld: np.ndarray
    """[4, 4] float64, OpenCV axes."""


def find_model(folder: Path) -> Path | None:
    """The folder of a COLMAP model inside a capture folder; None where there is none."""
    for name in MODEL_FOLDERS:
        candidate = folder / name
        for suffix in (".bin", ".txt"):
            if (candidate / f"cameras{suffix}").is_file() and (
                candidate / f"images{suffix}"
            ).is_file():
                return candidate
    return None


def read_colmap(folder: Path) -> Capture:
    """A recording from a COLMAP folder: `images/` and a model in `sparse/0`.

    Args:
        folder: The capture's root; frames are ordered by name, 0.1 s apart.

    Raises:
        CaptureError: No model, a damaged file, a panorama, or missing images.
    """
    model = find_model(folder)
    if model is None:
        raise CaptureError(
            f"{folder}: holds no COLMAP model; expected sparse/0/cameras.bin and images.bin, or "
            "the same as .txt."
        )
    cameras = read_colmap_cameras(model)
    images = sorted(read_colmap_images(model), key=lambda image: natural_key(image.name))
    names, indices = _sides([image.name for image in images])
    shots = []
    for image, name, index in zip(images, names, indices, strict=True):
        if image.camera_id not in cameras:
            raise CaptureError(
                f"{model}: the image {image.name} uses camera {image.camera_id}, which the model "
                "lacks; export the model again."
            )
        lens = cameras[image.camera_id]
        camera = make_camera(
            image.camtoworld,
            lens.intrinsics,
            (lens.width, lens.height),
            time=index / DEFAULT_FPS,
            name=name,
        )
        shots.append(Shot(image.name, camera, lens=lens.lens))
    shots.sort(key=lambda shot: shot.camera.time)
    pictures = folder / "images"
    return build_capture(
        folder,
        pictures if pictures.is_dir() else folder,
        shots,
        points=read_colmap_points(model),
        source=f"COLMAP model {folder.name}",
    )


def _sides(names: list[str]) -> tuple[list[str], list[int]]:
    """Camera name and index in time of each image, from folders or endings like 000012_left."""
    folders = [Path(n.replace("\\", "/")).parent.as_posix() for n in names]
    if len(set(folders)) > 1:
        groups = folders
    else:
        matches = [_SIDE.fullmatch(Path(n.replace("\\", "/")).stem) for n in names]
        sides = {m["side"] for m in matches if m}
        if names and all(matches) and 2 <= len(sides) <= 16:
            moments = sorted({int(m["index"]) for m in matches if m})
            rank = {moment: i for i, moment in enumerate(moments)}
            found = [m for m in matches if m]
            return [m["side"] for m in found], [rank[int(m["index"])] for m in found]
        groups = [""] * len(names)
    count: dict[str, int] = {}
    indices = []
    for group in groups:
        indices.append(count.get(group, 0))
        count[group] = indices[-1] + 1
    return groups, indices


# --------------------------------------------------------------------------------- binary reading


class _Reader:
    """Bounds-checked little-endian reading from bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = _read_bytes(path)
        self.at = 0

    def take(self, layout: str) -> tuple:
        size = struct.calcsize("<" + layout)
        if self.at + size > len(self.data):
            raise self.truncated()
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += size
        return values

    def count(self, least: int) -> int:
        """A u64 count of records that take at least so many bytes each."""
        (count,) = self.take("Q")
        if count * least > len(self.data) - self.at:
            raise self.truncated(f" (it promises {count:,} records)")
        return count

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise self.truncated()
        self.at += size

    def name(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            raise self.truncated(" (an image name has no end)")
        raw = self.data[self.at : end]
        self.at = end + 1
        return raw.decode("utf-8", errors="replace")

    def finish(self) -> None:
        """Raise unless every byte was read: a count that is too small would lose records."""
        rest = len(self.data) - self.at
        if rest:
            raise CaptureError(
                f"{self.path}: has {rest:,} bytes after its last record; its count is wrong or the "
                "file is damaged."
            )

    def truncated(self, detail: str = "") -> CaptureError:
        return CaptureError(
            f"{self.path}: ends in the middle of a record at byte {self.at:,}{detail}; the file "
            "is truncated or damaged."
        )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read ({error.strerror}); check the path.") from error


def read_colmap_cameras(model: Path) -> dict[int, ColmapCamera]:
    """Cameras by id from cameras.bin or cameras.txt; panoramas are refused."""
    cameras = {}
    if (model / "cameras.bin").is_file():
        reader = _Reader(model / "cameras.bin")
        for _ in range(reader.count(24)):
            camera_id, number, width, height = reader.take("IiQQ")
            if not 0 <= number < len(MODELS):
                raise CaptureError(
                    f"{reader.path}: camera {camera_id} has the unknown model {number}; expected "
                    f"0..{len(MODELS) - 1}."
                )
            values = reader.take(f"{MODELS[number][1]}d")
            cameras[camera_id] = _lens(reader.path, camera_id, number, (width, height), values)
        reader.finish()
        return cameras
    path = model / "cameras.txt"
    by_name = {name: i for i, (name, _, _) in enumerate(MODELS)}
    for words in _table(path):
        try:
            camera_id, width, height = int(words[0]), int(words[2]), int(words[3])
            number = by_name[words[1]]
            values = tuple(float(w) for w in words[4:])
        except (ValueError, IndexError, KeyError) as error:
            raise _line_error(path, words, "ID MODEL WIDTH HEIGHT PARAMETERS") from error
        if len(values) != MODELS[number][1]:
            raise _line_error(path, words, f"{MODELS[number][1]} parameters")
        cameras[camera_id] = _lens(path, camera_id, number, (width, height), values)
    return cameras


def _lens(
    path: Path, camera_id: int, number: int, size: tuple[int, int], values: tuple[float, ...]
) -> ColmapCamera:
    name, _, focals = MODELS[number]
    if name not in DISTORTIONS:
        raise CaptureError(
            f"{path}: camera {camera_id} has the lens model {name}, which no pinhole picture can "
            "replace; cut perspective views out of the panoramas first."
        )
    fx, fy = values[0], values[focals - 1]
    cx, cy = values[focals], values[focals + 1]
    good = np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0
    if not good or not all(1 <= side <= MAX_IMAGE_SIDE for side in size):
        raise CaptureError(
            f"{path}: camera {camera_id} has impossible intrinsics ({size[0]}x{size[1]}, focal "
            f"{fx:g}, {fy:g}); export the model again."
        )
    lens = lens_of(name, values[focals + 2 :])
    return ColmapCamera(size[0], size[1], (fx, fy, cx, cy), lens)


def read_colmap_images(model: Path) -> list[ColmapImage]:
    """Registered images from images.bin or images.txt, in file order."""
    if (model / "images.bin").is_file():
        reader = _Reader(model / "images.bin")
        images = []
        for _ in range(reader.count(73)):
            image_id, *pose, camera_id = reader.take("I7dI")
            name = reader.name()
            reader.skip(24 * reader.count(24))
            images.append(_image(reader.path, image_id, pose, camera_id, name))
        reader.finish()
        return images
    path = model / "images.txt"
    lines = _lines(path)
    # Two lines per image; the second lists 2D points and may be empty, so it is not skipped.
    body = [line for line in lines if not line.startswith("#")]
    while body and not body[0].strip():
        body.pop(0)
    images = []
    for line in body[0::2]:
        words = line.split(maxsplit=9)
        if not words:
            continue
        try:
            pose = [float(w) for w in words[1:8]]
            image_id, camera_id, name = int(words[0]), int(words[8]), words[9].strip()
        except (ValueError, IndexError) as error:
            raise _line_error(path, words, "ID QW QX QY QZ TX TY TZ CAMERA NAME") from error
        images.append(_image(path, image_id, pose, camera_id, name))
    return images


def _image(path: Path, image_id: int, pose: list[float], camera_id: int, name: str) -> ColmapImage:
    values = torch.tensor(pose, dtype=torch.float64)
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = quat_to_rotmat(values[:4])
    viewmat[:3, 3] = values[4:]
    camtoworld = invert_rigid(viewmat).numpy()
    require_rigid(camtoworld, f"{path}: the pose of {name[:80]!r}")
    return ColmapImage(image_id, camera_id, name, camtoworld)


def read_colmap_points(model: Path) -> PointCloud | None:
    """Points from points3D.bin, .txt; None where the model has none."""
    if (model / "points3D.bin").is_file():
        reader = _Reader(model / "points3D.bin")
        count = reader.count(51)
        xyz = np.empty((count, 3))
        rgb = np.empty((count, 3), np.uint8)
        for i in range(count):
            _, x, y, z, r, g, b, _, track = reader.take("Q3d3BdQ")
            xyz[i], rgb[i] = (x, y, z), (r, g, b)
            reader.skip(8 * track)
        reader.finish()
        return point_cloud(xyz, rgb)
    path = model / "points3D.txt"
    if not path.is_file():
        return None
    places, colors = [], []
    for words in _table(path):
        try:
            places.append([float(w) for w in words[1:4]])
            colors.append([min(max(int(w), 0), 255) for w in words[4:7]])
        except ValueError as error:
            raise _line_error(path, words, "ID X Y Z R G B ERROR TRACK") from error
        if len(places[-1]) + len(colors[-1]) != 6:
            raise _line_error(path, words, "ID X Y Z R G B ERROR TRACK")
    return point_cloud(np.array(places).reshape(-1, 3), np.array(colors).reshape(-1, 3))


def _lines(path: Path) -> list[str]:
    content = _read_bytes(path).decode("utf-8", errors="replace")
    return [line.rstrip("\r") for line in content.split("\n")]


def _table(path: Path) -> list[list[str]]:
    return [line.split() for line in _lines(path) if line.strip() and not line.startswith("#")]


def _line_error(path: Path, words: list[str], expected: str) -> CaptureError:
    return CaptureError(
        f"{path}: the line {' '.join(words)[:60]!r} is not understood; expected {expected}."
    )
