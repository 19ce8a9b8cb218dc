"""Sparse points of a recording: coloured ones like structure from motion gives, and LiDAR sweeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.scene import PointCloud
from faithfusion_studio.synthetic.geometry import Real
from faithfusion_studio.synthetic.raytrace import TracedView, ray_scene
from faithfusion_studio.synthetic.street import Street

POINT_REACH = 90.0
"""Points farther than this from the camera are left out, m."""
LIDAR_HEIGHT, LIDAR_REACH = 1.9, 80.0
LIDAR_NOISE, LIDAR_DROPOUT = 0.015, 0.08


def sample_points(
    cameras: Sequence[Camera],
    views: Sequence[TracedView],
    count: int,
    noise: Real,
    rng: np.random.Generator,
) -> PointCloud | None:
    """Points on still surfaces that at least two of the views see, with their colours.

    Args:
        cameras: One per view.
        views: Exact images with depth.
        count: Points wanted; fewer where the views overlap little.
        noise: Standard deviation of each coordinate, m.
        rng: Which pixels are taken.

    Returns:
        None when no surface is seen twice (for example with a single view).
    """
    per_view = int(np.ceil(count / len(views) * 1.6)) + 1
    places, colors = [], []
    for index, (camera, view) in enumerate(zip(cameras, views, strict=True)):
        usable = (view.depth > 0) & (view.depth < POINT_REACH) & (view.node_index < 0)
        row, column = np.nonzero(usable)
        if not len(row):
            continue
        # Structure from motion finds more points on texture and less on the near, empty road.
        edges = np.abs(np.gradient(view.rgb.mean(-1))).sum(0)[row, column] + 0.01
        taken = rng.choice(len(row), min(per_view, len(row)), replace=False, p=edges / edges.sum())
        row, column = row[taken], column[taken]
        world = unproject(camera, view.depth, row, column)
        seen = np.zeros(len(world), bool)
        for step in (-6, -2, -1, 1, 2, 6):
            if 0 <= index + step < len(views):
                seen |= visible_in(cameras[index + step], views[index + step], world)
        places.append(world[seen])
        colors.append(view.rgb[row[seen], column[seen]])
    found = np.concatenate(places) if places else np.zeros((0, 3))
    if not len(found):
        return None
    kept = rng.permutation(len(found))[:count]
    jittered = found[kept] + rng.normal(0, noise, (len(kept), 3))
    rgb = np.clip(np.concatenate(colors)[kept] * 255 + 0.5, 0, 255).astype(np.uint8)
    return PointCloud(torch.from_numpy(jittered.astype(np.float32)), torch.from_numpy(rgb))


def unproject(camera: Camera, depth: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """World points [n, 3] (float64) at the centres of these pixels."""
    K, pose = camera.K.numpy(), camera.camtoworld.numpy()
    z = depth[row, column].astype(np.float64)
    x = (column + 0.5 - K[0, 2]) / K[0, 0] * z
    y = (row + 0.5 - K[1, 2]) / K[1, 1] * z
    return np.stack([x, y, z], axis=-1) @ pose[:3, :3].T + pose[:3, 3]


def visible_in(camera: Camera, view: TracedView, world: np.ndarray) -> np.ndarray:
    """True [n] where a view sees a point: inside the image and not behind something."""
    K, viewmat = camera.K.numpy(), camera.viewmat.numpy()
    local = world @ viewmat[:3, :3].T + viewmat[:3, 3]
    z = np.maximum(local[:, 2], 1e-6)
    column = np.floor(local[:, 0] / z * K[0, 0] + K[0, 2]).clip(-1, camera.width).astype(int)
    row = np.floor(local[:, 1] / z * K[1, 1] + K[1, 2]).clip(-1, camera.height).astype(int)
    inside = (local[:, 2] > 0.1) & (column >= 0) & (column < camera.width)
    inside &= (row >= 0) & (row < camera.height)
    result = np.zeros(len(world), bool)
    at = view.depth[row[inside], column[inside]]
    result[inside] = np.abs(at - local[inside, 2]) < 0.03 * local[inside, 2] + 0.02
    return result


def simulate_lidar(
    street: Street,
    ego_to_world: Float64[Tensor, "4 4"],
    time: Real,
    rng: np.random.Generator,
    dropout: float = LIDAR_DROPOUT,
) -> Float32[Tensor, "M 3"]:
    """One sweep of a spinning 64-beam LiDAR on the roof, with range noise and dropouts.

    Args:
        street: The world.
        ego_to_world: Pose of the ego frame (on the ground).
        time: Seconds, for moving vehicles.
        rng: Noise and dropouts.
        dropout: Share of the returns that are lost.

    Returns:
        Points in the world, m; no deskew is needed, the sweep is instantaneous.
    """
    azimuth = np.deg2rad(np.arange(-180, 180, 0.4))
    height = np.deg2rad(np.linspace(-24.8, 2.0, 64))
    turn, rise = (grid.ravel() for grid in np.meshgrid(azimuth, height, indexing="ij"))
    local = np.stack(
        [np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)], axis=-1
    )
    pose = ego_to_world.numpy()
    directions = np.ascontiguousarray(local @ pose[:3, :3].T, np.float32)
    origin = pose[:3, 3] + pose[:3, 2] * LIDAR_HEIGHT
    origins = np.broadcast_to(origin.astype(np.float32), directions.shape).copy()
    distance = ray_scene(street.geometry(time)).distances(origins, directions, LIDAR_REACH)
    kept = (distance < LIDAR_REACH) & (rng.random(len(distance)) > dropout)
    reach = distance[kept] + rng.normal(0, LIDAR_NOISE, int(kept.sum()))
    points = origin + directions[kept] * reach[:, None]
    return torch.from_numpy(points.astype(np.float32))
