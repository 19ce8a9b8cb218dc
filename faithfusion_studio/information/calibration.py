"""One monotone map per scene from nats to [0, 1], and how well an uncertainty ranks true errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

RECORDED_SHARE, RECORDED_VALUE = 0.8, 0.4
"""This share of the recorded pixels is more certain than what is mapped to this value."""
KNOTS = 17
"""Knots per branch of the map, which is linear in the logarithm of the nats."""
CURVE_POINTS = 100
"""Fractions at which a sparsification curve is sampled, 0 to 0.999."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A monotone, piecewise linear map: 0 = as certain as the middle recorded pixel, 1 = never seen.

    Fixed when the evidence is computed, so that a threshold means the same on every view of a scene.
    """

    knots: Float32[Tensor, "Q 2"]
    """Nats, calibrated value in [0, 1]; both ascending."""

    def apply(self, nats: Float32[Tensor, "*B"]) -> Float32[Tensor, "*B"]:
        """Calibrated values of nats; flat outside the knots."""
        x, y = self.knots.to(nats.device).unbind(1)
        x = x.contiguous()
        high = torch.searchsorted(x, nats.contiguous()).clamp(1, len(x) - 1)
        low = high - 1
        fraction = (nats - x[low]) / (x[high] - x[low]).clamp(min=1e-12)
        return y[low] + fraction.clamp(0, 1) * (y[high] - y[low])


def void_nats(void_std: float, noise_std: float) -> float:
    """Nats of a pixel behind which nothing was ever seen."""
    return 1.5 * math.log1p((void_std / noise_std) ** 2)


def fit_calibration(recorded: Sequence[Float32[Tensor, "*_"]], void: float) -> Calibration:
    """The map of a scene from the EIG of its recorded views, linear in log nats between three anchors.

    0 is the median recorded pixel, 0.4 the recorded pixel than which 80 % are more certain, 1 the void: so
    the threshold 0.4 asks on every scene for what is known worse than four fifths of the recording.

    Args:
        recorded: EIG maps of recorded views, nats; may be empty.
        void: Nats of a pixel behind which nothing was ever seen.
    """
    if not recorded:
        return Calibration(torch.tensor([[0.0, 0.0], [void, 1.0]]))
    values = torch.cat([m.reshape(-1)[:: max(1, m.numel() // 20000)] for m in recorded])
    median, outer = torch.quantile(values, torch.tensor([0.5, RECORDED_SHARE])).tolist()
    outer = min(max(outer, 1.1 * median, 1e-6), 0.5 * void)
    median = min(max(median, 1e-7), outer / 1.1)
    inner = torch.linspace(math.log(median), math.log(outer), KNOTS)
    rest = torch.linspace(math.log(outer), math.log(void), KNOTS)[1:]
    low = torch.linspace(0, RECORDED_VALUE, KNOTS)
    high = torch.linspace(RECORDED_VALUE, 1, KNOTS)[1:]
    return Calibration(torch.stack([torch.cat([inner, rest]).exp(), torch.cat([low, high])], dim=1))


def sparsification(
    uncertainty: Float[Tensor, "*S"], error: Float[Tensor, "*S"]
) -> tuple[float, float]:
    """How well an uncertainty ranks errors: area between its curve and the best one, and rank correlation.

    Args:
        uncertainty: Any scale; larger is more uncertain.
        error: Errors >= 0 of the same pixels; two-dimensional for the correlation to be pooled.

    Returns:
        AUSE (0 is perfect) and Spearman correlation, after 8x8 pooling where the input is an image.

    Source: Ilg et al. 2018; both curves are divided by the larger maximum.
    """
    flat_error = error.reshape(-1).double()
    by_uncertainty = _curve(uncertainty.reshape(-1), flat_error)
    by_error = _curve(flat_error, flat_error)
    top = torch.maximum(by_uncertainty.max(), by_error.max()).clamp(min=1e-30)
    removed = torch.linspace(0, 0.999, CURVE_POINTS, dtype=torch.float64)
    area = float(torch.trapezoid((by_uncertainty - by_error) / top, removed))
    return area, spearman_pooled(uncertainty, error)


def _curve(ranking: Tensor, error: Tensor) -> Tensor:
    order = torch.argsort(ranking, stable=True)
    means = torch.cumsum(error[order], 0) / torch.arange(1, len(error) + 1, dtype=torch.float64)
    removed = torch.linspace(0, 0.999, CURVE_POINTS, dtype=torch.float64)
    kept = ((1 - removed) * len(error)).round().long().clamp(min=1)
    return means[kept - 1]


def spearman_pooled(a: Float[Tensor, "*S"], b: Float[Tensor, "*S"], *, cell: int = 8) -> float:
    """Spearman's rank correlation of two maps after averaging over square cells; 0 where one is flat.

    Args:
        a: A map.
        b: Another of the same shape; images are pooled, anything else is taken as it is.
        cell: Side of a cell, pixels.
    """
    if a.ndim == 2 and min(a.shape) >= cell:
        a, b = (torch.nn.functional.avg_pool2d(m[None].float(), cell)[0] for m in (a, b))
    ranks = [_ranks(m.reshape(-1).double()) for m in (a, b)]
    centred = [r - r.mean() for r in ranks]
    scale = centred[0].norm() * centred[1].norm()
    return float(centred[0] @ centred[1] / scale) if float(scale) > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = torch.cumsum(counts, 0).double()
    return (ends - (counts.double() - 1) / 2)[inverse]
