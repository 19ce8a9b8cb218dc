"""A wall across a road, seen exactly, and batches of novel views of it for repair engines."""

from __future__ import annotations

import torch

from faithfusion_studio.cameras import Camera
from faithfusion_studio.repair.base import Reference, RepairBatch


def wall_camera(x: float, y: float, size: tuple[int, int], time: float) -> Camera:
    width, height = size
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    pose[:3, 3] = torch.tensor([x, y, 1.6], dtype=torch.float64)
    focal = width * 0.7
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]).double()
    return Camera(pose, K, width, height, time)


def wall_view(camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    """A striped wall across the road at x = 20 m: exact colours and depth."""
    K = camera.K.float()
    depth = torch.full((camera.height, camera.width), 20.0 - float(camera.position[0]))
    u = (torch.arange(camera.width) + 0.5 - K[0, 2]) / K[0, 0]
    v = (torch.arange(camera.height) + 0.5 - K[1, 2]) / K[1, 1]
    y = float(camera.position[1]) - u[None] * depth
    z = 1.6 - v[:, None] * depth
    channels = [0.5 + 0.3 * torch.sin(y + k) * torch.cos(0.7 * z) for k in range(3)]
    return torch.stack(channels, dim=-1), depth


def wall_batch(size=(64, 36), frames=2, seed=0) -> RepairBatch:
    """Novel views 1 m to the left: the exact image with noise where the scene is unsure."""
    generator = torch.Generator().manual_seed(seed)
    cameras = tuple(wall_camera(float(t), 1.0, size, float(t)) for t in range(frames))
    references = []
    for x in range(-3, frames + 3):
        camera = wall_camera(float(x), 0.0, size, float(x))
        references.append(Reference(*wall_view(camera), camera))
    truth = torch.stack([wall_view(camera)[0] for camera in cameras])
    depths = torch.stack([wall_view(camera)[1] for camera in cameras])
    calibrated = torch.rand(depths.shape, generator=generator) * 0.3
    calibrated[:, :, size[0] // 2 :] += 0.65
    noise = 0.3 * (torch.rand(truth.shape, generator=generator) - 0.5)
    renders = torch.where((calibrated > 0.4)[..., None], truth + noise, truth).clamp(0, 1)
    coverage = torch.ones_like(calibrated, dtype=torch.bool)
    coverage[:, : size[1] // 4, -size[0] // 4 :] = False
    return RepairBatch(
        renders=renders,
        alphas=coverage.float(),
        depths=depths,
        eig=calibrated * 5,
        calibrated_eig=calibrated,
        coverage=coverage,
        ucr=(calibrated >= 0.4) | ~coverage,
        cameras=cameras,
        references=tuple(references),
        seed=seed,
    )
