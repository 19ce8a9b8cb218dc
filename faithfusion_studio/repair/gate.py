"""The arithmetic of the gate: where a repair may show, in which colours, and when it drifted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class GateConfig:
    """How a repaired frame is blended into its render."""

    ramp: float = 0.05
    """Calibrated EIG over which the repair fades in above the threshold; larger is softer."""
    strength: float = 1.0
    """Share of the repair that shows where the gate is open, 0..1."""
    match_cell: int = 16
    """Cell of the colour match, pixels; larger corrects only slower changes of colour."""
    match_prior: float = 2.0
    """Cells' worth of belief that no colour change is needed; larger corrects less."""
    drift_limit: float = 0.12
    """Mean difference of cell means on HPR pixels, colour unit, above which a frame is rejected."""
    min_check_pixels: int = 64
    """With fewer comparable HPR pixels neither colour nor drift can be judged."""


def blend_gate(
    calibrated_eig: Float32[Tensor, "H W"],
    ucr: Bool[Tensor, "H W"],
    coverage: Bool[Tensor, "H W"],
    threshold: float,
    config: GateConfig,
) -> Float32[Tensor, "H W"]:
    """How much of the repair shows, 0..1: exactly 0 on HPR, the full strength where uncovered.

    Args:
        calibrated_eig: In [0, 1].
        ucr: True where pixels may change.
        coverage: False where no Gaussian reaches.
        threshold: Calibrated EIG at which the ramp starts.
        config: Width of the ramp, strength.

    Source: FaithFusion, EIG-gated blending; smoothstep instead of its fixed ranges.
    """
    x = ((_local_mean(calibrated_eig) - threshold) / config.ramp).clamp(0, 1)
    gate = x * x * (3 - 2 * x)
    gate = torch.where(coverage, gate, torch.ones_like(gate))
    return torch.where(ucr, config.strength * gate, torch.zeros_like(gate))


def match_colors(
    repaired: Float32[Tensor, "H W 3"],
    render: Float32[Tensor, "H W 3"],
    where: Bool[Tensor, "H W"],
    config: GateConfig,
) -> Float32[Tensor, "H W 3"]:
    """The repaired image with a low-frequency gain and offset towards the render's colours.

    One gain per channel and a smooth offset field are fitted to cell means, so texture and
    sharpness do not enter.

    Args:
        repaired: The engine's colours.
        render: The colours to meet.
        where: HPR pixels for which the engine had evidence; too few leave the colours alone.
        config: Cell size and prior.

    Returns:
        Matched colours in [0, 1].
    """
    if int(where.sum()) < config.min_check_pixels:
        return repaired.clamp(0, 1)
    source, target, weight = _cells(repaired, render, where, config.match_cell)
    gain, offset = _global_fit(source, target, weight)
    residual = target - gain * source - offset
    field = _smooth_field(residual, weight, config.match_prior)
    height, width = render.shape[:2]
    field = functional.interpolate(field[None], (height, width), mode="bilinear")[0]
    matched = gain * repaired.permute(2, 0, 1) + offset + field
    return matched.permute(1, 2, 0).clamp(0, 1)


def drift(
    repaired: Float32[Tensor, "H W 3"],
    render: Float32[Tensor, "H W 3"],
    where: Bool[Tensor, "H W"],
    config: GateConfig,
) -> float:
    """How far a repair is from the render on HPR pixels, apart from a change of exposure.

    Returns:
        Mean difference of the means of small cells after the best gain and offset per channel, colour
        unit; 0 with too few pixels to judge.
    """
    if int(where.sum()) < config.min_check_pixels:
        return 0.0
    source, target, weight = _cells(repaired, render, where, config.match_cell // 2)
    gain, offset = _global_fit(source, target, weight)
    difference = (gain * source + offset - target).abs().mean(0, keepdim=True)
    return float((difference * weight).sum() / weight.sum())


def _global_fit(source: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset per channel [3, 1, 1] from weighted cell means [3, h, w], near 1 and 0 if unsure."""
    total = weight.sum()
    mean_s = (weight * source).sum((1, 2), keepdim=True) / total
    mean_t = (weight * target).sum((1, 2), keepdim=True) / total
    spread = (weight * (source - mean_s) ** 2).sum((1, 2), keepdim=True) / total
    joint = (weight * (source - mean_s) * (target - mean_t)).sum((1, 2), keepdim=True) / total
    ridge = 1e-3
    gain = ((joint + ridge) / (spread + ridge)).clamp(0.7, 1.4)
    return gain, mean_t - gain * mean_s


def _cells(
    repaired: Tensor, render: Tensor, where: Tensor, cell: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Means of both images over the selected pixels of each cell [3, h, w], and their share [1, h, w]."""
    mask = where.to(torch.float32)
    stack = torch.cat([repaired, render, torch.ones_like(mask)[..., None]], dim=-1)
    stack = (stack * mask[..., None]).permute(2, 0, 1)[None]
    pooled = functional.avg_pool2d(stack, cell, ceil_mode=True, count_include_pad=False)[0]
    share = pooled[6:7]
    means = pooled[:6] / share.clamp(min=1e-6)
    return means[:3], means[3:6], share


def _smooth_field(residual: Tensor, weight: Tensor, prior: float) -> Tensor:
    """Normalised box blur, twice, of cell residuals [3, h, w]; falls to 0 far from any weight."""
    stack = torch.cat([residual * weight, weight])[None]
    for _ in range(2):
        stack = functional.avg_pool2d(stack, 5, stride=1, padding=2)
    stack = stack[0] * 25.0
    return stack[:3] / (stack[3:4] + prior)


def _local_mean(values: Tensor) -> Tensor:
    """5x5 mean of a map [H, W] with the border replicated."""
    padded = functional.pad(values[None, None], (2, 2, 2, 2), mode="replicate")
    return functional.avg_pool2d(padded, 5, stride=1)[0, 0]
