"""Clips are compared with their truth: nearness, flicker, and whether confidence tells error."""

import math

import pytest
import torch
from wall_world import wall_batch, wall_view

from faithfusion_studio.repair.gated import repair_batch
from faithfusion_studio.repair.refiner import RefinerRepairer
from faithfusion_studio.repair.reprojection import ReprojectionRepairer
from faithfusion_studio.synthetic.street import StreetConfig, build_street
from faithfusion_studio.training import evaluation
from faithfusion_studio.training.evaluation import (
    SharedReprojection,
    clip_table,
    compare_clip,
    confidence_table,
)


@pytest.fixture(scope="module")
def row():
    batch = wall_batch(frames=3)
    views = [wall_view(camera) for camera in batch.cameras]
    truth, depths = (torch.stack(part) for part in zip(*views, strict=True))
    shared = SharedReprojection()
    engines = [shared, RefinerRepairer(reprojection=shared)]
    return compare_clip(batch, truth, depths, engines, scene="wall", offset=1.0, first=0)


def test_the_render_is_unchanged_and_the_truth_is_perfect(row):
    render, truth = row.scores["render"], row.scores["truth"]
    assert render.good_change == render.bad_change == 0 and render.confidence_count == ()
    assert truth.psnr == math.inf and truth.warp < 0.01 < render.warp


def test_repairs_come_nearer_flicker_less_and_say_where_they_may_err(row):
    render = row.scores["render"]
    for name in ("reprojection", "refiner"):
        scores = row.scores[name]
        assert scores.psnr_ucr > render.psnr_ucr + 3 and scores.bad_change > 3
        assert scores.warp < render.warp and scores.seconds > 0
        assert sum(scores.confidence_count) > 500 and len(scores.confidence_error) == 4


def test_a_shared_reprojection_is_made_once_and_is_the_same():
    batch, other = wall_batch(frames=2), wall_batch(frames=2, seed=1)
    shared = SharedReprojection()
    first = list(shared.repair(batch))
    assert list(shared.repair(batch))[0] is first[0]
    assert list(shared.repair(other))[0] is not first[0]
    assert torch.equal(
        repair_batch(shared, batch).rgb, repair_batch(ReprojectionRepairer(), batch).rgb
    )


def test_tables_have_a_row_per_engine(row, monkeypatch):
    lines = clip_table([row, row])
    assert [line.split(" | ")[1] for line in lines[2:]] == list(row.scores)
    assert lines[2].startswith("| +1 m | render | ")
    lines = confidence_table([row])
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| reprojection", "| refiner"]
    shares = [int(part.split("%)")[0]) for part in lines[2].split("(")[1:]]
    assert sum(shares) == pytest.approx(100, abs=2)


def test_without_lpips_weights_there_is_no_lpips(monkeypatch):
    monkeypatch.setattr(evaluation, "missing_weights", lambda net: "not here")
    batch = wall_batch(frames=1)
    truth, depth = wall_view(batch.cameras[0])
    row = compare_clip(batch, truth[None], depth[None], [], scene="wall", offset=1.0, first=0)
    assert math.isnan(row.scores["render"].lpips) and math.isnan(row.scores["render"].warp)
    assert " - |" in clip_table([row])[2]


def test_engines_are_compared_on_clips_of_a_street(tmp_path, monkeypatch):
    street = StreetConfig(seed=400, length=12.0, sight=20.0, ambient_rays=1)
    tiny = build_street(street)
    monkeypatch.setattr(evaluation, "build_street", lambda config: tiny)
    for name, value in [("FRAMES", 12), ("SIZE", (96, 54)), ("STEPS", 8), ("GAUSSIANS", 500)]:
        monkeypatch.setattr(evaluation, f"TEST_{name}", value)
    engines = [ReprojectionRepairer()]
    rows = list(
        evaluation.compare_on_street(
            400, "urban", engines, tmp_path, firsts=[5], length=2, offsets=[1.0, -2.0]
        )
    )
    assert [(row.scene, row.offset) for row in rows] == [("urban 400", 1.0), ("urban 400", -2.0)]
    for row in rows:
        assert list(row.scores) == ["render", "reprojection", "truth"] and row.ucr_share > 0
        assert row.scores["reprojection"].psnr > row.scores["render"].psnr > 5
        assert 0 < row.scores["truth"].warp < 0.1
    assert (tmp_path / "urban-400.ckpt").exists()
