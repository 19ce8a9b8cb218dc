from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from test_gaussians import random_gaussians

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import Capture, PosedImage, Scene, SceneError
from faithfusion_studio.sky import ConstantSky, CubemapSky, cubemap_lookup, pixel_directions
from faithfusion_studio.transforms import look_at, quat_to_rotmat, translation


def some_camera(width: int = 6, height: int = 4) -> Camera:
    pose = look_at(*torch.tensor([[0.0, 0, 1], [5, 0, 1], [0, 0, 1]], dtype=torch.float64))
    K = torch.tensor([[5.0, 0, width / 2], [0, 5, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, width, height)


def a_node(visible=(True, True, True)) -> RigidNode:
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 2, 6])
    half_turn = np.pi / 4
    poses[2, :3, :3] = quat_to_rotmat(
        torch.tensor([np.cos(half_turn), 0, 0, np.sin(half_turn)], dtype=torch.float64)
    )
    return RigidNode(
        "car",
        random_gaussians(4, 0, 7),
        poses,
        torch.tensor([0.0, 1, 2], dtype=torch.float64),
        torch.tensor(visible),
        torch.tensor([4.0, 2, 1.5]),
    )


def test_a_node_is_placed_at_time_t():
    node = a_node()
    torch.testing.assert_close(node.pose_at(0.5)[:3, 3].tolist(), [1.0, 0.0, 0.0])
    middle = node.pose_at(1.5)
    torch.testing.assert_close(middle[:3, 3].tolist(), [4.0, 0.0, 0.0])
    torch.testing.assert_close(
        middle[:2, 0].tolist(), [np.cos(np.pi / 4), np.sin(np.pi / 4)]
    )  # half of the quarter turn


def test_a_node_holds_its_ends_and_hits_its_key_poses():
    node = a_node()
    for time, index in ((-1.0, 0), (0.0, 0), (1.0, 1), (2.0, 2), (9.0, 2)):
        torch.testing.assert_close(node.pose_at(time), node.poses[index])


def test_a_node_is_gone_while_invisible():
    node = a_node((True, False, True))
    assert node.pose_at(1.1) is None
    assert node.pose_at(0.2) is not None


def test_world_rows_name_the_scenes_rows():
    background = random_gaussians(3, 1)
    hidden, shown = a_node((False, False, False)), a_node()
    scene = Scene(background, nodes=(hidden, shown))
    assert scene.num_gaussians == 11
    world = scene.at(1.0)
    assert world.node_index.tolist() == [-1, -1, -1, 1, 1, 1, 1]
    assert world.rows.tolist() == [0, 1, 2, 7, 8, 9, 10]
    own_frame = scene.all_gaussians.select(world.rows)
    torch.testing.assert_close(
        world.gaussians.means[3:], own_frame.means[3:] + torch.tensor([2.0, 0, 0])
    )
    assert Scene(background, nodes=(shown,)).at(1.0).rows is None
    assert Scene(background).at(0.0).gaussians is background


def test_a_scene_without_a_recording_says_so():
    with pytest.raises(SceneError, match="no recorded path"):
        _ = Scene(random_gaussians(1)).trajectory


def test_pixel_directions_go_through_pixel_centres():
    camera = some_camera()
    directions = pixel_directions(camera)
    world = camera.camtoworld[:3, :3].float()
    expected = world @ torch.tensor([(0.5 - 3) / 5, (0.5 - 2) / 5, 1.0])
    torch.testing.assert_close(directions[0, 0], torch.nn.functional.normalize(expected, dim=0))


def test_a_constant_sky_is_the_same_everywhere():
    sky = ConstantSky(torch.tensor([0.1, 0.2, 0.3]))
    assert sky.radiance(torch.randn(2, 5, 3)).shape == (2, 5, 3)


