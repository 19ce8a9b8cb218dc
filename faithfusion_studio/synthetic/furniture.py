"""Things beside the road: lamp posts, traffic signs, trees, hedges, fences, bins.

All stand on z = 0 in their own frame (x along the road, y left); trees are many leaf cards around
dark blobs, so that they have a ragged outline and no holes to the other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from faithfusion_studio.synthetic.geometry import (
    Category,
    Geometry,
    GeometryBuilder,
    Look,
    Material,
    Real,
    tube,
)

OTHER, GREEN = Category.OTHER, Category.VEGETATION
DARK_METAL = Look(Material.METAL, (0.06, 0.07, 0.07), OTHER, 0, 0.3)
GREY_METAL = Look(Material.METAL, (0.3, 0.31, 0.32), OTHER, 0, 0.6)


def _pipe(
    builder: GeometryBuilder,
    start: Sequence[Real],
    end: Sequence[Real],
    radii: tuple[Real, Real],
    look: Look,
) -> None:
    quads, uv, normals = tube(np.array(start), np.array(end), radii)
    builder.quads(quads, look, uv, normals)


def lamp_post(height: Real = 6.5) -> Geometry:
    """Street lamp whose arm reaches 1.6 m towards -y (the road, for a lamp on the left)."""
    builder = GeometryBuilder()
    _pipe(builder, (0, 0, 0), (0, 0, 0.9), (0.11, 0.1), DARK_METAL)
    _pipe(builder, (0, 0, 0.9), (0, 0, height), (0.075, 0.05), DARK_METAL)
    _pipe(builder, (0, 0, height - 0.05), (0, -1.5, height + 0.25), (0.045, 0.035), DARK_METAL)
    builder.box(
        np.array((-0.13, -2.0, height + 0.2)), np.array((0.13, -1.35, height + 0.34)), DARK_METAL
    )
    glow = Look(Material.LAMP, (0.7, 0.68, 0.6), OTHER, 0, 0.1)
    z = height + 0.195
    quad = [(-0.11, -1.95, z), (-0.11, -1.4, z), (0.11, -1.4, z), (0.11, -1.95, z)]
    builder.quads(np.array(quad), glow)
    return builder.build()


def traffic_sign(kind: int, seed: Real) -> Geometry:
    """Sign on a pole, facing -x; kind 0 round limit, 1 warning triangle, 2 blue square, 3 round ban."""
    builder = GeometryBuilder()
    _pipe(builder, (0, 0, 0), (0, 0, 2.75), (0.035, 0.035), GREY_METAL)
    face = Look(Material.SIGN, (0.8, 0.8, 0.8), OTHER, kind, seed)
    back = Look(Material.METAL, (0.25, 0.25, 0.26), OTHER, 0, seed)
    z, radius, x = 2.4, 0.36, -0.045
    if kind == 1:
        angles = np.deg2rad([210.0, 330.0, 90.0])
    elif kind == 2:
        angles = np.deg2rad([225.0, 315.0, 45.0, 135.0])
        radius = 0.42
    else:
        angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    # Facing -x, the viewer's right is -y.
    ring = np.stack(
        [np.full(len(angles), x), -radius * np.cos(angles), z + radius * np.sin(angles)], -1
    )
    uv = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    following = np.roll(np.arange(len(angles)), -1)
    middle = np.array([x, 0, z])
    fan = np.stack([np.broadcast_to(middle, ring.shape), ring, ring[following]], axis=1)
    fan_uv = np.stack([np.zeros_like(uv), uv, uv[following]], axis=1)
    builder.triangles(fan, face, fan_uv)
    builder.triangles(fan[:, ::-1] + np.array([0.02, 0, 0]), back)
    return builder.build()


def bollard() -> Geometry:
    """Knee-high post with a light band."""
    builder = GeometryBuilder()
    _pipe(builder, (0, 0, 0), (0, 0, 0.75), (0.06, 0.06), DARK_METAL)
    light = Look(Material.PLAIN, (0.75, 0.75, 0.72), OTHER, 0, 0.2)
    _pipe(builder, (0, 0, 0.75), (0, 0, 0.9), (0.062, 0.05), light)
    _pipe(builder, (0, 0, 0.9), (0, 0, 0.93), (0.06, 0.001), DARK_METAL)
    return builder.build()


def delineator() -> Geometry:
    """Roadside marker post of country roads: white with a dark slanted band."""
    builder = GeometryBuilder()
    white = Look(Material.STRIPES, (0.05, 0.05, 0.05), OTHER, 1, 0.5)
    builder.box(np.array((-0.05, -0.06, 0)), np.array((0.05, 0.06, 1.0)), white)
    return builder.build()


def bin_box(seed: Real) -> Geometry:
    """Rubbish container with a lid."""
    builder = GeometryBuilder()
    color = ((0.03, 0.12, 0.05), (0.05, 0.06, 0.07), (0.2, 0.13, 0.02))[int(seed * 3)]
    body = Look(Material.PLAIN, color, OTHER, 1, seed)
    builder.box(np.array((-0.3, -0.28, 0.05)), np.array((0.3, 0.28, 0.98)), body)
    builder.box(np.array((-0.33, -0.31, 0.98)), np.array((0.33, 0.31, 1.06)), body)
    return builder.build()


def tree(rng: np.random.Generator, height: Real, num_leaves: int = 2400) -> Geometry:
    """Tree with a trunk, branches and a crown of several blobs carrying leaf cards."""
    builder = GeometryBuilder()
    seed = float(rng.random())
    bark = Look(Material.BARK, (0.13, 0.09, 0.06), GREEN, 0, seed)
    fork = np.array([rng.normal(0, 0.12), rng.normal(0, 0.12), height * 0.42])
    _pipe(builder, (0, 0, -0.05), tuple(fork), (0.16, 0.11), bark)
    count = 8
    spread = height * 0.13
    centres = rng.normal(0, 1, (count, 3)).clip(-1.6, 1.6) * (spread, spread, height * 0.09)
    centres += (0, 0, height * 0.7)
    radii = rng.uniform(0.14, 0.21, count) * height
    for centre in centres:
        _pipe(builder, tuple(fork), tuple(centre), (0.08, 0.03), bark)
    hue = np.array((0.085, 0.14, 0.032)) * rng.uniform(0.75, 1.25, 3)
    _leaves(builder, rng, centres, radii, num_leaves, tuple(hue))
    return builder.build()


def _leaves(
    builder: GeometryBuilder,
    rng: np.random.Generator,
    centres: np.ndarray,
    radii: np.ndarray,
    count: int,
    hue: tuple[Real, Real, Real],
) -> None:
    sphere = unit_sphere()
    shadowy = Look(Material.LEAF, tuple(0.3 * c for c in hue), GREEN, 1, 0.5)
    for centre, radius in zip(centres, radii, strict=True):
        corners = sphere * radius * 0.72 + centre
        builder.triangles(corners, shadowy, corners[..., :2] + corners[..., 2:])
    which = rng.integers(len(centres), size=count)
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    place = centres[which] + direction * (radii[which] * rng.uniform(0.7, 1.08, count))[:, None]
    facing = direction + rng.normal(0, 0.6, (count, 3))
    facing /= np.linalg.norm(facing, axis=-1, keepdims=True)
    across = np.cross(facing, rng.normal(size=(count, 3)))
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    other = np.cross(facing, across)
    # Fewer leaves are larger ones, so that the crown stays closed.
    size = rng.uniform(0.09, 0.17, (count, 1)) * np.sqrt(2400 / count) * radii.mean() / 1.2
    corners = np.stack(
        [
            place - across * size,
            place - other * size * 0.6,
            place + across * size,
            place + other * size * 0.6,
        ],
        axis=1,
    )
    # Normals lean outwards from the whole crown, which makes it shade like one soft body.
    outward = place - centres.mean(axis=0)
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    normals = outward + 0.5 * direction + 0.35 * facing
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    shade = rng.uniform(0.0, 1.0, count)
    depth = np.linalg.norm(place - centres.mean(axis=0), axis=-1)
    depth /= depth.max()
    openness = np.clip(0.25 + 0.5 * depth + 0.25 * outward[:, 2], 0.1, 1.0)
    uv = np.array([(-1, 0), (0, -1), (1, 0), (0, 1)], float)
    for level in range(6):
        chosen = (shade * 6).astype(int) == level
        tint = tuple(
            np.clip(np.array(hue) * (0.6 + 0.17 * level) + (0.018 * level, 0.01 * level, 0), 0, 1)
        )
        look = Look(Material.LEAF, tint, GREEN, 0, level / 6)
        part = GeometryBuilder()
        part.quads(corners[chosen], look, uv, np.repeat(normals[chosen][:, None], 4, axis=1))
        open_share = np.repeat(openness[chosen], 2)[:, None].repeat(3, axis=1)
        builder.add(replace(part.build(), ambient=open_share.astype(np.float32)))


def unit_sphere() -> np.ndarray:
    """Triangles [80, 3, 3] of an icosahedron, each split in four, on the unit sphere."""
    golden = (1 + np.sqrt(5)) / 2
    signs = [(a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    corners = [np.roll((0, *pair), shift) for shift in range(3) for pair in signs]
    points = np.array(corners, np.float64)
    near = np.linalg.norm(points[:, None] - points[None], axis=-1) < 2.1
    faces = [
        (i, j, k)
        for i in range(12)
        for j in range(i + 1, 12)
        for k in range(j + 1, 12)
        if near[i, j] and near[j, k] and near[i, k]
    ]
    a, b, c = np.moveaxis(points[np.array(faces)], 1, 0)
    # All faces wind outwards, so that the ambient light knows which side is open.
    inward = np.einsum("fi,fi->f", np.cross(b - a, c - a), a) < 0
    b[inward], c[inward] = c[inward], b[inward].copy()
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    split = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    sphere = np.concatenate([np.stack(part, axis=1) for part in split])
    return sphere / np.linalg.norm(sphere, axis=-1, keepdims=True)


def hedge(rng: np.random.Generator, length: Real, height: Real, width: Real = 0.7) -> Geometry:
    """Hedge along x: a noisy box with leaf cards on its surface."""
    builder = GeometryBuilder()
    hue = np.array((0.05, 0.12, 0.025)) * rng.uniform(0.8, 1.25, 3)
    look = Look(Material.LEAF, tuple(hue * 0.8), GREEN, 1, float(rng.random()))
    builder.box(np.array((0, -width / 2, -0.1)), np.array((length, width / 2, height)), look)
    count = int(length * height * 60)
    centre = rng.uniform((0, -width / 2, 0.05), (length, width / 2, height), (count, 3))
    face = rng.integers(3, size=count)
    centre[face == 0, 1] = -width / 2 - 0.02
    centre[face == 1, 1] = width / 2 + 0.02
    centre[face == 2, 2] = height + 0.01
    across = rng.normal(size=(count, 3))
    other = np.cross(across, rng.normal(size=(count, 3)))
    across /= np.linalg.norm(across, axis=-1, keepdims=True) / 0.1
    other /= np.linalg.norm(other, axis=-1, keepdims=True) / 0.07
    corners = np.stack([centre - across, centre - other, centre + across, centre + other], axis=1)
    uv = np.array([(-1, 0), (0, -1), (1, 0), (0, 1)], float)
    half = count // 2
    leaves = GeometryBuilder()
    for part, gain in ((slice(0, half), 1.0), (slice(half, None), 1.6)):
        leaf = Look(Material.LEAF, tuple(hue * gain), GREEN, 0, gain / 2)
        leaves.quads(corners[part], leaf, uv)
    cards = leaves.build()
    open_share = np.clip(0.3 + 0.55 * cards.triangles[..., 2] / height, 0, 1)
    builder.add(replace(cards, ambient=open_share))
    return builder.build()


def fence(length: Real, color: tuple[Real, Real, Real], seed: Real, *, pickets: bool) -> Geometry:
    """Fence along x: white pickets, or posts with three rails."""
    builder = GeometryBuilder()
    wood = Look(Material.WOOD, color, OTHER, 0, seed)
    if pickets:
        for x in np.arange(0, length - 0.05, 0.16):
            builder.box(np.array((x, -0.02, 0.05)), np.array((x + 0.09, 0.0, 1.0)), wood)
        rails, thick = (0.3, 0.8), 0.03
    else:
        rails, thick = (0.35, 0.7, 1.05), 0.04
    for z in rails:
        builder.box(np.array((0, 0.0, z)), np.array((length, thick, z + 0.1)), wood)
    for x in np.arange(0, length, 2.0):
        builder.box(np.array((x, -0.02, 0)), np.array((x + 0.12, 0.12, 1.2)), wood)
    return builder.build()


def barrier(length: Real, height: Real, color: tuple[Real, Real, Real], seed: Real) -> Geometry:
    """One panel of a noise barrier along x: a slab between posts, with a cap and ribs that catch the light."""
    builder = GeometryBuilder()
    slab = Look(Material.PAVEMENT, color, OTHER, 1, seed)
    builder.box(np.array((0, 0.0, 0)), np.array((length, 0.12, height)), slab)
    builder.box(np.array((0, -0.05, height)), np.array((length, 0.17, height + 0.1)), slab)
    for x in np.arange(0.5, length - 0.2, 0.5):
        builder.box(np.array((x, -0.04, 0)), np.array((x + 0.1, 0.0, height)), slab)
    builder.box(np.array((-0.12, -0.08, 0)), np.array((0.12, 0.2, height + 0.15)), GREY_METAL)
    return builder.build()


def guard_rail(length: Real) -> Geometry:
    """Steel crash barrier along x: two ribs of one beam before posts."""
    builder = GeometryBuilder()
    for low in (0.46, 0.62):
        builder.box(np.array((0, -0.09, low)), np.array((length, 0.0, low + 0.12)), GREY_METAL)
    builder.box(np.array((0, -0.04, 0.58)), np.array((length, 0.0, 0.62)), DARK_METAL)
    for x in np.arange(0, length, 2.0):
        builder.box(np.array((x, 0.0, 0)), np.array((x + 0.1, 0.08, 0.72)), GREY_METAL)
    return builder.build()
