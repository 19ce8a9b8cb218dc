"""One small good file of every format, made from the same Gaussians, to be damaged afterwards."""

from __future__ import annotations

import gzip
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io import (
    ExportOptions,
    save_scene,
    write_camera_path,
    write_cameras_json,
    write_colmap,
)
from faithfusion_studio.scene import Capture, PointCloud, PosedImage, RigidNode, Scene
from faithfusion_studio.sky import ConstantSky

Container = Literal["plain", "gzip", "zip", "zstd"]
Opens = Literal["scene", "capture", "path"]


@dataclass(frozen=True)
class Sample:
    """How a good file of one format is made, opened, and told how many Gaussians it says it has."""

    make: Callable[[Path, int], Path]
    """(folder, Gaussians) -> the file to damage."""
    opens: Opens = "scene"
    by_folder: bool = False
    """The folder is opened, not the file in it."""
    container: Container = "plain"
    """What has to be undone to damage the content itself."""
    declared: Callable[[bytes], int | None] = lambda data: None
    """Gaussians the file says it has; None where only the true number is right."""


# -------------------------------------------------------------------------------------- the scene


def gaussians(count: int, degree: int = 1, seed: int = 0) -> Gaussians:
    """Random Gaussians that every format can hold."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    return Gaussians(
        means=normal(count, 3),
        log_scales=normal(count, 3) * 0.4 - 2,
        quats=normal(count, 4),
        logit_opacities=normal(count),
        sh0=normal(count, 1, 3).clamp(-1.7, 1.7),
        shN=(normal(count, (degree + 1) ** 2 - 1, 3) * 0.1).clamp(-0.9, 0.9),
        provenance=torch.zeros(count, dtype=torch.uint8),
    )


def capture(folder: Path | None = None) -> Capture:
    """Three frames of 16x12, with points; the pictures are in memory."""
    import cv2

    K = torch.tensor([[11.5, 0, 8.25], [0, 11.0, 6.5], [0, 0, 1]], dtype=torch.float64)
    rng, frames, cameras = np.random.default_rng(0), [], []
    for index in range(3):
        pose = torch.eye(4, dtype=torch.float64)
        pose[2, 3] = float(index)
        cameras.append(Camera(pose, K, 16, 12, time=index / 10))
        pixels = rng.integers(0, 255, (12, 16, 3), np.uint8)
        data = cv2.imencode(".jpg", pixels)[1].tobytes()
        frames.append(PosedImage(cameras[-1], data, f"{index:06d}"))
    points = PointCloud(torch.randn(7, 3), torch.randint(0, 256, (7, 3), dtype=torch.uint8))
    return Capture(tuple(frames), trajectory_from_cameras(cameras), points)


def rig(names: tuple[str, ...] = ("left", "right")) -> Capture:
    """The same frames, taken by two cameras that are fixed to each other."""
    alone, frames = capture(), []
    for moment, frame in enumerate(alone.frames):
        for side, name in enumerate(names):
            pose = frame.camera.camtoworld.clone()
            pose[0, 3] += 0.5 * side
            camera = replace(frame.camera, camtoworld=pose, name=name)
            frames.append(PosedImage(camera, frame.data, f"{moment:06d}_{name}"))
    trajectory = trajectory_from_cameras([frame.camera for frame in frames])
    return Capture(tuple(frames), trajectory, alone.points)


def whole_scene(count: int, degree: int = 1) -> Scene:
    """Background, one moving object, sky and recording; `count` Gaussians in all."""
    pose = torch.eye(4, dtype=torch.float64)
    node = RigidNode(
        "car",
        gaussians(count // 4, degree, 1),
        torch.stack([pose, pose]),
        torch.tensor([0.0, 0.1], dtype=torch.float64),
        torch.tensor([True, True]),
        torch.tensor([4.0, 2.0, 1.5]),
    )
    background = gaussians(count - count // 4, degree)
    sky = ConstantSky(torch.tensor([0.4, 0.5, 0.6]))
    return Scene(background, (node,), sky, capture())


# --------------------------------------------------------------------------------------- the files


def _saved(name: str, degree: int = 1, **options: Any) -> Callable[[Path, int], Path]:
    def make(folder: Path, count: int) -> Path:
        scene = Scene(gaussians(count, degree))
        save_scene(scene, folder / name, ExportOptions(**options))
        return folder / name

    return make


def _whole(name: str) -> Callable[[Path, int], Path]:
    def make(folder: Path, count: int) -> Path:
        save_scene(whole_scene(count), folder / name)
        return folder / name

    return make


def _ascii_ply(folder: Path, count: int) -> Path:
    g = gaussians(count, 0)
    names = ["x", "y", "z", *(f"f_dc_{i}" for i in range(3)), "opacity"]
    names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    table = torch.cat([g.means, g.sh0[:, 0], g.logit_opacities[:, None], g.log_scales, g.quats], 1)
    lines = ["ply", "format ascii 1.0", f"element vertex {count}"]
    lines += [*(f"property float {name}" for name in names), "end_header"]
    lines += [" ".join(f"{value:.4f}" for value in row) for row in table.tolist()]
    (folder / "a.ply").write_text("\n".join([*lines, ""]))
    return folder / "a.ply"


def _old_spz(version: int) -> Callable[[Path, int], Path]:
    """Versions 1 and 2, which nobody writes any more, from our version 3."""

    def make(folder: Path, count: int) -> Path:
        g = gaussians(count)
        path = _saved("a.spz")(folder, count)
        plain = bytearray(gzip.decompress(path.read_bytes()))
        plain[4:8] = struct.pack("<I", version)
        start, end = 16 + 16 * count, 16 + 20 * count  # rotations follow 9 + 1 + 3 + 3 bytes a row
        quats = torch.nn.functional.normalize(g.quats, dim=1)
        xyz = quats[:, 1:] * torch.where(quats[:, :1] < 0, -1.0, 1.0)
        packed = ((xyz + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy().tobytes()
        plain[start:end] = packed
        if version == 1:
            plain[16 : 16 + 9 * count] = g.means.numpy().astype("<f2").tobytes()
        path.write_bytes(gzip.compress(bytes(plain), mtime=0))
        return path

    return make


def _ksplat(folder: Path, count: int) -> Path:
    """Compression level 1, one bucket that is full and one that is not."""
    g = gaussians(count)
    first = count - count // 3
    groups = [g.means[:first].numpy(), g.means[first:].numpy()]
    centers = np.stack([(part.min(0) + part.max(0)) / 2 for part in groups]).astype("<f4")
    block, steps = 16.0, 32767
    offsets = np.concatenate([p - c for p, c in zip(groups, centers, strict=True)])
    color = torch.cat([g.sh0[:, 0] * 0.282 + 0.5, g.opacities[:, None]], 1).clamp(0, 1)
    rows = np.zeros(count, [("m", "<u2", 3), ("s", "<f2", 3), ("q", "<f2", 4), ("c", "u1", 4), ("h", "<f2", 9)])  # fmt: skip
    rows["m"] = np.rint(offsets / (block / 2) * steps + steps)
    rows["s"], rows["q"] = g.scales.numpy(), g.quats.numpy()
    rows["c"] = np.rint(color.numpy() * 255)
    rows["h"] = g.shN.transpose(1, 2).flatten(1).numpy()
    header, section = bytearray(4096), bytearray(1024)
    struct.pack_into("<BBxxIIIIH", header, 0, 0, 1, 1, 1, count, count, 1)
    struct.pack_into("<IIIIfH", section, 0, count, count, first, 2, block, 12)
    struct.pack_into("<IIIIH", section, 24, steps, 0, 1, 1, 1)
    content = struct.pack("<I", count - first) + centers.tobytes() + rows.tobytes()
    (folder / "a.ksplat").write_bytes(bytes(header) + bytes(section) + content)
    return folder / "a.ksplat"


def _nerfstudio(folder: Path, count: int) -> Path:
    g = gaussians(count, 3)
    prefix = "_model.gauss_params."
    values = {
        "means": g.means,
        "scales": g.log_scales,
        "quats": g.quats,
        "opacities": g.logit_opacities[:, None],
        "features_dc": g.sh0[:, 0],
        "features_rest": g.shN,
    }
    pipeline = {prefix + name: value for name, value in values.items()}
    content = {"step": 9, "pipeline": pipeline, "schedulers": {"lr": np.float64(1e-4)}}
    torch.save(content, folder / "step-000000009.ckpt")
    return folder / "step-000000009.ckpt"


def _points(folder: Path, count: int) -> Path:
    g = gaussians(count, 0)
    eye = np.eye(4, dtype=np.float32)[None]
    K = np.array([[[40, 0, 16], [0, 40, 12], [0, 0, 1]]], np.float32)
    colors = np.zeros((count, 3), np.uint8)
    np.savez(
        folder / "a.npz", means3d=g.means, colors=colors, viewmats=eye, Ks=K, width=32, height=24
    )
    return folder / "a.npz"


def _cameras_json(name: str) -> Callable[[Path, int], Path]:
    def make(folder: Path, _count: int) -> Path:
        write_cameras_json(capture(), folder)
        return folder / name

    return make


def _transforms(folder: Path, _count: int) -> Path:
    write_cameras_json(capture(), folder)
    (folder / "cameras.json").unlink()
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    frames = [
        {
            "file_path": f"images/{frame.name}.jpg",
            "transform_matrix": (frame.camera.camtoworld @ flip).tolist(),
        }
        for frame in capture().frames
    ]
    content = {"fl_x": 11.5, "fl_y": 11.0, "cx": 8.25, "cy": 6.5, "w": 16, "h": 12}
    (folder / "transforms.json").write_text(json.dumps({**content, "frames": frames}))
    return folder / "transforms.json"


def _camera_path(folder: Path, _count: int) -> Path:
    write_camera_path(capture().trajectory, folder / "path.json")
    return folder / "path.json"


def _colmap(name: str) -> Callable[[Path, int], Path]:
    """A part of a COLMAP model; the text form is written from the same recording."""

    def make(folder: Path, _count: int) -> Path:
        recording = capture()
        write_colmap(recording, folder)
        model = folder / "sparse/0"
        if name.endswith(".txt"):
            for file in model.iterdir():
                file.unlink()
            (model / "cameras.txt").write_text("# cameras\n1 PINHOLE 16 12 11.5 11.0 8.25 6.5\n")
            rows = [f"{i + 1} 1 0 0 0 0 0 {-i}.0 1 {i:06d}.jpg\n1.0 2.0 -1\n" for i in range(3)]
            (model / "images.txt").write_text("# images\n" + "".join(rows))
            (model / "points3D.txt").write_text("# points\n9 1.0 2.0 3.0 10 20 30 0.5 1 0\n")
        return model / name

    return make


def _colmap_rig(name: str) -> Callable[[Path, int], Path]:
    """Rigs or frames of a model; the text forms have the numbers of the binary ones."""

    def make(folder: Path, _count: int) -> Path:
        write_colmap(rig(), folder)
        model = folder / "sparse/0"
        if name.endswith(".txt"):
            poses = [f"{i + 1} 1 1 0 0 0 0 0 {-i}.0" for i in range(3)]
            taken = [f"2 CAMERA 1 {2 * i + 1} CAMERA 2 {2 * i + 2}" for i in range(3)]
            (model / "rigs.txt").write_text("# rigs\n1 2 CAMERA 1 CAMERA 2 1 1 0 0 0 -0.5 0 0\n")
            rows = [f"{pose} {data}\n" for pose, data in zip(poses, taken, strict=True)]
            (model / "frames.txt").write_text("# frames\n" + "".join(rows))
            for part in ("rigs.bin", "frames.bin"):
                (model / part).unlink()
        return model / name

    return make


# ------------------------------------------------------------------------------ what a file says


def _ply_count(data: bytes) -> int | None:
    found = re.search(rb"element vertex ([0-9]+)", data)
    return None if found is None else int(found[1])


def _at(offset: int) -> Callable[[bytes], int | None]:
    return lambda data: (
        struct.unpack_from("<I", data, offset)[0] if len(data) > offset + 4 else None
    )


def _gzipped_count(data: bytes) -> int | None:
    try:
        return _at(8)(gzip.decompress(data))
    except (OSError, EOFError, ValueError):
        return None


def _sog_count(data: bytes) -> int | None:
    found = re.search(rb'"count": ?([0-9]+), ?"means"', data)
    return None if found is None else int(found[1])


SAMPLES: dict[str, Sample] = {
    "native .ckpt": Sample(_whole("a.ckpt")),
    "Inria PLY": Sample(_saved("a.ply", 3), declared=_ply_count),
    "ascii PLY": Sample(_ascii_ply, declared=_ply_count),
    "compressed PLY": Sample(_saved("a.compressed.ply"), declared=_ply_count),
    "splat": Sample(_saved("a.splat"), declared=lambda data: len(data) // 32),
    "SPZ 1": Sample(_old_spz(1), container="gzip", declared=_gzipped_count),
    "SPZ 2": Sample(_old_spz(2), container="gzip", declared=_gzipped_count),
    "SPZ 3": Sample(_saved("a.spz"), container="gzip", declared=_gzipped_count),
    "SPZ 4": Sample(_saved("a.spz", spz_version=4), container="zstd", declared=_at(8)),
    "ksplat": Sample(_ksplat, declared=_at(16)),
    "SOG": Sample(_saved("a.sog"), container="zip", declared=_sog_count),
    "SOG folder": Sample(_saved("meta.json"), by_folder=True, declared=_sog_count),
    "gsplat .pt": Sample(_saved("a.pt"), container="zip"),
    "nerfstudio .ckpt": Sample(_nerfstudio, container="zip"),
    "DriveStudio .pth": Sample(_whole("a.pth"), container="zip"),
    "points .npz": Sample(_points, container="zip"),
    "cameras.json": Sample(_cameras_json("cameras.json"), "capture", by_folder=True),
    "points3d.ply": Sample(_cameras_json("points3d.ply"), "capture", by_folder=True),
    "image header": Sample(_cameras_json("images/000000.jpg"), "capture", by_folder=True),
    "transforms.json": Sample(_transforms, "capture", by_folder=True),
    "camera path": Sample(_camera_path, "path"),
    **{
        f"COLMAP {part}{end}": Sample(_colmap(part + end), "capture", by_folder=True)
        for end in (".bin", ".txt")
        for part in ("cameras", "images", "points3D")
    },
    **{
        f"COLMAP {part}{end}": Sample(_colmap_rig(part + end), "capture", by_folder=True)
        for end in (".bin", ".txt")
        for part in ("rigs", "frames")
    },
}
"""By the name in the table."""


def broken_rows(count: int, bad: int, seed: int) -> Scene:
    """A scene of `count` Gaussians of which `bad` are not finite or absurdly large."""
    rng = np.random.default_rng(seed)
    g = gaussians(count, 1, seed)
    names = ("means", "log_scales", "quats", "sh0", "shN")
    values = {name: getattr(g, name).clone() for name in names}
    for row in rng.choice(count, bad, replace=False):
        name = names[int(rng.integers(len(names)))]
        evil = [np.nan, np.inf, -np.inf, {"means": 3e6, "log_scales": 30.0}.get(name, np.nan)]
        flat = values[name].view(count, -1)
        flat[row, int(rng.integers(flat.shape[1]))] = evil[int(rng.integers(4))]
    return Scene(replace(g, **values))
