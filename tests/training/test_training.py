"""Pairs come from streets and their truth; fitting learns, stops and goes on as if it had not stopped."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from clip_files import save_clips, wall_views
from wall_world import wall_camera

from faithfusion_studio import cli
from faithfusion_studio.metrics.temporal import flow_from_depth, warp_error
from faithfusion_studio.repair.refiner_network import (
    BELIEF,
    BEST,
    CHANNELS,
    EIG,
    FUSED,
    GATE,
    INVERSE_DEPTH,
    RENDER,
    SEEN,
)
from faithfusion_studio.repair.temporal_attention import View
from faithfusion_studio.synthetic.raytrace import trace_view
from faithfusion_studio.synthetic.recording import RecordingConfig, drive, record
from faithfusion_studio.synthetic.street import StreetConfig, build_street
from faithfusion_studio.training.fitting import (
    Fitting,
    FittingConfig,
    flicker,
    held_out_gain,
    mirror,
    refined_clip,
)
from faithfusion_studio.training.loop import vary
from faithfusion_studio.training.pairs import (
    MIX,
    OFFSETS,
    PairFile,
    TrainingError,
    cached_pairs,
    draw_clips,
    street_recipe,
    without_quadrant,
)

TINY = FittingConfig(
    steps=40, batch=2, crop=(32, 48), rate=3e-3, warm_up=5, average=0.8, temporal_share=0.0
)


def tiny_recipe(seed):
    return replace(
        street_recipe(seed),
        street=StreetConfig(seed=seed, length=12.0, sight=20.0, ambient_rays=1),
        frames=12,
        size=(96, 54),
        steps=8,
        max_gaussians=500,
        clips=(1, 2),
        length=2,
    )


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Pairs whose truth lies beyond what is believed of the warp."""
    generator = torch.Generator().manual_seed(1)
    degraded = torch.rand(2, 4, CHANNELS, 48, 64, generator=generator)
    degraded[:, :, GATE], degraded[:, :, BELIEF] = 1.0, 0.3
    truth = 0.1 * degraded[:, :, RENDER] + 0.9 * degraded[:, :, FUSED]
    path = tmp_path_factory.mktemp("made_up") / "pairs.safetensors"
    return PairFile(save_clips(degraded, truth, path))


@pytest.fixture(scope="module")
def flickering(tmp_path_factory):
    """A clip of a wall whose warps jump in brightness from frame to frame."""
    _, colors, depth = wall_views(6, (48, 36))
    degraded = torch.rand(1, 6, CHANNELS, 36, 48, generator=torch.Generator().manual_seed(2))
    jumps = 0.1 * torch.tensor([1.0, -1, 0.5, 1, -1, -0.5])[:, None, None, None]
    degraded[0, :, RENDER] = degraded[0, :, FUSED] = degraded[0, :, BEST] = (colors + jumps).clamp(
        0, 1
    )
    degraded[:, :, GATE], degraded[:, :, BELIEF], degraded[:, :, SEEN] = 1.0, 1.0, 1.0
    degraded[0, :, INVERSE_DEPTH] = 2 / depth
    path = tmp_path_factory.mktemp("flickering") / "pairs.safetensors"
    return PairFile(save_clips(degraded, colors[None], path))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    said = []
    path = cached_pairs(tiny_recipe(111), folder, said.append)
    assert said
    return path


def test_pairs_are_made_once_and_hold_the_truth(cache):
    said = []
    assert cached_pairs(tiny_recipe(111), cache.parent, said.append) == cache and said == []
    file, recipe = PairFile(cache), tiny_recipe(111)
    assert file.shape == (3, 2, CHANNELS, 54, 96)
    street = build_street(recipe.street)
    clip = draw_clips(street, recipe, 1, np.random.default_rng([111, 23]))[0]
    truth = [torch.from_numpy(trace_view(street, c).rgb).permute(2, 0, 1) for c in clip]
    assert torch.equal(file.crop(0, 0, 0, 54, 96).truth, torch.stack(truth).half())
    window = file.crop(1, 10, 20, 16, 24, slice(1, 2))
    assert torch.equal(window.degraded, file.crop(1, 0, 0, 54, 96).degraded[1:, :, 10:26, 20:44])


