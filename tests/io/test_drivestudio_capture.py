"""DriveStudio's processed folders of six data sets, written here by hand on a curved path."""

import json

import cv2
import numpy as np
import pytest
import torch
from reference import slow_drivestudio as slow

from faithfusion_studio.cameras import offset_laterally
from faithfusion_studio.io import attach_capture, load_capture, load_scene, sniff
from faithfusion_studio.io.attaching import rotation_of_six
from faithfusion_studio.io.capture_files import CaptureError
from faithfusion_studio.lens import Lens
from faithfusion_studio.rig import mounts, rig_of

SETS = {
    "waymo": {"size": (1920, 1280), "columns": 14, "xyz": 3, "per_frame": False},
    "kitti": {"size": (1242, 375), "columns": 4, "xyz": 0, "per_frame": False},
    "nuscenes": {"size": (1600, 900), "columns": 4, "xyz": 0, "per_frame": True},
    "argoverse": {"size": (1550, 2048), "columns": 4, "xyz": 0, "per_frame": False},
    "nuplan": {"size": (1920, 1080), "columns": 6, "xyz": 0, "per_frame": False},
    "pandaset": {"size": (1920, 1080), "columns": 5, "xyz": 0, "per_frame": True},
}
FRAMES = 3
GLOBAL = np.array([4.5e5, 5.4e6, 120.0])
"""As far from the origin as map coordinates are."""


def turn(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def rigid(rotation, shift) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, shift
    return pose


def ego(t: int) -> np.ndarray:
    """A left bend of 0.2 rad a frame, far from the origin."""
    return rigid(turn(0.3 + 0.2 * t), GLOBAL + [10 * np.sin(0.2 * t), 10 - 10 * np.cos(0.2 * t), 0])


# A camera that looks along the vehicle: OpenCV x, y, z are the vehicle's -y, -z, x.
LOOKING = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])


def mount(camera: int) -> np.ndarray:
    """Camera (OpenCV axes) to ego."""
    return rigid(turn(0.5 * camera) @ LOOKING, [1.5, 0.2 * camera, 1.6])


def write_folder(root, name: str, cameras=(0, 1), bend=(0.0,) * 5):
    spec = SETS[name]
    for part in (
        "images",
        "intrinsics",
        "extrinsics",
        "ego_pose",
        "lidar",
        "lidar_pose",
        "instances",
    ):
        (root / part).mkdir(parents=True)
    picture = np.full((spec["size"][1], spec["size"][0], 3), 90, np.uint8)
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    for camera in cameras:
        numbers = [700.0, 710.0, 300.25, 200.5, *bend]
        (root / f"intrinsics/{camera}.txt").write_text("\n".join(map(str, numbers)))
        axes = rigid(LOOKING.T, [0, 0, 0]) if name == "waymo" else np.eye(4)
        np.savetxt(root / f"extrinsics/{camera}.txt", mount(camera) @ axes)
    for t in range(FRAMES):
        np.savetxt(root / f"ego_pose/{t:03d}.txt", ego(t))
        for camera in cameras:
            (root / f"images/{t:03d}_{camera}.jpg").write_bytes(data)
            if spec["per_frame"]:
                np.savetxt(root / f"extrinsics/{t:03d}_{camera}.txt", ego(t) @ mount(camera))
        sensor = rigid(turn(-0.4), [0.5, 0, 1.8])
        np.savetxt(root / f"lidar_pose/{t:03d}.txt", ego(t) @ sensor)
        rows = np.zeros((4, spec["columns"]), np.float32)
        local = POINTS if name != "nuscenes" else (POINTS - sensor[:3, 3]) @ sensor[:3, :3]
        rows[:, spec["xyz"] : spec["xyz"] + 3] = local
        rows.tofile(root / f"lidar/{t:03d}.bin")
    if spec["per_frame"]:
        for camera in cameras:
            (root / f"extrinsics/{camera}.txt").unlink()
    if name != "nuscenes":
        for t in range(FRAMES):
            (root / f"lidar_pose/{t:03d}.txt").unlink()
    write_instances(root)


POINTS = np.array([[5.0, 1, 0], [12, -3, 0.5], [20, 0, 2], [3, 3, 1]])


