"""The street that is measured on: a seeded generator of Gaussians, its camera, and a drive through it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.gaussians import Gaussians, Provenance
from faithfusion_studio.render.views import render_view
from faithfusion_studio.scene import Capture, PosedImage, Scene
from faithfusion_studio.sky import ConstantSky, pixel_directions
from faithfusion_studio.transforms import look_at, rgb_to_sh0

SHARES = {"ground": 0.3, "facades": 0.35, "boxes": 0.1, "clutter": 0.15, "dome": 0.1}
BACK, AHEAD = -59.0, 100.0
"""The street reaches from behind the camera to far ahead of it, m."""
SIZE = 0.235
"""Median standard deviation of 100,000 Gaussians along their two wide axes, m."""
CLEAR = 0.64
"""Share of Gaussians with the lower of the two opacities."""


def bench_camera(size: tuple[int, int]) -> Camera:
    """1.6 m above the road, looking along it, 70 degrees wide.

    Args:
        size: Width and height, pixels.
    """
    width, height = size
    focal = 0.5 * width / math.tan(math.radians(35))
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    pose = look_at(*torch.tensor([[0.0, 0, 1.6], [10, 0, 1.4], [0, 0, 1]]))
    return Camera(pose.double(), K.double(), width, height)


def bench_scene(gaussians: int, seed: int = 0) -> Scene:
    """Ground, two facades, boxes, clutter and a sky dome of flat Gaussians with bimodal opacity.

    More Gaussians are the same street in finer pieces: about 61 % are visible from `bench_camera`, and
    about 57 are blended into a pixel, whatever their number and the size of the image.

    Args:
        gaussians: How many.
        seed: Of every random number.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(n: int, *ranges: tuple[float | int, float | int]) -> Tensor:
        low = torch.tensor([r[0] for r in ranges])
        high = torch.tensor([r[1] for r in ranges])
        return low + (high - low) * torch.rand(n, len(ranges), generator=generator)

    counts = [int(gaussians * share) for share in SHARES.values()]
    counts[0] += gaussians - sum(counts)
    ground, facades, boxes, clutter, dome = counts
    walls = uniform(facades, (BACK, AHEAD), (0, 1), (0, 12))
    walls[:, 1] = torch.where(walls[:, 1] < 0.5, -9.0, 9.0)
    corner = uniform(24, (5, 80), (-7, 7), (0, 0))[torch.arange(boxes) % 24]
    sphere = torch.nn.functional.normalize(torch.randn(dome, 3, generator=generator), dim=-1)
    sphere[:, 2] = sphere[:, 2].abs()
    means = torch.cat(
        [
            uniform(ground, (BACK, AHEAD), (-12, 12), (-0.02, 0.02)),
            walls,
            corner + uniform(boxes, (0, 4), (0, 1.8), (0, 1.5)),
            uniform(clutter, (2, 90), (-12, 12), (0, 6)),
            sphere * torch.tensor([150.0, 150, 80]),
        ]
    )
    n = gaussians
    density = (100_000 / n) ** 0.5
    log_scales = math.log(SIZE * density) + 0.6 * torch.randn(n, 3, generator=generator)
    log_scales[:, 2] -= 1.8
    log_scales[n - dome :] += math.log(12.0)
    clear = torch.rand(n, generator=generator) < CLEAR
    logits = torch.where(clear, -2.0, 3.0) + 0.8 * torch.randn(n, generator=generator)
    return Scene(
        Gaussians(
            means=means,
            log_scales=log_scales,
            quats=torch.randn(n, 4, generator=generator),
            logit_opacities=logits,
            sh0=rgb_to_sh0(torch.rand(n, 1, 3, generator=generator)),
            shN=0.05 * torch.randn(n, 3, 3, generator=generator),
            provenance=torch.full((n,), int(Provenance.RECORDED), dtype=torch.uint8),
        ),
        sky=ConstantSky(torch.tensor([0.5, 0.6, 0.8])),
    )


def road_depth(camera: Camera) -> Float32[Tensor, "H W"]:
    """Depth of the plane z = 0 along every pixel, m along the camera's z; 0 off the road."""
    rays = pixel_directions(camera)
    forward = camera.camtoworld[:3, 2].to(rays)
    distance = camera.position[2].to(rays) / (-rays[..., 2]).clamp(min=1e-6)
    sideways = camera.position[1].to(rays) + distance * rays[..., 1]
    on_road = (rays[..., 2] < 0) & (sideways.abs() < 9) & (distance < 80)
    return torch.where(on_road, distance * (rays @ forward), torch.zeros_like(distance))


def street_recording(scene: Scene, frames: int, size: tuple[int, int]) -> Capture:
    """A drive through a scene, 1 m between frames, recorded as JPEG by its own renderer.

    Args:
        scene: The street.
        frames: How many.
        size: Width and height, pixels.
    """
    from faithfusion_studio.synthetic.recording import encode_jpeg

    images = []
    for index in range(frames):
        camera = bench_camera(size)
        pose = camera.camtoworld.clone()
        pose[0, 3] += float(index)
        camera = camera.moved(pose, time=index / 10)
        picture = render_view(scene, camera).rgb.numpy()
        images.append(PosedImage(camera, encode_jpeg(picture, 95), f"{index:06d}"))
    trajectory = trajectory_from_cameras([image.camera for image in images])
    return Capture(tuple(images), trajectory, source="generated street of ff-studio bench")
