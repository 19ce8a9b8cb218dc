"""The scene's monotone map, and the split into regions."""

import math

import pytest
import torch

from faithfusion_studio.information import (
    Calibration,
    EigMap,
    split_regions,
)
from faithfusion_studio.information.calibration import (
    RECORDED_SHARE,
    fit_calibration,
    void_nats,
)


def test_void_nats_are_the_gain_of_three_unknown_channels() -> None:
    assert void_nats(0.4, 0.1) == pytest.approx(0.5 * 3 * math.log(17.0))


def test_the_map_is_monotone_from_the_median_to_the_void() -> None:
    generator = torch.Generator().manual_seed(0)
    recorded = [torch.rand(40, 50, generator=generator) ** 4 for _ in range(3)]
    calibration = fit_calibration(recorded, 6.0)
    nats = torch.linspace(0, 8, 500)
    values = calibration.apply(nats)
    assert (values[1:] >= values[:-1]).all()
    median = torch.cat([m.reshape(-1) for m in recorded]).median()
    assert float(calibration.apply(median)) == pytest.approx(0, abs=1e-3)
    assert float(calibration.apply(torch.tensor(6.0))) == 1
    assert float(calibration.apply(torch.tensor(9.0))) == 1
    outer = torch.quantile(torch.cat([m.reshape(-1) for m in recorded]), RECORDED_SHARE)
    assert float(calibration.apply(outer)) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("recorded", [[], [torch.zeros(4, 5)], [torch.full((4, 5), 9.0)]])
def test_degenerate_recordings_still_give_a_usable_map(recorded) -> None:
    calibration = fit_calibration(recorded, 5.0)
    values = calibration.apply(torch.tensor([0.0, 1.0, 5.0, 50.0]))
    assert values.isfinite().all() and (values[1:] >= values[:-1]).all()
    assert float(values[0]) == 0 and float(values[-1]) == 1


def test_two_knots_interpolate_linearly() -> None:
    calibration = Calibration(torch.tensor([[1.0, 0.0], [3.0, 1.0]]))
    got = calibration.apply(torch.tensor([[0.5, 1.5], [2.0, 4.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.0, 0.25], [0.5, 1.0]]))


def _map(calibrated: torch.Tensor, coverage: torch.Tensor | None = None) -> EigMap:
    full = torch.ones_like(calibrated, dtype=torch.bool)
    return EigMap(calibrated, calibrated, full if coverage is None else coverage, "block")


def test_regions_partition_the_view_and_close_crumbs() -> None:
    value = torch.zeros(90, 160)
    value[20:60, 30:90] = 0.9
    value[40:42, 60:62] = 0.0
    value[75, 140] = 1.0
    regions = split_regions(_map(value), 0.4)
    assert (regions.ucr ^ regions.hpr).all()
    assert regions.ucr[25:55, 35:85].all()
    assert not regions.ucr[70:].any() and not regions.ucr[:, 100:].any()


def test_uncovered_pixels_are_always_under_constrained() -> None:
    coverage = torch.ones(60, 80, dtype=torch.bool)
    coverage[30, 40] = False
    coverage[:10] = False
    regions = split_regions(_map(torch.zeros(60, 80), coverage), 0.4)
    assert (regions.ucr | coverage).all()
    assert regions.hpr[20:28].all()


def test_a_higher_threshold_never_grows_the_region() -> None:
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(1, 1, 9, 16, generator=generator)
    value = torch.nn.functional.interpolate(coarse, size=(90, 160), mode="bicubic")[0, 0]
    sizes = [int(split_regions(_map(value.clamp(0, 1)), t).ucr.sum()) for t in (0.2, 0.4, 0.6, 0.8)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


def test_all_and_nothing_are_kept() -> None:
    assert split_regions(_map(torch.ones(30, 40)), 0.4).ucr.all()
    assert split_regions(_map(torch.zeros(30, 40)), 0.4).hpr.all()
