import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from faithfusion_studio import transforms as T


def random_quats(n: int, seed: int = 0) -> torch.Tensor:
    q = torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(q, dim=-1)


def as_scipy(quats: torch.Tensor) -> Rotation:
    return Rotation.from_quat(quats[:, [1, 2, 3, 0]].numpy())


def test_rotation_matrices_equal_scipys():
    q = random_quats(50)
    np.testing.assert_allclose(T.quat_to_rotmat(q).numpy(), as_scipy(q).as_matrix(), atol=1e-12)


def test_quaternions_are_normalised_on_use():
    q = random_quats(5)
    torch.testing.assert_close(T.quat_to_rotmat(q * 7.5), T.quat_to_rotmat(q))


def test_the_product_turns_with_the_second_factor_first():
    a, b = random_quats(20, 1), random_quats(20, 2)
    expected = T.quat_to_rotmat(a) @ T.quat_to_rotmat(b)
    torch.testing.assert_close(T.quat_to_rotmat(T.quat_multiply(a, b)), expected)


def test_matrices_and_back_is_the_identity_up_to_sign():
    q = random_quats(200)
    back = T.rotmat_to_quat(T.quat_to_rotmat(q))
    assert bool((back[:, 0] >= 0).all())
    torch.testing.assert_close((q * back).sum(-1).abs(), torch.ones(200, dtype=torch.float64))


@pytest.mark.parametrize("axis", [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 0]])
def test_half_turns_survive_the_way_through_matrices(axis):
    axis = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    q = torch.cat([torch.zeros(1, dtype=torch.float64), axis])
    back = T.rotmat_to_quat(T.quat_to_rotmat(q))
    torch.testing.assert_close((q * back).sum().abs(), torch.tensor(1.0, dtype=torch.float64))


def test_slerp_equals_scipys():
    a, b = random_quats(2, 3)
    b = torch.where((a * b).sum() < 0, -b, b)
    f = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = Slerp([0, 1], as_scipy(torch.stack([a, b])))(f.numpy()).as_matrix()
    ours = T.quat_to_rotmat(T.slerp(a.expand(11, 4), b.expand(11, 4), f))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-9)


def test_slerp_takes_the_shorter_arc():
    a = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    b = -torch.tensor([np.cos(0.1), np.sin(0.1), 0, 0])
    middle = T.slerp(a, b, torch.tensor(0.5, dtype=torch.float64))
    assert float((middle * a).sum().abs()) == pytest.approx(np.cos(0.05), abs=1e-12)


@given(angle=st.floats(0, 1e-3), fraction=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_slerp_is_finite_and_exact_for_tiny_angles(angle, fraction):
    a = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    b = torch.tensor([np.cos(angle), 0, np.sin(angle), 0], dtype=torch.float64)
    q = T.slerp(a, b, torch.tensor(fraction, dtype=torch.float64))
    assert float(q[2]) == pytest.approx(np.sin(angle * fraction), abs=1e-9)


def random_poses(n: int) -> torch.Tensor:
    poses = torch.eye(4, dtype=torch.float64).repeat(n, 1, 1)
    poses[:, :3, :3] = T.quat_to_rotmat(random_quats(n, 4))
    poses[:, :3, 3] = torch.randn(n, 3, dtype=torch.float64) * 10
    return poses


def test_the_rigid_inverse_is_the_matrix_inverse():
    poses = random_poses(10)
    torch.testing.assert_close(T.invert_rigid(poses), torch.linalg.inv(poses))


def test_translations_only_translate():
    t = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    points = torch.tensor([1.0, 1, 1, 1])
    torch.testing.assert_close((T.translation(t) @ points)[:, :3], t + 1)


def test_look_at_puts_the_target_ahead_and_up_above():
    eye, target = torch.tensor([1.0, 2, 3]), torch.tensor([5.0, 2, 3])
    pose = T.look_at(eye, target, torch.tensor([0.0, 0, 1]))
    in_camera = T.invert_rigid(pose) @ torch.tensor([5.0, 2, 3, 1])
    torch.testing.assert_close(in_camera[:3], torch.tensor([0.0, 0, 4]))
    up = T.invert_rigid(pose) @ torch.tensor([5.0, 2, 4, 1])
    assert float(up[1]) < 0  # y points down in the image
    assert float(torch.linalg.det(pose[:3, :3])) == pytest.approx(1.0, abs=1e-6)


def test_sh_functions_are_orthonormal_on_the_sphere():
    nodes, weights = np.polynomial.legendre.leggauss(12)
    phi = np.arange(24) * 2 * np.pi / 24
    z, p = np.meshgrid(nodes, phi, indexing="ij")
    r = np.sqrt(1 - z * z)
    directions = torch.from_numpy(np.stack([r * np.cos(p), r * np.sin(p), z], -1))
    basis = T.sh_basis(3, directions)
    w = torch.from_numpy(np.repeat(weights[:, None], 24, 1) * 2 * np.pi / 24)
    gram = torch.einsum("ij,ija,ijb->ab", w, basis, basis)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-6, rtol=0)


def test_sh_evaluation_normalises_and_ignores_extra_bands():
    c = torch.randn(5, 16, 3)
    d = torch.randn(5, 3)
    torch.testing.assert_close(T.eval_sh(1, c, d), T.eval_sh(1, c[:, :4], d * 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(T.eval_sh(0, c, d), c[:, 0] * T.SH_C0)


def test_colours_and_degree_zero_coefficients_are_inverse():
    rgb = torch.rand(7, 3)
    torch.testing.assert_close(T.sh0_to_rgb(T.rgb_to_sh0(rgb)), rgb)


def test_turning_sh_turns_the_colour_it_describes():
    generator = torch.Generator().manual_seed(5)
    for degree in range(4):
        count = (degree + 1) ** 2
        sh = torch.randn(9, count, 3, generator=generator, dtype=torch.float64)
        rotation = T.quat_to_rotmat(torch.randn(4, generator=generator, dtype=torch.float64))
        turned = torch.cat([sh[:, :1], T.rotate_sh(sh[:, 1:], rotation)], dim=1)
        directions = torch.randn(9, 3, generator=generator, dtype=torch.float64)
        before = T.eval_sh(degree, sh, directions)
        after = T.eval_sh(degree, turned, directions @ rotation.T)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


def test_turning_sh_half_a_turn_about_x_only_changes_signs():
    signs = [-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1]
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    sh = torch.randn(3, 15, 3, generator=torch.Generator().manual_seed(1))
    expected = sh * torch.tensor(signs)[:, None]
    torch.testing.assert_close(T.rotate_sh(sh, flip), expected, rtol=0, atol=1e-5)
