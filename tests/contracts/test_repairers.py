"""What every repair engine must keep, whatever it does inside."""

from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_engine
from wall_world import wall_batch, wall_view

from faithfusion_studio.repair.base import PixelProvenance, RepairBatch, RepairBudget, RepairError
from faithfusion_studio.repair.gate import GateConfig
from faithfusion_studio.repair.gated import repair_batch, repair_frames
from faithfusion_studio.repair.registry import REPAIRERS, create_repairer

SIZES = [(64, 36), (53, 31)]
"""Width and height; the second is odd in both."""


LARGE = {"difix", "eigent-vace", "eigent-cogvideox"}
"""Engines with weights that are not ours: here with tiny random ones in the published layout."""
OPEN_GATE = GateConfig(drift_limit=9.0)
"""Random weights are far off everywhere; this lets their frames through, gated as always."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """`large(name)`: a tiny engine, made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = tiny_engine(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture(params=sorted(REPAIRERS))
def repairer(request, large):
    return large(request.param) if request.param in LARGE else create_repairer(request.param)


def gated(repairer, batch):
    return repair_batch(repairer, batch, OPEN_GATE if repairer.name in LARGE else None)


def need_real_weights(repairer):
    if repairer.name in LARGE:
        pytest.skip("random weights repair nothing")


@pytest.fixture(params=SIZES, ids=["even", "odd"])
def batch(request) -> RepairBatch:
    return wall_batch(request.param)


def test_frames_keep_their_number_size_and_range(repairer, batch):
    result = gated(repairer, batch)
    assert result.rgb.shape == batch.renders.shape
    assert result.confidence.shape == result.pixel_provenance.shape == batch.ucr.shape
    assert float(result.rgb.min()) >= 0 and float(result.rgb.max()) <= 1
    assert float(result.confidence.min()) >= 0 and float(result.confidence.max()) <= 1
    assert set(result.pixel_provenance.unique().tolist()) <= {int(p) for p in PixelProvenance}
    assert len(result.rejected) == len(batch.cameras)
    assert result.timings["total"] > 0


def test_hpr_pixels_come_back_untouched(repairer, batch):
    result = gated(repairer, batch)
    assert torch.equal(result.rgb[~batch.ucr], batch.renders[~batch.ucr])
    assert int(result.pixel_provenance[~batch.ucr].max()) == int(PixelProvenance.RENDER)


def test_repair_changes_under_constrained_pixels_for_the_better(repairer, batch):
    need_real_weights(repairer)
    result = gated(repairer, batch)
    truth = torch.stack([wall_view(camera)[0] for camera in batch.cameras])
    changed = (result.rgb != batch.renders).any(-1)
    before = (batch.renders - truth)[changed].abs().mean()
    after = (result.rgb - truth)[changed].abs().mean()
    assert float(changed[batch.ucr].float().mean()) > 0.5
    assert float(after) < 0.5 * float(before)
    assert result.rejected == (None, None)


def test_changed_pixels_say_where_they_come_from(repairer, batch):
    result = gated(repairer, batch)
    changed = (result.rgb != batch.renders).any(-1)
    assert float(changed[batch.ucr].float().mean()) > 0.5
    assert bool((result.pixel_provenance[changed] != int(PixelProvenance.RENDER)).all())


def test_the_same_seed_gives_the_same_frames(repairer, batch):
    first, second = gated(repairer, batch), gated(repairer, batch)
    assert torch.equal(first.rgb, second.rgb)
    assert torch.equal(first.confidence, second.confidence)


def test_a_batch_without_ucr_returns_its_renders(repairer, batch):
    batch = replace(batch, ucr=torch.zeros_like(batch.ucr))
    result = gated(repairer, batch)
    assert torch.equal(result.rgb, batch.renders)
    assert int(result.pixel_provenance.max()) == int(PixelProvenance.RENDER)


def test_a_batch_of_ucr_only_is_finite(repairer, batch):
    batch = replace(
        batch,
        ucr=torch.ones_like(batch.ucr),
        coverage=torch.zeros_like(batch.coverage),
        alphas=torch.zeros_like(batch.alphas),
        depths=torch.zeros_like(batch.depths),
        calibrated_eig=torch.ones_like(batch.calibrated_eig),
    )
    result = gated(repairer, batch)
    assert bool(torch.isfinite(result.rgb).all()) and bool(torch.isfinite(result.confidence).all())
    assert result.depth is None or bool(torch.isfinite(result.depth).all())


def test_one_frame_is_a_batch(repairer):
    assert gated(repairer, wall_batch(frames=1)).rgb.shape[0] == 1


def test_iteration_can_stop_between_frames(repairer):
    frames = repair_frames(repairer, wall_batch(frames=3), OPEN_GATE)
    first = next(frames)
    frames.close()
    assert torch.equal(first.rgb, repair_batch(repairer, wall_batch(frames=3), OPEN_GATE).rgb[0])
    with pytest.raises(StopIteration):
        next(frames)


def test_without_references_the_render_stays_and_is_not_believed(repairer, batch):
    if not repairer.info.references or repairer.info.needs_weights:
        pytest.skip(f"{repairer.name} can work without references")
    batch = replace(batch, references=())
    result = gated(repairer, batch)
    assert torch.equal(result.rgb, batch.renders)
    assert float(result.confidence[batch.ucr].max()) == 0
    assert result.notes


def test_moving_things_of_another_time_leave_no_trace(repairer, batch):
    need_real_weights(repairer)
    marked = []
    for reference in batch.references:
        mask = torch.zeros(reference.depth.shape, dtype=torch.bool)
        mask[:, mask.shape[1] // 2 :] = True
        image = torch.where(mask[..., None], torch.tensor([1.0, 0.0, 0.0]), reference.image)
        camera = replace(reference.camera, time=reference.camera.time + 100)
        marked.append(replace(reference, image=image, dynamic_mask=mask, camera=camera))
    result = gated(repairer, replace(batch, references=tuple(marked)))
    redness = result.rgb[..., 0] - result.rgb[..., 1:].amax(-1)
    assert float(redness.max()) < 0.75
    unmasked = [replace(reference, dynamic_mask=None) for reference in marked]
    result = gated(repairer, replace(batch, references=tuple(unmasked)))
    redness = result.rgb[..., 0] - result.rgb[..., 1:].amax(-1)
    assert float(redness.max()) > 0.85


@pytest.mark.parametrize("size", [(64, 36), (53, 31)], ids=["even", "odd"])
@pytest.mark.parametrize("everywhere", [False, True], ids=["all HPR", "all UCR"])
def test_one_frame_of_either_kind_alone(repairer, size, everywhere):
    """T = 1, odd sizes and a picture of one region only, together."""
    one = wall_batch(size, frames=1)
    one = replace(one, ucr=torch.full_like(one.ucr, everywhere))
    result = gated(repairer, one)
    assert result.rgb.shape == one.renders.shape and bool(torch.isfinite(result.rgb).all())
    if not everywhere:
        assert torch.equal(result.rgb, one.renders)


def test_a_frame_that_drifts_is_rejected_and_stays_the_render(repairer, batch):
    """With a limit below any difference every engine drifts, and the whole frame is refused."""
    result = repair_batch(repairer, batch, GateConfig(drift_limit=-1.0))
    assert all(reason and "was rejected" in reason for reason in result.rejected)
    assert torch.equal(result.rgb, batch.renders)
    assert float(result.confidence[batch.ucr].max()) == 0
    assert int(result.pixel_provenance.max()) == int(PixelProvenance.RENDER)


def test_strength_is_the_share_of_the_repair_that_shows(repairer, batch):
    config = OPEN_GATE if repairer.name in LARGE else GateConfig()
    whole = repair_batch(repairer, batch, config)
    half = repair_batch(repairer, batch, replace(config, strength=0.5))
    nothing = repair_batch(repairer, batch, replace(config, strength=0.0))
    middle = torch.lerp(batch.renders, whole.rgb, 0.5)
    assert torch.allclose(half.rgb, middle, atol=1e-5)
    assert torch.equal(nothing.rgb, batch.renders)


def test_the_estimate_grows_with_the_work_and_the_budget_refuses(repairer):
    small = repairer.estimate_seconds(1, 90, 160)
    assert 0 < small < repairer.estimate_seconds(2, 180, 320)
    batch = replace(wall_batch(), budget=RepairBudget(seconds=1e-9))
    with pytest.raises(RepairError, match="more than the 0 s allowed"):
        repair_batch(repairer, batch)


def test_an_engine_says_what_it_is(repairer):
    assert repairer.name in REPAIRERS
    assert repairer.info.title and repairer.info.licence
    assert repairer.info.summary.endswith(".")


def test_an_unknown_engine_names_the_known_ones():
    with pytest.raises(RepairError, match="choose one of: .*reprojection"):
        create_repairer("magic")
