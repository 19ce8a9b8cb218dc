"""Laser sweeps as an annotator needs them: the one of a time, without the road, and the point under a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from scipy import ndimage
from torch import Tensor

from faithfusion_studio.annotation import AnnotationError
from faithfusion_studio.cameras import Camera
from faithfusion_studio.scene import Capture

CELL = 1.0
"""Side of a cell of the ground's height map, m."""
FAR = 200.0
"""The ground is not mapped farther than this from the middle of the points, m."""
OPENING = 3
"""What is narrower than twice this many cells and rises above its surroundings is not ground."""
RISE = 0.3
"""What rises this much above the opened surface is not ground, m."""
CLEARANCE = 0.2
"""Points this close to the ground are road, m."""
TALLEST = 4.6
"""Nothing that drives is higher; bridges and branches are, m."""
REACH = 8.0
"""How far from a clicked pixel a laser point may be, pixels."""
APART = 0.5
"""A point this much nearer to the camera hides the ones beside it, m."""


@dataclass(frozen=True, eq=False)
class Ground:
    """Height of the ground on a grid."""

    origin: Float64[np.ndarray, "2"]
    """World x, y of the first cell's middle, m."""
    height: Float64[np.ndarray, "X Y"]
    """World z, m."""

    def under(self, points: Float32[Tensor, "M _"]) -> Float64[np.ndarray, "M"]:
        """Height of the ground (world z, m) under points; beyond the grid that of its edge."""
        place = (points[:, :2].numpy().astype(np.float64) - self.origin) / CELL
        return ndimage.map_coordinates(self.height, place.T, order=1, mode="nearest")


def ground_of(points: Float32[Tensor, "M 3"]) -> Ground:
    """The ground under a sweep: low points, opened so that cars are no hills, smoothed.

    Args:
        points: World, z up, m.

    Source: the morphological filter of Pingel, Clarke and McBride 2013 with one window.

    Raises:
        AnnotationError: No point.
    """
    xyz = points.numpy().astype(np.float64)
    xyz = xyz[np.isfinite(xyz).all(1)]
    if not len(xyz):
        raise AnnotationError("this sweep has no points; choose a time with laser points.")
    xyz = xyz[(np.abs(xyz[:, :2] - np.median(xyz[:, :2], axis=0)) < FAR).all(1)]
    origin = xyz[:, :2].min(0)
    cell = np.floor((xyz[:, :2] - origin) / CELL).astype(np.int64)
    shape = (int(cell[:, 0].max()) + 1, int(cell[:, 1].max()) + 1)
    low = _lowest(xyz[:, 2], cell[:, 0] * shape[1] + cell[:, 1], shape)
    low = _without_ghosts(low)
    opened = ndimage.grey_opening(_filled(low), footprint=_disc(OPENING))
    ground = np.where(low <= opened + RISE, low, np.nan)
    smooth = ndimage.median_filter(_filled(ground), footprint=_disc(2), mode="nearest")
    return Ground(origin + CELL / 2, ndimage.uniform_filter(smooth, 3, mode="nearest"))


