import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import faithfusion_studio
from faithfusion_studio import cli
from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.cli import inputs
from faithfusion_studio.cli.console import Interruption, ProgressLine, duration, interruptible
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io import load_scene, save_scene, write_camera_path, write_cameras_json
from faithfusion_studio.render.views import render_view, to_uint8
from faithfusion_studio.scene import Capture, PointCloud, PosedImage, Scene
from faithfusion_studio.sky import ConstantSky
from faithfusion_studio.transforms import SH_C0, look_at, rgb_to_sh0

WIDTH, HEIGHT, FRAMES = 48, 32, 6


def wall_and_road() -> Gaussians:
    g = torch.Generator().manual_seed(3)
    n = 260
    means = torch.rand(n, 3, generator=g) * torch.tensor([16.0, 8, 0]) + torch.tensor([3.0, -4, 0])
    means[n // 2 :, 1] = 4.0
    means[n // 2 :, 2] = torch.rand(n - n // 2, generator=g) * 4
    return Gaussians(
        means=means,
        log_scales=torch.full((n, 3), -0.7),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        logit_opacities=torch.full((n,), 2.5),
        sh0=rgb_to_sh0(torch.rand(n, 1, 3, generator=g)),
        shN=torch.zeros(n, 0, 3),
        provenance=torch.zeros(n, dtype=torch.uint8),
    )


def make_scene(frames: int = FRAMES) -> Scene:
    K = torch.tensor([[30.0, 0, WIDTH / 2], [0, 30, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    cameras = []
    for i in range(frames):
        rows = [[0.6 * i, 0.0, 1.5], [0.6 * i + 5, 0.0, 1.3], [0.0, 0, 1]]
        pose = look_at(*torch.tensor(rows, dtype=torch.float64))
        cameras.append(Camera(pose, K, WIDTH, HEIGHT, i * 0.1, "front"))
    scene = Scene(wall_and_road(), sky=ConstantSky(torch.tensor([0.4, 0.6, 0.9])))
    images = []
    for i, camera in enumerate(cameras):
        picture = to_uint8(render_view(scene, camera).rgb).numpy()[:, :, ::-1]
        images.append(PosedImage(camera, cv2.imencode(".png", picture)[1].tobytes(), f"{i:06d}"))
    g = scene.background
    points = PointCloud(g.means, to_uint8(g.sh0 * SH_C0 + 0.5)[:, 0])
    path = trajectory_from_cameras(cameras)
    capture = Capture(tuple(images), path, points=points, source="a test")
    return replace(scene, capture=capture, metadata={"reconstruction": {"scale": 1.0}})


@pytest.fixture(scope="module")
def scene_path(tmp_path_factory) -> Path:
    """A small scene with its recording and its evidence."""
    from faithfusion_studio.information import recorded_fisher

    scene = make_scene()
    path = tmp_path_factory.mktemp("scene") / "scene.ckpt"
    save_scene(replace(scene, fisher=recorded_fisher(scene)), path)
    return path


@pytest.fixture
def run(capsys):
    """Run a command in this process; its one JSON object."""

    def call(*arguments) -> dict:
        assert cli.main([*map(str, arguments), "--json"]) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        return json.loads(out)

    return call


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; its one sentence."""

    def call(*arguments) -> str:
        assert cli.main([*map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "Traceback" not in captured.err
        return errors[0]

    return call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------- what it answers


def test_info_names_what_is_inside(run, scene_path):
    found = run("info", scene_path)
    assert (found["gaussians"], found["frames"]) == (260, FRAMES)
    assert type(found["gaussians"]) is int
    assert found["nodes"] == []
    assert found["cameras"] == ["front"]
    assert found["length_m"] == pytest.approx(3.0, abs=1e-6)
    assert found["fisher"] is True
    assert found["provenance"] == {"recorded": 260, "repaired": 0, "completed": 0, "edited": 0}
    assert found["version"] == "1.0"


def test_info_reads_splats_and_captures_too(run, scene_path, tmp_path):
    assert run("convert", scene_path, tmp_path / "a.ply")["gaussians"] == 260
    assert run("convert", scene_path, tmp_path / "capture")["frames"] == FRAMES
    splats, capture = run("info", tmp_path / "a.ply"), run("info", tmp_path / "capture")
    assert (splats["gaussians"], splats["frames"], splats["fisher"]) == (260, 0, False)
    assert (capture["gaussians"], capture["frames"]) == (0, FRAMES)
    assert run("convert", tmp_path / "a.ply", tmp_path / "b.ckpt")["to"] == "native"


def test_for_people_it_prints_words(scene_path, capsys):
    assert cli.main(["info", str(scene_path)]) == 0
    out = capsys.readouterr().out
    assert "gaussians" in out
    assert "recorded 260" in out
    with pytest.raises(json.JSONDecodeError):
        json.loads(out)


def test_eig_writes_heat_maps_and_nats(run, scene_path, tmp_path):
    found = run("eig", scene_path, tmp_path / "out", "--offset", "-1.5", "--frames", "1:3")
    stems = ("000001", "000002")
    assert names(tmp_path / "out") == sorted(f"{s}_eig.{x}" for s in stems for x in ("npy", "png"))
    nats = [np.load(tmp_path / "out" / f"{stem}_eig.npy") for stem in stems]
    assert nats[0].shape == (HEIGHT, WIDTH)
    assert min(float(n.min()) for n in nats) >= 0
    assert found["mean"] == pytest.approx(float(np.mean(nats)), rel=1e-5)
    assert found["quantiles"]["0.5"] == pytest.approx(float(np.median(nats)), rel=1e-5)
    assert 0 <= found["ucr_share"] <= 1
    assert found["ms"] > 0


@pytest.mark.parametrize("form", ["trace", "diagonal"])
def test_eig_has_other_forms(run, scene_path, tmp_path, form):
    found = run("eig", scene_path, tmp_path, "--frames", "0:1", "--form", form)
    assert found["form"] == form
    if form == "trace":  # the trace bounds the log-determinant
        block = run("eig", scene_path, tmp_path, "--frames", "0:1")
        assert found["mean"] >= block["mean"]


def test_evidence_is_computed_where_a_scene_has_none(run, tmp_path, capsys):
    save_scene(make_scene(), tmp_path / "bare.ckpt")
    assert run("eig", tmp_path / "bare.ckpt", tmp_path / "out", "--frames", "0:1")["mean"] > 0


def test_repair_writes_four_pictures_a_frame_and_keeps_trusted_pixels(run, scene_path, tmp_path):
    out = tmp_path / "out"
    found = run("repair", scene_path, out, "--segment", "2:4", "--offset", "1.5")
    kinds = ("confidence", "mask", "rendered", "repaired")
    assert names(out) == [f"{stem}_{kind}.png" for stem in ("000002", "000003") for kind in kinds]
    assert (found["frames"], found["hpr_changed"]) == (2, 0)
    assert found["seconds"] > 0
    before, after, mask = (
        cv2.imread(str(out / f"000003_{kind}.png"), cv2.IMREAD_UNCHANGED)
        for kind in ("rendered", "repaired", "mask")
    )
    assert found["ucr_share"] > 0
    assert np.array_equal(before[mask == 0], after[mask == 0])


def test_fuse_measures_recorded_views_before_and_after(run, scene_path, tmp_path):
    out = tmp_path / "fused.ckpt"
    found = run(
        "fuse", scene_path, out, "--segment", "1:4", "--offset", "1.5", "--steps", "3"
    )  # fmt: skip
    assert found["psnr_recorded_before"] > 40  # the frames were rendered from this scene
    assert found["psnr_recorded_after"] > 25
    fused = load_scene(out)
    assert sum(found["gaussians"].values()) == fused.num_gaussians
    assert set(found["gaussians"]) == {"recorded", "repaired", "completed", "edited"}
    assert fused.fisher is not None
    assert names(tmp_path) == ["fused.ckpt"]


def test_fuse_follows_a_preset_and_goes_on_after_an_interruption(
    run, refused, scene_path, tmp_path, monkeypatch, capsys
):
    from faithfusion_studio.cli import fusing
    from faithfusion_studio.render.cpu import deterministic, thread_limit

    words = ("--segment", "1:3", "--preset", "cyclic", "--set", "pace=0.003", "refresh_steps=1000")
    with thread_limit(1), deterministic():
        whole = run("fuse", scene_path, tmp_path / "whole.ckpt", *words)
        assert [stage["steps"] for stage in whole["stages"]] == [3, 3]
        assert whole["preset"] == "cyclic" and not whole["interrupted"]

        class CutAtTheSecondStage(Interruption):
            exit_code, asked = 130, 0

            @property
            def requested(self):
                self.asked += 1
                return self.asked == 2 + 3 + 2 + 2 + 2  # frames, steps, evidence, frames, two steps

        monkeypatch.setattr(
            fusing, "interruptible", lambda _what: contextlib.nullcontext(CutAtTheSecondStage())
        )
        half = tmp_path / "half.ckpt"
        assert cli.main([*map(str, ("fuse", scene_path, half, *words)), "--json"]) == 130
        cut = json.loads(capsys.readouterr().out)
        assert cut["interrupted"] and [s["steps"] for s in cut["stages"]] == [3, 2]
        monkeypatch.undo()
        resumed = run("fuse", half, tmp_path / "resumed.ckpt", "--resume")
        assert [stage["steps"] for stage in resumed["stages"]] == [3]
    a, b = (load_scene(tmp_path / f"{name}.ckpt") for name in ("whole", "resumed"))
    for name in ("means", "log_scales", "quats", "logit_opacities", "sh0", "provenance"):
        assert torch.equal(getattr(a.background, name), getattr(b.background, name)), name
    assert "fusion" not in b.metadata and not b.extra_tensors
    assert "no unfinished fusion" in refused("fuse", scene_path, tmp_path / "o.ckpt", "--resume")


def test_reconstruct_trains_and_stores_all_that_opening_needs(run, scene_path, tmp_path):
    out = tmp_path / "new.ckpt"
    found = run(
        "reconstruct", scene_path, out, "--scale", "1", "--steps", "4", "--holdout-every", "3",
        "--max-gaussians", "1200", "--seed", "1",
    )  # fmt: skip
    assert found["steps"] == 4
    assert found["seconds"] > 0
    assert found["psnr_train"] > 5
    assert found["psnr_holdout"] > 5
    scene = load_scene(out)
    assert found["gaussians"] == scene.num_gaussians
    assert len(scene.capture) == FRAMES
    assert scene.fisher is not None


def test_reconstruct_takes_cameras_and_every_nth_frame(scene_path):
    from faithfusion_studio.cli.learn import select_frames

    capture = load_scene(scene_path).capture
    frames = tuple(
        replace(f, camera=replace(f.camera, name="left" if i % 2 else "right"))
        for i, f in enumerate(capture.frames)
    )
    rig = Capture(frames, trajectory_from_cameras([f.camera for f in frames]))
    assert [f.name[-1] for f in select_frames(rig, "left", 1).frames] == ["1", "3", "5"]
    assert [f.name[-1] for f in select_frames(rig, None, 2).frames] == ["0", "1", "4", "5"]
    with pytest.raises(inputs.CommandLineError, match="no camera 'top'; choose from right, left"):
        select_frames(rig, "top", 1)


def test_render_writes_a_video_at_an_offset(run, scene_path, tmp_path):
    import av

    out = tmp_path / "out.mp4"
    found = run("render", scene_path, out, "--offset", "1", "--frames", "1:4", "--size", "64x40")
    assert found["frames"] == 3
    with av.open(str(out)) as container:
        frames = list(container.decode(video=0))
        assert float(container.streams.video[0].average_rate) == 10  # from the recorded times
    assert (len(frames), frames[0].width, frames[0].height) == (3, 64, 40)


def rig_scene(path):
    """The scene with every frame taken by two cameras."""
    scene, frames = load_scene(path), []
    for frame in scene.capture.frames:
        for name in ("front", "left"):
            frames.append(
                replace(frame, camera=replace(frame.camera, name=name), name=f"{frame.name}_{name}")
            )
    trajectory = trajectory_from_cameras([frame.camera for frame in frames])
    capture = replace(scene.capture, frames=tuple(frames), trajectory=trajectory)
    return replace(scene, capture=capture, exposures=None)


def test_render_of_a_rig_takes_one_several_or_all_cameras(run, refused, scene_path, tmp_path):
    rig = tmp_path / "rig.ckpt"
    save_scene(rig_scene(scene_path), rig)
    folder = tmp_path / "out"
    folder.mkdir()

    def rendered(name, *words):
        return run("render", rig, folder / name, "--offset", "1", "--layers", "rgb", *words)

    first = rendered("a.mp4")
    assert first["cameras"] == ["front"] and first["frames"] == FRAMES
    both = rendered("b.mp4", "--rig", "all")
    assert [Path(p).name for p in both["files"]] == ["b_front.mp4", "b_left.mp4"]
    grid = rendered("c.mp4", "--arrange", "grid", "--provenance")
    assert [Path(p).name for p in grid["files"]] == ["c.mp4"]
    assert grid["cameras"] == ["front", "left"]
    assert names(folder) == ["a.mp4", "b_front.mp4", "b_left.mp4", "c.mp4"]
    rendered("left", "--rig", "left")
    assert len(names(folder / "left")) == FRAMES
    assert "'back' is not on this rig" in refused("render", rig, folder / "d.mp4", "--rig", "back")


def test_render_stands_layers_side_by_side(run, scene_path, tmp_path):
    out = tmp_path / "pictures"
    arguments = ("--layout", "side-by-side", "--layers", "rgb,depth", "--frames", "0:1")
    run("render", scene_path, out, *arguments)
    assert cv2.imread(str(out / "000000_side-by-side.png")).shape == (HEIGHT, 2 * WIDTH, 3)


def test_render_takes_any_cameras_and_names_files_after_them(run, scene_path, tmp_path):
    from faithfusion_studio.cameras import offset_laterally

    path = offset_laterally(load_scene(scene_path).trajectory, 1.0).select([4, 2])
    write_camera_path(path, tmp_path / "cameras.json", files=["+1.0/b.jpg", "+1.0/a.jpg"])
    run(
        "render", scene_path, tmp_path / "out", "--cameras", tmp_path / "cameras.json",
        "--layers", "rgb,eig,depth",
    )  # fmt: skip
    kinds = ("depth.npy", "depth.png", "eig.npy", "eig.png", "rgb.png")
    assert names(tmp_path / "out") == [f"{stem}_{kind}" for stem in "ab" for kind in kinds]
    run("render", scene_path, tmp_path / "same", "--offset", "1", "--layers", "rgb")
    same = (tmp_path / "same" / "000004_rgb.png").read_bytes()
    assert (tmp_path / "out" / "b_rgb.png").read_bytes() == same


def test_synthesize_makes_a_capture_with_truth_beside_it(run, tmp_path):
    found = run(
        "synthesize", tmp_path / "s", "--frames", "2", "--size", "32x20", "--offsets", "-1,0.5"
    )
    assert found["offsets"] == [-1.0, 0.5]
    assert run("info", tmp_path / "s" / "recorded")["frames"] == 2
    truth = tmp_path / "s" / "truth"
    assert {"-1.0", "+0.5", "cameras_-1.0.json", "cameras_+0.5.json"} <= set(names(truth))


def test_synthesize_takes_a_family_a_rig_and_a_bad_localisation(run, tmp_path):
    words = ("--frames", "1", "--size", "24x16", "--offsets", "0", "--pose-noise", "0.1")
    rig = ("--family", "highway", "--rig", "front,front_left", "--seed", "601")
    found = run("synthesize", tmp_path / "s", *words, *rig)
    assert (found["family"], found["split"]) == ("highway", "test")
    about = run("info", tmp_path / "s" / "recorded")
    assert about["cameras"] == ["front", "front_left"] and about["frames"] == 2
    assert "highway" in about["source"]


def test_eig_explains_a_pixel_and_says_where_to_drive_next(run, scene_path, tmp_path):
    words = ("--frames", "1:4", "--offset", "1", "--explain", "24,20", "--where-next")
    found = run("eig", scene_path, tmp_path / "out", *words)
    why = found["explanation"]
    nats = np.load(tmp_path / "out" / "000001_eig.npy")
    assert why["pixel"] == [24, 20] and why["nats"] == pytest.approx(nats[20, 24], rel=1e-3)
    assert sum(why["groups"].values()) == pytest.approx(1, abs=1e-4)
    shares = [cause["share"] for cause in why["gaussians"]]
    assert 0 < len(shares) <= 16 and shares == sorted(shares, reverse=True)
    ranked = [gain["nats"] for gain in found["where_next"]]
    assert len(ranked) == 11 and ranked == sorted(ranked, reverse=True)
    assert found["where_next"][-1]["offset"] == 0.0  # the same drive again teaches least


@pytest.mark.parametrize("topic", ["raster", "eig"])
def test_bench_reports_its_keys_with_the_protocol(run, tmp_path, topic):
    found = run(
        "bench", topic, "--gaussians", "400", "--size", "64x48", "--repeats", "1", "--out", tmp_path
    )
    assert "interleaved" in found["protocol"]
    assert found["rows"]
    assert found["frame_ms" if topic == "raster" else "eig_ms"] > 0
    assert names(tmp_path) == [f"bench_{topic}{end}" for end in (".json", ".md", ".png")]


# ----------------------------------------------------------------------------------- bad input


def test_a_missing_file_is_one_sentence(refused, tmp_path):
    for command in (["info"], ["eig", "OUT"], ["render", "o.mp4"], ["convert", "o.ply"], ["view"]):
        words = [command[0], str(tmp_path / "gone.ckpt"), *command[1:]]
        assert "gone.ckpt" in refused(*words)
    assert "gone" in refused("reconstruct", tmp_path / "gone", tmp_path / "o.ckpt")


def test_with_json_a_refusal_is_one_object_as_well(tmp_path, capsys):
    assert cli.main(["info", str(tmp_path / "gone.ckpt"), "--json"]) == 2
    captured = capsys.readouterr()
    assert "gone.ckpt" in json.loads(captured.out)["error"]
    assert captured.err.startswith("error: ")


def test_damaged_files_are_refused(refused, scene_path, tmp_path):
    import pickle

    raw = scene_path.read_bytes()
    bad = tmp_path / "bad.ckpt"
    for content in (b"", b"nonsense", raw[:100], raw[:-50], pickle.dumps({"a": print})):
        bad.write_bytes(content)
        assert "bad.ckpt" in refused("info", bad)


@pytest.mark.parametrize("segment", ["4:9", "3:3", "-1:2", "5:2"])
def test_a_segment_outside_the_drive_is_refused(refused, scene_path, tmp_path, segment):
    for command in ("repair", "fuse"):
        sentence = refused(command, scene_path, tmp_path / "o.ckpt", f"--segment={segment}")
        assert "outside the drive" in sentence
        assert "0:6" in sentence
    assert "outside the drive" in refused("eig", scene_path, tmp_path, f"--frames={segment}")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["eig", "SCENE", "OUT", "--frames", "abc"], "not a frame range"),
        (["eig", "SCENE", "OUT", "--size", "12"], "not a picture size"),
        (["eig", "SCENE", "OUT", "--explain", "12"], "not a pixel"),
        (["eig", "SCENE", "OUT", "--explain", "48,0"], "expected a column in 0..47"),
        (["eig", "SCENE", "OUT", "--offset", "nan"], "metres between"),
        (["render", "SCENE", "OUT", "--layers", "rgb,normals"], "normals"),
        (["render", "SCENE", "o.mp4", "--layout", "before-after"], "scene from before"),
        (["fuse", "SCENE", "OUT.ckpt", "--steps", "0"], "at least 1"),
        (["fuse", "SCENE", "OUT.txt"], ".ckpt"),
        (["fuse", "SCENE", "OUT.ckpt", "--preset", "best"], "choose from default"),
        (["fuse", "SCENE", "OUT.ckpt", "--set", "ofset=1"], "perhaps you meant offset"),
        (["fuse", "SCENE", "OUT.ckpt", "--engine", "magic"], "choose one of"),
        (["fuse", "SCENE", "SCENE"], "never overwritten"),
        (["fuse", "SCENE", "no/such/folder/o.ckpt"], "does not exist"),
        (["repair", "SCENE", "OUT", "--threshold", "7"], "0 to 1"),
        (["reconstruct", "SCENE", "OUT.ckpt", "--scale", "0"], "--scale"),
        (["reconstruct", "SCENE", "OUT.ckpt", "--every", "0"], "--every"),
        (["reconstruct", "SCENE", "OUT.ckpt", "--cameras", "top"], "choose from front"),
        (["convert", "SCENE", "OUT.xyz"], ".ckpt"),
        (["synthesize", "OUT", "--offsets", "a,b"], "numbers separated"),
        (["synthesize", "OUT", "--frames", "0"], "--frames"),
        (["synthesize", "OUT", "--pose-noise", "-1"], "--pose-noise"),
        (["view", "SCENE", "--port", "99999"], "--port"),
    ],
)
def test_impossible_arguments_are_one_sentence(
    refused, scene_path, tmp_path, monkeypatch, words, reason
):
    monkeypatch.chdir(tmp_path)
    words = [str(scene_path) if word == "SCENE" else word for word in words]
    assert reason in refused(*words)
    assert names(tmp_path) == []


def test_the_parser_refuses_with_two_and_suggests(capsys):
    for words in (
        ["info"],
        ["info", "x", "--jsn"],
        ["bench", "speed"],
        ["eig", "a", "b", "--form", "x"],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
    assert "perhaps you meant reconstruct" in " ".join(
        [str(cli.main(["reconstrct", "a", "b"])), capsys.readouterr().err]
    )


def test_a_scene_without_a_recording_cannot_be_shifted(refused, scene_path, tmp_path):
    save_scene(load_scene(scene_path), tmp_path / "a.ply")
    assert "no recorded path" in refused("eig", tmp_path / "a.ply", tmp_path / "o")


def test_nothing_can_be_written_where_a_file_is(refused, scene_path, tmp_path):
    (tmp_path / "file").write_text("mine")
    for command in ("eig", "repair", "render"):
        assert "file" in refused(command, scene_path, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


FULL_DISK = """
import resource, sys
from faithfusion_studio import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))  # every file stops growing here
for words in sys.argv[1:]:
    assert cli.main(words.split()) == 2
"""


def test_a_full_disk_is_one_sentence_each_and_leaves_nothing(run_python, scene_path, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    lines = [
        f"eig {scene_path} {here / 'eig'} --frames 0:2",
        f"repair {scene_path} {here / 'repair'} --segment 0:1",
        f"render {scene_path} {here / 'pictures'} --frames 0:2",
        f"render {scene_path} {here / 'out.mp4'} --frames 0:2",
        f"convert {scene_path} {here / 'out.ply'}",
        f"convert {scene_path} {here / 'out.ckpt'}",
    ]
    result = run_python("-c", FULL_DISK, *lines)
    assert result.returncode == 0, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(lines)
    assert all("cannot be written" in line for line in errors)
    assert names(here) == []


def test_a_capture_is_offered_for_reconstruction(scene_path, tmp_path, capsys, monkeypatch):
    write_cameras_json(load_scene(scene_path).capture, tmp_path / "drive")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert cli.main([str(tmp_path / "drive")]) == 2
    assert f"ff-studio reconstruct {tmp_path / 'drive'} drive.ckpt" in capsys.readouterr().err


def test_a_busy_port_is_one_sentence(refused, scene_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port}" in refused("view", scene_path, "--port", port)


def test_two_processes_do_not_write_one_file(refused, scene_path, tmp_path):
    lock = tmp_path / ".o.ckpt.lock"
    lock.write_text(str(os.getppid()))
    words = ("fuse", scene_path, tmp_path / "o.ckpt", "--segment", "0:1", "--steps", "1")
    assert f"process {os.getppid()}" in refused(*words)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock.write_text(str(dead.pid))
    with inputs.reserved(tmp_path / "o.ckpt", None):
        assert lock.read_text() == str(os.getpid())
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------ words and signals


def test_a_path_alone_means_view():
    assert cli.with_default_command(["a.ckpt", "--open"]) == ["view", "a.ckpt", "--open"]
    assert cli.with_default_command(["info", "a.ckpt"]) == ["info", "a.ckpt"]
    assert cli.with_default_command([]) == ["--help"]


def test_every_command_has_a_home():
    from importlib import import_module

    assert set(cli.HOMES) == set(cli.COMMANDS)
    for command, home in cli.HOMES.items():
        module = import_module(f"faithfusion_studio.cli.{home}")
        assert callable(getattr(module, command.replace("-", "_")))


def test_the_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert faithfusion_studio.__version__ in capsys.readouterr().out


def test_numbers_that_are_not_finite_become_null(capsys):
    cli.announce({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": Path("x")}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": "x"}}


def test_ranges_sizes_and_numbers_are_read():
    assert inputs.parse_range("10:30", 48) == (10, 30)
    assert inputs.parse_range(":3", 48) == (0, 3)
    assert inputs.parse_range("40:", 48) == (40, 48)
    assert inputs.parse_range(None, 48) == (0, 48)
    assert inputs.parse_size("640X360") == (640, 360)
    assert inputs.parse_size(None) is None
    assert inputs.parse_numbers("0,1,-2.5") == (0, 1, -2.5)


def test_progress_in_a_log_is_sparse(capsys):
    line = ProgressLine("frame")
    for i in range(1, 100):
        line.update(i, 99)
    line.close()
    assert capsys.readouterr().err.count("\n") == 1
    assert (duration(41.2), duration(200.0)) == ("41 s", "3 min 20 s")


def test_the_first_signal_asks_and_the_second_stops():
    with interruptible("saving") as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert (stop.requested, stop.exit_code) == (True, 130)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert Interruption().exit_code == 0


def start(*words, cwd: Path) -> subprocess.Popen:
    home = str(Path(faithfusion_studio.__file__).resolve().parents[1])
    code = "import sys; from faithfusion_studio.cli import entry; entry()"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": home},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen, words: str, seconds: float = 120) -> str:
    end, seen = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        line = process.stderr.readline()
        seen += line
        if words in line or not line:
            return seen
    raise AssertionError(f"no {words!r} in: {seen}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_what_is_trained_and_says_where(scene_path, tmp_path, number, code):
    words = ("reconstruct", scene_path, "o.ckpt", "--steps", 1_000_000, "--max-gaussians", 1200)
    process = start(*words, "--json", cwd=tmp_path)
    wait_for(process, "step 1/")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "saved o.ckpt" in err
    found = json.loads(out)
    assert found["interrupted"] is True
    assert found["psnr_holdout"] is None
    assert load_scene(tmp_path / "o.ckpt").num_gaussians == found["gaussians"]
    assert names(tmp_path) == ["o.ckpt"]


def test_the_studio_says_where_it_is_and_leaves_on_request(scene_path, tmp_path):
    process = start("view", scene_path, "--json", cwd=tmp_path)
    found = json.loads(process.stdout.readline())
    assert found["url"].startswith("http://127.0.0.1:")
    assert found["gaussians"] == 260
    with socket.create_connection(("127.0.0.1", found["port"]), timeout=5):
        pass
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest == ""
    assert "nothing was unsaved" in err
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", found["port"]), timeout=5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_asking_for_cuda_without_it_is_one_sentence_and_the_cpu(scene_path, tmp_path, capsys):
    words = ["eig", scene_path, tmp_path / "out", "--frames", "0:1", "--device", "cuda", "--json"]
    assert cli.main([*map(str, words)]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["device"].startswith("CPU")
    assert captured.err.count("the CPU is used.") == 1
    assert len(names(tmp_path / "out")) == 2


WAITING = """
import os, sys
os.environ.pop("OMP_WAIT_POLICY", None)
os.environ.update(dict(word.split("=") for word in sys.argv[1:]))
from faithfusion_studio import cli
cli.main(["--version"])
print("torch" in sys.modules, os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize("asked", [(), ("OMP_WAIT_POLICY=active",)])
def test_threads_of_pytorch_do_not_spin_unless_asked_to(run_python, asked):
    result = run_python("-c", WAITING, *asked)
    expected = "active" if asked else "passive"
    assert result.stdout.split()[-2:] == ["False", expected], result.stderr
