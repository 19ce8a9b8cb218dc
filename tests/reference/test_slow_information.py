"""The slow twin against the golden files, which an independent program made."""

import numpy as np
import pytest
import torch
from slow_information import chain, fisher, information_gain, load_golden, nats, record_jacobians

NAMES = ["plain_sh0", "plain_sh3", "hard_sh1", "crowd_sh2"]


def _close(ours: torch.Tensor, golden: np.ndarray) -> None:
    scale = max(float(np.abs(golden).max()), 1e-12) if golden.size else 1.0
    np.testing.assert_allclose(ours.numpy(), golden, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("name", NAMES)
def test_the_slow_twin_reproduces_every_information_golden(name: str) -> None:
    data, scene, views, novel = load_golden(name)
    sigma2 = float(data["sigma"]) ** 2
    H, sh = fisher(scene, views, 1 / sigma2)
    _close(H, data["fisher"])
    _close(sh, data["fisher_sh"])
    prior = torch.from_numpy(data["prior_precision"])
    gain = information_gain(scene, novel, H, sh, prior, float(data["lambda_sh"]))
    G = gain["block"] / sigma2
    _close(G, data["G"])
    _close(nats(G), data["eig_block"])
    _close(0.5 * torch.einsum("hwcc->hw", G), data["eig_trace"])
    _close(0.5 * torch.einsum("hwcc->hw", gain["diagonal"]) / sigma2, data["eig_diagonal"])
    void = gain["transmittance2"] * float(data["sigma_bg"]) ** 2 / sigma2
    eye = torch.eye(3, dtype=torch.float64)
    _close(nats(G + void[..., None, None] * eye), data["eig_block_void"])
    _close(gain["sh"] / sigma2, data["sh_term"])
    _close(nats(G + torch.diag_embed(gain["sh"] / sigma2)), data["eig_block_sh"])


@pytest.mark.parametrize("name", ["plain_sh3", "hard_sh1"])
def test_records_and_chain_multiply_to_the_parameter_jacobian(name: str) -> None:
    data, scene, views, _ = load_golden(name)
    H = torch.zeros(len(scene), 13, 13, dtype=torch.float64)
    for view in views:
        J = record_jacobians(scene, view)
        A = chain(scene, view)
        S = torch.einsum("hwcia,hwcib->iab", J, J)
        H += A.transpose(1, 2) @ S @ A
    _close(H / float(data["sigma"]) ** 2, data["fisher"])
