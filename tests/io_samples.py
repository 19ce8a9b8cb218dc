"""Small scenes and recordings that the format tests write and read."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import torch
from test_gaussians import random_gaussians

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import BoxTrack, Capture, PointCloud, PosedImage, Scene, StoredFisher
from faithfusion_studio.sky import CubemapSky
from faithfusion_studio.transforms import quat_to_rotmat, rotmat_to_quat


def encoded_image(width: int = 16, height: int = 12, seed: int = 0, suffix: str = ".jpg") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def a_pose(step: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = quat_to_rotmat(torch.randn(4, generator=generator, dtype=torch.float64))
    pose[0, 3] = step
    return pose


def cameras(count: int, width: int = 16, height: int = 12, names=("",)) -> list[Camera]:
    K = torch.tensor([[11.5, 0, 8.25], [0, 11.0, 6.5], [0, 0, 1]], dtype=torch.float64)
    return [
        Camera(
            a_pose(float(i), i),
            K,
            width,
            height,
            time=i // len(names) / 10,
            name=names[i % len(names)],
        )
        for i in range(count)
    ]


def a_capture(count: int = 3, names=("",), with_ego: bool = True) -> Capture:
    views = cameras(count, names=names)
    egos = torch.stack([a_pose(2.0 * i, 50 + i) for i in range(count)]) if with_ego else None
    generator = torch.Generator().manual_seed(3)
    return Capture(
        frames=tuple(
            PosedImage(
                camera,
                encoded_image(seed=i),
                f"{i:06d}{'_' + camera.name if camera.name else ''}",
                encoded_image(suffix=".png", seed=i) if i == 1 else None,
            )
            for i, camera in enumerate(views)
        ),
        trajectory=trajectory_from_cameras(views, egos),
        points=PointCloud(
            torch.randn(7, 3, generator=generator),
            torch.randint(0, 256, (7, 3), generator=generator, dtype=torch.uint8),
        ),
        lidar=(torch.randn(5, 3, generator=generator), torch.zeros(0, 3)),
        boxes=(
            BoxTrack(
                "box 1",
                "vehicle",
                torch.tensor([4.0, 2, 1.5]),
                torch.stack([a_pose(1.0, 9), a_pose(2.0, 10)]),
                torch.tensor([0.0, 0.1], dtype=torch.float64),
                by_hand=torch.tensor([True, False]),
            ),
        ),
        lanes=(torch.randn(4, 3, generator=generator),),
        source="made by a test",
        licence="CC0",
        notes=("one note",),
    )


def random_blocks(count: int, seed: int = 0, rank: int = 20) -> torch.Tensor:
    """Packed Fisher blocks [count, 91] of very different scales, as real ones have."""
    rng = np.random.default_rng(seed)
    jacobians = rng.normal(size=(count, rank, 13)) * np.exp(3 * rng.normal(size=(count, 1, 13)))
    blocks = jacobians.transpose(0, 2, 1) @ jacobians
    rows, columns = np.triu_indices(13)
    return torch.from_numpy(blocks[:, rows, columns].astype(np.float32))


def unpacked(blocks: torch.Tensor) -> np.ndarray:
    """Symmetric [N, 13, 13] float64 from packed rows."""
    rows, columns = np.triu_indices(13)
    full = np.zeros((len(blocks), 13, 13))
    full[:, rows, columns] = blocks.numpy()
    full[:, columns, rows] = blocks.numpy()
    return full


def a_fisher(count: int, seed: int = 0, coefficients: int = 3) -> StoredFisher:
    generator = torch.Generator().manual_seed(seed)
    blocks = random_blocks(count, seed)
    blocks[0] = 0
    return StoredFisher(
        blocks=blocks,
        sh=torch.rand(count, coefficients, 3, generator=generator) * 100,
        noise_std=0.04,
        num_views=12,
        sky=torch.rand(6, 4, 4, generator=generator),
        residual_variance=torch.rand(count, generator=generator),
        calibration=torch.tensor([[0.0, 0.0], [1.5, 0.7], [9.0, 1.0]]),
    )


def a_scene(count: int = 20, seed: int = 0, degree: int = 1) -> Scene:
    node = RigidNode(
        "car",
        random_gaussians(5, degree, seed + 1),
        torch.stack([a_pose(0.0, 1), a_pose(1.0, 2)]),
        torch.tensor([0.0, 0.1], dtype=torch.float64),
        torch.tensor([True, False]),
        torch.tensor([4.0, 2.0, 1.5]),
    )
    generator = torch.Generator().manual_seed(seed)
    return Scene(
        background=random_gaussians(count, degree, seed),
        nodes=(node,),
        sky=CubemapSky(torch.rand(6, 4, 4, 3, generator=generator)),
        capture=a_capture(),
        fisher=a_fisher(count + 5, seed, (degree + 1) ** 2 - 1),
        exposures=torch.rand(3, 3, 4, generator=generator),
        paths={"to the left": trajectory_from_cameras(cameras(2))},
        metadata={"steps": 10, "nested": {"list": [1, 2.5, "x", None, True]}},
    )


# ----------------------------------------------------------------------------------------- COLMAP


def write_colmap(
    folder: Path, names: list[str], *, binary: bool, model: str = "PINHOLE"
) -> list[Camera]:
    """A tiny COLMAP capture; ids are neither contiguous nor in order of time."""
    from faithfusion_studio.io.colmap import MODELS

    number = [m[0] for m in MODELS].index(model)
    parameters = {"PINHOLE": [11.5, 11.0, 8.25, 6.5], "SIMPLE_RADIAL": [11.5, 8.25, 6.5, 0.0]}[
        model
    ]
    views = cameras(len(names))
    poses = []
    for camera in views:
        quat = rotmat_to_quat(camera.viewmat[:3, :3])
        poses.append([*quat.tolist(), *camera.viewmat[:3, 3].tolist()])
    (folder / "sparse/0").mkdir(parents=True)
    for i, name in enumerate(names):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded_image(seed=i))
    ids = [7 + 5 * ((i * 3) % len(names)) + i for i in range(len(names))]
    order = list(range(len(names)))[::-1]
    if binary:
        data = struct.pack("<QIiQQ", 1, 42, number, 16, 12)
        (folder / "sparse/0/cameras.bin").write_bytes(data + struct.pack("<4d", *parameters))
        data = struct.pack("<Q", len(names))
        for i in order:
            data += struct.pack("<I7dI", ids[i], *poses[i], 42) + names[i].encode() + b"\0"
            data += struct.pack("<Q", i % 2) + struct.pack("<ddQ", 1.0, 2.0, 2**64 - 1) * (i % 2)
        (folder / "sparse/0/images.bin").write_bytes(data)
        data = struct.pack("<Q", 2)
        for i in range(2):
            data += struct.pack("<Q3d3BdQ", 900 + i, i, 2.0, 3.0, 10 + i, 20, 30, 0.5, 1)
            data += struct.pack("<II", ids[0], 0)
        (folder / "sparse/0/points3D.bin").write_bytes(data)
        (folder / "sparse/0/rigs.bin").write_bytes(struct.pack("<Q", 0))
        (folder / "sparse/0/frames.bin").write_bytes(struct.pack("<Q", 0))
        return views
    values = " ".join(str(v) for v in parameters)
    (folder / "sparse/0/cameras.txt").write_text(f"# cameras\n42 {model} 16 12 {values}\n")
    lines = ["# images", "# two lines each"]
    for i in order:
        pose = " ".join(repr(v) for v in poses[i])
        lines += [f"{ids[i]} {pose} 42 {names[i]}", "1.0 2.0 -1" if i % 2 else ""]
    (folder / "sparse/0/images.txt").write_text("\n".join(lines) + "\n")
    points = "".join(f"{900 + i} {i} 2.0 3.0 {10 + i} 20 30 0.5 {ids[0]} 0\n" for i in range(2))
    (folder / "sparse/0/points3D.txt").write_text("# points\n" + points)
    return views
