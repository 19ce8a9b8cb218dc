"""The methods of the uncertainty benchmark against independent small computations; the table end to end."""

import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studio"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))
import slow_raster  # noqa: E402
from street_scene import recorded_camera, street, with_true_photos  # noqa: E402

from faithfusion_studio.bench import configure, run_bench  # noqa: E402
from faithfusion_studio.bench.report import BenchError  # noqa: E402
from faithfusion_studio.bench.uncertainty.combination import combined, features, fit  # noqa: E402
from faithfusion_studio.bench.uncertainty.knowledge import Knowledge, Sight  # noqa: E402
from faithfusion_studio.bench.uncertainty.methods import (  # noqa: E402
    METHODS,
    SHARPNESS,
    freefix,
    splat,
)
from faithfusion_studio.bench.uncertainty.scoring import interval  # noqa: E402
from faithfusion_studio.bench.uncertainty.truth import recorded_scene  # noqa: E402
from faithfusion_studio.information.fisher import recorded_fisher  # noqa: E402
from faithfusion_studio.information.prior import FisherPrior  # noqa: E402
from faithfusion_studio.render.views import rasterize_view  # noqa: E402
from faithfusion_studio.sky import ConstantSky  # noqa: E402
from faithfusion_studio.transforms import SH_C0  # noqa: E402

COUNT = 60


@pytest.fixture(scope="module")
def known() -> Knowledge:
    scene = with_true_photos(street(COUNT, frames=3))
    scene = replace(scene, fisher=recorded_fisher(scene))
    darker = replace(scene, sky=ConstantSky(scene.sky.color - 0.2))
    return Knowledge(scene, lambda: [darker], seed=5)


@pytest.fixture(scope="module")
def sight(known) -> Sight:
    camera = recorded_camera(1)
    pose = camera.camtoworld.clone()
    pose[1, 3] += 1.0
    with torch.no_grad():
        return Sight(camera.moved(pose), rasterize_view(known.scene, camera.moved(pose)))


def weights(scene, camera) -> torch.Tensor:
    """[H, W, N] blending weights by the slow rasteriser in float64."""
    g = scene.background
    image, _ = slow_raster.rasterization(
        g.means.double(),
        g.quats.double(),
        g.scales.double(),
        g.opacities.double(),
        torch.eye(len(g), dtype=torch.float64),
        camera.viewmat[None],
        camera.K[None],
        camera.width,
        camera.height,
    )
    return image[0]


def run(name, known, sight):
    with torch.no_grad():
        return METHODS[name].predict(known, sight)


def test_splatted_values_are_sums_of_weights_and_the_void_is_worst(known, sight):
    values = torch.rand(COUNT)
    w = weights(known.scene, sight.camera)
    expected, alpha = w @ values.double(), w.sum(-1)
    found = splat(sight, values).double()
    top = (expected / alpha)[alpha > 0.5].max()
    torch.testing.assert_close(found, expected + (1 - alpha) * top, atol=2e-3, rtol=0)
    assert found.max() <= float(top) + 2e-3


def test_spread_along_the_ray_is_the_weighted_variance(known, sight):
    w = weights(known.scene, sight.camera)
    share = w / w.sum(-1, keepdim=True).clamp(min=1e-3)
    g = known.scene.background
    colors = (0.5 + SH_C0 * g.sh0[:, 0]).double()
    z = (g.means.double() @ sight.camera.viewmat[2, :3] + sight.camera.viewmat[2, 3]).double()
    found = run("ray_variance", known, sight)
    mean = share @ colors
    seen = w.sum(-1) > 0.5
    expected = ((share @ colors**2) - mean**2).mean(-1)
    torch.testing.assert_close(found.rank.double()[seen], expected[seen], atol=1e-4, rtol=0)
    depth = share @ z**2 - (share @ z) ** 2
    torch.testing.assert_close(found.depth_rank.double()[seen], depth[seen], atol=2e-2, rtol=1e-3)


