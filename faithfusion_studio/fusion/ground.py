"""The road under the drive: a plane per frame, fitted to recorded points, that depth can lean on.

A single lane sees its road only along one direction, so splats may float above or below it without any
recorded pixel noticing; one lane aside the paint then wobbles. A plane per frame is enough for the
twenty metres in which that matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.scene import Capture

BAND = 0.12
"""Points farther than this from the plane are not road, m."""
NEAR, FAR, SIDE = 2.0, 25.0, 6.0
"""Extent of the road in which a frame's plane holds: ahead and to either side, m, ego frame."""
LEAST_POINTS = 40


@dataclass(frozen=True, eq=False)
class Ground:
    """Road planes z = slope x + bank y - height in the ego frame of each recorded frame."""

    ego_to_worlds: Float32[Tensor, "T 4 4"]
    planes: Float32[Tensor, "T 3"]
    """Slope, bank, height (m)."""

    def depth(self, index: int, camera: Camera) -> Float32[Tensor, "H W"]:
        """Depth of the road along each pixel of a camera near frame `index`, m along z; 0 off the road."""
        ego_from_camera = torch.linalg.inv(self.ego_to_worlds[index]) @ camera.camtoworld.float()
        K = camera.K.float()
        x = (torch.arange(camera.width) + 0.5 - K[0, 2]) / K[0, 0]
        y = (torch.arange(camera.height) + 0.5 - K[1, 2]) / K[1, 1]
        rays = (
            torch.stack(
                [
                    x.expand(camera.height, -1),
                    y[:, None].expand(-1, camera.width),
                    torch.ones(()).expand(camera.height, camera.width),
                ],
                -1,
            )
            @ ego_from_camera[:3, :3].T
        )
        origin = ego_from_camera[:3, 3]
        slope, bank, height = self.planes[index].unbind()
        above = origin[2] - slope * origin[0] - bank * origin[1] + height
        falling = slope * rays[..., 0] + bank * rays[..., 1] - rays[..., 2]
        depth = above / falling.clamp(min=1e-6)
        hit = origin + depth[..., None] * rays
        on_road = (falling > 1e-3) & (hit[..., 0] > 0) & (hit[..., 0] < FAR)
        return torch.where(on_road & (hit[..., 1].abs() < SIDE), depth, 0.0)


def fit_ground(capture: Capture, height: float | None) -> Ground | None:
    """Road planes of a recording, robustly fitted to its points.

    Args:
        capture: Frames, ego poses and points.
        height: First guess of the ego origin's height above the road, m; None where no ground was found.

    Returns:
        The planes, or None without points or ground. A frame with few road points keeps its neighbour's.
    """
    if capture.points is None or height is None:
        return None
    egos = capture.trajectory.ego_to_worlds.to(torch.float32)
    plane = torch.tensor([0.0, 0.0, height])
    planes, found = [], []
    for ego in egos:
        local = (capture.points.xyz - ego[:3, 3]) @ ego[:3, :3]
        fitted = _fit_plane(local, plane)
        found.append(fitted is not None)
        plane = plane if fitted is None else fitted
        planes.append(plane)
    if not any(found):
        return None
    first = found.index(True)
    planes[:first] = [planes[first]] * first
    return Ground(egos, torch.stack(planes))


def _fit_plane(local: Tensor, guess: Tensor) -> Tensor | None:
    """Least squares on the points near a shrinking band around the guess; None where they are too few."""
    near = (local[:, 0] > NEAR) & (local[:, 0] < FAR) & (local[:, 1].abs() < SIDE)
    local, plane = local[near], guess
    for band in (3 * BAND, 2 * BAND, BAND, BAND):
        above = local[:, 2] - plane[0] * local[:, 0] - plane[1] * local[:, 1] + plane[2]
        chosen = local[above.abs() < band]
        if len(chosen) < LEAST_POINTS:
            return None
        design = torch.stack([chosen[:, 0], chosen[:, 1], -torch.ones(len(chosen))], -1)
        # A weak pull to the guess keeps the plane level where the points lie on a line.
        ridge = torch.eye(3) * torch.tensor([10.0, 10.0, 1e-3])
        normal = design.T @ design + ridge
        plane = torch.linalg.solve(normal, design.T @ chosen[:, 2] + ridge @ guess)
    return plane
