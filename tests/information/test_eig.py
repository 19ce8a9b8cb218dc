"""The fast passes and maps against per-pixel Jacobians by autograd."""

from dataclasses import replace

import pytest
import torch

from faithfusion_studio.bench.tiny_scenes import camera_at, largest_relative_error, random_gaussians
from faithfusion_studio.information import FisherPrior, eig_map
from faithfusion_studio.information.calibration import Calibration
from faithfusion_studio.information.eig import EigForm, _nats, void_variance
from faithfusion_studio.render.chain import pack
from faithfusion_studio.render.images import nats_image
from faithfusion_studio.render.views import rasterize_view
from faithfusion_studio.scene import Scene, StoredFisher
from scenes import tiny_world

NOISE = 0.08


@pytest.mark.parametrize("seed", range(20))
def test_fisher_and_maps_of_a_random_scene_equal_brute_force(seed: int) -> None:
    assert largest_relative_error(*tiny_world(seed), noise=NOISE) < 1e-4


def test_the_comparison_with_brute_force_notices_a_small_error(monkeypatch) -> None:
    def louder(*arguments, **options):
        found = eig_map(*arguments, **options)
        return replace(found, eig=found.eig * (1 + 3e-4))

    monkeypatch.setattr("faithfusion_studio.bench.tiny_scenes.eig_map", louder)
    assert largest_relative_error(*tiny_world(0), noise=NOISE) > 1e-4


@pytest.mark.parametrize("form", ["block", "trace", "diagonal"])
def test_the_compiled_last_step_equals_its_formula(form: EigForm) -> None:
    """Nats over ten orders of magnitude, a sky seen in part, and pixels outside the calibration."""
    generator = torch.Generator().manual_seed(3)
    camera = camera_at(0.0, 0.0, 0.0)
    size = (camera.height, camera.width)
    J = torch.randn(*size, 3, 3, generator=generator)
    J = J * 10 ** torch.empty(*size, 1, 1).uniform_(-5, 2, generator=generator)
    G = pack(J @ J.transpose(2, 3))
    alpha = torch.rand(*size, generator=generator).round(decimals=1)
    sky = 1e4 * torch.rand(6, 8, 8, generator=generator)
    fisher = StoredFisher(torch.zeros(0, 91), torch.zeros(0, 0, 3), 0.03, 1, sky=sky)
    prior, knots = FisherPrior(), torch.tensor([[0.01, 0.0], [0.5, 0.4], [4.0, 1.0]])
    scene = Scene(random_gaussians(1, 0, 0))
    view = replace(rasterize_view(scene, camera), alpha=alpha)
    void = void_variance(scene, camera, view, fisher, prior)
    trace = G[..., 0] + G[..., 3] + G[..., 5]
    eig, mean = _nats(
        trace if form == "diagonal" else G, (1 - alpha).square() * void / 0.03**2, form
    )
    got = nats_image(
        trace if form == "diagonal" else G,
        alpha,
        camera,
        log_det=form == "block",
        sky_evidence=sky,
        void_variance=prior.void**2,
        precision=1 / 0.03**2,
        knots=knots,
    )
    for ours, expected in zip(got, (eig, Calibration(knots).apply(eig), mean, void), strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=1e-9)
