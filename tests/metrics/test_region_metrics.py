"""The region split, its control, and what a repair must not touch."""

import math

import pytest
import torch

from faithfusion_studio.metrics import psnr
from faithfusion_studio.metrics.regions import (
    bad_half,
    blur_control,
    blurred,
    changed_outside,
    drift,
    region_psnr,
)


def picture(height=40, width=56, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(height, width, 3, generator=generator)


def test_the_bad_half_is_where_the_error_is():
    truth = torch.full((32, 48, 3), 0.5)
    before = truth + 0.01
    before[:, 24:] += 0.2
    bad = bad_half(before, truth)
    expected = torch.zeros(32, 48, dtype=torch.bool)
    expected[:, 24:] = True
    assert torch.equal(bad, expected)


@pytest.mark.parametrize("size", [(32, 48), (13, 21), (8, 8), (5, 3)])
def test_exactly_half_of_the_pixels_is_bad_whatever_the_size_and_ties(size):
    truth = picture(*size)
    for before in (truth, picture(*size, seed=1)):
        assert int(bad_half(before, truth).sum()) == size[0] * size[1] // 2


def test_one_bad_pixel_does_not_decide_alone():
    truth = torch.zeros(16, 16, 3)
    before = truth.clone()
    before[:, 8:] = 0.2
    before[0, 0] = 1.0  # alone in its block: averages to 1/64, less than 0.04
    assert not bool(bad_half(before, truth)[0, 0])


def test_each_region_is_measured_by_itself():
    truth = torch.zeros(16, 16, 3)
    before, after = truth + 0.01, truth + 0.02
    before[:, 8:], after[:, 8:] = 0.5, 0.1
    found = region_psnr(before, after, truth, bad_half(before, truth))
    assert found.good_change == pytest.approx(-20 * math.log10(2), abs=1e-4)
    assert found.bad_change == pytest.approx(20 * math.log10(5), abs=1e-4)
    assert found.good_before == pytest.approx(40.0, abs=1e-4)
    untouched = region_psnr(truth, truth, truth, bad_half(truth, truth))
    assert (untouched.good_change, untouched.bad_change) == (0.0, 0.0)


def test_the_control_changes_as_much_as_the_repair():
    before = picture()
    after = (before + 0.05 * torch.randn(before.shape)).clamp(0, 1)
    control = blur_control(before, after)
    assert control.reached and control.sigma > 0
    assert psnr(control.image, before) == pytest.approx(psnr(after, before), abs=0.01)
    assert torch.equal(control.image, blurred(before, control.sigma))


def test_the_control_of_nothing_is_nothing_and_a_flat_picture_cannot_be_blurred():
    before = picture()
    same = blur_control(before, before.clone())
    assert (same.sigma, same.reached) == (0.0, True)
    assert torch.equal(same.image, before)
    flat = torch.full((16, 16, 3), 0.5)
    assert not blur_control(flat, flat + 0.1).reached


def test_a_repair_may_not_change_a_bit_outside_its_mask():
    before = picture(10, 10)
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[:5] = True
    after = before.clone()
    after[:5] = 0.0
    assert changed_outside(before, after, mask) == 0.0
    after[9, 9, 2] = torch.nextafter(after[9, 9, 2], torch.tensor(2.0))
    assert changed_outside(before, after, mask) == pytest.approx(1 / 50)
    assert changed_outside(before, after, torch.ones_like(mask)) == 0.0


def test_drift_is_the_change_of_psnr_on_a_recorded_view():
    recorded = torch.zeros(12, 12, 3)
    assert drift(recorded + 0.1, recorded + 0.2, recorded) == pytest.approx(
        -20 * math.log10(2), abs=1e-4
    )
    assert drift(recorded, recorded, recorded) == 0.0
