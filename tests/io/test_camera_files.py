import json

import numpy as np
import pytest
import torch
from io_samples import a_pose, cameras

from faithfusion_studio.cameras import trajectory_from_cameras
from faithfusion_studio.io import camera_path_stems, read_camera_path, write_camera_path
from faithfusion_studio.io.capture_files import CaptureError


@pytest.mark.parametrize("with_ego", [True, False])
def test_a_camera_path_comes_back_exactly(tmp_path, with_ego):
    views = cameras(4, names=("front", "left"))
    egos = torch.stack([a_pose(i, 30 + i) for i in range(4)]) if with_ego else None
    path = trajectory_from_cameras(views, egos)
    write_camera_path(path, tmp_path / "path.json", files=["a/x.jpg", "a/y.jpg", "b/z.png", "w"])
    again = read_camera_path(tmp_path / "path.json")
    assert torch.equal(again.camtoworlds, path.camtoworlds)
    assert torch.equal(again.ego_to_worlds, path.ego_to_worlds)
    assert again.ego_is_camera is not with_ego
    for x, y in zip(again.cameras, views, strict=True):
        assert torch.equal(x.K, y.K)
        assert (x.width, x.height, x.time, x.name) == (y.width, y.height, y.time, y.name)
    assert camera_path_stems(tmp_path / "path.json") == ["x", "y", "z", "w"]


def test_lenses_that_share_a_name_are_kept_apart(tmp_path):
    first, second = cameras(2)
    path = trajectory_from_cameras([first, second.scaled(0.5)])
    write_camera_path(path, tmp_path / "path.json")
    again = read_camera_path(tmp_path / "path.json")
    assert [(c.width, c.height) for c in again.cameras] == [(16, 12), (8, 6)]


def test_stems_are_numbers_where_names_repeat_or_are_missing(tmp_path):
    path = trajectory_from_cameras(cameras(2))
    write_camera_path(path, tmp_path / "path.json", files=["left/0.jpg", "right/0.jpg"])
    assert camera_path_stems(tmp_path / "path.json") == ["000000", "000001"]
    content = json.loads((tmp_path / "path.json").read_text())
    for frame in content["frames"]:
        del frame["file"]
    (tmp_path / "path.json").write_text(json.dumps(content))
    assert camera_path_stems(tmp_path / "path.json") == ["000000", "000001"]
    assert len(read_camera_path(tmp_path / "path.json")) == 2


def nerfview_path(poses, **extra) -> dict:
    """What nerfview 0.1.3 saves: the rotation is turned by 180 degrees about x, fov in degrees."""
    flip = np.diag([1.0, -1, -1, 1])
    entries = [
        {"camera_to_world": (p @ flip).flatten().tolist(), "fov": 60.0, "aspect": 2.0}
        for p in poses
    ]
    keyframes = [{"matrix": e["camera_to_world"], "fov": 60.0, "aspect": 2.0} for e in entries]
    return {"keyframes": keyframes[:1], "camera_path": entries, "fps": 20.0, **extra}


def test_a_nerfview_path_is_turned_to_opencv_axes(tmp_path):
    poses = [a_pose(i, i).numpy() for i in range(3)]
    content = nerfview_path(poses, render_width=400, render_height=200)
    (tmp_path / "path.json").write_text(json.dumps(content))
    path = read_camera_path(tmp_path / "path.json")
    np.testing.assert_allclose(path.camtoworlds.numpy(), np.stack(poses), atol=1e-12)
    assert path.timestamps == [0, 0.05, 0.1]
    camera = path.cameras[0]
    assert (camera.width, camera.height) == (400, 200)
    assert float(camera.K[1, 1]) == pytest.approx(100 / np.tan(np.pi / 6))  # fov is vertical
    assert camera_path_stems(tmp_path / "path.json") == ["000000", "000001", "000002"]


def test_a_nerfview_path_without_size_takes_the_given_one_and_keeps_render_times(tmp_path):
    content = nerfview_path([a_pose(0).numpy()])
    content["camera_path"][0]["render_time"] = 2.5
    (tmp_path / "path.json").write_text(json.dumps(content))
    camera = read_camera_path(tmp_path / "path.json", size=(320, 240)).cameras[0]
    assert (camera.width, camera.height, camera.time) == (320, 240, 2.5)


def test_a_nerfview_file_with_key_frames_only_uses_them(tmp_path):
    content = nerfview_path([a_pose(0, 4).numpy()])
    del content["camera_path"]
    (tmp_path / "path.json").write_text(json.dumps(content))
    torch.testing.assert_close(
        read_camera_path(tmp_path / "path.json").cameras[0].camtoworld, a_pose(0, 4)
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1, 2]",
        "{",
        "[" * 100_000,
        "{}",
        '{"cameras": {}, "frames": []}',
        '{"camera_path": []}',
        '{"camera_path": [3]}',
        '{"camera_path": [{"camera_to_world": [1, 2], "fov": 50}]}',
        '{"cameras": {}, "frames": [{}]}',
        '{"fps": 1e999, "camera_path": [{}]}',
        "\x00\x01",
    ],
)
def test_a_broken_camera_path_is_one_sentence(tmp_path, content):
    (tmp_path / "path.json").write_text(content)
    with pytest.raises(CaptureError) as caught:
        read_camera_path(tmp_path / "path.json")
    assert str(tmp_path / "path.json") in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_camera_path_is_one_sentence(tmp_path):
    with pytest.raises(CaptureError, match="No such file"):
        read_camera_path(tmp_path / "path.json")


def test_the_shared_truth_cameras_open(shared_data):
    path = shared_data("street/truth/cameras_+3.0.json")
    assert len(read_camera_path(path)) == 8
    assert camera_path_stems(path)[:2] == ["000008", "000012"]
