"""Base colours of all materials as functions of texture coordinates.

A `Surface` holds n shaded points. Colours are linear RGB. Every function gets the footprint of a
pixel in texture coordinates and fades what is finer than that (see `noise.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from faithfusion_studio.synthetic.geometry import Material
from faithfusion_studio.synthetic.noise import band, cell_hash, detail_fade, fractal, lines


@dataclass(frozen=True, eq=False)
class Surface:
    """Points to be coloured; all arrays have the leading length n."""

    uv: np.ndarray
    """[n, 2] texture coordinates."""
    footprint: np.ndarray
    """[n, 2] size of one pixel along u and v, in their units."""
    color: np.ndarray
    """[n, 3] base colour."""
    seed: np.ndarray
    """[n] number of the object in [0, 1)."""
    style: np.ndarray
    """[n] variant."""
    height: np.ndarray
    """[n] height above the road, m."""

    def __getitem__(self, index: np.ndarray) -> Surface:
        return Surface(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def u(self) -> np.ndarray:
        """First texture coordinate [n]."""
        return self.uv[:, 0]

    @property
    def v(self) -> np.ndarray:
        """Second texture coordinate [n]."""
        return self.uv[:, 1]

    @property
    def fu(self) -> np.ndarray:
        """Footprint along u [n]."""
        return self.footprint[:, 0]

    @property
    def fv(self) -> np.ndarray:
        """Footprint along v [n]."""
        return self.footprint[:, 1]

    @property
    def blur(self) -> np.ndarray:
        """One footprint for isotropic noise [n]: between the smaller and the larger side."""
        return np.sqrt(self.fu * self.fv)

    def noise(self, period: float, seed: int = 0, roughness: float = 0.7) -> np.ndarray:
        """Fractal noise [n], shifted by the seed of the object."""
        u, v = self.u + self.seed * 37, self.v + self.seed * 91
        return fractal(u, v, period, self.blur, seed=seed, roughness=roughness)


def mix(a: np.ndarray, b: np.ndarray | tuple[float, float, float], share: np.ndarray) -> np.ndarray:
    """Blend colours [n, 3] by `share` [n] of the second."""
    return a + (np.asarray(b, np.float32) - a) * share[:, None].astype(np.float32)


def scaled(color: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Colours [n, 3] times a gain [n], which never goes below 5 %."""
    return color * np.maximum(gain, 0.05)[:, None].astype(np.float32)


def plain(p: Surface) -> np.ndarray:
    """Matt surface with weak stains; style 1 is smooth."""
    strength = np.where(p.style == 1, 0.03, 0.1)
    return scaled(p.color, 1 + strength * p.noise(1.7))


def metal(p: Surface) -> np.ndarray:
    """Painted metal with streaks."""
    return scaled(p.color, 1 + 0.12 * p.noise(0.9))


def pavement(p: Surface) -> np.ndarray:
    """Slabs with joints; style 1 kerb stones, 2 small setts, 3 plain concrete."""
    size = np.select([p.style == 1, p.style == 2, p.style == 3], [1.0, 0.2, 4.0], 0.5).astype(
        np.float32
    )
    u, v, fu, fv = p.u / size, p.v / size, p.fu / size, p.fv / size
    u = u + np.where(p.style == 1, 0, 0.5 * (np.floor(v) % 2))
    cell = cell_hash(np.floor(u), np.floor(v), p.seed)
    joint = lines(u, 1.0, 0.035, fu)
    joint = np.maximum(joint, np.where(p.style == 1, 0, lines(v, 1.0, 0.035, fv)))
    fade = np.clip(1.5 - np.maximum(fu, fv), 0, 1)
    gain = 1 + 0.26 * (cell - 0.5) * fade + 0.14 * p.noise(1.3) + 0.1 * p.noise(9.0, 1, 0.6)
    return mix(scaled(p.color, gain), (0.06, 0.06, 0.055), 0.75 * joint)


