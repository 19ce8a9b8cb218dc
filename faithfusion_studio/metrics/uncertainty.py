"""How well a map of uncertainty predicts a map of errors; pure functions returning floats."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.metrics.images import MetricError


def spearman(a: Float[Tensor, "*S"], b: Float[Tensor, "*S"]) -> float:
    """Rank correlation of two maps, ties given their mean rank; NaN where one of them is constant."""
    ra, rb = _ranks(a.flatten()), _ranks(b.flatten())
    ra, rb = ra - ra.mean(), rb - rb.mean()
    norm = float(ra.norm() * rb.norm())
    return math.nan if norm == 0 else float((ra * rb).sum()) / norm


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def block_mean(values: Float[Tensor, "H W"], size: int = 8) -> Float[Tensor, "H2 W2"]:
    """Mean over size x size blocks, an incomplete rim left out: what the rank metrics compare."""
    return torch.nn.functional.avg_pool2d(values[None, None], size)[0, 0]


def ause(uncertainty: Float[Tensor, "*S"], error: Float[Tensor, "*S"]) -> float:
    """Area under the sparsification error; 0 is a perfect ranking of the pixels by error.

    Args:
        uncertainty: Larger is less certain; any unit, finite or +inf.
        error: Not negative.

    Source: metric of FisherRF's evaluation: 100 fractions up to 0.999, both curves over the
        larger maximum.
    """
    fractions, by_uncertainty, by_error = _sparsification(uncertainty, error)
    return float(torch.trapezoid(by_uncertainty - by_error, fractions))


def aurg(uncertainty: Float[Tensor, "*S"], error: Float[Tensor, "*S"]) -> float:
    """Area gained over removing pixels at random; larger is better, 0 is no better than chance."""
    fractions, by_uncertainty, _ = _sparsification(uncertainty, error)
    return float(torch.trapezoid(by_uncertainty[0] - by_uncertainty, fractions))


def _sparsification(uncertainty: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fractions removed, and the mean error of the rest when sorted by uncertainty and by error."""
    if uncertainty.shape != error.shape or error.numel() == 0:
        raise MetricError(
            f"uncertainty {tuple(uncertainty.shape)} and error {tuple(error.shape)} must be "
            "non-empty maps of one shape."
        )
    fractions = torch.linspace(0, 0.999, 100, dtype=torch.float64)
    error = error.flatten().double()
    kept = ((1 - fractions) * len(error)).ceil().long().clamp(1, len(error))
    curves = []
    for key in (uncertainty.flatten(), error):
        ascending = error[torch.argsort(key, stable=True)]
        curves.append(ascending.cumsum(0)[kept - 1] / kept)
    top = max(float(curve.max()) for curve in curves) or 1.0
    return fractions, curves[0] / top, curves[1] / top
