"""A red car drives through the tiny street: repairs of a moment show it there, and nowhere else."""

from dataclasses import replace

import cv2
import pytest
import torch
from fusion.worlds import HEIGHT, WIDTH, drive_camera, tiny_world

from faithfusion_studio.cameras import trajectory_from_cameras
from faithfusion_studio.fusion import batches
from faithfusion_studio.fusion.batches import RecordedReferences
from faithfusion_studio.fusion.moving import recorded_movers, shown_movers
from faithfusion_studio.fusion.repairing import repair_stage
from faithfusion_studio.fusion.replay import repaired_views
from faithfusion_studio.fusion.schedule import FusionConfig, Stage
from faithfusion_studio.fusion.spawn import EmptyRule, empty_pixels
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.information import recorded_fisher
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.render.views import rasterize_view, render_view, to_uint8
from faithfusion_studio.repair.reprojection import ReprojectionRepairer
from faithfusion_studio.scene import BoxTrack, Capture, PosedImage
from faithfusion_studio.transforms import rgb_to_sh0

FRAMES = 8
SIZE = torch.tensor([3.0, 1.8, 1.5])


def red_car():
    """A node on the left of the road that comes towards the camera at 10 m/s."""
    count = 600
    generator = torch.Generator().manual_seed(3)
    means = (torch.rand(count, 3, generator=generator) - 0.5) * 0.85 * SIZE
    poses = torch.eye(4, dtype=torch.float64).repeat(FRAMES, 1, 1)
    times = torch.arange(FRAMES, dtype=torch.float64) / 10
    poses[:, 0, 3] = 20.0 - 10 * times
    poses[:, 1, 3], poses[:, 2, 3] = 1.8, 0.8
    gaussians = Gaussians(
        means=means,
        log_scales=torch.full((count, 3), -2.0),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        logit_opacities=torch.full((count,), 3.0),
        sh0=rgb_to_sh0(torch.tensor([0.95, 0.02, 0.02]).repeat(count, 1))[:, None],
        shN=torch.zeros(count, 0, 3),
        provenance=torch.zeros(count, dtype=torch.uint8),
    )
    visible = torch.ones(FRAMES, dtype=torch.bool)
    return RigidNode("car", gaussians, poses, times, visible, SIZE)


@pytest.fixture(scope="module")
def scene():
    street = tiny_world().background
    grey = replace(street, sh0=street.sh0[..., :1].expand(-1, -1, 3).contiguous())
    world = replace(tiny_world(), background=grey, nodes=(red_car(),))
    images = []
    for index in range(FRAMES):
        camera = drive_camera(0.5 * index, time=index / 10)
        pixels = to_uint8(render_view(world, camera).rgb).numpy()[:, :, ::-1]
        images.append(PosedImage(camera, cv2.imencode(".png", pixels)[1].tobytes(), str(index)))
    capture = Capture(tuple(images), trajectory_from_cameras([image.camera for image in images]))
    world = replace(world, capture=capture, metadata={"reconstruction": {"scale": 1.0}})
    return replace(world, fisher=recorded_fisher(world))


def red(image):
    return image[..., 0] - image[..., 1:].amax(-1) > 0.35


def repaired(scene):
    stage = Stage((4, 5), 1.0, gated=False)
    return next(iter(repair_stage(scene, stage, ReprojectionRepairer(), size=(WIDTH, HEIGHT))))


def test_a_reference_is_masked_where_the_car_was_at_its_time(scene):
    references = RecordedReferences(scene, (WIDTH, HEIGHT))
    masks = [r.dynamic_mask for r in references.around((), range(FRAMES))]
    for frame, mask in zip(scene.capture.frames, masks, strict=True):
        shows = red(frame.image())
        assert int(shows.sum()) > 10 and float(mask[shows].float().mean()) > 0.95
        assert int(mask.sum()) < 4 * int(shows.sum())
    assert bool((masks[0] != masks[-1]).any())


def test_a_box_track_without_a_node_masks_too(scene):
    car = scene.nodes[0]
    track = BoxTrack("car", "vehicle", car.size, car.poses, car.timestamps)
    bare = replace(scene, nodes=(), capture=replace(scene.capture, boxes=(track,)))
    camera = scene.capture.frames[3].camera
    assert torch.equal(recorded_movers(bare, camera), recorded_movers(scene, camera))
    assert recorded_movers(replace(scene, nodes=()), camera) is None


def test_what_a_view_shows_of_the_car_is_known_by_pixel(scene):
    camera = drive_camera(2.0, y=1.0, time=0.4)
    view = rasterize_view(scene, camera)
    shown = shown_movers(scene, camera, view)
    assert float((shown == red(view.rgb)).float().mean()) > 0.97
    parked = replace(scene.nodes[0], poses=scene.nodes[0].poses[:1].repeat(FRAMES, 1, 1))
    assert shown_movers(replace(scene, nodes=(parked,)), camera, view) is None


def test_a_repair_shows_the_car_at_its_time_and_nowhere_else(scene, monkeypatch):
    frame = repaired(scene)
    truth = red(frame.rendered)
    assert int(truth.sum()) > 20
    found = red(frame.repaired)
    assert float((found & ~truth).sum()) <= 0.05 * float(truth.sum())
    assert float((found & truth).sum()) >= 0.9 * float(truth.sum())
    # Without knowing what moves the same repair loses the car or smears it.
    monkeypatch.setattr(batches, "recorded_movers", lambda scene, camera: None)
    monkeypatch.setattr(batches, "shown_movers", lambda scene, camera, view: None)
    naive = red(repaired(scene).repaired)
    assert int((naive != truth).sum()) > 2 * int((found != truth).sum())


def test_the_background_learns_and_grows_nothing_where_the_car_is(scene):
    frame = repaired(scene)
    assert frame.moving is not None and bool(frame.moving.any())
    config = FusionConfig()
    (view,) = repaired_views([frame], scene, config, "uniform")
    assert float(view.weight[frame.moving].max()) == 0 and float(view.weight.max()) > 0
    hollow = replace(frame, alpha=torch.zeros(HEIGHT, WIDTH))
    empty = empty_pixels(hollow, EmptyRule())
    assert not bool(empty[frame.moving].any()) and bool(empty.any())
