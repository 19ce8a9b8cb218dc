"""The topic `fusion`: where things stand, what is measured, and how rows become a headline."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "fusion"))

from worlds import drive_camera, tiny_capture, tiny_world  # noqa: E402

from faithfusion_studio.bench import configure  # noqa: E402
from faithfusion_studio.bench.figures import FIGURES  # noqa: E402
from faithfusion_studio.bench.fusion.cases import _case  # noqa: E402
from faithfusion_studio.bench.fusion.chains import (  # noqa: E402
    BUDGET,
    FRAMES,
    GRID,
    PLANS,
    Chain,
    Chains,
    ChainScore,
    usable_engines,
)
from faithfusion_studio.bench.fusion.run import BEFORE, NUMBERS, headline, run_fusion, table  # noqa: E402
from faithfusion_studio.bench.fusion.scoring import Judges, Scorer  # noqa: E402
from faithfusion_studio.bench.fusion.tables import FusionReport  # noqa: E402
from faithfusion_studio.bench.report import BenchError  # noqa: E402
from faithfusion_studio.bench.uncertainty.truth import TrueView  # noqa: E402
from faithfusion_studio.fusion.schedule import FusionConfig  # noqa: E402
from faithfusion_studio.information import recorded_fisher  # noqa: E402
from faithfusion_studio.render.views import render_view  # noqa: E402
from faithfusion_studio.repair import RepairError  # noqa: E402

OFFSET = 1.0


@pytest.fixture(scope="module")
def truth():
    return tiny_world()


@pytest.fixture(scope="module")
def case(truth):
    """The true world with its left wall turned grey, and true views one metre to the left."""
    g = truth.background
    left = (g.means[:, 1] > 3.5)[:, None, None]
    damaged = replace(
        truth,
        background=replace(g, sh0=torch.where(left, 0.0, g.sh0)),
        capture=tiny_capture(),
        metadata={"reconstruction": {"scale": 1.0}},
    )
    scene = replace(damaged, fisher=recorded_fisher(damaged))
    views = []
    for index in (4, 6):
        camera = drive_camera(0.7 * index, y=OFFSET, time=index / 10)
        seen = render_view(truth, camera)
        views.append(TrueView(camera, seen.rgb, seen.depth))
    return _case("tiny", 0, scene, views)


@pytest.fixture(scope="module")
def scorer(case):
    return Scorer(case, Judges(), 0.4)


def test_offset_and_segment_follow_from_where_the_true_views_stand(case):
    assert case.offset == pytest.approx(OFFSET) and case.segment == (2, 9)
    following = [
        c.position - v.camera.position for c, v in zip(case.next_cameras, case.views, strict=True)
    ]
    for step in following:
        torch.testing.assert_close(step, torch.tensor([0.7, 0, 0], dtype=torch.float64))


def test_a_scene_left_alone_changes_nothing_and_the_truth_gains_in_both_halves(case, scorer, truth):
    same = scorer.score(case.scene)
    for name in ("bad_half_db", "good_half_db", "recorded_db", "blur_bad_db"):
        assert same[name] == 0.0
    best = scorer.score(replace(truth, capture=case.scene.capture))
    assert best["bad_half_db"] > 20 and best["good_half_db"] >= 0
    assert best["warp_error"] > 0 and math.isfinite(same["warp_error"])
    assert best["psnr"] > same["psnr"] and best["ssim"] > same["ssim"]
    assert math.isnan(best["lpips"]) and math.isnan(best["lane_iou"])
    assert 0 < scorer.ucr_share < 1


def test_chains_of_one_case_share_their_repairs(case, scorer, monkeypatch):
    from faithfusion_studio.fusion import parts

    repaired = []
    original = parts.repair

    def counted(scene, stage):
        repaired.append(stage.gated)
        return original(scene, stage)

    monkeypatch.setattr(parts, "repair", counted)
    base = FusionConfig(steps=2, psnr_every=1000, spawn=0)
    chains = Chains(case, scorer, base, lambda _text: None)
    scores = list(chains.grid("reprojection"))
    assert sorted(repaired) == [False, True]
    assert len({s.chain for s in scores}) == 9
    assert all(math.isfinite(s.values["bad_half_db"]) for s in scores)
    ungated = next(s for s in scores if s.chain.repair == "ungated")
    assert ungated.chain.group == GRID and ungated.values["seconds"] > 0
    frames = chains.frames("reprojection")
    assert frames.chain.group == FRAMES and math.isfinite(frames.values["psnr_ucr"])


def test_plans_take_equally_many_steps(case, scorer, monkeypatch):
    from faithfusion_studio.bench.fusion import chains as module

    short = {
        name: ("", replace(config, psnr_every=1000, spawn=0))
        for name, (_, config) in module.PRESETS.items()
    }
    monkeypatch.setattr(module, "PRESETS", short)
    monkeypatch.setattr(module, "preset", lambda name: short[name][1])
    chains = Chains(case, scorer, FusionConfig(pace=0.012), lambda _text: None)
    scores = list(chains.plans("reprojection"))
    assert [s.chain.plan for s in scores] == list(short)
    assert {s.chain.group for s in scores} == {BUDGET}
    steps = {s.chain.plan: s.values["steps"] for s in scores}
    assert all(abs(n - steps["default"]) <= 3 for n in steps.values()), steps


def rows_of(case):
    def one(chain, **values):
        return ChainScore(chain, case, {**dict.fromkeys(NUMBERS, 1.0), **values})

    return [
        one(Chain(BEFORE, "-", "-", "-", "-"), psnr_ucr=20.0, psnr_hpr=30.0),
        one(Chain(GRID, "reprojection", "gated", "eig"), bad_half_db=2.0, good_half_db=0.5),
        one(Chain(GRID, "reprojection", "ungated", "uniform"), bad_half_db=3.0, good_half_db=-2.0),
        one(Chain(PLANS, "reprojection", "gated", "eig", "default"), psnr_ucr=22.5, psnr_hpr=30.2),
        one(Chain(PLANS, "refiner", "gated", "eig", "default"), psnr_ucr=23.0, psnr_hpr=30.1),
    ]


def test_the_headline_is_that_of_the_default_plan(case, tmp_path):
    from faithfusion_studio.fusion.presets import preset

    assert preset("default").engine == "reprojection"
    rows = table(rows_of(case))
    found = headline(rows)
    assert set(found) == set(FIGURES["fusion"])
    assert found["refiner_over_reprojection_ucr_db"] == pytest.approx(0.5)
    assert found["ucr_db"] == pytest.approx(2.5) and found["hpr_db"] == pytest.approx(0.2)
    assert found["best_cell"] == "gated + eig"
    assert found["refiner_over_reprojection_frames_ucr_db"] is None
    config = configure("fusion", quick=True)
    report = FusionReport("fusion", config, found, counts={"trainings": 1.0}, table=tuple(rows))
    assert "### +1 m, plans, 1 scene(s)" in report.to_markdown()
    assert {path.suffix for path in report.write(tmp_path)} == {".json", ".md", ".png", ".csv"}


def test_wrong_configurations_are_one_sentence():
    with pytest.raises(BenchError, match="at least one of each"):
        run_fusion(configure("fusion", quick=True, steps=0))
    with pytest.raises(RepairError, match="choose one of"):
        run_fusion(configure("fusion", quick=True, engines=("magic",)))
    names, problems = usable_engines(())
    assert "reprojection" in names and all(p.startswith("engine ") for p in problems)
