"""A small drive with laser sweeps: a road, and one car ahead that drives away; every pose is known."""

import math
from dataclasses import replace

import cv2
import numpy as np
import torch

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.scene import Capture, PosedImage, Scene
from faithfusion_studio.transforms import rgb_to_sh0

SIZE = (4.4, 1.8, 1.5)
SPEED, INTERVAL = 5.0, 0.2
"""m/s and s."""
START = (10.0, 2.5, 0.75)
"""Centre of the car at the first time, m; the camera stands at the origin, 1.6 m high."""
WIDTH, HEIGHT = 128, 72


def pose(time):
    found = torch.eye(4, dtype=torch.float64)
    found[:3, 3] = torch.tensor(START, dtype=torch.float64)
    found[0, 3] += SPEED * time
    return found


def sweep(time, seed):
    """Road all around, and the two sides of the car that the sensor sees."""
    g = torch.Generator().manual_seed(seed)
    road = torch.rand(6000, 3, generator=g) * torch.tensor([50.0, 24.0, 0.02])
    road -= torch.tensor([5.0, 12.0, 0.0])
    length, width, height = SIZE
    u = torch.rand(700, 2, generator=g) - 0.5
    rear = torch.stack([torch.full((700,), -length / 2), u[:, 0] * width, u[:, 1] * height], 1)
    side = torch.stack([u[:, 0] * length, torch.full((700,), -width / 2), u[:, 1] * height], 1)
    car = torch.cat([rear, side]) + pose(time)[:3, 3].float()
    noisy = torch.cat([road, car])
    return noisy + 0.005 * torch.randn(noisy.shape, generator=g)


def camera(index):
    view = torch.eye(4, dtype=torch.float64)
    view[:3, :3] = torch.tensor([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    view[2, 3] = 1.6
    K = torch.tensor([[80.0, 0, WIDTH / 2], [0, 80, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(view, K, WIDTH, HEIGHT, time=index * INTERVAL)


def pixel(time, point=(-2.2, 0.0, 0.0)):
    """Where a point of the car's frame is in the picture of a time: the middle of its rear."""
    view = camera(0)
    place = pose(time) @ torch.tensor([*point, 1.0], dtype=torch.float64)
    x, y, z = (view.K @ (view.viewmat @ place)[:3]).tolist()
    return x / z, y / z


def passing_car(frames=6, lidar=True):
    """A scene of a few Gaussians with that recording."""
    cameras = [camera(i) for i in range(frames)]
    data = cv2.imencode(".png", np.full((HEIGHT, WIDTH, 3), 120, np.uint8))[1].tobytes()
    photos = tuple(PosedImage(c, data, f"{i:03d}") for i, c in enumerate(cameras))
    egos = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    scans = tuple(sweep(c.time, i) for i, c in enumerate(cameras)) if lidar else ()
    capture = Capture(
        photos, replace(trajectory_from_cameras(cameras), ego_to_worlds=egos), lidar=scans
    )
    n = 60
    means = torch.rand(n, 3, generator=torch.Generator().manual_seed(0)) * 20
    background = Gaussians(
        means - torch.tensor([0.0, 10.0, 0.0]),
        torch.full((n, 3), math.log(0.3)),
        torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
        torch.full((n,), 2.0),
        rgb_to_sh0(torch.full((n, 3), 0.5))[:, None],
        torch.zeros(n, 0, 3),
        torch.zeros(n, dtype=torch.uint8),
    )
    return Scene(background, capture=capture)
