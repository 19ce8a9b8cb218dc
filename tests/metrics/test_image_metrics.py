import math

import pytest
import torch

from faithfusion_studio import metrics as M


def pair(height: int = 24, width: int = 30):
    truth = torch.rand(height, width, 3)
    return (truth + 0.1 * torch.randn_like(truth)).clamp(0, 1), truth


def test_psnr_of_a_constant_error_is_its_closed_form():
    truth = torch.zeros(4, 5, 3)
    assert M.psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-5)
    assert M.psnr(truth, truth) == math.inf


def test_only_masked_pixels_count():
    truth = torch.zeros(12, 12, 3)
    rendered = truth.clone()
    rendered[0, 0] = 1.0
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[0, :2] = True
    assert M.psnr(rendered, truth, mask) == pytest.approx(10 * math.log10(2))
    assert math.isnan(M.psnr(rendered, truth, torch.zeros_like(mask)))
    mask[6, 6] = True
    assert M.ssim(rendered, truth, mask) == pytest.approx(1.0)


def slow_ssim(a, b):
    """Window by window in float64, weighted means and covariances as in the paper."""
    x = torch.arange(11, dtype=torch.float64) - 5
    w = torch.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * 1.5**2))
    w = (w / w.sum())[..., None]
    values = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = (t[i : i + 11, j : j + 11].double() for t in (a, b))
            mp, mq = (w * p).sum((0, 1)), (w * q).sum((0, 1))
            vp, vq = (w * (p - mp) ** 2).sum((0, 1)), (w * (q - mq) ** 2).sum((0, 1))
            cov = (w * (p - mp) * (q - mq)).sum((0, 1))
            c1, c2 = 1e-4, 9e-4
            values.append(
                (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            )
    return float(torch.stack(values).mean())


def test_ssim_equals_the_definition_window_by_window():
    a, b = pair(14, 17)
    assert M.ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-5)
    assert M.ssim(b, b) == pytest.approx(1.0, abs=1e-6)


def test_ssim_is_differentiable():
    a, b = pair()
    a.requires_grad_()
    M.ssim_map(a, b).mean().backward()
    assert bool(torch.isfinite(a.grad).all())
    assert float(a.grad.abs().max()) > 0


def test_images_that_cannot_be_compared_are_refused_in_words():
    with pytest.raises(M.MetricError, match="at least 11x11"):
        M.ssim(torch.zeros(8, 20, 3), torch.zeros(8, 20, 3))
    with pytest.raises(M.MetricError, match="non-empty maps"):
        M.ause(torch.zeros(0), torch.zeros(0))


def test_a_report_says_how_it_was_measured():
    a, b = pair()
    report = M.measure(a, b)
    assert set(report.values) == {"psnr", "ssim"}
    assert "11x11 Gaussian" in report.protocol
    assert "float" in report.line()
    quantized = M.measure(a, b, torch.ones(24, 30, dtype=torch.bool), quantized=True)
    assert "8-bit; masked, 100.0%" in quantized.protocol
    assert quantized.values["psnr"] == pytest.approx(report.values["psnr"], abs=0.05)
