"""Videos of several cameras: a file for each or a grid, with the name of the camera on each picture."""

from dataclasses import replace

import numpy as np
import pytest
from test_cameras import curved_egos
from test_rig import three
from test_video import decoded, names, scene  # noqa: F401

from faithfusion_studio.cameras import offset_laterally, trajectory_from_cameras
from faithfusion_studio.rig_video import (
    choose_cameras,
    export_rig,
    export_steps,
    rig_files,
    tiled,
)
from faithfusion_studio.video import VideoError, VideoOptions, render_layers

OPTIONS = VideoOptions(size=(64, 48), crf=4)


@pytest.fixture
def cameras():
    path = trajectory_from_cameras(three(curved_egos(4), lost={(2, "right")}))
    return list(offset_laterally(path, 1.5).cameras)


def test_each_camera_gets_a_video_of_all_moments(scene, cameras, tmp_path):  # noqa: F811
    told = list(export_rig(scene, cameras, tmp_path / "a.mp4", OPTIONS))
    assert told == [1, 2, 3, 4] and export_steps(cameras, tmp_path / "a.mp4", "files") == 4
    assert names(tmp_path) == ["a_ahead.mp4", "a_left.mp4", "a_right.mp4"]
    assert [p.name for p in rig_files(cameras, tmp_path / "a.mp4", OPTIONS, "files")] == [
        "a_left.mp4", "a_ahead.mp4", "a_right.mp4"
    ]  # fmt: skip
    for name in ("left", "ahead", "right"):
        frames = decoded(tmp_path / f"a_{name}.mp4")
        own = [camera for camera in cameras if camera.name == name]
        assert len(frames) == 4
        for moment in (0, 3):
            camera = own[moment if name != "right" else min(moment, 2)]
            truth = render_layers(scene, camera, OPTIONS).pictures["rgb"].numpy()
            upper = np.s_[:24]  # the caption is below
            assert np.abs(frames[moment][upper].astype(int) - truth[upper]).mean() < 4
            assert np.abs(frames[moment].astype(int) - truth).max() > 60


def test_a_grid_is_one_video_with_every_camera_in_its_place(scene, cameras, tmp_path):  # noqa: F811
    assert list(export_rig(scene, cameras, tmp_path / "a.mp4", OPTIONS, arrange="grid"))[-1] == 4
    assert names(tmp_path) == ["a.mp4"]
    frames = decoded(tmp_path / "a.mp4")
    assert frames[0].shape == (48, 192, 3) and len(frames) == 4
    for column in range(3):
        truth = render_layers(scene, cameras[column], OPTIONS).pictures["rgb"].numpy()
        part = frames[0][:24, 64 * column : 64 * (column + 1)]
        assert np.abs(part.astype(int) - truth[:24]).mean() < 4


def test_other_sizes_of_the_rig_become_those_of_its_first_camera(scene, cameras, tmp_path):  # noqa: F811
    mixed = [c.resized(32, 24) if c.name == "right" else c for c in cameras]
    options = replace(OPTIONS, size=None)
    list(export_rig(scene, mixed, tmp_path / "a.mp4", options))
    shapes = [
        decoded(path)[0].shape[:2]
        for path in rig_files(mixed, tmp_path / "a.mp4", options, "files")
    ]
    assert shapes == [(48, 64), (48, 64), (24, 32)]
    list(export_rig(scene, mixed, tmp_path / "b.mp4", options, arrange="grid"))
    assert decoded(tmp_path / "b.mp4")[0].shape == (48, 192, 3)


def test_a_folder_holds_a_grid_per_moment_or_all_frames(scene, cameras, tmp_path):  # noqa: F811
    list(export_rig(scene, cameras, tmp_path / "g", OPTIONS, arrange="grid"))
    assert names(tmp_path / "g") == [f"{i:06d}_grid.png" for i in range(4)]
    assert list(export_rig(scene, cameras, tmp_path / "f", OPTIONS))[-1] == 11
    assert export_steps(cameras, tmp_path / "f", "files") == 11
    assert len(names(tmp_path / "f")) == 11


@pytest.mark.parametrize("arrange", ["files", "grid"])
def test_a_cancelled_export_of_a_rig_leaves_nothing(scene, cameras, tmp_path, arrange):  # noqa: F811
    work = export_rig(scene, cameras, tmp_path / "a.mp4", OPTIONS, arrange=arrange)
    next(work)
    work.close()
    assert list(tmp_path.iterdir()) == []


def test_the_cameras_that_are_not_on_the_rig_are_named():
    rig = ("front", "left", "right")
    assert choose_cameras(rig, ["right", "front"]) == ["front", "right"]
    assert choose_cameras(rig, ["all"]) == list(rig) and choose_cameras(("",), ["camera"]) == [""]
    with pytest.raises(
        VideoError, match="'back' is not on this rig; choose from front, left, right"
    ):
        choose_cameras(rig, ["back"])


def test_tiles_are_as_square_as_may_be():
    pictures = [np.full((2, 3, 3), i + 1, np.uint8) for i in range(8)]
    assert tiled(pictures[:1]).shape == (2, 3, 3) and tiled(pictures[:3]).shape == (2, 9, 3)
    assert tiled(pictures[:4]).shape == (4, 6, 3) and tiled(pictures[:6]).shape == (4, 9, 3)
    eight = tiled(pictures)
    assert eight.shape == (6, 9, 3) and eight[-1, -1, 0] == 0 and eight[2, 0, 0] == 4


def test_truth_goes_with_one_camera(scene, cameras, tmp_path):  # noqa: F811
    options = VideoOptions(layout="columns", before=scene, truth=(tmp_path / "x.png",) * 11)
    with pytest.raises(VideoError, match="truth: goes with one camera"):
        export_rig(scene, cameras, tmp_path / "a.mp4", options)
