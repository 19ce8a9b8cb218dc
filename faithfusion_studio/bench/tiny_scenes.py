"""Tiny random scenes that brute force can follow, and how far the fast passes are from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from faithfusion_studio.bench.brute_force import (
    SlowScene,
    SlowView,
    fisher,
    information_gain,
    nats,
)
from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.information import FisherAccumulator, FisherPrior, eig_map
from faithfusion_studio.information.eig import void_variance
from faithfusion_studio.render.chain import unpack
from faithfusion_studio.render.views import rasterize_view
from faithfusion_studio.scene import Scene, StoredFisher
from faithfusion_studio.sky import ConstantSky
from faithfusion_studio.transforms import look_at

WIDTH, HEIGHT = 12, 8
SKY = torch.tensor([0.1, 0.2, 0.35])


def random_gaussians(n: int, degree: int, seed: int) -> Gaussians:
    """Overlapping blobs in front of cameras that look along +x of the world."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(n, 3, generator=g) * torch.tensor([0.8, 0.9, 0.5]) + torch.tensor(
        [4.0, 0, 0]
    )
    bands = (degree + 1) ** 2 - 1
    return Gaussians(
        means=means,
        log_scales=torch.log(0.15 + 0.5 * torch.rand(n, 3, generator=g)),
        quats=torch.randn(n, 4, generator=g),
        logit_opacities=torch.logit(0.05 + 0.9 * torch.rand(n, generator=g)),
        sh0=torch.randn(n, 1, 3, generator=g) * 0.7,
        shN=torch.randn(n, bands, 3, generator=g) * 0.15,
        provenance=torch.zeros(n, dtype=torch.uint8),
    )


def camera_at(x: float, y: float, z: float, time: float = 0.0) -> Camera:
    """A small camera that looks at (4, 0, 0)."""
    at = torch.tensor([x, y, z]).double()
    pose = look_at(at, torch.tensor([4.0, 0, 0]).double(), torch.tensor([0.0, 0, 1]).double())
    K = torch.tensor([[13.0, 0, 6.4], [0, 12.0, 3.7], [0, 0, 1]]).double()
    return Camera(pose, K, WIDTH, HEIGHT, time)


def recorded_cameras(seed: int, count: int = 2) -> list[Camera]:
    """Cameras spread a little around the origin."""
    g = torch.Generator().manual_seed(1000 + seed)
    offsets = torch.randn(count, 3, generator=g) * torch.tensor([0.3, 0.5, 0.2])
    return [camera_at(*o.tolist()) for o in offsets]


def tiny_scene(n: int = 6, degree: int = 1, seed: int = 0) -> Scene:
    """Random blobs before a sky of one colour."""
    return Scene(random_gaussians(n, degree, seed), sky=ConstantSky(SKY))


def slow_scene(scene: Scene) -> SlowScene:
    """The same Gaussians in double precision."""
    g = scene.background
    return SlowScene(
        g.means.double(),
        g.quats.double(),
        g.scales.double(),
        g.opacities.double(),
        g.sh.double(),
        g.sh_degree,
    )


def slow_view(camera: Camera) -> SlowView:
    """The same camera for the slow twin."""
    return SlowView(camera.viewmat, camera.K, camera.width, camera.height, SKY.double())


def tiny_world(seed: int) -> tuple[Scene, list[Camera], Camera]:
    """A tiny scene whose size and harmonics vary with the seed, two recorded cameras, a novel one."""
    scene = tiny_scene(n=4 + seed % 5, degree=seed % 4, seed=seed)
    return scene, recorded_cameras(seed), camera_at(0.4, -1.2, 0.5)


def largest_relative_error(
    scene: Scene, recorded: Sequence[Camera], novel: Camera, noise: float = 0.08
) -> float:
    """Largest error of the Fisher blocks, the evidence of the harmonics and every EIG form in nats.

    Args:
        scene: From `tiny_scene`.
        recorded: Cameras that give the evidence.
        novel: The camera of the maps.
        noise: Pixel noise sigma_0, colour unit.

    Returns:
        Blocks over sqrt(H_aa H_bb); everything else over its largest value.
    """
    accumulator = FisherAccumulator(scene, noise_std=noise)
    for camera in recorded:
        accumulator.add(camera, None)
    found, slow = accumulator.finish(), slow_scene(scene)
    H, sh = fisher(slow, [slow_view(camera) for camera in recorded], 1 / noise**2)
    size = torch.diagonal(H, dim1=1, dim2=2).sqrt()
    scale = (size[:, :, None] * size[:, None]).clamp(min=1e-6)
    errors = [((unpack(found.blocks, 13).double() - H) / scale).abs().max()]
    if sh.numel():
        errors.append(_error(found.sh, sh))
    for form, truth in _true_maps(scene, novel, found, H, sh).items():
        errors.append(_error(eig_map(scene, novel, fisher=found, form=form).eig, truth))  # type: ignore[arg-type]
    return float(torch.stack(errors).max())


def _true_maps(
    scene: Scene, novel: Camera, found: StoredFisher, H: Tensor, sh: Tensor
) -> dict[str, Tensor]:
    """Nats of every form by brute force; only what is known of the sky is taken from `found`."""
    prior = FisherPrior()
    precision = prior.precision(scene.background.scales).double()
    gain = information_gain(
        slow_scene(scene), slow_view(novel), H, sh, precision, prior.sh_precision
    )
    void = void_variance(scene, novel, rasterize_view(scene, novel), found, prior).double()
    extra = torch.diag_embed(gain["sh"] + (void * gain["transmittance2"])[..., None])
    block, diagonal = ((gain[form] + extra) / found.noise_std**2 for form in ("block", "diagonal"))
    return {
        "block": nats(block),
        "trace": 0.5 * torch.einsum("hwcc->hw", block),
        "diagonal": 0.5 * torch.einsum("hwcc->hw", diagonal),
    }


def _error(ours: Tensor, truth: Tensor) -> Tensor:
    return (ours.double() - truth).abs().max() / truth.max()