def test_total_variance_adds_what_each_gaussian_leaves_open(known, sight):
    w = weights(known.scene, sight.camera)
    share = w / w.sum(-1, keepdim=True).clamp(min=1e-3)
    g, axis = known.scene.background, sight.camera.viewmat[2, :3]
    z = g.means.double() @ axis + sight.camera.viewmat[2, 3]
    blocks, prior = known.fisher.blocks.double(), FisherPrior().precision(g.scales).double()
    at = [0, 13, 25]  # diagonal of the packed upper triangle, rows of 13, 12, 11 entries
    within = (axis**2 / (blocks[:, at] + prior[:, :3])).sum(1) + g.scales.double()[:, 0] ** 2
    expected = share @ z**2 - (share @ z) ** 2 + share @ within
    found = run("total_variance", known, sight)
    seen = w.sum(-1) > 0.5
    torch.testing.assert_close(
        found.depth_rank.double()[seen], expected[seen], atol=2e-2, rtol=2e-3
    )


def test_fisher_rf_is_novel_over_known_colour_evidence(known, sight):
    # Without higher bands: V and H are sums of w^2 C0^2 / sigma^2, equal for the three channels.
    noise2 = known.fisher.noise_std**2
    novel = (weights(known.scene, sight.camera) ** 2).sum((0, 1)) * SH_C0**2 / noise2
    seen = sum((weights(known.scene, c) ** 2).sum((0, 1)) for c in known.cameras)
    seen = seen * SH_C0**2 / noise2
    prior = 1 / (FisherPrior().color / SH_C0) ** 2
    gain = (3 * novel / (seen + prior)).float()
    expected = splat(sight, gain)
    found = run("fisher_rf", known, sight).rank
    torch.testing.assert_close(found, expected, atol=2e-3 * float(expected.max()), rtol=0)


def test_freefix_and_pup_follow_their_formulas(known, sight):
    blocks = known.flat_fisher.blocks.numpy().astype(np.float64)
    full = np.zeros((COUNT, 13, 13))
    rows, columns = np.triu_indices(13)
    full[:, rows, columns] = full[:, columns, rows] = blocks
    evidence = full[:, range(10, 13), range(10, 13)].sum(1) * known.fisher.noise_std**2
    expected = splat(sight, torch.from_numpy(np.exp(-0.1 * evidence)).float())
    found = freefix(0.1)(known, sight).rank
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    chosen = [0, 1, 2, 6, 7, 8]
    unit = np.concatenate([np.ones((COUNT, 3)), 1 / known.scene.background.scales.numpy()], 1)
    six = (
        full[:, chosen][:, :, chosen] * unit[:, :, None] * unit[:, None] * known.fisher.noise_std**2
    )
    value = torch.tensor([-np.linalg.slogdet(m + 1e-6 * np.eye(6))[1] for m in six]).float()
    expected = splat(sight, value - value.min())
    torch.testing.assert_close(run("pup", known, sight).rank, expected, rtol=1e-3, atol=1e-2)


def test_view_counts_are_counted(known, sight):
    g = known.scene.background
    count, angled = torch.zeros(COUNT), torch.zeros(COUNT)
    here = torch.nn.functional.normalize(g.means - sight.camera.position.float(), dim=1)
    for row, camera in zip(known.seen, known.cameras, strict=True):
        reached = weights(known.scene, camera).amax((0, 1)) > 0
        assert (row | ~reached).all()  # whatever reached a pixel was seen
        there = torch.nn.functional.normalize(g.means - camera.position.float(), dim=1)
        count += row
        angled += row * torch.cos(torch.acos((here * there).sum(1).clamp(0, 1))) ** SHARPNESS
    torch.testing.assert_close(run("view_count", known, sight).rank, splat(sight, 1 / (1 + count)))
    found = run("angle_view_count", known, sight).rank
    torch.testing.assert_close(found, splat(sight, 1 / (1 + angled)), atol=1e-4, rtol=1e-3)


