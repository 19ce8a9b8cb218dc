"""A tiny drive for training tests: random splats on a road and two walls, seen by their own renderer."""

from dataclasses import replace

import cv2
import torch

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.render.views import render_view, to_uint8
from faithfusion_studio.scene import Capture, PointCloud, PosedImage, Scene
from faithfusion_studio.sky import ConstantSky
from faithfusion_studio.transforms import rgb_to_sh0

WIDTH, HEIGHT = 80, 48


def drive_camera(x, y=0.0, time=0.0):
    pose = torch.tensor(
        [[0.0, 0, 1, x], [-1, 0, 0, y], [0, -1, 0, 1.6], [0, 0, 0, 1]], dtype=torch.float64
    )
    K = torch.tensor([[60.0, 0, WIDTH / 2], [0, 60.0, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, WIDTH, HEIGHT, time)


def tiny_world(seed=0, count=1500):
    """The true scene."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(count, generator=g) * 30 + 2
    side = torch.randint(0, 3, (count,), generator=g)
    y = torch.where(side == 0, torch.rand(count, generator=g) * 8 - 4, 0.0)
    y = y + (side == 1) * 4.0 - (side == 2) * 4.0
    z = torch.where(side == 0, 0.0, torch.rand(count, generator=g) * 4)
    color = 0.5 + 0.4 * torch.sin(torch.stack([x, 2 * y + x, 3 * z + 1 + x / 2], -1))
    return Scene(
        background=Gaussians(
            means=torch.stack([x, y, z], -1),
            log_scales=torch.full((count, 3), -1.4),
            quats=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
            logit_opacities=torch.full((count,), 2.5),
            sh0=rgb_to_sh0(color)[:, None],
            shN=torch.zeros(count, 0, 3),
            provenance=torch.zeros(count, dtype=torch.uint8),
        ),
        sky=ConstantSky(torch.tensor([0.6, 0.75, 0.95])),
    )


def tiny_capture(frames=12, points=True, seed=0):
    """Frames 0.7 m apart, as PNG, with every third centre as a recorded point."""
    world = tiny_world(seed)
    images = []
    for index in range(frames):
        camera = drive_camera(0.7 * index, time=index / 10)
        pixels = to_uint8(render_view(world, camera).rgb).numpy()[:, :, ::-1]
        ok, data = cv2.imencode(".png", pixels)
        assert ok
        images.append(PosedImage(camera, data.tobytes(), f"{index:06d}"))
    g = world.background.select(torch.arange(0, len(world.background), 3))
    rgb = ((g.sh0[:, 0] * 0.28209479 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
    return Capture(
        frames=tuple(images),
        trajectory=trajectory_from_cameras([image.camera for image in images]),
        points=PointCloud(g.means, rgb) if points else None,
    )


def without_points(capture):
    return replace(capture, points=None)
