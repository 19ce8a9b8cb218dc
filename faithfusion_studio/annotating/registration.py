"""Points of an object, and where a sweep shows them: registration by x, y and heading.

Frame: that of the object's box, origin at its centre, x forward, y left, z up. The object moves on a road, so
what is sought is a shift along and across the box and a turn about its vertical axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64
from scipy.spatial import KDTree

Pose = Float64[np.ndarray, "4 4"]

NOISE = 0.04
"""Standard deviation of a laser point about the surface it is of, m."""
NEIGHBOURS = 16
"""Points whose spread says how a surface runs; fewer of an object with few points."""
SHARED = 60.0
"""However many points match, they are worth this many independent ones."""
WIDTHS = (0.4, 0.25, 0.15, 0.1)
"""Widths of the robust kernel, from first guess to last, m."""
STEPS = 6
"""Gauss-Newton steps for each width."""
MATCHED = 0.2
"""A point this close to the object's points is of the object, m."""
SAMPLE = 300
"""Points that the coarse search looks at."""
VOTE = 0.15
"""Width of the coarse search's kernel, m."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points of one object in its frame, and how the surface runs at each."""

    points: Float64[np.ndarray, "N 3"]
    precision: Float64[np.ndarray, "N 3 3"]
    """Inverse covariance of where a point of the same surface may be: low along it, high across it, 1/m^2."""

    @cached_property
    def tree(self) -> KDTree:
        """For nearest neighbours."""
        return KDTree(self.points)


