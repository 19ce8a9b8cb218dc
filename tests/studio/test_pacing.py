"""The size of a picture follows the time it takes, without jumping about."""

import random

import pytest

from faithfusion_studio.studio.pacing import MAX_PIXELS, MIN_PIXELS, FrameBudget

CANVAS = 1000 * 800


def drive(budget, seconds_of, pictures, canvas=CANVAS):
    """Sizes of pictures drawn one after the other by a machine that takes `seconds_of(pixels)`."""
    sizes = []
    for _ in range(pictures):
        pixels = budget.pixels(canvas)
        budget.learn(seconds_of(pixels))
        sizes.append(pixels)
    return sizes


def changes(sizes):
    return sum(a != b for a, b in zip(sizes, sizes[1:], strict=False))


@pytest.mark.parametrize("speed", [1e-8, 4e-8, 2e-7, 1e-6])
def test_pictures_come_to_fill_their_time(speed):
    sizes = drive(FrameBudget(0.04, 130_000), lambda p: p * speed, 100)
    assert sizes[-1] * speed <= 0.044
    larger = sizes[-1] / 0.5**0.5
    assert sizes[-1] == CANVAS or larger * speed > 0.9 * 0.04
    assert changes(sizes[50:]) == 0


def test_a_load_that_comes_and_goes_shrinks_at_once_and_grows_later():
    budget = FrameBudget(0.04, 130_000)
    before = drive(budget, lambda p: p * 1e-7, 40)[-1]
    loaded = drive(budget, lambda p: p * 3e-7, 12)
    assert loaded[-1] < before / 2
    assert min(i for i, p in enumerate(loaded) if p < before) <= 3
    assert drive(budget, lambda p: p * 1e-7, 80)[-1] == before


def test_uneven_times_do_not_make_the_size_flicker():
    noise = random.Random(3)
    sizes = drive(FrameBudget(0.04, 130_000), lambda p: p * 1e-7 * noise.uniform(0.8, 1.2), 400)
    assert changes(sizes[40:]) <= 12


def test_one_hiccup_changes_nothing():
    budget = FrameBudget(0.04, 130_000)
    before = drive(budget, lambda p: p * 1e-7, 40)[-1]
    budget.learn(0.3)
    assert set(drive(budget, lambda p: p * 1e-7, 40)) == {before}


@pytest.mark.parametrize("start", [30_000, 130_000, 800_000])
def test_where_the_gaussians_cost_the_time_the_picture_is_not_ruined(start):
    """Projection and sorting alone miss the budget: a tiny picture would hardly be faster."""
    sizes = drive(FrameBudget(0.03, start), lambda p: 0.05 + p * 4e-8, 600)[200:]
    assert min(sizes) * 4e-8 > 0.012
    assert max(sizes) * 4e-8 < 0.05
    assert changes(sizes) <= 30


def test_the_canvas_bounds_the_size():
    assert drive(FrameBudget(1.0, 10_000), lambda p: p * 1e-9, 99, 4000 * 3000)[-1] == MAX_PIXELS
    assert drive(FrameBudget(1.0, 10_000), lambda p: p * 1e-9, 99, 64 * 48)[-1] == 64 * 48
    assert min(drive(FrameBudget(1e-3, 10_000), lambda p: p * 1e-5, 60)) >= MIN_PIXELS
