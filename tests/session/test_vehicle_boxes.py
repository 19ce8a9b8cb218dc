"""Annotating vehicles in a session: each edit is exact, undone and saved; following is a job like others."""

import time

import pytest
import torch
from passing_car import INTERVAL, SIZE, SPEED, START, passing_car, pose

from faithfusion_studio.fusion.progressive import FusionState
from faithfusion_studio.io import load_scene
from faithfusion_studio.io.annotations import read_box_tracks
from faithfusion_studio.session import box_commands as b
from faithfusion_studio.session import commands as c
from faithfusion_studio.session import jobs
from faithfusion_studio.session.session import Session

REAR = (START[0] - SIZE[0] / 2, START[1], START[2])
LAST = 5 * INTERVAL


@pytest.fixture(params=[2 << 30, 0], ids=["in memory", "spilled to files"])
def session(request, tmp_path):
    made = Session(passing_car(), run_folder=tmp_path / "run", history_bytes=request.param)
    yield made
    made.close(save=False)


def do(session, *commands):
    for command in commands:
        session.submit(command)
    assert session.wait_idle(30.0)
    return session.store.latest().scene.capture.boxes


def content(boxes):
    return [
        (
            x.name,
            x.category,
            x.size.tolist(),
            x.poses.tolist(),
            x.timestamps.tolist(),
            x.by_hand.tolist(),
        )
        for x in boxes
    ]


def test_a_box_is_fitted_to_the_car_at_a_place(session):
    (box,) = do(session, b.AddBox(REAR, 0.03))
    assert session.state.error is None
    assert (box.name, box.category, box.timestamps.tolist()) == ("car 1", "car", [0.0])
    assert box.poses[0, :3, 3].tolist() == pytest.approx(list(START), abs=0.12)
    assert box.size.tolist() == pytest.approx(list(SIZE), abs=0.15)
    assert float(box.poses[0, 0, 0]) > 0.999  # its front is away from the sensor, as traffic drives
    assert session.state.history[-1] == "Box of a car"
    (vehicle,) = session.state.vehicles
    assert vehicle.by_hand == vehicle.times == (0.0,) and vehicle.travel == 0.0


def test_every_edit_of_boxes_is_undone_and_redone(session):
    start = session.store.latest().scene
    moments = FusionState(newest=3)  # what fusion would go on from
    session._history.push("Fusion", start, moments)
    edits = (
        b.AddBox(REAR, 0.0),
        b.SetKeyframe("car 1", LAST, pose(LAST)),
        b.FitKeyframe("car 1", 2 * INTERVAL),
        b.RemoveKeyframe("car 1", LAST),
        b.ChangeBox("car 1", new_name="taxi"),
        b.ChangeBox("taxi", size=(4.5, 1.9, 1.7)),
        b.ChangeBox("taxi", category="van"),
        b.AddBox(REAR, 0.0, "truck", "other"),
        b.RemoveBox("taxi"),
        b.PlaceBox((9.0, -3.0, 0.0), 0.21, "bus"),
    )
    reached = [content(start.capture.boxes)]
    for edit in edits:
        reached.append(content(do(session, edit)))
        assert session.state.error is None
        assert session._history.current.optimizer_state is moments
    assert session.state.history[2:] == (
        "Box of a car",
        "Keyframe of car 1 at 1.0 s",
        "Keyframe of car 1 at 0.4 s",
        "Remove the keyframe of car 1 at 1.0 s",
        "Rename car 1 to taxi",
        "Size of taxi",
        "Category of taxi",
        "Box of other",
        "Remove the box of taxi",
        "Box of a bus",
    )
    for before in reversed(reached[:-1]):
        assert content(do(session, c.Undo())) == before
    for after in reached[1:]:
        assert content(do(session, c.Redo())) == after


def test_a_fitted_keyframe_lies_on_the_points_and_a_new_height_stands_on_the_road(session):
    wrong = pose(2 * INTERVAL)
    wrong[0, 3] += 0.6
    do(session, b.AddBox(REAR, 0.0), b.SetKeyframe("car 1", 2 * INTERVAL, wrong))
    (box,) = do(session, b.FitKeyframe("car 1", 2 * INTERVAL))
    found = box.pose_at(2 * INTERVAL)
    assert found[:3, 3].tolist() == pytest.approx(pose(2 * INTERVAL)[:3, 3].tolist(), abs=0.15)
    bottom = box.poses[:, 2, 3] - box.size[2] / 2
    (taller,) = do(session, b.ChangeBox("car 1", size=(4.4, 1.8, 2.5)))
    assert (taller.poses[:, 2, 3] - 1.25).tolist() == pytest.approx(bottom.tolist(), abs=1e-5)


