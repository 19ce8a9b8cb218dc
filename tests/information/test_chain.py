"""The chain between screen records and parameters, torch and compiled, against autograd."""

import pytest
import torch
from slow_information import SlowScene, SlowView, chain, load_golden

from faithfusion_studio.render.chain import (
    ChainView,
    add_fisher,
    chain_matrices,
    factor_blocks,
    pack,
    posterior_covariances,
    unpack,
)
from faithfusion_studio.transforms import look_at, quat_to_rotmat

NAMES = ["plain_sh0", "plain_sh3", "hard_sh1", "crowd_sh2"]


def _view(scene: SlowScene, view: SlowView, dtype=torch.float64, **more) -> ChainView:
    z = scene.means @ view.viewmat[2, :3] + view.viewmat[2, 3]
    return ChainView(
        means=scene.means.to(dtype),
        quats=scene.quats.to(dtype),
        scales=scene.scales.to(dtype),
        sh0=scene.sh[:, :1].to(dtype),
        shN=scene.sh[:, 1:].to(dtype),
        sh_degree=scene.sh_degree,
        viewmat=view.viewmat.to(dtype),
        K=view.K.to(dtype),
        width=view.width,
        height=view.height,
        visible=(z > 0.01).nonzero()[:, 0],
        **more,
    )


def _random_information(n: int, seed: int) -> torch.Tensor:
    J = torch.randn(n, 7, 9, generator=torch.Generator().manual_seed(seed))
    return pack(J.transpose(1, 2) @ J)


@pytest.mark.parametrize("name", NAMES)
def test_torch_chain_equals_autograd_in_double_precision(name: str) -> None:
    _, scene, views, novel = load_golden(name)
    for view in [*views, novel]:
        ours = _view(scene, view)
        expected = chain(scene, view)[ours.visible]
        torch.testing.assert_close(chain_matrices(ours)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_fisher_chain_equals_the_formulas(name: str) -> None:
    _, scene, views, _ = load_golden(name)
    view = _view(scene, views[0], torch.float32)
    S = _random_information(len(scene), 1)
    start = torch.rand(len(scene), 91)
    blocks, sh = start.clone(), torch.ones(len(scene), scene.sh.shape[1] - 1, 3)
    add_fisher(view, S, blocks, sh)
    A, basis, lit = chain_matrices(_view(scene, views[0]))
    S = unpack(S.double(), 9)[view.visible]
    expected = pack(A.transpose(1, 2) @ S @ A)
    got = (blocks - start)[view.visible].double()
    scale = expected.abs().amax(1, keepdim=True)
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-5)
    colour = torch.diagonal(S, dim1=1, dim2=2)[:, 6:] * lit
    expected_sh = 1 + basis[:, 1:, None] ** 2 * colour[:, None]
    torch.testing.assert_close(sh[view.visible].double(), expected_sh, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_posterior_covariances_equal_a_double_precision_inverse(name, diagonal) -> None:
    data, scene, views, novel = load_golden(name)
    H = torch.from_numpy(data["fisher"])
    prior = torch.from_numpy(data["prior_precision"])
    evidence = torch.from_numpy(data["fisher_sh"])
    factors = factor_blocks(pack(H).float(), prior.float(), diagonal=diagonal)
    view = _view(scene, novel, torch.float32)
    M = posterior_covariances(
        view, factors, scale=2.0, sh_evidence=evidence.float(), sh_prior=float(data["lambda_sh"])
    )
    A, basis, lit = chain_matrices(_view(scene, novel))
    P = torch.linalg.inv(H + torch.diag_embed(prior))
    if diagonal:
        P = torch.diag_embed(1 / (torch.diagonal(H, dim1=1, dim2=2) + prior))
    expected = A @ P[view.visible] @ A.transpose(1, 2)
    variance = 1 / (evidence[view.visible] + float(data["lambda_sh"]))
    expected[:, range(6, 9), range(6, 9)] += (basis[:, 1:, None] ** 2 * variance).sum(1) * lit
    expected = 2 * expected
    got = unpack(M.double(), 9)[view.visible]
    size = torch.diagonal(expected, dim1=1, dim2=2).clamp(min=1e-9).sqrt()
    scale = size[:, :, None] * size[:, None]
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=3e-5)
    hidden = torch.ones(len(scene), dtype=torch.bool)
    hidden[view.visible] = False
    assert (M[hidden] == 0).all()


