"""Better depth at recorded poses: anchored to measured points, smoothed without blurring edges.

Depth that a trained scene renders is biased by a few percent where Gaussians overlap or the view is
grazing, and it ripples on roads. Points of structure from motion or laser sweeps do not.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional

from faithfusion_studio.cameras import Camera
from faithfusion_studio.repair.warping import lens

LEVELS = ((0.1, 0.5), (0.05, 0.25), (0.025, 0.15), (0.0125, 0.1), (0.006, 0.07), (0.004, 0.05))
"""Reach of each correction (standard deviation, share of the image width) and the relative distance
up to which a point belongs to the surface; each level works on the depth the one before left."""


def anchor_depth(
    depth: Float32[Tensor, "h w"],
    camera: Camera,
    points: Float32[Tensor, "M 3"],
    *,
    prior: float = 0.02,
) -> Float32[Tensor, "h w"]:
    """Rendered depth, corrected by the measured points that lie near its surface.

    Args:
        depth: Metres along z at the camera; 0 = nothing.
        camera: Pose and intrinsics that belong to `depth`.
        points: Measured points, world, m.
        prior: Points per pixel that it takes to correct by half; larger trusts the render more.

    Returns:
        Metres along z; unchanged where no point is near.
    """
    height, width = depth.shape
    for spread, tolerance in LEVELS:
        index, ratio = _log_ratios(depth, camera, points, tolerance)
        sums = torch.zeros(2, height * width)
        sums.index_add_(1, index, torch.stack([ratio, torch.ones_like(ratio)]))
        blurred = _gaussian(sums.view(2, height, width), max(0.7, spread * width))
        depth = depth * torch.exp(blurred[0] / (blurred[1] + prior))
    return depth


def _log_ratios(
    depth: Tensor, camera: Camera, points: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Pixel index [P] and log(measured / rendered depth) [P] of the points near the surface."""
    height, width = depth.shape
    a = lens(camera)
    world_to_camera = camera.viewmat.to(torch.float32)
    local = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    local = local[local[:, 2] > 0.2]
    z = local[:, 2]
    u = local[:, 0] / z * a.fx + a.cx
    v = local[:, 1] / z * a.fy + a.cy
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    index = v[inside].long() * width + u[inside].long()
    rendered = depth.flatten()[index]
    ratio = torch.log(z[inside] / rendered.clamp(min=1e-3))
    near = (rendered > 0) & (ratio.abs() < tolerance)
    return index[near], ratio[near]


def _gaussian(images: Tensor, std: float) -> Tensor:
    """Gaussian blur of images [C, h, w], zero outside, std in pixels; cut off at three std."""
    import cv2

    size = 2 * max(1, round(3 * std)) + 1
    blurred = [
        cv2.GaussianBlur(image.numpy(), (size, size), std, borderType=cv2.BORDER_CONSTANT)
        for image in images
    ]
    return torch.from_numpy(np.stack(blurred))


def smooth_planes(
    depth: Float32[Tensor, "h w"], radius: int, noise: float
) -> Float32[Tensor, "h w"]:
    """Remove ripples from depth: where a window is nearly planar, take the plane through it.

    Inverse depth is linear on planes. In each window a plane is fitted to it; what the plane does not
    explain is kept in proportion to how far it exceeds the noise, so edges stay.

    Args:
        depth: Metres along z, > 0.
        radius: Half the window, pixels.
        noise: Relative deviation from the plane that counts as noise.

    Source: the guided filter of He et al. with pixel coordinates as guide, blended as a Wiener filter;
    coefficients on a coarser grid as in the fast guided filter (He and Sun 2015).
    """
    height, width = depth.shape
    inverse = 1 / depth
    x = ((torch.arange(width) + 0.5 - width / 2) / radius).expand(height, width)
    y = ((torch.arange(height) + 0.5 - height / 2) / radius)[:, None].expand(height, width)
    moments = torch.stack(
        [x, y, x * x, x * y, y * y, inverse, inverse * x, inverse * y, inverse * inverse]
    )
    step = max(1, radius // 4)
    if step > 1:
        moments = functional.avg_pool2d(
            moments[None], step, ceil_mode=True, count_include_pad=False
        )[0]
    coarse = max(1, round(radius / step))
    keep, plane = _plane_fit(window_mean(moments, coarse), noise)
    blended = window_mean(torch.cat([keep[None], (1 - keep) * plane]), coarse)
    if step > 1:
        blended = functional.interpolate(blended[None], (height, width), mode="bilinear")[0]
    smooth = blended[0] * inverse + blended[1] + blended[2] * x + blended[3] * y
    return 1 / torch.where(smooth > 0, smooth, inverse)


def _plane_fit(moments: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Share of the original to keep [h, w] and the plane (constant, slopes) [3, h, w] of each window."""
    mx, my, mxx, mxy, myy, mean, mix, miy, mii = moments
    cxx, cxy, cyy = mxx - mx * mx + 1e-4, mxy - mx * my, myy - my * my + 1e-4
    cxi, cyi, cii = mix - mx * mean, miy - my * mean, mii - mean * mean
    determinant = cxx * cyy - cxy * cxy
    slope_x = (cxi * cyy - cyi * cxy) / determinant
    slope_y = (cyi * cxx - cxi * cxy) / determinant
    variance = (cii - slope_x * cxi - slope_y * cyi).clamp(min=0)
    keep = variance / (variance + (noise * mean) ** 2)
    return keep, torch.stack([mean - slope_x * mx - slope_y * my, slope_x, slope_y])


def window_mean(images: Float32[Tensor, "C h w"], radius: int) -> Float32[Tensor, "C h w"]:
    """Box means over the part of the window inside the image."""
    import cv2

    height, width = images.shape[1:]
    rows, columns = (
        (torch.arange(n).clamp(max=radius) + torch.arange(n).flip(0).clamp(max=radius) + 1.0)
        for n in (height, width)
    )
    size, zero = (2 * radius + 1, 2 * radius + 1), cv2.BORDER_CONSTANT
    sums = [cv2.boxFilter(i.numpy(), -1, size, normalize=False, borderType=zero) for i in images]
    return torch.from_numpy(np.stack(sums)) / (rows[:, None] * columns)
