"""The fast passes, put together by hand, against the golden files in single precision."""

import gsplat_twin
import numpy as np
import pytest
import torch
from elsewhere import elsewhere
from slow_information import load_golden

from faithfusion_studio.information.eig import half_log_det
from faithfusion_studio.render.chain import (
    ChainView,
    add_fisher,
    factor_blocks,
    posterior_covariances,
    unpack,
    visible_gaussians,
)
from faithfusion_studio.render.rasterization import (
    accumulate_information,
    evaluate_information,
    rasterization,
)

NAMES = ["plain_sh0", "plain_sh3", "hard_sh1", "crowd_sh2"]
CPU = torch.device("cpu")


@pytest.fixture
def device(request, monkeypatch):
    """The CPU; or a device that pretends, where all of CUDA's path runs but gsplat's operators."""
    if request.param == "cpu":
        yield CPU
        return
    pytest.importorskip("triton", reason="triton is not installed")
    with elsewhere(monkeypatch, gsplat_twin.install_elsewhere(monkeypatch)) as away:
        yield away


def _rasterize(data, scene, view, device=CPU):
    names = ("means", "quats", "scales", "opacities", "sh")
    f = {k: getattr(scene, k).float().to(device) for k in names}
    _, alphas, meta = rasterization(
        *f.values(),
        view.viewmat.float()[None].to(device),
        view.K.float()[None].to(device),
        view.width,
        view.height,
        sh_degree=scene.sh_degree,
        backgrounds=view.background.float()[None].to(device),
    )
    chain = ChainView(
        f["means"],
        f["quats"],
        f["scales"],
        f["sh"][:, :1],
        f["sh"][:, 1:],
        scene.sh_degree,
        view.viewmat.float().to(device),
        view.K.float(),
        view.width,
        view.height,
        visible_gaussians(meta),
    )
    return alphas[0, :, :, 0], meta, chain


def _near(ours: torch.Tensor, golden: np.ndarray) -> None:
    scale = float(np.abs(golden).max()) if golden.size else 1.0
    np.testing.assert_allclose(ours.cpu().numpy(), golden, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("device", "name"),
    [*(("cpu", name) for name in NAMES), ("elsewhere", "plain_sh3"), ("elsewhere", "hard_sh1")],
    indirect=["device"],
)
def test_every_golden_of_the_information_passes_is_met(name: str, device: torch.device) -> None:
    data, scene, views, novel = load_golden(name)
    n, sigma2 = len(scene), float(data["sigma"]) ** 2
    blocks = torch.zeros(n, 91, device=device)
    sh = torch.zeros(n, scene.sh.shape[1] - 1, 3, device=device)
    for view in views:
        alpha, meta, chain = _rasterize(data, scene, view, device)
        S = accumulate_information(meta, torch.full_like(alpha, 1 / sigma2)[None])[0]
        add_fisher(chain, S, blocks, sh)
    for i in range(n):
        _near(unpack(blocks.cpu(), 13)[i], data["fisher"][i])
    _near(sh, data["fisher_sh"])

    prior = torch.from_numpy(data["prior_precision"]).float().to(device)
    alpha, meta, chain = _rasterize(data, scene, novel, device)
    factors = factor_blocks(blocks, prior)
    M = posterior_covariances(chain, factors, scale=1 / sigma2)
    G = evaluate_information(meta, M[None])[0]
    G, alpha = G.cpu(), alpha.cpu()
    _near(unpack(G, 3), data["G"])
    _near(half_log_det(G), data["eig_block"])
    _near(0.5 * G[..., [0, 3, 5]].sum(-1), data["eig_trace"])
    void = torch.zeros_like(G)
    void[..., [0, 3, 5]] = ((1 - alpha) ** 2 * float(data["sigma_bg"]) ** 2 / sigma2)[..., None]
    _near(half_log_det(G + void), data["eig_block_void"])

    diagonal = factor_blocks(blocks, prior, diagonal=True)
    M = posterior_covariances(chain, diagonal, scale=1 / sigma2)
    G = evaluate_information(meta, M[None])[0].cpu()
    _near(0.5 * G[..., [0, 3, 5]].sum(-1), data["eig_diagonal"])

    lambda_sh = float(data["lambda_sh"])
    M = posterior_covariances(chain, factors, scale=1 / sigma2, sh_evidence=sh, sh_prior=lambda_sh)
    _near(half_log_det(evaluate_information(meta, M[None])[0]), data["eig_block_sh"])


def test_a_background_per_pixel_equals_the_same_background_as_one_colour() -> None:
    data, scene, views, _ = load_golden("plain_sh3")
    alpha, meta, _ = _rasterize(data, scene, views[0])
    image = views[0].background.float().expand(views[0].height, views[0].width, 3)
    weight = torch.ones_like(alpha)[None]
    same = accumulate_information(meta, weight, image[None].contiguous())
    torch.testing.assert_close(same, accumulate_information(meta, weight), rtol=0, atol=0)
    other = accumulate_information(meta, weight, 1 - image[None].contiguous())
    assert not torch.allclose(other, same)
