"""`ff-studio metrics`: numbers where there is truth, one sentence where there is none."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_cli import HEIGHT, WIDTH, make_scene, refused, run  # noqa: F401 (fixtures)

from faithfusion_studio import cli
from faithfusion_studio.cameras import offset_laterally
from faithfusion_studio.io import save_scene, write_camera_path, write_cameras_json
from faithfusion_studio.metrics.inception import Inception
from faithfusion_studio.metrics.twinlitenet import TwinLiteNet
from faithfusion_studio.render.views import render_view, to_uint8
from faithfusion_studio.scene import BoxTrack

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch, tmp_path):
    """Whatever this machine has cached must not decide what a test sees."""
    monkeypatch.setenv("FF_STUDIO_CACHE", str(tmp_path / "no-cache"))


@pytest.fixture(scope="module")
def scene():
    return make_scene()


@pytest.fixture(scope="module")
def path(scene, tmp_path_factory):
    file = tmp_path_factory.mktemp("metrics") / "scene.ckpt"
    save_scene(scene, file)
    return file


def test_own_frames_are_measured_and_the_rest_is_explained(run, path):  # noqa: F811
    found = run("metrics", path)
    assert found["values"]["psnr"] > 40
    assert found["values"]["ssim"] > 0.99
    assert found["values"]["warp_l1"] == pytest.approx(found["values"]["warp_l1_truth"], abs=0.01)
    assert (found["frames"], found["size"]) == (6, f"{WIDTH}x{HEIGHT}")
    assert set(found["protocol"]) == set(found["values"])
    for words in found["protocol"].values():
        assert f"6 recorded frames, which were trained on, {WIDTH}x{HEIGHT}" in words
    for name in ("lpips", "fid", "fd", "nta_iou", "ntl_iou", "depth", "regions", "drift"):
        assert found["missing"][name].endswith(".")
    assert "--fetch-lpips" in found["missing"]["lpips"]
    assert [set(row) for row in found["per_frame"]][0] == {"psnr", "ssim"}
    assert np.mean([row["psnr"] for row in found["per_frame"]]) == pytest.approx(
        found["values"]["psnr"]
    )


def test_held_out_frames_come_before_trained_ones(run, scene, tmp_path):  # noqa: F811
    held_out = replace(scene, metadata={"reconstruction": {"holdout": [1, 4], "scale": 1.0}})
    save_scene(held_out, tmp_path / "scene.ckpt")
    found = run("metrics", tmp_path / "scene.ckpt")
    assert (found["frames"], found["truth"]) == (2, "held-out frames")
    assert run("metrics", tmp_path / "scene.ckpt", "--frames", "1:2")["frames"] == 1


def side_views(scene, folder: Path, offset: float) -> None:
    """Exact views from the side in the layout `synthesize` writes."""
    label = f"{offset:+.1f}"
    trajectory = offset_laterally(scene.trajectory, offset)
    (folder / "truth" / label).mkdir(parents=True)
    files = [f"{label}/{i:06d}.png" for i in range(len(trajectory))]
    for file, camera in zip(files, trajectory.cameras, strict=True):
        view = render_view(scene, camera)
        target = folder / "truth" / file
        cv2.imwrite(str(target), to_uint8(view.rgb).numpy()[:, :, ::-1])
        depth = view.depth.numpy().astype(np.float16)
        np.savez_compressed(target.with_name(f"{target.stem}_depth.npz"), depth=depth)
    write_camera_path(trajectory, folder / "truth" / f"cameras_{label}.json", files=files)


def test_exact_side_views_give_depth_as_well(run, refused, scene, path, tmp_path):  # noqa: F811
    side_views(scene, tmp_path, 1.0)
    found = run("metrics", path, "--against", tmp_path, "--offset", "1")
    assert found["values"]["psnr"] > 40
    assert found["values"]["depth_abs_rel"] < 1e-3
    assert found["values"]["depth_within_125"] > 0.999
    assert "true frames at +1 m" in found["protocol"]["psnr"]
    assert "depth" not in found["missing"]
    sentence = refused("metrics", path, "--against", tmp_path, "--offset", "2")
    assert "offsets there: +1" in sentence
    assert "--against" in refused("metrics", path, "--offset", "2")


def test_another_recording_by_the_names_of_its_cameras(run, refused, scene, path, tmp_path):  # noqa: F811
    write_cameras_json(scene.capture, tmp_path / "capture")
    found = run("metrics", path, "--against", tmp_path / "capture", "--cameras", "front")
    assert found["values"]["psnr"] > 40
    smaller = run("metrics", path, "--against", tmp_path / "capture", "--size", "36x24")
    assert smaller["size"] == "36x24"
    words = refused("metrics", path, "--against", tmp_path / "capture", "--cameras", "right")
    assert "'right'" in words


def test_what_a_repair_changed_stands_beside_its_control(run, scene, path, tmp_path):  # noqa: F811
    g = scene.background
    worse = torch.where(torch.arange(len(g)) < len(g) // 2, 1.5, 0.0)[:, None, None]
    save_scene(replace(scene, background=replace(g, sh0=g.sh0 + worse)), tmp_path / "before.ckpt")
    found = run("metrics", path, "--before", tmp_path / "before.ckpt", "--regions", "error")
    values = found["values"]
    assert values["psnr_change_bad"] > 3
    assert values["psnr_change_bad"] > values["psnr_control_bad"]
    assert values["drift"] > 3
    assert "the scene before" in found["protocol"]["psnr_change_bad"]
    assert not {"change", "drift", "regions"} & set(found["missing"])


def test_regions_by_eig_say_how_well_it_ranks_the_error(run, path):  # noqa: F811
    found = run("metrics", path, "--regions", "eig", "--frames", "0:2")
    assert 0 <= found["values"]["ucr_share"] <= 1
    assert -1 <= found["values"]["spearman"] <= 1
    assert {"ause_l1", "aurg_l1", "psnr_hpr", "psnr_ucr", "nll"} <= set(found["values"])
    values = found["values"]
    assert 0 <= values["capture_10"] <= 1 and 0 <= values["capture_20"] <= 1
    assert 0 <= values["coverage_50"] <= values["coverage_90"] <= 1
    assert values["coverage_90"] > 0.9, (
        "the scene shows itself: hardly an error is larger than predicted"
    )
    assert "change" in found["missing"]


def test_distances_of_both_regions_go_by_the_network_and_are_called_ours(run, path, tmp_path):  # noqa: F811
    torch.save(Inception().state_dict(), tmp_path / "random.pth")
    words = ("--frames", "0:2", "--regions", "eig", "--inception", tmp_path / "random.pth")
    found = run("metrics", path, *words, "--threshold", "0.4")
    for name in ("fd_random_ucr", "fd_random_hpr"):
        assert found["values"][name] >= 0
        assert "(ours)" in found["protocol"][name] and "n = 2 a side" in found["protocol"][name]
    everything = run("metrics", path, *words, "--threshold", "0")
    assert everything["values"]["fd_random_ucr"] == pytest.approx(
        everything["values"]["fd_random"], rel=1e-5, abs=1e-6
    )
    assert "HPR is at least 1% of 0 frame(s)" in everything["missing"]["fd_random_hpr"]


class Means:
    """A network whose features are the mean colour."""

    name, protocol = "means", "mean colours"

    def pooled(self, images):
        return torch.stack([image.mean((0, 1)) for image in images])


def test_a_region_is_compared_with_the_rest_black():
    from faithfusion_studio.cli.measure import Sheet
    from faithfusion_studio.cli.uncertain import RegionSets

    sets, sheet = RegionSets(Means(), 0.4), Sheet()
    ucr = torch.zeros(4, 8, dtype=torch.bool)
    ucr[:, :2] = True
    for frame in range(3):
        truth = torch.rand(4, 8, 3, generator=torch.Generator().manual_seed(frame))
        render = truth.clone()
        render[:, :2] += 0.4  # a quarter of the picture is brighter, all of it UCR
        sets.add(ucr, render, truth)
    sets.finish(sheet, "fd_means")
    assert sheet.values["fd_means_hpr"] == pytest.approx(0, abs=1e-9)
    assert sheet.values["fd_means_ucr"] == pytest.approx(3 * 0.1**2, abs=1e-6)
    sets.add(torch.zeros(4, 8, dtype=torch.bool), truth, truth)
    sets.finish(sheet, "fd_means")
    assert "n = 3 a side" in sheet.protocol["fd_means_ucr"]
    assert "n = 4 a side" in sheet.protocol["fd_means_hpr"]


def annotated(scene):
    pose = torch.eye(4, dtype=torch.float64).repeat(1, 1, 1)
    pose[0, :3, 3] = torch.tensor([11.0, 0.0, 0.8])
    box = BoxTrack("car", "vehicle", torch.tensor([4.0, 1.8, 1.5]), pose, torch.zeros(1).double())
    lane = torch.stack([torch.arange(30.0), torch.full((30,), 1.5), torch.zeros(30)], -1)
    return replace(scene, capture=replace(scene.capture, boxes=(box,), lanes=(lane,)))


def test_annotated_lanes_are_measured_with_a_lane_network(run, scene, tmp_path):  # noqa: F811
    save_scene(annotated(scene), tmp_path / "scene.ckpt")
    torch.manual_seed(0)
    torch.save(TwinLiteNet().state_dict(), tmp_path / "net.pth")
    without = run("metrics", tmp_path / "scene.ckpt", "--frames", "0:1")
    assert "--detector" in without["missing"]["nta_iou"]
    assert "--lane-net" in without["missing"]["ntl_iou"]
    found = run(
        *("metrics", tmp_path / "scene.ckpt", "--frames", "0:1"),
        *("--lane-net", tmp_path / "net.pth"),
    )
    assert 0 < found["values"]["ntl_iou"] <= 100
    assert 0 <= found["values"]["lane_iou"] <= 100
    assert "lanes by net " in found["protocol"]["ntl_iou"]
    assert "ntl_iou" not in found["missing"]


def test_annotated_vehicles_are_measured_with_a_detector(run, scene, tmp_path):  # noqa: F811
    weights = SHARED / "weights" / "yolox_nano" / "yolox_nano.onnx"
    if not weights.is_file():
        pytest.skip(f"{weights} is not here")
    save_scene(annotated(scene), tmp_path / "scene.ckpt")
    found = run(
        *("metrics", tmp_path / "scene.ckpt", "--frames", "0:2"),
        *("--detector", weights, "--preset", "drivedreamer4d"),
    )
    assert found["values"]["nta_boxes"] == 2
    assert found["values"]["nta_iou"] == 0.0  # no car was painted there
    assert "yolox_nano 695e750a5d57" in found["protocol"]["nta_iou"]
    assert "no laser test" in found["protocol"]["nta_iou"]


def test_a_feature_network_of_another_hash_is_never_called_fid(run, path, tmp_path):  # noqa: F811
    torch.save(Inception().state_dict(), tmp_path / "random.pth")
    found = run("metrics", path, "--frames", "0:2", "--inception", tmp_path / "random.pth")
    assert found["values"]["fd_random"] >= 0
    assert {"kd_random", "kd_random_sd"} <= set(found["values"])
    assert not {"fid", "kid"} & set(found["values"])
    assert "6726825d" in found["missing"]["fid"]
    assert "n = 2 a side, biased below 2048" in found["protocol"]["fd_random"]


def test_it_says_what_is_missing_or_wrong_in_one_sentence(refused, path, monkeypatch, tmp_path):  # noqa: F811
    assert "no scene was given" in refused("metrics")
    assert "--threshold" in refused("metrics", path, "--threshold", "2")
    assert "cannot be read" in refused("metrics", path, "--lpips", tmp_path / "absent.safetensors")

    def no_connection(*_args, **_more):
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", no_connection)
    assert "--lpips FILE" in refused("metrics", "--fetch-lpips")


def test_for_people_each_line_is_a_number_with_its_protocol(path, capsys):
    assert cli.main(["metrics", str(path), "--frames", "0:1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("psnr") and "dB, mean over frames" in lines[0]
    assert any(line.startswith("nta_iou: ") for line in lines)
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[0])