def write_instances(root):
    steps = [0, 2]
    content = {
        "0": {
            "id": "a7",
            "class_name": "Vehicle",
            "frame_annotations": {
                "frame_idx": steps,
                "obj_to_world": [(ego(t) @ rigid(turn(0.1), [9, 2, 0.8])).tolist() for t in steps],
                "box_size": [[4.5, 1.9, 1.5], [4.7, 1.9, 1.5]],
            },
        },
        "1": {"id": "b", "class_name": "Unheard of", "frame_annotations": {
            "frame_idx": [99], "obj_to_world": [np.eye(4).tolist()], "box_size": [[1, 1, 1]]}},
    }  # fmt: skip
    (root / "instances/instances_info.json").write_text(json.dumps(content))


@pytest.fixture(params=sorted(SETS))
def folder(request, tmp_path):
    write_folder(tmp_path, request.param)
    return request.param, tmp_path


def origin(name: str) -> np.ndarray:
    return ego(0) @ mount(0) if name == "nuscenes" else ego(0)


def test_cameras_stand_where_the_rig_put_them(folder):
    name, root = folder
    capture = load_capture(root)
    assert sniff(root) == "capture" and name in capture.source
    second = {"nuplan": "left_0", "argoverse": "ring_1", "kitti": "right"}.get(name, "front_left")
    first = "left" if name == "kitti" else "front"
    assert len(capture) == 2 * FRAMES and capture.camera_names == [first, second]
    world = np.linalg.inv(origin(name))
    for i, frame in enumerate(capture.frames):
        t, camera = divmod(i, 2)
        want = world @ ego(t) @ mount(camera)
        np.testing.assert_allclose(frame.camera.camtoworld, want, atol=1e-6)
        K = frame.camera.K
        assert (K[0, 0], K[1, 1], K[0, 2], K[1, 2]) == (700, 710, 300.25, 200.5)
        assert frame.camera.time == pytest.approx(t / 10)
        assert (frame.camera.width, frame.camera.height) == SETS[name]["size"]
        np.testing.assert_allclose(capture.trajectory.ego_to_worlds[i], world @ ego(t), atol=1e-6)
    assert not capture.trajectory.ego_is_camera


def test_the_rig_has_the_extrinsics_of_the_folder(folder):
    _, root = folder
    trajectory = load_capture(root).trajectory
    reference, seats = mounts(trajectory)
    assert reference == 0 and rig_of(trajectory).table == ((0, 1), (2, 3), (4, 5))
    np.testing.assert_allclose(seats[1], np.linalg.inv(mount(0)) @ mount(1), atol=1e-6)


def test_a_lane_shift_moves_the_whole_rig_along_the_ego_axis_of_each_moment(folder):
    name, root = folder
    trajectory = load_capture(root).trajectory
    shifted = offset_laterally(trajectory, 2.0)
    world = np.linalg.inv(origin(name))
    for i, camera in enumerate(shifted.cameras):
        t, which = divmod(i, 2)
        want = world @ ego(t) @ rigid(np.eye(3), [0, 2, 0]) @ mount(which)
        np.testing.assert_allclose(camera.camtoworld, want, atol=1e-6)


def test_lidar_returns_and_boxes_are_in_the_same_world(folder):
    name, root = folder
    capture = load_capture(root)
    world = np.linalg.inv(origin(name))
    assert len(capture.lidar) == FRAMES
    for t, sweep in enumerate(capture.lidar):
        pose = world @ ego(t)
        np.testing.assert_allclose(sweep, POINTS @ pose[:3, :3].T + pose[:3, 3], atol=2e-5)
    (box,) = capture.boxes  # the other one is in no frame
    assert box.name == "Vehicle a7" and box.category == "vehicle"
    np.testing.assert_allclose(box.size, [4.6, 1.9, 1.5], atol=1e-6)
    assert box.timestamps.tolist() == [0.0, 0.2]
    for pose, t in zip(box.poses, (0, 2), strict=True):
        np.testing.assert_allclose(pose, world @ ego(t) @ rigid(turn(0.1), [9, 2, 0.8]), atol=1e-6)


def test_a_bent_lens_and_masks_are_taken_over(tmp_path):
    write_folder(tmp_path, "waymo", bend=(0.1, -0.02, 1e-3, 0.0, 0.01))
    width, height = SETS["waymo"]["size"]
    mask = np.zeros((height, width), np.uint8)
    mask[:, :100] = 255
    for folder, value in (("dynamic_masks", 255), ("fine_dynamic_masks", 0)):
        (tmp_path / folder / "all").mkdir(parents=True)
        cv2.imwrite(
            str(tmp_path / folder / "all/000_0.png"), np.where(mask, value, 0).astype(np.uint8)
        )
    capture = load_capture(tmp_path)
    assert capture.frames[0].lens == Lens(
        "FULL_OPENCV", (0.1, -0.02, 1e-3, 0.0, 0.01, 0.0, 0.0, 0.0)
    )
    fine = cv2.imdecode(np.frombuffer(capture.frames[0].dynamic_mask, np.uint8), 0)
    assert fine.max() == 0, "the fine mask is preferred"
    assert capture.frames[2].dynamic_mask is None


