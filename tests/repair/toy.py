"""A tiny textured world of boxes above a plane, with exact images and depths from any camera."""

from __future__ import annotations

import torch
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.sky import pixel_directions

BOXES = torch.tensor(
    [
        # x0, x1, y0, y1, z0, z1: facades left and right with a gap, three parked cars, a pole
        [4.0, 30.0, 7.0, 12.0, 0.0, 9.0],
        [36.0, 70.0, 7.5, 12.0, 0.0, 6.0],
        [6.0, 40.0, -12.0, -6.0, 0.0, 7.0],
        [45.0, 80.0, -12.0, -6.5, 0.0, 10.0],
        [12.0, 16.2, 4.2, 6.0, 0.1, 1.5],
        [22.0, 26.2, 4.3, 6.1, 0.1, 1.5],
        [17.0, 21.2, -5.8, -4.1, 0.1, 1.5],
        [14.0, 14.25, -4.9, -4.65, 0.0, 5.0],
    ]
)


def toy_camera(x: float, y: float = 0.0, size: tuple[int, int] = (96, 54), time: float = 0.0):
    """A forward camera 1.6 m above the road at (x, y), 70 degrees wide."""
    width, height = size
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    pose[:3, 3] = torch.tensor([x, y, 1.6], dtype=torch.float64)
    focal = width * 0.714
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]).double()
    return Camera(pose, K, width, height, time)


def toy_view(camera: Camera, boxes: Tensor = BOXES) -> tuple[Tensor, Tensor]:
    """Exact colours [H, W, 3] and depth along z [H, W] (0 = sky), point-sampled."""
    rays = pixel_directions(camera).double()
    forward = camera.camtoworld[:3, 2]
    origin = camera.position
    inverse = 1.0 / torch.where(rays.abs() < 1e-9, torch.full_like(rays, 1e-9), rays)
    distance = torch.where(inverse[..., 2] < 0, -origin[2] * inverse[..., 2], torch.inf)
    owner = torch.zeros(rays.shape[:2], dtype=torch.long)
    for index, box in enumerate(boxes.double()):
        low, high = (box[0::2] - origin) * inverse, (box[1::2] - origin) * inverse
        near = torch.minimum(low, high).amax(-1)
        far = torch.maximum(low, high).amin(-1)
        hit = (near < far) & (near > 0) & (near < distance)
        distance = torch.where(hit, near, distance)
        owner = torch.where(hit, torch.full_like(owner, index + 1), owner)
    seen = torch.isfinite(distance)
    points = origin + torch.where(seen, distance, torch.ones_like(distance))[..., None] * rays
    colors = torch.where(seen[..., None], _texture(points, owner), torch.tensor(0.8).double())
    depth = torch.where(seen, distance * (rays @ forward), torch.zeros_like(distance))
    return colors.float(), depth.float()


def _texture(points: Tensor, owner: Tensor) -> Tensor:
    """Smooth stripes of three wavelengths, tinted per object, in [0, 1]."""
    phase = owner[..., None].double() * torch.tensor([1.7, 2.9, 4.3]).double()
    value = torch.full_like(phase, 0.5)
    for frequency, size in ((0.3, 0.2), (0.9, 0.15), (1.9, 0.08)):
        mixed = points.sum(-1, keepdim=True) + 0.6 * points[..., 1:2] - 0.4 * points[..., 2:3]
        value = value + size * torch.sin(frequency * mixed + phase)
    return value.clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], dB."""
    return float(-10 * torch.log10(((a - b) ** 2).mean()))
