import json
import struct
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from io_samples import a_capture, a_scene, cameras
from safetensors.torch import load_file, save_file
from test_gaussians import random_gaussians

from faithfusion_studio.cameras import Trajectory, trajectory_from_cameras
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io import native
from faithfusion_studio.io.native import METADATA_KEY, NativeFileError, read_native, write_native
from faithfusion_studio.scene import Scene
from faithfusion_studio.sky import ConstantSky


def assert_same_gaussians(a: Gaussians, b: Gaussians) -> None:
    for field in fields(Gaussians):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert x.dtype == y.dtype
        assert torch.equal(x, y), field.name


def assert_same_path(a: Trajectory, b: Trajectory) -> None:
    assert torch.equal(a.camtoworlds, b.camtoworlds)
    assert torch.equal(a.ego_to_worlds, b.ego_to_worlds)
    assert a.ego_is_camera == b.ego_is_camera
    for x, y in zip(a.cameras, b.cameras, strict=True):
        assert torch.equal(x.K, y.K)
        assert (x.width, x.height, x.time, x.name) == (y.width, y.height, y.time, y.name)


def assert_same_scene(a: Scene, b: Scene) -> None:
    assert_same_gaussians(a.background, b.background)
    for x, y in zip(a.nodes, b.nodes, strict=True):
        assert_same_gaussians(x.gaussians, y.gaussians)
        assert (x.name, x.category) == (y.name, y.category)
        for key in ("poses", "timestamps", "visible", "size"):
            assert torch.equal(getattr(x, key), getattr(y, key))
    assert torch.equal(a.sky.texels, b.sky.texels)
    assert torch.equal(a.exposures, b.exposures)
    assert a.metadata == b.metadata
    assert list(a.paths) == list(b.paths)
    for name in a.paths:
        assert_same_path(a.paths[name], b.paths[name])
    assert_same_path(a.capture.trajectory, b.capture.trajectory)
    for x, y in zip(a.capture.frames, b.capture.frames, strict=True):
        assert (x.name, x.encoded(), x.dynamic_mask) == (y.name, y.encoded(), y.dynamic_mask)
    assert torch.equal(a.capture.points.xyz, b.capture.points.xyz)
    assert torch.equal(a.capture.points.rgb, b.capture.points.rgb)
    assert all(torch.equal(x, y) for x, y in zip(a.capture.lidar, b.capture.lidar, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(a.capture.lanes, b.capture.lanes, strict=True))
    for x, y in zip(a.capture.boxes, b.capture.boxes, strict=True):
        assert (x.name, x.category) == (y.name, y.category)
        assert torch.equal(x.poses, y.poses) and torch.equal(x.size, y.size)
        assert torch.equal(x.by_hand, y.by_hand)
    texts = [(c.source, c.licence, c.notes) for c in (a.capture, b.capture)]
    assert texts[0] == texts[1]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(0, 3), st.integers(0, 2**20))
def test_a_scene_comes_back_bit_for_bit(tmp_path_factory, count, degree, seed):
    path = tmp_path_factory.mktemp("native") / "scene.ckpt"
    scene = a_scene(count, seed, degree)
    write_native(scene, path)
    again = read_native(path)
    assert_same_scene(scene, again)
    torch.testing.assert_close(again.fisher.sh, scene.fisher.sh, rtol=1e-3, atol=0)
    assert again.fisher.noise_std == scene.fisher.noise_std


def test_a_bare_scene_comes_back_bare(tmp_path):
    scene = Scene(random_gaussians(3, 0), sky=ConstantSky(torch.tensor([0.1, 0.2, 0.3])))
    write_native(scene, tmp_path / "a.ckpt")
    again = read_native(tmp_path / "a.ckpt")
    assert_same_gaussians(again.background, scene.background)
    assert torch.equal(again.sky.color, scene.sky.color)
    assert again.capture is None and again.fisher is None and again.exposures is None
    assert again.nodes == () and again.paths == {}


def test_frames_are_the_same_images_after_reading(tmp_path):
    scene = a_scene()
    write_native(scene, tmp_path / "a.ckpt")
    again = read_native(tmp_path / "a.ckpt")
    frame, before = again.capture.frames[1], scene.capture.frames[1]
    assert torch.equal(frame.image(), before.image())
    assert torch.equal(frame.mask((16, 12)), before.mask((16, 12)))


def test_tensors_of_a_newer_minor_version_are_kept_and_written_back(tmp_path):
    path = tmp_path / "a.ckpt"
    write_native(a_scene(), path)
    tensors = load_file(path)
    text = json.loads(header_of(path)["__metadata__"][METADATA_KEY])
    text["version"] = [1, 9]
    tensors["nodes/0/velocity"] = torch.arange(6.0)
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(text)})
    scene = read_native(path)
    assert torch.equal(scene.extra_tensors["nodes/0/velocity"], torch.arange(6.0))
    write_native(scene, path)
    assert torch.equal(load_file(path)["nodes/0/velocity"], torch.arange(6.0))


