"""Exact views and recordings: geometry, colour, truth from the side, files."""

import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from faithfusion_studio.cameras import Camera
from faithfusion_studio.io import load_capture, read_camera_path
from faithfusion_studio.synthetic import (
    Category,
    RecordingConfig,
    SyntheticError,
    drive,
    offset_name,
    record,
    trace_view,
    truth,
    write_recording,
)
from faithfusion_studio.synthetic.geometry import GeometryBuilder, Look, Material
from faithfusion_studio.synthetic.points import unproject, visible_in
from faithfusion_studio.synthetic.raytrace import sample_places

SIZE = (96, 54)


@pytest.fixture(scope="module")
def path(street):
    return drive(street, 4, SIZE)


@pytest.fixture(scope="module")
def views(street, path):
    return [trace_view(street, camera) for camera in path.cameras]


@pytest.fixture(scope="module")
def capture(street, path):
    return record(street, path, RecordingConfig(num_points=500, lidar=True))


def test_truth_without_offset_equals_the_recorded_frame(street, path, capture):
    for view, frame in zip(truth(street, path, 0.0), capture.frames, strict=True):
        error = np.abs(view.rgb - frame.image().numpy())
        assert error.mean() < 0.02
        assert np.quantile(error, 0.99) < 0.12


def test_tracing_is_repeatable(street, path, views):
    again = trace_view(street, path.cameras[1])
    np.testing.assert_array_equal(again.rgb, views[1].rgb)
    np.testing.assert_array_equal(again.depth, views[1].depth)


def test_views_have_sky_road_buildings_and_values_in_range(views):
    for view in views:
        assert view.rgb.shape == (54, 96, 3)
        assert view.rgb.min() >= 0 and view.rgb.max() <= 1
        assert view.rgb.std() > 0.1
        np.testing.assert_array_equal(view.sky_mask, view.category == Category.SKY)
        np.testing.assert_array_equal(view.depth == 0, view.sky_mask)
        assert {Category.SKY, Category.ROAD, Category.BUILDING} <= set(np.unique(view.category))
        assert (view.node_index == -1).all()


def test_depth_of_the_road_is_that_of_the_plane(path, views):
    for camera, view in zip(path.cameras, views, strict=True):
        row, column = np.nonzero(view.category == Category.ROAD)
        assert len(row) > 500
        # A camera 1.6 m above z = 0 that looks level: depth = 1.6 f / (row - cy).
        expected = 1.6 * float(camera.K[1, 1]) / (row + 0.5 - 27.0)
        np.testing.assert_allclose(view.depth[row, column], expected, rtol=2e-4)
        np.testing.assert_allclose(unproject(camera, view.depth, row, column)[:, 2], 0, atol=2e-3)


def test_depth_and_node_of_a_box_agree_with_its_place(street):
    builder = GeometryBuilder()
    builder.box(np.array((4.0, -3.0, 0.5)), np.array((5.0, 0.0, 2.5)), Look(Material.PLAIN))
    box = replace(builder.build(), node_index=np.full(10, 7, np.int16))
    world = replace(street, background=box)
    camera = drive(street, 1, SIZE).cameras[0]
    view = trace_view(world, camera)
    hit = view.node_index == 7
    assert hit.sum() > 400
    assert (view.depth[hit] == pytest.approx(4.0, rel=1e-5)) and view.sky_mask[~hit].all()
    row, column = np.nonzero(hit)
    points = unproject(camera, view.depth, row, column)
    assert points[:, 1].min() > -3.001 and points[:, 1].max() < 0.001
    assert points[:, 2].min() > 0.499 and points[:, 2].max() < 2.501


@pytest.mark.parametrize("offset", [3.0, -1.0])
def test_lateral_offset_moves_the_camera_to_the_left_of_the_ego(street, path, views, offset):
    shifted = truth(street, path, offset)[0]
    # The same road plane and the same distance, but the centre line moves to the right.
    np.testing.assert_allclose(shifted.depth[50], views[0].depth[50], rtol=1e-3)
    moved = drive(street, 1, SIZE).cameras[0]
    pose = moved.camtoworld.clone()
    pose[1, 3] += offset  # the first ego frame is the world's, so left is world +y
    expected = trace_view(street, moved.moved(pose))
    np.testing.assert_allclose(shifted.depth, expected.depth, rtol=1e-5)
    np.testing.assert_allclose(shifted.rgb, expected.rgb, atol=1e-5)


