"""Lenses that bend straight lines: from a distorted photo to the pinhole picture of the same intrinsics.

Every model is a function from pinhole coordinates (x / z, y / z) to the distorted ones that the focal
length and principal point take to pixels; names, order of parameters and formulas are COLMAP's
(`src/colmap/sensor/models.h`), OpenCV's where COLMAP took them from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from faithfusion_studio.cameras import Camera

Array = np.ndarray


@dataclass(frozen=True)
class Lens:
    """One distortion, independent of image size."""

    model: str
    """COLMAP's name of the model; one of `DISTORTIONS`."""
    parameters: tuple[float, ...]
    """What follows the principal point in COLMAP's order."""

    def distort(self, u: Array, v: Array) -> tuple[Array, Array]:
        """Distorted coordinates of pinhole coordinates; both without unit, float64."""
        return DISTORTIONS[self.model](u, v, self.parameters)


def undistort(image: Array, camera: Camera, lens: Lens) -> Array:
    """The picture a pinhole with the camera's intrinsics would have taken.

    Args:
        image: [H, W, C] or [H, W] bytes of the distorted photo, H and W those of the camera.
        camera: Its intrinsics hold for both pictures.
        lens: How the photo is bent.

    Returns:
        An array of the same shape and type; pixels the photo does not show are 0.
    """
    import cv2

    columns, rows = _source_pixels(lens, _key(camera))
    return cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def shown(camera: Camera, lens: Lens) -> Array:
    """[H, W] True where the photo shows what the pinhole picture needs."""
    columns, rows = _source_pixels(lens, _key(camera))
    inside = (columns >= 0) & (rows >= 0)
    return inside & (columns <= camera.width - 1) & (rows <= camera.height - 1)