def cloud_of(points: Float64[np.ndarray, "N 3"]) -> Cloud:
    """The points of one sweep; how surfaces run is told by the nearest ones."""
    if not len(points):
        return Cloud(points, np.zeros((0, 3, 3)))
    k = min(max(len(points) // 6, 5), NEIGHBOURS, len(points))
    index = np.asarray(KDTree(points).query(points, k)[1]).reshape(len(points), k)
    around = points[index]
    around = around - around.mean(1, keepdims=True)
    spread = around.transpose(0, 2, 1) @ around / k
    return Cloud(points, np.linalg.inv(spread + NOISE**2 * np.eye(3)))


def joined(clouds: Sequence[Cloud]) -> Cloud:
    """The points of several sweeps."""
    return Cloud(
        np.concatenate([cloud.points for cloud in clouds]),
        np.concatenate([cloud.precision for cloud in clouds]),
    )


@dataclass(frozen=True)
class Prior:
    """Where the object is expected: a pose, and how sure that is."""

    pose: Pose
    along: float
    """Standard deviations: along the box, m,"""
    across: float
    """across it, m,"""
    turn: float
    """and of the heading, rad."""

    @property
    def precision(self) -> np.ndarray:
        """[3, 3]."""
        return np.diag([self.along**-2, self.across**-2, self.turn**-2])


def moved(pose: Pose, shift: np.ndarray) -> Pose:
    """A pose moved in its own frame by [along, across, turn], m and rad."""
    cosine, sine = np.cos(shift[2]), np.sin(shift[2])
    step = np.eye(4)
    step[:2, :2] = [[cosine, -sine], [sine, cosine]]
    step[:2, 3] = shift[:2]
    return pose @ step


def between(start: Pose, end: Pose) -> np.ndarray:
    """[along, across, turn] that take one pose to the other, in the first one's frame."""
    local = start[:3, :3].T @ (end[:3, 3] - start[:3, 3])
    turn = start[:3, :3].T @ end[:3, :3]
    return np.array([local[0], local[1], np.arctan2(turn[1, 0], turn[0, 0])])


def to_frame(points: np.ndarray, pose: Pose) -> np.ndarray:
    """World points in the frame of a pose."""
    return (points - pose[:3, 3]) @ pose[:3, :3]


def searched(cloud: Cloud, points: np.ndarray, prior: Prior, reach: float) -> Pose:
    """The pose on a grid along, across and about the expected one that puts most points on the object's.

    Args:
        cloud: Of the object.
        points: Of the sweep near the expected pose, world, m.
        prior: Expected pose; among equals the nearest to it wins.
        reach: How far along the box is sought, m.
    """
    sample = points[np.linspace(0, len(points) - 1, min(SAMPLE, len(points))).astype(int)]
    along = np.arange(-np.ceil(reach / VOTE), np.ceil(reach / VOTE) + 1) * VOTE
    grid = np.meshgrid(along, [-0.25, 0.0, 0.25], np.deg2rad([-3.0, 0.0, 3.0]), indexing="ij")
    shifts = np.stack([axis.ravel() for axis in grid], 1)
    local = to_frame(sample, prior.pose)
    flat = local[None, :, :2] - shifts[:, None, :2]
    cosine, sine = np.cos(shifts[:, 2:]), np.sin(shifts[:, 2:])
    x, y = flat[..., 0] * cosine + flat[..., 1] * sine, flat[..., 1] * cosine - flat[..., 0] * sine
    z = np.broadcast_to(local[:, 2], x.shape)
    distance = cloud.tree.query(np.stack([x, y, z], -1), distance_upper_bound=4 * VOTE)[0]
    votes = np.exp(-0.5 * (distance / VOTE) ** 2).sum(1)
    doubt = ((shifts / [max(reach, 0.3), 0.5, 0.1]) ** 2).sum(1)
    return moved(prior.pose, shifts[np.argmax(votes / max(votes.max(), 1e-9) - 0.05 * doubt)])


def registered(cloud: Cloud, points: np.ndarray, start: Pose, prior: Prior) -> Pose:
    """Refine a pose so that a sweep's points lie on the surfaces of the object.

    Args:
        cloud: Of the object.
        points: Of the sweep near it, world, m.
        start: First guess.
        prior: Holds what the points do not determine, such as a shift along a bare wall.

    Source: generalised ICP (Segal, Haehnel and Thrun 2009) with the Geman-McClure kernel and three degrees of freedom.
    """
    pose = start
    for width in WIDTHS:
        for _ in range(STEPS):
            step = _step(cloud, points, pose, prior, width)
            pose = moved(pose, step)
            if np.abs(step).max() < 1e-4:
                break
    return pose


def matched(cloud: Cloud, points: np.ndarray, pose: Pose) -> int:
    """How many points of a sweep (world, m) lie on the object at a pose."""
    distance = cloud.tree.query(to_frame(points, pose), distance_upper_bound=MATCHED)[0]
    return int(np.isfinite(distance).sum())


def _step(cloud: Cloud, points: np.ndarray, pose: Pose, prior: Prior, width: float) -> np.ndarray:
    """One Gauss-Newton step [along, across, turn] in the frame of the pose."""
    local = to_frame(points, pose)
    distance, index = cloud.tree.query(local, distance_upper_bound=3 * width)
    near = np.isfinite(distance)
    away = between(prior.pose, pose)
    hessian, gradient = prior.precision, prior.precision @ away
    if near.any():
        p, rows = local[near], np.asarray(index)[near]
        residual, precision = p - cloud.points[rows], cloud.precision[rows]
        weight = (width**2 / (width**2 + distance[near] ** 2)) ** 2
        weight *= min(1.0, SHARED / weight.sum())
        # The derivatives of a point by [along, across, turn] have no part along z.
        xx, xy, yy = precision[:, 0, 0], precision[:, 0, 1], precision[:, 1, 1]
        x, y = p[:, 0], p[:, 1]
        pull = (precision[:, :2] @ residual[:, :, None])[:, :, 0]
        turning = np.stack([y * xx - x * xy, y * xy - x * yy], 1)
        hessian = hessian + _symmetric(
            weight @ np.stack([xx, xy, yy, -turning[:, 0], -turning[:, 1]], 1),
            weight @ (y * turning[:, 0] - x * turning[:, 1]),
        )
        torque = y * pull[:, 0] - x * pull[:, 1]
        gradient = gradient + weight @ np.stack([-pull[:, 0], -pull[:, 1], torque], 1)
    return -np.linalg.solve(hessian, gradient)


def _symmetric(upper: np.ndarray, last: float) -> np.ndarray:
    xx, xy, yy, xt, yt = upper
    return np.array([[xx, xy, xt], [xy, yy, yt], [xt, yt, last]])
