import math
from dataclasses import replace

import pytest
import torch

from faithfusion_studio.cameras import (
    Camera,
    Segment,
    Trajectory,
    TrajectoryError,
    ego_from_cameras,
    interpolate,
    offset_laterally,
    offset_profile,
    trajectory_from_cameras,
)
from faithfusion_studio.transforms import invert_rigid, translation

K = torch.tensor([[100.0, 0, 32], [0, 100, 24], [0, 0, 1]], dtype=torch.float64)
CAM_TO_EGO = torch.tensor(
    [[0.0, 0, 1, 1.5], [-1, 0, 0, 0.2], [0, -1, 0, 1.6], [0, 0, 0, 1]], dtype=torch.float64
)


def ego_pose(x: float, y: float, heading: float, z: float = 0.0) -> torch.Tensor:
    c, s = math.cos(heading), math.sin(heading)
    return torch.tensor(
        [[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, z], [0, 0, 0, 1]], dtype=torch.float64
    )


def curved_egos(n: int = 9, radius: float = 20.0) -> torch.Tensor:
    """A left turn around (0, radius): at angle a the car is at radius (sin a, 1 - cos a)."""
    angles = torch.linspace(0, 1.2, n).tolist()
    return torch.stack(
        [ego_pose(radius * math.sin(a), radius * (1 - math.cos(a)), a) for a in angles]
    )


def rig(egos: torch.Tensor) -> Trajectory:
    """A front and a side camera at every ego pose."""
    side = CAM_TO_EGO.clone()
    side[:3, :3] = ego_pose(0, 0, math.pi / 2)[:3, :3] @ CAM_TO_EGO[:3, :3]
    side[1, 3] = 0.9
    cameras, poses = [], []
    for i, ego in enumerate(egos):
        for name, mount in (("front", CAM_TO_EGO), ("side", side)):
            cameras.append(Camera(ego @ mount, K, 64, 48, i * 0.1, name))
            poses.append(ego)
    return trajectory_from_cameras(cameras, torch.stack(poses))


def test_the_offset_is_exact_on_a_curved_path():
    radius, d = 20.0, 3.0
    trajectory = rig(curved_egos(radius=radius))
    shifted = offset_laterally(trajectory, d)
    centre = torch.tensor([0.0, radius, 0.0], dtype=torch.float64)
    before = (trajectory.ego_to_worlds[:, :3, 3] - centre).norm(dim=-1)
    after = (shifted.ego_to_worlds[:, :3, 3] - centre).norm(dim=-1)
    torch.testing.assert_close(before - after, torch.full_like(before, d))  # left is inwards


def test_the_offset_is_the_one_definition_of_formats():
    egos = curved_egos()
    trajectory = rig(egos)
    d = -1.75
    shift = translation(torch.tensor([0, d, 0], dtype=torch.float64))
    for i, camera in enumerate(offset_laterally(trajectory, d).cameras):
        ego = trajectory.ego_to_worlds[i]
        mount = invert_rigid(ego) @ trajectory.cameras[i].camtoworld
        torch.testing.assert_close(camera.camtoworld, ego @ shift @ mount)


@pytest.mark.parametrize("d", [0.25, 3.0, -6.0])
def test_there_and_back_is_the_identity(d):
    trajectory = rig(curved_egos())
    back = offset_laterally(offset_laterally(trajectory, d), -d)
    torch.testing.assert_close(back.camtoworlds, trajectory.camtoworlds, atol=1e-12, rtol=0)
    torch.testing.assert_close(back.ego_to_worlds, trajectory.ego_to_worlds, atol=1e-12, rtol=0)


def test_the_whole_rig_moves_by_the_same_vector_at_one_time():
    trajectory = rig(curved_egos())
    moved = offset_laterally(trajectory, 2.0).camtoworlds[:, :3, 3]
    vectors = moved - trajectory.camtoworlds[:, :3, 3]
    torch.testing.assert_close(vectors[0::2], vectors[1::2])


def test_height_and_orientation_stay():
    trajectory = rig(curved_egos())
    shifted = offset_laterally(trajectory, 3.0)
    torch.testing.assert_close(shifted.camtoworlds[:, :3, :3], trajectory.camtoworlds[:, :3, :3])
    torch.testing.assert_close(shifted.camtoworlds[:, 2, 3], trajectory.camtoworlds[:, 2, 3])
    assert shifted.timestamps == trajectory.timestamps


