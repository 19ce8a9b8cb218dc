"""Triangles with everything needed to shade them, and a builder that collects them.

Frames: objects are built in "street coordinates" (s along the road, d to the left, z up, metres)
or in their own frame (x forward, y left, z up); a pose or a bend maps them into the world at the
end. Triangles are not indexed, because each carries its own texture coordinates and normals.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np
from jaxtyping import Float32, Float64, Int16, UInt8

Real = float | int
"""Any real number; shapes are often given in whole metres."""


class Category(IntEnum):
    """What a pixel shows; the values stored in category images."""

    SKY = 0
    ROAD = 1
    BUILDING = 2
    CAR = 3
    VEGETATION = 4
    OTHER = 5


class Material(IntEnum):
    """Which texture shades a triangle; `style` picks a variant of it."""

    PLAIN = 0
    ROAD = 1
    PAVEMENT = 2
    WALL = 3
    WINDOW = 4
    DOOR = 5
    SHOP = 6
    LETTERS = 7
    ROOF = 8
    STRIPES = 9
    PAINT = 10
    GLASS = 11
    WHEEL = 12
    PLATE = 13
    BARK = 14
    LEAF = 15
    GRASS = 16
    SIGN = 17
    WOOD = 18
    LAMP = 19
    METAL = 20


@dataclass(frozen=True, eq=False)
class Geometry:
    """F shaded triangles in one frame."""

    triangles: Float32[np.ndarray, "F 3 3"]
    """Corners, m."""
    normals: Float32[np.ndarray, "F 3 3"]
    """Unit shading normal at each corner."""
    uv: Float32[np.ndarray, "F 3 2"]
    """Texture coordinates at each corner; metres for most materials, 0..1 for framed ones."""
    color: Float32[np.ndarray, "F 3"]
    """Base colour, linear RGB in [0, 1]."""
    seed: Float32[np.ndarray, "F"]
    """Random number in [0, 1) of the object, so that equal textures differ."""
    material: UInt8[np.ndarray, "F"]
    """A `Material` value."""
    style: UInt8[np.ndarray, "F"]
    """Variant of the material."""
    category: UInt8[np.ndarray, "F"]
    """A `Category` value."""
    node_index: Int16[np.ndarray, "F"]
    """Moving vehicle the triangle belongs to; -1 = background."""
    ambient: Float32[np.ndarray, "F 3"]
    """Share of the sky each corner sees, in [0, 1]."""

    def __len__(self) -> int:
        return len(self.triangles)

    def placed(self, pose: Float64[np.ndarray, "4 4"], node_index: int | None = None) -> Geometry:
        """The same triangles moved by a rigid (or uniformly scaling) pose, optionally as a node."""
        linear, shift = pose[:3, :3].astype(np.float32), pose[:3, 3].astype(np.float32)
        turned = self.normals @ linear.T
        turned /= np.linalg.norm(turned, axis=-1, keepdims=True)
        moved = replace(self, triangles=self.triangles @ linear.T + shift, normals=turned)
        if node_index is None:
            return moved
        return replace(moved, node_index=np.full(len(self), node_index, np.int16))

    def tinted(self, material: Material, color: tuple[float, float, float]) -> Geometry:
        """The same triangles with another base colour on all faces of one material."""
        chosen = (self.material == material)[:, None]
        return replace(self, color=np.where(chosen, np.float32(color), self.color))

    def seeded(self, seed: Real) -> Geometry:
        """The same triangles with another object seed."""
        return replace(self, seed=np.full(len(self), seed, np.float32))


def concatenate_geometry(parts: list[Geometry]) -> Geometry:
    """All triangles of several sets, in order."""
    return Geometry(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Geometry)}
    )


def pose_at(x: Real, y: Real, z: Real, yaw: Real = 0, scale: Real = 1.0) -> np.ndarray:
    """Pose [4, 4] that scales, turns about z by `yaw` radians, then moves."""
    cosine, sine = np.cos(yaw) * scale, np.sin(yaw) * scale
    return np.array(
        [[cosine, -sine, 0, x], [sine, cosine, 0, y], [0, 0, scale, z], [0, 0, 0, 1]], np.float64
    )


@dataclass(frozen=True)
class Look:
    """How the faces of one call are shaded."""

    material: Material
    color: tuple[float, float, float] = (0.5, 0.5, 0.5)
    category: Category = Category.OTHER
    style: int = 0
    seed: float = 0.0


class GeometryBuilder:
    """Collects quads and boxes; `build` gives one `Geometry`."""

    def __init__(self) -> None:
        self._parts: list[Geometry] = []

    def add(self, geometry: Geometry) -> None:
        """Append finished triangles."""
        self._parts.append(geometry)

    def triangles(
        self,
        corners: np.ndarray,
        look: Look,
        uv: np.ndarray | None = None,
        normals: np.ndarray | None = None,
    ) -> None:
        """Append triangles [F, 3, 3]; flat normals and world-size uv where none are given."""
        corners = np.asarray(corners, np.float64)
        flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        length = np.linalg.norm(flat, axis=-1, keepdims=True)
        corners, flat = corners[length[:, 0] > 1e-9], (flat / np.maximum(length, 1e-9))
        keep = length[:, 0] > 1e-9
        flat = np.repeat(flat[keep][:, None], 3, axis=1)
        uv = _box_uv(corners, flat) if uv is None else np.asarray(uv)[keep]
        count = len(corners)
        self._parts.append(
            Geometry(
                triangles=corners.astype(np.float32),
                normals=(flat if normals is None else np.asarray(normals)[keep]).astype(np.float32),
                uv=uv.astype(np.float32),
                color=np.tile(np.float32(look.color), (count, 1)),
                seed=np.full(count, look.seed, np.float32),
                material=np.full(count, look.material, np.uint8),
                style=np.full(count, look.style, np.uint8),
                category=np.full(count, look.category, np.uint8),
                node_index=np.full(count, -1, np.int16),
                ambient=np.ones((count, 3), np.float32),
            )
        )

    def quads(
        self,
        corners: np.ndarray,
        look: Look,
        uv: np.ndarray | None = None,
        normals: np.ndarray | None = None,
    ) -> None:
        """Append quads [Q, 4, 3], counter-clockwise seen from outside; uv [Q, 4, 2] or [4, 2]."""
        corners = np.asarray(corners, np.float64).reshape(-1, 4, 3)
        split = np.array([[0, 1, 2], [0, 2, 3]])

        def halves(values: np.ndarray | None) -> np.ndarray | None:
            if values is None:
                return None
            values = np.broadcast_to(values, (len(corners), 4, np.shape(values)[-1]))
            return values[:, split].reshape(len(corners) * 2, 3, -1)

        self.triangles(halves(corners), look, halves(uv), halves(normals))

    def box(self, low: np.ndarray, high: np.ndarray, look: Look, bottom: bool = False) -> None:
        """Append an axis-aligned box from `low` to `high` [3]; the bottom only when asked for."""
        self.quads(box_quads(np.asarray(low, float), np.asarray(high, float), bottom), look)

    def build(self) -> Geometry:
        """Everything added so far."""
        return concatenate_geometry(self._parts)


def box_quads(low: np.ndarray, high: np.ndarray, bottom: bool = False) -> np.ndarray:
    """Outward faces [5 or 6, 4, 3] of an axis-aligned box."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    faces = [
        [(x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)],
        [(x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)],
        [(x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)],
        [(x0, y1, z0), (x0, y1, z1), (x1, y1, z1), (x1, y1, z0)],
        [(x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)],
    ]
    if bottom:
        faces.append([(x0, y0, z0), (x0, y1, z0), (x1, y1, z0), (x1, y0, z0)])
    return np.array(faces)


