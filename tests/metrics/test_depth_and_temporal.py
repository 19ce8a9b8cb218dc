"""Depth errors and warp errors in closed form: planes, pure motions, what is hidden."""

import math

import pytest
import torch

from faithfusion_studio.cameras import Camera
from faithfusion_studio.metrics import MetricError
from faithfusion_studio.metrics.depth import depth_errors, depth_protocol
from faithfusion_studio.metrics.temporal import Flow, flow_from_depth, warp_error

K = torch.tensor([[50.0, 0, 20], [0, 50.0, 12], [0, 0, 1]], dtype=torch.float64)


def camera(x=0.0, z=0.0, width=40, height=24):
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3], pose[2, 3] = x, z
    return Camera(camtoworld=pose, K=K, width=width, height=height)


def ramp(offset=0.0, height=24, width=40):
    """Colours linear in x, which bilinear lookup reproduces exactly."""
    x = torch.arange(width) + 0.5 + offset
    return (x / 80).expand(height, width)[..., None].repeat(1, 1, 3)


def test_a_wall_passed_sideways_flows_by_focal_length_over_depth():
    found = flow_from_depth(torch.full((24, 40), 5.0), camera(), camera(x=0.3))
    assert torch.allclose(found.flow[..., 0], torch.full((24, 40), -3.0, dtype=torch.float64))
    assert float(found.flow[..., 1].abs().max()) < 1e-9
    assert torch.equal(found.valid[0], torch.arange(40) >= 3)


def test_a_wall_approached_flows_from_the_principal_point():
    found = flow_from_depth(torch.full((24, 40), 5.0), camera(), camera(z=1.0))
    x = torch.arange(40, dtype=torch.float64) + 0.5
    assert torch.allclose(found.flow[3, :, 0], (x - 20) * (5 / 4 - 1))


def test_equal_surfaces_have_no_warp_error():
    flow = flow_from_depth(torch.full((24, 40), 5.0), camera(), camera(x=0.3))
    # The camera moved right by three pixels' worth: a colour at x is found at x - 3.
    found = warp_error(ramp(), ramp(offset=3.0), flow)
    assert found.l1 == pytest.approx(0, abs=1e-6)
    assert found.valid_share == pytest.approx(37 / 40)


def test_a_flicker_is_its_closed_form():
    flow = flow_from_depth(torch.full((24, 40), 5.0), camera(), camera())
    found = warp_error(ramp(), ramp() + 0.1, flow)
    assert (found.l1, found.rmse) == (pytest.approx(0.1, abs=1e-6), pytest.approx(0.1, abs=1e-6))
    assert found.valid_share == 1.0
    half = torch.arange(40).expand(24, 40) < 20
    assert warp_error(ramp(), ramp() + 0.1, flow, half).valid_share == 0.5


def test_hidden_surfaces_sky_and_what_leaves_the_picture_do_not_count():
    depth = torch.full((24, 40), 5.0)
    depth[:, 20:] = 0.0
    hidden = torch.full((24, 40), 5.0)
    hidden[12:] = 2.0
    found = flow_from_depth(depth, camera(), camera(), hidden)
    expected = torch.zeros(24, 40, dtype=torch.bool)
    expected[:12, :20] = True
    assert torch.equal(found.valid, expected)
    nothing = Flow(torch.zeros(24, 40, 2, dtype=torch.float64), torch.zeros(24, 40) > 0)
    assert math.isnan(warp_error(ramp(), ramp(), nothing).l1)
    with pytest.raises(MetricError, match="expected one size"):
        flow_from_depth(depth, camera(), camera(width=20))


def test_depth_errors_are_their_definitions():
    truth = torch.tensor([[10.0, 10.0, 20.0, 40.0]])
    depth = torch.tensor([[11.0, 14.0, 20.0, 30.0]])
    found = depth_errors(depth, truth)
    assert found.abs_rel == pytest.approx((0.1 + 0.4 + 0 + 0.25) / 4)
    assert found.rmse == pytest.approx(math.sqrt((1 + 16 + 0 + 100) / 4))
    assert found.within_125 == pytest.approx(2 / 4)
    assert (found.rendered_share, found.counted) == (1.0, 4)


def test_sky_far_pixels_and_missing_renders_are_counted_as_the_protocol_says():
    truth = torch.tensor([[0.0, torch.inf, 90.0, 10.0, 10.0]])
    depth = torch.tensor([[3.0, 3.0, 3.0, 10.0, 0.0]])
    found = depth_errors(depth, truth)
    assert (found.abs_rel, found.within_125, found.rendered_share) == (0.0, 0.5, 0.5)
    assert found.counted == 2
    assert depth_errors(depth, truth, farthest=100.0).counted == 3
    assert "(0, 80] m" in depth_protocol()
    nothing = depth_errors(depth, torch.zeros(1, 5))
    assert math.isnan(nothing.abs_rel) and math.isnan(nothing.within_125)
    empty = depth_errors(torch.zeros(1, 5), truth)
    assert math.isnan(empty.rmse) and empty.within_125 == 0.0
    only = torch.tensor([[False, False, False, True, False]])
    assert depth_errors(depth, truth, only).rendered_share == 1.0
