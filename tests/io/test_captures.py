import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from io_samples import a_capture, a_pose, cameras, encoded_image, write_colmap

from faithfusion_studio.cameras import trajectory_from_cameras
from faithfusion_studio.io import load_capture, read_colmap, sniff, write_cameras_json
from faithfusion_studio.io.camera_files import OPENGL_TO_OPENCV
from faithfusion_studio.io.capture_files import CaptureError, image_size, inside, natural_key
from faithfusion_studio.lens import Lens


def assert_same_cameras(capture, views, tolerance=1e-12):
    assert len(capture) == len(views)
    for frame, view in zip(capture.frames, views, strict=True):
        torch.testing.assert_close(frame.camera.camtoworld, view.camtoworld, rtol=0, atol=tolerance)
        torch.testing.assert_close(frame.camera.K, view.K, rtol=0, atol=1e-12)
        assert frame.camera.time == pytest.approx(view.time)


# ----------------------------------------------------------------------------------------- COLMAP


@pytest.mark.parametrize("binary", [True, False])
def test_a_colmap_folder_is_ordered_by_name(tmp_path, binary):
    names = ["frame 1.jpg", "frame 2.jpg", "frame 10.jpg", "frame 11.jpg"]
    views = write_colmap(tmp_path, names, binary=binary)
    capture = load_capture(tmp_path)
    assert [f.name for f in capture.frames] == [n.removesuffix(".jpg") for n in names]
    assert_same_cameras(capture, views)
    assert capture.points.xyz.tolist() == [[0, 2, 3], [1, 2, 3]]
    assert capture.points.rgb.tolist() == [[10, 20, 30], [11, 20, 30]]
    assert capture.trajectory.ego_is_camera
    assert capture.frames[2].image().shape == (12, 16, 3)


@pytest.mark.parametrize(
    "names", [["0_left", "0_right", "3_left", "3_right"], ["a/0", "a/1", "b/0", "b/1"]]
)
def test_the_two_sides_of_a_rig_share_their_times(tmp_path, names):
    write_colmap(tmp_path, [f"{name}.jpg" for name in names], binary=True)
    capture = load_capture(tmp_path)
    assert len(capture.camera_names) == 2
    assert capture.trajectory.timestamps == [0, 0, 0.1, 0.1]


def test_a_lens_without_distortion_values_is_a_pinhole(tmp_path):
    write_colmap(tmp_path, ["0.jpg", "1.jpg"], binary=False, model="SIMPLE_RADIAL")
    K = load_capture(tmp_path).frames[0].camera.K
    assert [K[0, 0], K[1, 1], K[0, 2], K[1, 2]] == [11.5, 11.5, 8.25, 6.5]
    cameras_txt = tmp_path / "sparse/0/cameras.txt"
    cameras_txt.write_text(cameras_txt.read_text().replace(" 0.0\n", " 0.01\n"))
    frame = load_capture(tmp_path).frames[0]
    assert frame.lens == Lens("SIMPLE_RADIAL", (0.01,))
    cameras_txt.write_text("1 EQUIRECTANGULAR 16 12 8 6\n")
    with pytest.raises(CaptureError, match="EQUIRECTANGULAR.*panorama"):
        load_capture(tmp_path)


def test_a_resized_image_folder_keeps_the_field_of_view(tmp_path):
    views = write_colmap(tmp_path, ["0.jpg", "1.jpg"], binary=True)
    for i in range(2):
        (tmp_path / f"images/{i}.jpg").write_bytes(encoded_image(8, 6))
    camera = load_capture(tmp_path).frames[0].camera
    assert (camera.width, camera.height) == (8, 6)
    torch.testing.assert_close(camera.K[:2], views[0].K[:2] / 2)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.97])
def test_a_truncated_colmap_file_is_one_sentence(tmp_path, name, share):
    write_colmap(tmp_path, ["0.jpg", "1.jpg", "2.jpg"], binary=True)
    path = tmp_path / "sparse/0" / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CaptureError, match=name):
        load_capture(tmp_path)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_a_count_that_is_too_small_loses_nothing_silently(tmp_path, name):
    write_colmap(tmp_path, ["0.jpg", "1.jpg", "2.jpg"], binary=True)
    path = tmp_path / "sparse/0" / name
    data = bytearray(path.read_bytes())
    data[0] -= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CaptureError, match="after its last record"):
        load_capture(tmp_path)


# ---------------------------------------------------------------------------------- transforms.json


