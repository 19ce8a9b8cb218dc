"""Reconstruction: it learns, honours its limits, repeats itself, and says what it held out."""

import math
from dataclasses import replace

import pytest
import torch
from fusion.worlds import tiny_capture, without_points

from faithfusion_studio.fusion.ground import fit_ground
from faithfusion_studio.fusion.initialize import (
    InitializationError,
    camera_height,
    initial_gaussians,
    initial_sky,
    texel_directions,
    visible_points,
)
from faithfusion_studio.fusion.reconstruction import Reconstruction
from faithfusion_studio.fusion.schedule import ReconstructionConfig
from faithfusion_studio.io import load_scene, save_scene
from faithfusion_studio.render.cpu import deterministic, thread_limit
from faithfusion_studio.scene import PointCloud
from faithfusion_studio.sky import CubemapSky

SMALL = ReconstructionConfig(
    steps=120, scale=1.0, holdout_every=6, max_gaussians=2500, sky_resolution=8
)


@pytest.fixture(scope="module")
def capture():
    return tiny_capture()


@pytest.fixture(scope="module")
def trained(capture):
    reconstruction = Reconstruction(capture, SMALL)
    before = reconstruction.report()
    progress = list(reconstruction.run())
    return reconstruction, before, progress


def test_held_out_frames_improve_by_decibels(trained):
    reconstruction, before, _ = trained
    after = reconstruction.report()
    assert after.psnr_holdout > before.psnr_holdout + 3
    assert after.psnr_train > before.psnr_train + 3
    assert after.steps == SMALL.steps and after.gaussians <= SMALL.max_gaussians


def test_every_step_reports_where_it_stands(trained):
    _, _, progress = trained
    assert [p.step for p in progress] == list(range(1, SMALL.steps + 1))
    assert all(math.isfinite(p.loss) and p.seconds_left >= 0 for p in progress)


def test_the_split_is_recorded_and_training_never_sees_it(trained):
    reconstruction, _, _ = trained
    scene = reconstruction.scene()
    assert scene.metadata["reconstruction"]["holdout"] == [3, 9]
    assert not set(reconstruction.training) & {3, 9}
    assert len(scene.exposures) == 12
    identity = torch.eye(3, 4)
    assert torch.equal(scene.exposures[3], identity)
    assert not torch.equal(scene.exposures[4], identity)


def test_the_result_opens_alone(trained, tmp_path):
    scene = trained[0].scene()
    save_scene(scene, tmp_path / "scene.ckpt")
    again = load_scene(tmp_path / "scene.ckpt")
    assert torch.equal(again.background.means, scene.background.means)
    assert again.capture.frames[2].encoded() == scene.capture.frames[2].encoded()


def test_the_same_seed_gives_the_same_scene(capture):
    scenes = []
    for _ in range(2):
        with thread_limit(1), deterministic():
            config = ReconstructionConfig(steps=12, scale=0.5, max_gaussians=1200, sky_resolution=8)
            reconstruction = Reconstruction(capture, config)
            list(reconstruction.run())
            scenes.append(reconstruction.scene())
    assert torch.equal(scenes[0].background.means, scenes[1].background.means)
    assert torch.equal(scenes[0].background.sh0, scenes[1].background.sh0)


def test_a_time_limit_ends_the_run_early(capture):
    config = ReconstructionConfig(steps=100_000, minutes=0.01, scale=0.5, max_gaussians=1200)
    assert 0 < len(list(Reconstruction(capture, config).run())) < 2000


def test_stopping_early_keeps_what_was_learned(capture):
    reconstruction = Reconstruction(capture, SMALL)
    for progress in reconstruction.run():
        if progress.step == 3:
            break
    assert reconstruction.report().steps == 3


def test_a_capture_without_any_geometry_is_refused_in_one_sentence(capture):
    with pytest.raises(InitializationError, match="no 3D points"):
        initial_gaussians(without_points(capture), seed=0, sh_degree=0, limit=500)


def test_the_camera_height_is_found_from_points_on_the_road(capture):
    g = torch.Generator().manual_seed(0)
    road = torch.rand(3000, 3, generator=g) * torch.tensor([25.0, 7.0, 0.02]) - torch.tensor(
        [0.0, 3.5, 0.0]
    )
    clutter = torch.rand(500, 3, generator=g) * torch.tensor([25.0, 7.0, 3.0])
    xyz = torch.cat([road, clutter])
    cloud = PointCloud(xyz, torch.zeros(len(xyz), 3, dtype=torch.uint8))
    assert camera_height(replace(capture, points=cloud)) == pytest.approx(1.6, abs=0.05)


def test_visible_points_keep_the_nearest_of_a_cell(capture):
    camera = capture.frames[0].camera
    points = torch.tensor([[5.0, 0, 1.6], [9.0, 0, 1.6], [-3.0, 0, 1.6], [6.0, 30.0, 1.6]])
    seen = visible_points(points, camera)
    assert seen.depths.tolist() == [5.0]
    assert seen.pixels.tolist() == [24 * 80 + 40]


def test_the_first_sky_shows_recorded_colours(capture):
    sky = initial_sky(capture, 8)
    assert sky.texels.shape == (6, 8, 8, 3)
    up = sky.radiance(torch.tensor([[0.95, 0.0, 0.31]]))[0]
    assert torch.allclose(up, torch.tensor([0.6, 0.75, 0.95]), atol=0.2)


def test_texel_directions_read_back_their_own_texel():
    texels = torch.rand(6, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(CubemapSky(texels).radiance(texel_directions(4)), texels, atol=1e-5)


def test_the_road_plane_is_fitted_and_its_depth_hits_the_road(capture):
    g = torch.Generator().manual_seed(0)
    xy = torch.rand(4000, 2, generator=g) * torch.tensor([40.0, 10.0]) - torch.tensor([0.0, 5.0])
    z = 0.03 * xy[:, :1] + 0.01 * torch.randn(4000, 1, generator=g)
    clutter = torch.rand(800, 3, generator=g) * torch.tensor([40.0, 10.0, 4.0])
    xyz = torch.cat([torch.cat([xy, z], 1), clutter])
    cloud = PointCloud(xyz, torch.zeros(len(xyz), 3, dtype=torch.uint8))
    ground = fit_ground(replace(capture, points=cloud), 1.6)
    camera = capture.frames[0].camera
    depth = ground.depth(0, camera)
    row, column = 40, 40
    ray = (row + 0.5 - 24) / 60  # downwards per metre ahead
    assert float(depth[row, column]) == pytest.approx(1.6 / (ray + 0.03), rel=0.03)
    assert not bool((depth[:20] > 0).any())