def _warp_error(street, source: Camera, target: Camera) -> tuple[float, float]:
    """Mean colour difference of surfaces seen by both, and of the same pixels unwarped."""
    a, b = trace_view(street, source), trace_view(street, target)
    row, column = np.nonzero((a.depth > 0) & (a.depth < 30))
    world = unproject(source, a.depth, row, column)
    seen = visible_in(target, b, world)
    local = world[seen] @ target.viewmat.numpy()[:3, :3].T + target.viewmat.numpy()[:3, 3]
    K = target.K.numpy()
    at = (local[:, :2] / local[:, 2:] * K[[0, 1], [0, 1]] + K[:2, 2] - 0.5).astype(np.float32)
    warped = cv2.remap(b.rgb, at[None, :, 0], at[None, :, 1], cv2.INTER_LINEAR)[0]
    own = a.rgb[row[seen], column[seen]]
    assert seen.mean() > 0.5
    still = b.rgb[row[seen], column[seen]]
    return float(np.abs(warped - own).mean()), float(np.abs(still - own).mean())


def test_a_neighbour_warped_through_exact_depth_agrees_in_colour(street):
    cameras = drive(street, 2, (192, 108)).cameras
    warped, still = _warp_error(street, cameras[0], cameras[1])
    assert warped < 0.03
    assert warped < 0.5 * still


def test_the_side_view_warped_through_exact_depth_agrees_in_colour(street):
    path = drive(street, 1, (192, 108))
    from faithfusion_studio.cameras import offset_laterally

    side = offset_laterally(path, 1.0)
    warped, still = _warp_error(street, path.cameras[0], side.cameras[0])
    assert warped < 0.04
    assert warped < 0.5 * still


def test_one_sample_and_four_agree_but_for_edges(street, path):
    one, four = (trace_view(street, path.cameras[0], n) for n in (1, 4))
    np.testing.assert_array_equal(one.depth, four.depth)
    assert np.median(np.abs(one.rgb - four.rgb)) < 0.02
    assert np.abs(one.rgb - four.rgb).max() > 0.05


@pytest.mark.parametrize("samples", [1, 4, 9])
def test_sample_places_are_inside_the_pixel_and_centred(samples):
    places = sample_places(samples)
    assert places.shape == (samples, 2)
    assert (places > 0).all() and (places < 1).all()
    np.testing.assert_allclose(places.mean(0), 0.5, atol=0.1)


def test_points_lie_on_surfaces_with_their_colours(capture, path, views):
    xyz, rgb = capture.points.xyz.numpy(), capture.points.rgb.numpy()
    assert len(xyz) == 500
    camera, view = path.cameras[0], views[0]
    seen = visible_in(camera, view, xyz.astype(np.float64))
    assert seen.sum() > 60
    local = xyz[seen] @ camera.viewmat.numpy()[:3, :3].T + camera.viewmat.numpy()[:3, 3]
    K = camera.K.numpy()
    column = (local[:, 0] / local[:, 2] * K[0, 0] + K[0, 2]).astype(int)
    row = (local[:, 1] / local[:, 2] * K[1, 1] + K[1, 2]).astype(int)
    error = np.abs(view.rgb[row, column] - rgb[seen] / 255).mean(-1)
    assert np.median(error) < 0.05
    # On the road the noise shows directly: about 1 cm.
    road = np.abs(xyz[:, 2]) < 0.05
    assert 0.005 < xyz[road, 2].std() < 0.02


def test_lidar_sweeps_lie_on_the_road_and_reach_no_farther_than_80_m(capture, path):
    assert len(capture.lidar) == len(path)
    sweep = capture.lidar[0].numpy()
    ego = path.ego_to_worlds[0].numpy()[:3, 3]
    assert len(sweep) > 10_000
    assert np.linalg.norm(sweep - ego, axis=-1).max() < 83
    near = np.linalg.norm(sweep[:, :2] - ego[:2], axis=-1) < 6
    assert abs(np.median(sweep[near, 2])) < 0.02


def test_record_keeps_path_times_lanes_and_names(capture, path):
    assert [frame.name for frame in capture.frames] == [f"{i:06d}" for i in range(4)]
    assert capture.trajectory is path
    assert path.timestamps == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert path.length_m == pytest.approx(2.4, rel=1e-3)
    assert len(capture.lanes) == 3
    assert capture.boxes == ()