def test_evidence_rows_and_moving_objects_are_followed() -> None:
    _, scene, views, _ = load_golden("plain_sh3")
    n = len(scene)
    turn = quat_to_rotmat(torch.tensor([[0.9, 0.1, -0.3, 0.2]]))
    nodes = torch.full((n,), -1)
    nodes[::2] = 0
    rows = torch.arange(n).flip(0) + 3
    more = {"rows": rows, "nodes": nodes, "node_rotations": turn}
    view = _view(scene, views[0], torch.float32, **more)
    S = _random_information(n, 2)
    blocks, sh = torch.zeros(n + 3, 91), torch.zeros(n + 3, scene.sh.shape[1] - 1, 3)
    add_fisher(view, S, blocks, sh)
    plain = chain(scene, views[0])
    rotation = torch.where((nodes == 0)[:, None, None], turn.double(), torch.eye(3).double())
    A = torch.cat([plain[:, :, :3] @ rotation, plain[:, :, 3:]], -1)
    expected = pack(A.transpose(1, 2) @ unpack(S.double(), 9) @ A)
    scale = expected.abs().amax(1, keepdim=True)
    torch.testing.assert_close(blocks[rows].double() / scale, expected / scale, rtol=0, atol=1e-5)
    assert (blocks[:3] == 0).all()
    turned = _view(scene, views[0], torch.float32, **more, color_rotations=turn)
    more_sh = torch.zeros_like(sh)
    add_fisher(turned, S, torch.zeros_like(blocks), more_sh)
    _, basis, lit = chain_matrices(turned)  # the compiled core and the torch formulas agree
    colour = torch.diagonal(unpack(S, 9), dim1=1, dim2=2)[turned.visible, 6:] * lit
    by_hand = basis[:, 1:, None] ** 2 * colour[:, None]
    torch.testing.assert_close(more_sh[rows[turned.visible]], by_hand, rtol=1e-3, atol=1e-5)
    still = nodes < 0
    torch.testing.assert_close(more_sh[rows[still]], sh[rows[still]])
    assert not torch.allclose(more_sh[rows[~still]], sh[rows[~still]], rtol=1e-2)
    torch.testing.assert_close(
        chain_matrices(_view(scene, views[0], **more))[0], A, rtol=1e-6, atol=1e-6
    )


def test_a_strongly_observed_direction_does_not_break_the_factor() -> None:
    direction = torch.randn(64, 13, generator=torch.Generator().manual_seed(3))
    H = 1e9 * direction[:, :, None] * direction[:, None]
    factors = factor_blocks(pack(H), torch.ones(64, 13))
    assert torch.isfinite(factors).all()
    W = torch.zeros(64, 13, 13)
    rows, columns = torch.tril_indices(13, 13)
    W[:, rows, columns] = factors
    variance = torch.diagonal(W.transpose(1, 2) @ W, dim1=1, dim2=2)
    assert (variance <= 1 + 1e-4).all()
    assert (variance.amax(1) > 1e-3).all()


def test_the_chain_holds_for_a_camera_outside_the_golden_ones() -> None:
    _, scene, _, novel = load_golden("crowd_sh2")
    pose = look_at(
        torch.tensor([0.3, -0.4, -1.0]).double(),
        torch.tensor([0.0, 0.1, 5.0]).double(),
        torch.tensor([0.0, -1.0, 0.0]).double(),
    )
    view = SlowView(torch.linalg.inv(pose), novel.K, novel.width, novel.height, novel.background)
    A = chain(scene, view)
    ours = _view(scene, view)
    torch.testing.assert_close(chain_matrices(ours)[0], A[ours.visible], rtol=1e-8, atol=1e-8)
