"""Annotated vehicles over time, and where their boxes are in space and in pictures.

A box has its origin at the centre, x forward, y left, z up; `size` is length, width, height in m.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.transforms import pose_between

NEAREST = 0.05
"""What of a box is nearer to a camera than this is cut off before it is projected, m."""
LONGEST_SLACK = 0.25
"""A track of a few key times far apart holds no longer than this beyond its ends, s."""
_EDGES = [(i, j) for i in range(8) for j in range(i) if (i ^ j).bit_count() == 1]


@dataclass(frozen=True, eq=False)
class BoxTrack:
    """An annotated vehicle over time."""

    name: str
    category: str
    size: Float[Tensor, "3"]
    """Length, width, height, m."""
    poses: Float64[Tensor, "T 4 4"]
    """Box -> world."""
    timestamps: Float64[Tensor, "T"]
    """s, ascending."""
    by_hand: Bool[Tensor, "T"] | None = None
    """Which poses a person set, where some were found by following; None where that is not known."""

    @property
    def slack(self) -> float:
        """How far from its first and last time a track still holds, s: half the distance between its times,
        `LONGEST_SLACK` at most."""
        if len(self.timestamps) < 2:
            return 1e-3
        return min(0.5 * float(self.timestamps.diff().median()), LONGEST_SLACK)

    @property
    def travel(self) -> float:
        """Largest distance between two of its centres, m."""
        centres = self.poses[:, :3, 3]
        return float(torch.cdist(centres, centres).max())

    def pose_at(self, time: float) -> Float64[Tensor, "4 4"] | None:
        """Pose at a time (s), between the annotated ones; None before the first and after the last."""
        t, slack = self.timestamps, self.slack
        if not float(t[0]) - slack <= time <= float(t[-1]) + slack:
            return None
        return pose_between(self.poses, t, time)


def box_corners(
    poses: Float[Tensor, "B 4 4"], sizes: Float[Tensor, "B 3"]
) -> Float[Tensor, "B 8 3"]:
    """World corners of boxes.

    Args:
        poses: Box -> world.
        sizes: Length, width, height, m.
    """
    signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 3)
    local = signs * sizes[:, None].double()
    return local @ poses[:, :3, :3].double().transpose(1, 2) + poses[:, None, :3, 3].double()


def box_frame(points: Float[Tensor, "M 3"], pose: Float[Tensor, "4 4"]) -> Float[Tensor, "M 3"]:
    """World points in the frame of a box."""
    pose = pose.to(points)
    return (points - pose[:3, 3]) @ pose[:3, :3]


def inside_box(
    points: Float[Tensor, "M 3"],
    pose: Float[Tensor, "4 4"],
    size: Float[Tensor, "3"],
    *,
    margin: float = 0.0,
    floor: float = 0.0,
) -> Bool[Tensor, "M"]:
    """Which points are in a box.

    Args:
        points: World, m.
        pose: Box -> world.
        size: Length, width, height, m.
        margin: How far the box is widened to each side and upwards, m.
        floor: How far its bottom is raised, m; keeps the road out.
    """
    local, half = box_frame(points, pose), size.to(points) / 2
    inside = (local.abs() <= half + margin).all(-1)
    return inside & (local[:, 2] >= -half[2] + floor)


def first_hit(
    tracks: Iterable[BoxTrack], camera: Camera, pixel: tuple[float, float]
) -> BoxTrack | None:
    """The track whose box a pixel's ray meets first at the camera's time; None where it meets none.

    Args:
        tracks: Annotated vehicles.
        camera: Where and when from.
        pixel: Column and row; pixel centres lie at +0.5.
    """
    ray = torch.linalg.solve(camera.K, camera.K.new_tensor([*pixel, 1.0]))
    ray = camera.camtoworld[:3, :3] @ ray
    found, nearest = None, torch.inf
    for track in tracks:
        pose = track.pose_at(camera.time)
        if pose is None:
            continue
        origin, along = box_frame(camera.position[None], pose)[0], pose[:3, :3].T @ ray
        half = track.size.double() / 2
        sides = torch.stack([-half - origin, half - origin]) / along
        near, far = float(sides.amin(0).amax()), float(sides.amax(0).amin())
        if max(near, 0.0) <= far and near < nearest:
            found, nearest = track, near
    return found


def box_mask(
    pose: Float[Tensor, "4 4"], size: Float[Tensor, "3"], camera: Camera
) -> Bool[Tensor, "H W"]:
    """Pixels whose rays meet a box, whatever stands before it."""
    import cv2

    mask = np.zeros((camera.height, camera.width), np.uint8)
    view = camera.viewmat.double()
    corners = box_corners(pose[None], size[None])[0] @ view[:3, :3].T + view[:3, 3]
    visible = _before_the_camera(corners)
    if len(visible) < 3:
        return torch.from_numpy(mask > 0)
    pixels = visible @ camera.K.double().T
    # Pixel i covers i to i + 1; far outside of the picture cv2 would overflow.
    reach = 16.0 * max(camera.width, camera.height)
    places = (pixels[:, :2] / pixels[:, 2:] - 0.5).clamp(-reach, reach)
    hull = cv2.convexHull(places.round().to(torch.int32).numpy())
    cv2.fillConvexPoly(mask, hull, (1,))
    return torch.from_numpy(mask > 0)


def box_edges(
    pose: Float[Tensor, "4 4"], size: Float[Tensor, "3"], camera: Camera
) -> Float64[Tensor, "E 2 2"]:
    """The edges of a box as lines in a picture: start and end of each, column and row in pixels.

    What is behind the camera is cut off, so E is 12 at most; lines may leave the picture.
    """
    view = camera.viewmat.double()
    corners = box_corners(pose[None], size[None])[0] @ view[:3, :3].T + view[:3, 3]
    lines = []
    for i, j in _EDGES:
        start, end = sorted((corners[i], corners[j]), key=lambda corner: float(corner[2]))
        if float(end[2]) <= NEAREST:
            continue
        if float(start[2]) < NEAREST:
            start = torch.lerp(start, end, (NEAREST - start[2]) / (end[2] - start[2]))
        pixels = torch.stack([start, end]) @ camera.K.double().T
        lines.append(pixels[:, :2] / pixels[:, 2:])
    return torch.stack(lines) if lines else torch.zeros(0, 2, 2, dtype=torch.float64)


def _before_the_camera(corners: Float64[Tensor, "8 3"]) -> Float64[Tensor, "N 3"]:
    """Corners of the part of a box that is in front of a camera, camera frame."""
    depth = corners[:, 2]
    found = [corners[depth >= NEAREST]]
    for i, j in _EDGES:
        if (depth[i] - NEAREST) * (depth[j] - NEAREST) < 0:
            share = (NEAREST - depth[i]) / (depth[j] - depth[i])
            found.append(torch.lerp(corners[i], corners[j], share)[None])
    return torch.cat(found)


def tracks_mask(
    tracks: Iterable[BoxTrack], camera: Camera, *, margin: float = 0.0
) -> Bool[Tensor, "H W"]:
    """Pixels whose rays meet the box of a track at the camera's time.

    Args:
        tracks: Annotated vehicles.
        camera: Where and when from.
        margin: How far boxes are widened to each side, m.
    """
    mask = torch.zeros(camera.height, camera.width, dtype=torch.bool)
    for track in tracks:
        pose = track.pose_at(camera.time)
        if pose is not None:
            mask |= box_mask(pose, track.size + 2 * margin, camera)
    return mask
