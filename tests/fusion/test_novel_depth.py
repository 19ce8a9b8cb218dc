"""Depth in views nobody recorded: exact projection, and nothing shines through what stands before it."""

import torch
from fusion.worlds import drive_camera, tiny_world

from faithfusion_studio.cameras import trajectory_from_cameras
from faithfusion_studio.fusion.novel_depth import unhidden_points
from faithfusion_studio.fusion.replay import SPACING, measured_points
from faithfusion_studio.scene import BoxTrack, Capture, PosedImage, Scene


def wall(x, half=2.0, spacing=0.15):
    """Points of a wall across the drive, `spacing` apart."""
    side = torch.arange(-half, half, spacing)
    y, z = torch.meshgrid(side, side + 1.6, indexing="ij")
    return torch.stack([torch.full_like(y, x), y, z], -1).reshape(-1, 3)


def test_depth_is_that_of_the_point_and_the_pixel_is_where_it_projects():
    camera = drive_camera(0.0)
    points = torch.tensor([[10.0, 1.3, 2.0], [25.0, -4.0, 1.0]])
    seen = unhidden_points(points, camera)
    for point in points:
        local = (camera.viewmat.float() @ torch.cat([point, torch.ones(1)]))[:3]
        u, v = (camera.K.float() @ (local / local[2]))[:2]
        pixel = int(v.floor()) * camera.width + int(u.floor())
        found = (seen.pixels == pixel).nonzero()
        assert torch.allclose(seen.depths[found[0, 0]], local[2])


def test_a_wall_hides_the_wall_behind_it_between_its_points_too():
    camera = drive_camera(0.0, y=0.4)
    near, far = wall(6.0), wall(20.0, half=6.0)
    seen = unhidden_points(torch.cat([near, far]), camera)
    alone = unhidden_points(near, camera)
    # The convex silhouette of the near wall, one footprint in from its edge.
    rows, columns = alone.pixels // camera.width, alone.pixels % camera.width
    inside_row = (seen.pixels // camera.width > rows.min() + 1) & (
        seen.pixels // camera.width < rows.max() - 1
    )
    inside_column = (seen.pixels % camera.width > columns.min() + 1) & (
        seen.pixels % camera.width < columns.max() - 1
    )
    inside = inside_row & inside_column
    assert int(inside.sum()) > 50
    assert float(seen.depths[inside].max()) < 7.0
    assert float(seen.depths[~inside].max()) > 19.0


def test_of_several_points_on_a_pixel_the_nearest_stays():
    camera = drive_camera(0.0)
    direction = torch.tensor([1.0, 0.11, 0.05])
    origin = torch.tensor([0.0, 0.0, 1.6])
    points = torch.stack([origin + 9 * direction, origin + 8.9 * direction])
    seen = unhidden_points(points, camera)
    assert len(seen.pixels) == 1 and abs(float(seen.depths[0]) - 8.9) < 1e-4


def test_scans_leave_out_what_moves_and_are_thinned():
    cameras = [drive_camera(0.0, time=0.0), drive_camera(1.0, time=0.1)]
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[:, 0, 3] = torch.tensor([12.0, 14.0])
    box = BoxTrack(
        "car", "vehicle", torch.tensor([4.0, 2.0, 1.5]), poses, torch.tensor([0.0, 0.1]).double()
    )
    road = torch.tensor([[5.0, 0, 0], [5.01, 0, 0], [30.0, 1, 0]])
    scans = tuple(torch.cat([road, torch.tensor([[x, 0.5, 0.2]])]) for x in (12.5, 14.5))
    frames = tuple(PosedImage(c, b"", str(i)) for i, c in enumerate(cameras))
    capture = Capture(frames, trajectory_from_cameras(cameras), lidar=scans, boxes=(box,))
    scene = Scene(tiny_world().background, capture=capture)
    points = measured_points(scene)
    assert len(points) == 2 and SPACING > 0.01
    assert float(points[:, 0].max()) == 30.0
