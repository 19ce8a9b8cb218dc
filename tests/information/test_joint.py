"""The joint map of colour and depth against explicit matrices, and its laws."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from test_fisher import recorded_scene

from faithfusion_studio.information import FisherAccumulator, FisherPrior, eig_map, recorded_fisher
from faithfusion_studio.information.eig import _gain, void_variance
from faithfusion_studio.information.joint import (
    DEPTH_NOISE,
    REGISTRATION,
    depth_variance,
    image_derivatives,
)
from faithfusion_studio.render.chain import unpack
from faithfusion_studio.render.views import rasterize_view, render_features
from scenes import tiny_world

NOISE = 0.08


def known(seed: int, views: int = 2):
    scene, recorded, novel = tiny_world(seed)
    evidence = FisherAccumulator(scene, noise_std=NOISE)
    for camera in recorded[:views]:
        evidence.add(camera, None)
    return replace(scene, fisher=evidence.finish()), recorded, novel


@pytest.mark.parametrize("seed", range(5))
def test_the_map_is_colour_with_registration_plus_depth(seed: int) -> None:
    scene, _, novel = known(seed)
    fisher, prior = scene.fisher, FisherPrior()
    assert fisher is not None
    with torch.no_grad():
        view = rasterize_view(scene, novel)
        G = unpack(_gain(scene, novel, view, fisher, prior, False), 3).double()
        void = void_variance(scene, novel, view, fisher, prior).double()
        weights, alpha, _ = render_features(view, novel, torch.eye(scene.num_gaussians))
    G += ((1 - view.alpha.double()).square() * void / NOISE**2)[..., None, None] * torch.eye(3)
    image = view.rgb.clamp(0, 1).double().numpy()
    for axis in ((1, 0), (0, 1)):
        d = cv2.Sobel(image, cv2.CV_64F, *axis, ksize=3, borderType=cv2.BORDER_REPLICATE) / 8
        d = torch.from_numpy(d) * REGISTRATION * novel.width / NOISE
        G += d[..., :, None] * d[..., None, :]
    share = (weights / alpha.clamp(min=1e-3)[..., None]).double()
    z = (scene.background.means.double() @ novel.viewmat[2, :3]) + novel.viewmat[2, 3]
    # Independent of the code: H + Lambda as whole matrices, the extent as the world covariance along the axis.
    diagonal = unpack(fisher.blocks.double(), 13).diagonal(dim1=1, dim2=2)[:, :3]
    Lambda = prior.precision(scene.background.scales).double()[:, :3]
    axis = novel.viewmat[2, :3]
    g = scene.background
    R = torch.stack([_rotation(q) for q in g.quats.double()])
    extent = torch.einsum("i,nij,nj,nkj,k->n", axis, R, g.scales.double() ** 2, R, axis)
    inner = (axis**2 / (diagonal + Lambda)).sum(1) + extent
    variance = (share @ z**2 - (share @ z) ** 2).clamp(min=0) + share @ inner
    expected = 0.5 * torch.linalg.slogdet(torch.eye(3) + G).logabsdet
    expected = expected + 0.5 * torch.log1p(variance / DEPTH_NOISE**2)
    found = eig_map(scene, novel, form="joint").eig.double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def _rotation(q: torch.Tensor) -> torch.Tensor:
    w, x, y, z = (q / q.norm()).tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("seed", range(4))
def test_it_is_never_below_block_and_more_views_never_raise_it(seed: int) -> None:
    scene, recorded, novel = known(seed, views=1)
    block, joint = (eig_map(scene, novel, form=form).eig for form in ("block", "joint"))
    assert (joint >= block - 1e-6).all()
    both = FisherAccumulator(scene, noise_std=NOISE)
    for camera in recorded:
        both.add(camera, None)
    more = eig_map(scene, novel, fisher=both.finish(), form="joint").eig
    assert (more <= joint + 1e-6).all()


def test_a_flat_picture_has_no_derivatives_and_a_ramp_has_its_slope() -> None:
    flat, ramp = torch.full((6, 8, 3), 0.4), torch.arange(8.0).expand(6, 8)[..., None] * 0.1
    for d in image_derivatives(flat):
        assert float(d.abs().max()) < 1e-7
    x, y = image_derivatives(ramp.expand(6, 8, 3).contiguous())
    torch.testing.assert_close(x[:, 1:-1], torch.full((6, 6, 3), 0.1))
    assert float(y.abs().max()) < 1e-6


def test_a_known_depth_is_as_uncertain_as_the_splats_are_thick() -> None:
    scene, _, novel = known(2)
    assert scene.fisher is not None
    certain = replace(scene.fisher, blocks=scene.fisher.blocks + _much())
    with torch.no_grad():
        view = rasterize_view(scene, novel)
        thin = depth_variance(view, novel, certain, FisherPrior())
        thick = depth_variance(view, novel, scene.fisher, FisherPrior())
    assert (thick >= thin - 1e-6).all() and float((thick - thin).max()) > 1e-4


def _much() -> torch.Tensor:
    packed = torch.zeros(91)
    packed[[a * 13 - a * (a - 1) // 2 for a in range(13)]] = 1e9
    return packed


def test_its_scale_is_fitted_on_its_own_recorded_views() -> None:
    scene = recorded_scene(0.03)
    scene = replace(scene, fisher=recorded_fisher(scene))
    maps = [eig_map(scene, frame.camera, form="joint").calibrated for frame in scene.capture.frames]
    values = torch.cat([m.flatten() for m in maps])
    assert float(values.min()) >= 0 and float(values.max()) <= 1
    assert float((values > 0).float().mean()) == pytest.approx(0.5, abs=0.06)
    assert float((values > 0.4).float().mean()) == pytest.approx(0.4, abs=0.12)
    assert np.isfinite(values.numpy()).all()
