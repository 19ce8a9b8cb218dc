"""Coloured points beside a recording: `points3d.ply`, and LiDAR sweeps in .npz files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.capture_files import CaptureError, point_cloud
from faithfusion_studio.io.ply import SplatFileError, read_ply_elements, read_ply_header
from faithfusion_studio.scene import PointCloud

MAX_SWEEP_BYTES = 256 * 1024 * 1024


def read_points(path: Path) -> PointCloud | None:
    """Points of a PLY file with x y z and, where given, red green blue; None where it is empty.

    Raises:
        SplatFileError: Not a PLY file, truncated, or without positions.
    """
    header = read_ply_header(path)
    rows = read_ply_elements(path, header, ["vertex"]).get("vertex")
    if rows is None or not {"x", "y", "z"} <= set(rows.dtype.names or ()):
        raise SplatFileError(f"{path}: has no vertices with x, y, z; expected a point cloud.")
    with np.errstate(over="ignore"):
        xyz = np.stack([rows[axis].astype(np.float64) for axis in "xyz"], axis=1)
    rgb = np.full((len(rows), 3), 128, np.uint8)
    names = rows.dtype.names or ()
    for channel, name in enumerate(("red", "green", "blue")):
        if name in names:
            values = rows[name]
            if values.dtype.kind == "f":
                values = np.nan_to_num(values).clip(0, 1) * 255
            rgb[:, channel] = np.clip(values, 0, 255).astype(np.uint8)
    return point_cloud(xyz, rgb)


def write_points(points: PointCloud, path: Path) -> None:
    """Write points as a binary PLY with x y z and red green blue.

    Raises:
        CaptureError: The file cannot be written.
    """
    fields = [(n, "<f4") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")]
    rows = np.zeros(len(points.xyz), fields)
    for axis, name in enumerate("xyz"):
        rows[name] = points.xyz[:, axis].cpu().numpy()
    for channel, name in enumerate(("red", "green", "blue")):
        rows[name] = points.rgb[:, channel].cpu().numpy()
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    lines += [f"property {'float' if t == '<f4' else 'uchar'} {n}" for n, t in fields]
    header = "\n".join([*lines, "end_header", ""]).encode("ascii")
    with write_atomically(path, CaptureError) as temporary:
        temporary.write_bytes(header + rows.tobytes())


def read_sweep(path: Path, world_from_lidar: np.ndarray, unit_m: float) -> torch.Tensor:
    """One LiDAR sweep in the world, [M, 3] float32 m, from an .npz with `xyz_mm4` int16.

    Raises:
        CaptureError: The file is missing, damaged, too large, or has other arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
        if total > MAX_SWEEP_BYTES:
            raise CaptureError(f"{path}: unpacks to {total:,} bytes, too much for one LiDAR sweep.")
        with np.load(path, allow_pickle=False) as content:
            xyz = content["xyz_mm4"].astype(np.float64) * unit_m
    except CaptureError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as error:
        raise CaptureError(
            f"{path}: not a readable LiDAR sweep ({str(error)[:80]}); expected an .npz with xyz_mm4."
        ) from error
    if xyz.ndim != 2 or xyz.shape[1] != 3:
        raise CaptureError(f"{path}: xyz_mm4 has the shape {xyz.shape}; expected (M, 3).")
    world = xyz @ world_from_lidar[:3, :3].T + world_from_lidar[:3, 3]
    return torch.from_numpy(world.astype(np.float32))
