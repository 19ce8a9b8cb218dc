"""How far warped colours are believed against a render: a logistic regression on what both show.

A warp is right where the recorded views agree about it, and it matters where it differs from the render;
where it puts another surface than the render, or was seen at an angle only, it is wrong more often. The
weights below were fitted so that the blend of render and warp comes closest to the true view. Nothing of
the truth enters at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.repair.base import WarpFeatures
from faithfusion_studio.repair.depth_repair import window_mean

FARTHEST = 200.0
"""Depths beyond this, sky among them, count as equal, m."""


@dataclass(frozen=True)
class BeliefConfig:
    """Weights of the regression; logarithms are natural.

    Fitted to the mean PSNR of 12 frames at +3 m of the procedural streets 101, 102 and 103 (480x270) and
    no others. Fitted to two of them it raised the gain of the ungated third by 0.2 to 0.3 dB over belief
    that falls with the disagreement alone.
    """

    bias: float = -9.4
    disagreement: float = -1.3
    """Of the logarithm of the colour variance among the recorded views."""
    difference: float = 0.6
    """Of the logarithm of the squared difference between warp and render."""
    weight: float = 0.51
    """Of the logarithm of the summed weight of the recorded views."""
    depth: float = -0.48
    """Of the logarithm of the relative difference between warped and rendered depth."""
    eig: float = 2.7
    """Of calibrated EIG; the less is known of a pixel, the more the warp is believed."""
    color_radius: int = 2
    """Radius over which colour differences are averaged, pixels."""
    depth_radius: int = 4
    """The same for depth."""


def warp_belief(
    features: WarpFeatures,
    render: Float32[Tensor, "H W 3"],
    depth: Float32[Tensor, "H W"],
    calibrated_eig: Float32[Tensor, "H W"],
    config: BeliefConfig,
) -> Float32[Tensor, "H W"]:
    """Share of the warp in the best blend with the render, 0..1, as expected from what is known.

    Args:
        features: What the recorded views say.
        render: The novel view as rendered, [0, 1].
        depth: Its depth, m along z; 0 where nothing is.
        calibrated_eig: In [0, 1].
        config: Weights.
    """
    variance = window_mean(features.variance[None], config.color_radius)[0]
    squared = (features.fused - render).square().mean(-1)
    difference = window_mean(squared[None], config.color_radius)[0]
    apart = (features.depth.clamp(max=FARTHEST) / depth.clamp(0.5, FARTHEST)).log().abs()
    apart = window_mean(apart.clamp(max=0.5)[None], config.depth_radius)[0]
    return torch.sigmoid(
        config.bias
        + config.disagreement * (variance + 1e-5).log()
        + config.difference * (difference + 1e-4).log()
        + config.weight * features.weight.clamp(0.3, 8).log()
        + config.depth * (apart + 3e-3).log()
        + config.eig * calibrated_eig
    )
