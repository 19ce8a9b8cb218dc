"""Belief in warped colours follows the evidence that it is made of."""

import pytest
import torch

from faithfusion_studio.repair.base import WarpFeatures
from faithfusion_studio.repair.belief import BeliefConfig, warp_belief

SHAPE = (24, 40)


def features(variance=1e-3, weight=3.0, depth=10.0, color=0.5) -> WarpFeatures:
    def full(value):
        return torch.full(SHAPE, value)

    fused = torch.full((*SHAPE, 3), color)
    return WarpFeatures(fused, full(weight), full(variance), fused, full(weight), full(depth))


def belief(warp: WarpFeatures, calibrated=0.5, depth=10.0, color=0.4) -> float:
    maps = torch.full(SHAPE, depth), torch.full(SHAPE, calibrated)
    value = warp_belief(warp, torch.full((*SHAPE, 3), color), *maps, BeliefConfig())
    assert value.isfinite().all() and float(value.min()) >= 0 and float(value.max()) <= 1
    assert torch.allclose(value, value[0, 0].expand(SHAPE), atol=1e-5)
    return float(value[0, 0])


@pytest.mark.parametrize(
    "more, less",
    [
        (belief(features(variance=1e-4)), belief(features(variance=3e-3))),
        (belief(features(weight=4.0)), belief(features(weight=0.5))),
        (belief(features(), calibrated=0.8), belief(features(), calibrated=0.1)),
        (belief(features(depth=10.0)), belief(features(depth=13.0))),
    ],
    ids=["agreement", "weight", "eig", "depth"],
)
def test_more_evidence_is_believed_more(more, less):
    assert more > less + 0.05


def test_agreement_about_another_colour_is_believed_and_noise_is_less():
    assert belief(features(variance=1e-5, color=0.8), calibrated=0.6) > 0.9
    assert belief(features(variance=2e-2, color=0.8), calibrated=0.6) < 0.5


def test_sky_and_nothing_rendered_stay_finite():
    assert 0 <= belief(features(depth=1e4), depth=0.0) <= 1
