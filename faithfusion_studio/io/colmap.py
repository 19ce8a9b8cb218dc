"""COLMAP models, binary and text: cameras, images in order of time, and points.

Layout: https://colmap.github.io/format.html. Poses are stored world -> camera, quaternions wxyz,
pixel centres at +0.5. Ids are neither contiguous nor in order of time, so frames are ordered by
name. Where COLMAP 3.12 or later has put cameras on a rig (`colmap_rigs`), its frames say what was
taken together, and its poses are those of the images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
)
from faithfusion_studio.io.colmap_files import (
    ColmapReader,
    line_error,
    lines_of,
    pose_of,
    table_of,
)
from faithfusion_studio.io.colmap_rigs import OnRig, read_colmap_rigs
from faithfusion_studio.lens import DISTORTIONS, Lens, lens_of
from faithfusion_studio.scene import Capture, PointCloud
from faithfusion_studio.transforms import invert_rigid

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
    placed = read_colmap_rigs(model)
    images = [_on_rig(image, placed) for image in images]
    names, indices = _taken(images, placed)
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


def _on_rig(image: ColmapImage, placed: Mapping[int, OnRig]) -> ColmapImage:
    """The image at the pose its rig gives it, as COLMAP itself reads a model."""
    found = placed.get(image.image_id)
    return image if found is None else replace(image, camtoworld=found.camtoworld)


def _taken(
    images: Sequence[ColmapImage], placed: Mapping[int, OnRig]
) -> tuple[list[str], list[int]]:
    """Camera name and index in time of each image: of the rig, where it took them all; else from their names."""
    named, indices = _sides([image.name for image in images])
    found = [placed[image.image_id] for image in images if image.image_id in placed]
    if not images or len(found) < len(images):
        return named, indices
    order = {frame: i for i, frame in enumerate(dict.fromkeys(_frames_in_order(images, found)))}
    sensors: dict[tuple[int, int], set[str]] = {}
    for on_rig, name in zip(found, named, strict=True):
        sensors.setdefault(on_rig.sensor, set()).add(name)
    titles = {s: next(iter(n)) if len(n) == 1 else "" for s, n in sensors.items()}
    if "" in titles.values() or len(set(titles.values())) < len(titles):
        titles = {sensor: f"camera {sensor[1]}" for sensor in sensors}
    return [titles[one.sensor] for one in found], [order[one.frame] for one in found]


def _frames_in_order(images: Sequence[ColmapImage], found: Sequence[OnRig]) -> list[int]:
    """Frames of the rig by the file names of their images, without folders; ids tell no time."""
    pairs = zip(images, found, strict=True)
    keys = [(natural_key(Path(i.name.replace("\\", "/")).name), f.frame) for i, f in pairs]
    return [frame for _, frame in sorted(keys)]


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


def read_colmap_cameras(model: Path) -> dict[int, ColmapCamera]:
    """Cameras by id from cameras.bin or cameras.txt; panoramas are refused."""
    cameras = {}
    if (model / "cameras.bin").is_file():
        reader = ColmapReader(model / "cameras.bin")
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
    for words in table_of(path):
        try:
            camera_id, width, height = int(words[0]), int(words[2]), int(words[3])
            number = by_name[words[1]]
            values = tuple(float(w) for w in words[4:])
        except (ValueError, IndexError, KeyError) as error:
            raise line_error(path, words, "ID MODEL WIDTH HEIGHT PARAMETERS") from error
        if len(values) != MODELS[number][1]:
            raise line_error(path, words, f"{MODELS[number][1]} parameters")
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
        reader = ColmapReader(model / "images.bin")
        images = []
        for _ in range(reader.count(73)):
            image_id, *pose, camera_id = reader.take("I7dI")
            name = reader.name()
            reader.skip(24 * reader.count(24))
            images.append(_image(reader.path, image_id, pose, camera_id, name))
        reader.finish()
        return images
    path = model / "images.txt"
    lines = lines_of(path)
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
            raise line_error(path, words, "ID QW QX QY QZ TX TY TZ CAMERA NAME") from error
        images.append(_image(path, image_id, pose, camera_id, name))
    return images


def _image(path: Path, image_id: int, pose: list[float], camera_id: int, name: str) -> ColmapImage:
    viewmat = torch.from_numpy(pose_of(pose, f"{path}: the pose of {name[:80]!r}"))
    return ColmapImage(image_id, camera_id, name, invert_rigid(viewmat).numpy())


def read_colmap_points(model: Path) -> PointCloud | None:
    """Points from points3D.bin, .txt; None where the model has none."""
    if (model / "points3D.bin").is_file():
        reader = ColmapReader(model / "points3D.bin")
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
    for words in table_of(path):
        try:
            places.append([float(w) for w in words[1:4]])
            colors.append([min(max(int(w), 0), 255) for w in words[4:7]])
        except ValueError as error:
            raise line_error(path, words, "ID X Y Z R G B ERROR TRACK") from error
        if len(places[-1]) + len(colors[-1]) != 6:
            raise line_error(path, words, "ID X Y Z R G B ERROR TRACK")
    return point_cloud(np.array(places).reshape(-1, 3), np.array(colors).reshape(-1, 3))
