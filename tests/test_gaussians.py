import pytest
import torch

from faithfusion_studio.gaussians import (
    Gaussians,
    Provenance,
    TopologyChange,
    concatenate,
    empty_gaussians,
)
from faithfusion_studio.transforms import quat_to_rotmat, translation


def random_gaussians(n: int, degree: int = 1, seed: int = 0) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.randn(n, 3, generator=g),
        log_scales=torch.randn(n, 3, generator=g),
        quats=torch.randn(n, 4, generator=g),
        logit_opacities=torch.randn(n, generator=g),
        sh0=torch.randn(n, 1, 3, generator=g),
        shN=torch.randn(n, (degree + 1) ** 2 - 1, 3, generator=g),
        provenance=torch.randint(0, 4, (n,), generator=g).to(torch.uint8),
    )


def covariances(gaussians: Gaussians) -> torch.Tensor:
    rotation = quat_to_rotmat(gaussians.quats)
    return rotation @ torch.diag_embed(gaussians.scales**2) @ rotation.transpose(1, 2)


def test_properties_are_activated_values():
    g = random_gaussians(4)
    torch.testing.assert_close(g.scales, torch.exp(g.log_scales))
    torch.testing.assert_close(g.opacities, torch.sigmoid(g.logit_opacities))
    assert g.sh.shape == (4, 4, 3)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_degree_follows_from_the_coefficients(degree):
    assert random_gaussians(2, degree).sh_degree == degree
    assert empty_gaussians(degree).sh_degree == degree


def test_rows_are_selected_by_index_and_by_mask():
    g = random_gaussians(5)
    by_index = g.select(torch.tensor([3, 1]))
    torch.testing.assert_close(by_index.means, g.means[[3, 1]])
    by_mask = g.select(torch.tensor([False, True, False, True, False]))
    torch.testing.assert_close(by_mask.provenance, g.provenance[[1, 3]])


def test_moving_turns_the_covariances_along():
    g = random_gaussians(6)
    pose = translation(torch.tensor([1.0, 2, 3]))
    pose[:3, :3] = quat_to_rotmat(torch.tensor([0.9, 0.1, -0.3, 0.2]))
    moved = g.transformed(pose)
    expected = pose[:3, :3] @ covariances(g) @ pose[:3, :3].T
    torch.testing.assert_close(covariances(moved), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved.means, g.means @ pose[:3, :3].T + pose[:3, 3])


def test_nothing_to_move_returns_the_same_object():
    g = random_gaussians(2)
    assert g.to("cpu") is g


def test_sh_bands_are_padded_with_zeros_and_cut():
    g = random_gaussians(3, 1)
    up = g.with_sh_degree(3)
    assert up.sh_degree == 3
    assert float(up.shN[:, 3:].abs().max()) == 0
    torch.testing.assert_close(up.with_sh_degree(1).shN, g.shN)


def test_concatenation_pads_to_the_highest_degree_and_keeps_the_order():
    a, b = random_gaussians(2, 0, 1), random_gaussians(3, 2, 2)
    both = concatenate([a, b])
    assert (len(both), both.sh_degree) == (5, 2)
    torch.testing.assert_close(both.means, torch.cat([a.means, b.means]))
    assert len(concatenate([])) == 0
    assert concatenate([a]) is a


def test_sidecars_follow_a_topology_change_by_source():
    old = torch.tensor([10.0, 20, 30])
    change = TopologyChange(torch.tensor([0, 2, 2]), torch.tensor([False, False, True]))
    assert old[change.source].tolist() == [10, 30, 30]


def test_memory_counts_every_tensor():
    assert random_gaussians(10, 0).num_bytes() == 10 * (4 * (3 + 3 + 4 + 1 + 3) + 1)


def test_provenance_is_one_byte():
    assert max(Provenance) < 256


def test_wrong_shapes_are_refused_in_tests():
    g = random_gaussians(3)
    with pytest.raises(Exception, match="Type-check"):
        Gaussians(g.means[:2], g.log_scales, g.quats, g.logit_opacities, g.sh0, g.shN, g.provenance)