def test_recipes_differ_and_leave_one_family_for_tests():
    recipes = [street_recipe(seed) for seed in range(110, 150)]
    assert {r.street.family for r in recipes} == {"urban", "suburban"}
    assert len({(r.every, r.steps, r.max_gaussians, r.exposure_drift > 0) for r in recipes}) > 10
    assert {r.kind for r in recipes} == set(MIX)
    for r in recipes:
        assert (r.every > 1) == (r.kind == "sparse") and (r.steps < 400) == (
            r.kind == "under-fitted"
        )


def test_clips_are_neighbouring_frames_at_every_offset():
    recipe = replace(tiny_recipe(1), kind="lateral")
    street = build_street(recipe.street)
    path = drive(street, 12, (32, 18))
    clips = draw_clips(street, recipe, len(OFFSETS), np.random.default_rng(0))
    aside = []
    for clip in clips:
        assert len(clip) == 2 and clip[1].time - clip[0].time == pytest.approx(0.1)
        distances = [float((clip[0].position - c.position).norm()) for c in path.cameras]
        aside.append(round(min(distances), 1))
    assert sorted(aside) == pytest.approx(sorted(abs(o) for o in OFFSETS), abs=0.15)


def test_clips_across_look_where_no_recording_camera_did():
    recipe = replace(tiny_recipe(1), kind="cross-camera")
    street = build_street(recipe.street)
    forward = drive(street, 12, (32, 18)).cameras[5].camtoworld[:3, 2]
    clips = draw_clips(street, recipe, 6, np.random.default_rng(0))
    turned = [float(clip[0].camtoworld[:3, 2] @ forward) for clip in clips]
    assert turned == pytest.approx([0.7071] * 6, abs=0.1)
    assert len({clip[0].name for clip in clips}) == 2


@pytest.mark.parametrize("quadrant, rows, columns", [(0, slice(0, 9), slice(0, 16)),
                                                     (3, slice(9, 18), slice(16, 32))])  # fmt: skip
def test_a_missing_quadrant_is_neither_learned_nor_warped(quadrant, rows, columns):
    street = build_street(tiny_recipe(1).street)
    capture = record(street, drive(street, 2, (32, 18)), RecordingConfig(num_points=50))
    for frame in without_quadrant(capture, quadrant).frames:
        mask = frame.mask((32, 18))
        assert bool(mask[rows, columns].all()) and int(mask.sum()) == 9 * 16


