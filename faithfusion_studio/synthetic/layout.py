"""Places everything along the road in street coordinates (s forward, d left, z up, metres).

The right side is built like the left and turned by half a circle. What a family has beside the
road is in one function each: `urban_side`, `canyon_side`, `suburban_side` here, `country_side` and `highway_side`
in `verges`; `FAMILIES` holds their numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faithfusion_studio.synthetic import furniture
from faithfusion_studio.synthetic.buildings import box_building, house
from faithfusion_studio.synthetic.facades import draw_style
from faithfusion_studio.synthetic.geometry import (
    Category,
    Geometry,
    GeometryBuilder,
    Look,
    Material,
    Real,
    pose_at,
)
from faithfusion_studio.synthetic.vehicles import CAR_COLORS, SHAPES, vehicle

KERB_HEIGHT = 0.12
FAR = 70.0
"""Ground is modelled in detail up to this distance from the road, m."""
HALF_TURN = pose_at(0, 0, 0, np.pi)


@dataclass(frozen=True)
class Traits:
    """What a family of streets has in common."""

    kerb: float
    """Distance of the kerb (or the edge of the asphalt) from the centre line, m."""
    lane: float
    """Width of a lane, m."""
    parked: float
    """Share of parking slots that hold a car."""
    built: bool
    """Facades and pavement all along; otherwise green."""
    floors: tuple[int, int] = (3, 6)
    """Storeys of its buildings, half-open."""
    crossings: bool = True
    """Crosswalks and turning arrows."""
    edge_lines: bool = True


FAMILIES: dict[str, Traits] = {
    "urban": Traits(7.1, 3.5, 0.65, built=True),
    "suburban": Traits(6.9, 3.3, 0.3, built=False, edge_lines=False),
    "country": Traits(3.9, 3.4, 0.0, built=False, crossings=False),
    "canyon": Traits(6.3, 3.1, 0.5, built=True, floors=(9, 17)),
    "highway": Traits(6.6, 3.75, 0.0, built=False, crossings=False),
}
"""In the order they were added: what a seed gives in an older family must never change."""


@dataclass(frozen=True)
class Extent:
    """Where the street starts and stops, and how wide its carriageway is."""

    start: float
    stop: float
    kerb: float
    """Distance of the kerb from the centre line, m."""


def strip(
    builder: GeometryBuilder,
    span: tuple[Real, Real],
    reach: tuple[Real, Real],
    look: Look,
    z: Real,
    cell: tuple[Real, Real] = (2.0, 2.0),
) -> None:
    """Horizontal ground over span (s) and reach (d), cut into cells so that it bends and darkens."""
    s = np.linspace(*span, max(2, int(np.ceil((span[1] - span[0]) / cell[0])) + 1))
    d = np.linspace(*reach, max(2, int(np.ceil((reach[1] - reach[0]) / cell[1])) + 1))
    grid = np.stack([*np.meshgrid(s, d, indexing="ij"), np.full((len(s), len(d)), z)], axis=-1)
    corners = np.stack([grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]], axis=2)
    quads = corners.reshape(-1, 4, 3)
    builder.quads(quads, look, quads[..., :2])


def raised(
    builder: GeometryBuilder,
    span: tuple[Real, Real],
    kerb: Real,
    widths: tuple[Real, ...],
    looks: tuple[Look, ...],
) -> None:
    """Kerb stone and raised strips of these widths behind it, with kerb faces at both ends."""
    stone = Look(Material.PAVEMENT, (0.36, 0.35, 0.33), Category.OTHER, 1, 0.25)
    s = np.linspace(*span, max(2, int((span[1] - span[0]) / 2) + 1))
    face = np.stack([s, np.full_like(s, kerb), np.zeros_like(s)], axis=-1)
    top = face + (0, 0, KERB_HEIGHT)
    builder.quads(np.stack([face[:-1], face[1:], top[1:], top[:-1]], axis=1), stone)
    strip(builder, span, (kerb, kerb + 0.18), stone, KERB_HEIGHT, (2.0, 1.0))
    at = kerb + 0.18
    for width, look in zip(widths, looks, strict=True):
        fine = (1.0, 1.0) if width < 5 else (4.0, 4.0)
        strip(builder, span, (at, at + width), look, KERB_HEIGHT, fine)
        at += width
    for end in span:
        low, high = (end, kerb, 0.0), (end, at, 0.0)
        lift = np.array((0, 0, KERB_HEIGHT))
        builder.quads(np.array([low, high, high + lift, low + lift]), stone)


def _blocks(
    rng: np.random.Generator, extent: Extent, gap: Real, lengths: tuple[Real, Real]
) -> list[tuple[Real, Real]]:
    """Spans of s between side streets of width `gap`."""
    blocks, at = [], extent.start
    while at < extent.stop:
        length = rng.uniform(*lengths)
        end = min(at + length, extent.stop)
        if extent.stop - end < 20:
            end = extent.stop
        blocks.append((at, end))
        at = end + gap
    return blocks


def _side_street(builder: GeometryBuilder, span: tuple[Real, Real], kerb: Real) -> None:
    asphalt = Look(Material.ROAD, (0.1, 0.1, 0.1), Category.ROAD, 1, 0.0)
    strip(builder, span, (kerb, FAR), asphalt, 0.0, (2.5, 4.0))


def urban_side(rng: np.random.Generator, extent: Extent) -> Geometry:
    """Terraced facades with shops, pavement, lamps, signs, trees in the pavement, side streets."""
    return _city_side(rng, extent, FAMILIES["urban"].floors)


def canyon_side(rng: np.random.Generator, extent: Extent) -> Geometry:
    """The same between facades of a whole city's height: little sky, deep shadow."""
    return _city_side(rng, extent, FAMILIES["canyon"].floors)


