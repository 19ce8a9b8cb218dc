"""What lies beside roads that nothing is built along: fields and hedges, or guard rails and noise barriers.

Street coordinates as in `layout`.
"""

from __future__ import annotations

import numpy as np

from faithfusion_studio.synthetic import furniture
from faithfusion_studio.synthetic.buildings import house
from faithfusion_studio.synthetic.geometry import (
    Category,
    Geometry,
    GeometryBuilder,
    Look,
    Material,
    pose_at,
)
from faithfusion_studio.synthetic.layout import Extent, strip, tree_row


def country_side(rng: np.random.Generator, extent: Extent) -> Geometry:
    """Gravel shoulder, verge, fences and hedges, fields, scattered trees, a few houses."""
    builder = GeometryBuilder()
    edge = extent.kerb
    gravel = Look(Material.GRASS, (0.2, 0.18, 0.15), Category.OTHER, 2, rng.random())
    verge = Look(Material.GRASS, (0.085, 0.13, 0.035), Category.VEGETATION, 0, rng.random())
    span = (extent.start, extent.stop)
    strip(builder, span, (edge, edge + 0.9), gravel, -0.005, (2.0, 1.0))
    strip(builder, span, (edge + 0.9, edge + 4.5), verge, -0.008, (2.0, 2.0))
    at = extent.start
    while at < extent.stop:
        length = rng.uniform(35, 70)
        dry = rng.random() < 0.4
        color = (
            (0.27, 0.2, 0.075)
            if dry
            else tuple(np.array((0.08, 0.13, 0.03)) * rng.uniform(0.7, 1.4))
        )
        field = Look(Material.GRASS, color, Category.VEGETATION, int(dry), rng.random())
        stop = min(at + length, extent.stop)
        strip(builder, (at, stop), (edge + 4.5, 110.0), field, -0.008, (6.0, 8.0))
        _field_border(builder, rng, (at, stop), edge + 4.6)
        if rng.random() < 0.45 and stop - at > 15:
            s, d = rng.uniform(at, stop - 13), edge + rng.uniform(13, 26)
            builder.add(house(rng, (s, s + rng.uniform(9, 13)), (d, d + 8), ground=0.0))
        at = stop
    for s in np.arange(extent.start + 10, extent.stop, 25.0):
        builder.add(furniture.delineator().placed(pose_at(s, edge + 1.2, 0.0)))
    for s in np.arange(extent.start, extent.stop, 6.5):
        if rng.random() < 0.6:
            crown = furniture.tree(rng, rng.uniform(5.0, 10.0))
            where = pose_at(s + rng.normal(0, 2), edge + 5.6 + rng.exponential(5.0), -0.02)
            builder.add(crown.placed(where))
    sign = furniture.traffic_sign(int(rng.integers(2)), rng.random())
    builder.add(sign.placed(pose_at(rng.uniform(15, 60), edge + 1.6, 0.0)))
    tree_row(builder, rng, extent, (60.0, 100.0), 9.0)
    return builder.build()


def highway_side(rng: np.random.Generator, extent: Extent) -> Geometry:
    """Paved shoulder, guard rail, delineators, mown embankment, noise barriers with gaps, trees behind."""
    builder = GeometryBuilder()
    edge, span = extent.kerb, (extent.start, extent.stop)
    shoulder = Look(Material.ROAD, (0.12, 0.12, 0.12), Category.ROAD, 1, rng.random())
    verge = Look(Material.GRASS, (0.085, 0.13, 0.035), Category.VEGETATION, 0, rng.random())
    strip(builder, span, (edge, edge + 2.2), shoulder, -0.004, (2.0, 1.1))
    strip(builder, span, (edge + 2.2, 110.0), verge, -0.008, (6.0, 6.0))
    for s in np.arange(extent.start, extent.stop - 8, 8.0):
        builder.add(furniture.guard_rail(8.0).placed(pose_at(s, edge + 2.7, 0.0)))
    for s in np.arange(extent.start + 10, extent.stop, 25.0):
        builder.add(furniture.delineator().placed(pose_at(s, edge + 2.3, 0.0)))
    at = extent.start + rng.uniform(0, 20)
    while at < extent.stop:
        stop = min(at + rng.uniform(25, 60), extent.stop)
        color = tuple(np.array((0.34, 0.32, 0.28)) * rng.uniform(0.6, 1.2))
        for s in np.arange(at, stop - 4, 4.0):
            panel = furniture.barrier(4.0, rng.uniform(3.0, 3.4), color, rng.random())
            builder.add(panel.placed(pose_at(s, edge + 7.5, -0.02)))
        at = stop + rng.uniform(12, 40)
    for s in np.arange(extent.start, extent.stop, 7.0):
        if rng.random() < 0.6:
            crown = furniture.tree(rng, rng.uniform(5.0, 9.0))
            where = pose_at(s + rng.normal(0, 2), edge + 10.5 + rng.exponential(5.0), -0.02)
            builder.add(crown.placed(where))
    sign = furniture.traffic_sign(int(rng.integers(4)), rng.random())
    builder.add(sign.placed(pose_at(rng.uniform(15, 60), edge + 3.4, 0.0)))
    tree_row(builder, rng, extent, (45.0, 90.0), 8.0)
    return builder.build()


def _field_border(
    builder: GeometryBuilder, rng: np.random.Generator, span: tuple[Real, Real], d: float
) -> None:
    kind, length = rng.random(), span[1] - span[0] - 3
    if length < 2:
        return
    place = pose_at(span[0] + 1, d, -0.02)
    if kind < 0.4:
        builder.add(
            furniture.fence(length, (0.22, 0.17, 0.12), rng.random(), pickets=False).placed(place)
        )
    elif kind < 0.8:
        pieces = int(length // 10)
        height = rng.uniform(0.9, 1.7)
        for piece in range(pieces):
            hedge = furniture.hedge(rng, 10.2, height * rng.uniform(0.9, 1.1), 1.0)
            builder.add(hedge.placed(pose_at(span[0] + 1 + piece * 10, d + 0.4, -0.02)))
