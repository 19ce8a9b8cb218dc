"""A hidden object is learned around where a recorded photo shows it, and is nowhere else."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "editing"))
from object_worlds import camera, car, world

from faithfusion_studio.editing import mark_node, remove_node
from faithfusion_studio.fusion.learner import Learner
from faithfusion_studio.fusion.losses import TrainingView
from faithfusion_studio.fusion.schedule import LearningRates, LossWeights
from faithfusion_studio.io.drivestudio_nodes import rigid_state


def moved_by_a_step(scene, source):
    """Background after one step towards grey, and the loss."""
    learner = Learner(replace(scene, fisher=None), LearningRates(), LossWeights(), extent=10.0)
    view = TrainingView(camera(), torch.full((64, 96, 3), 0.5), source=source)
    loss, _ = learner.step(view, 1)
    return loss, learner.snapshot().background.means


@pytest.mark.parametrize(
    ("source", "as_if"),
    [("recorded", lambda scene: scene), ("repaired", lambda s: remove_node(s, "car").scene)],
)
def test_a_recorded_view_shows_what_is_hidden_and_a_repaired_one_does_not(source, as_if):
    scene = world(80)
    loss, means = moved_by_a_step(mark_node(scene, "car", hidden=True).scene, source)
    expected, expected_means = moved_by_a_step(as_if(scene), source)
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(means, expected_means, rtol=0, atol=1e-7)
    assert (
        moved_by_a_step(scene, source)[0]
        != moved_by_a_step(remove_node(scene, "car").scene, source)[0]
    )


def test_a_driving_checkpoint_does_not_show_a_hidden_object():
    shown, hidden = car("a", 1, (5.0, 0.0, 0.5)), car("b", 2, (8.0, 0.0, 0.5), hidden=True)
    assert rigid_state([shown, hidden])["instances_fv"].tolist() == [[True, False]] * 3