def tube(
    start: np.ndarray, end: np.ndarray, radii: tuple[float, float], sides: int = 8
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Side quads [sides, 4, 3] of a tapered tube with their uv [., 4, 2] (m) and normals."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    axis = (end - start) / np.linalg.norm(end - start)
    helper = np.array([1.0, 0, 0]) if abs(axis[0]) < 0.9 else np.array([0, 1.0, 0])
    across = np.cross(axis, helper)
    across /= np.linalg.norm(across)
    other = np.cross(axis, across)
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    ring = np.cos(angle)[:, None] * across + np.sin(angle)[:, None] * other
    low, high = start + ring * radii[0], end + ring * radii[1]
    quads = np.stack([low[:-1], low[1:], high[1:], high[:-1]], axis=1)
    normals = np.stack([ring[:-1], ring[1:], ring[1:], ring[:-1]], axis=1)
    length, around = np.linalg.norm(end - start), angle * max(radii)
    u = np.stack([around[:-1], around[1:], around[1:], around[:-1]], axis=1)
    v = np.tile([0.0, 0.0, length, length], (sides, 1))
    return quads, np.stack([u, v], axis=-1), normals


def _box_uv(corners: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Project corners along the main axis of their normal, keeping z upright: metres."""
    axis = np.abs(normals[:, 0]).argmax(-1)[:, None]
    x, y, z = np.moveaxis(corners, -1, 0)
    u = np.where(axis == 0, y, x)
    v = np.where(axis == 2, y, z)
    return np.stack([u, v], axis=-1)
