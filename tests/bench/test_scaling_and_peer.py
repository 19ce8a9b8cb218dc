"""Growth with N and pixels, and the race against another program, which is played by a script here."""

import math
import stat
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fusion"))

from worlds import tiny_capture, tiny_world, without_points  # noqa: E402

from faithfusion_studio.bench import BenchConfig, BenchError, run_bench
from faithfusion_studio.bench.scaling import NOTHING_WORSE, Point, _figures, slope
from faithfusion_studio.io import load_capture, save_scene, write_colmap

SCALE = BenchConfig(
    gaussians=400, size=(48, 32), repeats=1, counts=(400, 900), sizes=((48, 32), (64, 48))
)


def test_points_are_measured_along_both_axes_with_their_memory(tmp_path):
    report = run_bench("scale", SCALE)
    where = [(p["what"], p["n"], p["pixels"]) for p in report.table]
    kinds = ("open", "frame", "step")
    places = [(400, 48 * 32), (400, 64 * 48), (900, 48 * 32)]
    assert where == [(kind, *place) for place in places for kind in kinds]
    for point in report.table:
        assert 0 < point["ms"] < math.inf
        assert 50e6 < point["bytes"] < 4e9
    assert report.figures["open_and_render_4m_bytes"] is None
    report.write(tmp_path)
    assert "not measured" in (tmp_path / "bench_scale.md").read_text()


def _points(time_of, config):
    found = []
    for n in config.counts:
        found += [Point(w, n, 1536, 48, 32, time_of(n), 1000 + 7 * n) for w in ("frame", "step")]
    for width, height in config.sizes[1:]:
        for what in ("frame", "step"):
            pixels = width * height
            found.append(Point(what, config.gaussians, pixels, width, height, float(pixels), 1000))
    return found


def test_growth_is_compared_with_n_log_n():
    fine = _figures(_points(lambda n: n * math.log(n) ** 0.9, SCALE), SCALE)
    assert fine["growth"] == NOTHING_WORSE
    assert fine["frame_bytes_per_gaussian"] == pytest.approx(7)
    worse = _figures(_points(lambda n: float(n**1.5), SCALE), SCALE)
    assert worse["frame_exponent_n"] == pytest.approx(1.5)
    assert "frame_exponent_n, step_exponent_n" in worse["growth"]


def test_a_slope_needs_two_places():
    assert slope([10.0, 100.0], [3.0, 300.0]) == pytest.approx(2)
    assert slope([10.0, 10.0], [3.0, 4.0]) is None


def test_scale_without_places_is_refused():
    with pytest.raises(BenchError, match="at least one number"):
        run_bench("scale", BenchConfig(400, (48, 32), 1))


# ---------------------------------------------------------------------------------------- the race


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("race") / "recording"
    write_colmap(tiny_capture(frames=12), folder)
    return folder


def test_a_recording_written_for_the_peer_is_read_back_the_same(recording):
    wrote, read = tiny_capture(frames=12), load_capture(recording)
    assert len(read) == 12
    for a, b in zip(wrote.frames, read.frames, strict=True):
        torch.testing.assert_close(a.camera.camtoworld, b.camera.camtoworld, atol=1e-9, rtol=0)
        torch.testing.assert_close(a.camera.K, b.camera.K, atol=1e-9, rtol=0)
        assert torch.equal(a.image(), b.image())
    torch.testing.assert_close(wrote.points.xyz, read.points.xyz)
    assert torch.equal(wrote.points.rgb, read.points.rgb)


def test_a_recording_without_points_is_refused(tmp_path):
    with pytest.raises(BenchError, match="no 3D points"):
        write_colmap(without_points(tiny_capture(frames=12)), tmp_path / "r")
        run_bench(
            "train", BenchConfig(300, (48, 32), 1, peer=sys.executable, capture=str(tmp_path / "r"))
        )


def _program(folder: Path, body: str) -> str:
    path = folder / "splatter"
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


PEER = """
import shutil, sys, time
from pathlib import Path
words = sys.argv[1:]
def of(name): return words[words.index(name) + 1]
assert (Path(words[0]) / "sparse/0/images.bin").exists()
assert of("--downscale-factor") == "2" and of("--num-downscales") == "0" and "--keep-crs" in words
out, every = Path(of("-o")), int(of("--save-every"))
print("Using CPU", flush=True)
for step in range(1, int(of("-n")) + 1):
    time.sleep(0.02)
    if step % 5 == 0:
        print(f"Step {step}: 0.1 (3%)", flush=True)
    if step % every == 0:
        shutil.copy(SPLATS, out.with_name(f"splat_{step}.ply"))
"""


def test_both_trainers_run_on_the_same_frames(tmp_path, recording):
    splats = tmp_path / "splats.ply"
    save_scene(tiny_world(), splats)
    program = _program(tmp_path, f"SPLATS = {str(splats)!r}\n{PEER}")
    config = BenchConfig(300, (48, 32), 1, seconds=4.0, peer=program, capture=str(recording))
    report = run_bench("train", config)
    figures = report.figures
    assert figures["peer"] == "splatter"
    assert 5 < figures["peer_steps_per_s"] < 55
    assert figures["ratio"] == pytest.approx(figures["steps_per_s"] / figures["peer_steps_per_s"])
    assert report.counts == {"frames": 11.0, "points": 500.0}
    ours = [mark for mark in report.table if mark["who"] == "ours"]
    theirs = [mark for mark in report.table if mark["who"] == "peer"]
    assert ours and theirs
    for marks in (ours, theirs):
        assert [m["seconds"] for m in marks] == sorted(m["seconds"] for m in marks)
        assert [m["steps"] for m in marks] == sorted(m["steps"] for m in marks)
    # The peer's splats are the true ones, without the sky.
    assert all(8 < mark["psnr_holdout"] < 60 for mark in theirs)
    assert all(5 < mark["psnr_holdout"] < 60 for mark in ours)
    report.write(tmp_path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [("print('no images')", "no images"), ("raise SystemExit(3)", "did no steps")],
)
def test_a_peer_that_does_nothing_is_said(tmp_path, recording, body, reason):
    program = _program(tmp_path, body)
    config = BenchConfig(300, (48, 32), 1, seconds=1.0, peer=program, capture=str(recording))
    with pytest.raises(BenchError, match=reason):
        run_bench("train", config)


def test_a_peer_that_is_not_there_is_said(tmp_path):
    config = BenchConfig(300, (48, 32), 1, peer=str(tmp_path / "gone"))
    with pytest.raises(BenchError, match="not a program"):
        run_bench("train", config)
