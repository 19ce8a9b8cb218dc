"""A road with cars made of boxes, seen by a spinning laser: sweeps with exact truth in milliseconds."""

import math

import numpy as np
import torch

from faithfusion_studio.boxes import BoxTrack
from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.scene import Capture, PosedImage

LASER = 1.8
"""Height of the laser, m."""
CAMERA_AXES = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
K = torch.tensor([[500.0, 0, 400], [0, 500.0, 150], [0, 0, 1]], dtype=torch.float64)


def pose_of(x, y, heading, z=0.75):
    """An upright pose, box -> world."""
    pose = torch.eye(4, dtype=torch.float64)
    cosine, sine = math.cos(heading), math.sin(heading)
    pose[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    pose[:3, 3] = torch.tensor([x, y, z])
    return pose


def _entry(origin, directions, pose, size):
    """Distance to a box along rays; infinite where it is missed."""
    pose = pose.numpy()
    start, along = (origin - pose[:3, 3]) @ pose[:3, :3], directions @ pose[:3, :3]
    with np.errstate(divide="ignore"):
        a, b = (-size / 2 - start) / along, (size / 2 - start) / along
    near, far = np.minimum(a, b).max(1), np.maximum(a, b).min(1)
    return np.where((near < far) & (near > 0), near, np.inf)


def _parts(pose, size):
    """A car: a body and a shorter cabin on it, so that no side is bare."""
    length, width, height = size
    for share, back, front, low, high in ((1.0, -0.5, 0.5, 0.12, 0.6), (0.9, -0.4, 0.2, 0.6, 1.0)):
        part = pose.clone()
        middle = torch.tensor(
            [(back + front) / 2 * length, 0, ((low + high) / 2 - 0.5) * height], dtype=torch.float64
        )
        part[:3, 3] += part[:3, :3] @ middle
        yield part, np.array([(front - back) * length, share * width, (high - low) * height])


def sweep(cars, ego=(0.0, 0.0), *, slope=0.0, seed=0):
    """What a laser over a place sees: [M, 3] points, world.

    Args:
        cars: Pairs of a pose and a size.
        ego: Place of the laser, world x, y, m.
        slope: Rise of the road along x.
        seed: Of the range noise (2 cm).
    """
    azimuth = np.deg2rad(np.arange(-75, 75, 0.35))
    rise = np.deg2rad(np.linspace(-22, 3, 48))
    turn, rise = (grid.ravel() for grid in np.meshgrid(azimuth, rise, indexing="ij"))
    directions = np.stack(
        [np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)], 1
    )
    origin = np.array([*ego, LASER + slope * ego[0]])
    drop = directions[:, 2] - slope * directions[:, 0]
    with np.errstate(divide="ignore"):
        distance = np.where(drop < 0, -LASER / drop, np.inf)
    walls = [(pose_of(30, side * 9.0, 0, 3), np.array([80.0, 0.5, 6])) for side in (-1, 1)]
    things = [part for pose, size in cars for part in _parts(pose, np.array(size))]
    for pose, size in [*walls, *things]:
        distance = np.minimum(distance, _entry(origin, directions, pose, size))
    met = distance < 70
    noisy = distance[met] + np.random.default_rng(seed).normal(0, 0.02, met.sum())
    return torch.from_numpy((origin + directions[met] * noisy[:, None]).astype(np.float32))


def recording(tracks, times, speed=2.0):
    """A capture without pictures: the laser drives along x at a speed and meets the tracks."""
    cameras, sweeps = [], []
    for index, time in enumerate(times):
        pose = np.eye(4)
        pose[:3, 3] = [speed * time, 0, 1.6]
        cameras.append(Camera(torch.from_numpy(pose @ CAMERA_AXES), K, 800, 300, time))
        cars = [(p, t.size.tolist()) for t in tracks if (p := t.pose_at(time)) is not None]
        sweeps.append(sweep(cars, (speed * time, 0.0), seed=index))
    frames = tuple(PosedImage(camera, b"", str(i)) for i, camera in enumerate(cameras))
    return Capture(frames, trajectory_from_cameras(cameras), lidar=tuple(sweeps))


def track(name, path, times, size=(4.3, 1.75, 1.5)):
    """A box track from a function of time to x, y, heading."""
    poses = torch.stack([pose_of(*path(time), z=size[2] / 2) for time in times])
    return BoxTrack(
        name, "car", torch.tensor(size), poses, torch.tensor(times, dtype=torch.float64)
    )


def errors(found, true):
    """Distance seen from above, m, and difference of heading, degrees, of two poses."""
    shift = (found[:2, 3] - true[:2, 3]).norm()
    turn = true[:2, :2].T @ found[:2, :2]
    return float(shift), abs(math.degrees(math.atan2(float(turn[1, 0]), float(turn[0, 0]))))