def test_the_nearest_camera_of_a_recorded_view_is_itself(known):
    camera = known.cameras[1]
    with torch.no_grad():
        own = Sight(camera, rasterize_view(known.scene, camera))
    rank = run("nearest_camera", known, own).rank
    assert float(rank.max()) < 1e-3
    pose = camera.camtoworld.clone()
    pose[0, 3] -= 4.0  # 4 m behind, so no recorded camera is as far from the middle of the picture
    with torch.no_grad():
        behind = Sight(camera.moved(pose), rasterize_view(known.scene, camera.moved(pose)))
    rank = run("nearest_camera", known, behind).rank
    y, x = behind.camera.height // 2, behind.camera.width // 2
    depth = float(behind.view.depth[y, x]) if float(behind.view.alpha[y, x]) > 0.1 else 200.0
    first = depth - 3.0  # the first recorded camera stands 3 m ahead, nearly on the axis
    assert float(rank[y, x]) == pytest.approx(math.log(depth / first), rel=0.1, abs=0.02)


def test_residual_of_separate_surfaces_is_their_own_mean(known, sight):
    # With photos that show the scene itself nothing is unexplained but rounding to 8 bits.
    assert float(known.residuals.quantile(0.9)) < (1 / 255) ** 2
    wrong = street(COUNT, frames=3)
    wrong = replace(wrong, fisher=recorded_fisher(wrong))
    found = Knowledge(wrong, list).residuals
    assert (found >= 0).all()
    # Its blended field is closer to the squared residuals than one number for all of them is.
    total, constant = 0.0, 0.0
    for camera, frame in zip(known.cameras, wrong.capture.frames, strict=True):
        with torch.no_grad():
            view = rasterize_view(wrong, camera)
        squared = (view.rgb.clamp(0, 1) - frame.image()).square().mean(-1)
        solid = view.alpha > 0.9
        field = splat(Sight(camera, view), found)
        total += float((field - squared)[solid].square().sum())
        constant += float((squared - squared[solid].mean())[solid].square().sum())
    assert total < 0.9 * constant


def test_the_gradient_of_a_ramp_is_its_slope(known, sight):
    ramp = torch.linspace(0, 1, sight.camera.width).expand(sight.camera.height, -1)
    view = replace(sight.view, rgb=torch.stack([ramp, 0 * ramp, 0 * ramp], -1))
    slope = METHODS["image_gradient"].predict(known, replace(sight, view=view)).rank
    torch.testing.assert_close(
        slope[:, 1:-1],
        torch.full_like(slope[:, 1:-1], 1 / (sight.camera.width - 1)),
        atol=1e-6,
        rtol=0,
    )


def test_an_ensemble_differs_where_its_members_do(known, sight):
    found = run("ensemble", known, sight)
    open_ = (1 - sight.view.alpha) * 0.2
    torch.testing.assert_close(found.rank, open_.square() / 2, atol=1e-3, rtol=1e-2)
    assert float(found.depth_rank.max()) == 0


def test_dropout_sees_nothing_in_the_sky_and_repeats_itself(known, sight):
    found, again = (run("dropout", known, sight).rank for _ in range(2))
    assert torch.equal(found, again)
    assert float(found[sight.view.alpha < 1e-6].max()) < 1e-12
    assert float(found.max()) > 1e-3


def test_every_method_gives_a_finite_map_of_the_view(known, sight):
    for name in METHODS:
        found = run(name, known, sight)
        assert found.rank.shape == sight.view.alpha.shape, name
        assert not found.rank.isnan().any(), name
        if found.variance is not None:
            assert float(found.variance.min()) > 0, name


