"""What every format promises: the content decides, and bad files end in one sentence."""

import io as stdlib_io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from io_samples import a_capture, a_scene, write_colmap
from test_gaussians import random_gaussians

from faithfusion_studio.errors import StudioError
from faithfusion_studio.io import (
    FORMATS,
    CaptureError,
    CheckpointError,
    load_capture,
    load_scene,
    save_scene,
    sniff,
    write_camera_path,
    write_cameras_json,
)
from faithfusion_studio.scene import Scene

CANARY = "the pickle was executed"


class Malicious:
    def __reduce__(self):
        return (exec, (f"raise SystemExit({CANARY!r})",))


def one_sentence(caught, path: Path) -> None:
    message = str(caught.value)
    assert isinstance(caught.value, StudioError)
    assert path.name in message and "\n" not in message and len(message) < 500


@pytest.fixture
def samples(tmp_path) -> dict[str, Path]:
    """One good file or folder of each format."""
    scene = a_scene()
    save_scene(scene, tmp_path / "scene.ckpt")
    save_scene(scene, tmp_path / "splats.ply")
    write_cameras_json(a_capture(), tmp_path / "recording")
    write_colmap(tmp_path / "colmap", ["0.jpg", "1.jpg"], binary=True)
    write_camera_path(a_capture().trajectory, tmp_path / "path.json")
    torch.save({"weights": {}}, tmp_path / "foreign.pth")
    return {
        "native": tmp_path / "scene.ckpt",
        "ply": tmp_path / "splats.ply",
        "capture": tmp_path / "recording",
        "colmap": tmp_path / "colmap",
        "camera_path": tmp_path / "path.json",
        "checkpoint": tmp_path / "foreign.pth",
    }


def test_the_content_tells_the_format(samples):
    found = {key: sniff(path) for key, path in samples.items()}
    assert found == {**{key: key for key in samples}, "colmap": "capture"}
    assert set(found.values()) <= set(FORMATS)


def test_a_suffix_may_lie(samples, tmp_path):
    (tmp_path / "splats.ckpt").write_bytes(samples["ply"].read_bytes())
    (tmp_path / "scene.ply").write_bytes(samples["native"].read_bytes())
    assert load_scene(tmp_path / "splats.ckpt").num_gaussians == 25
    assert load_scene(tmp_path / "scene.ply").num_gaussians == 25


def test_a_scene_file_is_also_a_recording(samples):
    capture = load_capture(samples["native"])
    assert [f.encoded() for f in capture.frames] == [f.encoded() for f in a_capture().frames]


def test_a_recording_is_not_a_scene_and_says_what_to_do(samples):
    with pytest.raises(CaptureError, match="this is a capture; reconstruct it first"):
        load_scene(samples["capture"])


def test_what_is_no_recording_says_what_it_is(samples, tmp_path):
    for key in ("ply", "camera_path", "checkpoint"):
        with pytest.raises(CaptureError) as caught:
            load_capture(samples[key])
        one_sentence(caught, samples[key])
    save_scene(Scene(random_gaussians(3)), tmp_path / "bare.ckpt")
    with pytest.raises(CaptureError, match="without recorded frames"):
        load_capture(tmp_path / "bare.ckpt")


def malicious_files() -> dict[str, bytes]:
    attack = pickle.dumps(Malicious())
    archive = stdlib_io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", attack)
        file.writestr("archive/version", "3")
    return {
        "protocol4.pth": attack,
        "protocol2.pt": pickle.dumps(Malicious(), protocol=2),
        "zip.pth": archive.getvalue(),
        "zip.ckpt": archive.getvalue(),
        "protocol0.pth": pickle.dumps(Malicious(), protocol=0),
        "disguised.ply": attack,
    }


@pytest.mark.parametrize("name", malicious_files())
def test_a_pickle_is_never_executed(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(malicious_files()[name])
    with pytest.raises(StudioError) as caught:
        load_scene(path)
    one_sentence(caught, path)
    assert CANARY not in str(caught.value)
    if name != "protocol0.pth":
        assert isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize("content", [b"", b"\0", b"hello", b"{}", b"ply", b"\x89PNG", b"\xff" * 99])
@pytest.mark.parametrize("name", ["a.ckpt", "a.ply", "a.json", "a.txt", "a"])
def test_a_file_of_no_known_format_is_one_sentence(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    for load in (load_scene, load_capture):
        with pytest.raises(StudioError) as caught:
            load(path)
        one_sentence(caught, path)


def test_missing_files_and_empty_folders_are_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("missing.ckpt", "missing", "empty"):
        for load in (load_scene, load_capture):
            with pytest.raises(StudioError) as caught:
                load(tmp_path / name)
            one_sentence(caught, tmp_path / name)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("key", ["native", "ply"])
def test_a_truncated_file_is_one_sentence(samples, key, share):
    path = samples[key]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(StudioError) as caught:
        load_scene(path)
    one_sentence(caught, path)


@pytest.mark.parametrize("name", ["a.pth", "a", "a.json"])
def test_a_suffix_nobody_writes_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(StudioError, match=r"expected \.ckpt .*\.ply"):
        save_scene(a_scene(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_ply_holds_the_moving_objects_where_they_are_at_the_start(tmp_path):
    scene = a_scene()
    save_scene(scene, tmp_path / "a.ply")
    means = load_scene(tmp_path / "a.ply").background.means
    assert torch.equal(means, scene.at(0.0).gaussians.means)
    hidden = replace(scene.nodes[0], visible=torch.tensor([False, False]))
    save_scene(replace(scene, nodes=(hidden,)), tmp_path / "b.ply")
    assert load_scene(tmp_path / "b.ply").num_gaussians == len(scene.background)


def test_broken_gaussians_of_a_scene_file_are_dropped_with_their_evidence(tmp_path):
    scene = a_scene()
    means = scene.background.means.clone()
    means[3] = float("nan")
    broken = replace(scene, background=replace(scene.background, means=means))
    save_scene(broken, tmp_path / "a.ckpt")
    again = load_scene(tmp_path / "a.ckpt")
    assert again.num_gaussians == scene.num_gaussians - 1
    assert len(again.fisher.blocks) == len(again.fisher.residual_variance) == again.num_gaussians
    assert again.metadata["notes"][0].startswith("1 of 25 Gaussians")
    gone = replace(
        broken, background=replace(scene.background, means=means * float("nan")), nodes=()
    )
    save_scene(replace(gone, fisher=None), tmp_path / "b.ckpt")
    with pytest.raises(StudioError, match="none with finite values"):
        load_scene(tmp_path / "b.ckpt")


def test_the_readers_do_not_import_heavy_libraries(run_python):
    done = run_python(
        "-c",
        "import sys, faithfusion_studio.io.formats\n"
        "print([n for n in ('viser', 'trimesh', 'cv2', 'scipy', 'av') if n in sys.modules])",
    )
    assert done.stdout.strip() == "[]", done.stderr
