"""Error of rendered depth against true depth, both in metres along the camera's z axis, never rescaled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithfusion_studio.metrics.images import MetricError

FARTHEST = 80.0
"""True depths beyond are not counted, m: the range of the LiDAR benchmarks."""
RATIO = 1.25
PROTOCOL = (
    "depth along z in metres, not rescaled; pixels with true depth in (0, {farthest:g}] m; where "
    "nothing was rendered a pixel is left out of the errors and counts as not within 1.25"
)


@dataclass(frozen=True)
class DepthErrors:
    """Errors of one depth image; NaN where nothing could be compared."""

    abs_rel: float
    """Mean of |d - t| / t."""
    rmse: float
    """Root mean square of d - t, m."""
    within_125: float
    """Share of the counted pixels with max(d / t, t / d) < 1.25; a pixel without render is not."""
    rendered_share: float
    """Share of the counted pixels where a depth was rendered."""
    counted: int
    """Pixels with a true depth in range."""


def depth_protocol(farthest: float = FARTHEST) -> str:
    """What was measured, in words."""
    return PROTOCOL.format(farthest=farthest)


def depth_errors(
    depth: Float[Tensor, "H W"],
    truth: Float[Tensor, "H W"],
    mask: Bool[Tensor, "H W"] | None = None,
    *,
    farthest: float = FARTHEST,
) -> DepthErrors:
    """Absolute relative error, RMSE and the share within a factor of 1.25.

    Args:
        depth: Rendered, m; 0 or not finite = nothing there.
        truth: True, m; 0 or not finite = none (sky).
        mask: Pixels that count; None = all.
        farthest: True depths beyond are left out, m.

    Raises:
        MetricError: The maps differ in size.

    Source: Eigen et al. 2014, whose median scaling is not applied.
    """
    if depth.shape != truth.shape or (mask is not None and mask.shape != truth.shape):
        raise MetricError(
            f"depth {tuple(depth.shape)} against {tuple(truth.shape)}; expected one size."
        )
    counted = torch.isfinite(truth) & (truth > 0) & (truth <= farthest)
    if mask is not None:
        counted &= mask
    d, t = depth[counted].double(), truth[counted].double()
    there = torch.isfinite(d) & (d > 0)
    if not bool(there.any()):
        none = math.nan if len(t) == 0 else 0.0
        return DepthErrors(math.nan, math.nan, none, none, len(t))
    error = (d - t)[there]
    ratio = torch.maximum(d[there] / t[there], t[there] / d[there])
    return DepthErrors(
        abs_rel=float((error.abs() / t[there]).mean()),
        rmse=float(error.square().mean().sqrt()),
        within_125=float((ratio < RATIO).sum()) / len(t),
        rendered_share=float(there.double().mean()),
        counted=len(t),
    )
