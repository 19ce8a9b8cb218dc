"""Streets: repeatable, complete, rightly shaped."""

import hashlib
from dataclasses import fields

import numpy as np
import pytest

from faithfusion_studio.synthetic import (
    Category,
    StreetConfig,
    SyntheticError,
    build_street,
    split_of,
)
from faithfusion_studio.synthetic.noise import band, cell_hash, fractal, lines
from faithfusion_studio.synthetic.road import Bend

TINY = {"length": 2.0, "sight": 20.0, "ambient_rays": 2}


def digest(geometry) -> str:
    """Hash of everything in a geometry."""
    total = hashlib.sha256()
    for field in fields(geometry):
        total.update(np.ascontiguousarray(getattr(geometry, field.name)).tobytes())
    return total.hexdigest()


@pytest.mark.parametrize("family", ["urban", "suburban", "country", "canyon", "highway"])
def test_same_seed_gives_the_same_street_and_another_seed_another(family):
    first = build_street(StreetConfig(seed=11, family=family, **TINY))
    again = build_street(StreetConfig(seed=11, family=family, **TINY))
    other = build_street(StreetConfig(seed=12, family=family, **TINY))
    assert digest(first.background) == digest(again.background)
    assert digest(first.background) != digest(other.background)
    assert first.daylight == again.daylight


def test_parked_cars_do_not_change_the_rest_of_the_street():
    empty = build_street(StreetConfig(seed=5, parked_share=0.0, **TINY)).background
    full = build_street(StreetConfig(seed=5, parked_share=1.0, **TINY)).background
    parked = full.category == Category.CAR
    assert parked.sum() > 1000
    assert not (empty.category == Category.CAR).any()
    np.testing.assert_array_equal(full.triangles[~parked], empty.triangles)


def test_geometry_is_finite_with_unit_normals_and_values_in_range(street):
    g = street.background
    assert np.isfinite(g.triangles).all()
    assert np.isfinite(g.uv).all()
    np.testing.assert_allclose(np.linalg.norm(g.normals, axis=-1), 1, atol=2e-3)
    assert g.color.min() >= 0 and g.color.max() <= 1
    assert g.ambient.min() >= 0 and g.ambient.max() <= 1 + 1e-5
    assert set(np.unique(g.category)) == {1, 2, 3, 4, 5}


def test_the_road_is_flat_at_height_zero(street):
    g = street.background
    heights = g.triangles[g.category == Category.ROAD][..., 2]
    np.testing.assert_allclose(heights, 0, atol=1e-6)


def test_only_base_ground_and_plinths_lie_below_the_road(street):
    assert street.background.triangles[..., 2].min() >= -3.01


def test_vehicles_drive_along_the_road_at_their_speed(busy_street):
    oncoming = busy_street.vehicles[0]
    start, later = (oncoming.pose(busy_street.bend, t)[:3, 3] for t in (0.0, 1.0))
    assert np.linalg.norm(later - start) == pytest.approx(abs(oncoming.speed), rel=0.03)
    assert later[0] < start[0]
    forward = oncoming.pose(busy_street.bend, 0.0)[:3, 0]
    assert forward @ (later - start) > 0


def test_moving_vehicles_are_numbered_and_fit_their_boxes(busy_street):
    geometry = busy_street.geometry(0.3)
    assert set(np.unique(geometry.node_index)) == {-1, 0, 1, 2}
    for vehicle in busy_street.vehicles:
        low, high = (f(vehicle.geometry.triangles, axis=(0, 1)) for f in (np.min, np.max))
        length, width, height = vehicle.size
        assert high[0] - low[0] == pytest.approx(length, abs=0.06)
        assert high[1] - low[1] == pytest.approx(width, abs=0.3)
        assert high[2] == pytest.approx(height, abs=0.06)
        assert low[2] == pytest.approx(0, abs=0.01)


def test_lane_lines_follow_the_bend_at_lane_width(street):
    centre, left, right = street.lanes()
    gap = np.linalg.norm(left - right, axis=-1)
    np.testing.assert_allclose(gap, 2 * street.paint.lane_width + 0.12, atol=1e-6)
    np.testing.assert_allclose((left + right) / 2, centre, atol=1e-6)


def test_mesh_has_every_triangle(street):
    assert len(street.mesh().faces) == len(street.background)