def test_without_ego_poses_left_is_camera_left():
    cameras = [Camera(ego @ CAM_TO_EGO, K, 64, 48, i * 0.1) for i, ego in enumerate(curved_egos())]
    trajectory = trajectory_from_cameras(cameras)
    assert trajectory.ego_is_camera
    d = 3.0
    expected = trajectory.camtoworlds @ translation(torch.tensor([-d, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(offset_laterally(trajectory, d).camtoworlds, expected)


def test_without_ego_poses_the_first_camera_stands_in_for_its_rig():
    full = rig(curved_egos())
    trajectory = trajectory_from_cameras(full.cameras)
    front = ego_from_cameras(full.camtoworlds[0::2])
    torch.testing.assert_close(trajectory.ego_to_worlds[0::2], front)
    torch.testing.assert_close(trajectory.ego_to_worlds[1::2], front)


def test_ego_axes_of_a_camera_are_forward_left_up():
    ego = ego_from_cameras(ego_pose(0, 0, 0)[None] @ CAM_TO_EGO)[0]
    torch.testing.assert_close(ego[:3, :3], torch.eye(3, dtype=torch.float64))


def test_the_view_matrix_is_the_inverse_pose():
    camera = rig(curved_egos()).cameras[3]
    torch.testing.assert_close(
        camera.viewmat @ camera.camtoworld, torch.eye(4, dtype=torch.float64)
    )


def test_resizing_keeps_the_field_of_view():
    camera = rig(curved_egos()).cameras[0].resized(32, 48)
    assert (camera.width, camera.height) == (32, 48)
    torch.testing.assert_close(camera.K[0], K[0] / 2)
    torch.testing.assert_close(camera.K[1], K[1])
    half = camera.scaled(0.5)
    assert (half.width, half.height) == (16, 24)


def test_a_segment_is_half_open_and_stays_inside_the_drive():
    trajectory = rig(curved_egos())
    assert len(trajectory.segment(Segment(2, 5))) == 3
    for wrong in ((5, 5), (-1, 3), (0, 19), (7, 3)):
        with pytest.raises(TrajectoryError, match="outside the drive"):
            trajectory.segment(Segment(*wrong))


def test_paths_need_cameras_and_rigid_poses():
    with pytest.raises(TrajectoryError, match="no cameras"):
        trajectory_from_cameras([])
    for broken in (2.0 * CAM_TO_EGO, CAM_TO_EGO * torch.nan, torch.zeros_like(CAM_TO_EGO)):
        with pytest.raises(TrajectoryError, match="frame 1 is not a rigid"):
            trajectory_from_cameras([Camera(CAM_TO_EGO, K, 64, 48), Camera(broken, K, 64, 48)])


def test_a_mirrored_pose_is_refused():
    mirror = CAM_TO_EGO @ torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    with pytest.raises(TrajectoryError, match="right-handed"):
        trajectory_from_cameras([Camera(mirror, K, 64, 48)])


def test_the_length_of_the_path_is_measured_on_the_ego():
    egos = torch.stack([ego_pose(x, 0, 0) for x in (0.0, 3.0, 7.0)])
    cameras = [Camera(ego @ CAM_TO_EGO, K, 64, 48) for ego in egos]
    assert trajectory_from_cameras(cameras, egos).length_m == pytest.approx(7.0)


def test_interpolation_hits_the_key_frames_and_turns_halfway():
    egos = torch.stack([ego_pose(0, 0, 0), ego_pose(4, 0, 1.0)])
    keys = trajectory_from_cameras(
        [Camera(ego @ CAM_TO_EGO, K, 64, 48, float(i)) for i, ego in enumerate(egos)], egos
    )
    path = interpolate(keys, 5)
    torch.testing.assert_close(path.camtoworlds[[0, 4]], keys.camtoworlds)
    torch.testing.assert_close(path.ego_to_worlds[2], ego_pose(2, 0, 0.5))
    assert path.timestamps == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert len(interpolate(keys.select([0]), 3)) == 3
    with pytest.raises(TrajectoryError):
        interpolate(keys, 0)


def _drive(count=9):
    cameras, egos = [], []
    for index in range(count):
        ego = torch.eye(4, dtype=torch.float64)
        ego[0, 3] = 0.5 * index * (1 + 0.2 * index)  # it speeds up
        egos.append(ego)
        cameras.append(Camera(ego.clone(), torch.eye(3, dtype=torch.float64), 8, 6, 0.1 * index))
    return trajectory_from_cameras(cameras, torch.stack(egos))


def test_an_offset_profile_develops_with_the_distance_driven():
    path = _drive()
    along = path.ego_to_worlds[:, 0, 3] / path.ego_to_worlds[-1, 0, 3]
    assert torch.equal(offset_profile(path, -2.0, "constant"), torch.full((9,), -2.0).double())
    assert torch.allclose(offset_profile(path, -2.0, "ramp"), -2.0 * along)
    change = offset_profile(path, 3.0, "lane-change")
    assert float(change[0]) == 0.0 and float(change[-1]) == pytest.approx(3.0)
    assert bool((change.diff() >= 0).all())
    assert float(change.diff()[0]) < 0.1 * float(change.diff().max())  # sets off gently


def test_one_offset_per_camera_moves_each_by_its_own():
    path = _drive()
    amount = offset_profile(path, 3.0, "lane-change")
    moved = offset_laterally(path, amount)
    shift = torch.stack([c.position for c in moved.cameras]) - path.camtoworlds[:, :3, 3]
    assert torch.allclose(shift[:, 1], amount)
    assert torch.equal(moved.camtoworlds[:, :3, :3], path.camtoworlds[:, :3, :3])


def test_a_vehicle_that_stands_ramps_by_its_frames():
    path = _drive()
    still = replace(path, ego_to_worlds=path.ego_to_worlds[:1].repeat(9, 1, 1))
    assert torch.allclose(offset_profile(still, 4.0, "ramp"), torch.linspace(0, 4, 9).double())
