"""Light: sun with shadows, sky and ground light, gloss, haze, and the sky itself."""

from __future__ import annotations

import numpy as np

from faithfusion_studio.synthetic.geometry import Geometry, Material
from faithfusion_studio.synthetic.noise import fractal
from faithfusion_studio.synthetic.rays import Hits, RayScene
from faithfusion_studio.synthetic.road import road
from faithfusion_studio.synthetic.street import Daylight, Street
from faithfusion_studio.synthetic.textures import TEXTURES, Surface

HAZE = 1500.0
"""Distance in m at which 63 % of the colour is haze."""
GLOSS = {
    Material.PAINT: 0.05,
    Material.GLASS: 0.08,
    Material.WINDOW: 0.035,
    Material.SHOP: 0.035,
    Material.LAMP: 0.05,
}
"""Reflectance seen head-on of the materials that mirror the sky."""


class Points:
    """Shaded points: where chosen rays met which triangles."""

    def __init__(
        self, geometry: Geometry, hits: Hits, directions: np.ndarray, chosen: np.ndarray, lens
    ) -> None:
        """Interpolate everything at the chosen hits.

        Args:
            geometry: The triangles.
            hits: First hits of R rays.
            directions: [R, 3] ray directions, of length 1 along the camera's z.
            chosen: [n] indices of the rays to shade.
            lens: Has `position`, `step_x`, `step_y`: how a direction changes from pixel to pixel.
        """
        face = hits.triangle[chosen]
        self.direction = directions[chosen]
        self.depth = hits.distance[chosen]
        self.position = lens.position + self.direction * self.depth[:, None]
        b = hits.weights[chosen]
        weights = np.stack([1 - b[:, 0] - b[:, 1], b[:, 0], b[:, 1]], axis=-1)[:, None]
        self.normal = (weights @ geometry.normals[face])[:, 0]
        self.normal /= np.maximum(np.linalg.norm(self.normal, axis=-1, keepdims=True), 1e-6)
        away = np.einsum("ni,ni->n", self.normal, self.direction) > 0
        self.normal[away] *= -1
        self.ambient = (weights[:, 0] * geometry.ambient[face]).sum(-1)
        self.material = geometry.material[face]
        corners, uv = geometry.triangles[face], geometry.uv[face]
        self.surface = Surface(
            uv=(weights @ uv)[:, 0],
            footprint=self._footprint(corners, uv, lens),
            color=geometry.color[face],
            seed=geometry.seed[face],
            style=geometry.style[face],
            height=self.position[:, 2],
        )

    def _footprint(self, corners: np.ndarray, uv: np.ndarray, lens) -> np.ndarray:
        """Size [n, 2] of one pixel in texture coordinates, from the gradient over the triangle."""
        first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        plane = np.cross(first, second)
        square = np.maximum(np.einsum("ni,ni->n", plane, plane), 1e-20)[:, None]
        du = uv[:, 1:] - uv[:, :1]
        # Gradients of the two barycentric weights over the plane.
        g1, g2 = np.cross(second, plane) / square, np.cross(plane, first) / square
        slope = np.einsum("ni,ni->n", plane, self.direction)
        slope = np.where(np.abs(slope) < 1e-12, 1e-12, slope)
        size = np.zeros((len(corners), 2), np.float32)
        for step in (lens.step_x, lens.step_y):
            move = step - self.direction * ((plane @ step) / slope)[:, None]
            move *= self.depth[:, None]
            a = np.einsum("ni,ni->n", g1, move)[:, None]
            b = np.einsum("ni,ni->n", g2, move)[:, None]
            size += np.abs(a * du[:, 0] + b * du[:, 1])
        return np.clip(size, 1e-5, 1e3)


def radiance(
    street: Street, scene: RayScene, points: Points, sun_points: list[np.ndarray]
) -> np.ndarray:
    """Linear light [n, 3] that the points send to the camera.

    Args:
        street: Its paint and daylight.
        scene: Everything that can cast a shadow.
        points: What is seen.
        sun_points: Lists of [n, 3] places whose sunlight is averaged.
    """
    if not len(points.depth):
        return np.zeros((0, 3), np.float32)
    light = street.daylight
    albedo = _albedo(street, points)
    sun = np.float32(light.sun_direction)
    facing = points.normal @ sun
    leafy = points.material == Material.LEAF
    # Light shines through leaves: they are bright on both sides.
    facing = np.where(leafy, 0.25 + 0.75 * np.clip(facing, 0, 1), facing)
    lit = np.flatnonzero(facing > 0)
    visible = np.zeros(len(facing), np.float32)
    towards = np.broadcast_to(sun, (len(lit), 3)).copy()
    for places in sun_points:
        origins = places[lit] + points.normal[lit] * np.float32(0.012)
        visible[lit] += ~scene.occluded(np.ascontiguousarray(origins, np.float32), towards)
    visible /= len(sun_points)
    direct = (np.clip(facing, 0, 1) * visible)[:, None] * np.float32(light.sun_color)
    up = points.normal[:, 2:] * 0.5 + 0.5
    open_share = points.ambient[:, None]
    sky = (0.55 * np.float32(light.zenith) + 0.45 * np.float32(light.horizon)) * 1.05
    bounce = np.float32((0.26, 0.235, 0.2)) * 1.1
    ambient = (sky * up + bounce * (1 - up)) * (0.12 + 0.88 * open_share)
    color = albedo * (direct + ambient)
    color = _with_gloss(color, light, points, visible)
    distance = points.depth * np.linalg.norm(points.direction, axis=-1)
    haze = (1 - np.exp(-distance / HAZE))[:, None].astype(np.float32)
    return color + (np.float32(light.horizon) * 0.95 - color) * haze


