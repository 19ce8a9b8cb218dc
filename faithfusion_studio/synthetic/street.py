"""A seeded procedural street: where it runs, what stands beside it, and how it is lit.

World: x forward at s = 0, y left, z up, metres; the road is at z = 0 and its centre line passes
through the origin. Traffic keeps to the right, so the recording lane is at d = -lane_width / 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from faithfusion_studio.synthetic.geometry import (
    Geometry,
    GeometryBuilder,
    concatenate_geometry,
)
from faithfusion_studio.synthetic.layout import (
    FAMILIES,
    HALF_TURN,
    Extent,
    canyon_side,
    carriageway,
    parked_cars,
    street_end,
    suburban_side,
    urban_side,
)
from faithfusion_studio.synthetic.rays import SyntheticError, with_ambient
from faithfusion_studio.synthetic.road import Bend, RoadPaint
from faithfusion_studio.synthetic.vehicles import CAR_COLORS, SHAPES, vehicle
from faithfusion_studio.synthetic.verges import country_side, highway_side

if TYPE_CHECKING:
    import trimesh

Family = Literal["urban", "suburban", "country", "canyon", "highway"]

SIDES = {
    "urban": urban_side,
    "suburban": suburban_side,
    "country": country_side,
    "canyon": canyon_side,
    "highway": highway_side,
}
"""What a family has on the left of the road."""


@dataclass(frozen=True)
class StreetConfig:
    """What kind of street to build; equal configs give equal streets."""

    seed: int = 0
    """Everything random follows from this."""
    family: Family = "urban"
    """urban: terraces, shops, parked cars; suburban: houses and gardens; country: fields, trees; canyon: a narrow
    street between tall facades; highway: guard rails, noise barriers, no parked cars."""
    length: float = 50.0
    """Metres that can be driven from s = 0."""
    sight: float = 100.0
    """Metres of street built beyond the drive; more is slower to build."""
    curvature: float | None = None
    """Bend in 1/m after the first 30 m, positive = left; None draws up to 1/250 either way."""
    num_moving: int = 0
    """Vehicles that drive: oncoming ones and one ahead; each becomes a node with a box track."""
    parked_share: float | None = None
    """Share of parking slots that hold a car, 0..1; None uses that of the family."""
    ambient_rays: int = 16
    """Rays per corner for soft contact shadows; more is smoother and slower to build."""


@dataclass(frozen=True)
class Daylight:
    """Sun and sky; colours are linear RGB."""

    sun_direction: tuple[float, float, float]
    """Unit vector towards the sun, world."""
    sun_color: tuple[float, float, float]
    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    cloudiness: float
    """0 = clear, 1 = mostly covered."""
    cloud_shift: tuple[float, float]
    """Moves the cloud pattern, m in its own plane."""


@dataclass(frozen=True, eq=False)
class MovingVehicle:
    """A vehicle that drives along the road at constant speed."""

    name: str
    geometry: Geometry
    """In its own frame: origin on the ground under the middle, x to the front."""
    size: tuple[float, float, float]
    """Length, width, height of its box, m."""
    s: float
    """Where it is at time 0, m along the road."""
    d: float
    """Lateral place, m to the left of the centre line."""
    speed: float
    """m/s along s; negative comes towards the recording vehicle."""

    def pose(self, bend: Bend, time: float) -> np.ndarray:
        """Ground pose [4, 4] at a time in s: vehicle -> world."""
        return bend.pose(self.s + self.speed * time, self.d, 0.0, np.pi if self.speed < 0 else 0.0)


@dataclass(frozen=True, eq=False)
class Street:
    """A complete world; made by `build_street`, never changed."""

    config: StreetConfig
    background: Geometry
    """Everything that stands still, in the world frame."""
    vehicles: tuple[MovingVehicle, ...]
    bend: Bend
    paint: RoadPaint
    daylight: Daylight
    kerb: float
    """Distance of the kerb (or the edge of the asphalt) from the centre line, m."""

    def geometry(self, time: float = 0.0) -> Geometry:
        """All triangles at a time in s; `node_index` counts `vehicles`."""
        if not self.vehicles:
            return self.background
        placed = [
            v.geometry.placed(v.pose(self.bend, time), index)
            for index, v in enumerate(self.vehicles)
        ]
        return concatenate_geometry([self.background, *placed])

    def lanes(self, spacing: float = 1.0) -> tuple[np.ndarray, ...]:
        """Painted lane lines as world polylines [M, 3]: centre line, then left and right edge."""
        s = np.arange(-20.0, self.config.length + self.config.sight, spacing)
        width = self.paint.lane_width
        places = [0.0, width + 0.06, -width - 0.06] if self.paint.edge_lines else [0.0]
        return tuple(
            self.bend.to_world(np.stack([s, np.full_like(s, d), np.zeros_like(s)], axis=-1))
            for d in places
        )

    def mesh(self, time: float = 0.0) -> trimesh.Trimesh:
        """The same world as a trimesh, coloured by base colour, for export and inspection."""
        import trimesh

        geometry = self.geometry(time)
        faces = np.arange(len(geometry) * 3).reshape(-1, 3)
        colors = np.clip(geometry.color ** (1 / 2.2) * 255, 0, 255).astype(np.uint8)
        return trimesh.Trimesh(
            geometry.triangles.reshape(-1, 3), faces, face_colors=colors, process=False
        )


def build_street(config: StreetConfig) -> Street:
    """Build a street; equal configs give bit-identical geometry.

    Args:
        config: What to build.

    Raises:
        SyntheticError: Nothing to drive on, an unknown family, or embreex is missing.
    """
    if config.length <= 0 or config.sight < 20:
        raise SyntheticError(
            f"a street of {config.length} m with {config.sight} m of sight was asked for; "
            "give a positive length and at least 20 m of sight."
        )
    if config.family not in SIDES:
        raise SyntheticError(
            f"the street family is {config.family!r}; choose one of {', '.join(SIDES)}."
        )
    # Separate streams: changing one thing (say, parked cars) leaves the rest of the street alone.
    streams = np.random.SeedSequence(config.seed).spawn(8)
    rngs = [np.random.default_rng(stream) for stream in streams]
    kerb = FAMILIES[config.family].kerb
    extent = Extent(-30.0, float(np.ceil(config.length + config.sight)), kerb)
    curvature = config.curvature
    if curvature is None:
        curvature = float(rngs[0].uniform(-1, 1) / 250)
    bend = Bend(curvature, extent.start, extent.stop + 10)
    paint = _draw_paint(rngs[1], config, extent)
    builder = GeometryBuilder()
    carriageway(builder, extent, config.family)
    side = SIDES[config.family]
    builder.add(side(rngs[2], extent))
    mirrored = Extent(-extent.stop, -extent.start, kerb)
    builder.add(side(rngs[3], mirrored).placed(HALF_TURN))
    street_end(builder, rngs[4], extent, config.family)
    _add_parked(builder, rngs[5], config, extent, paint)
    flat = builder.build()
    heading = bend.heading(flat.triangles[:, 0, 0])[:, None]
    cosine, sine = np.cos(heading), np.sin(heading)
    x, y, z = np.moveaxis(flat.normals, -1, 0)
    normals = np.stack([x * cosine - y * sine, x * sine + y * cosine, z], axis=-1)
    bent = replace(
        flat,
        triangles=bend.to_world(flat.triangles.astype(np.float64)).astype(np.float32),
        normals=normals.astype(np.float32),
    )
    background = with_ambient(bent, config.ambient_rays)
    vehicles = _moving(rngs[6], config, paint)
    return Street(config, background, vehicles, bend, paint, _draw_daylight(rngs[7]), kerb)


def _draw_paint(rng: np.random.Generator, config: StreetConfig, extent: Extent) -> RoadPaint:
    traits, stop = FAMILIES[config.family], extent.stop
    lane = traits.lane
    arrows, crossings = [], []
    at = rng.uniform(20, 45)
    while at < stop - 10 and traits.crossings:
        crossings.append(float(at))
        at += rng.uniform(45, 80)
    at = rng.uniform(6, 18)
    while at < stop and traits.crossings:
        arrows.append((at, -lane / 2, 1.0))
        arrows.append((at + rng.uniform(5, 12), lane / 2, -1.0))
        at += rng.uniform(24, 40)
    # An arrow on a crossing or its stop line would be unreadable.
    arrows = [a for a in arrows if all(abs(a[0] - at) > 7 for at in crossings)]
    count = int(stop / 7)
    patches = np.stack(
        [
            rng.uniform(-10, stop, count),
            rng.uniform(-lane, lane, count),
            rng.uniform(0.5, 4.0, count),
            rng.uniform(0.3, 1.1, count),
            rng.choice([0.6, 0.72, 1.2], count),
        ],
        axis=-1,
    )
    covers = np.arange(rng.uniform(0, 10), stop, 17.0)
    covers = covers + rng.normal(0, 3, len(covers))
    manholes = np.stack(
        [covers, rng.choice([-1, 1], len(covers)) * rng.uniform(0.6, 2.6, len(covers))], -1
    )
    return RoadPaint(
        lane_width=lane,
        edge_lines=traits.edge_lines,
        centre_dash=float(rng.choice([2.0, 3.0])) if rng.random() < 0.85 else 0.0,
        arrows=np.array(arrows, float).reshape(-1, 3),
        crosswalks=tuple(crossings),
        crosswalk_reach=extent.kerb - 0.3,
        patches=patches,
        manholes=manholes if traits.built else manholes[::3],
        tone=float(rng.uniform(0.075, 0.12)),
        seed=float(rng.random()),
    )


def _draw_daylight(rng: np.random.Generator) -> Daylight:
    azimuth, height = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(32, 58))
    sun = (np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height))
    warm = 1 - (height - np.deg2rad(32)) / np.deg2rad(26)
    return Daylight(
        sun_direction=tuple(float(value) for value in sun),
        sun_color=(3.1, 2.95 - 0.25 * warm, 2.7 - 0.55 * warm),
        zenith=(0.16, 0.3, 0.62),
        horizon=(0.62, 0.72, 0.85),
        cloudiness=float(rng.uniform(0.15, 0.75)),
        cloud_shift=(float(rng.uniform(0, 50)), float(rng.uniform(0, 50))),
    )


def _add_parked(
    builder: GeometryBuilder,
    rng: np.random.Generator,
    config: StreetConfig,
    extent: Extent,
    paint: RoadPaint,
) -> None:
    share = config.parked_share
    if share is None:
        share = FAMILIES[config.family].parked
    crossings = [at + 1.5 for at in paint.crosswalks]
    d = extent.kerb - 1.15
    left = parked_cars(rng, extent, d, share, crossings)
    mirrored = Extent(-extent.stop, -extent.start, extent.kerb)
    right = parked_cars(rng, mirrored, d, share, [-at for at in crossings])
    if left is not None:
        builder.add(left)
    if right is not None:
        builder.add(right.placed(HALF_TURN))


def _moving(
    rng: np.random.Generator, config: StreetConfig, paint: RoadPaint
) -> tuple[MovingVehicle, ...]:
    vehicles, ahead, towards = [], 18.0, 45.0
    for index in range(config.num_moving):
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        color = CAR_COLORS[int(rng.integers(len(CAR_COLORS)))]
        geometry = vehicle(shape, color, float(rng.random()))
        openness = np.clip(0.35 + 0.6 * geometry.triangles[..., 2], 0, 1)
        geometry = replace(geometry, ambient=openness.astype(np.float32))
        oncoming = index % 3 != 1
        vehicles.append(
            MovingVehicle(
                name=f"vehicle_{index}",
                geometry=geometry,
                size=shape.size,
                s=towards if oncoming else ahead,
                d=paint.lane_width / 2 if oncoming else -paint.lane_width / 2,
                speed=float(-rng.uniform(6, 10) if oncoming else rng.uniform(8, 9)),
            )
        )
        if oncoming:
            towards += rng.uniform(14, 30)
        else:
            ahead += rng.uniform(10, 18)
    return tuple(vehicles)


Split = Literal["train", "validation", "test"]
FIRST_VALIDATION, FIRST_TEST = 200, 600
TEST_FAMILIES = ("country", "highway")
"""Kinds of street that are never trained or chosen on."""


def split_of(config: StreetConfig) -> Split:
    """Which part of the procedural streets this one belongs to, by its seed and its family.

    Seeds below 200 are for training, below 600 for choosing, the others for reporting; a family that only
    occurs in the test says how far what was learned reaches beyond the kinds of street it was learned on.
    """
    if config.family in TEST_FAMILIES or config.seed >= FIRST_TEST:
        return "test"
    return "train" if config.seed < FIRST_VALIDATION else "validation"
