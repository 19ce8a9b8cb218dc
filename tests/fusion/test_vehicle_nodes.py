"""A street with a moving car: learned as a node, placed at every time, its pose put right, its far side mirrored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from faithfusion_studio.boxes import BoxTrack, box_mask, inside_box
from faithfusion_studio.fusion.completion import mirrored
from faithfusion_studio.fusion.learned_nodes import MARGIN, LearnedNodes
from faithfusion_studio.fusion.moving import movers, without_movers
from faithfusion_studio.fusion.reconstruction import Reconstruction
from faithfusion_studio.fusion.schedule import PoseRates, ReconstructionConfig
from faithfusion_studio.gaussians import Provenance
from faithfusion_studio.metrics import psnr
from faithfusion_studio.render.views import render_view
from faithfusion_studio.synthetic import RecordingConfig, StreetConfig, build_street, drive, record

CONFIG = ReconstructionConfig(steps=150, scale=1.0, holdout_every=4, max_gaussians=4000)


@pytest.fixture(scope="module")
def capture():
    street = build_street(
        StreetConfig(seed=7, num_moving=2, ambient_rays=2, length=12.0, sight=60.0)
    )
    config = RecordingConfig(samples=1, num_points=6000, lidar=True)
    return record(street, drive(street, 12, (128, 72)), config)


def trained(capture, **changes):
    work = Reconstruction(capture, replace(CONFIG, **changes))
    for _ in work.run():
        pass
    return work, work.scene()


@pytest.fixture(scope="module")
def learned(capture):
    return trained(capture)


def test_what_moves_becomes_a_node_and_nothing_of_it_stays_in_the_background(capture, learned):
    _, scene = learned
    moving = movers(capture).rigid
    assert moving and {node.name for node in scene.nodes} <= {track.name for track in moving}
    assert scene.nodes
    for node in scene.nodes:
        assert len(node.gaussians) > 20 and node.turns_colors
        assert bool((node.gaussians.means.abs() <= node.size / 2 + MARGIN + 1e-4).all())
    start = without_movers(capture, movers(capture)).points
    for track in moving:
        for pose in track.poses:
            assert not bool(inside_box(start.xyz, pose, track.size, floor=0.2).any())


def car_psnr(scene, capture, indices):
    values = []
    for index in indices:
        camera = capture.frames[index].camera
        mask = torch.zeros(camera.height, camera.width, dtype=torch.bool)
        for track in movers(capture).rigid:
            pose = track.pose_at(camera.time)
            mask |= box_mask(pose, track.size, camera)
        if int(mask.sum()) > 30:
            truth = capture.frames[index].image((camera.width, camera.height))
            values.append(psnr(render_view(scene, camera).rgb, truth, mask))
    return float(np.mean(values))


def test_held_out_times_show_the_cars_better_than_without_nodes(capture, learned):
    work, scene = learned
    _, smeared = trained(capture, nodes=False)
    assert not smeared.nodes
    assert work.holdout
    assert car_psnr(scene, capture, work.holdout) > car_psnr(smeared, capture, work.holdout) + 3


def shifted(capture, axis):
    """Boxes 0.3 m forwards and backwards, or to the left and right, in turn."""
    wave = 0.3 * torch.cos(torch.arange(len(capture)).double() * np.pi)
    tracks = []
    for track in capture.boxes:
        poses = track.poses.clone()
        poses[:, :3, 3] += wave[: len(poses), None] * poses[:, :3, axis]
        tracks.append(replace(track, poses=poses))
    return replace(capture, boxes=tuple(tracks))


def distances(nodes, capture):
    """How far nodes are from the truth at the recorded times, m."""
    found = []
    for node in nodes:
        track = next(t for t in capture.boxes if t.name == node.name)
        for time in capture.trajectory.timestamps:
            true, pose = track.pose_at(time), node.pose_at(time)
            if true is not None and pose is not None:
                found.append(float((pose[:3, 3] - true[:3, 3]).norm()))
    return found


def test_a_shifted_annotation_is_pulled_back_by_the_pictures(capture):
    start = shifted(capture, 1)
    _, scene = trained(start, steps=250, holdout_every=0, poses=PoseRates(step=0.05, laser=False))
    assert np.mean(distances(scene.nodes, capture)) < 0.9 * 0.3


@pytest.mark.parametrize("axis", [0, 1])
def test_a_shifted_annotation_is_put_right_by_the_laser(capture, axis):
    scene = Reconstruction(shifted(capture, axis), CONFIG).scene()
    assert scene.nodes and np.mean(distances(scene.nodes, capture)) < 0.06
    as_given = replace(CONFIG, poses=PoseRates(laser=False))
    scene = Reconstruction(shifted(capture, axis), as_given).scene()
    assert np.mean(distances(scene.nodes, capture)) == pytest.approx(0.3, abs=1e-3)


def test_rows_and_gradients_go_into_the_world_and_back(learned):
    """Against autograd through `placed_at`: the gradient of a number of the world's rows."""
    _, scene = learned
    node = scene.nodes[0]
    time = float(node.timestamps[node.visible][0])
    table = scene.all_gaussians
    names = ("means", "quats", "scales", "opacities", "sh")
    leaves = {name: getattr(table, name).clone().requires_grad_() for name in names}
    nodes = LearnedNodes(scene.nodes, len(scene.background), [time], PoseRates(step=0.0))
    world, placements = nodes.place(leaves, time)
    first = len(scene.background)
    rows = slice(first, first + len(node.gaussians))
    placed = node.placed_at(time)
    assert torch.allclose(world["means"][rows], placed.means, atol=1e-4)
    assert torch.allclose(world["sh"][rows], placed.sh, atol=1e-4)
    loss = (world["means"][rows] ** 2).sum() + world["sh"][rows].sum()
    wanted = list(world.values())
    found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    gradients = dict(zip(world, (g.clone() for g in found), strict=True))
    nodes.pull_back(placements, gradients)
    rotation = node.pose_at(time)[:3, :3].float()
    assert torch.allclose(gradients["means"][rows], 2 * placed.means @ rotation, atol=1e-2)


