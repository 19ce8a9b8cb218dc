"""The mathematics of FID and KID against closed forms and second derivations."""

import math

import pytest
import torch

from faithfusion_studio.metrics import MetricError
from faithfusion_studio.metrics.frechet import (
    FeatureMoments,
    feature_moments,
    frechet_distance,
    kernel_distance,
    mmd2,
)


def features(n, d, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + shift


def test_gaussians_with_diagonal_covariances_have_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    mean_a, mean_b = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    var_a, var_b = torch.rand(2, 30, generator=generator, dtype=torch.float64) + 0.01
    found = frechet_distance(
        FeatureMoments(mean_a, var_a.diag(), 99), FeatureMoments(mean_b, var_b.diag(), 99)
    )
    expected = (mean_a - mean_b).square().sum() + (var_a.sqrt() - var_b.sqrt()).square().sum()
    assert found == pytest.approx(float(expected), abs=1e-8)


@pytest.mark.parametrize("n", [5, 60])
def test_the_trace_of_the_root_is_a_nuclear_norm(n):
    """With S = A^T A, tr (S_a S_b)^1/2 is the sum of the singular values of A_a A_b^T, also with fewer
    images (5) than features (12), where both covariances are singular."""
    x, y = features(n, 12, 1), features(n, 12, 2, shift=0.3)
    a, b = ((v - v.mean(0)) / (n - 1) ** 0.5 for v in (x, y))
    nuclear = torch.linalg.svdvals(a @ b.T).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    found = frechet_distance(feature_moments(x), feature_moments(y))
    assert found == pytest.approx(float(expected - 2 * nuclear), rel=1e-6)


def test_a_set_against_itself_is_zero_and_the_distance_is_symmetric():
    a, b = feature_moments(features(40, 16, 3)), feature_moments(features(40, 16, 4))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 1


def test_a_shift_of_all_features_is_its_square():
    x = features(50, 8, 5)
    found = frechet_distance(feature_moments(x), feature_moments(x + 0.5))
    assert found == pytest.approx(8 * 0.25, rel=1e-6)


def test_mmd_is_its_sum_over_pairs():
    x, y = features(4, 3, 6), features(5, 3, 7)
    k = lambda p, q: (float(p @ q) / 3 + 1) ** 3  # noqa: E731
    within_x = sum(k(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    within_y = sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    between = sum(k(p, q) for p in x for q in y) / 20
    assert float(mmd2(x, y)) == pytest.approx(within_x + within_y - 2 * between, rel=1e-10)


def test_the_kernel_distance_is_unbiased_and_repeatable():
    generator = torch.Generator().manual_seed(8)
    same = [torch.randn(2, 40, 4, generator=generator, dtype=torch.float64) for _ in range(60)]
    values = torch.stack([mmd2(x, y) for x, y in same])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 60**0.5
    x, y = features(40, 4, 9), features(30, 4, 10, shift=1.0)
    first, again = (kernel_distance(x, y, subset=20, draws=5) for _ in range(2))
    assert first == again
    assert first.subset == 20 and first.deviation > 0
    assert kernel_distance(x, y, draws=2).subset == 30
    assert math.isnan(kernel_distance(y, y + 1, draws=2).deviation)


def test_sets_that_say_nothing_are_refused():
    with pytest.raises(MetricError, match="at least two images"):
        feature_moments(torch.zeros(1, 3))
    with pytest.raises(MetricError, match="finite"):
        feature_moments(torch.full((4, 3), torch.nan))
    with pytest.raises(MetricError, match="at least two in each"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(MetricError, match="one network"):
        frechet_distance(feature_moments(features(5, 3, 0)), feature_moments(features(5, 4, 0)))
