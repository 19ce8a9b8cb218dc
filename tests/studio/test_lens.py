"""Our cameras and the browser's describe the same rays."""

import math

import pytest
import torch
from street_scene import recorded_camera

from faithfusion_studio.studio.lens import (
    fit_size,
    pose_of,
    see_through,
    shares_centre,
    vertical_fov,
)


def test_a_recorded_camera_survives_the_trip_through_the_browser():
    camera = recorded_camera(3)
    back = pose_of(camera, (camera.width, camera.height)).camera(camera.width, camera.height, 0.3)
    torch.testing.assert_close(back.camtoworld, camera.camtoworld)
    torch.testing.assert_close(back.K, camera.K)


def test_the_recorded_lens_is_kept_until_half_of_a_panorama_would_be_cut():
    camera = recorded_camera(0)
    own = 2 * math.atan(camera.height / 2 / 60)
    assert vertical_fov(camera, 3.0) == pytest.approx(own)
    assert vertical_fov(camera, 1.0) == pytest.approx(own)
    narrow = vertical_fov(camera, 0.5)
    half_width = math.atan(0.5 * camera.width / 2 / 60)
    assert narrow > own
    assert math.atan(0.5 * math.tan(narrow / 2)) == pytest.approx(half_width)


def test_poses_resemble_each_other_only_when_place_direction_and_lens_agree():
    a = pose_of(recorded_camera(0), (800, 600))
    b = pose_of(recorded_camera(1), (800, 600))
    wider = pose_of(recorded_camera(0), (800, 600), fov_scale=1.5)
    resized = pose_of(recorded_camera(0), (400, 300))
    assert a.resembles(resized)
    assert not a.resembles(b)
    assert a.stands_like(wider)
    assert not a.resembles(wider)


def test_a_picture_seen_through_its_own_camera_is_itself():
    camera = recorded_camera(0)
    image = torch.rand(camera.height, camera.width, 3)
    seen, inside = see_through(image, camera, camera)
    torch.testing.assert_close(seen, image)
    assert bool(inside[1:-1, 1:-1].all())


def test_a_wider_lens_shows_the_picture_smaller_in_the_middle():
    camera = recorded_camera(0)
    wide = pose_of(camera, (camera.width, camera.height), fov_scale=2.0)
    target = wide.camera(camera.width, camera.height, 0.0)
    _, inside = see_through(torch.ones(camera.height, camera.width, 3), camera, target)
    share = float(inside.float().mean())
    assert share == pytest.approx(0.25, abs=0.04)
    assert not bool(inside[0, 0])


def test_nothing_behind_a_camera_is_shown():
    camera = recorded_camera(0)
    turn = torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64))
    backwards = camera.moved(camera.camtoworld @ turn)
    _, inside = see_through(torch.ones(camera.height, camera.width, 3), camera, backwards)
    assert not bool(inside.any())


def test_only_cameras_at_one_place_share_a_centre():
    assert shares_centre(recorded_camera(0), recorded_camera(0))
    assert not shares_centre(recorded_camera(0), recorded_camera(1))


def test_sizes_fit_the_budget_and_keep_the_shape():
    width, height = fit_size(1600, 900, 640 * 360)
    assert width * height <= 640 * 360 * 1.01
    assert width / height == pytest.approx(16 / 9, rel=0.01)
    assert fit_size(320, 180, 10**7) == (320, 180)