def test_exposure_drift_changes_frames_but_not_the_truth(street, path, views):
    drifting = record(street, path, RecordingConfig(num_points=0, exposure_drift=0.2, seed=1))
    levels = [
        float(f.image().mean()) / v.rgb.mean() for f, v in zip(drifting.frames, views, strict=True)
    ]
    assert max(levels) / min(levels) > 1.1
    assert drifting.points is None


def test_pose_noise_moves_the_rig_as_one_and_leaves_the_pictures(street):
    path = drive(street, 3, (64, 36), rig=("front", "front_left"))
    exact = record(street, path, RecordingConfig(samples=1, num_points=0))
    noisy = RecordingConfig(samples=1, num_points=0, pose_noise=0.05, turn_noise=0.01)
    moved = record(street, path, noisy)
    assert [f.data for f in moved.frames] == [f.data for f in exact.frames]
    for a, b in zip(moved.frames, moved.trajectory.cameras, strict=True):
        assert torch.equal(a.camera.camtoworld, b.camtoworld)
    shifts = []
    for i in range(0, 6, 2):
        relative = [
            torch.linalg.inv(c.trajectory.cameras[i].camtoworld)
            @ c.trajectory.cameras[i + 1].camtoworld
            for c in (exact, moved)
        ]
        torch.testing.assert_close(relative[0], relative[1], atol=1e-9, rtol=0)
        change = torch.linalg.inv(path.ego_to_worlds[i]) @ moved.trajectory.ego_to_worlds[i]
        shifts.append(change[:3, 3])
        turn = torch.acos(((change[:3, :3].trace() - 1) / 2).clamp(-1, 1))
        assert 0 < float(turn) < 0.05
    assert 0.005 < float(torch.stack(shifts).abs().mean()) < 0.15
    assert not torch.equal(shifts[0], shifts[1])


def test_lost_returns_thin_the_lidar(street, path):
    counts = [
        len(
            record(
                street,
                path.select([0]),
                RecordingConfig(samples=1, num_points=0, lidar=True, lidar_dropout=d),
            ).lidar[0]
        )
        for d in (0.0, 0.5)
    ]
    assert counts[1] == pytest.approx(0.5 * counts[0], rel=0.05)


def test_moving_vehicles_get_masks_and_boxes_that_hold_their_pixels(busy_street):
    path = drive(busy_street, 3, SIZE)
    capture = record(busy_street, path, RecordingConfig(num_points=0))
    view = trace_view(busy_street, path.cameras[2])
    ahead = view.node_index == 1
    assert ahead.sum() > 20
    mask = capture.frames[2].mask(SIZE).numpy()
    np.testing.assert_array_equal(mask, view.node_index >= 0)
    track = capture.boxes[1]
    row, column = np.nonzero(ahead)
    world = unproject(path.cameras[2], view.depth, row, column)
    pose = track.poses[2].numpy()
    local = (world - pose[:3, 3]) @ pose[:3, :3]
    assert (np.abs(local) <= track.size.numpy() / 2 + np.array([0.05, 0.15, 0.05])).all()
    moved = track.poses[2, 0, 3] - track.poses[0, 0, 3]
    assert float(moved) == pytest.approx(busy_street.vehicles[1].speed * 0.2, rel=0.02)


def test_a_rig_moves_together_and_names_its_cameras(street):
    path = drive(street, 2, SIZE, rig=("front", "front_left", "front_right"))
    assert [c.name for c in path.cameras[:3]] == ["front", "front_left", "front_right"]
    forward = path.camtoworlds[:3, :3, 2]
    assert forward[1, 1] > 0.7 and forward[2, 1] < -0.7
    torch.testing.assert_close(path.ego_to_worlds[0], path.ego_to_worlds[2])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"frames": 0}, "must be positive"),
        ({"frames": 400}, "build a longer street"),
        ({"rig": ("rear",)}, "choose from front"),
        ({"rig": ()}, "no camera"),
    ],
)
def test_impossible_drives_are_refused_with_a_sentence(street, arguments, words):
    with pytest.raises(SyntheticError, match=words):
        drive(street, **{"frames": 2, "size": SIZE, **arguments})


