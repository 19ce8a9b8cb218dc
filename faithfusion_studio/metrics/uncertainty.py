"""How well a map of uncertainty predicts a map of errors; pure functions returning floats."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithfusion_studio.metrics.images import MetricError


def spearman(a: Float[Tensor, "*S"], b: Float[Tensor, "*S"]) -> float:
    """Rank correlation of two maps, ties given their mean rank; NaN where one of them is constant."""
    ra, rb = ranks(a.flatten()), ranks(b.flatten())
    ra, rb = ra - ra.mean(), rb - rb.mean()
    norm = float(ra.norm() * rb.norm())
    return math.nan if norm == 0 else float((ra * rb).sum()) / norm


def ranks(values: Float[Tensor, "S"]) -> Float[Tensor, "S"]:
    """Place of each value in ascending order, from 1; equal values share their mean place."""
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
    fractions, by_uncertainty, by_error = sparsification(uncertainty, error)
    return float(torch.trapezoid(by_uncertainty - by_error, fractions))


def aurg(uncertainty: Float[Tensor, "*S"], error: Float[Tensor, "*S"]) -> float:
    """Area gained over removing pixels at random; larger is better, 0 is no better than chance."""
    fractions, by_uncertainty, _ = sparsification(uncertainty, error)
    return float(torch.trapezoid(by_uncertainty[0] - by_uncertainty, fractions))


def sparsification(
    uncertainty: Float[Tensor, "*S"], error: Float[Tensor, "*S"]
) -> tuple[Float[Tensor, "100"], Float[Tensor, "100"], Float[Tensor, "100"]]:
    """The curves behind `ause`: what is left of the error as ever more pixels are removed.

    Returns:
        Fractions removed; mean error of the rest when the most uncertain go first; the same when those of
        the largest error go first. Both errors are over the larger maximum of the two curves.
    """
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


def capture(uncertainty: Float[Tensor, "*S"], error: Float[Tensor, "*S"], share: float) -> float:
    """Share of the pixels of largest error that are among the most uncertain ones.

    Args:
        uncertainty: Larger is less certain.
        error: Not negative.
        share: Of all pixels that is looked at on both sides, (0, 1]; chance reaches this very value.
    """
    count = max(1, round(share * error.numel()))
    worst = torch.zeros(error.numel(), dtype=torch.bool)
    worst[error.flatten().topk(count).indices] = True
    return float(worst[uncertainty.flatten().topk(count).indices].float().mean())


def roc_auc(uncertainty: Float[Tensor, "*S"], positive: Bool[Tensor, "*S"]) -> float:
    """Chance that a positive pixel is more uncertain than a negative one; ties count half; NaN without both."""
    flat = positive.flatten()
    n = int(flat.sum())
    m = flat.numel() - n
    if n == 0 or m == 0:
        return math.nan
    places = ranks(uncertainty.flatten())
    return (float(places[flat].sum()) - n * (n + 1) / 2) / (n * m)


def gaussian_nll(error: Float[Tensor, "*S"], variance: Float[Tensor, "*S"]) -> float:
    """Mean negative log likelihood of signed errors under zero-mean Gaussians, nats.

    Args:
        error: Prediction minus truth.
        variance: Positive, in the unit of the error squared.
    """
    v = variance.double().clamp(min=1e-12)
    return float(0.5 * (torch.log(2 * math.pi * v) + error.double().square() / v).mean())


def coverage(
    error: Float[Tensor, "*S"],
    variance: Float[Tensor, "*S"],
    probability: float,
    widened: float = 1.0,
) -> float:
    """Share of errors inside the central interval of that probability.

    Args:
        error: Prediction minus truth.
        variance: Of zero-mean Gaussians.
        probability: Nominal, (0, 1).
        widened: Factor on the standard deviation, from `widening` on other data.
    """
    reach = math.sqrt(2) * float(torch.erfinv(torch.tensor(probability, dtype=torch.float64)))
    inside = error.abs() <= reach * widened * variance.clamp(min=1e-12).sqrt()
    return float(inside.float().mean())


def widening(normalized: Float[Tensor, "*S"], probability: float) -> float:
    """Factor on the standard deviation with which the interval of that probability covers as much as it says.

    Args:
        normalized: |error| / standard deviation.
        probability: Nominal, (0, 1).
    """
    reach = math.sqrt(2) * float(torch.erfinv(torch.tensor(probability, dtype=torch.float64)))
    return float(normalized.flatten().double().quantile(probability)) / reach
