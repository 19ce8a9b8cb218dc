"""Folders that DriveStudio's preprocessing writes for six data sets, in the world its checkpoints live in.

`images/{t:03d}_{cam}.jpg`, `intrinsics/{cam}.txt` (fx fy cx cy k1 k2 p1 p2 k3), `extrinsics/`,
`ego_pose/{t:03d}.txt`, `lidar/{t:03d}.bin`, `dynamic_masks/`, `instances/`. Which data set it is shows
in the files: where extrinsics are per frame, and how large the first camera's picture is. Global
coordinates are large, so everything goes to the first frame in float64. K is used unshifted, as
DriveStudio does, although OpenCV counts pixel centres from 0: half a pixel against a metric
calibration, and equal pictures with its checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faithfusion_studio.io.capture_files import (
    CaptureError,
    Shot,
    build_capture,
    finite_number,
    image_size,
    inside,
    make_camera,
    matrix4,
    read_json,
    require_rigid,
)
from faithfusion_studio.lens import Lens, lens_of
from faithfusion_studio.scene import BoxTrack, Capture

FPS = 10.0
MAX_FRAMES = 100_000
MAX_SWEEP_POINTS = 60_000
MAX_SWEEP_BYTES = 256 * 1024 * 1024
OPENCV_TO_VEHICLE = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""Camera axes x right, y down, z forward to x forward, y left, z up."""


@dataclass(frozen=True)
class DataSet:
    """What differs between the six."""

    name: str
    first_camera: tuple[int, int]
    """Width and height of camera 0; 16 pixels of tolerance, since KITTI's differ by day."""
    cameras: tuple[str, ...]
    """Names by number; in the folder they are numbers only."""
    per_frame: bool
    """Extrinsics are camera -> global per frame instead of camera -> ego per camera."""
    columns: int
    """Float32 numbers per LiDAR return."""
    xyz: int = 0
    """First of its three coordinates."""
    vehicle_axes: bool = False
    """The camera frame of the extrinsics has x forward instead of OpenCV's axes."""
    own_lidar_pose: bool = False
    """Sweeps are in the sensor's frame, which `lidar_pose/` places in the world."""
    camera_world: bool = False
    """The world is the front camera of the first frame instead of the first ego frame."""


_SIDES = ("front", "front_left", "front_right", "left", "right", "back")
_BACK_SIDES = ("front", "front_left", "front_right", "back_left", "back_right", "back")
_RING = ("front", *(f"ring_{i}" for i in range(1, 7)))
_ROUND = ("front", "left_0", "right_0", "left_1", "right_1", "left_2", "right_2", "back")
DATA_SETS = (
    DataSet("waymo", (1920, 1280), _SIDES[:5], False, 14, xyz=3, vehicle_axes=True),
    DataSet("kitti", (1242, 375), ("left", "right"), False, 4),
    DataSet("nuscenes", (1600, 900), _BACK_SIDES, True, 4, own_lidar_pose=True, camera_world=True),
    DataSet("argoverse", (1550, 2048), _RING, False, 4),
    DataSet("nuplan", (1920, 1080), _ROUND, False, 6),
    DataSet("pandaset", (1920, 1080), _SIDES, True, 5),
)
_CATEGORIES = {
    "vehicle": ("vehicle", "car", "truck", "bus", "van", "tram", "trailer", "construction"),
    "pedestrian": ("pedestrian", "person", "human"),
    "cyclist": ("cyclist", "bicycle", "motorcycle", "rider", "bike"),
}


def is_drivestudio_folder(folder: Path) -> bool:
    """Whether a folder has the layout, by the names of its parts."""
    poses = any((folder / name).is_dir() for name in ("ego_pose", "lidar_pose"))
    return poses and (folder / "images").is_dir() and (folder / "intrinsics").is_dir()


def read_drivestudio_capture(folder: Path | str) -> Capture:
    """A recording from a folder that DriveStudio's preprocessing wrote.

    Args:
        folder: `{root}/{scene}`; optional parts may be missing.

    Raises:
        CaptureError: An unknown data set, missing poses or intrinsics, or unusable images.
    """
    root = Path(folder)
    frames = _frames(root)
    cameras = _cameras(root)
    data = _data_set(root, frames, cameras)
    egos = _poses(root, "ego_pose", frames)
    poses = {(t, c): _camera_pose(root, data, egos, t, c) for t in frames for c in cameras}
    start = frames[0]
    if data.camera_world:
        origin = poses[start, cameras[0]]
    elif start in egos:
        origin = egos[start]
    else:
        raise CaptureError(f"{root}: lacks ego_pose/{start:03d}.txt, which the world starts from.")
    world = np.linalg.inv(origin)
    notes = ["Intrinsics are used as DriveStudio uses them, without half a pixel."]
    capture = build_capture(
        root,
        root / "images",
        _shots(root, data, frames, cameras, poses, egos, world),
        points=None,
        source=f"{data.name}, processed by DriveStudio: {root.name}",
        notes=notes,
    )
    return replace(
        capture,
        lidar=_sweeps(root, data, frames, egos, world),
        boxes=_boxes(root, frames, world),
    )


