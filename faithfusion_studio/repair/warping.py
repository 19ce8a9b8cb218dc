"""Geometry of reprojection: splat recorded depths into a novel view and look colours up again.

Frames: all points live in OpenCV camera axes (x right, y down, z forward), metres. Relative poses are
formed in float64 and used in float32. Sky is a surface at `SKY_DEPTH`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn import functional

from faithfusion_studio.cameras import Camera

SKY_DEPTH = 1e4
"""Where sky is taken to be, m: far enough that a few metres of offset move it by no pixel."""


class Lens(NamedTuple):
    """Intrinsics as plain numbers."""

    fx: float
    fy: float
    cx: float
    cy: float


class Projected(NamedTuple):
    """Pixels of one view projected into another."""

    u: Tensor
    """Column, pixel centres at +0.5."""
    v: Tensor
    z: Tensor
    """Depth in the other view, m."""
    inside: Tensor
    """True where the point is in front and inside the image."""


def lens(camera: Camera) -> Lens:
    """The intrinsics of a camera as numbers."""
    K = camera.K
    return Lens(float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))


def reproject(
    source: Camera, target: Camera, depth: Float32[Tensor, "h w"], stride: int = 1
) -> Projected:
    """Lift every stride-th pixel of a view with its depth and project it into another view.

    Args:
        source: The view the pixels belong to.
        target: The view they are projected into.
        depth: Metres along the source's z, > 0.
        stride: Take every stride-th row and column.
    """
    a, b = lens(source), lens(target)
    height, width = depth.shape
    x = (torch.arange(0, width, stride, dtype=torch.float32) + 0.5 - a.cx) / a.fx
    y = (torch.arange(0, height, stride, dtype=torch.float32) + 0.5 - a.cy) / a.fy
    relative = (target.viewmat @ source.camtoworld).to(torch.float32)
    (r00, r01, r02, t0), (r10, r11, r12, t1), (r20, r21, r22, t2) = relative[:3].tolist()
    z = depth[::stride, ::stride]
    y = y[:, None]
    px = (x * r00 + (y * r01 + r02)) * z + t0
    py = (x * r10 + (y * r11 + r12)) * z + t1
    pz = (x * r20 + (y * r21 + r22)) * z + t2
    scale = 1.0 / pz.clamp(min=1e-3)
    u = px * scale * b.fx + b.cx
    v = py * scale * b.fy + b.cy
    inside = (pz > 0.05) & (u >= 0) & (u < target.width) & (v >= 0) & (v < target.height)
    return Projected(u, v, pz, inside)


def depth_edges(depth: Float32[Tensor, "h w"], tolerance: float) -> Bool[Tensor, "h w"]:
    """Pixels whose depth does not continue on both sides, so that it may mix two surfaces.

    Inverse depth is linear in pixel coordinates on every plane, however slanted; a relative second
    difference above the tolerance is therefore an edge and not a slope.

    Args:
        depth: Metres along z, > 0.
        tolerance: Relative second difference of inverse depth.
    """
    inverse = 1.0 / depth
    padded = functional.pad(inverse[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    centre = 2 * inverse
    horizontal = (padded[1:-1, :-2] + padded[1:-1, 2:] - centre).abs()
    vertical = (padded[:-2, 1:-1] + padded[2:, 1:-1] - centre).abs()
    return torch.maximum(horizontal, vertical) > tolerance * inverse


def splat_mean(
    splats: Sequence[tuple[Projected, Bool[Tensor, "_ _"]]], height: int, width: int, band: float
) -> Float32[Tensor, "H W"]:
    """One z-buffer for the points of several views, averaged over the nearest surface.

    Args:
        splats: Projected points of each view and which of them are valid.
        height: Of the z-buffer, pixels.
        width: Of the z-buffer, pixels.
        band: Relative depth behind the nearest point within which points are the same surface.

    Returns:
        Metres; infinite where nothing lands.
    """
    parts = []
    for points, valid in splats:
        keep = (points.inside & valid).flatten().nonzero().squeeze(1)
        u = points.u.flatten()[keep].long().clamp(max=width - 1)
        v = points.v.flatten()[keep].long().clamp(max=height - 1)
        parts.append((v * width + u, points.z.flatten()[keep]))
    if not parts:
        return torch.full((height, width), torch.inf)
    index = torch.cat([part[0] for part in parts])
    depth = torch.cat([part[1] for part in parts])
    nearest = torch.full((height * width,), torch.inf)
    nearest.scatter_reduce_(0, index, depth, reduce="amin", include_self=True)
    same = (depth < nearest[index] * (1 + band)).to(torch.float32)
    sums = torch.zeros(2, height * width)
    sums[0].index_add_(0, index, same / depth)
    sums[1].index_add_(0, index, same)
    return (sums[1] / sums[0]).nan_to_num(torch.inf).view(height, width)


def sample(
    image: Float32[Tensor, "C h w"], points: Projected, camera: Camera
) -> Float32[Tensor, "C H W"]:
    """Bilinear lookup at projected positions; outside the image the border is repeated.

    Args:
        image: Of any resolution; it fills the field of view of `camera`.
        points: Positions in pixels of `camera`.
        camera: The view the image belongs to.
    """
    grid = torch.stack(
        [points.u * (2 / camera.width) - 1, points.v * (2 / camera.height) - 1], dim=-1
    )
    return functional.grid_sample(
        image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]


def close_cracks(zbuffer: Float32[Tensor, "H W"], reach: int = 2) -> Float32[Tensor, "H W"]:
    """Empty the pixels of a z-buffer through which a farther surface shows between nearer ones.

    A pixel is a crack where, up and down or left and right at up to `reach` pixels, both sides are
    nearer than 90 % of its own depth.

    Args:
        zbuffer: Metres; infinite where empty.
        reach: Half the widest crack, pixels.
    """
    crack = torch.zeros_like(zbuffer, dtype=torch.bool)
    for k in range(1, reach + 1):
        p = functional.pad(zbuffer[None, None], (k, k, k, k), mode="replicate")[0, 0]
        h, w = zbuffer.shape
        across = torch.maximum(p[k : k + h, :w], p[k : k + h, 2 * k :])
        down = torch.maximum(p[:h, k : k + w], p[2 * k :, k : k + w])
        crack |= torch.minimum(across, down) < 0.9 * zbuffer
    return torch.where(crack, torch.full_like(zbuffer, torch.inf), zbuffer)


def fill_gaps(zbuffer: Float32[Tensor, "H W"], longest: int) -> Float32[Tensor, "H W"]:
    """Interpolate short gaps of a z-buffer along the direction in which they are shortest.

    Inverse depth is interpolated, which is exact on planes. Where the two ends belong to different
    surfaces the farther one continues: what a gap hides is the background.

    Args:
        zbuffer: Metres; infinite where empty.
        longest: Gaps of more pixels stay empty.
    """
    for _ in range(2):  # the second pass reaches pixels whose whole row and column were empty
        across, width = _bridge(zbuffer, 1)
        down, height = _bridge(zbuffer, 0)
        filled = torch.where(width < height, across, down)
        short = torch.minimum(width, height) <= longest
        zbuffer = torch.where(torch.isfinite(zbuffer) | ~short, zbuffer, filled)
    return zbuffer


def _bridge(zbuffer: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Depth interpolated along one axis between the nearest filled pixels, and the gap's length."""
    size = zbuffer.shape[dim]
    shape = [1, 1]
    shape[dim] = size
    index = torch.arange(size).view(shape).expand(zbuffer.shape)
    filled = torch.isfinite(zbuffer)
    before = torch.where(filled, index, -1).cummax(dim).values
    after = torch.where(filled, index, size).flip(dim).cummin(dim).values.flip(dim)
    closed = (before >= 0) & (after < size)
    low = 1 / zbuffer.gather(dim, before.clamp(min=0))
    high = 1 / zbuffer.gather(dim, after.clamp(max=size - 1))
    fraction = (index - before) / (after - before).clamp(min=1)
    same = (low - high).abs() < 0.25 * torch.maximum(low, high)
    inverse = torch.where(same, torch.lerp(low, high, fraction), torch.minimum(low, high))
    gap = torch.where(closed, after - before, 10**6)
    return 1 / inverse.clamp(min=1 / SKY_DEPTH), gap
