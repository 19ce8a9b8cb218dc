"""Losses: zero weight means zero gradient, SSIM against its definition, belief in repaired pixels."""

import pytest
import torch

from faithfusion_studio.fusion.losses import eig_weight, image_loss, shape_loss, ssim_map
from faithfusion_studio.fusion.schedule import LossWeights


def _pair(height=24, width=30):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(height, width, 3, generator=generator) for _ in range(2))


def test_pixels_of_zero_weight_get_exactly_zero_gradient():
    rendered, image = _pair()
    rendered.requires_grad_(True)
    weight = torch.zeros(24, 30)
    weight[4:9, 10:20] = 1.0
    image_loss(rendered, image, weight, LossWeights()).backward()
    outside = rendered.grad[weight == 0]
    assert torch.equal(outside, torch.zeros_like(outside))
    assert rendered.grad[weight > 0].abs().min() > 0


def test_equal_images_lose_nothing():
    rendered, _ = _pair()
    assert float(image_loss(rendered, rendered, None, LossWeights())) == pytest.approx(0, abs=1e-6)
    assert torch.allclose(ssim_map(rendered, rendered), torch.ones(24, 30), atol=1e-4)


def test_ssim_equals_a_direct_double_sum_at_an_inner_pixel():
    a, b = _pair()
    offsets = torch.arange(11) - 5.0
    g = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (g / g.sum())[:, None] * (g / g.sum())[None, :]
    row, column, expected = 12, 15, 0.0
    for channel in range(3):
        pa = a[row - 5 : row + 6, column - 5 : column + 6, channel]
        pb = b[row - 5 : row + 6, column - 5 : column + 6, channel]
        ma, mb = (window * pa).sum(), (window * pb).sum()
        va, vb = (window * pa**2).sum() - ma**2, (window * pb**2).sum() - mb**2
        vab = (window * pa * pb).sum() - ma * mb
        expected += float(
            (2 * ma * mb + 1e-4) * (2 * vab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        )
    assert float(ssim_map(a, b)[row, column]) == pytest.approx(expected / 3, abs=1e-5)


@pytest.mark.parametrize("weighting", ["eig", "released", "logdet", "uniform"])
def test_weights_stay_in_range_and_never_fall_with_eig(weighting):
    eig = torch.linspace(-0.2, 1.2, 60)[None, :]
    weight = eig_weight(eig, torch.full_like(eig, 0.8), weighting, eig=2 * eig)
    assert weight.min() >= 0 and weight.max() <= 0.8 + 1e-6
    assert bool((weight[0, 1:] >= weight[0, :-1] - 1e-6).all())


def test_no_confidence_means_no_weight():
    eig = torch.full((3, 4), 0.9)
    assert torch.equal(eig_weight(eig, torch.zeros(3, 4), "uniform"), torch.zeros(3, 4))


def test_long_thin_gaussians_are_penalised():
    round_ones = shape_loss(torch.zeros(5, 3), torch.zeros(5), LossWeights(), 1.0)
    needles = torch.zeros(5, 3)
    needles[:, 0] = 4.0
    assert float(shape_loss(needles, torch.zeros(5), LossWeights(), 1.0)) > float(round_ones)
