"""A vehicle's unseen side is mirrored; where a recorded view sees the place of a copy there is none."""

import math
from dataclasses import replace

import pytest
import torch

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.completion import completed, mirrored
from faithfusion_studio.gaussians import Gaussians, Provenance
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.render.views import render_view
from faithfusion_studio.scene import Scene


def flank():
    """The left side of a box of 4 x 2 x 1.5 m, opaque."""
    x, z = torch.meshgrid(
        torch.linspace(-1.9, 1.9, 20), torch.linspace(-0.6, 0.6, 7), indexing="ij"
    )
    n = x.numel()
    means = torch.stack([x.reshape(-1), torch.full((n,), 0.9), z.reshape(-1)], 1)
    return Gaussians(
        means=means,
        log_scales=torch.tensor([0.15, 0.01, 0.15]).log().repeat(n, 1),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
        logit_opacities=torch.full((n,), 6.0),
        sh0=torch.rand(n, 1, 3, generator=torch.Generator().manual_seed(0)),
        shN=torch.zeros(n, 3, 3),
        provenance=torch.zeros(n, dtype=torch.uint8),
    )


def vehicle(gaussians):
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[1, 0, 3] = 1.0
    return RigidNode(
        "car",
        gaussians,
        poses,
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        torch.ones(2, dtype=torch.bool),
        torch.tensor([4.0, 2.0, 1.5]),
    )


def from_side(y, time=0.0):
    """Looks at the origin along -y or +y from |y| metres."""
    away = math.copysign(1.0, y)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor([[-away, 0, 0], [0, 0, -away], [0, -1, 0]], dtype=torch.float64)
    pose[1, 3] = y
    K = torch.tensor([[80.0, 0, 48], [0, 80.0, 32], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, 96, 64, time=time)


@pytest.fixture(scope="module")
def scene():
    far = replace(flank(), means=flank().means * 8 + torch.tensor([0.0, -30.0, 0.0]))
    far = replace(far, log_scales=far.log_scales + math.log(8))
    return Scene(far, nodes=(vehicle(flank()),))


def copies(scene):
    return int((scene.nodes[0].gaussians.provenance == int(Provenance.COMPLETED)).sum())


def test_a_side_hidden_from_all_views_is_filled_and_no_view_changes(scene):
    views = [from_side(6.0), from_side(7.0, time=1.0)]
    whole = completed(scene, views)
    assert copies(whole) > 0.4 * len(mirrored(scene.nodes[0]))
    for camera in views:
        before, after = render_view(scene, camera).rgb, render_view(whole, camera).rgb
        assert float((before - after).abs().max()) < 0.02
    beside = from_side(-6.0)
    assert (
        float((render_view(scene, beside).rgb - render_view(whole, beside).rgb).abs().max()) > 0.1
    )


def test_where_a_view_sees_the_place_of_a_copy_there_is_none(scene):
    assert copies(completed(scene, [from_side(6.0), from_side(-6.0, time=1.0)])) == 0


def test_a_vehicle_without_a_bare_side_stays_as_it_is(scene):
    node = scene.nodes[0]
    both = replace(node, gaussians=completed(scene, []).nodes[0].gaussians)
    assert mirrored(both) is None
    full = replace(scene, nodes=(both,))
    assert completed(full, [from_side(6.0)]) is full
    assert (
        mirrored(replace(node, gaussians=flank().select(torch.zeros(0, dtype=torch.long)))) is None
    )
