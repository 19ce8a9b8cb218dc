"""Edits by hand in a session: undone and redone bit by bit, also from spilled files; moments follow."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "editing"))
from object_worlds import assert_same, camera, cloud, world  # noqa: E402

from faithfusion_studio.editing import Box, Rectangle, by_value, in_box, in_shape  # noqa: E402
from faithfusion_studio.fusion.progressive import FusionState  # noqa: E402
from faithfusion_studio.io import save_scene  # noqa: E402
from faithfusion_studio.session import commands as c  # noqa: E402
from faithfusion_studio.session.session import Session  # noqa: E402

SELECTIONS = {
    "box": lambda s: in_box(s, Box((8.0, 0.0, 1.0), (5.0, 5.0, 3.0)), 0.1),
    "rectangle": lambda s: in_shape(s, camera(), Rectangle((10.0, 5.0), (60.0, 50.0))),
    "histogram": lambda s: by_value(s, "opacity", 0.0, 0.5),
}


@pytest.fixture(params=[2 << 30, 0], ids=["in memory", "spilled to files"])
def session(request, tmp_path):
    made = Session(world(), run_folder=tmp_path / "run", history_bytes=request.param)
    yield made
    made.close(save=False)


def do(session, *commands):
    for command in commands:
        session.submit(command)
    assert session.wait_idle(20.0)
    return session.store.latest().scene


def test_every_edit_is_undone_and_redone_bit_by_bit(session, tmp_path):
    start = session.store.latest().scene
    save_scene(c.Scene(cloud(40, 3)), tmp_path / "thing.ply")
    rows = SELECTIONS["box"](start).nonzero()[:, 0]
    edits = (
        c.DeleteGaussians(rows),
        c.MarkNode("car", color=(1.0, 0.0, 0.0)),
        c.MoveNode("car", (0.5, 1.0, 0.0), 0.3, "object"),
        c.DuplicateNode("van"),
        c.ReplaceNode("car", node="van"),
        c.ReplaceNode("van", path=str(tmp_path / "thing.ply"), up="-y"),
        c.MarkNode("car", hidden=True),
        c.RemoveNode("van 2"),
        c.MarkNode("van", locked=True),
    )
    reached = [start]
    for edit in edits:
        reached.append(do(session, edit))
        assert session.state.error is None
    assert session.state.history[1:] == (
        f"Delete {len(rows)} splats",
        "Colour car",
        "Move car",
        "Duplicate van",
        "Replace car by van",
        "Replace van by thing.ply",
        "Hide car",
        "Remove van 2",
        "Lock van",
    )
    for before in reversed(reached[:-1]):
        assert_same(do(session, c.Undo()), before)
    for after in reached[1:]:
        assert_same(do(session, c.Redo()), after)


@pytest.mark.parametrize("how", SELECTIONS)
def test_selecting_deleting_and_undoing_gives_the_same_bits(session, how):
    start = session.store.latest().scene
    rows = SELECTIONS[how](start).nonzero()[:, 0]
    edited = do(session, c.DeleteGaussians(rows))
    assert edited.num_gaussians == start.num_gaussians - len(rows) and len(rows) > 0
    assert len(edited.fisher.blocks) == edited.num_gaussians
    assert_same(do(session, c.Undo()), start)


def test_what_is_refused_is_one_sentence_and_changes_nothing(session, tmp_path):
    start = do(session, c.MarkNode("car", locked=True))
    (tmp_path / "broken.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\n")
    for command, words in (
        (c.MoveNode("car", (1.0, 0.0, 0.0)), "car is locked, so it cannot be moved"),
        (c.ReplaceNode("van", path=str(tmp_path / "none.ply")), "none.ply"),
        (c.ReplaceNode("van", path=str(tmp_path / "broken.ply")), "broken.ply"),
        (c.ReplaceNode("van"), "one of the two"),
        (c.DuplicateNode("bus"), "the scene has: car, van"),
    ):
        assert do(session, command) is start
        assert words in session.state.error and "\n" not in session.state.error


def test_the_optimisers_moments_follow_the_rows(session):
    start = session.store.latest().scene
    count = len(start.background)
    moments = {
        "means": {"exp_avg": torch.arange(3.0 * count).view(count, 3), "steps": torch.tensor(7)}
    }
    session._history.push("Fusion", start, FusionState(moments=moments))
    do(session, c.MoveNode("car", (1.0, 0.0, 0.0)))
    assert session._history.current.optimizer_state.moments is moments
    do(session, c.DeleteGaussians(torch.tensor([0, 2, 205])))
    kept = session._history.current.optimizer_state.moments["means"]
    assert torch.equal(kept["exp_avg"], moments["means"]["exp_avg"][[1, *range(3, count)]])
    assert kept["steps"] == 7
