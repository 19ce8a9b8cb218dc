"""Files of training clips from tensors, with cameras that drive towards a wall."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from wall_world import wall_camera, wall_view

from faithfusion_studio.repair.temporal_attention import View


def wall_views(frames: int, size: tuple[int, int]) -> tuple[View, Tensor, Tensor]:
    """Cameras 1 m apart, and the exact colours [T, 3, H, W] and depth [T, H, W] they see."""
    cameras = [wall_camera(float(t), 1.0, size, float(t)) for t in range(frames)]
    colors, depths = zip(*(wall_view(camera) for camera in cameras), strict=True)
    view = View(
        torch.stack([camera.K for camera in cameras]),
        torch.stack([camera.camtoworld for camera in cameras]),
    )
    return view, torch.stack(colors).permute(0, 3, 1, 2).contiguous(), torch.stack(depths)


def save_clips(degraded: Tensor, truth: Tensor, path: Path) -> Path:
    """Write clips [N, T, C, H, W] and their truth as `cached_pairs` does."""
    count, frames, _, height, width = degraded.shape
    view, _, depth = wall_views(frames, (width, height))
    tensors = {
        "degraded": degraded.half(),
        "truth": truth.half(),
        "depth": depth.half().expand(count, -1, -1, -1).contiguous(),
        "intrinsics": view.intrinsics.expand(count, -1, -1, -1).contiguous(),
        "camtoworld": view.camtoworld.expand(count, -1, -1, -1).contiguous(),
    }
    save_file(tensors, path)
    return path
