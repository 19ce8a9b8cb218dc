"""A small made-up street for the studio's tests: road, two walls, ten recorded frames."""

import math
from dataclasses import replace

import cv2
import numpy as np
import torch

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.scene import Capture, PosedImage, Scene
from faithfusion_studio.sky import ConstantSky
from faithfusion_studio.transforms import rgb_to_sh0

WIDTH, HEIGHT = 96, 54


def street(num_gaussians=600, frames=10, seed=0) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_gaussians, 3, generator=generator)
    x = uniform[:, 0] * 30
    side = (torch.arange(num_gaussians) % 3) - 1  # wall, road, wall
    y = torch.where(side == 0, uniform[:, 1] * 8 - 4, side * 4.0)
    z = torch.where(side == 0, torch.zeros(()), uniform[:, 2] * 4)
    color = torch.where((side == 0)[:, None], torch.tensor([0.3, 0.3, 0.3]), uniform * 0.4 + 0.4)
    background = Gaussians(
        means=torch.stack([x, y, z], 1),
        log_scales=torch.full((num_gaussians, 3), math.log(0.35)),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(num_gaussians, 1),
        logit_opacities=torch.full((num_gaussians,), 2.0),
        sh0=rgb_to_sh0(color)[:, None],
        shN=torch.zeros(num_gaussians, 0, 3),
        provenance=(side == 1).to(torch.uint8),
    )
    cameras = [recorded_camera(i) for i in range(frames)]
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    image[:, : WIDTH // 2] = (0, 0, 255)  # red on the left, as OpenCV stores it
    data = cv2.imencode(".png", image)[1].tobytes()
    photos = tuple(PosedImage(c, data, f"{i:03d}") for i, c in enumerate(cameras))
    capture = Capture(photos, trajectory_from_cameras(cameras), source="made up")
    return Scene(background, sky=ConstantSky(torch.tensor([0.6, 0.8, 1.0])), capture=capture)


def with_true_photos(scene: Scene) -> Scene:
    """The same street with photos that show it, so that it can be repaired and learned from."""
    from faithfusion_studio.render.views import render_view, to_uint8

    photos = []
    for photo in scene.capture.frames:
        image = to_uint8(render_view(scene, photo.camera).rgb).numpy()[:, :, ::-1]
        photos.append(replace(photo, data=cv2.imencode(".png", image)[1].tobytes()))
    return replace(scene, capture=replace(scene.capture, frames=tuple(photos)))


def recorded_camera(index: int) -> Camera:
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    pose[:3, 3] = torch.tensor([float(index), 0.0, 1.5])
    K = torch.tensor([[60.0, 0, WIDTH / 2], [0, 60, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, WIDTH, HEIGHT, time=index * 0.1)


def without_recording(scene: Scene) -> Scene:
    return replace(scene, capture=None)
