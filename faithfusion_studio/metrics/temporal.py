"""Temporal warp error: whether neighbouring frames show the same surfaces in the same colours.

Frame t + 1 is fetched to frame t along a flow; what differs there flickers. The flow comes from depth
and cameras, so it belongs to the static world: moving objects must be masked by the caller. Flow is
[H, W, 2] in pixels (x, y): the pixel p of frame t is at p + flow(p) in frame t + 1.

Source of the measure: Lai et al., "Learning Blind Video Temporal Consistency", 2018, with known depth
in place of an estimated flow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.metrics.images import MetricError

DEPTH_TOLERANCE = 0.05
"""Relative difference of depths up to which both frames see the same surface."""
ROUNDING = 1e-6
"""A pixel that does not move stays inside the picture in spite of rounding, pixels."""


@dataclass(frozen=True, eq=False)
class Flow:
    """Where the pixels of one frame are in the next one."""

    flow: Float[Tensor, "H W 2"]
    """Pixels (x, y)."""
    valid: Bool[Tensor, "H W"]
    """Has depth, lands inside the next frame, and is not hidden there."""


@dataclass(frozen=True)
class WarpError:
    """How far two neighbouring frames disagree along a flow."""

    l1: float
    """Mean absolute difference of colours, [0, 1]; NaN without a valid pixel."""
    rmse: float
    """Root mean square difference of colours."""
    valid_share: float
    """Share of the pixels that were compared."""


def flow_from_depth(
    depth: Float[Tensor, "H W"],
    camera: Camera,
    next_camera: Camera,
    next_depth: Float[Tensor, "H W"] | None = None,
    *,
    tolerance: float = DEPTH_TOLERANCE,
) -> Flow:
    """The flow of a static world.

    Args:
        depth: Along the camera's z axis, m; 0 or not finite = none.
        camera: Of this frame; its size is the depth's.
        next_camera: Of the next frame, of the same size.
        next_depth: Depth there, which tells hidden surfaces; None = nothing is taken as hidden.
        tolerance: Relative difference of depths up to which a surface is the same.

    Raises:
        MetricError: Depth and cameras differ in size.
    """
    size = (camera.height, camera.width)
    if tuple(depth.shape) != size or size != (next_camera.height, next_camera.width):
        raise MetricError(
            f"depth {tuple(depth.shape)} with cameras of {camera.width}x{camera.height} and "
            f"{next_camera.width}x{next_camera.height} pixels; expected one size."
        )
    z = torch.nan_to_num(depth.double(), nan=0.0, posinf=0.0)
    x, y = torch.meshgrid(
        torch.arange(camera.width, dtype=torch.float64) + 0.5,
        torch.arange(camera.height, dtype=torch.float64) + 0.5,
        indexing="xy",
    )
    rays = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.linalg.inv(camera.K).T
    motion = next_camera.viewmat @ camera.camtoworld
    moved = (rays * z[..., None]) @ motion[:3, :3].T + motion[:3, 3]
    pixels = moved @ next_camera.K.T
    at = pixels[..., :2] / pixels[..., 2:].clamp(min=1e-6)
    limits = at.new_tensor([camera.width, camera.height])
    inside = ((at >= 0.5 - ROUNDING) & (at <= limits - 0.5 + ROUNDING)).all(-1)
    valid = (z > 0) & (pixels[..., 2] > 1e-6) & inside
    if next_depth is not None:
        seen = sampled(torch.nan_to_num(next_depth.double())[..., None], at)[..., 0]
        valid &= (seen - moved[..., 2]).abs() <= tolerance * moved[..., 2]
    return Flow(at - torch.stack([x, y], -1), valid)


def sampled(
    image: Float[Tensor, "H W C"], at: Float[Tensor, "H2 W2 2"]
) -> Float[Tensor, "H2 W2 C"]:
    """Bilinear lookup at pixel positions (x, y), pixel centres at +0.5, edges replicated."""
    height, width = image.shape[:2]
    grid = at / at.new_tensor([width, height]) * 2 - 1
    return torch.nn.functional.grid_sample(
        image.permute(2, 0, 1)[None].double(),
        grid[None].double(),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )[0].permute(1, 2, 0)


def warp_error(
    image: Float[Tensor, "H W 3"],
    next_image: Float[Tensor, "H W 3"],
    flow: Flow,
    mask: Bool[Tensor, "H W"] | None = None,
) -> WarpError:
    """Difference of a frame and the next one fetched to it.

    Args:
        image: Frame t, [0, 1].
        next_image: Frame t + 1.
        flow: From `flow_from_depth`, or a known one.
        mask: Pixels that count besides being valid, e.g. what does not move.

    Raises:
        MetricError: Images and flow differ in size.
    """
    if image.shape != next_image.shape or image.shape[:2] != flow.valid.shape:
        raise MetricError(
            f"images {tuple(image.shape)} and {tuple(next_image.shape)} with a flow "
            f"{tuple(flow.flow.shape)}; expected one size."
        )
    height, width = image.shape[:2]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) + 0.5,
        torch.arange(width, dtype=torch.float64) + 0.5,
        indexing="ij",
    )
    fetched = sampled(next_image, torch.stack([x, y], -1) + flow.flow)
    counted = flow.valid if mask is None else flow.valid & mask
    difference = (fetched - image.double())[counted]
    share = float(counted.double().mean())
    if not len(difference):
        return WarpError(math.nan, math.nan, share)
    return WarpError(
        float(difference.abs().mean()), float(difference.square().mean().sqrt()), share
    )
