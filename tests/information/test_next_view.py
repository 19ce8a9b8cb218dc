"""Where to drive next: the gain of a drive against the entropy of full matrices, and its laws."""

from dataclasses import replace

import pytest
import torch

from faithfusion_studio.cameras import (
    Segment,
    Trajectory,
    offset_laterally,
    trajectory_from_cameras,
)
from faithfusion_studio.information import FisherAccumulator, FisherPrior, expected_gains
from faithfusion_studio.information.next_view import spread_frames
from faithfusion_studio.information.prior import MissingFisherError
from faithfusion_studio.render.chain import unpack
from scenes import recorded_cameras, tiny_scene

NOISE = 0.08


def known(seed: int = 0, degree: int = 1):
    scene, recorded = tiny_scene(7, degree, seed), recorded_cameras(seed, 3)
    evidence = FisherAccumulator(scene, noise_std=NOISE)
    for camera in recorded:
        evidence.add(camera, None)
    poses = torch.stack([camera.camtoworld for camera in recorded])
    # The tiny cameras look along +x with z up: an ego frame is x forward, y left, z up.
    egos = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    egos[:, :3, 3] = poses[:, :3, 3]
    return replace(scene, fisher=evidence.finish()), Trajectory(tuple(recorded), egos)


def gains(scene, path, offsets, frames=(0, 1, 2), **options):
    return {
        g.offset: g.nats for g in expected_gains(scene, path, offsets, frames=frames, **options)
    }


@pytest.mark.parametrize("degree", [0, 2])
def test_the_gain_is_the_fall_of_the_entropy(degree: int) -> None:
    scene, path = known(3, degree)
    fisher, prior = scene.fisher, FisherPrior()
    assert fisher is not None and fisher.sky is not None
    more = FisherAccumulator(scene, noise_std=NOISE)
    for camera in offset_laterally(path, 1.5).cameras:
        more.add(camera, None)
    added = more.finish()
    Lambda = torch.diag_embed(prior.precision(scene.background.scales).double())

    def entropy(blocks, sh, sky):
        full = torch.linalg.slogdet(unpack(blocks.double(), 13) + Lambda).logabsdet.sum()
        rest = (sh.double() + prior.sh_precision).log().sum()
        return -0.5 * float(full + rest + 3 * (sky.double() + prior.void**-2).log().sum())

    before = entropy(fisher.blocks, fisher.sh, fisher.sky)
    after = entropy(fisher.blocks + added.blocks, fisher.sh + added.sh, fisher.sky + added.sky)
    found = gains(scene, path, [1.5])[1.5]
    assert found == pytest.approx((before - after) / 3, rel=1e-3)


def test_a_view_from_elsewhere_teaches_more_than_the_same_view_again() -> None:
    scene, path = known(1)
    found = gains(scene, path, [0.0, -2.0, 2.0])
    assert 0 < found[0.0] < min(found[-2.0], found[2.0])


def test_what_was_learned_once_teaches_less_the_second_time() -> None:
    scene, path = known(2)
    first = gains(scene, path, [2.0])[2.0]
    evidence = FisherAccumulator(scene, noise_std=NOISE)
    for camera in (*path.cameras, *offset_laterally(path, 2.0).cameras):
        evidence.add(camera, None)
    again = gains(scene, path, [2.0], fisher=evidence.finish())[2.0]
    assert again < 0.7 * first


def test_a_scene_without_evidence_is_refused() -> None:
    scene, path = known()
    with pytest.raises(MissingFisherError):
        gains(replace(scene, fisher=None), path, [1.0])


def test_frames_are_spread_inside_the_segment() -> None:
    camera = recorded_cameras(0)[0]
    alone = trajectory_from_cameras([camera] * 40)
    assert spread_frames(alone, Segment(3, 4)) == [3]
    assert spread_frames(alone, Segment(10, 12)) == [10, 11]
    assert spread_frames(alone, Segment(0, 40)) == [5, 15, 25, 35]
    rig = trajectory_from_cameras([replace(camera, name=name) for name in "abcd" * 10])
    assert sorted(i % 4 for i in spread_frames(rig, Segment(0, 40))) == [0, 1, 2, 3]