def _city_side(rng: np.random.Generator, extent: Extent, floors: tuple[int, int]) -> Geometry:
    builder = GeometryBuilder()
    kerb, front = extent.kerb, extent.kerb + 3.6
    gap = 10.0
    blocks = _blocks(rng, extent, gap, (38.0, 62.0))
    slab_color = tuple(np.array((0.27, 0.26, 0.245)) * rng.uniform(0.8, 1.15))
    slabs = Look(
        Material.PAVEMENT, slab_color, Category.OTHER, int(rng.choice([0, 2])), rng.random()
    )
    yard = Look(Material.PAVEMENT, (0.24, 0.23, 0.21), Category.OTHER, 3, rng.random())
    for index, span in enumerate(blocks):
        raised(builder, span, kerb, (3.6, FAR - kerb - 3.78), (slabs, yard))
        if index + 1 < len(blocks):
            _side_street(builder, (span[1], span[1] + gap), kerb)
        _terrace(builder, rng, (span[0] + 1.6, span[1] - 1.6), front, floors)
        _pavement_things(builder, rng, span, kerb)
    at = extent.start
    while at < extent.stop:
        width = rng.uniform(14, 24)
        style = draw_style(rng, shop_share=0.0, rustic=False)
        block = box_building(style, rng, (at, at + width), (46, 58), rng.uniform(10, 19))
        builder.add(block)
        at += width + rng.choice([0.0, 5.0])
    return builder.build()


def _terrace(
    builder: GeometryBuilder,
    rng: np.random.Generator,
    span: tuple[Real, Real],
    front: float,
    floors: tuple[int, int],
) -> None:
    at = span[0]
    while at < span[1] - 5:
        width = min(rng.uniform(7.0, 13.0), span[1] - at)
        if span[1] - at - width < 5:
            width = span[1] - at
        style = draw_style(rng, shop_share=0.5, rustic=rng.random() < 0.4)
        height = style.floor_height * rng.integers(*floors) + 0.8
        setback = rng.uniform(0.0, 0.35)
        deep = front + setback + rng.uniform(9, 12)
        builder.add(box_building(style, rng, (at, at + width), (front + setback, deep), height))
        at += width
        if rng.random() < 0.22 and span[1] - at > 12:
            alley = rng.uniform(2.2, 4.5)
            color = tuple(np.array((0.3, 0.24, 0.17)) * rng.uniform(0.5, 1.6))
            panel = furniture.fence(alley, color, rng.random(), pickets=True)
            builder.add(panel.placed(pose_at(at, front + 3, KERB_HEIGHT)))
            at += alley


def _pavement_things(
    builder: GeometryBuilder, rng: np.random.Generator, span: tuple[Real, Real], kerb: float
) -> None:
    lamp, at = furniture.lamp_post(), span[0] + 4
    while at < span[1] - 2:
        builder.add(lamp.placed(pose_at(at, kerb + 1.1, KERB_HEIGHT)))
        at += rng.uniform(20, 27)
    at = span[0] + rng.uniform(6, 12)
    while at < span[1] - 4:
        crown = furniture.tree(rng, rng.uniform(5.0, 7.0))
        builder.add(crown.placed(pose_at(at, kerb + 1.5, KERB_HEIGHT, rng.uniform(0, 6))))
        soil = Look(Material.GRASS, (0.09, 0.065, 0.045), Category.OTHER, 2, 0.4)
        low, high = (at - 0.6, kerb + 0.9), (at + 0.6, kerb + 2.1)
        strip(builder, (low[0], high[0]), (low[1], high[1]), soil, KERB_HEIGHT + 0.012)
        at += rng.uniform(11, 22)
    for _ in range(int((span[1] - span[0]) / 9)):
        s, thing = rng.uniform(span[0] + 2, span[1] - 2), rng.random()
        if thing < 0.5:
            post = furniture.traffic_sign(int(rng.integers(4)), rng.random())
            builder.add(post.placed(pose_at(s, kerb + 1.0, KERB_HEIGHT)))
        elif thing < 0.75:
            builder.add(furniture.bollard().placed(pose_at(s, kerb + 0.45, KERB_HEIGHT)))
        else:
            box = furniture.bin_box(rng.random())
            builder.add(box.placed(pose_at(s, kerb + 3.0, KERB_HEIGHT, rng.normal(0, 0.1))))