def test_bend_keeps_lengths_and_turns_left_for_positive_curvature():
    bend = Bend(1 / 100, -10, 120)
    s = np.linspace(0, 100, 2001)
    path = bend.to_world(np.stack([s, 0 * s, 0 * s], axis=-1))
    length = np.linalg.norm(np.diff(path, axis=0), axis=-1).sum()
    assert length == pytest.approx(100, abs=0.01)
    assert path[-1, 1] > 10
    np.testing.assert_allclose(path[0], 0, atol=1e-9)
    pose = bend.pose(40.0, 2.0)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(
        pose[:3, 3] - bend.pose(40.0, 0.0)[:3, 3], 2 * pose[:3, 1], atol=1e-9
    )


def test_noise_is_centred_and_fades_to_its_mean():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 50, (2, 4000))
    sharp = fractal(x, y, 5.0, np.full(4000, 1e-4))
    blurred = fractal(x, y, 5.0, np.full(4000, 5.0))
    assert abs(sharp.mean()) < 0.1
    assert 0.8 < sharp.std() < 1.2
    assert np.abs(blurred).max() < 0.35
    np.testing.assert_allclose(fractal(x + 5.0, y, 5.0, np.full(4000, 1e-4)), sharp, atol=1e-2)


def test_hash_is_uniform_and_depends_on_every_argument():
    x, y = (grid.ravel() for grid in np.mgrid[0:64, 0:64])
    values = cell_hash(x, y)
    assert abs(values.mean() - 0.5) < 0.02
    assert abs(values.std() - 1 / np.sqrt(12)) < 0.01
    assert abs(np.corrcoef(values, cell_hash(x + 1, y))[0, 1]) < 0.05
    assert abs(np.corrcoef(values, cell_hash(x, y, 1))[0, 1]) < 0.05


@pytest.mark.parametrize("footprint", [0.001, 0.1, 0.5, 3.0])
def test_lines_cover_their_share_at_every_footprint(footprint):
    x = np.linspace(0, 20, 20001)
    covered = lines(x, 1.0, 0.2, np.full_like(x, footprint))
    assert covered.mean() == pytest.approx(0.2, abs=0.01)


def test_band_is_half_covered_at_its_edge():
    assert band(np.array([1.0]), 1.0, 3.0, np.array([0.2]))[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"length": 0.0}, "positive length"),
        ({"sight": 5.0}, "20 m of sight"),
        ({"family": "desert"}, "choose one of urban"),
    ],
)
def test_impossible_streets_are_refused_with_a_sentence(change, words):
    config = StreetConfig()
    for name, value in change.items():
        object.__setattr__(config, name, value)
    with pytest.raises(SyntheticError, match=words):
        build_street(config)


@pytest.mark.parametrize(
    ("family", "triangles"), [("urban", 136470), ("suburban", 184428), ("country", 206196)]
)
def test_a_new_family_leaves_the_streets_of_the_older_ones_alone(family, triangles):
    config = StreetConfig(
        seed=11, family=family, length=2.0, sight=20.0, ambient_rays=2, num_moving=1
    )
    assert len(build_street(config).background) == triangles


def test_a_canyon_is_high_and_a_highway_has_neither_facades_nor_parked_cars():
    streets = {
        f: build_street(StreetConfig(seed=7, family=f, **TINY))
        for f in ("urban", "canyon", "highway")
    }
    near = {}
    for name, street in streets.items():
        g = street.background
        middle = g.triangles.mean(1)
        built = g.category == Category.BUILDING
        near[name] = float(middle[built & (np.abs(middle[:, 1]) < 25), 2].max(initial=0.0))
        assert (g.category == Category.CAR).any() == (name != "highway")
    assert near["canyon"] > 1.6 * near["urban"] > 0
    assert near["highway"] == 0
    assert streets["canyon"].kerb < streets["urban"].kerb
    assert len(streets["highway"].paint.crosswalks) == len(streets["highway"].paint.arrows) == 0


def test_families_and_seeds_are_split_once_for_all():
    assert split_of(StreetConfig(seed=3)) == "train"
    assert split_of(StreetConfig(seed=401, family="canyon")) == "validation"
    assert split_of(StreetConfig(seed=600)) == "test"
    assert split_of(StreetConfig(seed=3, family="highway")) == "test"
    assert split_of(StreetConfig(seed=3, family="country")) == "test"


def test_no_shipped_network_is_trained_on_a_test_street():
    from faithfusion_studio.training.pairs import street_recipe

    families = {street_recipe(seed).street.family for seed in range(12)}
    assert not families & {"country", "highway"}
