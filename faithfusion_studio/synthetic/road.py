"""The road: where it runs, what is painted on it, and its asphalt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faithfusion_studio.synthetic.geometry import Real
from faithfusion_studio.synthetic.noise import band, cell_hash, fractal, lines
from faithfusion_studio.synthetic.textures import Surface, mix, scaled

STEP = 0.25
"""Spacing of the stored centreline, m."""


class Bend:
    """Maps street coordinates (s along the road, d left, z up) to the world.

    The road is straight behind s = 0 and eases into a constant curvature over 30 m; the world is
    the street frame at s = 0.
    """

    def __init__(self, curvature: Real, start: Real, stop: Real) -> None:
        """Store a centreline with this final curvature (1/m, positive = left) from start to stop."""
        self.curvature = curvature
        self._s = np.arange(np.floor(start), np.ceil(stop) + STEP, STEP)
        bend = curvature * np.clip(self._s / 30.0, 0, 1)
        self._heading = np.concatenate([[0.0], np.cumsum((bend[1:] + bend[:-1]) / 2 * STEP)])
        middle = (self._heading[1:] + self._heading[:-1]) / 2
        x = np.concatenate([[0.0], np.cumsum(np.cos(middle) * STEP)])
        y = np.concatenate([[0.0], np.cumsum(np.sin(middle) * STEP)])
        zero = int(np.argmin(np.abs(self._s)))
        self._x, self._y = x - x[zero], y - y[zero]

    def heading(self, s: np.ndarray | Real) -> np.ndarray | float:
        """Direction of the road at s, radians from the world x axis."""
        return np.interp(s, self._s, self._heading)

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """Street coordinates [..., 3] to world coordinates; beyond the ends the road goes straight."""
        s = points[..., 0]
        inside = np.clip(s, self._s[0], self._s[-1])
        heading = self.heading(inside)
        beyond = s - inside
        cosine, sine = np.cos(heading), np.sin(heading)
        x = np.interp(inside, self._s, self._x) + beyond * cosine - points[..., 1] * sine
        y = np.interp(inside, self._s, self._y) + beyond * sine + points[..., 1] * cosine
        return np.stack([x, y, points[..., 2]], axis=-1)

    def pose(self, s: Real, d: Real, z: Real = 0.0, turn: Real = 0.0) -> np.ndarray:
        """Pose [4, 4] of an object at street coordinates, turned by `turn` from the road."""
        yaw = float(self.heading(s)) + turn
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        pose[:3, 3] = self.to_world(np.array([s, d, z], float))
        return pose


@dataclass(frozen=True, eq=False)
class RoadPaint:
    """What is painted on the carriageway, in street coordinates."""

    lane_width: float
    """Each of the two lanes spans this from the centre line, m."""
    edge_lines: bool
    centre_dash: float
    """Length of a dash of the centre line, m; 0 = solid. The gap is twice as long."""
    arrows: np.ndarray
    """[A, 3]: s, d and direction (+1 along s, -1 against it) of each arrow."""
    crosswalks: tuple[float, ...]
    """s of each crosswalk (3 m long, with a stop line before it)."""
    crosswalk_reach: float
    """Crosswalks span this far to both sides, m."""
    patches: np.ndarray
    """[P, 5]: s, d, half length, half width and gain of repaired rectangles."""
    manholes: np.ndarray
    """[M, 2]: s and d of each cover."""
    tone: float
    """Mean linear brightness of the asphalt."""
    seed: float


def road(p: Surface, paint: RoadPaint) -> np.ndarray:
    """Linear colour [n, 3] of the carriageway; uv = street coordinates in m (style 1: no paint)."""
    s, d = p.u, p.v
    color = _asphalt(p, paint)
    main = p.style == 0
    worn = np.clip(0.93 - 0.16 * fractal(s, d, 1.6, p.blur, seed=7, roughness=0.85), 0.35, 1.0)
    share = _lane_lines(p, paint)
    for at in paint.crosswalks:
        stripe = lines(d, 1.0, 0.5, p.fv) * band(s, at, at + 3.0, p.fu)
        stop = band(s, at - 1.3, at - 0.9, p.fu) * band(d, -paint.lane_width, -0.1, p.fv)
        stripe = stripe * band(np.abs(d), -1.0, paint.crosswalk_reach, p.fv)
        inside = band(s, at - 1.5, at + 4.5, p.fu)
        share = np.maximum(share * (1 - inside), np.maximum(stripe, stop))
    for at, across, direction in paint.arrows.tolist():
        share = np.maximum(share, _arrow((s - at) * direction, d - across, p.fu, p.fv))
    color = mix(color, (0.66, 0.65, 0.6), share * worn * main)
    for at, across in paint.manholes.tolist():
        radius = np.hypot(s - at, d - across)
        disc = band(radius, -1.0, 0.33, p.blur)
        if not disc.any():
            continue
        pattern = lines(s + d, 0.1, 0.045, p.blur) * band(radius, -1, 0.28, p.blur)
        ring = band(radius, 0.29, 0.33, p.blur)
        color = mix(color, (0.06, 0.058, 0.055), disc * main)
        color = mix(color, (0.13, 0.125, 0.12), np.maximum(pattern, ring) * disc * 0.7 * main)
    return color


def _asphalt(p: Surface, paint: RoadPaint) -> np.ndarray:
    s, d, f = p.u, p.v, p.blur
    grain = 0.27 * fractal(s, d, 0.7, f * 0.6, seed=8, roughness=0.95)
    blotch = 0.1 * fractal(s, d, 13.0, f * 0.6, seed=1, roughness=0.75)
    streak = 0.07 * fractal(s * 0.12, d, 5.0, p.fv, seed=3)
    wheel = np.abs(np.abs(np.abs(d) - paint.lane_width / 2) - 0.8)
    tracks = -0.1 * np.exp(-((wheel / 0.35) ** 2)) * (p.style == 0)
    ridge = np.abs(fractal(s, d, 23.0, f * 0.5, seed=9, roughness=0.62))
    area = np.clip(fractal(s, d, 61.0, f, seed=10, roughness=0.4) - 0.2, 0, 1)
    crack = np.clip(1 - ridge / (0.022 + 0.9 * f), 0, 1) * area * np.clip(1.3 - 12 * f, 0, 1)
    gain = 1 + grain + blotch + streak + tracks
    for at, across, length, width, tone in paint.patches.tolist():
        sag = 0.04 * fractal(s, d, 9.0, f, seed=11)
        inside = band(s + sag, at - length, at + length, p.fu)
        inside = inside * band(d + sag, across - width, across + width, p.fv)
        gain = gain * (1 + (tone - 1) * inside)
    gain = gain * (1 - 0.55 * crack)
    tint = np.float32((1.0, 0.985, 0.955)) * np.float32(paint.tone)
    speck = (cell_hash(np.floor(s * 40), np.floor(d * 40), 3) > 0.985) * np.clip(1.2 - f * 40, 0, 1)
    return scaled(np.broadcast_to(tint, (len(s), 3)), gain + 0.7 * speck)


def _lane_lines(p: Surface, paint: RoadPaint) -> np.ndarray:
    s, d = p.u, p.v
    centre = band(d, -0.06, 0.06, p.fv)
    if paint.centre_dash > 0:
        period = 3 * paint.centre_dash
        phase = s - np.floor(s / period) * period
        centre = centre * band(phase, 0.0, paint.centre_dash, p.fu)
    share = centre
    if paint.edge_lines:
        at = paint.lane_width + 0.06
        share = np.maximum(share, band(np.abs(d), at - 0.06, at + 0.06, p.fv))
    return share


def _arrow(x: np.ndarray, y: np.ndarray, fx: np.ndarray, fy: np.ndarray) -> np.ndarray:
    """Straight arrow 4 m long that starts at 0 and points along +x."""
    shaft = band(x, 0.0, 2.6, fx) * band(y, -0.08, 0.08, fy)
    half = 0.42 * (4.0 - x) / 1.5
    head = band(x, 2.5, 4.0, fx) * band(y, -half, np.maximum(half, -half), fy)
    return np.maximum(shaft, head)