def test_a_damaged_cache_is_named(cache, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(cache.read_bytes()[:-10])
    with pytest.raises(TrainingError, match="delete it"):
        PairFile(cut)


def test_fitting_learns_to_go_beyond_the_belief(made_up):
    fitting = Fitting([made_up], TINY)
    gains = [progress.gain for progress in fitting.run()]
    assert gains[0] == pytest.approx(0, abs=0.01)
    assert np.mean(gains[-5:]) > 1.0
    reprojection, refiner = held_out_gain(fitting.averaged, made_up)
    assert refiner > reprojection + 0.5


def test_a_resumed_run_is_the_run_that_was_not_interrupted(made_up, tmp_path):
    config = replace(TINY, steps=8)
    whole, first = Fitting([made_up], config), Fitting([made_up], config)
    for _ in whole.run():
        pass
    run = first.run()
    for _ in range(3):
        next(run)
    first.save(tmp_path / "c.safetensors")
    second = Fitting([made_up], config)
    second.resume(tmp_path / "c.safetensors")
    assert second.step == 3 and [p.step for p in second.run()] == [4, 5, 6, 7, 8]
    for name, value in whole.averaged.state_dict().items():
        assert torch.equal(second.averaged.state_dict()[name], value), name


def test_attention_over_time_learns_last_and_alone(flickering, tmp_path):
    """From the averaged weights of the first stage, which stay; an interrupted second stage goes on."""
    config = replace(TINY, steps=10, temporal_share=0.4, frames=3, clip_crop=(24, 32))
    first, second = Fitting([flickering], config), Fitting([flickering], config)
    assert first.alone_steps == 6
    fresh = {k: v.clone() for k, v in first.network.temporal.state_dict().items()}
    run = first.run()
    for _ in range(6):
        next(run)
    for name, value in first.network.temporal.state_dict().items():
        assert torch.equal(value, fresh[name]), name
    alone = {k: v.clone() for k, v in first.averaged.alone_weights().items()}
    next(run)
    first.save(tmp_path / "c.safetensors")
    second.resume(tmp_path / "c.safetensors")
    for one in (run, second.run()):
        for _ in one:
            pass
    for network in (first.network, first.averaged):
        for name, value in network.alone_weights().items():
            assert torch.allclose(value, alone[name], atol=1e-6), name
    assert float(first.network.temporal.amount.weight.detach().abs().max()) > 0
    for name, value in first.averaged.state_dict().items():
        assert torch.equal(second.averaged.state_dict()[name], value), name


def test_attention_over_time_learns_to_steady(flickering):
    """Frames whose brightness jumps around the truth become steadier and truer than each alone."""
    config = replace(TINY, steps=30, temporal_share=1.0, rate=1e-2, clip_crop=(36, 48), frames=6)
    fitting = Fitting([flickering], config)
    for _ in fitting.run():
        pass
    pair = flickering.whole(0)
    degraded = pair.degraded.float()
    clip = View(*(part[None] for part in pair.view))
    network = fitting.averaged
    steady = torch.cat([r.rgb for r in refined_clip(network, degraded, pair.view)]).detach()
    alone = network(degraded).rgb.detach()
    before, after = (
        float(flicker(x[None], pair.depth.float()[None], clip)) for x in (alone, steady)
    )
    assert after < 0.8 * before
    assert float((steady - pair.truth).square().mean()) < float(
        (alone - pair.truth).square().mean()
    )
    gain = held_out_gain(network, flickering)
    assert gain[1] > gain[0] + 0.2


@pytest.mark.parametrize("mirrored", [False, True])
def test_flicker_is_the_warp_error_of_the_metric(mirrored):
    view, colors, depth = wall_views(3, (48, 36))
    depth = depth.clone()
    depth[:, :5] = 0.0
    cameras = [wall_camera(float(t), 1.0, (48, 36), 0.0) for t in range(3)]
    noisy = (colors + 0.1 * torch.rand(colors.shape)).clamp(0, 1)
    images = noisy.permute(0, 2, 3, 1)
    flows = [
        flow_from_depth(depth[t], cameras[t], cameras[t + 1], depth[t + 1], tolerance=0.05)
        for t in range(2)
    ]
    expected = [warp_error(images[t], images[t + 1], flow) for t, flow in enumerate(flows)]
    weights = [flow.valid.sum() for flow in flows]
    mean = sum(float(w) * e.l1 for w, e in zip(weights, expected, strict=True)) / float(
        sum(weights)
    )
    shown = noisy
    if mirrored:
        view = View(mirror(48) @ view.intrinsics, view.camtoworld)
        shown, depth = noisy.flip(-1), depth.flip(-1)
    clip = View(*(part[None] for part in view))
    assert float(flicker(shown[None], depth[None], clip)) == pytest.approx(mean, rel=1e-3)


def test_crops_keep_their_cameras(flickering):
    """A pixel of a crop looks along the ray of the pixel of the whole."""
    whole, part = flickering.whole(0), flickering.crop(0, 5, 7, 16, 24, slice(2, 4))
    assert torch.equal(part.view.camtoworld, whole.view.camtoworld[2:4])
    assert torch.equal(part.depth, whole.depth[2:4, 5:21, 7:31])
    point = torch.tensor([[1.0], [2.0], [9.0]]).double()
    moved = whole.view.intrinsics[2:4] @ point - part.view.intrinsics @ point
    assert torch.allclose(moved[..., 0] / 9, torch.tensor([[7.0, 5.0, 0.0]] * 2).double())


def test_a_checkpoint_of_other_settings_or_damaged_is_refused(made_up, tmp_path):
    path = tmp_path / "c.safetensors"
    Fitting([made_up], TINY).save(path)
    with pytest.raises(TrainingError, match="other settings"):
        Fitting([made_up], replace(TINY, rate=1e-4)).resume(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TrainingError, match="cannot be read"):
        Fitting([made_up], TINY).resume(path)


def test_training_may_begin_with_learned_weights(made_up):
    first, second = Fitting([made_up], TINY), Fitting([made_up], replace(TINY, seed=5))
    assert not torch.equal(first.network.stem.weight, second.network.stem.weight)
    second.start_from(first.averaged.state_dict())
    assert torch.equal(first.network.stem.weight, second.network.stem.weight)
    next(second.run())
    with pytest.raises(TrainingError, match="at step 1"):
        second.start_from(first.averaged.state_dict())


def test_without_pairs_nothing_is_trained():
    with pytest.raises(TrainingError, match="at least one street"):
        Fitting([], TINY)


def test_variations_keep_pair_and_truth_together(made_up):
    pair = made_up.crop(0, 0, 0, 48, 64)
    degraded, truth = pair.degraded.float(), pair.truth.float()
    degraded[:, FUSED] = truth
    before = degraded[:, EIG].clone()
    changed, moved, _ = vary(degraded.clone(), truth.clone(), np.random.default_rng(2))
    assert torch.allclose(changed[:, FUSED], moved, atol=1e-6)
    assert not torch.allclose(changed[:, FUSED], truth)
    assert torch.allclose(changed[:, EIG].sort(-1).values, before.sort(-1).values)


def test_the_command_trains_and_goes_on(cache, tmp_path, monkeypatch, capsys):
    from faithfusion_studio.cli import train
    from faithfusion_studio.repair import load_refiner

    monkeypatch.setattr(train, "street_recipe", tiny_recipe)
    short = replace(TINY, steps=6, temporal_share=0.5, clip_crop=(32, 48))
    presets = {"S": short, "M": replace(short, size="M")}
    monkeypatch.setattr(train, "PRESETS", presets)
    out = tmp_path / "w.safetensors"
    shutil.copy(cache, tmp_path)
    words = ["train-refiner", str(out), "--seeds", "111:112", "--cache", str(tmp_path)]
    assert cli.main(words) == 0
    assert "6 steps on 6 pairs of 1 streets" in capsys.readouterr().out
    first = load_refiner(out).state_dict()
    assert cli.main([*words, "--size", "M", "--start", str(out)]) == 2
    assert "give their --size" in capsys.readouterr().err
    assert cli.main(words) == 0
    assert "going on after step 6" in capsys.readouterr().err
    for name, value in load_refiner(out).state_dict().items():
        assert torch.equal(value, first[name])


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["w.safetensors", "--seeds", "390:410"], "are for training"),
        (["w.safetensors", "--test", "101:103"], "are for training"),
        (["w.safetensors", "--seeds", "5"], "expected A:B"),
        (["w.pt"], "ending in .safetensors"),
        (["w.safetensors", "--steps", "0"], "--steps"),
        (["w.safetensors", "--temporal-share", "1.5"], "expected 0 to 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train-refiner", *words, "--cache", "c"]) == 2
    assert sentence in capsys.readouterr().err