def test_zero_samples_are_refused(street, path):
    with pytest.raises(SyntheticError, match="at least 1"):
        trace_view(street, path.cameras[0], 0)


def test_missing_embreex_is_one_sentence(monkeypatch):
    from faithfusion_studio.synthetic.rays import RayScene

    builder = GeometryBuilder()
    builder.box(np.zeros(3), np.ones(3), Look(Material.PLAIN))
    monkeypatch.setitem(sys.modules, "embreex", None)
    monkeypatch.setitem(sys.modules, "embreex.mesh_construction", None)
    with pytest.raises(SyntheticError, match="pip install embreex"):
        RayScene(builder.build())


def test_written_recording_has_the_layout_of_the_shared_street_and_loads_again(
    street, path, views, tmp_path
):
    steps = list(
        write_recording(
            tmp_path, street, path, (0.0, 3.0, -2.0),
            config=RecordingConfig(num_points=200), truth_every=2,
        )
    )  # fmt: skip
    assert [step.done for step in steps] == list(range(1, 9))
    assert {step.total for step in steps} == {8}
    capture = load_capture(tmp_path)
    assert len(capture) == 4
    assert len(capture.points.xyz) == 200
    torch.testing.assert_close(capture.trajectory.camtoworlds, path.camtoworlds)
    torch.testing.assert_close(capture.trajectory.ego_to_worlds, path.ego_to_worlds)
    assert not capture.trajectory.ego_is_camera
    np.testing.assert_allclose(capture.frames[1].image().numpy(), views[1].rgb, atol=0.3)
    depth = np.load(tmp_path / "recorded/depth/000001_depth.npz")["depth"]
    np.testing.assert_allclose(depth.astype(np.float32), views[1].depth, rtol=1e-3)
    content = json.loads((tmp_path / "truth/cameras_+3.0.json").read_text())
    assert [frame["file"] for frame in content["frames"]] == ["+3.0/000000.jpg", "+3.0/000002.jpg"]
    shifted = read_camera_path(tmp_path / "truth/cameras_+3.0.json")
    left = path.ego_to_worlds[2, :3, 1]
    torch.testing.assert_close(shifted.cameras[1].position, path.cameras[2].position + 3 * left)
    for offset in ("+0.0", "+3.0", "-2.0"):
        for name in ("000000.jpg", "000002_depth.npz", "000002_category.png"):
            assert (tmp_path / "truth" / offset / name).is_file()
    recorded, copied = (
        (tmp_path / name).read_bytes()
        for name in ("recorded/images/000002.jpg", "truth/+0.0/000002.jpg")
    )
    assert recorded == copied


def test_category_images_hold_category_numbers_in_a_palette(street, path, views, tmp_path):
    list(write_recording(tmp_path, street, path.select([0, 1]), ()))
    file = tmp_path / "recorded/category/000000_category.png"
    content = file.read_bytes()
    assert content[25] == 3  # palette colour type
    colors = cv2.imread(str(file), cv2.IMREAD_COLOR)[..., ::-1]
    sky = colors[views[0].category == Category.SKY]
    assert (sky == (135, 180, 235)).all()
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == len(np.unique(views[0].category))


def test_same_layout_keys_as_the_shared_street(shared_data, street, path, tmp_path):
    theirs = json.loads((shared_data("street") / "recorded/cameras.json").read_text())
    list(write_recording(tmp_path, street, path.select([0, 1]), ()))
    ours = json.loads((tmp_path / "recorded/cameras.json").read_text())
    assert set(theirs) <= set(ours)
    assert set(theirs["frames"][0]) <= set(ours["frames"][0])
    assert set(theirs["cameras"]["front"]) == set(ours["cameras"]["front"])
    assert ours["frames"][0]["file"] == theirs["frames"][0]["file"]


def test_unwritable_folder_is_one_sentence(street, path, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SyntheticError, match="cannot be written"):
        list(write_recording(tmp_path / "taken", street, path.select([0, 1]), ()))


@pytest.mark.parametrize(
    ("offset", "name"),
    [(0.0, "+0.0"), (-0.0, "+0.0"), (3, "+3.0"), (-2.0, "-2.0"), (0.53, "+0.53")],
)
def test_offset_folders_are_signed(offset, name):
    assert offset_name(float(offset)) == name
