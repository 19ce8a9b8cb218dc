"""Frechet distance and kernel distance of two sets of features: the mathematics of FID and KID.

It is called FID or KID only with the features of the Inception network those metrics name; with any
other network it is `FD-<network>` or `KD-<network>`, and the numbers of different networks never
compare. Rows are images, columns features; everything is float64.

Sources: Heusel et al. 2017 (FID); Binkowski et al. 2018 (KID: unbiased MMD^2, cubic kernel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from faithfusion_studio.metrics.images import MetricError

KID_SUBSET, KID_DRAWS = 1000, 100
FULL_RANK = 2048
"""Below so many images the covariance of Inception's 2048 features is singular and FID is biased."""


@dataclass(frozen=True, eq=False)
class FeatureMoments:
    """Mean and unbiased covariance of a set of features."""

    mean: Float64[Tensor, "D"]
    covariance: Float64[Tensor, "D D"]
    count: int


def feature_moments(features: Float[Tensor, "N D"]) -> FeatureMoments:
    """Mean and covariance of at least two rows.

    Raises:
        MetricError: Fewer than two images, or a feature that is not finite.
    """
    if len(features) < 2 or not bool(torch.isfinite(features).all()):
        raise MetricError(
            f"{len(features)} rows of features cannot be described by mean and covariance; expected "
            "at least two images with finite features."
        )
    rows = features.double()
    mean = rows.mean(0)
    centred = rows - mean
    return FeatureMoments(mean, centred.T @ centred / (len(rows) - 1), len(rows))


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2), never negative.

    The trace of the root is the sum of the roots of the eigenvalues of S_a^1/2 S_b S_a^1/2, which is
    symmetric; unlike a general matrix root it stays real for singular covariances.
    """
    if a.mean.shape != b.mean.shape:
        raise MetricError(
            f"{len(a.mean)} features against {len(b.mean)}; both sets must come from one network."
        )
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    middle = root @ b.covariance @ root
    trace_root = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp(min=0).sqrt().sum()
    means = (a.mean - b.mean).square().sum()
    distance = means + a.covariance.trace() + b.covariance.trace() - 2 * trace_root
    return max(float(distance), 0.0)


@dataclass(frozen=True)
class KernelDistance:
    """Kernel distance over random subsets."""

    mean: float
    deviation: float
    """Standard deviation over the draws (the spread, not an error of the mean); NaN if every draw is all."""
    subset: int
    """Images per draw and side."""


def kernel_distance(
    a: Float[Tensor, "N D"],
    b: Float[Tensor, "M D"],
    *,
    subset: int = KID_SUBSET,
    draws: int = KID_DRAWS,
    seed: int = 0,
) -> KernelDistance:
    """Unbiased MMD^2 with the kernel (x.y/D + 1)^3, mean and spread over random subsets.

    Args:
        a: Features of one set.
        b: Features of the other.
        subset: Images per draw and side, at most as many as the smaller set has.
        draws: How many subsets.
        seed: Of the draws.

    Raises:
        MetricError: A set with fewer than two images.
    """
    size = min(subset, len(a), len(b))
    if size < 2:
        raise MetricError(f"sets of {len(a)} and {len(b)} images; expected at least two in each.")
    generator = torch.Generator().manual_seed(seed)
    draw = [
        torch.stack([torch.randperm(len(x), generator=generator)[:size] for _ in range(draws)])
        for x in (a, b)
    ]
    values = torch.stack([mmd2(a[i].double(), b[j].double()) for i, j in zip(*draw, strict=True)])
    everything = size == len(a) == len(b)
    spread = math.nan if everything else float(values.std(correction=0))
    return KernelDistance(float(values.mean()), spread, size)


def mmd2(a: Float64[Tensor, "N D"], b: Float64[Tensor, "M D"]) -> Float64[Tensor, ""]:
    """Unbiased squared maximum mean discrepancy with the cubic polynomial kernel."""
    n, m, d = len(a), len(b), a.shape[1]
    kaa, kbb, kab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within_a = (kaa.sum() - kaa.trace()) / (n * (n - 1))
    within_b = (kbb.sum() - kbb.trace()) / (m * (m - 1))
    return within_a + within_b - 2 * kab.mean()