def write_transforms(folder: Path, views, **extra) -> dict:
    content = {"fl_x": 11.5, "fl_y": 11.0, "cx": 8.25, "cy": 6.5, "w": 16, "h": 12, "frames": []}
    (folder / "images").mkdir(parents=True)
    for i in reversed(range(len(views))):
        (folder / f"images/{i}.png").write_bytes(encoded_image(seed=i, suffix=".png"))
        pose = views[i].camtoworld.numpy() @ OPENGL_TO_OPENCV
        content["frames"].append(
            {"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()}
        )
    content |= extra
    (folder / "transforms.json").write_text(json.dumps(content))
    return content


def test_transforms_json_is_turned_to_opencv_axes_and_ordered_by_name(tmp_path):
    views = cameras(3)
    write_transforms(tmp_path, views)
    assert_same_cameras(load_capture(tmp_path), views)


def test_blender_files_leave_out_suffix_size_and_focal_length(tmp_path):
    views = cameras(2)
    content = write_transforms(tmp_path, views)
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        del content[key]
    content["camera_angle_x"] = 2 * np.arctan(8 / 11.5)
    for frame in content["frames"]:
        frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    camera = load_capture(tmp_path).frames[0].camera
    torch.testing.assert_close(camera.K.diagonal(), torch.tensor([11.5, 11.5, 1]).double())
    assert (camera.K[0, 2], camera.K[1, 2]) == (8, 6)


@pytest.mark.parametrize(
    ("extra", "lens"),
    [
        ({"k1": 0.1}, Lens("FULL_OPENCV", (0.1, *[0.0] * 7))),
        ({"p2": -1e-3, "k3": 0.2}, Lens("FULL_OPENCV", (0.0, 0.0, 0.0, -1e-3, 0.2, 0.0, 0.0, 0.0))),
        (
            {"camera_model": "OPENCV_FISHEYE", "k4": 0.01},
            Lens("OPENCV_FISHEYE", (0.0, 0.0, 0.0, 0.01)),
        ),
    ],
)
def test_a_distorted_lens_is_straightened(tmp_path, extra, lens):
    write_transforms(tmp_path, cameras(2), **extra)
    capture = load_capture(tmp_path)
    assert capture.frames[0].lens == lens
    assert "1 lens is straightened" in " ".join(capture.notes)


def test_an_unknown_camera_model_is_refused_by_name(tmp_path):
    write_transforms(tmp_path, cameras(2), camera_model="EQUIRECTANGULAR")
    with pytest.raises(CaptureError, match="EQUIRECTANGULAR"):
        load_capture(tmp_path)


def test_a_black_mask_leaves_pixels_out(tmp_path):
    content = write_transforms(tmp_path, cameras(2))
    keep = np.full((12, 16), 255, np.uint8)
    keep[:, :4] = 0
    cv2.imwrite(str(tmp_path / "mask.png"), keep)
    content["frames"][0]["mask_path"] = "mask.png"
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    frames = {f.name: f for f in load_capture(tmp_path).frames}
    masks = [f.mask((16, 12)) for f in frames.values()]
    (mask,) = [m for m in masks if m is not None]
    assert bool(mask[:, :4].all()) and not bool(mask[:, 4:].any())


def test_distortion_of_zero_is_no_distortion(tmp_path):
    write_transforms(tmp_path, cameras(2), k1=0.0, k2=0, p1=0, camera_model="OPENCV")
    assert len(load_capture(tmp_path)) == 2


# ------------------------------------------------------------------------------------ cameras.json


@pytest.mark.parametrize("with_ego", [True, False])
def test_our_folder_comes_back_with_the_same_bytes(tmp_path, with_ego):
    capture = a_capture(4, names=("left", "right"), with_ego=with_ego)
    write_cameras_json(capture, tmp_path / "out")
    again = load_capture(tmp_path / "out")
    assert_same_cameras(again, capture.trajectory.cameras, 0)
    assert again.camera_names == ["left", "right"]
    for x, y in zip(again.frames, capture.frames, strict=True):
        assert (x.name, x.encoded(), x.dynamic_mask) == (y.name, y.encoded(), y.dynamic_mask)
    assert torch.equal(again.trajectory.ego_to_worlds, capture.trajectory.ego_to_worlds)
    assert again.trajectory.ego_is_camera is not with_ego
    assert torch.equal(again.points.xyz, capture.points.xyz)
    assert torch.equal(again.points.rgb, capture.points.rgb)
    assert (again.source, again.licence) == (capture.source, capture.licence)


def rewrite(folder: Path, change) -> None:
    content = json.loads((folder / "cameras.json").read_text())
    change(content)
    (folder / "cameras.json").write_text(json.dumps(content))


def test_times_come_from_fps_and_the_index_within_each_camera(tmp_path):
    write_cameras_json(a_capture(4, names=("left", "right")), tmp_path)

    def change(content):
        content["fps"] = 5
        for frame in content["frames"]:
            del frame["time"]

    rewrite(tmp_path, change)
    assert load_capture(tmp_path).trajectory.timestamps == [0, 0, 0.2, 0.2]


def test_names_and_poses_of_cameras_json_win_over_a_colmap_model(tmp_path):
    write_colmap(tmp_path, ["0.jpg", "1.jpg"], binary=True)
    path = trajectory_from_cameras(
        [replace(c, camtoworld=a_pose(9, 9), name="front") for c in cameras(2)]
    )
    (tmp_path / "cameras.json").write_text("{}")
    assert load_capture(tmp_path).camera_names == [""]
    write_cameras_json(path, tmp_path)
    rewrite(
        tmp_path, lambda c: [f.update(file=f"images/{i}.jpg") for i, f in enumerate(c["frames"])]
    )
    capture = load_capture(tmp_path)
    assert capture.camera_names == ["front"]
    assert torch.equal(capture.trajectory.camtoworlds[0], a_pose(9, 9))
    assert capture.points.xyz.tolist() == [[0, 2, 3], [1, 2, 3]]


def test_a_folder_that_only_wraps_a_recording_is_accepted(tmp_path):
    write_cameras_json(a_capture(), tmp_path / "recorded")
    assert sniff(tmp_path) == "capture"
    assert len(load_capture(tmp_path)) == 3


def test_missing_images_are_left_out_with_a_count_and_keep_the_times(tmp_path):
    write_cameras_json(a_capture(4), tmp_path)
    (tmp_path / "images/000001.jpg").unlink()
    (tmp_path / "images/000002.jpg").write_bytes(b"not an image")
    capture = load_capture(tmp_path)
    assert capture.trajectory.timestamps == pytest.approx([0, 0.3])
    assert capture.notes[0].startswith("2 of 4 frames were left out")
    (tmp_path / "images/000003.jpg").unlink()
    with pytest.raises(CaptureError, match="3 of 4 images are missing"):
        load_capture(tmp_path)


def test_sweeps_are_placed_in_the_world(tmp_path):
    write_cameras_json(a_capture(), tmp_path)
    pose = a_pose(3.0, 4)
    (tmp_path / "lidar").mkdir()
    xyz = np.array([[250, 0, 500], [0, 1000, 0]], np.int16)
    np.savez(tmp_path / "lidar/0.npz", xyz_mm4=xyz, intensity=np.zeros(2, np.uint8))
    rewrite(
        tmp_path,
        lambda c: c["frames"][0].update(lidar="lidar/0.npz", world_from_lidar=pose.tolist()),
    )
    sweep = load_capture(tmp_path).lidar[0]
    local = torch.tensor([[1.0, 0, 2], [0, 4, 0]], dtype=torch.float64)
    torch.testing.assert_close(sweep, (local @ pose[:3, :3].T + pose[:3, 3]).float())


BROKEN = {
    "no frames": lambda c: c.update(frames=[]),
    "a frame that is a number": lambda c: c["frames"].__setitem__(0, 4),
    "an unknown camera": lambda c: c["frames"][1].update(camera="rear"),
    "a scaled pose": lambda c: c["frames"][0].update(world_from_camera=(2 * np.eye(4)).tolist()),
    "a singular pose": lambda c: c["frames"][0].update(world_from_camera=np.zeros((4, 4)).tolist()),
    "a mirrored pose": lambda c: c["frames"][0].update(
        world_from_camera=np.diag([1, 1, -1, 1]).tolist()
    ),
    "a short pose": lambda c: c["frames"][0].update(world_from_camera=[[1, 2, 3]]),
    "a pose of text": lambda c: c["frames"][0].update(world_from_camera="identity"),
    "a NaN pose": lambda c: c["frames"][0].update(world_from_camera=[[float("nan")] * 4] * 4),
    "no pose": lambda c: c["frames"][2].pop("world_from_camera"),
    "a focal length of zero": lambda c: c["cameras"][""].update(fx=0),
    "a size that is not the image's": lambda c: c["cameras"][""].update(width=99),
    "a huge width": lambda c: c["cameras"][""].update(width=10**400),
    "a lens model": lambda c: c["cameras"][""].update(model="OPENCV"),
    "distortion": lambda c: c["cameras"][""].update(k1=0.2),
    "fps of zero": lambda c: c.update(fps=0),
    "a lens that is a list": lambda c: c["cameras"].update({"": [1, 2]}),
    "an ego pose on some frames": lambda c: c["frames"][0].pop("world_from_ego"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_camera_file_is_one_sentence(tmp_path, what):
    write_cameras_json(a_capture(), tmp_path)
    rewrite(tmp_path, BROKEN[what])
    with pytest.raises(CaptureError) as caught:
        load_capture(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


# ---------------------------------------------------------------------------------- escaping paths

ATTACKS = [
    "../secret.jpg",
    "images/../../secret.jpg",
    "/etc/passwd",
    "..\\secret.jpg",
    "images\\..\\..\\secret.jpg",
    "\\\\server\\share\\secret.jpg",
    "//server/share/secret.jpg",
    "images/link.jpg",
    "linked/secret.jpg",
    "images/a\0.jpg",
    "",
    ".",
    "..",
    "images/./.././../secret.jpg",
    "images/" + "../" * 50 + "etc/passwd",
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("layout", ["cameras.json", "transforms.json"])
def test_no_image_outside_the_folder_is_read(tmp_path, attack, layout):
    (tmp_path / "secret.jpg").write_bytes(encoded_image())
    root = tmp_path / "capture"
    if layout == "cameras.json":
        write_cameras_json(a_capture(), root)
        key = "file"
    else:
        write_transforms(root, cameras(3))
        key = "file_path"
    (root / "images/link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "linked").symlink_to(tmp_path)
    content = json.loads((root / layout).read_text())
    content["frames"][0][key] = attack
    (root / layout).write_text(json.dumps(content))
    with pytest.raises(CaptureError, match="outside its folder"):
        load_capture(root)


def test_percent_signs_in_names_are_only_characters(tmp_path):
    assert inside(tmp_path, "%2e%2e/a.jpg").parent.name == "%2e%2e"


def test_sizes_are_read_from_headers_only(tmp_path):
    for suffix in (".jpg", ".png"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(encoded_image(33, 21, suffix=suffix))
        assert image_size(path) == (33, 21)
        path.write_bytes(path.read_bytes()[:12])
        assert image_size(path) is None
    assert image_size(tmp_path / "missing.jpg") is None


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path):
    write_cameras_json(a_capture(), tmp_path)
    png = bytearray(encoded_image(suffix=".png"))
    png[16:24] = (60_000).to_bytes(4, "big") + (45_000).to_bytes(4, "big")
    (tmp_path / "images/000000.jpg").write_bytes(bytes(png))
    with pytest.raises(CaptureError, match="60000x45000"):
        load_capture(tmp_path)


def test_frame_2_comes_before_frame_10():
    assert sorted(["f10", "f2", "g1", "f2b", "3"], key=natural_key) == [
        "3",
        "f2",
        "f2b",
        "f10",
        "g1",
    ]


# --------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("name", "frames", "names", "sweeps"),
    [
        ("kitti_boulevard", 91, ["cam"], 0),
        ("kitti_stereo_country", 40, ["left", "right"], 0),
        ("kitti_traffic_lidar", 26, ["cam"], 26),
        ("street", 48, ["front"], 0),
    ],
)
def test_the_shared_recordings_open(shared_data, name, frames, names, sweeps):
    capture = load_capture(shared_data(name))
    assert (len(capture), capture.camera_names, len(capture.lidar)) == (frames, names, sweeps)
    assert len(capture.points.xyz) > 5000
    assert len(set(capture.trajectory.timestamps)) == frames // len(names)
    assert capture.frames[-1].image().shape[2] == 3


@pytest.mark.parametrize("name", ["kitti_boulevard", "kitti_stereo_country", "street/recorded"])
def test_camera_files_and_colmap_models_of_the_shared_data_agree(shared_data, name):
    ours, theirs = load_capture(shared_data(name)), read_colmap(shared_data(name))
    assert [f.name for f in ours.frames] == [f.name for f in theirs.frames]
    assert ours.trajectory.timestamps == theirs.trajectory.timestamps
    torch.testing.assert_close(
        ours.trajectory.camtoworlds, theirs.trajectory.camtoworlds, rtol=0, atol=5e-6
    )