def test_the_bare_side_shows_the_other_one_in_a_mirror(learned):
    _, scene = learned
    node = scene.nodes[0]
    left = node.gaussians.select(node.gaussians.means[:, 1] > 0.3)
    copy = mirrored(replace(node, gaussians=left))
    assert bool((copy.provenance == int(Provenance.COMPLETED)).all())
    assert 0 < len(copy) <= len(left) and bool((copy.means[:, 1] < 0).all())
    # Mirrored twice it is what it was, colours seen along mirrored rays are the same.
    from faithfusion_studio.transforms import eval_sh, quat_to_rotmat

    mirror = torch.tensor([1.0, -1.0, 1.0])
    source = left.select(torch.cdist(copy.means * mirror, left.means).argmin(1))
    ray = torch.nn.functional.normalize(torch.randn(len(copy), 3), dim=1)
    there = eval_sh(copy.sh_degree, copy.sh, ray * mirror)
    assert torch.allclose(there, eval_sh(source.sh_degree, source.sh, ray), atol=1e-5)
    flipped = mirror[:, None] * quat_to_rotmat(source.quats) * mirror
    assert torch.allclose(quat_to_rotmat(copy.quats), flipped, atol=1e-5)


def test_a_vehicle_is_seen_only_at_times_of_its_track(capture):
    track = capture.boxes[0]
    late = replace(track, poses=track.poses[6:], timestamps=track.timestamps[6:])
    work = Reconstruction(replace(capture, boxes=(late,)), CONFIG)
    (node,) = work.scene().nodes
    times = track.timestamps.tolist()
    assert [node.pose_at(t) is not None for t in times] == [i >= 6 for i in range(len(times))]


def test_without_a_laser_a_vehicle_starts_from_its_sides(capture):
    work = Reconstruction(replace(capture, lidar=()), CONFIG)
    nodes = work.scene().nodes
    assert nodes and all(len(node.gaussians) > 100 for node in nodes)
    for node in nodes:
        assert bool((node.gaussians.means.abs() <= node.size / 2 + 1e-4).all())


def test_walkers_are_left_out_of_learning(capture):
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[:, :3, 3] = torch.tensor([[12.0, 0, 1], [14.0, 0, 1]], dtype=torch.float64)
    times = torch.tensor([0.0, capture.trajectory.timestamps[-1]], dtype=torch.float64)
    walker = BoxTrack("walker", "pedestrian", torch.tensor([0.8, 0.8, 1.8]), poses, times)
    found = movers(replace(capture, boxes=(walker,)))
    assert not found.rigid and found.soft == (walker,)
    frame = capture.frames[0]
    left_out = found.unlearned(frame, frame.camera)
    assert left_out is not None and 0 < float(left_out.float().mean()) < 0.5