def _bricks(p: Surface, length: float, tall: float, mortar: float) -> tuple[np.ndarray, np.ndarray]:
    """Random number of each brick (faded), and share of mortar."""
    row = np.floor(p.v / tall)
    u = p.u / length + 0.5 * (row % 2)
    cell = cell_hash(np.floor(u), row, p.seed)
    fade = detail_fade(np.maximum(p.fu / length, p.fv / tall), 1.0)
    joint = np.maximum(
        lines(u, 1.0, mortar / length, p.fu / length),
        lines(p.v / tall, 1.0, mortar / tall, p.fv / tall),
    )
    return (cell - 0.5) * fade, joint


def wall(p: Surface) -> np.ndarray:
    """Walls; style 0 plaster, 1 brick, 2 stone blocks, 3 boards, 4 panels."""
    stains = 0.09 * p.noise(11.0, 1, 0.6) + 0.1 * p.noise(1.5, 2, 0.8)
    streaks = fractal(p.u * 4 + p.seed * 50, p.v * 0.35, 7.0, p.fu * 4, seed=3)
    gain = 1 + stains + 0.07 * streaks
    result = scaled(p.color, gain)
    for style, (length, tall, mortar, spread) in {
        1: (0.23, 0.076, 0.012, 0.75),
        2: (0.62, 0.31, 0.018, 0.38),
        4: (1.4, 2.9, 0.03, 0.12),
    }.items():
        chosen = p.style == style
        if chosen.any():
            part = p[chosen]
            cell, joint = _bricks(part, length, tall, mortar)
            light = (0.4, 0.37, 0.33) if style == 1 else (0.2, 0.19, 0.18)
            base = scaled(part.color, gain[chosen] + spread * cell)
            result[chosen] = mix(base, light, 0.8 * joint)
    boards = p.style == 3
    if boards.any():
        part = p[boards]
        groove = lines(part.v, 0.19, 0.025, part.fv)
        cell = (cell_hash(np.floor(part.v / 0.19), part.u * 0, part.seed) - 0.5) * detail_fade(
            part.fv, 0.19
        )
        result[boards] = scaled(part.color, (gain[boards] + 0.2 * cell) * (1 - 0.5 * groove))
    return result


def window(p: Surface) -> np.ndarray:
    """Window in 0..1: frame, muntins (by style), curtains and a dark room."""
    cross_u = np.where(p.style == 2, -1.0, 0.5)
    cross_v = np.select([p.style == 0, p.style == 1], [-1.0, 0.66], 0.4)
    frame = 1 - band(p.u, 0.07, 0.93, p.fu) * band(p.v, 0.05, 0.95, p.fv)
    frame = np.maximum(frame, band(p.u, cross_u - 0.025, cross_u + 0.025, p.fu))
    frame = np.maximum(frame, band(p.v, cross_v - 0.02, cross_v + 0.02, p.fv))
    room = np.float32((0.025, 0.03, 0.036)) * (0.6 + 0.9 * p.v[:, None])
    side = np.abs(p.u - 0.5)
    reach = 0.2 + 0.25 * p.seed
    folds = 0.75 + 0.25 * np.sin(p.u * 95 + p.seed * 9) * detail_fade(p.fu, 0.03)
    curtain = band(side, reach, 2.0, p.fu) * (cell_hash(p.seed * 999, p.style) < 0.7)
    blind = band(p.v, 0.45 + 0.5 * p.seed, 2.0, p.fv) * (cell_hash(p.seed * 777, p.style) < 0.45)
    slats = 0.75 + 0.25 * (1 - lines(p.v, 0.05, 0.018, p.fv))
    glass = mix(room, (0.33, 0.3, 0.25), curtain * folds * 0.8)
    glass = mix(glass, (0.38, 0.36, 0.31), blind * slats)
    return glass + (p.color - glass) * frame[:, None]


def door(p: Surface) -> np.ndarray:
    """Door in 0..1 with panels or panes, a handle and a letter slot."""
    inset = np.zeros_like(p.u)
    for low, high in ((0.06, 0.3), (0.36, 0.6), (0.66, 0.93)):
        rows = band(p.v, low, high, p.fv)
        inset = np.maximum(
            inset, rows * (band(p.u, 0.12, 0.46, p.fu) + band(p.u, 0.54, 0.88, p.fu))
        )
    glass = (p.style == 1) & (p.v > 0.63)
    color = scaled(p.color, 1 + 0.08 * p.noise(0.7) - 0.4 * inset)
    color = mix(color, (0.04, 0.05, 0.055), inset * glass)
    handle = band(p.u, 0.86, 0.93, p.fu) * band(p.v, 0.44, 0.5, p.fv)
    return mix(color, (0.6, 0.5, 0.25), handle)


