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