def test_following_finds_the_car_in_every_sweep_and_keeps_what_was_set_by_hand(session):
    (before,) = do(session, b.AddBox(REAR, 0.0))
    (box,) = do(session, b.FollowBox("car 1"))
    assert session.state.error is None and session.state.history[-1] == "Follow car 1"
    assert box.timestamps.tolist() == pytest.approx([i * INTERVAL for i in range(6)])
    assert box.by_hand.tolist() == [True] + 5 * [False]
    assert torch.equal(box.poses[0], before.poses[0])
    steps = (box.poses[:, :3, 3] - box.poses[0, :3, 3]).norm(dim=1)
    assert steps.tolist() == pytest.approx([SPEED * i * INTERVAL for i in range(6)], abs=0.1)
    assert "found in 6 of 6 sweeps; it travels 5.0 m" in session.state.notice
    assert content(do(session, c.Undo())) == content([before])


@pytest.mark.parametrize("end", [c.Stop(), c.CancelJob()])
def test_following_shows_its_progress_and_can_be_cancelled(session, monkeypatch, end):
    (before,) = do(session, b.AddBox(REAR, 0.0))

    def slowly(_scene, _name):
        while True:
            yield 3, 18

    monkeypatch.setattr(jobs, "follow_box", slowly)
    session.submit(b.FollowBox("car 1"))
    session.submit(b.SetKeyframe("car 1", LAST, pose(LAST)))
    deadline = time.monotonic() + 20.0
    while session.state.error is None or not session.state.job.done:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "Follow car 1 is running" in session.state.error
    assert (session.state.job.done, session.state.job.total) == (3, 18)
    session.submit(end)
    assert content(do(session)) == content([before])
    assert session.state.job is None and "was cancelled" in session.state.notice


def test_boxes_are_kept_by_the_scene_file_and_written_for_reconstruct(session, tmp_path):
    boxes = do(session, b.AddBox(REAR, 0.0), b.SetKeyframe("car 1", LAST, pose(LAST)))
    do(session, c.SaveAs(str(tmp_path / "scene.ckpt")), b.ExportBoxes(str(tmp_path / "boxes.json")))
    assert session.state.error is None
    assert content(load_scene(tmp_path / "scene.ckpt").capture.boxes) == content(boxes)
    (written,) = read_box_tracks(tmp_path / "boxes.json")
    assert written.timestamps.tolist() == pytest.approx([i * INTERVAL for i in range(6)])
    assert written.by_hand.tolist() == [True, False, False, False, False, True]
    assert written.poses[3, 0, 3] == pytest.approx(
        float(written.poses[0, 0, 3]) * 0.4 + float(written.poses[-1, 0, 3]) * 0.6
    )
    assert str(tmp_path / "boxes.json") in session.state.exports


def test_what_cannot_be_annotated_is_one_sentence_and_changes_nothing(session, tmp_path):
    do(session, b.AddBox(REAR, 0.0), b.AddBox(REAR, 0.0, name="other"))
    start = content(do(session))
    bent = torch.eye(4, dtype=torch.float64)
    bent[0, 0] = 2.0
    for command, words in (
        (b.AddBox((30.0, -9.0, 5.0), 0.0), "laser points"),
        (b.AddBox(REAR, 0.0, name="other"), "called 'other' already"),
        (b.SetKeyframe("bus", 0.0, pose(0.0)), "the recording has: car 1, other"),
        (b.SetKeyframe("car 1", 0.0, bent), "not rigid"),
        (b.FitKeyframe("car 1", LAST), "not there at 1.00 s"),
        (b.RemoveKeyframe("car 1", LAST), "no key frame"),
        (b.RemoveKeyframe("car 1", 0.0), "only key frame"),
        (b.ChangeBox("car 1", new_name=" "), "a name of 0 letters"),
        (b.ChangeBox("car 1", new_name="other"), "called 'other' already"),
        (b.ChangeBox("car 1", size=(0.0, 1.0, 1.0)), "expected sides of 0.2 to 30 m"),
        (b.RemoveBox("bus"), "no vehicle called 'bus'"),
        (b.FollowBox("bus"), "no vehicle called 'bus'"),
        (b.ExportBoxes(str(tmp_path / "none" / "boxes.json")), "the folder does not exist"),
    ):
        assert content(do(session, command)) == start
        assert words in session.state.error and "\n" not in session.state.error


def test_without_sweeps_or_a_recording_the_sentence_says_so(tmp_path):
    for scene, words in (
        (passing_car(lidar=False), "0 laser sweeps"),
        (c.replace(passing_car(), capture=None), "has no recording"),
    ):
        session = Session(scene, run_folder=tmp_path / "run")
        session.submit(b.AddBox(REAR, 0.0))
        session.submit(b.ExportBoxes(str(tmp_path / "boxes.json")))
        assert session.wait_idle(20.0)
        assert "no vehicle is annotated" in session.state.error
        assert session.state.error_id == 2
        session.submit(b.AddBox(REAR, 0.0))
        assert session.wait_idle(20.0) and words in session.state.error
        session.close(save=False)
