"""The fast passes and maps against per-pixel Jacobians by autograd."""

from dataclasses import replace

import pytest

from faithfusion_studio.bench.tiny_scenes import largest_relative_error
from faithfusion_studio.information import eig_map
from scenes import tiny_world

NOISE = 0.08


@pytest.mark.parametrize("seed", range(20))
def test_fisher_and_maps_of_a_random_scene_equal_brute_force(seed: int) -> None:
    assert largest_relative_error(*tiny_world(seed), noise=NOISE) < 1e-4


def test_the_comparison_with_brute_force_notices_a_small_error(monkeypatch) -> None:
    def louder(*arguments, **options):
        found = eig_map(*arguments, **options)
        return replace(found, eig=found.eig * (1 + 3e-4))

    monkeypatch.setattr("faithfusion_studio.bench.tiny_scenes.eig_map", louder)
    assert largest_relative_error(*tiny_world(0), noise=NOISE) > 1e-4
