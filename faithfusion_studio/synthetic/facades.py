"""Facades with recessed windows, shops, doors and balconies.

A `Wall` is a local frame on a facade: u along it (to the right seen from outside), v up, n outward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faithfusion_studio.synthetic.geometry import (
    Category,
    GeometryBuilder,
    Look,
    Material,
    Real,
    box_quads,
)

BUILDING = Category.BUILDING
FRAME_COLORS = ((0.75, 0.74, 0.7), (0.62, 0.6, 0.56), (0.12, 0.1, 0.09), (0.22, 0.3, 0.26))
WALL_COLORS = (
    (0.62, 0.52, 0.38),
    (0.55, 0.27, 0.19),
    (0.66, 0.62, 0.54),
    (0.48, 0.38, 0.28),
    (0.34, 0.36, 0.38),
    (0.6, 0.42, 0.3),
    (0.42, 0.5, 0.52),
    (0.7, 0.66, 0.5),
)
BRICK_COLORS = ((0.36, 0.13, 0.08), (0.42, 0.2, 0.12), (0.5, 0.36, 0.22), (0.28, 0.12, 0.09))
SHOP_COLORS = (
    (0.36, 0.05, 0.045),
    (0.05, 0.15, 0.3),
    (0.04, 0.18, 0.11),
    (0.5, 0.36, 0.1),
    (0.08, 0.08, 0.09),
    (0.2, 0.07, 0.17),
)
ROOF_COLORS = ((0.28, 0.1, 0.06), (0.2, 0.2, 0.22), (0.33, 0.17, 0.1), (0.14, 0.1, 0.09))


@dataclass(frozen=True)
class Wall:
    """Local frame of one facade."""

    origin: np.ndarray
    """Lower left corner seen from outside, [3]."""
    along: np.ndarray
    """Unit vector to the right seen from outside, [3]."""
    width: Real
    height: Real

    @property
    def outward(self) -> np.ndarray:
        """Unit normal of the facade."""
        return np.cross(self.along, [0.0, 0.0, 1.0])

    def point(self, local: np.ndarray) -> np.ndarray:
        """Local (u, v, n) [..., 3] to the parent frame."""
        local = np.asarray(local, float)
        up = np.array([0.0, 0.0, 1.0])
        return (
            self.origin
            + local[..., :1] * self.along
            + local[..., 1:2] * up
            + local[..., 2:] * self.outward
        )

    def rect(self, u0: Real, u1: Real, v0: Real, v1: Real, n: Real) -> np.ndarray:
        """Quad [4, 3] parallel to the wall at depth n (positive = in front of it)."""
        return self.point(np.array([(u0, v0, n), (u1, v0, n), (u1, v1, n), (u0, v1, n)]))

    def box(
        self, builder: GeometryBuilder, low: tuple[Real, ...], high: tuple[Real, ...], look: Look
    ) -> None:
        """Box between local corners (u, v, n), all faces that can be seen from the street."""
        local = box_quads(np.array(low), np.array(high), bottom=True)
        builder.quads(self.point(local), look)


@dataclass(frozen=True)
class FacadeStyle:
    """Everything random about one building, drawn once so that its walls agree."""

    wall: Look
    trim: Look
    frame: Look
    floor_height: float
    bay_width: float
    window: tuple[Real, Real]
    """Width and height of a window, m."""
    sill: float
    """Height of the window above its floor, m."""
    shutters: bool
    balconies: bool
    shop: bool
    seed: float


UNIT = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])


def draw_style(rng: np.random.Generator, *, shop_share: Real, rustic: bool) -> FacadeStyle:
    """Random style of one building; `rustic` prefers small windows with shutters."""
    seed = float(rng.random())
    kind = int(rng.choice(5, p=(0.34, 0.3, 0.14, 0.14, 0.08)))
    palette = BRICK_COLORS if kind == 1 else WALL_COLORS
    base = np.array(palette[int(rng.integers(len(palette)))]) * rng.uniform(0.8, 1.1)
    trim = np.clip(np.array((0.62, 0.6, 0.55)) * rng.uniform(0.6, 1.15), 0, 0.85)
    frame = FRAME_COLORS[int(rng.integers(len(FRAME_COLORS)))]
    big = rng.random() < 0.3 and not rustic
    return FacadeStyle(
        wall=Look(Material.WALL, tuple(np.clip(base, 0, 0.85)), BUILDING, kind, seed),
        trim=Look(Material.PLAIN, tuple(trim), BUILDING, 0, seed),
        frame=Look(Material.WINDOW, frame, BUILDING, int(rng.integers(3)), seed),
        floor_height=float(rng.uniform(2.8, 3.4)),
        bay_width=float(rng.uniform(2.2, 3.2)),
        window=(
            float(rng.uniform(1.5, 1.9) if big else rng.uniform(0.9, 1.25)),
            float(rng.uniform(1.3, 1.9)),
        ),
        sill=float(rng.uniform(0.7, 0.95)),
        shutters=bool(rng.random() < (0.6 if rustic else 0.3)) and not big,
        balconies=bool(rng.random() < 0.3) and not rustic,
        shop=bool(rng.random() < shop_share),
        seed=seed,
    )


def holed_wall(
    builder: GeometryBuilder, wall: Wall, openings: np.ndarray, look: Look, depth: float = 0.18
) -> None:
    """Wall with rectangular openings [K, 4] (u0, u1, v0, v1) and the reveals inside them.

    Rows of openings are given as a list of rectangles; every row of equal v is cut on its own, so
    rows may differ in their columns.
    """
    rows = sorted({(float(v0), float(v1)) for _, _, v0, v1 in openings})
    quads, level = [], 0.0
    for v0, v1 in rows:
        quads.append((0.0, wall.width, level, v0))
        columns = sorted((o[0], o[1]) for o in openings if (o[2], o[3]) == (v0, v1))
        edges = [0.0, *(edge for column in columns for edge in column), wall.width]
        quads.extend((a, b, v0, v1) for a, b in zip(edges[::2], edges[1::2], strict=True))
        level = v1
    quads.append((0.0, wall.width, level, wall.height))
    corners = [wall.rect(*quad, 0.0) for quad in quads if quad[1] > quad[0] and quad[3] > quad[2]]
    spans = [quad for quad in quads if quad[1] > quad[0] and quad[3] > quad[2]]
    uv = [[(a, c), (b, c), (b, d), (a, d)] for a, b, c, d in spans]
    builder.quads(np.array(corners), look, np.array(uv))
    if len(openings):
        reveals = [
            box_quads(np.array((a, c, -depth)), np.array((b, d, 0.0)), True)
            for a, b, c, d in openings
        ]
        inside = wall.point(np.concatenate([faces[[0, 1, 2, 3]] for faces in reveals]))
        builder.quads(inside, look)


def facade(
    builder: GeometryBuilder,
    wall: Wall,
    style: FacadeStyle,
    rng: np.random.Generator,
    *,
    street_side: bool = True,
) -> None:
    """One wall with windows on every floor; the street side gets a shop or doors as well."""
    floors = max(1, int((wall.height - 0.3) / style.floor_height))
    bays = max(1, int((wall.width - 0.6) / style.bay_width))
    pitch = wall.width / bays
    width, height = min(style.window[0], pitch - 0.5), style.window[1]
    openings: list[tuple[Real, Real, Real, Real]] = []
    if street_side:
        openings += _ground_floor(builder, wall, style, rng, bays)
    for floor in range(1 if street_side else 0, floors):
        v0 = floor * style.floor_height + style.sill
        for bay in range(bays):
            if not street_side and rng.random() < 0.45:
                continue
            u0 = (bay + 0.5) * pitch - width / 2
            openings.append((u0, u0 + width, v0, v0 + height))
            _window(builder, wall, openings[-1], style, rng, street_side)
    holed_wall(builder, wall, np.array(openings).reshape(-1, 4), style.wall)
    if street_side:
        _bands(builder, wall, style, floors)


def _window(
    builder: GeometryBuilder,
    wall: Wall,
    opening: tuple[Real, Real, Real, Real],
    style: FacadeStyle,
    rng: np.random.Generator,
    street_side: bool,
) -> None:
    u0, u1, v0, v1 = opening
    look = Look(Material.WINDOW, style.frame.color, BUILDING, style.frame.style, rng.random())
    builder.quads(wall.rect(u0, u1, v0, v1, -0.16), look, UNIT)
    wall.box(builder, (u0 - 0.08, v0 - 0.1, 0.0), (u1 + 0.08, v0, 0.1), style.trim)
    if not street_side:
        return
    if style.shutters:
        color = SHOP_COLORS[int(style.seed * 6)]
        shutter = Look(
            Material.WOOD,
            tuple(np.clip(np.array(color) * 0.7 + 0.06, 0, 1)),
            BUILDING,
            1,
            style.seed,
        )
        half = (u1 - u0) * 0.42
        wall.box(builder, (u0 - half - 0.03, v0, 0.0), (u0 - 0.03, v1, 0.05), shutter)
        wall.box(builder, (u1 + 0.03, v0, 0.0), (u1 + half + 0.03, v1, 0.05), shutter)
    else:
        wall.box(builder, (u0 - 0.1, v1, 0.0), (u1 + 0.1, v1 + 0.16, 0.06), style.trim)
    if style.balconies and rng.random() < 0.45:
        _balcony(builder, wall, (u0 - 0.35, u1 + 0.35, v0 - 0.18), style)
    elif rng.random() < 0.15:
        planter = Look(Material.LEAF, (0.16, 0.3, 0.06), Category.VEGETATION, 1, rng.random())
        wall.box(builder, (u0, v0, 0.02), (u1, v0 + 0.2, 0.26), planter)


def _balcony(
    builder: GeometryBuilder, wall: Wall, span: tuple[Real, Real, Real], style: FacadeStyle
) -> None:
    u0, u1, v = span
    rail = Look(Material.METAL, (0.05, 0.05, 0.055), BUILDING, 0, style.seed)
    wall.box(builder, (u0, v - 0.14, 0.0), (u1, v, 0.85), style.trim)
    wall.box(builder, (u0, v + 0.92, 0.78), (u1, v + 0.97, 0.84), rail)
    for side in (u0, u1 - 0.04):
        wall.box(builder, (side, v + 0.92, 0.0), (side + 0.04, v + 0.97, 0.8), rail)
    for u in np.arange(u0, u1, 0.16):
        wall.box(builder, (u, v, 0.79), (u + 0.03, v + 0.93, 0.82), rail)


def _bands(builder: GeometryBuilder, wall: Wall, style: FacadeStyle, floors: int) -> None:
    top = wall.height
    wall.box(builder, (-0.1, top - 0.35, 0.0), (wall.width + 0.1, top, 0.32), style.trim)
    wall.box(builder, (0.0, top - 0.55, 0.0), (wall.width, top - 0.35, 0.16), style.trim)
    if floors > 1:
        v = style.floor_height - 0.12
        wall.box(builder, (0.0, v, 0.0), (wall.width, v + 0.2, 0.09), style.trim)
    if not style.shop:
        base = Look(Material.WALL, (0.34, 0.32, 0.3), BUILDING, 2, style.seed)
        wall.box(builder, (0.0, 0.0, 0.0), (wall.width, 0.45, 0.05), base)


def _ground_floor(
    builder: GeometryBuilder,
    wall: Wall,
    style: FacadeStyle,
    rng: np.random.Generator,
    bays: int,
) -> list[tuple[Real, Real, Real, Real]]:
    if style.shop:
        return _shop_front(builder, wall, style, rng)
    pitch, width = wall.width / bays, style.window[0]
    door_bay, openings = int(rng.integers(bays)), []
    low, high = style.sill, style.sill + min(style.window[1], style.floor_height - 1.3)
    for bay in range(bays):
        centre = (bay + 0.5) * pitch
        if bay == door_bay:
            color = SHOP_COLORS[int(rng.integers(len(SHOP_COLORS)))]
            door = Look(Material.DOOR, color, BUILDING, int(rng.integers(2)), rng.random())
            u0, u1, v1 = centre - 0.55, centre + 0.55, 2.25
            wall.box(builder, (u0 - 0.16, 0.0, 0.0), (u0, v1 + 0.16, 0.08), style.trim)
            wall.box(builder, (u1, 0.0, 0.0), (u1 + 0.16, v1 + 0.16, 0.08), style.trim)
            wall.box(builder, (u0, v1, 0.0), (u1, v1 + 0.16, 0.08), style.trim)
            wall.box(builder, (u0 - 0.1, 0.0, 0.0), (u1 + 0.1, 0.14, 0.35), style.trim)
            builder.quads(wall.rect(u0, u1, 0.1, v1, 0.02), door, UNIT)
        else:
            opening = (centre - width / 2, centre + width / 2, low, high)
            openings.append(opening)
            _window(builder, wall, opening, style, rng, True)
    return openings


def _shop_front(
    builder: GeometryBuilder, wall: Wall, style: FacadeStyle, rng: np.random.Generator
) -> list[tuple[Real, Real, Real, Real]]:
    color = np.array(SHOP_COLORS[int(rng.integers(len(SHOP_COLORS)))])
    seed, top = rng.random(), style.floor_height - 0.75
    panel = Look(Material.WOOD, tuple(color), BUILDING, 0, seed)
    count = max(1, int(wall.width / 3.2))
    pitch, openings = wall.width / count, []
    for index in range(count):
        u0, u1 = index * pitch + 0.25, (index + 1) * pitch - 0.25
        openings.append((u0, u1, 0.35, top))
        shop = Look(Material.SHOP, tuple(color), BUILDING, int(rng.integers(3)), rng.random())
        builder.quads(wall.rect(u0, u1, 0.35, top, -0.16), shop, UNIT)
        wall.box(builder, (u0 - 0.25, 0.0, 0.0), (u0, top, 0.07), panel)
        wall.box(builder, (u1, 0.0, 0.0), (u1 + 0.25, top, 0.07), panel)
        wall.box(builder, (u0, 0.0, 0.0), (u1, 0.35, 0.06), panel)
        if rng.random() < 0.4:
            _awning(builder, wall, (u0 - 0.1, u1 + 0.1, top + 0.05), color, rng)
    sign = Look(Material.LETTERS, tuple(color), BUILDING, int(rng.integers(2)), seed)
    wall.box(builder, (0.1, top, 0.0), (wall.width - 0.1, top + 0.55, 0.09), panel)
    span = min(wall.width - 0.6, 4.5)
    start = (wall.width - span) / 2
    letters = np.array([(0, 0), (span, 0), (span, 0.45), (0, 0.45)])
    builder.quads(wall.rect(start, start + span, top + 0.05, top + 0.5, 0.1), sign, letters)
    return openings


def _awning(
    builder: GeometryBuilder,
    wall: Wall,
    span: tuple[Real, Real, Real],
    color: np.ndarray,
    rng: np.random.Generator,
) -> None:
    u0, u1, v = span
    cloth = Look(Material.STRIPES, tuple(np.clip(color * 1.5, 0, 0.9)), BUILDING, 0, rng.random())
    out, drop = 1.0, 0.45
    slope = [(u0, v - drop, out), (u1, v - drop, out), (u1, v, 0.03), (u0, v, 0.03)]
    hem = [
        (u0, v - drop - 0.2, out),
        (u1, v - drop - 0.2, out),
        (u1, v - drop, out),
        (u0, v - drop, out),
    ]
    uv = np.array([(u0, 0.0), (u1, 0.0), (u1, 1.1), (u0, 1.1)])
    builder.quads(wall.point(np.array([slope, hem])), cloth, uv)
