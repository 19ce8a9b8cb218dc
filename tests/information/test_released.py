"""The published formula against an independent double loop over pixels and Gaussians."""

import math
from dataclasses import replace

import torch
from slow_information import pixel_jacobians, record_jacobians

from faithfusion_studio.information import FisherAccumulator, eig_map
from faithfusion_studio.render.chain import unpack
from faithfusion_studio.render.views import rasterize_view
from scenes import camera_at, recorded_cameras, slow_scene, slow_view, tiny_scene


def _big_scene():
    """Every Gaussian reaches the only tile, so list positions are depth ranks."""
    scene = tiny_scene(n=5, degree=1, seed=4)
    g = scene.background
    wide = replace(g, log_scales=g.log_scales.clamp(min=math.log(0.4)), sh0=g.sh0 * 0.3)
    return replace(scene, background=wide, sky=None)


def _collapsed(scene, diagonal: torch.Tensor, i: int) -> float:
    s, o = scene.background.scales[i].double(), float(scene.background.opacities[i])
    parts = [diagonal[:3].sum(), 4 * diagonal[3:6].sum(), (diagonal[6:9] / s**2).sum()]
    return float(sum(parts)) + float(diagonal[9]) / (o * (1 - o)) ** 2


def test_released_form_equals_a_double_loop() -> None:
    scene, novel = _big_scene(), camera_at(0.2, -0.6, 0.3)
    sum_ = FisherAccumulator(scene, noise_std=0.08)
    for camera in recorded_cameras(4):
        sum_.add(camera, None)
    fisher = sum_.finish()
    found = eig_map(scene, novel, fisher=fisher, form="released")

    view = replace(slow_view(novel), background=torch.zeros(3).double())
    slow = slow_scene(scene)
    J, Jsh, T = pixel_jacobians(slow, view)
    w = record_jacobians(slow, view)[:, :, 0, :, 6]
    z = slow.means @ view.viewmat[2, :3] + view.viewmat[2, 3]
    rank = torch.argsort(torch.argsort(z)) + 1
    H = torch.diagonal(unpack(fisher.blocks, 13), dim1=1, dim2=2).double() * 0.08**2
    acquired = torch.zeros(len(slow)).double()
    for i in range(len(slow)):
        novel_sum = 0.0
        for y in range(novel.height):
            for x in range(novel.width):
                squares = J[y, x, :, i].sum(0) ** 2
                novel_sum += _collapsed(scene, squares, i)
                novel_sum += float((J[y, x, range(3), i, range(10, 13)] ** 2).sum())
                novel_sum += float((Jsh[y, x, range(3), i, :, range(3)] ** 2).sum())
        seen = _collapsed(scene, H[i], i) + float(H[i, 10:].sum())
        seen += float(fisher.sh[i].sum()) * 0.08**2
        acquired[i] = novel_sum / (seen + 1e-6)
    depth = rasterize_view(scene, novel).depth
    for y in range(novel.height):
        for x in range(novel.width):
            blended = w[y, x] > 0
            n = int(rank[blended].max()) if bool(blended.any()) else 0
            raw = float((w[y, x] * acquired).sum())
            raw *= float(depth[y, x]) * float(1 - T[y, x]) > 0.1
            expected = math.log1p(raw / max(n, 1e-6) / 1000) + 1e-9
            assert abs(float(found.eig[y, x]) - expected) < 2e-4 * float(found.eig.max())
    assert float(found.calibrated.max()) <= 1 and float(found.eig.max()) > 0


def test_released_form_tells_empty_pixels_by_coverage_not_by_value() -> None:
    scene = tiny_scene(n=3, degree=0, seed=1)
    scene = replace(scene, sky=None)
    camera = camera_at(9.0, 0.0, 0.0)
    sum_ = FisherAccumulator(scene, noise_std=0.08)
    sum_.add(camera_at(0.0, 0.0, 0.0), None)
    behind = replace(camera, camtoworld=camera_at(0.0, 0.0, 0.0).camtoworld.clone())
    behind.camtoworld[:3, 3] += torch.tensor([20.0, 0, 0]).double()
    found = eig_map(scene, behind, fisher=sum_.finish(), form="released")
    assert not found.coverage.any()
    assert (found.calibrated == 1).all() and float(found.eig.max()) < 1e-6
