"""Low-poly cars: a lofted body with hood, cabin, windows, wheels, lights and plates.

Frame of a vehicle: origin on the ground under the middle, x to the front, y left, z up, metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from faithfusion_studio.synthetic.geometry import (
    Category,
    Geometry,
    GeometryBuilder,
    Look,
    Material,
    Real,
)

CAR = Category.CAR
CAR_COLORS = (
    (0.62, 0.62, 0.6),
    (0.02, 0.02, 0.025),
    (0.2, 0.21, 0.23),
    (0.38, 0.02, 0.02),
    (0.02, 0.07, 0.28),
    (0.03, 0.16, 0.09),
    (0.42, 0.36, 0.24),
    (0.5, 0.24, 0.03),
    (0.1, 0.26, 0.4),
    (0.75, 0.74, 0.7),
)


@dataclass(frozen=True)
class VehicleShape:
    """Side profile of one body type; lengths in m, x from the rear bumper (0) to the front (1)."""

    length: float
    width: float
    height: float
    belt: tuple[tuple[Real, Real], ...]
    """Top of the lower body: (x share, height) from rear to front."""
    cabin: tuple[Real, Real, Real, Real]
    """x shares: rear window foot, roof rear, roof front, windscreen foot."""

    @property
    def size(self) -> tuple[Real, Real, Real]:
        """Length, width, height, m."""
        return (self.length, self.width, self.height)


SEDAN = VehicleShape(
    4.6, 1.8, 1.44,
    ((0.0, 0.8), (0.03, 0.95), (0.2, 0.98), (0.5, 0.95), (0.7, 0.93), (0.93, 0.8), (1.0, 0.62)),
    (0.14, 0.3, 0.56, 0.73),
)  # fmt: skip
HATCHBACK = VehicleShape(
    4.05, 1.76, 1.5,
    ((0.0, 0.85), (0.02, 1.0), (0.2, 1.0), (0.5, 0.97), (0.74, 0.95), (0.94, 0.82), (1.0, 0.62)),
    (0.015, 0.12, 0.58, 0.77),
)  # fmt: skip
SUV = VehicleShape(
    4.5, 1.88, 1.72,
    ((0.0, 0.95), (0.02, 1.12), (0.2, 1.12), (0.5, 1.1), (0.74, 1.08), (0.95, 0.98), (1.0, 0.75)),
    (0.015, 0.09, 0.6, 0.76),
)  # fmt: skip
VAN = VehicleShape(
    4.9, 1.92, 2.05,
    ((0.0, 1.0), (0.01, 1.2), (0.3, 1.2), (0.6, 1.18), (0.82, 1.12), (0.96, 1.0), (1.0, 0.75)),
    (0.005, 0.03, 0.7, 0.86),
)  # fmt: skip
SHAPES = (SEDAN, HATCHBACK, SUV, VAN)


def vehicle(shape: VehicleShape, color: tuple[Real, Real, Real], seed: Real) -> Geometry:
    """One car of a body type and paint colour, standing on z = 0."""
    builder = GeometryBuilder()
    _body(builder, shape, color, seed)
    _cabin(builder, shape, color, seed)
    for x in (-0.29, 0.3):
        for side in (-1, 1):
            _wheel(builder, shape, (x * shape.length, side), seed)
    _ends(builder, shape, seed)
    return builder.build()


def _loft(sections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quads and smooth normals between consecutive open sections [S, P, 3]."""
    along = np.gradient(sections, axis=0)
    around = np.gradient(sections, axis=1)
    normals = np.cross(around, along)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
    quad = [(0, 0), (0, 1), (1, 1), (1, 0)]
    rows, columns = sections.shape[0] - 1, sections.shape[1] - 1

    def patches(values: np.ndarray) -> np.ndarray:
        stacked = [values[i : i + rows, j : j + columns] for i, j in quad]
        return np.stack(stacked, axis=2).reshape(-1, 4, 3)

    return patches(sections), patches(normals)