def suburban_side(rng: np.random.Generator, extent: Extent) -> Geometry:
    """Detached houses behind lawns, hedges and fences, trees on a verge, driveways."""
    builder = GeometryBuilder()
    kerb = extent.kerb
    lawn = Look(Material.GRASS, (0.075, 0.13, 0.035), Category.VEGETATION, 0, rng.random())
    path = Look(Material.PAVEMENT, (0.33, 0.32, 0.3), Category.OTHER, 0, rng.random())
    blocks = _blocks(rng, extent, 9.0, (55.0, 90.0))
    for index, span in enumerate(blocks):
        raised(builder, span, kerb, (1.9, 1.5, FAR - kerb - 3.58), (lawn, path, lawn))
        if index + 1 < len(blocks):
            _side_street(builder, (span[1], span[1] + 9.0), kerb)
        at = span[0] + 1
        while at < span[1] - 13:
            at = _plot(builder, rng, at, kerb)
        for s in np.arange(span[0] + 5, span[1] - 3, 9.0):
            if rng.random() < 0.55:
                crown = furniture.tree(rng, rng.uniform(5.0, 8.5))
                builder.add(crown.placed(pose_at(s + rng.normal(0, 1), kerb + 1.3, KERB_HEIGHT)))
        for s in np.arange(span[0] + 8, span[1], 31.0):
            builder.add(furniture.lamp_post().placed(pose_at(s, kerb + 1.0, KERB_HEIGHT)))
        sign = furniture.traffic_sign(int(rng.integers(4)), rng.random())
        builder.add(sign.placed(pose_at(rng.uniform(*span), kerb + 1.0, KERB_HEIGHT)))
    tree_row(builder, rng, extent, (40.0, 60.0), 7.0)
    return builder.build()


def _plot(builder: GeometryBuilder, rng: np.random.Generator, at: Real, kerb: Real) -> float:
    """One garden with its house; returns where the next plot starts."""
    width, edge = rng.uniform(14.0, 19.0), kerb + 3.75
    front = edge + rng.uniform(4.0, 7.0)
    wide = rng.uniform(8.5, 11.0)
    builder.add(house(rng, (at + width - wide - 1, at + width - 1), (front, front + 8.5)))
    drive = Look(Material.PAVEMENT, (0.3, 0.27, 0.24), Category.OTHER, 2, rng.random())
    strip(builder, (at + 0.4, at + 3.2), (kerb + 0.2, front + 4), drive, KERB_HEIGHT + 0.012)
    if rng.random() < 0.6:
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        car = vehicle(shape, CAR_COLORS[int(rng.integers(len(CAR_COLORS)))], rng.random())
        builder.add(car.placed(pose_at(at + 1.8, edge + 3.4, KERB_HEIGHT + 0.012, -np.pi / 2)))
    border = rng.random()
    place = pose_at(at + 3.6, edge + 0.35, KERB_HEIGHT)
    if border < 0.45:
        builder.add(furniture.hedge(rng, width - 4.2, rng.uniform(0.8, 1.5)).placed(place))
    elif border < 0.8:
        color = (0.65, 0.64, 0.6) if rng.random() < 0.5 else (0.24, 0.15, 0.08)
        builder.add(furniture.fence(width - 4.2, color, rng.random(), pickets=True).placed(place))
    side = furniture.hedge(rng, front + 6 - edge, rng.uniform(1.2, 1.9))
    builder.add(side.placed(pose_at(at + width - 0.3, edge + 0.5, KERB_HEIGHT, np.pi / 2)))
    if rng.random() < 0.7:
        crown = furniture.tree(rng, rng.uniform(4.0, 8.0))
        builder.add(
            crown.placed(pose_at(at + rng.uniform(4, 7), edge + rng.uniform(1.8, 3), KERB_HEIGHT))
        )
    return at + width


def tree_row(
    builder: GeometryBuilder,
    rng: np.random.Generator,
    extent: Extent,
    reach: tuple[Real, Real],
    pitch: Real,
) -> None:
    """Background trees, few models placed often, that close the view between things."""
    models = [furniture.tree(rng, 8.0, 500) for _ in range(3)]
    for s in np.arange(extent.start, extent.stop + 30, pitch):
        model = models[int(rng.integers(3))]
        where = pose_at(s, rng.uniform(*reach), -0.3, rng.uniform(0, 6), rng.uniform(0.9, 1.6))
        builder.add(model.placed(where))


