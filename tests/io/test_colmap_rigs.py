"""COLMAP's rigs and frames: read in both forms, written for a rig, and compared with pycolmap where it is."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from io_samples import a_capture, a_pose, encoded_image

from faithfusion_studio.cameras import offset_laterally, trajectory_from_cameras
from faithfusion_studio.io import load_capture, write_colmap
from faithfusion_studio.io.capture_files import CaptureError
from faithfusion_studio.io.colmap import read_colmap_images
from faithfusion_studio.io.colmap_rigs import read_colmap_rigs
from faithfusion_studio.rig import mounts, rig_of
from faithfusion_studio.scene import Capture
from faithfusion_studio.transforms import invert_rigid, rotmat_to_quat

NAMES = ("front", "left", "right")


def a_rig(moments: int = 3, lost: tuple[int, ...] = ()) -> Capture:
    """Cameras that are fixed to each other, without some of the frames."""
    capture = a_capture(3 * moments, names=NAMES)
    seats = [a_pose(0.3 * i, 90 + i) for i in range(3)]
    kept = [i for i in range(3 * moments) if i not in lost]
    views = [
        replace(capture.frames[i].camera, camtoworld=a_pose(i // 3, i // 3) @ seats[i % 3])
        for i in kept
    ]
    frames = [replace(capture.frames[i], camera=v) for i, v in zip(kept, views, strict=True)]
    return Capture(tuple(frames), trajectory_from_cameras(views), capture.points)


def text_form(model, *, moved: bool = False) -> None:
    """The model as text, written from its poses; with `moved` the poses of the images alone are wrong."""
    placed = read_colmap_rigs(model)
    images = {image.image_id: image for image in read_colmap_images(model)}

    def words(pose) -> str:
        pose = torch.as_tensor(pose)
        return " ".join(
            repr(v) for v in (*rotmat_to_quat(pose[:3, :3]).tolist(), *pose[:3, 3].tolist())
        )

    world = {i: invert_rigid(torch.from_numpy(one.camtoworld)) for i, one in placed.items()}
    first = {one.sensor[1]: i for i, one in placed.items() if one.frame == 1}
    lead = images[first[1]].camera_id
    rows = [f"# rigs\n1 {len(first)} CAMERA {lead}"]
    for camera, image in first.items():
        if camera != lead:
            seat = world[image] @ invert_rigid(world[first[lead]])
            rows.append(f"CAMERA {camera} 1 {words(seat)}")
    lines = []
    for frame in sorted({one.frame for one in placed.values()}):
        here = {i: one for i, one in placed.items() if one.frame == frame}
        rig = next(world[i] for i, one in here.items() if one.sensor[1] == lead)
        data = " ".join(f"CAMERA {one.sensor[1]} {i}" for i, one in here.items())
        lines.append(f"{frame} 1 {words(rig)} {len(here)} {data}\n")
    for file in model.iterdir():
        file.unlink()
    cameras = {image.camera_id for image in images.values()}
    (model / "cameras.txt").write_text(
        "".join(f"{c} PINHOLE 16 12 11.5 11.0 8.25 6.5\n" for c in sorted(cameras))
    )
    off = torch.zeros(4, 4, dtype=torch.float64)
    off[0, 3] = 1.0 if moved else 0.0
    (model / "images.txt").write_text(
        "".join(
            f"{i} {words(world[i] + off)} {one.camera_id} {one.name}\n\n"
            for i, one in images.items()
        )
    )
    (model / "rigs.txt").write_text(" ".join(rows) + "\n")
    (model / "frames.txt").write_text("# frames\n" + "".join(lines))


def same(before: Capture, after: Capture, tolerance: float = 1e-9) -> None:
    assert len(after) == len(before) and after.camera_names == before.camera_names
    for one, other in zip(before.frames, after.frames, strict=True):
        assert other.camera.name == one.camera.name
        assert other.camera.time == pytest.approx(one.camera.time)
        torch.testing.assert_close(
            other.camera.camtoworld, one.camera.camtoworld, rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("form", ["bytes", "text", "text with stale images"])
def test_a_rig_comes_back_with_its_moments_and_poses(tmp_path, form):
    capture = a_rig(4, lost=(4, 11))
    write_colmap(capture, tmp_path)
    model = tmp_path / "sparse/0"
    assert {p.name for p in model.iterdir()} >= {"rigs.bin", "frames.bin"}
    if form != "bytes":
        text_form(model, moved=form.endswith("images"))
    again = load_capture(tmp_path)
    same(capture, again)
    assert rig_of(again.trajectory).table == rig_of(capture.trajectory).table
    torch.testing.assert_close(mounts(again.trajectory)[1], mounts(capture.trajectory)[1])
    assert len(read_colmap_rigs(model)) == 10


def test_frames_tell_what_was_taken_together_where_names_do_not(tmp_path):
    """Folders count their images on their own, so a camera that lost a frame would be one moment early."""
    write_colmap(a_rig(4, lost=(4,)), tmp_path)
    with_rig = load_capture(tmp_path)
    for name in ("rigs.bin", "frames.bin"):
        (tmp_path / "sparse/0" / name).unlink()
    without = load_capture(tmp_path)
    times = [
        [f.camera.time for f in c.frames if f.camera.name == "left"] for c in (with_rig, without)
    ]
    assert times[0] == pytest.approx([0.0, 0.2, 0.3]) and times[1] == pytest.approx([0.0, 0.1, 0.2])


def test_the_whole_rig_of_a_colmap_model_moves_by_one_vector(tmp_path):
    write_colmap(a_rig(4, lost=(3,)), tmp_path)
    path = load_capture(tmp_path).trajectory
    shift = offset_laterally(path, 2.0).camtoworlds[:, :3, 3] - path.camtoworlds[:, :3, 3]
    for row in rig_of(path).table:
        frames = [frame for frame in row if frame is not None]
        torch.testing.assert_close(shift[frames], shift[frames[0]].expand(len(frames), 3))


def test_cameras_that_move_against_each_other_are_written_without_a_rig(tmp_path):
    write_colmap(a_rig(3), tmp_path)
    capture = a_capture(4, names=("left", "right"))
    write_colmap(capture, tmp_path)  # over the rig, whose files must not stay
    assert not (tmp_path / "sparse/0/rigs.bin").exists()
    same(capture, load_capture(tmp_path))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("rigs.bin", lambda d: d[:-9], "truncated or damaged"),
        ("frames.bin", lambda d: d + b"x", "after its last record"),
        ("frames.bin", lambda d: d[:12] + b"\5\0\0\0" + d[16:], "rig 5, which rigs.bin lacks"),
        ("frames.bin", lambda d: d[:16] + b"\xff" * 8 + d[24:], "rigid pose"),
        ("rigs.bin", lambda d: d[:12] + b"\xff\xff\xff\x7f" + d[16:], "truncated or damaged"),
    ],
)
def test_a_damaged_rig_is_one_sentence(tmp_path, name, change, words):
    write_colmap(a_rig(3), tmp_path)
    path = tmp_path / "sparse/0" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CaptureError, match=words):
        load_capture(tmp_path)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("rigs.txt", "1 3 CAMERA 1 CAMERA 2 1 1 0 0 0 0 0 0"),
        ("rigs.txt", "1 2 CAMERA 1 WHEEL 2 0"),
        ("rigs.txt", "1 1 CAMERA 1 CAMERA 2 0"),
        ("rigs.txt", "1 999999999 CAMERA 1"),
        ("frames.txt", "1 1 1 0 0 0 0 0 0 2 CAMERA 1 1"),
        ("frames.txt", "1 1 1 0 0 0 0 0 0 1 CAMERA 1"),
        ("frames.txt", "1 1 1 0 0 0 0 0"),
    ],
)
def test_a_line_that_says_something_else_is_shown(tmp_path, name, line):
    write_colmap(a_rig(3), tmp_path)
    text_form(tmp_path / "sparse/0")
    (tmp_path / "sparse/0" / name).write_text(line + "\n")
    with pytest.raises(CaptureError, match="expected"):
        load_capture(tmp_path)


def _pycolmap(code: str, *words: str) -> str:
    if importlib.util.find_spec("pycolmap") is None:
        pytest.skip("pycolmap is not installed")
    command = [sys.executable, "-c", "import json, os, sys, numpy as np, pycolmap\n" + code, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_pycolmap_reads_our_rig(tmp_path):
    capture = a_rig(4, lost=(4, 11))
    write_colmap(capture, tmp_path)
    told = json.loads(
        _pycolmap(
            "rec = pycolmap.Reconstruction(sys.argv[1])\n"
            "poses = {i.name: i.cam_from_world().matrix().tolist() for i in rec.images.values()}\n"
            "taken = [sorted(d.id for d in f.data_ids) for f in rec.frames.values()]\n"
            "print(json.dumps([poses, len(rec.rigs), rec.num_reg_frames(), taken]))",
            str(tmp_path / "sparse/0"),
        )
    )
    poses, rigs, registered, taken = told
    assert (rigs, registered) == (1, 4) and sorted(map(len, taken)) == [2, 2, 3, 3]
    for frame in load_capture(tmp_path).frames:
        found = next(pose for name, pose in poses.items() if name.startswith(frame.name + "."))
        np.testing.assert_allclose(found, frame.camera.viewmat[:3].numpy(), atol=1e-12)


@pytest.mark.parametrize("form", ["binary", "text"])
def test_a_rig_of_pycolmap_has_the_poses_pycolmap_says(tmp_path, form):
    (tmp_path / "sparse/0").mkdir(parents=True)
    code = """
