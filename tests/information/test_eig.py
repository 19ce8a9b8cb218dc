"""The fast maps against per-pixel Jacobians by autograd, and the laws they have to obey."""

import pytest
import torch
from slow_information import fisher as slow_fisher
from slow_information import information_gain, nats

from faithfusion_studio.information import FisherAccumulator, FisherPrior, eig_map
from faithfusion_studio.render.chain import unpack
from scenes import camera_at, recorded_cameras, slow_scene, slow_view, tiny_scene

NOISE = 0.08


def _evidence(scene, cameras):
    sum_ = FisherAccumulator(scene, noise_std=NOISE)
    for camera in cameras:
        sum_.add(camera, None)
    return sum_.finish()


@pytest.mark.parametrize("seed", range(20))
def test_fisher_and_maps_of_a_random_scene_equal_brute_force(seed: int) -> None:
    scene = tiny_scene(n=4 + seed % 5, degree=seed % 4, seed=seed)
    cameras, novel = recorded_cameras(seed), camera_at(0.4, -1.2, 0.5)
    fisher = _evidence(scene, cameras)
    slow = slow_scene(scene)
    H, sh = slow_fisher(slow, [slow_view(c) for c in cameras], 1 / NOISE**2)
    got = unpack(fisher.blocks, 13).double()
    size = torch.diagonal(H, dim1=1, dim2=2).sqrt()
    scale = (size[:, :, None] * size[:, None]).clamp(min=1e-6)
    assert float(((got - H) / scale).abs().max()) < 1e-4
    if sh.numel():
        torch.testing.assert_close(fisher.sh.double(), sh, rtol=1e-4, atol=1e-4 * float(sh.max()))

    prior = FisherPrior()
    precision = prior.precision(scene.background.scales).double()
    gain = information_gain(slow, slow_view(novel), H, sh, precision, prior.sh_precision)
    direction = eig_map(scene, novel, fisher=fisher)
    void = _void(scene, novel, fisher, prior) * gain["transmittance2"]
    extra = torch.diag_embed(gain["sh"] + void[..., None])
    block = (gain["block"] + extra) / NOISE**2
    _near(direction.eig, nats(block))
    trace = eig_map(scene, novel, fisher=fisher, form="trace")
    _near(trace.eig, 0.5 * torch.einsum("hwcc->hw", block))
    diagonal = (gain["diagonal"] + extra) / NOISE**2
    _near(
        eig_map(scene, novel, fisher=fisher, form="diagonal").eig,
        0.5 * torch.einsum("hwcc->hw", diagonal),
    )


def _near(ours: torch.Tensor, truth: torch.Tensor) -> None:
    assert float((ours.double() - truth).abs().max()) <= 1e-4 * float(truth.max())


def _void(scene, camera, fisher, prior) -> torch.Tensor:
    from faithfusion_studio.information.eig import void_variance
    from faithfusion_studio.render.views import rasterize_view

    view = rasterize_view(scene, camera)
    return void_variance(scene, camera, view, fisher, prior).double()