def _lowest(z: np.ndarray, cell: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The 10 % lowest height of every cell; NaN where there is no point."""
    order = np.lexsort((z, cell))
    found, first, count = np.unique(cell[order], return_index=True, return_counts=True)
    low = np.full(shape, np.nan)
    low.flat[found] = z[order][first + count // 10]
    return low


def _without_ghosts(low: np.ndarray) -> np.ndarray:
    """Mirror images below the road taken out: cells more than a metre under their surroundings."""
    around = ndimage.percentile_filter(_filled(low), 30, size=9, mode="nearest")
    return np.where(low < around - 1.0, np.nan, low)


def _filled(values: np.ndarray) -> np.ndarray:
    """NaN replaced by the nearest number."""
    missing = np.isnan(values)
    nearest = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
    return values[tuple(nearest)]  # type: ignore[arg-type]


def _disc(radius: int) -> np.ndarray:
    x, y = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius + 1


def standing(points: Float32[Tensor, "M 3"], ground: Ground) -> Bool[Tensor, "M"]:
    """Points of what stands on the ground, neither road nor what hangs above the traffic."""
    above = points[:, 2].numpy() - ground.under(points)
    return torch.from_numpy((above > CLEARANCE) & (above < TALLEST))


def raw_sweep_near(capture: Capture, time: float) -> tuple[Float32[Tensor, "M 3"], float]:
    """The sweep whose time is nearest, as measured, and that time; see `sweep_near`."""
    if not capture.sweeps:
        found, times = len(capture.lidar), len(set(capture.trajectory.timestamps))
        raise AnnotationError(
            f"this recording has {found} laser sweeps for {times} times, so none can be put to a "
            "time; a box needs one sweep per time, or has to be placed by hand."
        )
    when, scan = min(capture.sweeps, key=lambda sweep: abs(sweep[0] - time))
    return scan, when


def sweep_near(capture: Capture, time: float) -> tuple[Float32[Tensor, "M 3"], float]:
    """What the laser saw of things that stand on the road at the nearest time.

    Args:
        capture: With one sweep per time of its frames.
        time: s.

    Returns:
        Points (world, m) without the road and without what is higher than any vehicle, and the sweep's time, s.

    Raises:
        AnnotationError: The recording has no sweeps that belong to its times.
    """
    scan, when = raw_sweep_near(capture, time)
    return scan[standing(scan, ground_of(scan))], when


def sensor_at(capture: Capture, time: float) -> Float64[Tensor, "3"]:
    """Where the recording vehicle is at a time, world, m: what a sweep was measured from, to a metre or two."""
    times = capture.trajectory.timestamps
    nearest = min(range(len(times)), key=lambda i: abs(times[i] - time))
    return capture.trajectory.ego_to_worlds[nearest, :3, 3]


def place_at(
    capture: Capture, frame: int, pixel: tuple[float, float], *, reach: float = REACH
) -> Float32[Tensor, "3"]:
    """The laser point that a pixel of a recorded frame shows.

    Args:
        capture: With one sweep per time of its frames.
        frame: Index into its frames.
        pixel: Column and row, pixels; centres lie at +0.5.
        reach: How far from the pixel the point may be, pixels.

    Returns:
        World, m. Of the points within reach that nothing nearer to the camera hides, the one nearest to the pixel.

    Raises:
        AnnotationError: No such frame, a pixel outside of it, or no laser point there.
    """
    if not 0 <= frame < len(capture):
        raise AnnotationError(
            f"frame {frame} does not exist; the recording has frames 0 to {len(capture) - 1}."
        )
    camera = capture.frames[frame].camera
    if not (0 <= pixel[0] <= camera.width and 0 <= pixel[1] <= camera.height):
        raise AnnotationError(
            f"found pixel {pixel[0]:g},{pixel[1]:g}; frame {frame} has {camera.width}x{camera.height} pixels."
        )
    scan, when = raw_sweep_near(capture, camera.time)
    if abs(when - camera.time) > 0.5 * _interval(capture) + 1e-3:
        raise AnnotationError(
            f"frame {frame} was taken at {camera.time:g} s, the nearest sweep at {when:g} s; choose another frame."
        )
    found = place_seen(scan, camera, pixel, reach=reach)
    if found is None:
        raise AnnotationError(
            f"no laser point lies within {reach:g} pixels of {pixel[0]:g},{pixel[1]:g} in frame {frame}; "
            "choose a place that the laser met, or give the place in metres."
        )
    return found


def place_seen(
    scan: Float32[Tensor, "M 3"],
    camera: Camera,
    pixel: tuple[float, float],
    *,
    reach: float = REACH,
) -> Float32[Tensor, "3"] | None:
    """The laser point that a pixel of any view shows; None where no point is near.

    Args:
        scan: World, m.
        camera: The view.
        pixel: Column and row, pixels; centres lie at +0.5.
        reach: How far from the pixel the point may be, pixels.

    Returns:
        World, m. Of the points within reach that nothing nearer to the camera hides, the one nearest to the pixel.
    """
    view = camera.viewmat
    local = scan.double() @ view[:3, :3].T + view[:3, 3]
    ahead = local[:, 2] > 0.1
    homogeneous = local[ahead] @ camera.K.double().T
    uv = homogeneous[:, :2] / homogeneous[:, 2:]
    away = (uv - torch.tensor(pixel, dtype=torch.float64)).norm(dim=1)
    near = away < 2 * reach
    uv, away, depth, points = uv[near], away[near], homogeneous[near, 2], scan[ahead][near]
    beside = torch.cdist(uv, uv) < reach / 2
    hidden = (beside & (depth[None] < depth[:, None] - APART)).any(1)
    seen = ~hidden & (away <= reach)
    if not bool(seen.any()):
        return None
    rows = seen.nonzero().squeeze(1)
    return points[rows[away[rows].argmin()]]


def _interval(capture: Capture) -> float:
    times = [time for time, _ in capture.sweeps]
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0