def shop(p: Surface) -> np.ndarray:
    """Shop window in 0..1 with shelves of coloured goods behind dark glass."""
    frame = 1 - band(p.u, 0.025, 0.975, p.fu) * band(p.v, 0.03, 0.97, p.fv)
    frame = np.maximum(frame, band(p.u, 0.49, 0.51, p.fu) * (p.style == 0))
    columns = np.where(p.style == 1, 9.0, 15.0)
    shelf = np.floor(p.v * 4)
    column = np.floor(p.u * columns + shelf * 0.3)
    inside = p.v * 4 - shelf
    tall = 0.3 + 0.55 * cell_hash(column, shelf, p.seed)
    goods = (inside < tall) & (np.abs(p.u * columns + shelf * 0.3 - column - 0.5) < 0.4)
    tint = np.stack([cell_hash(column, shelf + 17 * k, p.seed + 0.1) for k in range(3)], axis=-1)
    room = np.float32((0.05, 0.045, 0.04)) * (0.7 + 0.6 * p.v[:, None])
    result = np.where((goods & (p.style != 2))[:, None], 0.02 + 0.4 * tint**2, room)
    result = mix(result, (0.14, 0.12, 0.1), lines(p.v, 0.25, 0.02, p.fv))
    return mix(result, (0.14, 0.13, 0.12), frame)


def letters(p: Surface) -> np.ndarray:
    """Sign in metres (height 0.45): block letters, light on dark or dark on light by style."""
    tall, cell = 0.45, 0.34
    index = np.floor(p.u / cell)
    x, y = (p.u / cell - index) * 4.2, (p.v / tall) * 7
    column, row = np.floor(x), np.floor(y)
    # Letters are symmetric or not by chance; strokes at the left and on three rows look like type.
    kind = cell_hash(index, index * 0, p.seed)
    pixel = cell_hash(column + 5 * np.floor(kind * 23), row, 5)
    stroke = (
        (column == 0) & (kind < 0.75) | ((row == 5) | (row == 1)) & (pixel < 0.75) | (pixel < 0.35)
    )
    ink = (
        stroke
        & (column < 3)
        & (row >= 1)
        & (row <= 5)
        & (cell_hash(index, index * 0 + 3, p.seed) > 0.12)
    )
    ink = ink * detail_fade(np.maximum(p.fu, p.fv), 0.12)
    dark = p.style == 1
    ground = np.where(dark[:, None], np.float32((0.62, 0.6, 0.52)), p.color)
    text = np.where(dark[:, None], p.color, np.float32((0.75, 0.72, 0.62)))
    share = ink * 0.9 + (1 - detail_fade(np.maximum(p.fu, p.fv), 0.12)) * 0.3
    return ground + (text - ground) * share[:, None].astype(np.float32)


def roof(p: Surface) -> np.ndarray:
    """Tiles in rows."""
    row = np.floor(p.v / 0.28)
    u = p.u / 0.24 + 0.5 * (row % 2)
    cell = cell_hash(np.floor(u), row, p.seed) - 0.5
    fade = detail_fade(np.maximum(p.fu / 0.24, p.fv / 0.28), 1.0)
    edge = lines(p.v, 0.28, 0.045, p.fv)
    gain = 1 + 0.5 * cell * fade + 0.12 * p.noise(6.0, 1) - 0.5 * edge
    return scaled(p.color, gain)


def stripes(p: Surface) -> np.ndarray:
    """Awning cloth (style 0) or the black band of a marker post (style 1)."""
    cloth = lines(p.u, 0.5, 0.25, p.fu)
    slanted = band(p.v + p.u * 0.5, 0.62, 0.85, p.fv)
    share = np.where(p.style == 0, cloth, slanted)
    ground = np.broadcast_to(np.float32((0.72, 0.7, 0.66)), p.color.shape)
    return scaled(ground + (p.color - ground) * share[:, None], 1 + 0.06 * p.noise(1.1))


