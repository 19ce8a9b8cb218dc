"""A box for the laser points around a clicked place.

The points that hang together with the place, seen from above, are bounded by the rectangle whose sides they
lie closest to; what of the object the sensor cannot see is completed away from it, to the size that its
category usually has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

from faithfusion_studio.annotating.sweeps import ground_of, raw_sweep_near, sensor_at, standing
from faithfusion_studio.annotation import AnnotationError
from faithfusion_studio.boxes import inside_box
from faithfusion_studio.scene import Capture

SIZES: Mapping[str, tuple[float, float, float]] = {
    "car": (4.4, 1.8, 1.5),
    "van": (5.2, 2.0, 2.2),
    "truck": (7.5, 2.5, 3.2),
    "trailer": (10.0, 2.5, 3.8),
    "bus": (12.0, 2.55, 3.2),
    "motorcycle": (2.1, 0.8, 1.5),
    "cyclist": (1.8, 0.7, 1.7),
    "pedestrian": (0.6, 0.7, 1.75),
}
"""Usual length, width, height of a category, m; any other is taken for a car."""
LEAST = 8
"""With fewer points a box cannot be fitted."""
THIN = 0.05
"""Points are thinned to one per square of this side before sides are sought, m."""
NEAR_CLICK = 1.0
"""How far from the clicked place the first points are sought, m."""
GAP = 0.45
"""Points up to this far apart, and `GAP_PER_METRE` more for each metre from the sensor, hang together, m."""
GAP_PER_METRE = 0.01
GRAZING = 0.5
"""Along the line of sight distances count this much, as rays that graze a side meet it far apart."""
CLOSE = 0.05
"""Distances to a side below this count alike in the closeness criterion, m."""
ENOUGH, TOO_MUCH = 0.85, 1.25
"""A side seen for between these shares of the usual length is taken as it was seen."""
ACROSS = 0.3
"""Share of an object that may be unseen before it is taken for one that crosses the traffic."""
FREEDOM = math.radians(15)
"""How far a given heading may be turned to fit."""


@dataclass(frozen=True, eq=False)
class FittedBox:
    """A box found in a sweep."""

    pose: Float64[Tensor, "4 4"]
    """Box -> world."""
    size: Float32[Tensor, "3"]
    """Length, width, height, m."""
    support: int
    """Points of the sweep in it."""


class _Rectangle(NamedTuple):
    """Bounds of points along a direction and across it."""

    angle: float
    low: np.ndarray
    high: np.ndarray


def usual_size(category: str) -> tuple[float, float, float]:
    """Length, width and height of a category, m."""
    return SIZES.get(category.lower(), SIZES["car"])


def fit_box(
    points: Float32[Tensor, "M 3"],
    at: Float[Tensor, "3"],
    *,
    category: str = "car",
    size: Float[Tensor, "3"] | None = None,
    heading: float | None = None,
    sensor: Float[Tensor, "3"] | None = None,
    forward: float = 0.0,
    ground: float | None = None,
) -> FittedBox:
    """The box of the object at a place.

    Args:
        points: Without the road, world, m; see `sweep_near`.
        at: A place on the object or within a metre of it, world, m.
        category: Gives the usual size that unseen sides are completed to.
        size: Length, width, height, m, where they are known.
        heading: Where the front points, rad from +x counter-clockwise; sought only near it. Sought
            everywhere when not given.
        sensor: Where the points were measured from, world, m; unseen sides are away from it. The origin when not given.
        forward: Which way traffic drives here, rad; chooses front from back where `heading` is not given.
        ground: Height of the road there (world z, m); just below the lowest point when not given.

    Raises:
        AnnotationError: Too few points there.

    Source: Zhang, Xu, Dong and Dolan, "Efficient L-shape fitting for vehicle detection using laser scanners",
    IV 2017, closeness criterion.
    """
    usual = np.array(usual_size(category) if size is None else size.tolist(), np.float64)
    xyz, place = points.numpy().astype(np.float64), at.numpy().astype(np.float64)
    origin = np.zeros(2) if sensor is None else sensor[:2].numpy().astype(np.float64)
    cluster = _cluster(xyz, place, float(np.hypot(*usual[:2])), origin)
    flat = _thinned(cluster[:, :2])
    rectangle = _best_rectangle(flat, heading)
    turned = rectangle if heading is not None else _lengthwise(rectangle, usual, forward)
    low, high = _completed(turned, usual, origin, fixed=size is not None)
    bottom = float(cluster[:, 2].min()) - 0.2 if ground is None else ground
    tall = float(np.quantile(cluster[:, 2], 0.995)) - bottom
    if size is not None or not ENOUGH * usual[2] <= tall <= TOO_MUCH * usual[2]:
        tall = float(usual[2])
    along = np.array([math.cos(turned.angle), math.sin(turned.angle)])
    across = np.array([-along[1], along[0]])
    middle = (low + high) / 2
    pose = torch.eye(4, dtype=torch.float64)
    pose[:2, 0], pose[:2, 1] = torch.from_numpy(along), torch.from_numpy(across)
    pose[:2, 3] = torch.from_numpy(middle[0] * along + middle[1] * across)
    pose[2, 3] = bottom + tall / 2
    found = torch.tensor([high[0] - low[0], high[1] - low[1], tall], dtype=torch.float32)
    support = int(inside_box(points, pose, found, margin=0.1).sum())
    return FittedBox(pose, found, support)


def fit_at(
    capture: Capture,
    time: float,
    at: Float[Tensor, "3"],
    *,
    category: str = "car",
    size: Float[Tensor, "3"] | None = None,
    heading: float | None = None,
) -> tuple[FittedBox, float]:
    """The box of the object at a place in the sweep nearest to a time, standing on the road there.

    Args:
        capture: With laser sweeps.
        time: s.
        at: A place on the object, world, m.
        category: See `fit_box`.
        size: See `fit_box`.
        heading: See `fit_box`; front is otherwise where the recording vehicle's front is.

    Returns:
        The box, and the time of the sweep, s.

    Raises:
        AnnotationError: No sweeps, or too few points there.
    """
    scan, when = raw_sweep_near(capture, time)
    ground = ground_of(scan)
    times = capture.trajectory.timestamps
    nearest = min(range(len(times)), key=lambda i: abs(times[i] - when))
    ego = capture.trajectory.ego_to_worlds[nearest]
    box = fit_box(
        scan[standing(scan, ground)],
        at,
        category=category,
        size=size,
        heading=heading,
        sensor=sensor_at(capture, when),
        forward=math.atan2(float(ego[1, 0]), float(ego[0, 0])),
        ground=float(ground.under(at[None].to(torch.float32))[0]),
    )
    return box, when


def _cluster(xyz: np.ndarray, at: np.ndarray, reach: float, sensor: np.ndarray) -> np.ndarray:
    """Points that hang together with a place seen from above, no farther from it than the object is long."""
    near = xyz[np.linalg.norm(xyz[:, :2] - at[:2], axis=1) < 1.1 * reach]
    away = np.linalg.norm(near[:, :2] - at[:2], axis=1)
    if len(near) < LEAST or away.min() > NEAR_CLICK:
        raise AnnotationError(
            f"found {int((away < NEAR_CLICK).sum())} laser points within {NEAR_CLICK:g} m of "
            f"{at[0]:.1f}, {at[1]:.1f} m; at least {LEAST} are needed to fit a box, so choose "
            "another place or time, or place the box by hand."
        )
    sight = (at[:2] - sensor) / max(float(np.linalg.norm(at[:2] - sensor)), 1e-6)
    flat = near[:, :2] - at[:2]
    flat = flat - (1 - GRAZING) * (flat @ sight)[:, None] * sight
    cells, index = np.unique(np.floor(flat / 0.1), axis=0, return_inverse=True)
    gap = GAP + GAP_PER_METRE * float(np.linalg.norm(at[:2] - sensor))
    pairs = KDTree(cells * 0.1).query_pairs(gap, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs)), tuple(pairs.T)), (len(cells), len(cells)))
    label = connected_components(graph, directed=False)[1][index.ravel()]
    # A stray return beside the object is not what was meant: the nearest group that is large enough is.
    large = np.bincount(label) >= LEAST
    away = np.where(large[label] & (away < NEAR_CLICK), away, np.inf)
    found = near[label == label[away.argmin()]]
    if not np.isfinite(away.min()):
        raise AnnotationError(
            f"found at most {np.bincount(label).max()} laser points that hang together at {at[0]:.1f}, {at[1]:.1f} m; at "
            f"least {LEAST} are needed to fit a box, so choose another place or time."
        )
    return found


def _thinned(flat: np.ndarray) -> np.ndarray:
    """One point per small square, so that near sides do not outweigh far ones."""
    first = np.unique(np.floor(flat / THIN), axis=0, return_index=True)[1]
    return flat[np.sort(first)]


def _bounds(flat: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    local = flat @ turn
    return local, np.quantile(local, 0.01, axis=0), np.quantile(local, 0.99, axis=0)


def _closeness(flat: np.ndarray, angle: float) -> float:
    """How close points are to two neighbouring sides of their rectangle."""
    local, low, high = _bounds(flat, angle)
    to_low, to_high = np.abs(local - low), np.abs(high - local)
    nearer = np.where(
        np.linalg.norm(to_low, axis=0) < np.linalg.norm(to_high, axis=0), to_low, to_high
    )
    return float((1 / np.maximum(nearer.min(1), CLOSE)).sum())


def _best_rectangle(flat: np.ndarray, heading: float | None) -> _Rectangle:
    step = math.radians(1)
    if heading is None:
        angles = np.arange(0, math.pi / 2, step)
    else:
        angles = heading + np.arange(-FREEDOM, FREEDOM + step / 2, step)
    best = max(angles, key=lambda angle: _closeness(flat, float(angle)))
    fine = best + np.arange(-step, step + 1e-9, step / 5)
    best = float(max(fine, key=lambda angle: _closeness(flat, float(angle))))
    _, low, high = _bounds(flat, best)
    return _Rectangle(best, low, high)


def _lengthwise(rectangle: _Rectangle, usual: np.ndarray, forward: float) -> _Rectangle:
    """The rectangle turned so that its first axis is the length and points forward."""
    angle, low, high = rectangle
    options = []
    for quarter in range(4):
        option = _Rectangle(angle + quarter * math.pi / 2, *_quarters(low, high, quarter))
        share = (option.high - option.low) / usual[:2]
        misfit = np.maximum(1 - share, 0).sum() + 3 * np.maximum(share - 1.1, 0).sum()
        off = option.angle - forward
        unlikely = 0.05 * (1 - math.cos(off)) + ACROSS * math.sin(off) ** 2
        options.append((misfit + unlikely, option))
    return min(options, key=lambda pair: pair[0])[1]


def _quarters(low: np.ndarray, high: np.ndarray, quarters: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds along axes turned counter-clockwise by quarters of a turn."""
    for _ in range(quarters):
        low, high = np.array([low[1], -high[0]]), np.array([high[1], -low[0]])
    return low, high


def _completed(
    seen: _Rectangle, usual: np.ndarray, sensor: np.ndarray, *, fixed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the whole object: what was seen, extended away from the sensor to the usual size."""
    turn = np.array(
        [
            [math.cos(seen.angle), -math.sin(seen.angle)],
            [math.sin(seen.angle), math.cos(seen.angle)],
        ]
    )
    eye = sensor @ turn
    low, high = seen.low.copy(), seen.high.copy()
    for axis in range(2):
        extent, length = high[axis] - low[axis], usual[axis]
        if not fixed and ENOUGH * length <= extent <= TOO_MUCH * length:
            continue
        if eye[axis] < low[axis]:
            high[axis] = low[axis] + length
        elif eye[axis] > high[axis]:
            low[axis] = high[axis] - length
        else:
            middle = (low[axis] + high[axis]) / 2
            low[axis], high[axis] = middle - length / 2, middle + length / 2
    return low, high