def parked_cars(
    rng: np.random.Generator, extent: Extent, d: Real, share: Real, keep_free: list[float]
) -> Geometry | None:
    """Cars at the left kerb facing -s, in slots of 6.2 m, none within 6 m of `keep_free` (s)."""
    builder, count = GeometryBuilder(), 0
    for s in np.arange(extent.start + 3, extent.stop - 3, 6.2):
        draw = rng.random(6)
        if draw[0] > share or any(abs(s - free) < 6 for free in keep_free):
            continue
        shape = SHAPES[int(draw[1] * len(SHAPES))]
        color = np.array(CAR_COLORS[int(draw[2] * len(CAR_COLORS))]) * (0.85 + 0.3 * draw[3])
        car = vehicle(shape, tuple(np.clip(color, 0, 0.58)), draw[4])
        where = pose_at(
            s + draw[5] - 0.5, d + (draw[3] - 0.5) * 0.2, 0.0, np.pi + (draw[5] - 0.5) * 0.05
        )
        builder.add(car.placed(where))
        count += 1
    return builder.build() if count else None


def carriageway(builder: GeometryBuilder, extent: Extent, family: str) -> None:
    """The road between the kerbs, the ground under everything, and what closes both ends."""
    asphalt = Look(Material.ROAD, (0.1, 0.1, 0.1), Category.ROAD, 0, 0.0)
    strip(
        builder, (extent.start, extent.stop), (-extent.kerb, extent.kerb), asphalt, 0.0, (1.0, 0.71)
    )
    cross = Look(Material.ROAD, (0.1, 0.1, 0.1), Category.ROAD, 1, 0.0)
    strip(builder, (extent.stop, extent.stop + 9), (-FAR, FAR), cross, 0.0, (3.0, 4.0))
    green = not FAMILIES[family].built
    color = (0.08, 0.12, 0.035) if green else (0.22, 0.21, 0.2)
    material, category = (
        (Material.GRASS, Category.VEGETATION) if green else (Material.PAVEMENT, Category.OTHER)
    )
    base = Look(material, color, category, 0 if green else 3, 0.7)
    strip(
        builder, (extent.start - 600, extent.stop + 700), (-700, 700), base, -0.06, (130.0, 140.0)
    )


def street_end(
    builder: GeometryBuilder, rng: np.random.Generator, extent: Extent, family: str
) -> None:
    """Buildings (or trees) across the far end, and hills on the horizon."""
    turned = pose_at(extent.stop + 9, 0, 0, -np.pi / 2)
    row, traits = GeometryBuilder(), FAMILIES[family]
    at = -52.0
    while at < 52:
        width = rng.uniform(9, 15)
        if traits.built:
            style = draw_style(rng, shop_share=0.4, rustic=False)
            height = style.floor_height * rng.integers(*traits.floors) + 0.8
            row.add(box_building(style, rng, (at, at + width), (3.5, 15), height))
        elif family == "suburban":
            row.add(house(rng, (at, at + width - 3), (9, 17)))
        crown = furniture.tree(rng, rng.uniform(6, 10))
        row.add(crown.placed(pose_at(at, 2.0 if traits.built else 24.0, 0.0)))
        at += width if traits.built or family == "suburban" else width * 0.5
    builder.add(row.build().placed(turned))
    _hills(builder, rng, extent)


def _hills(builder: GeometryBuilder, rng: np.random.Generator, extent: Extent) -> None:
    angle = np.linspace(0, 2 * np.pi, 121)
    middle = np.array([(extent.start + extent.stop) / 2, 0.0])
    for radius, tall, hue in (
        (430.0, 16.0, (0.06, 0.1, 0.045)),
        (640.0, 42.0, (0.075, 0.115, 0.075)),
    ):
        waves = sum(rng.normal() / k * np.cos(k * angle + rng.uniform(0, 6)) for k in range(3, 24))
        height = tall * (0.55 + 0.35 * np.asarray(waves))
        ring = middle + radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        low = np.concatenate([ring, np.full((121, 1), -3.0)], axis=-1)
        high = np.concatenate([ring * 1.0, np.maximum(height, 2.0)[:, None]], axis=-1)
        quads = np.stack([low[:-1], low[1:], high[1:], high[:-1]], axis=1)
        uv = np.stack(
            [np.stack([angle * radius, low[:, 2]], -1), np.stack([angle * radius, high[:, 2]], -1)]
        )
        corner_uv = np.stack([uv[0][:-1], uv[0][1:], uv[1][1:], uv[1][:-1]], axis=1) / 25
        look = Look(Material.LEAF, hue, Category.VEGETATION, 1, 0.3)
        builder.quads(quads, look, corner_uv)