def paint(p: Surface) -> np.ndarray:
    """Car body; style 1 = side panels with door gaps, handles and a dark sill."""
    color = scaled(
        p.color, 1 + 0.03 * p.noise(1.9) - 0.25 * np.clip(0.45 - p.v, 0, 1) * (p.style == 1)
    )
    gaps = np.zeros_like(p.u)
    for x in (-0.98, -0.02, 0.92):
        gaps = np.maximum(gaps, band(p.u, x - 0.012, x + 0.012, p.fu))
    gaps = gaps * band(p.v, 0.38, 1.3, p.fv)
    handles = np.maximum(band(p.u, -0.86, -0.68, p.fu), band(p.u, 0.08, 0.26, p.fu))
    gaps = np.maximum(gaps, handles * band(p.v, 0.78, 0.82, p.fv))
    sill = band(p.v, -1.0, 0.33, p.fv)
    dark = np.maximum(0.85 * gaps, 0.9 * sill) * (p.style == 1)
    return mix(color, (0.012, 0.012, 0.013), dark)


def glass(p: Surface) -> np.ndarray:
    """Car window in 0..1 between painted pillars; style 1 = side window with a middle post."""
    pillar = 1 - band(p.u, 0.05, 0.95, p.fu) * band(p.v, 0.06, 0.9, p.fv)
    pillar = np.maximum(pillar, band(p.u, 0.47, 0.52, p.fu) * (p.style == 1))
    seats = band(p.v, -1, 0.45, p.fv) * (np.cos((p.u - 0.25) * 4 * np.pi) > 0.1)
    room = mix(
        np.broadcast_to(np.float32((0.02, 0.024, 0.028)), p.color.shape), (0.05, 0.045, 0.04), seats
    )
    return room + (p.color - room) * pillar[:, None]


def wheel(p: Surface) -> np.ndarray:
    """Tyre, rim and spokes in -1..1."""
    radius, angle = np.hypot(p.u, p.v), np.arctan2(p.v, p.u)
    spokes = np.select([p.style == 0, p.style == 1], [5.0, 7.0], 10.0)
    open_share = (np.cos(angle * spokes) > 0.1) & (radius > 0.2) & (radius < 0.58)
    rim = band(radius, -1, 0.66, np.maximum(p.fu, p.fv))
    metal_color = mix(p.color, (0.03, 0.03, 0.03), open_share.astype(np.float32))
    tyre = np.broadcast_to(np.float32((0.013, 0.013, 0.014)), p.color.shape)
    return tyre + (metal_color - tyre) * rim[:, None]


def plate(p: Surface) -> np.ndarray:
    """Number plate with block characters."""
    column = np.floor(p.u * 28)
    row = np.floor(p.v * 7)
    ink = (cell_hash(column, row, p.seed) < 0.55) & (column % 4 != 3) & (row > 0) & (row < 6)
    ink = ink * detail_fade(p.fu, 0.05)
    return mix(p.color, (0.02, 0.02, 0.03), ink + 0.35 * (1 - detail_fade(p.fu, 0.05)))


def bark(p: Surface) -> np.ndarray:
    """Vertical ridges."""
    ridges = fractal(p.u * 3, p.v * 0.6, 1.5, p.fu * 3, seed=4)
    return scaled(p.color, 1 + 0.35 * ridges + 0.15 * p.noise(2.0))


def leaf(p: Surface) -> np.ndarray:
    """Leaf cards (style 0, with a lighter rib) and dense foliage (style 1)."""
    dense = p.style == 1
    rib = band(p.v, -0.08, 0.08, p.fv) * 0.25
    return scaled(p.color, np.where(dense, 1 + 0.45 * p.noise(1.6, 5, 0.85), 1 + rib))


