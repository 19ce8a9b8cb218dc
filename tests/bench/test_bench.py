"""What the benchmarks report: their keys, what was counted, and the verdicts; never how fast it was."""

import json
import math
from dataclasses import replace

import pytest
import torch

from faithfusion_studio.bench import BenchConfig, BenchError, Report, Timing, configure, run_bench
from faithfusion_studio.bench.figures import ANYWHERE, FIGURES, TARGETS, describe_keys, judge
from faithfusion_studio.bench.measuring import interleave
from faithfusion_studio.bench.rendering import frame_call
from faithfusion_studio.bench.street import bench_camera, bench_scene, road_depth
from faithfusion_studio.bench.tiled_torch import torch_blend
from faithfusion_studio.bench.topics import TOPICS
from faithfusion_studio.render.views import ViewOptions, rasterize_view

SMALL = BenchConfig(gaussians=600, size=(72, 44), repeats=2)


def test_the_generated_street_is_seeded_and_has_the_asked_size():
    first, again, other = (bench_scene(600, seed).background for seed in (0, 0, 1))
    assert len(first) == 600
    assert torch.equal(first.means, again.means)
    assert not torch.equal(first.means, other.means)


def test_the_generated_street_has_the_statistics_its_targets_were_set_for():
    meta = frame_call(bench_scene(100_000).background, bench_camera((160, 90)))(2)
    _, pairs = torch_blend(meta)
    assert 0.58 < meta.tiles.frames[0].visible / 100_000 < 0.64
    assert 52 < pairs / (160 * 90) < 64


def test_the_torch_blend_draws_the_same_picture():
    scene, camera = bench_scene(600), bench_camera(SMALL.size)
    view = rasterize_view(scene, camera, ViewOptions(sky=False))
    assert float(view.alpha.mean()) > 0.3
    torch.testing.assert_close(torch_blend(view.meta)[0], view.rgb, atol=2e-4, rtol=0)


def test_the_road_is_where_the_ground_was_generated():
    depth = road_depth(bench_camera((64, 48)))
    assert float(depth[:20].max()) == 0
    below = float(depth[-1, 32])
    assert below == pytest.approx(1.6 / math.tan(math.radians(35) * 0.75 + 0.02), rel=0.05)


def test_calls_are_timed_in_turns_after_a_warm_up():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abs"}
    t = interleave(calls, 3, fewer={"s": 2})
    assert "".join(order) == "ab" + "abs" * 2 + "ab"
    assert [len(row.ms) for row in t.rows] == [3, 3, 2]
    assert t.ratio("a", "a") == 1
    with pytest.raises(StopIteration):
        t["c"]


def test_a_ratio_is_taken_within_each_repeat():
    t = replace(
        interleave({"a": int, "b": int}, 1),
        rows=(Timing("a", (2.0, 20.0, 3.0), (1.0,) * 3), Timing("b", (1.0, 10.0, 3.0), (2.0,) * 3)),
    )
    assert t.ratio("a", "b") == 2
    assert t.cpu_ratio("a", "b") == 0.5


@pytest.fixture(scope="module", params=["raster", "eig", "train"])
def report(request):
    return run_bench(request.param, SMALL)


def test_a_report_has_exactly_the_documented_keys_with_finite_values(report):
    found = report.to_json()
    for key in FIGURES[report.topic]:
        value = found[key]
        assert value is None or (isinstance(value, float) and math.isfinite(value) and value > 0)
    rest = [
        "topic",
        "targets",
        "rows",
        "counts",
        "table",
        "config",
        "machine",
        "versions",
        "protocol",
        "notes",
    ]
    assert set(found) == {*FIGURES[report.topic], *rest}
    assert {"cpu", "cores", "load", "instruction_set"} <= set(found["machine"])
    assert {"faithfusion_studio", "torch", "python"} <= set(found["versions"])
    for row in found["rows"]:
        assert 0 < row["min_ms"] <= row["ms"] <= row["max_ms"]
    assert "interleaved" in found["protocol"]