def _albedo(street: Street, points: Points) -> np.ndarray:
    result = np.empty((len(points.depth), 3), np.float32)
    order = np.argsort(points.material, kind="stable")
    kinds, starts = np.unique(points.material[order], return_index=True)
    for kind, part in zip(kinds, np.split(order, starts[1:]), strict=True):
        surface = points.surface[part]
        if kind == Material.ROAD:
            result[part] = road(surface, street.paint)
        else:
            result[part] = TEXTURES[Material(kind)](surface)
    return np.clip(result, 0.0, 1.0)


def _with_gloss(
    color: np.ndarray, light: Daylight, points: Points, visible: np.ndarray
) -> np.ndarray:
    """Add the mirrored sky (or a grey street below the horizon) and the sun's highlight."""
    for material, base in GLOSS.items():
        chosen = np.flatnonzero(points.material == material)
        if not len(chosen):
            continue
        normal = points.normal[chosen]
        view = points.direction[chosen]
        view = view / np.linalg.norm(view, axis=-1, keepdims=True)
        cosine = -np.einsum("ni,ni->n", normal, view)
        mirrored = view + 2 * cosine[:, None] * normal
        share = base + (0.6 - base) * np.clip(1 - cosine, 0, 1) ** 5
        rise = np.clip(mirrored[:, 2:] * 2.5 + 0.35, 0, 1)
        high = np.clip(mirrored[:, 2:], 0, 1)
        sky = np.float32(light.horizon) * (1 - high) + np.float32(light.zenith) * high
        seen = np.float32((0.16, 0.15, 0.14)) * (1 - rise) + sky * rise
        color[chosen] += (seen - color[chosen]) * share[:, None] * points.ambient[chosen, None]
        if material in (Material.PAINT, Material.GLASS):
            spot = np.clip(mirrored @ np.float32(light.sun_direction), 0, 1) ** 90
            color[chosen] += (0.9 * spot * visible[chosen])[:, None]
    return color


def sky_radiance(light: Daylight, directions: np.ndarray) -> np.ndarray:
    """Linear light [n, 3] of the sky along directions [n, 3] of any length."""
    unit = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    rise = np.clip(unit[:, 2], 0, 1)
    blend = (rise**0.55)[:, None]
    color = np.float32(light.horizon) * (1 - blend) + np.float32(light.zenith) * blend
    sun = np.clip(unit @ np.float32(light.sun_direction), 0, 1)
    color = color + (0.25 * sun**8 + 2.0 * sun**600)[:, None] * np.float32((1.0, 0.93, 0.8))
    slant = 1 / (rise + 0.12)
    x = unit[:, 0] * slant + light.cloud_shift[0]
    y = unit[:, 1] * slant + light.cloud_shift[1]
    size = np.float32(0.004) * slant
    shape = fractal(x, y, 9.0, size, seed=21, roughness=0.55)
    cover = np.clip((shape + 2.2 * light.cloudiness - 1.25) * 0.8, 0, 1) * np.clip(rise * 7, 0, 1)
    shade = 0.93 + 0.1 * fractal(x + 0.1, y + 0.1, 9.0, size, seed=21, roughness=0.55)
    cloud = np.float32((0.93, 0.94, 0.96)) * np.clip(shade, 0.7, 1.05)[:, None]
    return color + (cloud - color) * (0.85 * cover)[:, None]


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light to displayed sRGB values, with a soft shoulder instead of clipping."""
    exposed = linear * np.float32(1.05)
    toned = exposed * (1 + exposed / 9.0) / (1 + exposed * 0.62)
    toned = np.clip(toned * np.float32(1.22), 0, 1)
    return np.where(toned < 0.0031308, 12.92 * toned, 1.055 * toned ** np.float32(1 / 2.4) - 0.055)