rng = np.random.default_rng(0)
def rigid():
    q = rng.normal(size=4)
    return pycolmap.Rigid3d(pycolmap.Rotation3d(q / np.linalg.norm(q)), rng.normal(size=3) * 3)
rec, kind = pycolmap.Reconstruction(), pycolmap.SensorType.CAMERA
for camera in (3, 5, 9):
    rec.add_camera(pycolmap.Camera(
        camera_id=camera, model="PINHOLE", width=16, height=12, params=[11.5, 11.0, 8.25, 6.5]))
rig = pycolmap.Rig(rig_id=7)
rig.add_ref_sensor(pycolmap.sensor_t(kind, 5))
for camera in (3, 9):
    rig.add_sensor(pycolmap.sensor_t(kind, camera), rigid())
rec.add_rig(rig)
names, image = {5: "front", 3: "left", 9: "right"}, 20
for moment in range(4):
    frame, images = pycolmap.Frame(frame_id=30 - moment, rig_id=7), []
    frame.rig_from_world = rigid()
    for camera in (9, 5, 3):
        images.append(pycolmap.Image(
            name=f"{names[camera]}/{moment:03d}.jpg", camera_id=camera, image_id=image))
        images[-1].frame_id = 30 - moment
        frame.add_data_id(images[-1].data_id)
        image += 3
    rec.add_frame(frame)
    for one in images:
        rec.add_image(one)
    rec.register_frame(30 - moment)
getattr(rec, "write_" + sys.argv[2])(sys.argv[1])
print(json.dumps({i.name: i.cam_from_world().matrix().tolist() for i in rec.images.values()}))
"""
    told = json.loads(_pycolmap(code, str(tmp_path / "sparse/0"), form))
    for name in told:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded_image())
    capture = load_capture(tmp_path)
    assert capture.camera_names == ["front", "left", "right"] and len(capture) == 12
    assert [f.camera.time for f in capture.frames[::3]] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    for frame in capture.frames:
        want = np.array(told[f"{frame.name}.jpg"])
        np.testing.assert_allclose(frame.camera.viewmat[:3].numpy(), want, atol=1e-12)
    assert mounts(capture.trajectory) is not None