def _body(
    builder: GeometryBuilder, shape: VehicleShape, color: tuple[Real, Real, Real], seed: float
) -> None:
    share = np.linspace(0, 1, 19)
    top = np.interp(share, *np.array(shape.belt).T)
    # The nose and tail are narrower and their lower edge rises, as on a real bumper.
    end = np.clip(np.minimum(share, 1 - share) / 0.12, 0, 1)
    half = shape.width / 2 * (0.8 + 0.2 * np.sqrt(end))
    low = 0.2 + 0.12 * (1 - end)
    profile = [(0.9, 0.0), (0.97, 0.12), (1.0, 0.45), (0.985, 0.75), (0.93, 0.93), (0.8, 1.0)]
    profile += [(0.4, 1.02), (0.0, 1.03)]
    outline = profile + [(-y, z) for y, z in profile[-2::-1]]
    sections = np.empty((len(share), len(outline), 3))
    for index, (y, z) in enumerate(outline):
        sections[:, index, 0] = (share - 0.5) * shape.length
        sections[:, index, 1] = y * half
        sections[:, index, 2] = low + z * (top - low)
    quads, normals = _loft(sections[:, ::-1])
    paint = Look(Material.PAINT, color, CAR, 0, seed)
    centre = quads.mean(axis=1)
    # Body side panels (style 1) carry door gaps and a dark sill, by their own side projection.
    side = np.abs(centre[:, 1]) > 0.88 * shape.width / 2 * 0.98
    uv = quads[..., [0, 2]]
    builder.quads(quads[~side], paint, quads[~side][..., [0, 1]], normals[~side])
    builder.quads(quads[side], Look(Material.PAINT, color, CAR, 1, seed), uv[side], normals[side])
    caps = np.stack([sections[0], sections[-1]])
    for cap, sign in zip(caps, (-1, 1), strict=True):
        middle = np.array([cap[0, 0], 0, cap[:, 2].mean()])
        following = np.roll(cap, -1, axis=0)
        fan = np.stack([np.broadcast_to(middle, cap.shape), cap, following], axis=1)
        builder.triangles(fan[:, ::sign], paint, fan[..., [1, 2]])
    floor = Look(Material.PLAIN, (0.015, 0.015, 0.015), CAR, 0, seed)
    builder.quads(
        np.stack([sections[:-1, 0], sections[1:, 0], sections[1:, -1], sections[:-1, -1]], 1), floor
    )


def _cabin(
    builder: GeometryBuilder, shape: VehicleShape, color: tuple[Real, Real, Real], seed: float
) -> None:
    foot_rear, roof_rear, roof_front, foot_front = (
        (share - 0.5) * shape.length for share in shape.cabin
    )
    shares = np.array(shape.cabin)[[0, 3]]
    base_rear, base_front = np.interp(shares, *np.array(shape.belt).T) - 0.02
    foot, roof = shape.width / 2 * 0.86, shape.width / 2 * 0.66
    z = shape.height
    lower = np.array(
        [(foot_rear, foot, base_rear), (foot_front, foot, base_front),
         (foot_front, -foot, base_front), (foot_rear, -foot, base_rear)]
    )  # fmt: skip
    upper = np.array(
        [(roof_rear, roof, z - 0.05), (roof_front, roof, z - 0.04),
         (roof_front, -roof, z - 0.04), (roof_rear, -roof, z - 0.05)]
    )  # fmt: skip
    glass = Look(Material.GLASS, color, CAR, 0, seed)
    unit = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
    for a, b, style in ((1, 0, 1), (3, 2, 1), (2, 1, 0), (0, 3, 0)):
        look = Look(glass.material, glass.color, glass.category, style, seed)
        builder.quads(np.array([lower[a], lower[b], upper[b], upper[a]]), look, unit)
    # The roof is slightly crowned, with normals that lean outwards for a soft highlight.
    grid_x = np.linspace(upper[0, 0], upper[1, 0], 5)
    grid_y = np.linspace(-roof, roof, 5)
    x, y = np.meshgrid(grid_x, grid_y, indexing="ij")
    bump = (1 - (y / roof) ** 2) * 0.05
    roof_grid = np.stack([x, y, np.full_like(x, z - 0.05) + bump], axis=-1)
    roof_grid[[0, -1], :, 2] -= 0.005
    quads, normals = _loft(roof_grid)
    builder.quads(quads, Look(Material.PAINT, color, CAR, 0, seed), quads[..., [0, 1]], -normals)


