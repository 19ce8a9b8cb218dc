"""Depth of far things, found by where the recorded images agree.

What lies a hundred metres ahead moves by a few pixels over a drive, so a trained scene may place it far
too near; seen from the side it is then in the wrong place. Over a window of pixels those few pixels of
motion tell the distance well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from faithfusion_studio.cameras import Camera
from faithfusion_studio.repair.depth_repair import window_mean
from faithfusion_studio.repair.warping import SKY_DEPTH, reproject, sample


@dataclass(frozen=True)
class FarConfig:
    """The search for the distance of far things."""

    nearest: float = 40.0
    """Only depths beyond this are questioned, m."""
    factors: tuple[float, ...] = (1.0, 0.88, 0.76, 0.64, 0.52, 0.4, 0.28, 0.16, 0.05)
    """Candidates for true over assumed inverse depth, evenly spaced from 1 down."""
    grid: int = 160
    """Width of the grid on which the search runs, pixels."""
    window: float = 0.04
    """Half the window over which agreement is averaged, share of the width."""
    improvement: float = 0.9
    """A candidate must disagree less than this share of what the assumed depth does."""
    largest: float = 0.05
    """Squared colour difference at which one image counts no further against a candidate."""


def far_factor(
    camera: Camera,
    depth: Float32[Tensor, "H W"],
    views: Sequence[tuple[Camera, Float32[Tensor, "3 _ _"]]],
    config: FarConfig,
) -> Float32[Tensor, "H W"]:
    """True over assumed inverse depth of the far pixels of a view, 0..1; 1 elsewhere.

    Args:
        camera: The view.
        depth: Its assumed depth, m along z; sky at `SKY_DEPTH`.
        views: Recorded cameras and their images, any resolution.
        config: Candidates and windows.

    Source: plane sweep (Collins 1996) in scaled inverse depth.
    """
    one = torch.ones_like(depth)
    far = (depth > config.nearest) & (depth < 0.5 * SKY_DEPTH)
    if len(views) < 2 or not bool(far.any()):
        return one
    width = min(config.grid, camera.width)
    small = camera.resized(width, max(1, round(camera.height * width / camera.width)))
    shape = (small.height, small.width)
    coarse = functional.interpolate(depth[None, None], shape, mode="nearest")[0, 0]
    mask = ((coarse > config.nearest) & (coarse < 0.5 * SKY_DEPTH)).to(torch.float32)
    radius = max(1, round(config.window * width))
    near_share = window_mean(mask[None], radius)[0].clamp(min=1e-6)
    costs = torch.stack(
        [_disagreement(small, coarse / f, views, config.largest) for f in config.factors]
    )
    costs = window_mean(costs * mask, radius) / near_share + 1e-4
    factor = torch.where(mask > 0, _best(costs, config), torch.ones_like(mask))
    smooth = window_mean((factor * mask)[None], 2)[0]
    smooth = smooth / window_mean(mask[None], 2)[0].clamp(min=1e-6)
    factor = torch.where(mask > 0, smooth, torch.ones_like(mask))
    factor = functional.interpolate(factor[None, None], depth.shape, mode="nearest")[0, 0]
    return torch.where(far, factor, one)


def _best(costs: Tensor, config: FarConfig) -> Tensor:
    """The factor of least cost [H, W], between candidates by a parabola, 1 where little is gained."""
    factors = torch.tensor(config.factors)
    index = costs.argmin(0)
    low, middle, high = (
        costs.gather(0, (index.clamp(1, len(factors) - 2) + k)[None])[0] for k in (-1, 0, 1)
    )
    shift = (low - high) / (2 * (low - 2 * middle + high)).clamp(min=1e-9)
    inner = (index > 0) & (index < len(factors) - 1)
    step = float(factors[1] - factors[0])
    factor = factors[index] + torch.where(inner, shift.clamp(-0.5, 0.5) * step, 0.0)
    gained = costs.amin(0) < config.improvement * costs[0]
    return torch.where(gained, factor, torch.ones_like(factor)).clamp(float(factors[-1]), 1.0)


def _disagreement(
    camera: Camera, depth: Tensor, views: Sequence[tuple[Camera, Tensor]], largest: float
) -> Tensor:
    """Colour variance [H, W] among the images at one assumed depth, truncated per image."""
    depth = depth.clamp(max=SKY_DEPTH)
    colors, inside = [], []
    for view, image in views:
        points = reproject(camera, view, depth)
        colors.append(sample(image, points, view))
        inside.append(points.inside)
    stack = torch.stack(colors)  # [V, 3, H, W]
    weight = torch.stack(inside)[:, None].to(torch.float32)
    count = weight.sum(0).clamp(min=1)
    mean = (stack * weight).sum(0) / count
    return (((stack - mean) ** 2).clamp(max=largest) * weight).sum(0).mean(0) / count[0]
