"""Rigs: which camera took what when, which of them leads, and that a shift moves all of them alike."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_cameras import CAM_TO_EGO, K, curved_egos, ego_pose, rig

from faithfusion_studio.cameras import Camera, Segment, offset_laterally, trajectory_from_cameras
from faithfusion_studio.rig import by_camera, mounts, rig_of, spread_over_rig
from faithfusion_studio.transforms import invert_rigid, translation


def three(egos: torch.Tensor, lost: set[tuple[int, str]] = frozenset()) -> list[Camera]:
    """Cameras to the left, ahead and to the right, in this order, with some frames lost."""
    views = []
    for i, ego in enumerate(egos):
        for name, yaw in (("left", 1.2), ("ahead", 0.0), ("right", -1.2)):
            mount = ego_pose(0.4, yaw / 2, yaw) @ CAM_TO_EGO
            if (i, name) not in lost:
                views.append(Camera(ego @ mount, K, 64, 48, i * 0.1, name))
    return views


def test_a_path_is_a_table_of_moments_and_cameras():
    path = trajectory_from_cameras(three(curved_egos(5), lost={(1, "left"), (4, "right")}))
    found = rig_of(path)
    assert found.names == ("left", "ahead", "right") and len(found) == 5 and found.several
    assert found.table[0] == (0, 1, 2) and found.table[1] == (None, 3, 4)
    assert [found.places[i] for i in (0, 3, 4)] == [(0, 0), (1, 1), (1, 2)]
    assert found.track(0) == [0, 5, 8, 11] and found.frame_at(1, 0) == 0
    assert found.segment(1, 3) == Segment(3, 8) and found.span(Segment(3, 8)) == (1, 3)
    assert found.name_of(4) == "1, right"
    assert found.frame_at(99, 1) == 12 and found.moment_of(99) == 4


def test_times_that_differ_a_little_are_one_moment():
    late = {"left": 0.0, "ahead": 0.03, "right": 0.045}
    views = [replace(c, time=c.time + late[c.name]) for c in three(curved_egos(4))]
    found = rig_of(trajectory_from_cameras(views))
    assert found.table == ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))
    assert found.times == pytest.approx((0.0, 0.1, 0.2, 0.3))


def test_a_single_camera_keeps_the_order_of_its_path_whatever_its_times_say():
    views = [replace(c, name="", time=0.0) for c in three(curved_egos(2))]
    found = rig_of(trajectory_from_cameras(views))
    assert not found.several and found.titles == ("camera",) and len(found) == 6
    assert found.segment(2, 4) == Segment(2, 4)


@pytest.mark.parametrize("with_egos", [True, False])
def test_an_offset_moves_the_whole_rig_along_the_ego_y_axis(with_egos):
    """Also without ego poses, and with the side camera first: each moves as the one that looks ahead does."""
    egos = curved_egos(7)
    views = three(egos)
    each = torch.stack([egos[i // 3] for i in range(len(views))])
    path = trajectory_from_cameras(views, each if with_egos else None)
    moved = offset_laterally(path, 2.5)
    shift = moved.camtoworlds - path.camtoworlds
    assert float(shift[:, :3, :3].abs().max()) == 0
    torch.testing.assert_close(shift[:, :3, 3], 2.5 * each[:, :3, 1], atol=1e-9, rtol=0)
    torch.testing.assert_close(mounts(moved)[1], mounts(path)[1], atol=1e-9, rtol=0)


def test_a_lost_frame_of_the_leading_camera_does_not_turn_the_shift():
    egos = curved_egos(6)
    path = trajectory_from_cameras(three(egos, lost={(2, "ahead"), (5, "ahead")}))
    shift = offset_laterally(path, 1.0).camtoworlds[:, :3, 3] - path.camtoworlds[:, :3, 3]
    want = torch.stack([egos[round(c.time * 10)][:3, 1] for c in path.cameras])
    torch.testing.assert_close(shift, want, atol=1e-9, rtol=0)


def test_cameras_that_never_look_together_follow_the_leading_one_between_its_frames():
    egos = curved_egos(9, radius=200.0)
    views = [c for i, c in enumerate(three(egos)) if (i // 3) % 2 == (c.name != "ahead")]
    path = trajectory_from_cameras(views)
    shift = offset_laterally(path, 1.0).camtoworlds[:, :3, 3] - path.camtoworlds[:, :3, 3]
    want = torch.stack([egos[round(c.time * 10)][:3, 1] for c in path.cameras])
    assert float((shift - want).norm(dim=-1).max()) < 0.01
    assert mounts(path) is None


def test_a_car_that_stands_is_led_by_its_first_camera():
    views = three(curved_egos(1))
    path = trajectory_from_cameras(views)
    left = -views[0].camtoworld[:3, 0]
    shift = offset_laterally(path, 1.0).camtoworlds[:, :3, 3] - path.camtoworlds[:, :3, 3]
    torch.testing.assert_close(shift, left.expand(3, 3), atol=1e-12, rtol=0)


def test_mounts_are_known_where_they_are_the_same_all_along():
    path = rig(curved_egos())
    reference, seats = mounts(path)
    assert reference == 0
    torch.testing.assert_close(seats[0], torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0)
    relative = invert_rigid(path.cameras[6].camtoworld) @ path.cameras[7].camtoworld
    torch.testing.assert_close(seats[1], relative, atol=1e-9, rtol=0)
    bent = list(path.cameras)
    shift = translation(torch.tensor([0.0, 0.01, 0.0], dtype=torch.float64))
    bent[5] = bent[5].moved(bent[5].camtoworld @ shift)
    assert mounts(trajectory_from_cameras(bent)) is None
    assert mounts(path.select(range(0, 18, 2))) is None


@given(cameras=st.integers(1, 5), moments=st.integers(1, 12), count=st.integers(1, 60))
def test_frames_are_spread_over_all_cameras_alike(cameras, moments, count):
    names = [f"c{i % cameras}" for i in range(cameras * moments)]
    chosen = spread_over_rig(names, count)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(count, len(names))
    used = [sum(names[i] == name for i in chosen) for name in dict.fromkeys(names)]
    assert max(used) - min(used) <= 1
    if cameras == 1 and count < moments:
        assert chosen == [round((i + 0.5) * moments / count - 0.5) for i in range(count)]
    assert [names[i] for i in by_camera(names)] == sorted(names)