def test_a_newer_major_version_is_refused_naming_both(tmp_path):
    path = tmp_path / "a.ckpt"
    save_file({"x": torch.zeros(1)}, path, metadata={METADATA_KEY: '{"version": [7, 2]}'})
    with pytest.raises(NativeFileError, match=r"version 7\.2.*version 1\.x"):
        read_native(path)


def test_another_safetensors_file_is_refused_naming_its_tensors(tmp_path):
    path = tmp_path / "a.ckpt"
    save_file({"lora_up.weight": torch.zeros(1)}, path)
    with pytest.raises(NativeFileError, match="lora_up"):
        read_native(path)


def test_views_and_shared_tensors_can_be_written(tmp_path):
    big = random_gaussians(10, 1)
    half = big.select(torch.arange(10) % 2 == 0)
    scene = Scene(replace(half, means=big.means[::2], log_scales=big.means[::2]))
    write_native(scene, tmp_path / "a.ckpt")
    assert torch.equal(read_native(tmp_path / "a.ckpt").background.log_scales, big.means[::2])


def test_numbers_json_cannot_say_become_null(tmp_path):
    scene = replace(a_scene(), metadata={"psnr": float("nan"), "folder": Path("x") / "y"})
    write_native(scene, tmp_path / "a.ckpt")
    assert read_native(tmp_path / "a.ckpt").metadata == {"psnr": None, "folder": "x/y"}


def test_evidence_of_many_gaussians_stays_with_its_rows(tmp_path):
    scene = a_scene(300)
    write_native(scene, tmp_path / "a.ckpt")
    blocks = read_native(tmp_path / "a.ckpt").fisher.blocks
    diagonal = [0, 13, 25, 36, 46, 55, 63, 70, 76, 81, 85, 88, 90]
    torch.testing.assert_close(
        blocks[:, diagonal], scene.fisher.blocks[:, diagonal], rtol=1e-3, atol=0
    )
    assert not blocks[0].any()


# ------------------------------------------------------------------------------------- safe writes


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def header_of(path: Path) -> dict:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, run_python):
    path = tmp_path / "scene.ckpt"
    write_native(a_scene(), path)
    before = path.read_bytes()
    done = run_python(
        "-c",
        "import resource, torch\n"
        "from faithfusion_studio.io import read_native, write_native\n"
        f"scene = read_native({str(path)!r})\n"
        "from dataclasses import replace\n"
        "big = replace(scene, extra_tensors={'pad': torch.zeros(200_000)})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        f"    write_native(big, {str(path)!r})\n"
        "except ValueError as error:\n"
        "    print(type(error).__name__, error)\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NativeFileError") and done.stdout.count("\n") == 1
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["scene.ckpt"]


@pytest.mark.parametrize("name", ["missing/scene.ckpt", "blocked"])
def test_an_unwritable_place_is_one_sentence(tmp_path, name):
    (tmp_path / "blocked").mkdir()
    with pytest.raises(NativeFileError, match="cannot be written"):
        write_native(a_scene(), tmp_path / name)
    assert names_in(tmp_path) == ["blocked"] and not names_in(tmp_path / "blocked")


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "scene.ckpt"
    write_native(a_scene(), path)
    before = path.read_bytes()

    def interrupted(tensors, name, metadata):
        Path(name).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_native(a_scene(5), path)
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["scene.ckpt"]


def test_a_recorded_frame_that_is_gone_is_named(tmp_path):
    capture = a_capture()
    gone = replace(capture.frames[0], data=tmp_path / "gone.jpg")
    scene = replace(a_scene(), capture=replace(capture, frames=(gone, *capture.frames[1:])))
    with pytest.raises(NativeFileError, match=r"gone\.jpg"):
        write_native(scene, tmp_path / "a.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_scene_is_one_sentence(tmp_path, share):
    path = tmp_path / "scene.ckpt"
    write_native(a_scene(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(NativeFileError) as caught:
        read_native(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_without_cameras_can_be_stored(tmp_path):
    empty = Trajectory((), torch.zeros(0, 4, 4, dtype=torch.float64))
    scene = replace(a_scene(), paths={"empty": empty, "two": trajectory_from_cameras(cameras(2))})
    write_native(scene, tmp_path / "a.ckpt")
    assert [len(p) for p in read_native(tmp_path / "a.ckpt").paths.values()] == [0, 2]
