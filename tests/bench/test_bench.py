import json
from dataclasses import replace

import pytest
import torch

from faithfusion_studio.bench import BenchConfig, BenchError, run_bench
from faithfusion_studio.bench.rendering import bench_camera, bench_scene, torch_blend
from faithfusion_studio.bench.report import interleave
from faithfusion_studio.render.views import ViewOptions, rasterize_view

SMALL = BenchConfig(gaussians=600, size=(72, 44), repeats=2)


def test_the_generated_street_is_seeded_and_has_the_asked_size():
    first, again, other = (bench_scene(replace(SMALL, seed=seed)).background for seed in (0, 0, 1))
    assert len(first) == 600
    assert torch.equal(first.means, again.means)
    assert not torch.equal(first.means, other.means)


def test_the_torch_blend_draws_the_same_picture():
    scene, camera = bench_scene(SMALL), bench_camera(SMALL)
    view = rasterize_view(scene, camera, ViewOptions(sky=False))
    assert float(view.alpha.mean()) > 0.3
    torch.testing.assert_close(torch_blend(view.meta), view.rgb, atol=2e-4, rtol=0)


def test_calls_are_timed_in_turns_after_a_warm_up():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timings, ratio = interleave(calls, 3)
    assert order == ["a", "b"] * 4
    assert [len(timing.ms) for timing in timings] == [3, 3]
    assert ratio("a", "a") == 1


@pytest.mark.parametrize("topic", ["raster", "eig"])
def test_a_report_is_json_and_markdown_with_its_protocol(tmp_path, topic):
    report = run_bench(topic, SMALL)
    assert all(value > 0 for value in report.ratios.values())
    written = json.loads(report.write(tmp_path)[0].read_text())
    assert written["ratios"] == pytest.approx(dict(report.ratios))
    assert "interleaved" in written["protocol"]
    markdown = (tmp_path / f"bench_{topic}.md").read_text()
    assert all(f"| {row.name} |" in markdown for row in report.rows)
    assert "Machine: cpu" in markdown


def test_a_bench_that_measures_nothing_is_refused():
    with pytest.raises(BenchError, match="choose from raster, eig"):
        run_bench("speed", SMALL)
    with pytest.raises(BenchError, match="at least one"):
        run_bench("raster", replace(SMALL, repeats=0))
