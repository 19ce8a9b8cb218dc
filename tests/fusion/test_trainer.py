"""Distillation: repaired pixels are learned, recorded views kept, provenance and row changes right."""

from dataclasses import replace

import pytest
import torch
from fusion.worlds import HEIGHT, WIDTH, drive_camera, tiny_capture, tiny_world

from faithfusion_studio.cameras import TrajectoryError
from faithfusion_studio.fusion.repairing import RepairedFrame, repair_stage
from faithfusion_studio.fusion.schedule import FusionConfig, Stage
from faithfusion_studio.fusion.trainer import FusionError, Trainer
from faithfusion_studio.gaussians import Provenance
from faithfusion_studio.information import recorded_fisher
from faithfusion_studio.metrics import psnr
from faithfusion_studio.render.cpu import deterministic, thread_limit
from faithfusion_studio.render.views import render_view
from faithfusion_studio.repair import create_repairer

FAST = FusionConfig(warm_up=5, psnr_every=1000, rate_scale=0.5)


@pytest.fixture(scope="module")
def damaged():
    """The true world with its left wall turned grey, and its recording."""
    world = tiny_world()
    g = world.background
    left = (g.means[:, 1] > 3.5)[:, None, None]
    grey = replace(g, sh0=torch.where(left, 0.0, g.sh0))
    metadata = {"reconstruction": {"scale": 1.0}}
    return replace(world, background=grey, capture=tiny_capture(), metadata=metadata)


@pytest.fixture(scope="module")
def holed(damaged):
    """The true world without its left wall, and no recording that says what is there."""
    g = damaged.background
    left = g.means[:, 1] > 3.5
    faded = replace(g, logit_opacities=torch.where(left, -6.0, g.logit_opacities))
    return replace(damaged, background=faded, capture=None)


def _frames(scene, truth, count=3, accepted=True):
    frames = []
    for index in range(2, 2 + count):
        camera = drive_camera(0.7 * index, y=1.0, time=index / 10)
        bad, good = render_view(scene, camera), render_view(truth, camera)
        ucr = (bad.rgb - good.rgb).abs().amax(-1) > 0.02
        share = ucr.to(torch.float32)
        frames.append(
            RepairedFrame(
                frame=index,
                camera=camera,
                rendered=bad.rgb,
                repaired=torch.where(ucr[..., None], good.rgb, bad.rgb),
                depth=good.depth,
                eig=share,
                calibrated=share,
                ucr=ucr,
                confidence=torch.ones(HEIGHT, WIDTH),
                alpha=bad.alpha,
                rendered_depth=bad.depth,
                pixel_provenance=ucr.to(torch.uint8),
                accepted=accepted,
            )
        )
    return frames


def test_novel_views_gain_and_recorded_views_do_not_lose(damaged):
    truth = tiny_world()
    frames = _frames(damaged, truth)
    trainer = Trainer(damaged, frames, FAST, steps=120)
    progress = list(trainer.run())
    after = trainer.scene()
    view = frames[1]
    expected = render_view(truth, view.camera).rgb
    gain = psnr(render_view(after, view.camera).rgb, expected) - psnr(view.rendered, expected)
    assert gain > 1.0
    assert progress[-1].psnr_recorded > progress[0].psnr_recorded - 0.2


def test_new_gaussians_carry_their_provenance_and_the_change_says_which_are_new(holed):
    trainer = Trainer(holed, _frames(holed, tiny_world()), FAST, steps=4)
    progress = list(trainer.run())
    scene, change = trainer.scene(), trainer.change
    made = scene.background.provenance == int(Provenance.REPAIRED)
    assert int(made.sum()) == progress[-1].num_generated > 0
    assert len(change.source) == len(scene.background)
    assert torch.equal(change.is_new, made)
    assert len(holed.background) == int((~made).sum())


def test_few_are_spawned_where_recorded_views_look_through(damaged, holed):
    counts = []
    for capture in (None, damaged.capture):
        trainer = Trainer(
            replace(holed, capture=capture), _frames(holed, tiny_world()), FAST, steps=1
        )
        counts.append(len(trainer.scene().background) - len(holed.background))
    assert counts[0] > 0 and counts[1] < 0.5 * counts[0]


def test_the_scene_given_is_never_written(damaged):
    before = damaged.background.means.clone()
    list(Trainer(damaged, _frames(damaged, tiny_world()), FAST, steps=3).run())
    assert torch.equal(damaged.background.means, before)


def test_nothing_accepted_is_one_sentence(damaged):
    with pytest.raises(FusionError, match="accept at least one"):
        Trainer(damaged, _frames(damaged, tiny_world(), accepted=False), FAST, steps=3)


def test_an_interrupted_run_resumes_from_its_moments(damaged):
    config = replace(FAST, spawn=0, warm_up=1)
    frames = _frames(damaged, tiny_world())
    with thread_limit(1), deterministic():
        first = Trainer(damaged, frames, config, steps=5)
        list(first.run())
        resumed = Trainer(
            first.scene(), frames, config, steps=5, optimizer_state=first.optimizer_state()
        )
        moments = resumed.optimizer_state()
    kept = first.optimizer_state()
    assert all(torch.equal(moments[k]["exp_avg"], kept[k]["exp_avg"]) for k in kept)


def test_a_stage_on_real_parts_keeps_precise_pixels_bit_exact(damaged):
    scene = replace(damaged, fisher=recorded_fisher(damaged))
    stage = Stage((3, 6), 1.0, eig_threshold=0.3)
    frames = list(repair_stage(scene, stage, create_repairer("reprojection")))
    assert [frame.frame for frame in frames] == [3, 4, 5]
    assert all(frame.hpr_changed == 0 for frame in frames)
    assert all(frame.camera.camtoworld[1, 3] == pytest.approx(1.0) for frame in frames)


def test_references_can_be_chosen_and_must_exist(damaged):
    scene = replace(damaged, fisher=recorded_fisher(damaged))
    seen = []

    class Watcher:
        name = "reprojection"

        def __init__(self):
            self._inner = create_repairer("reprojection")
            self.info = self._inner.info

        def estimate_seconds(self, *args, **kwargs):
            return 0.0

        def repair(self, batch):
            seen.append(([r.camera.time for r in batch.references], batch.seed))
            return self._inner.repair(batch)

    stage = Stage((3, 4), 1.0, eig_threshold=0.3, references=(1, 5), seed=7)
    assert len(list(repair_stage(scene, stage, Watcher()))) == 1
    assert seen == [([0.1, 0.5], 7)]
    with pytest.raises(TrajectoryError, match="reference 99 is no recorded frame"):
        list(repair_stage(scene, replace(stage, references=(99,)), create_repairer("reprojection")))