def test_another_size_needs_the_name_of_the_data_set(tmp_path):
    root = tmp_path / "scene"
    write_folder(root, "kitti", cameras=(0,))
    small = cv2.imencode(".jpg", np.zeros((100, 300, 3), np.uint8))[1].tobytes()
    for t in range(FRAMES):
        (root / f"images/{t:03d}_0.jpg").write_bytes(small)
    with pytest.raises(CaptureError, match="waymo, kitti"):
        load_capture(root)
    named = tmp_path / "kitti" / "scene"
    named.parent.mkdir()
    root.rename(named)
    assert "kitti" in load_capture(named).source


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("ego_pose/001.txt", "1 2 3", "3 numbers"),
        ("ego_pose/001.txt", "nan " * 16, "finite"),
        ("intrinsics/0.txt", "x", "no number"),
        ("intrinsics/0.txt", "0 0 0 0", "focal"),
        ("lidar/000.bin", "abc", "float32"),
        ("instances/instances_info.json", '{"0": {}}', "frame_idx"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(tmp_path, file, content, word):
    write_folder(tmp_path, "kitti", cameras=(0,))
    (tmp_path / file).write_text(content)
    with pytest.raises(CaptureError) as error:
        load_capture(tmp_path)
    assert word in str(error.value) and "\n" not in str(error.value)


def test_missing_optional_parts_are_no_error(tmp_path):
    import shutil

    write_folder(tmp_path, "nuplan", cameras=(0,))
    for part in ("lidar", "instances", "lidar_pose"):
        shutil.rmtree(tmp_path / part)
    capture = load_capture(tmp_path)
    assert capture.lidar == () and capture.boxes == () and len(capture) == FRAMES


# ------------------------------------------------------------------- a checkpoint and its recording


def test_a_recording_is_attached_with_what_the_checkpoint_says_about_its_images(tmp_path):
    write_folder(tmp_path / "waymo", "waymo")
    capture = load_capture(tmp_path / "waymo")
    content = slow.make_checkpoint()  # its tables have 6 rows: 3 frames of 2 cameras
    torch.save(content, tmp_path / "c.pth")
    scene = attach_capture(load_scene(tmp_path / "c.pth"), capture)
    rows = content["models"]["CamPose"]["embeds.weight"].double().numpy()
    table = content["models"]["Affine"]
    for i, frame in enumerate(scene.capture.frames):
        want = capture.frames[i].camera.camtoworld.numpy() @ rigid(
            _six(rows[i, 3:] + [1, 0, 0, 0, 1, 0]), rows[i, :3]
        )
        np.testing.assert_allclose(frame.camera.camtoworld, want, atol=1e-9)
        assert frame.camera is scene.trajectory.cameras[i]
        rgb = torch.tensor([0.3, 0.5, 0.7])
        toned = scene.tone[:, :3] @ rgb + scene.tone[:, 3]
        exposure = scene.exposures[i]
        got = exposure[:, :3] @ toned + exposure[:, 3]
        row = slow.affine(table, table["embedding.weight"][i].double().numpy())
        np.testing.assert_allclose(got, row[:, :3] @ rgb.numpy() + row[:, 3], atol=1e-4)
    short = attach_capture(load_scene(tmp_path / "c.pth"), capture.select([0, 1, 2]))
    assert short.exposures is None
    assert sum("6 images and the recording has 3" in n for n in short.metadata["notes"]) == 2


def _six(v):
    a = v[:3] / np.linalg.norm(v[:3])
    b = v[3:] - (a @ v[3:]) * a
    b = b / np.linalg.norm(b)
    return np.stack([a, b, np.cross(a, b)])


def test_the_identity_moves_no_camera():
    rows = torch.tensor([[1.0, 0, 0, 0, 1, 0]], dtype=torch.float64)
    assert torch.equal(rotation_of_six(rows)[0], torch.eye(3, dtype=torch.float64))
