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

from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import StudioError
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io import (
    FORMATS,
    CaptureError,
    CheckpointError,
    ExportOptions,
    load_capture,
    load_scene,
    save_scene,
    sniff,
    write_camera_path,
    write_cameras_json,
)
from faithfusion_studio.render.views import render_view
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


# ---------------------------------------------------------------------- every format of splats

STEPS = {
    "a.ply": {"sh": 0.0},
    "a.pt": {"sh": 0.0},
    "a.compressed.ply": {
        "means": 4e-3,
        "log_scales": 2e-3,
        "opacity": 0.002,
        "sh0": 7e-3,
        "sh": 0.04,
    },
    "a.splat": {"log_scales": 1e-6, "opacity": 0.002, "sh0": 0.008, "sh": None},
    "a.spz": {"means": 1.3e-4, "log_scales": 0.032, "opacity": 0.002, "sh0": 0.0135, "sh": 0.07},
    "a.sog": {"means": 1e-3, "log_scales": 0.02, "opacity": 0.002, "sh0": 0.02, "sh": 0.05},
    "meta.json": {"means": 1e-3, "log_scales": 0.02, "opacity": 0.002, "sh0": 0.02, "sh": 0.05},
}
"""What each format's quantisation allows; nothing where values stay as they are, None where SH is lost."""


def a_splat_scene(count: int = 300, degree: int = 3) -> Scene:
    """Gaussians a format of few bits can hold: nothing is clipped."""
    g = random_gaussians(count, degree)
    return Scene(
        replace(
            g,
            log_scales=(g.log_scales * 0.4 - 1.5),
            sh0=g.sh0.clamp(-1.7, 1.7),
            shN=(g.shN * 0.15).clamp(-0.9, 0.9),
            provenance=torch.zeros_like(g.provenance),
        )
    )


def in_order_of(found: Gaussians, wanted: Gaussians) -> Gaussians:
    """The same rows in the order of other ones; formats may sort."""
    nearest = torch.cdist(wanted.means, found.means).argmin(1)
    assert len(nearest.unique()) == len(wanted) == len(found)
    return found.select(nearest)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(("name", "version"), [*((name, 3) for name in STEPS), ("a.spz", 4)])
def test_a_round_trip_stays_within_the_quantisation(tmp_path, name, degree, version):
    scene = a_splat_scene(degree=degree)
    lost = save_scene(scene, tmp_path / name, ExportOptions(spz_version=version))
    told_sh = any("cannot hold SH" in note for note in lost)
    assert not [note for note in lost if "clipped" in note]
    assert told_sh == (STEPS[name]["sh"] is None and degree > 0)
    again, want, step = load_scene(tmp_path / name).background, scene.background, STEPS[name]
    again = in_order_of(again, want)
    turn = torch.nn.functional.normalize(again.quats, dim=1)
    turn = (turn * torch.nn.functional.normalize(want.quats, dim=1)).sum(1).abs()
    assert float(turn.min()) > 1 - 1e-4
    for field, found, wanted in (
        ("means", again.means, want.means),
        ("log_scales", again.log_scales, want.log_scales),
        ("opacity", again.opacities, want.opacities),
        ("sh0", again.sh0, want.sh0),
    ):
        assert float((found - wanted).abs().max()) <= step.get(field, 0.0), field
    if step["sh"] is not None:
        kept = again.with_sh_degree(degree).shN
        assert float((kept - want.shN).abs().amax() if degree else 0.0) <= step["sh"]


@pytest.mark.parametrize("name", STEPS)
def test_a_scene_looks_the_same_before_and_after(tmp_path, name):
    scene = a_splat_scene(degree=0)
    save_scene(scene, tmp_path / name)
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = -5
    camera = Camera(pose, K, 64, 48)
    before = render_view(scene, camera).rgb
    after = render_view(load_scene(tmp_path / name), camera).rgb
    error = float(((before - after) ** 2).mean())
    assert float(before.std()) > 0.05
    assert error < (1e-10 if STEPS[name]["sh"] == 0.0 else 10**-4.2)


@pytest.mark.parametrize("name", STEPS)
def test_content_tells_a_splat_file_whatever_its_name(tmp_path, name):
    save_scene(a_splat_scene(40, 1), tmp_path / name)
    kind = sniff(tmp_path / name)
    for lie in ("b.bin", "b.ply", "b.ckpt", "b.splat", "b"):
        if name == "meta.json":
            continue
        (tmp_path / lie).write_bytes((tmp_path / name).read_bytes())
        assert sniff(tmp_path / lie) == kind
        assert load_scene(tmp_path / lie).num_gaussians == 40


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("name", STEPS)
def test_a_splat_file_cut_short_is_one_sentence_and_never_a_wrong_count(tmp_path, name, share):
    save_scene(a_splat_scene(50, 2), tmp_path / name)
    path = tmp_path / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share) | 1])
    with pytest.raises(StudioError) as caught:
        load_scene(path)
    one_sentence(caught, path)


@pytest.mark.parametrize("name", STEPS)
def test_broken_gaussians_are_left_out_of_an_export_and_counted(tmp_path, name):
    scene = a_splat_scene(20, 1)
    means = scene.background.means.clone()
    means[[2, 7]] = torch.tensor([float("nan"), 3e6])[:, None]
    broken = replace(scene, background=replace(scene.background, means=means))
    lost = save_scene(broken, tmp_path / name)
    assert lost[0] == "2 of 20 Gaussians were left out because they were not finite."
    assert load_scene(tmp_path / name).num_gaussians == 18


@pytest.mark.parametrize("name", STEPS)
def test_an_export_says_in_one_line_what_it_leaves_out(tmp_path, name):
    lost = save_scene(a_scene(), tmp_path / name)
    sentences = [note for note in lost if "cannot hold" in note and "every value" not in note]
    assert len(sentences) == 1
    for word in ("the motion of 1 objects (placed as at 0 s)", "the sky", "the recording"):
        assert word in sentences[0]


@pytest.mark.parametrize("name", STEPS)
def test_nothing_is_written_for_an_empty_scene(tmp_path, name):
    with pytest.raises(StudioError, match="0 Gaussians"):
        save_scene(Scene(random_gaussians(0)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_files_of_tools_we_do_not_read_name_the_tool_that_converts_them(tmp_path):
    (tmp_path / "a.lcc").write_bytes(b"\x01\x02\x03\x04 and more")
    with pytest.raises(StudioError, match="splat-transform"):
        load_scene(tmp_path / "a.lcc")


# ------------------------------------------------------------------------- all kinds of content


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


@pytest.mark.parametrize("name", ["a.onnx", "a", "a.json"])
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