def grass(p: Surface) -> np.ndarray:
    """Lawn or field; style 1 is dry stubble with rows, style 2 is gravel."""
    noise = 0.3 * p.noise(1.1, 5, 0.85) + 0.22 * p.noise(13.0, 1, 0.65)
    rows = fractal(p.u * 0.3, p.v * 3, 9.0, p.fv * 3, seed=6) * 0.25
    gain = 1 + noise + np.where(p.style == 1, rows, 0)
    dry = np.clip(0.5 + 0.5 * p.noise(7.0, 2), 0, 1) * np.where(p.style == 0, 0.35, 0.0)
    return scaled(mix(p.color, (0.2, 0.17, 0.06), dry), gain)


def sign(p: Surface) -> np.ndarray:
    """Traffic sign faces in -1..1 (see `furniture.traffic_sign` for the kinds)."""
    f = np.maximum(p.fu, p.fv)
    radius = np.hypot(p.u, p.v)
    red, white, blue, black = (
        (0.55, 0.02, 0.02),
        (0.8, 0.8, 0.78),
        (0.02, 0.12, 0.5),
        (0.02, 0.02, 0.02),
    )
    result = np.broadcast_to(np.float32(white), p.color.shape).copy()
    digits = np.maximum(
        band(np.abs(p.u + 0.3), 0.1, 0.22, f) * band(p.v, -0.4, 0.4, f),
        band(np.hypot((p.u - 0.28) * 1.3, p.v), 0.24, 0.4, f),
    )
    limit = mix(mix(result, black, digits * (radius < 0.7)), red, band(radius, 0.74, 2.0, f))
    edge = np.minimum(p.v + 0.5, 0.5 - p.v * 0.5 - 0.866 * np.abs(p.u))
    symbol = band(np.abs(p.u), -1, 0.07, f) * band(p.v, -0.22, 0.38, f)
    warning = mix(mix(result, black, symbol), red, band(edge, -1, 0.17, f))
    stem = band(p.u, -0.3, -0.14, f) * band(p.v, -0.5, 0.5, f)
    bow = band(np.hypot(p.u + 0.02, p.v - 0.22), 0.14, 0.3, f) * (p.u > -0.2)
    rim = band(np.maximum(np.abs(p.u), np.abs(p.v)), 0.62, 2.0, f)
    parking = mix(
        np.broadcast_to(np.float32(blue), result.shape),
        white,
        np.maximum(np.maximum(stem, bow), rim),
    )
    bar = band(np.abs(p.v), -1, 0.16, f) * band(np.abs(p.u), -1, 0.66, f)
    ban = mix(np.broadcast_to(np.float32(red), result.shape), white, bar)
    style = p.style[:, None]
    return np.select([style == 0, style == 1, style == 2], [limit, warning, parking], ban)


def wood(p: Surface) -> np.ndarray:
    """Painted boards; style 1 = louvres of shutters."""
    grain = fractal(p.u * 5 + p.seed * 20, p.v * 0.7, 3.0, p.fu * 5, seed=4)
    louvre = lines(p.v, 0.07, 0.022, p.fv) * np.where(p.style == 1, 0.55, 0.0)
    return scaled(p.color, (1 + 0.13 * grain) * (1 - louvre))


def lamp(p: Surface) -> np.ndarray:
    """Lamp glass with ribs."""
    return scaled(p.color, 0.8 + 0.2 * (1 - lines(p.u, 0.2, 0.06, p.fu)))


TEXTURES: dict[Material, Callable[[Surface], np.ndarray]] = {
    Material.PLAIN: plain,
    Material.PAVEMENT: pavement,
    Material.WALL: wall,
    Material.WINDOW: window,
    Material.DOOR: door,
    Material.SHOP: shop,
    Material.LETTERS: letters,
    Material.ROOF: roof,
    Material.STRIPES: stripes,
    Material.PAINT: paint,
    Material.GLASS: glass,
    Material.WHEEL: wheel,
    Material.PLATE: plate,
    Material.BARK: bark,
    Material.LEAF: leaf,
    Material.GRASS: grass,
    Material.SIGN: sign,
    Material.WOOD: wood,
    Material.LAMP: lamp,
    Material.METAL: metal,
}
"""All materials except the road, whose paint depends on the street (`road.py`)."""
