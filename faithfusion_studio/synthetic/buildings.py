"""Whole buildings in street coordinates: terraced ones with roofs, and houses with gables."""

from __future__ import annotations

import numpy as np

from faithfusion_studio.synthetic.facades import (
    BRICK_COLORS,
    BUILDING,
    ROOF_COLORS,
    FacadeStyle,
    Wall,
    draw_style,
    facade,
)
from faithfusion_studio.synthetic.geometry import Geometry, GeometryBuilder, Look, Material, Real


def box_building(
    style: FacadeStyle,
    rng: np.random.Generator,
    span: tuple[Real, Real],
    depth: tuple[Real, Real],
    height: Real,
    ground: Real = 0.12,
) -> Geometry:
    """Terraced building on the left of the street, facing -d.

    Args:
        style: Its look.
        rng: Source of everything random.
        span: Start and end along s, m.
        depth: Front and back distance d from the centreline, m; front < back.
        height: Height above the ground, m.
        ground: Height of the pavement, m.
    """
    (s0, s1), (d0, d1) = span, depth
    builder = GeometryBuilder()
    front = Wall(np.array((s0, d0, ground)), np.array((1.0, 0, 0)), s1 - s0, height)
    facade(builder, front, style, rng)
    for origin, along in (((s0, d1), (0, -1.0, 0)), ((s1, d0), (0, 1.0, 0))):
        side = Wall(np.array((*origin, ground)), np.array(along), d1 - d0, height)
        facade(builder, side, style, rng, street_side=False)
    _flat_or_pitched_roof(builder, style, rng, (s0, s1, d0, d1, ground + height))
    return builder.build()


def _flat_or_pitched_roof(
    builder: GeometryBuilder,
    style: FacadeStyle,
    rng: np.random.Generator,
    extent: tuple[Real, Real, Real, Real, Real],
) -> None:
    s0, s1, d0, d1, z = extent
    color = ROOF_COLORS[int(rng.integers(len(ROOF_COLORS)))]
    tiles = Look(Material.ROOF, color, BUILDING, 0, style.seed)
    back = Look(style.wall.material, style.wall.color, BUILDING, style.wall.style, style.seed)
    builder.quads(np.array([(s1, d1, 0.1), (s0, d1, 0.1), (s0, d1, z), (s1, d1, z)]), back)
    if rng.random() < 0.55:
        rise, middle = rng.uniform(1.6, 2.8), (d0 + d1) / 2
        over = 0.25
        length = float(np.hypot(middle - d0 + over, rise))
        uv = np.array([(0, 0), (s1 - s0, 0), (s1 - s0, length), (0, length)])
        eaves = (d0 - over, d1 + over)
        front = [
            (s0, eaves[0], z),
            (s1, eaves[0], z),
            (s1, middle, z + rise),
            (s0, middle, z + rise),
        ]
        rear = [
            (s1, eaves[1], z),
            (s0, eaves[1], z),
            (s0, middle, z + rise),
            (s1, middle, z + rise),
        ]
        builder.quads(np.array([front, rear]), tiles, uv)
        gables = [
            [(s0, d1, z), (s0, d0, z), (s0, middle, z + rise)],
            [(s1, d0, z), (s1, d1, z), (s1, middle, z + rise)],
        ]
        builder.triangles(np.array(gables), back)
        top = z + rise
    else:
        builder.quads(np.array([(s0, d0, z), (s1, d0, z), (s1, d1, z), (s0, d1, z)]), tiles)
        for low, high in (
            ((s0, d0, z), (s1, d0 + 0.25, z + 0.5)),
            ((s0, d0, z), (s0 + 0.25, d1, z + 0.5)),
            ((s1 - 0.25, d0, z), (s1, d1, z + 0.5)),
        ):
            builder.box(np.array(low), np.array(high), style.trim)
        top = z
    for _ in range(int(rng.integers(1, 4))):
        s, d = rng.uniform(s0 + 0.8, s1 - 0.8), rng.uniform(d0 + 2, d1 - 2)
        brick = Look(Material.WALL, BRICK_COLORS[1], BUILDING, 1, style.seed)
        builder.box(
            np.array((s - 0.35, d - 0.25, z)), np.array((s + 0.35, d + 0.25, top + 1.0)), brick
        )


def house(
    rng: np.random.Generator,
    span: tuple[Real, Real],
    depth: tuple[Real, Real],
    ground: Real = 0.12,
) -> Geometry:
    """Detached house on the left of the street with a gable roof, facing -d."""
    style = draw_style(rng, shop_share=0.0, rustic=True)
    (s0, s1), (d0, d1) = span, depth
    height = float(rng.choice([3.1, 5.8], p=[0.45, 0.55]))
    builder = GeometryBuilder()
    front = Wall(np.array((s0, d0, ground)), np.array((1.0, 0, 0)), s1 - s0, height)
    facade(builder, front, style, rng)
    for origin, along in (((s0, d1), (0, -1.0, 0)), ((s1, d0), (0, 1.0, 0))):
        side = Wall(np.array((*origin, ground)), np.array(along), d1 - d0, height)
        facade(builder, side, style, rng, street_side=False)
    z, over, middle = ground + height, 0.45, (d0 + d1) / 2
    rise = (d1 - d0) * rng.uniform(0.32, 0.48)
    color = ROOF_COLORS[int(rng.integers(len(ROOF_COLORS)))]
    tiles = Look(Material.ROOF, color, BUILDING, 0, style.seed)
    drop = over * rise / (middle - d0)
    length = float(np.hypot(middle - d0 + over, rise + drop))
    a, b = s0 - over, s1 + over
    uv = np.array([(a, 0), (b, 0), (b, length), (a, length)])
    front_side = [
        (a, d0 - over, z - drop),
        (b, d0 - over, z - drop),
        (b, middle, z + rise),
        (a, middle, z + rise),
    ]
    rear_side = [
        (b, d1 + over, z - drop),
        (a, d1 + over, z - drop),
        (a, middle, z + rise),
        (b, middle, z + rise),
    ]
    builder.quads(np.array([front_side, rear_side]), tiles, uv)
    gables = [
        [(s0, d1, z), (s0, d0, z), (s0, middle, z + rise)],
        [(s1, d0, z), (s1, d1, z), (s1, middle, z + rise)],
    ]
    builder.triangles(np.array(gables), style.wall)
    builder.quads(np.array([(s1, d1, 0.0), (s0, d1, 0.0), (s0, d1, z), (s1, d1, z)]), style.wall)
    brick = Look(Material.WALL, BRICK_COLORS[0], BUILDING, 1, style.seed)
    s = rng.uniform(s0 + 1, s1 - 1)
    builder.box(
        np.array((s - 0.4, middle - 0.3, z)),
        np.array((s + 0.4, middle + 0.9, z + rise + 0.9)),
        brick,
    )
    return builder.build()