def test_the_interval_draws_whole_scenes():
    mean, low, high = interval({"a": [1.0, 3.0], "b": [4.0], "c": [math.nan]})
    assert mean == 3.0 and 2.0 <= low < 3.0 < high <= 4.0
    assert math.isnan(interval({"a": [1.0]})[1])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("FF_STUDIO_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr("faithfusion_studio.bench.uncertainty.run.FRAMES", 12)
    config = configure(
        "uncertainty",
        quick=True,
        size=(80, 48),
        steps=4,
        scenes=2,
        gaussians=1500,
        members=1,
        views=1,
    )
    yield run_bench("uncertainty", config)
    patch.undo()


def test_the_table_has_every_method_on_every_block(report, tmp_path):
    rows = json.loads(json.dumps(report.to_json()))["rows"]
    names = {*METHODS, "oracle"}
    for block, offset in {"interpolation": 0, "1 m": 1, "3 m": 3, "6 m": 6}.items():
        found = [row for row in rows if row["block"] == block]
        assert {row["method"] for row in found} == names
        assert {row["offset_m"] for row in found} == {offset}
        assert found[0]["method"] == "oracle"
        assert found[0]["ause_l1"] == pytest.approx(0, abs=1e-9)
        assert all(row["scenes"] == 2 and row["views"] == 2 for row in found)
        (own,) = [row for row in found if row["method"] == "block"]
        assert own["against_block"] == 0 and 0 <= own["cov90"] <= 1 and own["nll"] is not None
        assert (own["ause_depth"] is None) == (block == "interpolation")
        assert own["cov90_calibrated"] is not None and own["ms"] > 0
        assert own["setup_s"] > 0  # the evidence is not free
    files = report.write(tmp_path)
    with files[-1].open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert all(file.stat().st_size > 500 for file in files)
    assert "### 3 m, 2 scene(s)" in report.to_markdown()


def test_a_recording_without_truth_is_refused_in_words(tmp_path):
    from faithfusion_studio.io import write_cameras_json

    write_cameras_json(street(COUNT, frames=2).capture, tmp_path)
    with pytest.raises(BenchError, match="no folder truth"):
        recorded_scene(tmp_path, views=1, scale=1.0)


def test_a_written_recording_brings_its_truth(tmp_path):
    from faithfusion_studio.synthetic import StreetConfig, build_street, drive, write_recording

    built = build_street(StreetConfig(seed=0))
    path = drive(built, 3, (64, 36))
    for _ in write_recording(tmp_path, built, path, (0.0, 2.0)):
        pass
    test = recorded_scene(tmp_path, views=2, scale=0.5)
    assert len(test.capture) == 3 and list(test.beside) == ["2 m"]
    (first, _) = test.beside["2 m"]
    assert first.rgb.shape == (18, 32, 3) and first.depth.shape == (18, 32)
    assert 0 < float(first.depth[first.depth > 0].min()) < 30


@pytest.mark.parametrize("nothing", [{"scenes": 0}, {"trainings": 0}, {"steps": 0}, {"scale": 0.0}])
def test_a_benchmark_of_nothing_is_refused_in_words(nothing):
    with pytest.raises(BenchError, match="at least one of each"):
        run_bench("uncertainty", configure("uncertainty", quick=True, **nothing))


def test_the_logistic_finds_the_weights_its_data_were_made_with():
    generator = torch.Generator().manual_seed(0)
    eig, gradient = torch.rand(40_000, generator=generator), torch.rand(40_000, generator=generator)
    known = features(eig, gradient)
    odds = 2.0 * known[:, 0] + 0.5 * known[:, 1] + 1.0
    wrong = torch.rand(40_000, generator=generator) < torch.sigmoid(odds)
    a, b = fit(known, wrong)
    assert a == pytest.approx(2.0, abs=0.1) and b == pytest.approx(0.5, abs=0.1)
    assert fit(known, torch.zeros(40_000, dtype=torch.bool)) == (0.0, 0.0)
    more = combined(torch.tensor([0.1, 0.2, 0.2]), torch.tensor([0.1, 0.1, 0.2]))
    assert more[0] < more[1] < more[2]
