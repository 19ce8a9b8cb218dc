"""Depth known in a view nobody recorded: measured points that are not hidden, or what a repair agreed on."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn.functional import max_pool2d

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.losses import SparseDepth
from faithfusion_studio.fusion.repairing import RepairedFrame

REACHES = (1, 2, 4, 8)
"""Half footprints of points on the image, pixels; each point takes the nearest to its own."""
SURFACE = 0.05
"""Points this share of the depth behind the nearest one lie on the same surface."""
NEAREST, FARTHEST = 0.5, 80.0
"""Depths outside are not used, m."""
STRIDE = 3
"""Pixels between the agreed depths that are used."""
MIN_CONFIDENCE = 0.5


def unhidden_points(
    points: Float32[Tensor, "M 3"], camera: Camera, spacing: float = 0.15
) -> SparseDepth:
    """Measured points seen from a camera, without those that something measured stands before.

    A point covers a disk of the points' own spacing, so a near surface hides what lies behind it also between
    its points. Of several points on one pixel the nearest stays.

    Args:
        points: World, m; of things that do not move.
        camera: Where from; need not have been recorded.
        spacing: Distance between neighbouring points of a surface, m.
    """
    view, K = camera.viewmat.to(torch.float32), camera.K.to(torch.float32)
    local = points @ view[:3, :3].T + view[:3, 3]
    local = local[(local[:, 2] > NEAREST) & (local[:, 2] < FARTHEST)]
    u = torch.floor(K[0, 0] * local[:, 0] / local[:, 2] + K[0, 2]).long()
    v = torch.floor(K[1, 1] * local[:, 1] / local[:, 2] + K[1, 2]).long()
    inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    pixels, z = (v * camera.width + u)[inside], local[inside, 2]
    front = _front(pixels, z, camera, spacing).reshape(-1)
    shown = z <= (1 + SURFACE) * front[pixels]
    nearest = _nearest(pixels[shown], z[shown], camera).reshape(-1)
    found = torch.isfinite(nearest).nonzero().squeeze(-1)
    return SparseDepth(found, nearest[found])


def _front(pixels: Tensor, z: Tensor, camera: Camera, spacing: float) -> Float32[Tensor, "H W"]:
    """Depth of the nearest point whose footprint covers each pixel, m; infinite where none does."""
    half = 0.5 * spacing * float(camera.K[0, 0]) / z
    level = torch.bucketize(half, torch.tensor(REACHES[1:], dtype=half.dtype), right=True)
    front = torch.full((camera.height, camera.width), torch.inf)
    for index, reach in enumerate(REACHES):
        chosen = level == index
        buffer = _nearest(pixels[chosen], z[chosen], camera)
        spread = -max_pool2d(-buffer[None, None], 2 * reach + 1, 1, reach)[0, 0]
        front = torch.minimum(front, spread)
    return front


def _nearest(pixels: Tensor, z: Tensor, camera: Camera) -> Float32[Tensor, "H W"]:
    """A z-buffer: the least depth of the points on each pixel, infinite without one."""
    buffer = torch.full((camera.height * camera.width,), torch.inf)
    buffer.scatter_reduce_(0, pixels, z, "amin")
    return buffer.view(camera.height, camera.width)


def agreed_depth(frame: RepairedFrame) -> SparseDepth:
    """Depth of repaired pixels on which the recorded views agreed, on a grid of every third pixel."""
    usable = _reprojected(frame) & (frame.depth > NEAREST) & (frame.depth < FARTHEST)
    grid = torch.zeros_like(usable)
    grid[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE] = True
    pixels = (usable & grid).reshape(-1).nonzero().squeeze(-1)
    return SparseDepth(pixels, frame.depth.reshape(-1)[pixels])


def _reprojected(frame: RepairedFrame) -> Bool[Tensor, "H W"]:
    return (frame.pixel_provenance == 1) & (frame.confidence > MIN_CONFIDENCE)