def _frames(root: Path) -> list[int]:
    """Timesteps with a pose, ascending."""
    folder = root / "ego_pose" if (root / "ego_pose").is_dir() else root / "lidar_pose"
    steps = sorted(int(p.stem) for p in folder.glob("*.txt") if p.stem.isdecimal())
    if not 1 <= len(steps) <= MAX_FRAMES:
        raise CaptureError(f"{folder}: has {len(steps)} poses; expected one 000.txt per frame.")
    return steps


def _cameras(root: Path) -> list[int]:
    names = [p.stem for p in (root / "intrinsics").glob("*.txt")]
    cameras = sorted(int(name) for name in names if name.isdecimal())
    if not cameras:
        raise CaptureError(f"{root}: has no intrinsics/0.txt; expected one file per camera.")
    return cameras


def _picture(root: Path, t: int, camera: int) -> str | None:
    for suffix in (".jpg", ".png"):
        if (root / "images" / f"{t:03d}_{camera}{suffix}").is_file():
            return f"{t:03d}_{camera}{suffix}"
    return None


def _data_set(root: Path, frames: Sequence[int], cameras: Sequence[int]) -> DataSet:
    """By where extrinsics are and how large camera 0's picture is; else by a folder's name."""
    first = next((n for t in frames if (n := _picture(root, t, cameras[0]))), None)
    size = None if first is None else image_size(root / "images" / first)
    per_frame = (root / "extrinsics" / f"{frames[0]:03d}_{cameras[0]}.txt").is_file()
    fitting = [d for d in DATA_SETS if d.per_frame == per_frame and len(cameras) <= len(d.cameras)]
    for data in fitting:
        if size is not None and all(
            abs(have - want) <= 32 for have, want in zip(size, data.first_camera, strict=True)
        ):
            return data
    parts = " ".join(part.lower() for part in root.resolve().parts[-4:])
    named = [data for data in DATA_SETS if data.name in parts]
    if named:
        return named[-1]
    raise CaptureError(
        f"{root}: has {len(cameras)} cameras whose first takes pictures of {size}; expected one of "
        f"{', '.join(d.name for d in DATA_SETS)}, so put its name into the folder's path."
    )


def _numbers(path: Path, *counts: int) -> np.ndarray:
    """Numbers of a text file.

    Raises:
        CaptureError: Missing, not numbers, or not as many.
    """
    try:
        if path.stat().st_size > 65_536:
            raise CaptureError(f"{path}: is too large for a calibration file.")
        values = np.array(path.read_text(encoding="utf-8").split(), dtype=np.float64)
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read ({error.strerror}); restore it.") from error
    except ValueError as error:
        raise CaptureError(f"{path}: holds something that is no number; restore it.") from error
    if len(values) not in counts or not np.isfinite(values).all():
        expected = " or ".join(map(str, counts))
        raise CaptureError(f"{path}: has {len(values)} numbers; expected {expected} finite ones.")
    return values


def _pose(path: Path) -> np.ndarray:
    values = _numbers(path, 12, 16)
    pose = np.eye(4)
    pose[:3] = values[:12].reshape(3, 4)
    require_rigid(pose, str(path))
    return pose


def _poses(root: Path, name: str, frames: Sequence[int]) -> dict[int, np.ndarray]:
    """Poses that are there, by timestep."""
    files = {t: root / name / f"{t:03d}.txt" for t in frames}
    return {t: _pose(path) for t, path in files.items() if path.is_file()}


def _camera_pose(
    root: Path, data: DataSet, egos: Mapping[int, np.ndarray], t: int, camera: int
) -> np.ndarray:
    """Camera to global, OpenCV axes; both patterns of file names are accepted."""
    per_frame = root / "extrinsics" / f"{t:03d}_{camera}.txt"
    if per_frame.is_file():
        return _pose(per_frame)
    if t not in egos:
        raise CaptureError(f"{root}: lacks ego_pose/{t:03d}.txt, which places its cameras.")
    fixed = _pose(root / "extrinsics" / f"{camera}.txt")
    return egos[t] @ fixed @ (OPENCV_TO_VEHICLE if data.vehicle_axes else np.eye(4))


