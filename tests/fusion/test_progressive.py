"""The progressive loop: resumes bit by bit, holds what it is told to, and what it accepts becomes evidence."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from fusion.test_trainer import _frames
from fusion.worlds import tiny_capture, tiny_world

from faithfusion_studio.fusion.losses import FusionError
from faithfusion_studio.fusion.presets import progressive_stages
from faithfusion_studio.fusion.progressive import FusionPlan, Progression
from faithfusion_studio.fusion.replay import repaired_views
from faithfusion_studio.fusion.saved import taken_up, with_progress
from faithfusion_studio.fusion.schedule import FusionConfig, Stage
from faithfusion_studio.fusion.trainer import Trainer, displaced, novel_factor
from faithfusion_studio.gaussians import Provenance
from faithfusion_studio.information import eig_map, recorded_fisher
from faithfusion_studio.io import load_scene, save_scene
from faithfusion_studio.render.cpu import deterministic, thread_limit

FAST = FusionConfig(
    offset=1.0, offset_step=0.5, steps=6, warm_up=2, psnr_every=1000, eig_threshold=0.3, spawn=40
)
PARTS = ("means", "log_scales", "quats", "logit_opacities", "sh0", "provenance")


@pytest.fixture(scope="module")
def scene():
    """The true world with its left wall turned grey, its recording and its evidence."""
    world = tiny_world()
    g = world.background
    left = (g.means[:, 1] > 3.5)[:, None, None]
    grey = replace(g, sh0=torch.where(left, 0.0, g.sh0))
    damaged = replace(
        world,
        background=grey,
        capture=tiny_capture(),
        metadata={"reconstruction": {"scale": 1.0}},
    )
    return replace(damaged, fisher=recorded_fisher(damaged))


@pytest.fixture(autouse=True)
def one_thread():
    with thread_limit(1), deterministic():
        yield


def plan_of(config=FAST, segment=(3, 5)):
    return FusionPlan(progressive_stages(config, segment), config, seed=4)


def finished(work):
    for _ in work.run():
        pass
    return work


@lru_cache
def uninterrupted(scene, config):
    return finished(Progression(scene, plan_of(config)))


def same(a, b):
    for name in PARTS:
        assert torch.equal(getattr(a.background, name), getattr(b.background, name)), name
    assert torch.equal(a.fisher.blocks, b.fisher.blocks)
    assert a.fisher.num_views == b.fisher.num_views


@pytest.mark.parametrize(
    "config",
    [
        FAST,
        replace(
            FAST, steps=30, densify=True, late_weighting="uniform", late_from=45, novel_curve="sine"
        ),
        replace(FAST, keep_stages=False, novel_depth="consensus", hold="repaired"),
    ],
    ids=["default", "densify and late weighting", "newest only"],
)
@pytest.mark.parametrize("cut", [("stage done", 0, 0.0), ("learn", 1, 0.5), ("learn", 0, 0.8)])
def test_a_run_that_was_cut_and_saved_ends_as_one_that_was_not(scene, tmp_path, config, cut):
    plan = plan_of(config)
    whole = uninterrupted(scene, config)
    work, (phase, index, share) = Progression(scene, plan), cut
    for event in work.run():
        if (event.phase, event.index) == (phase, index) and event.done >= share * event.total:
            break
    else:
        pytest.fail("the run was never cut")
    reached, state = work.checkpoint()
    save_scene(with_progress(reached, plan, state), tmp_path / "s.ckpt")
    kept, again, state = taken_up(load_scene(tmp_path / "s.ckpt"))
    assert again.stages == plan.stages and again.config == plan.config and again.seed == 4
    resumed = finished(Progression(kept, again, state=state))
    same(resumed.scene, whole.scene)
    assert len(resumed.state.replay) == len(whole.state.replay)
    moments, expected = resumed.state.moments, whole.state.moments
    for kind, entry in expected.items():
        for name, value in entry.items():
            assert torch.equal(moments[kind][name], value), (kind, name)


def test_a_damaged_plan_in_a_file_is_one_sentence(scene):
    kept = with_progress(scene, plan_of(), Progression(scene, plan_of()).state)
    assert taken_up(scene) is None
    broken = replace(kept, metadata={**kept.metadata, "fusion": {"plan": {"kind": "Path"}}})
    with pytest.raises(FusionError, match="start a new one"):
        taken_up(broken)


def test_the_next_stage_sees_less_to_learn_where_repairs_were_accepted(scene):
    work = Progression(scene, plan_of(replace(FAST, spawn=0, offset_step=0.0)))
    frames = ()
    for event in work.run():
        frames = event.frames or frames
    assert work.scene.fisher.num_views == scene.fisher.num_views + len(frames)
    # The same Gaussians, so that nothing but the evidence differs.
    known = replace(scene, fisher=work.scene.fisher)
    for frame in frames:
        repaired = frame.ucr & (frame.pixel_provenance > 0) & (frame.confidence > 0.5)
        before = eig_map(scene, frame.camera).eig
        after = eig_map(known, frame.camera).eig
        assert int(repaired.sum()) > 20
        assert float(after[repaired].mean()) < 0.8 * float(before[repaired].mean())
        assert float((after - before).max()) < 1e-3  # one more view never makes anything less known


def test_evidence_counts_by_confidence_only_where_it_was_repaired(scene):
    frame = _frames(scene, tiny_world(), count=1)[0]
    frame = replace(frame, confidence=torch.full_like(frame.confidence, 0.5))
    (view,) = repaired_views([frame], scene, FusionConfig(evidence=0.4), "uniform")
    weight = view.evidence_weight
    assert float(weight[~frame.ucr].max()) == 0.0
    assert torch.allclose(weight[frame.ucr], torch.tensor(0.2), atol=2e-3)


def test_pixels_of_no_weight_pull_at_nothing(scene):
    """A repaired frame without confidence leaves every parameter bit for bit, whatever its colours."""
    frames = [
        replace(f, confidence=torch.zeros_like(f.confidence), repaired=torch.rand_like(f.repaired))
        for f in _frames(scene, tiny_world(), count=2)
    ]
    weights = replace(FAST.weights, opacity=0.0, scale=0.0, shape=0.0)
    config = replace(FAST, replay=0.0, spawn=0, weights=weights)
    for weighting in ("eig", "released", "logdet", "uniform"):
        trainer = Trainer(scene, frames, config, steps=4, weighting=weighting)
        assert [p.loss for p in trainer.run()] == [0.0] * 4
        for name in PARTS:
            assert torch.equal(
                getattr(trainer.scene().background, name), getattr(scene.background, name)
            )


@pytest.mark.parametrize("hold", ["free", "repaired", "always"])
def test_recorded_gaussians_can_be_held_while_new_ones_move(scene, hold):
    replay = 0.0 if hold == "repaired" else 0.5
    config = replace(FAST, hold=hold, replay=replay, means_scale=30.0)
    gone = scene.background.means[:, 1] > 3.5
    faded = replace(
        scene.background,
        logit_opacities=torch.where(gone, -6.0, scene.background.logit_opacities),
    )
    holed = replace(scene, background=faded, capture=None if replay == 0 else scene.capture)
    trainer = Trainer(holed, _frames(holed, tiny_world()), config, steps=12)
    fresh = trainer.scene().background
    list(trainer.run())
    after = trainer.scene().background
    old = ~trainer.change.is_new
    still = torch.equal(after.means[old], fresh.means[old])
    assert still == (hold != "free")
    assert torch.equal(after.quats[old], fresh.quats[old]) == (hold != "free")
    assert not torch.equal(after.means[~old], fresh.means[~old])
    moved = displaced(holed.background, after, trainer.change)
    recorded = after.provenance == int(Provenance.RECORDED)
    assert bool((recorded == (old & ~moved)).all())
    assert bool(moved.any()) == (hold == "free")


def test_earlier_stages_stay_in_the_replay_unless_the_plan_says_otherwise(scene):
    for keep, expected in ((True, 4), (False, 2)):
        work = finished(Progression(scene, plan_of(replace(FAST, steps=1, keep_stages=keep))))
        assert len(work.state.replay) == expected and work.state.newest == 2


def test_half_a_sine_is_nothing_at_both_ends():
    assert [round(novel_factor("sine", x), 9) for x in (0.0, 0.5, 1.0)] == [0, 1, 0]
    assert novel_factor("constant", 0.1) == 1.0


def test_a_stage_with_nothing_to_learn_ends_the_plan_with_a_sentence(scene):
    rejected = [replace(f, accepted=False) for f in _frames(scene, tiny_world())]
    work = Progression(scene, plan_of(), frames=rejected)
    with pytest.raises(FusionError, match="no repaired frame was accepted"):
        finished(work)
    going_on = FusionPlan((Stage((0, 2), 1.0, repair=False),))
    with pytest.raises(FusionError, match="there is none"):
        finished(Progression(scene, going_on))


def test_the_meter_sees_trusted_pixels_that_move(scene):
    frames = _frames(scene, tiny_world(), count=2)
    trainer = Trainer(scene, frames, replace(FAST, spawn=0), steps=1)
    assert trainer._meters.trusted_moved(trainer.scene()) == 0.0
    parameters = trainer._learner.parameters
    parameters["sh0"][:] = parameters["sh0"] + 1.0
    assert trainer._meters.trusted_moved(trainer.scene()) > 0.5