def test_cubemap_weights_sum_to_one_and_stay_on_one_face():
    directions = torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)
    index, weights = cubemap_lookup(directions, 8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(500))
    assert bool((weights >= 0).all())
    faces = index // 64
    assert bool((faces == faces[:, :1]).all())
    axis = directions.abs().argmax(-1)
    sign = torch.gather(directions, 1, axis[:, None])[:, 0] < 0
    assert torch.equal(faces[:, 0], axis * 2 + sign)


def test_a_cubemap_reads_its_texels_at_their_centres():
    texels = torch.rand(6, 4, 4, 3)
    u, v = (torch.tensor([1, 3]) + 0.5) / 2 - 1  # column 1, row 3 of a 4x4 face in [-1, 1]
    direction = torch.stack([torch.tensor(1.0), u, v])  # +x face: first axis y, second z
    torch.testing.assert_close(CubemapSky(texels).radiance(direction), texels[0, 3, 1])


def test_a_cubemap_is_continuous_inside_its_faces():
    sky = CubemapSky(torch.rand(6, 4, 4, 3))
    angle = torch.linspace(-0.78, 0.78, 4001)  # within +-45 degrees of +x
    directions = torch.stack([torch.cos(angle), torch.sin(angle), torch.full_like(angle, 0.1)], -1)
    steps = (sky.radiance(directions)[1:] - sky.radiance(directions)[:-1]).abs()
    assert float(steps.max()) < 5e-3


def test_a_smooth_cubemap_has_no_jump_across_face_edges():
    centres = (torch.arange(16) + 0.5) / 8 - 1
    second, first = torch.meshgrid(centres, centres, indexing="ij")
    texels = torch.zeros(6, 16, 16, 3)
    for face in range(6):
        axis, sign = face // 2, 1.0 - 2 * (face % 2)
        d = torch.zeros(16, 16, 3)
        d[..., axis], d[..., (axis + 1) % 3], d[..., (axis + 2) % 3] = sign, first, second
        texels[face] = torch.nn.functional.normalize(d, dim=-1) * 0.5 + 0.5
    sky = CubemapSky(texels)
    directions = torch.nn.functional.normalize(torch.randn(2000, 3), dim=-1)
    assert float((sky.radiance(directions) - (directions * 0.5 + 0.5)).abs().max()) < 0.05


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, image[:, :, ::-1])[1].tobytes()


def test_a_stored_image_comes_back_as_rgb_in_unit_range(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image))
    for data in (path, encoded(image)):
        decoded = PosedImage(some_camera(), data).image()
        torch.testing.assert_close(decoded, torch.from_numpy(image) / 255)
    assert PosedImage(some_camera(), path).image((3, 2)).shape == (2, 3, 3)


def test_a_missing_damaged_or_wrongly_sized_image_is_one_sentence(tmp_path):
    with pytest.raises(SceneError, match=r"gone\.png: the image cannot be read"):
        PosedImage(some_camera(), tmp_path / "gone.png").image()
    with pytest.raises(SceneError, match="not a readable image"):
        PosedImage(some_camera(), b"nonsense", "000001").image()
    small = encoded(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(SceneError, match=r"2x2 but its camera says\s+6x4"):
        PosedImage(some_camera(), small).image()


def test_dynamic_masks_are_optional_and_binary():
    frame = PosedImage(some_camera(), b"")
    assert frame.mask((6, 4)) is None
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2] = 255
    frame = replace(frame, dynamic_mask=cv2.imencode(".png", mask)[1].tobytes())
    assert frame.mask((6, 4)).nonzero().tolist() == [[1, 2]]


def test_a_capture_selects_frames_and_path_together():
    base = some_camera()
    cameras = [
        replace(base, camtoworld=translation(torch.tensor([float(i), 0, 0], dtype=torch.float64)))
        for i in range(4)
    ]
    frames = tuple(PosedImage(c, b"", str(i)) for i, c in enumerate(cameras))
    part = Capture(frames, trajectory_from_cameras(cameras)).select([3, 1])
    assert [f.name for f in part.frames] == ["3", "1"]
    assert part.trajectory.cameras[0].position[0] == 3.0
    assert part.camera_names == [""]