def _shots(
    root: Path,
    data: DataSet,
    frames: Sequence[int],
    cameras: Sequence[int],
    poses: Mapping[tuple[int, int], np.ndarray],
    egos: Mapping[int, np.ndarray],
    world: np.ndarray,
) -> list[Shot]:
    calibrations = {c: _numbers(root / "intrinsics" / f"{c}.txt", 4, 9) for c in cameras}
    sizes: dict[int, tuple[int, int]] = {}
    shots = []
    for index, t in enumerate(frames):
        for camera in cameras:
            file = _picture(root, t, camera)
            if file is None:
                continue
            size = sizes.setdefault(camera, image_size(inside(root, f"images/{file}")) or (1, 1))
            fx, fy, cx, cy, *bent = (float(n) for n in calibrations[camera])
            if fx <= 0 or fy <= 0:
                raise CaptureError(f"{root}: camera {camera} has the focal lengths {fx:g}, {fy:g}.")
            name = data.cameras[camera] if camera < len(data.cameras) else str(camera)
            view = make_camera(
                world @ poses[t, camera], (fx, fy, cx, cy), size, time=index / FPS, name=name
            )
            ego = torch.from_numpy(world @ egos[t]) if len(egos) == len(frames) else None
            shots.append(Shot(file, view, ego, _mask(root, t, camera), lens=_lens(bent)))
    return shots


def _lens(bent: Sequence[float]) -> Lens | None:
    """k1 k2 p1 p2 k3 as OpenCV has them; in the pixel grid of K, so nothing is shifted either."""
    return lens_of("FULL_OPENCV", (*bent, 0.0, 0.0, 0.0)) if bent else None


def _mask(root: Path, t: int, camera: int) -> str | None:
    """What moves: the fine mask where there is one."""
    for folder in ("fine_dynamic_masks", "dynamic_masks"):
        name = f"{folder}/all/{t:03d}_{camera}.png"
        if (root / name).is_file():
            return name
    return None


def _sweeps(
    root: Path,
    data: DataSet,
    frames: Sequence[int],
    egos: Mapping[int, np.ndarray],
    world: np.ndarray,
) -> tuple[torch.Tensor, ...]:
    """LiDAR returns per frame in the world, m; all or none, thinned to a bounded number."""
    placed = _poses(root, "lidar_pose", frames) if data.own_lidar_pose else egos
    files = {t: root / "lidar" / f"{t:03d}.bin" for t in frames}
    if not all(t in placed and path.is_file() for t, path in files.items()):
        return ()
    sweeps = []
    for t, path in files.items():
        size = path.stat().st_size
        if size % (4 * data.columns) or size > MAX_SWEEP_BYTES:
            raise CaptureError(
                f"{path}: has {size:,} bytes; expected rows of {data.columns} float32 of {data.name}."
            )
        rows = np.fromfile(path, np.float32).reshape(-1, data.columns)
        xyz = rows[:, data.xyz : data.xyz + 3].astype(np.float64)
        xyz = xyz[np.isfinite(xyz).all(1)]
        xyz = xyz[:: max(1, -(-len(xyz) // MAX_SWEEP_POINTS))]
        pose = world @ placed[t]
        sweeps.append(torch.from_numpy((xyz @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32)))
    return tuple(sweeps)


def _boxes(root: Path, frames: Sequence[int], world: np.ndarray) -> tuple[BoxTrack, ...]:
    path = root / "instances" / "instances_info.json"
    if not path.is_file():
        return ()
    index = {t: i for i, t in enumerate(frames)}
    tracks = [_box(path, k, v, index, world) for k, v in read_json(path).items()]
    return tuple(track for track in tracks if track is not None)


def _box(
    path: Path, key: str, value: Any, index: Mapping[int, int], world: np.ndarray
) -> BoxTrack | None:
    """One annotated object; None where it is in no frame of the recording."""
    what = f"{path}: instance {key[:40]}"
    notes = value.get("frame_annotations") if isinstance(value, dict) else None
    tables = (
        [notes.get(k) for k in ("frame_idx", "obj_to_world", "box_size")]
        if isinstance(notes, dict)
        else []
    )
    if (
        len(tables) != 3
        or not all(isinstance(t, list) for t in tables)
        or len(set(map(len, tables))) != 1
    ):
        raise CaptureError(f"{what} has no frame_idx, obj_to_world and box_size of one length.")
    rows = []
    for step, pose, size in zip(*tables, strict=True):
        if isinstance(step, int) and step in index:
            placed = world @ matrix4(pose, f"{what}: obj_to_world")
            sides = [finite_number(s, f"{what}: box_size") for s in size]
            rows.append((index[step] / FPS, placed, sides))
    rows.sort(key=lambda row: row[0])
    if not rows or any(len(sides) != 3 or min(sides) <= 0 for _, _, sides in rows):
        return None
    kind = str(value.get("class_name", "object"))
    known = (c for c, words in _CATEGORIES.items() if any(w in kind.lower() for w in words))
    return BoxTrack(
        name=f"{kind} {value.get('id', key)}"[:80],
        category=next(known, "vehicle"),
        size=torch.tensor([sides for _, _, sides in rows]).mean(0),
        poses=torch.from_numpy(np.stack([pose for _, pose, _ in rows])),
        timestamps=torch.tensor([time for time, _, _ in rows], dtype=torch.float64),
    )
