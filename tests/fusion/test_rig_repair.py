"""A video engine sees one camera of a rig at a time, and besides a window's frames those it wants around it."""

from dataclasses import replace

import pytest
import torch
from fusion.worlds import tiny_capture, tiny_world

from faithfusion_studio.fusion.batches import RecordedReferences
from faithfusion_studio.fusion.repairing import (
    RepairedFrame,
    _clips,
    _with_context,
    repair_stage,
    repair_stage_steps,
)
from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.information import recorded_fisher
from faithfusion_studio.repair.base import RepairStep
from faithfusion_studio.repair.refiner import RefinerRepairer
from faithfusion_studio.repair.refiner_network import Refiner


@pytest.mark.parametrize(
    ("names", "window", "clips"),
    [
        ("aaabbb", 2, [(0, 2), (2, 3), (3, 5), (5, 6)]),
        ("aaabbb", 9, [(0, 3), (3, 6)]),
        ("abab", 1, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ("aaaa", 4, [(0, 4)]),
        ("", 4, []),
    ],
)
def test_no_clip_holds_two_cameras(names, window, clips):
    assert [(c.start, c.stop) for c in _clips(list(names), window)] == clips


@pytest.mark.parametrize(
    ("names", "chosen", "seen"),
    [
        ("aaaaaaaaaa", (4, 6), (2, 7)),
        ("aaaaaa", (0, 2), (0, 3)),
        ("aaabbb", (2, 3), (0, 3)),
        ("aaabbb", (3, 5), (3, 6)),
    ],
)
def test_context_ends_where_the_camera_or_the_segment_ends(names, chosen, seen):
    found = _with_context(list(names), range(*chosen), (2, 1))
    assert (found.start, found.stop) == seen


@pytest.fixture(scope="module")
def scene():
    world = replace(
        tiny_world(), capture=tiny_capture(), metadata={"reconstruction": {"scale": 1.0}}
    )
    return replace(world, fisher=recorded_fisher(world))


def test_a_long_window_can_be_stopped_while_recorded_frames_are_loaded(scene, monkeypatch):
    loaded, load = [], RecordedReferences._load
    monkeypatch.setattr(
        RecordedReferences, "_load", lambda self, i: (loaded.append(i), load(self, i))[1]
    )
    work = repair_stage_steps(scene, Stage((1, 6), 1.0, eig_threshold=0.3), RefinerRepairer())
    first = next(work)
    assert isinstance(first, RepairStep) and first.what == "loading recorded frames"
    assert len(loaded) == 1
    rest = list(work)
    frames = [item.frame for item in rest if isinstance(item, RepairedFrame)]
    assert frames == [1, 2, 3, 4, 5]
    assert len(loaded) == len(set(loaded)) == 1 + len(rest) - len(frames)


def test_windows_leave_no_seams(scene):
    """The attention over time has learned something, and every frame is what one long window makes of it."""
    torch.manual_seed(0)
    network = Refiner().requires_grad_(False)
    assert network.temporal is not None and network.temporal.amount.bias is not None
    network.temporal.amount.bias.fill_(0.5)
    made = []
    for window, context in ((2, RefinerRepairer.info.context), (5, (0, 0)), (1, (0, 0))):
        engine = RefinerRepairer(network)
        engine.info = replace(engine.info, window=window, context=context)
        frames = list(repair_stage(scene, Stage((1, 6), 1.0, eig_threshold=0.3), engine))
        assert [frame.frame for frame in frames] == [1, 2, 3, 4, 5]
        made.append(torch.stack([frame.repaired for frame in frames]))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