def _wheel(
    builder: GeometryBuilder, shape: VehicleShape, place: tuple[Real, Real], seed: float
) -> None:
    x, side = place
    radius, wide = 0.33, 0.22
    outer = shape.width / 2 - 0.03
    angle = np.linspace(0, 2 * np.pi, 17)
    ring = np.stack([np.cos(angle), np.zeros(17), np.sin(angle)], axis=-1)
    rubber = Look(Material.PLAIN, (0.012, 0.012, 0.013), CAR, 1, seed)
    hub = np.array([x, side * outer, radius])
    inner = hub - np.array([0, side * wide, 0])
    tread = np.stack([hub + radius * ring[:-1], hub + radius * ring[1:],
                      inner + radius * ring[1:], inner + radius * ring[:-1]], axis=1)  # fmt: skip
    normals = np.stack([ring[:-1], ring[1:], ring[1:], ring[:-1]], axis=1)
    builder.quads(tread, rubber, None, normals)
    fan = np.stack(
        [np.broadcast_to(hub, (16, 3)), hub + radius * ring[:-1], hub + radius * ring[1:]], 1
    )
    uv = np.stack([np.zeros((16, 2)), ring[:-1, [0, 2]], ring[1:, [0, 2]]], axis=1)
    builder.triangles(fan, Look(Material.WHEEL, (0.45, 0.45, 0.47), CAR, int(seed * 3), seed), uv)
    # The dark arch is a ring just outside the body panel, above the axle.
    half = np.linspace(0, np.pi, 11)
    arc = np.stack([np.cos(half), np.zeros(11), np.sin(half)], axis=-1)
    skin = np.array([x, side * (shape.width / 2 + 0.006), radius])
    arch = np.stack([skin + 0.335 * arc[:-1], skin + 0.41 * arc[:-1],
                     skin + 0.41 * arc[1:], skin + 0.335 * arc[1:]], axis=1)  # fmt: skip
    builder.quads(arch, Look(Material.PLAIN, (0.01, 0.01, 0.01), CAR, 1, seed))


def _ends(builder: GeometryBuilder, shape: VehicleShape, seed: Real) -> None:
    half, tall = shape.width / 2 * 0.8, shape.belt[-1][1]
    front, rear = shape.length / 2 + 0.012, -shape.length / 2 - 0.012
    dark = Look(Material.PLAIN, (0.02, 0.02, 0.022), CAR, 1, seed)
    plate = Look(Material.PLATE, (0.75, 0.75, 0.7), CAR, 0, seed)
    head = Look(Material.LAMP, (0.75, 0.78, 0.8), CAR, 0, seed)
    tail = Look(Material.LAMP, (0.5, 0.02, 0.01), CAR, 0, seed)
    unit = np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])

    def panel(x: Real, y: tuple[Real, Real], z: tuple[Real, Real], look: Look) -> None:
        left, right = (y[0], y[1]) if x > 0 else (y[1], y[0])
        quad = [(x, left, z[0]), (x, right, z[0]), (x, right, z[1]), (x, left, z[1])]
        builder.quads(np.array(quad), look, unit)

    panel(front, (-half * 0.6, half * 0.6), (tall - 0.2, tall - 0.06), dark)
    panel(rear, (-half * 0.9, half * 0.9), (0.34, 0.46), dark)
    panel(front, (-half * 0.9, half * 0.9), (0.34, 0.44), dark)
    panel(front + 0.004, (-0.26, 0.26), (0.4, 0.51), plate)
    panel(rear - 0.004, (-0.26, 0.26), (0.5, 0.61), plate)
    rear_top = shape.belt[0][1]
    for side in (-1, 1):
        inner, outer = sorted((side * half * 0.62, side * half * 0.99))
        panel(front + 0.002, (inner, outer), (tall - 0.2, tall - 0.05), head)
        panel(rear - 0.002, (inner, outer), (rear_top - 0.22, rear_top - 0.06), tail)
        mirror = shape.width / 2
        x = (shape.cabin[3] - 0.56) * shape.length
        low = np.array([x, min(side * mirror * 0.9, side * (mirror + 0.12)), 0.95])
        high = np.array([x + 0.1, max(side * mirror * 0.9, side * (mirror + 0.12)), 1.07])
        builder.box(low, high, dark, bottom=True)