def _key(camera: Camera) -> tuple[float, ...]:
    K = camera.K
    numbers = (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    return (*(float(n) for n in numbers), float(camera.width), float(camera.height))


@lru_cache(maxsize=16)
def _source_pixels(lens: Lens, key: tuple[float, ...]) -> tuple[Array, Array]:
    """Column and row of the photo each pinhole pixel is read at, counted from the first centre; -1e6
    where the model has no answer."""
    fx, fy, cx, cy, width, height = key
    x, y = np.meshgrid(np.arange(int(width)) + 0.5, np.arange(int(height)) + 0.5)
    with np.errstate(all="ignore"):
        u, v = lens.distort((x - cx) / fx, (y - cy) / fy)
        columns, rows = fx * u + cx - 0.5, fy * v + cy - 0.5
    good = np.isfinite(columns) & np.isfinite(rows)
    good &= (np.abs(columns) < 1e6) & (np.abs(rows) < 1e6)
    return (
        np.where(good, columns, -1e6).astype(np.float32),
        np.where(good, rows, -1e6).astype(np.float32),
    )


# ------------------------------------------------------------------------------------------ models

Parameters = tuple[float, ...]


def _none(u: Array, v: Array, _p: Parameters) -> tuple[Array, Array]:
    return u, v


def _radial(u: Array, v: Array, p: Parameters) -> tuple[Array, Array]:
    r2 = u * u + v * v
    factor = 1 + sum(k * r2 ** (i + 1) for i, k in enumerate(p))
    return u * factor, v * factor


def _tangential(u: Array, v: Array, p1: float, p2: float) -> tuple[Array, Array]:
    r2 = u * u + v * v
    return 2 * p1 * u * v + p2 * (r2 + 2 * u * u), 2 * p2 * u * v + p1 * (r2 + 2 * v * v)


def _opencv(u: Array, v: Array, p: Parameters) -> tuple[Array, Array]:
    k1, k2, p1, p2, *more = p
    k3, k4, k5, k6 = more or (0.0, 0.0, 0.0, 0.0)
    r2 = u * u + v * v
    factor = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    factor = factor / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    du, dv = _tangential(u, v, p1, p2)
    return u * factor + du, v * factor + dv


def _angle_over_radius(u: Array, v: Array) -> tuple[Array, Array]:
    """Angle from the optical axis, rad, and that angle over the radius (1 on the axis)."""
    radius = np.hypot(u, v)
    angle = np.arctan(radius)
    return angle, np.where(radius > 1e-12, angle / np.maximum(radius, 1e-12), 1.0)


def _fisheye(u: Array, v: Array, p: Parameters) -> tuple[Array, Array]:
    angle, ratio = _angle_over_radius(u, v)
    factor = ratio * (1 + sum(k * angle ** (2 * i + 2) for i, k in enumerate(p)))
    return u * factor, v * factor


def _thin_prism_fisheye(u: Array, v: Array, p: Parameters) -> tuple[Array, Array]:
    k1, k2, p1, p2, k3, k4, sx, sy = p
    _, ratio = _angle_over_radius(u, v)
    u, v = u * ratio, v * ratio
    r2 = u * u + v * v
    ru, rv = _radial(u, v, (k1, k2, k3, k4))
    du, dv = _tangential(u, v, p1, p2)
    return ru + du + sx * r2, rv + dv + sy * r2


def _rad_tan_thin_prism_fisheye(u: Array, v: Array, p: Parameters) -> tuple[Array, Array]:
    u, v = _fisheye(u, v, p[:6])
    p0, p1, s0, s1, s2, s3 = p[6:]
    r2 = u * u + v * v
    twice = 2 * (u * p0 + v * p1)
    du, dv = twice * u + r2 * p0, twice * v + r2 * p1
    return u + du + s0 * r2 + s1 * r2 * r2, v + dv + s2 * r2 + s3 * r2 * r2


def _fov(u: Array, v: Array, p: Parameters) -> tuple[Array, Array]:
    (omega,) = p
    if abs(omega) < 1e-8:
        return u, v
    radius = np.maximum(np.hypot(u, v), 1e-12)
    factor = np.arctan(radius * 2 * np.tan(omega / 2)) / (radius * omega)
    return u * factor, v * factor


def _division(u: Array, v: Array, p: Parameters) -> tuple[Array, Array]:
    """u = d / (1 + k |d|^2) solved for d."""
    factor = 2 / (1 + np.sqrt(1 - 4 * p[0] * (u * u + v * v)))
    return u * factor, v * factor


def _eucm(u: Array, v: Array, p: Parameters) -> tuple[Array, Array]:
    alpha, beta = p
    depth = alpha * np.sqrt(beta * (u * u + v * v) + 1) + (1 - alpha)
    return u / depth, v / depth


DISTORTIONS: dict[str, Callable[[Array, Array, Parameters], tuple[Array, Array]]] = {
    "SIMPLE_PINHOLE": _none,
    "PINHOLE": _none,
    "SIMPLE_RADIAL": _radial,
    "RADIAL": _radial,
    "OPENCV": _opencv,
    "OPENCV_FISHEYE": _fisheye,
    "FULL_OPENCV": _opencv,
    "FOV": _fov,
    "SIMPLE_RADIAL_FISHEYE": _fisheye,
    "RADIAL_FISHEYE": _fisheye,
    "THIN_PRISM_FISHEYE": _thin_prism_fisheye,
    "RAD_TAN_THIN_PRISM_FISHEYE": _rad_tan_thin_prism_fisheye,
    "SIMPLE_DIVISION": _division,
    "DIVISION": _division,
    "SIMPLE_FISHEYE": _fisheye,
    "FISHEYE": _fisheye,
    "EUCM": _eucm,
}
"""Every model of COLMAP but the equirectangular panorama, which no pinhole picture can replace."""

STRAIGHT = frozenset({"SIMPLE_PINHOLE", "PINHOLE"})
_STRAIGHT_WHEN_ZERO = STRAIGHT | {
    "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV", "SIMPLE_DIVISION", "DIVISION", "FOV",
}  # fmt: skip


def lens_of(model: str, parameters: tuple[float, ...]) -> Lens | None:
    """The lens of a model's parameters; None where it bends nothing."""
    if model in _STRAIGHT_WHEN_ZERO and not any(parameters):
        return None
    return Lens(model, parameters)
