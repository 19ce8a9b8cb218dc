"""Bending a step towards the recordings lowers the loss, agrees more with them, and ignores what is something else."""

from dataclasses import replace

import pytest
import torch
from wall_world import wall_batch

from faithfusion_studio.repair.reprojection import ReprojectionRepairer
from faithfusion_studio.repair.velocity_compensation import (
    Compensation,
    compensated,
    disagreement,
    gather_evidence,
    view_losses,
)

CONFIG = Compensation(alpha=0.1)


@pytest.fixture(scope="module")
def evidence():
    batch = wall_batch((48, 32), frames=2)
    with torch.no_grad():
        frames = list(ReprojectionRepairer().repair(batch))
    return gather_evidence(batch, frames, 0, CONFIG)


@pytest.fixture(scope="module")
def walk(evidence):
    """A state half way along a bridge, and a velocity that leads to a clip with errors."""
    generator = torch.Generator().manual_seed(4)
    wrong = evidence.fused + 0.1 * torch.randn(evidence.fused.shape, generator=generator)
    state = 0.5 * wrong + 0.5 * (evidence.fused + 0.2)
    return state, (state - wrong) / 0.5


def test_the_true_clip_agrees_with_the_recordings(evidence):
    assert len(evidence.views) == 4
    losses = torch.stack(view_losses(evidence.fused, evidence))
    assert float(losses.max()) < 0.1
    assert all(float(view.visible.mean()) > 0.3 for view in evidence.views)


def test_the_loss_falls_and_recorded_views_agree_more(evidence, walk):
    state, velocity = walk
    bent = compensated(state, velocity, 0.5, evidence, CONFIG)
    before, after = state - 0.5 * velocity, state - 0.5 * bent
    assert float(disagreement(after, evidence, CONFIG)) < float(
        disagreement(before, evidence, CONFIG)
    )
    views = torch.stack(view_losses(after, evidence)), torch.stack(view_losses(before, evidence))
    assert bool((views[0] < views[1]).all())
    opposite = state - 0.5 * (2 * velocity - bent)
    assert float(disagreement(opposite, evidence, CONFIG)) > float(
        disagreement(before, evidence, CONFIG)
    )


def test_alpha_is_a_share_of_the_velocity(evidence, walk):
    state, velocity = walk
    bent = compensated(state, velocity, 0.5, evidence, CONFIG)
    share = (bent - velocity).square().mean().sqrt() / velocity.square().mean().sqrt()
    assert float(share) == pytest.approx(0.1, rel=1e-3)


def test_early_steps_and_alpha_zero_change_nothing(evidence, walk):
    state, velocity = walk
    assert compensated(state, velocity, 0.75, evidence, CONFIG) is velocity
    off = replace(CONFIG, alpha=0.0)
    assert compensated(state, velocity, 0.5, evidence, off) is velocity


def test_a_view_of_something_else_has_no_influence(evidence, walk):
    """Dropped views change nothing, bit for bit; kept ones do."""
    state, velocity = walk
    stranger = evidence.views[0]._replace(image=1 - evidence.views[0].image.flip(-1))
    clean = state - 0.5 * velocity
    other = evidence._replace(views=(stranger, *evidence.views[1:]))
    config = replace(CONFIG, drop=float(view_losses(clean, other)[0].detach()) - 1e-4)
    assert all(float(loss) < config.drop for loss in view_losses(clean, other)[1:])
    blind = stranger._replace(visible=torch.zeros_like(stranger.visible))
    without = evidence._replace(views=(blind, *evidence.views[1:]))
    bent = compensated(state, velocity, 0.5, other, config)
    assert torch.equal(bent, compensated(state, velocity, 0.5, without, config))
    kept = replace(config, drop=10.0)
    assert not torch.equal(bent, compensated(state, velocity, 0.5, other, kept))


def test_moving_things_of_another_time_are_no_evidence():
    batch = wall_batch((48, 32), frames=1)
    with torch.no_grad():
        frames = list(ReprojectionRepairer().repair(batch))
    masked = [
        replace(
            r,
            dynamic_mask=torch.ones_like(r.depth, dtype=torch.bool),
            camera=replace(r.camera, time=r.camera.time + 100),
        )
        for r in batch.references
    ]
    evidence = gather_evidence(replace(batch, references=tuple(masked)), frames, 0, CONFIG)
    assert all(float(view.visible.max()) == 0 for view in evidence.views)
