"""Content expansion: points stand on the true surface, only where nothing is, and evidence follows."""

from dataclasses import replace

import pytest
import torch
from fusion.test_trainer import _frames
from fusion.worlds import tiny_capture, tiny_world

from faithfusion_studio.fusion.fill import FILL, fill_candidates, with_filling
from faithfusion_studio.fusion.losses import FusionError
from faithfusion_studio.fusion.spawn import EmptyRule, empty_pixels
from faithfusion_studio.gaussians import Provenance
from faithfusion_studio.information import recorded_fisher


@pytest.fixture(scope="module")
def holed():
    """The true world without its left wall, and no recording that looks through where it stood."""
    world = tiny_world()
    g = world.background
    left = g.means[:, 1] > 3.5
    faded = replace(g, logit_opacities=torch.where(left, -6.0, g.logit_opacities))
    scene = replace(world, background=faded, metadata={"reconstruction": {"scale": 1.0}})
    fisher = recorded_fisher(replace(scene, capture=tiny_capture()))
    return replace(scene, fisher=fisher)


@pytest.fixture(scope="module")
def frames(holed):
    return _frames(holed, tiny_world(), count=4)


def test_an_empty_pixel_is_transparent_or_shows_another_depth(frames):
    maps = {
        "ucr": [True, True, True, False],
        "alpha": [0.2, 0.9, 0.9, 0.2],
        "depth": [10.0, 10.0, 10.0, 10.0],
        "rendered_depth": [10.0, 13.0, 10.5, 10.0],
    }
    changed = {}
    for name, values in maps.items():
        whole = torch.zeros_like(getattr(frames[0], name))
        whole[0, :4] = torch.tensor(values)
        changed[name] = whole
    frame = replace(frames[0], **changed)

    def empty(rule):
        return empty_pixels(frame, rule)[0, :4].tolist()

    assert empty(EmptyRule()) == [True, True, False, False]
    assert empty(EmptyRule(0.1, 0.02)) == [False, True, True, False]
    assert empty(EmptyRule(0.1, 0.5)) == [False] * 4


def test_points_stand_on_the_wall_that_is_missing(holed, frames):
    found = fill_candidates(holed, frames, FILL)
    assert len(found) > 50
    # Splats of the wall have a standard deviation of 0.25 m, so depth is that of its near side.
    assert float((found.means[:, 1] - 4.0).abs().quantile(0.9)) < 0.5
    assert bool((found.provenance == int(Provenance.REPAIRED)).all())
    assert len(fill_candidates(holed, frames, FILL, limit=20)) == 20


def test_a_surface_that_only_one_frame_sees_is_not_believed(holed, frames):
    wrong = replace(frames[0], depth=0.5 * frames[0].depth)
    alone = fill_candidates(holed, [wrong], replace(FILL, agreeing=0))
    among = fill_candidates(holed, [wrong, *frames[1:]], FILL)
    assert len(alone) > 50
    near = (torch.cdist(among.means, alone.means).amin(1) < 1e-3).float().mean()
    assert float(near) < 0.2


def test_evidence_knows_nothing_of_new_splats(holed, frames):
    found = fill_candidates(holed, frames, FILL)
    grown = with_filling(holed, found)
    assert len(grown.background) == len(holed.background) + len(found)
    assert torch.equal(grown.fisher.blocks[: len(holed.background)], holed.fisher.blocks)
    assert float(grown.fisher.blocks[len(holed.background) :].abs().max()) == 0
    with pytest.raises(FusionError, match="accept at least one"):
        fill_candidates(holed, [replace(f, accepted=False) for f in frames], FILL)