def test_the_ratios_of_a_report_follow_from_its_rows(report):
    rows = {row.name: row for row in report.rows}
    figures = report.figures
    if report.topic == "raster":
        assert figures["frame_ms"] == rows["frame, 2 threads"].median
        one, two = rows["blend pass, 1 thread"].ms, rows["blend pass, 2 threads"].ms
        ratios = [a / b for a, b in zip(one, two, strict=True)]
        assert min(ratios) <= figures["threads_speedup"] <= max(ratios)
        assert figures["torch_blend_ratio"] > 1
        assert report.counts["blended_per_pixel"] > 1
    if report.topic == "eig":
        assert figures["max_rel_error_vs_bruteforce"] < 1e-4
        assert min(figures["diag_over_blend"], figures["block_over_blend"]) > 1
    if report.topic == "train":
        assert figures["steps_per_s"] == pytest.approx(1000 / figures["step_ms"])
        assert [figures[k] for k in ("peer", "peer_steps_per_s", "ratio")] == [None] * 3


def test_a_report_is_written_as_json_markdown_and_a_plot(tmp_path, report):
    files = report.write(tmp_path)
    assert [f.name for f in files] == [f"bench_{report.topic}{s}" for s in (".json", ".md", ".png")]
    written = json.loads(files[0].read_text())
    assert written["rows"] == report.to_json()["rows"]
    markdown = files[1].read_text()
    assert all(f"| {row.name} |" in markdown for row in report.rows)
    assert all(f"| {key} |" in markdown for key in FIGURES[report.topic])
    assert "Machine: cpu" in markdown
    assert files[2].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_targets_name_known_figures_and_are_no_easier_than_their_floor():
    for target in TARGETS:
        lower = FIGURES[target.topic][target.figure].better == "lower"
        assert target.goal <= target.floor if lower else target.goal >= target.floor
    known = {key for figures in FIGURES.values() for key in figures}
    assert set(ANYWHERE) <= known
    assert set(TOPICS) <= set(FIGURES)


@pytest.mark.parametrize(
    ("frame", "speedup", "expected"),
    [
        (36.0, 1.9, ["meets goal", "meets goal"]),
        (50.0, 1.6, ["meets floor", "meets floor"]),
        (50.1, 1.59, ["MISSES FLOOR", "MISSES FLOOR"]),
        (None, None, ["not measured", "not measured"]),
    ],
)
def test_a_figure_is_judged_by_goal_and_floor(frame, speedup, expected):
    figures = dict.fromkeys(FIGURES["raster"], None)
    figures |= {"frame_ms": frame, "threads_speedup": speedup}
    found = {j.figure: j for j in judge("raster", figures, 500_000, (640, 360), 2)}
    assert [found["frame_ms"].verdict, found["threads_speedup"].verdict] == expected
    assert found["view_ms"].verdict is None


def test_targets_hold_only_for_their_protocol():
    figures = dict.fromkeys(FIGURES["raster"], 1e9)
    at_size = [(500_000, (640, 360), 1), (499_999, (640, 360), 2), (500_000, (640, 361), 2)]
    for where in at_size:
        found = {j.figure: j.verdict for j in judge("raster", figures, *where)}
        assert found["frame_ms"] == found["gradient_step_ms"] == "n/a at this size"
    at_100k = {j.figure: j for j in judge("raster", figures, 100_000, (640, 360), 2)}
    assert (at_100k["frame_ms"].verdict, at_100k["frame_ms"].floor) == ("MISSES FLOOR", 17)


def test_a_missed_floor_is_said_in_words():
    figures = dict.fromkeys(FIGURES["raster"], None) | {"frame_ms": 1e3}
    report = Report("raster", configure("raster"), figures)
    line = next(x for x in report.to_markdown().splitlines() if x.startswith("| frame_ms"))
    assert "MISSES FLOOR" in line
    assert report.to_json()["targets"][0]["verdict"] == "MISSES FLOOR"


def test_every_key_is_listed_for_the_help():
    text = describe_keys()
    assert all(key in text for figures in FIGURES.values() for key in figures)


def test_a_topic_has_a_full_and_a_quick_size():
    assert configure("raster").gaussians == 500_000
    assert configure("raster", quick=True).gaussians < 500_000
    assert configure("raster", quick=True, gaussians=5, size=None).gaussians == 5


def test_a_bench_that_measures_nothing_is_refused():
    with pytest.raises(BenchError, match="choose from raster, eig"):
        run_bench("speed", SMALL)
    with pytest.raises(BenchError, match="choose from raster, eig"):
        configure("speed")
    with pytest.raises(BenchError, match="at least one"):
        run_bench("raster", replace(SMALL, repeats=0))
