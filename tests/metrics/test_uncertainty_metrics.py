import math

import pytest
import torch

from faithfusion_studio import metrics as M


def test_rank_correlation_sees_order_only():
    x = torch.rand(200)
    assert M.spearman(x, torch.exp(5 * x)) == pytest.approx(1.0)
    assert M.spearman(x, -x) == pytest.approx(-1.0)
    assert math.isnan(M.spearman(x, torch.zeros(200)))


def test_rank_correlation_with_ties_equals_scipys():
    from scipy.stats import spearmanr

    a = torch.randint(0, 5, (100,)).float()
    b = a + torch.randint(0, 4, (100,)).float()
    assert M.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)


def test_a_perfect_ranking_has_no_sparsification_error():
    error = torch.rand(40, 50)
    assert M.ause(error, error) == 0
    assert M.ause(-error, error) > M.ause(torch.rand(40, 50), error) > 0
    assert M.aurg(error, error) > 0 > M.aurg(-error, error)


def test_random_uncertainty_gains_nothing():
    error = torch.rand(60, 60)
    gains = [M.aurg(torch.rand(60, 60), error) for _ in range(20)]
    assert abs(sum(gains) / 20) < 0.01


def test_block_means_leave_out_the_rim():
    values = torch.arange(17 * 8, dtype=torch.float32).reshape(17, 8)
    pooled = M.block_mean(values)
    assert pooled.shape == (2, 1)
    assert float(pooled[0, 0]) == pytest.approx(float(values[:8].mean()))


def test_capture_is_one_for_the_error_itself_and_the_share_by_chance():
    error = torch.rand(200, 200)
    assert M.capture(error, error, 0.1) == 1.0
    assert M.capture(-error, error, 0.1) == 0.0
    assert M.capture(torch.rand(200, 200), error, 0.1) == pytest.approx(0.1, abs=0.02)


def test_roc_auc_equals_counting_pairs():
    generator = torch.Generator().manual_seed(3)
    uncertainty = torch.randint(0, 6, (60,), generator=generator).float()
    positive = torch.rand(60, generator=generator) < 0.4
    a, b = uncertainty[positive][:, None], uncertainty[~positive][None]
    pairs = (a > b).double() + 0.5 * (a == b).double()
    assert M.roc_auc(uncertainty, positive) == pytest.approx(float(pairs.mean()), abs=1e-12)
    assert math.isnan(M.roc_auc(uncertainty, torch.zeros(60, dtype=torch.bool)))


def test_nll_and_coverage_of_gaussian_errors_are_their_closed_forms():
    generator = torch.Generator().manual_seed(1)
    std = 0.05 + torch.rand(400_000, generator=generator, dtype=torch.float64)
    error = std * torch.randn(400_000, generator=generator, dtype=torch.float64)
    entropy = float((0.5 * torch.log(2 * math.pi * math.e * std**2)).mean())
    assert M.gaussian_nll(error, std**2) == pytest.approx(entropy, abs=5e-3)
    assert M.coverage(error, std**2, 0.9) == pytest.approx(0.9, abs=3e-3)
    assert M.coverage(error, std**2, 0.5) == pytest.approx(0.5, abs=3e-3)


def test_widening_makes_an_overconfident_interval_cover_what_it_says():
    generator = torch.Generator().manual_seed(2)
    error = 3 * torch.randn(100_000, generator=generator)
    variance = torch.ones_like(error)
    assert M.coverage(error, variance, 0.9) < 0.45
    factor = M.widening(error.abs(), 0.9)
    assert factor == pytest.approx(3, rel=0.02)
    assert M.coverage(error, variance, 0.9, factor) == pytest.approx(0.9, abs=2e-3)


def test_reversed_uncertainty_is_worst_and_the_random_area_is_the_middle():
    error = torch.rand(400_000, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert M.spearman(-error, error) == pytest.approx(-1)
    perfect = M.aurg(error, error)
    for seed in range(5):
        u = torch.rand(
            400_000, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64
        )
        assert M.aurg(u, error) == pytest.approx(0, abs=0.01)
        assert M.ause(u, error) == pytest.approx(perfect, abs=0.03)
