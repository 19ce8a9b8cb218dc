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
    """Collects triangles, quads and boxes; `build` turns them into one `Geometry` at once."""

    def __init__(self) -> None:
        self._finished: list[Geometry] = []
        self._raw: list[tuple[np.ndarray, Look, np.ndarray | None, np.ndarray | None]] = []

    def add(self, geometry: Geometry) -> None:
        """Append finished triangles."""
        self._finished.append(geometry)

    def triangles(
        self,
        corners: np.ndarray,
        look: Look,
        uv: np.ndarray | None = None,
        normals: np.ndarray | None = None,
    ) -> None:
        """Append triangles [F, 3, 3]; flat normals and world-size uv where none are given."""
        self._raw.append((np.asarray(corners, np.float64), look, uv, normals))

    def quads(
        self,
        corners: np.ndarray,
        look: Look,
        uv: np.ndarray | None = None,
        normals: np.ndarray | None = None,
    ) -> None:
        """Append quads [Q, 4, 3], counter-clockwise seen from outside; uv [Q, 4, 2] or [4, 2]."""
        corners = np.asarray(corners, np.float64).reshape(-1, 4, 3)
        shape = (len(corners), 4)
        uv = None if uv is None else np.broadcast_to(uv, (*shape, 2))
        self.triangles(_halves(corners), look, _halves(uv), _halves(normals))

    def box(self, low: np.ndarray, high: np.ndarray, look: Look, bottom: bool = False) -> None:
        """Append an axis-aligned box from `low` to `high` [3]; the bottom only when asked for."""
        self.quads(box_quads(low, high, bottom), look)

    def build(self) -> Geometry:
        """Everything added so far; triangles without area are left out."""
        finished = list(self._finished)
        if self._raw:
            finished.append(self._shaped())
        return finished[0] if len(finished) == 1 else concatenate_geometry(finished)

    def _shaped(self) -> Geometry:
        """The raw triangles with their normals, uv and looks filled in."""
        corners = np.concatenate([part[0] for part in self._raw])
        flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        length = np.linalg.norm(flat, axis=-1, keepdims=True)
        normals = np.repeat((flat / np.maximum(length, 1e-12))[:, None], 3, axis=1)
        uv = _box_uv(corners, normals)
        counts = [len(part[0]) for part in self._raw]
        at = 0
        for (_, _, given_uv, given_normals), count in zip(self._raw, counts, strict=True):
            if given_uv is not None:
                uv[at : at + count] = given_uv
            if given_normals is not None:
                normals[at : at + count] = given_normals
            at += count
        keep = length[:, 0] > 1e-9
        looks = [part[1] for part in self._raw]

        def spread(values: list, dtype: type) -> np.ndarray:
            return np.repeat(np.array(values, dtype), counts, axis=0)[keep]

        return Geometry(
            triangles=corners[keep].astype(np.float32),
            normals=normals[keep].astype(np.float32),
            uv=uv[keep].astype(np.float32),
            color=spread([look.color for look in looks], np.float32),
            seed=spread([look.seed for look in looks], np.float32),
            material=spread([look.material for look in looks], np.uint8),
            style=spread([look.style for look in looks], np.uint8),
            category=spread([look.category for look in looks], np.uint8),
            node_index=np.full(int(keep.sum()), -1, np.int16),
            ambient=np.ones((int(keep.sum()), 3), np.float32),
        )


def _halves(values: np.ndarray | None) -> np.ndarray | None:
    """Both triangles of each quad: [Q, 4, C] to [2 Q, 3, C]."""
    if values is None:
        return None
    return values[:, [0, 1, 2, 0, 2, 3]].reshape(len(values) * 2, 3, -1)


_BOX = np.array(
    [
        [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)],
        [(1, 0, 0), (1, 1, 0), (1, 1, 1), (1, 0, 1)],
        [(0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)],
        [(0, 1, 0), (0, 1, 1), (1, 1, 1), (1, 1, 0)],
        [(0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)],
        [(0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)],
    ],
    np.float64,
)


def box_quads(low: np.ndarray, high: np.ndarray, bottom: bool = False) -> np.ndarray:
    """Outward faces [5 or 6, 4, 3] of an axis-aligned box."""
    low = np.asarray(low, np.float64)
    return low + _BOX[: 6 if bottom else 5] * (np.asarray(high, np.float64) - low)


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
