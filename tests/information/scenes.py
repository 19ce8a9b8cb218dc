"""Tiny random scenes that the slow twin can follow, and what is needed to compare with it."""

import torch
from slow_information import SlowScene, SlowView

from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.scene import ConstantSky, Scene
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
