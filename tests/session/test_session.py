"""One worker: commands in order, jobs that can be paused, stopped and undone, errors that end nothing."""

import threading

import pytest
import torch

from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.session import commands as c

STAGE = Stage(segment=(1, 4), lateral_offset=3.0)


def shown_value(session):
    return float(session.store.latest().scene.background.means[0, 0])


def repaired(session, tools):
    session.submit(c.RepairSegment(STAGE))
    assert session.wait_idle(tools.timeout)
    return session


def fused(session, tools, steps=5):
    repaired(session, tools).submit(c.StartFusion(steps=steps))
    assert session.wait_idle(tools.timeout)
    return session


def test_commands_are_taken_in_the_order_they_came(open_session, tools):
    session = open_session()
    for value in range(20):
        session.submit(c.SetSky((value / 20, 0.0, 0.0)))
        session.submit(c.Undo())
        session.submit(c.Redo())
    assert session.wait_idle(tools.timeout)
    assert len(session.state.history) == 21
    assert float(session.store.latest().scene.sky.color[0]) == pytest.approx(19 / 20)
    assert session.state.error is None


def test_repair_fills_the_strip_and_leaves_the_scene(open_session, tools):
    session = open_session()
    version = session.store.latest().version
    repaired(session, tools)
    state = session.state
    assert [frame.frame for frame in state.frames] == [1, 2, 3]
    assert state.stage == STAGE
    assert session.store.latest().version == version
    assert "3 of 3 frames at +3 m" in state.notice
    assert not state.unsaved


def test_a_preview_does_not_touch_the_strip(open_session, tools):
    session = repaired(open_session(), tools)
    session.submit(c.RepairSegment(Stage(segment=(5, 6), lateral_offset=-1.0), preview=True))
    assert session.wait_idle(tools.timeout)
    assert session.state.preview.frame == 5
    assert [frame.frame for frame in session.state.frames] == [1, 2, 3]


def test_missing_evidence_is_computed_first(open_session, tools):
    session = open_session(tools.scene(fisher=False))
    assert not session.state.fisher_ready
    repaired(session, tools)
    assert session.state.fisher_ready
    assert len(session.state.frames) == 3
    assert session.state.history == ("Opened",)
    assert session.state.unsaved


def test_fusion_is_one_entry_with_evidence_and_curves(open_session, world, tools):
    session = fused(open_session(), tools)
    state = session.state
    assert state.history == ("Opened", "Fusion +3 m, frames 1-3")
    assert shown_value(session) == 5.0
    assert world.evidence_added == 3
    assert session.store.latest().scene.fisher.num_views == 7
    assert [step for step, _ in state.loss_curve] == [1, 2, 3, 4, 5]
    assert state.psnr_curve == ((1, 21.0), (5, 25.0))
    assert state.psnr_before == 21.0
    assert state.unsaved
    assert float(session.before_scene.background.means[0, 0]) == 0.0


def plan(*offsets, steps=2):
    return tuple(Stage((1, 3), offset, steps=steps) for offset in offsets)


def test_each_stage_of_a_plan_is_an_entry_that_can_be_undone(open_session, world, tools):
    session = open_session()
    stages = plan(1.0, 2.0, 3.0)
    session.submit(c.StartFusion(stages=stages))
    assert session.wait_idle(tools.timeout)
    state = session.state
    labels = tuple(f"Fusion {stage.label}" for stage in stages)
    assert state.history == ("Opened", *labels)
    assert (state.plan, state.plan_done) == (stages, 3)
    assert [step for step, _ in state.loss_curve] == [1, 2, 3, 4, 5, 6]
    assert world.evidence_added == 6
    assert len(session._history.current.optimizer_state.replay) == 6
    session.submit(c.Undo())
    assert session.wait_idle(tools.timeout)
    assert shown_value(session) == 4.0
    reached = session._history.current.optimizer_state
    assert reached.stages == stages[:2] and len(reached.replay) == 4
    assert float(reached.moments["means"]["count"][0]) == 4.0
    # The plan goes on where it stands, with the optimiser as it was.
    session.submit(c.StartFusion(stages=stages))
    assert session.wait_idle(tools.timeout)
    assert session.state.history == ("Opened", *labels) and shown_value(session) == 6.0
    assert float(world.trainer_starts[-1]["means"]["count"][0]) == 4.0
    session.submit(c.StartFusion(stages=stages))
    assert session.wait_idle(tools.timeout)
    assert "all stages of this plan are done" in session.state.error


def test_cancelling_a_plan_goes_back_to_its_last_whole_stage(open_session, world, tools):
    session = open_session()
    world.hold()
    session.submit(c.StartFusion(stages=plan(1.0, 2.0)))
    world.allow(5)  # two frames and two steps of the first stage, one frame of the second
    tools.wait_until(lambda: world.steps_done == 5)
    session.submit(c.CancelJob())
    world.allow(20)
    assert session.wait_idle(tools.timeout)
    assert session.state.history == ("Opened", "Fusion +1 m, frames 1-2")
    assert shown_value(session) == 2.0


def test_frames_judged_in_the_strip_are_those_of_the_first_stage(open_session, world, tools):
    session = open_session()
    stages = plan(1.0, 2.0)
    session.submit(c.RepairSegment(stages[0]))
    assert session.wait_idle(tools.timeout)
    session.submit(c.AcceptFrames((2,), False))
    assert session.wait_idle(tools.timeout)
    session.submit(c.StartFusion(stages=stages))
    assert session.wait_idle(tools.timeout)
    replay = session._history.current.optimizer_state.replay
    assert [view.frame for view in replay] == [1, 1, 2]
    assert world.steps_done == 2 + 2 + 2 + 2  # repaired, learned, repaired, learned


def test_undo_and_redo_bring_back_scene_and_optimiser(open_session, world, tools):
    session = fused(open_session(), tools)
    session.submit(c.StartFusion(steps=2))
    session.submit(c.Undo())
    assert session.wait_idle(tools.timeout)
    # The undo came while the second fusion ran, so it was refused; undo again in peace.
    assert "is running" in session.state.error
    assert shown_value(session) == 7.0
    session.submit(c.Undo())
    session.submit(c.StartFusion(steps=1))
    assert session.wait_idle(tools.timeout)
    counts = [None if s is None else float(s["means"]["count"][0]) for s in world.trainer_starts]
    assert counts == [None, 5.0, 5.0]
    session.submit(c.Undo())
    session.submit(c.Undo())
    assert session.wait_idle(tools.timeout)
    assert shown_value(session) == 0.0
    assert session.state.notice == "Undid: Fusion +3 m, frames 1-3"
    assert session.state.redo_label == "Fusion +3 m, frames 1-3"
    assert not session.state.unsaved


def test_the_history_can_be_visited_by_index(open_session, tools):
    session = fused(open_session(), tools)
    session.submit(c.GoTo(0))
    assert session.wait_idle(tools.timeout)
    assert (session.state.cursor, shown_value(session)) == (0, 0.0)
    session.submit(c.GoTo(9))
    assert session.wait_idle(tools.timeout)
    assert session.state.error == "there is nothing to go back to."


def test_pause_step_and_resume_act_between_two_steps(open_session, world, tools):
    session = repaired(open_session(), tools)
    world.hold()
    done = world.steps_done
    session.submit(c.StartFusion(steps=6))
    world.allow(2)
    tools.wait_until(lambda: session.state.job is not None and session.state.job.done == 2)
    session.submit(c.Pause())
    assert session.state.job.asked == "pausing"
    world.allow(1)  # the step in progress ends, then the pause is taken
    tools.wait_until(lambda: session.state.job.paused)
    assert session.state.job.done == 3
    assert shown_value(session) == 3.0
    world.allow(10)
    session.submit(c.StepOnce())
    tools.wait_until(lambda: session.state.job.done == 4)
    session.submit(c.StepOnce())
    tools.wait_until(lambda: session.state.job.done == 5)
    assert session.state.job.paused
    assert world.steps_done == done + 5
    session.submit(c.Resume())
    assert session.wait_idle(tools.timeout)
    assert shown_value(session) == 6.0


def test_stop_keeps_what_was_learned_even_when_paused(open_session, world, tools):
    session = repaired(open_session(), tools)
    world.hold()
    session.submit(c.StartFusion(steps=100))
    world.allow(2)
    tools.wait_until(lambda: session.state.job is not None and session.state.job.done == 2)
    session.submit(c.Pause())
    session.submit(c.Stop())
    world.allow(1)
    assert session.wait_idle(tools.timeout)
    assert shown_value(session) == 3.0
    assert session.state.history[-1] == "Fusion +3 m, frames 1-3"
    assert world.evidence_added == 3


def test_cancel_goes_back_to_the_scene_before(open_session, world, tools):
    session = repaired(open_session(), tools)
    world.hold()
    session.submit(c.StartFusion(steps=100))
    world.allow(1)
    tools.wait_until(lambda: session.state.job is not None and session.state.job.done == 1)
    session.submit(c.Pause())
    world.allow(1)
    tools.wait_until(lambda: shown_value(session) == 2.0)
    session.submit(c.CancelJob())
    assert session.wait_idle(tools.timeout)
    assert shown_value(session) == 0.0
    assert session.state.history == ("Opened",)
    assert session.state.num_generated == 0


def test_stopping_a_repair_keeps_the_frames_so_far(open_session, world, tools):
    session = open_session()
    world.hold()
    session.submit(c.RepairSegment(STAGE))
    world.allow(1)
    tools.wait_until(lambda: len(session.state.frames) == 1)
    session.submit(c.Stop())
    world.allow(1)
    assert session.wait_idle(tools.timeout)
    assert len(session.state.frames) == 2


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (RuntimeError("kernel broke\nat line 3"), "failed (RuntimeError: kernel broke at line 3)"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), "not enough memory"),
        (OSError(28, "No space left on device"), "no space left"),
    ],
)
def test_an_exception_in_a_job_is_one_sentence_and_the_worker_serves_on(
    open_session, world, tools, raised, words
):
    session = repaired(open_session(), tools)
    world.fail_at = {3: raised}
    session.submit(c.StartFusion(steps=5))
    assert session.wait_idle(tools.timeout)
    error = session.state.error
    assert words in error
    assert "\n" not in error
    assert session.state.job is None
    kept = shown_value(session)
    assert session.state.history[-1] == "Fusion +3 m, frames 1-3 (interrupted)" or kept == 0.0
    fused(session, tools)
    assert session.state.error_id == 1
    assert shown_value(session) == kept + 5.0


def test_a_failed_fusion_keeps_its_last_good_snapshot(open_session, world, tools):
    session = repaired(open_session(), tools)
    world.hold()
    world.fail_at = {4: RuntimeError("broken")}
    session.submit(c.StartFusion(steps=5))
    world.allow(1)
    tools.wait_until(lambda: session.state.job is not None and session.state.job.done == 1)
    session.submit(c.Pause())
    world.allow(1)
    tools.wait_until(lambda: session.state.job.paused)
    session.submit(c.Resume())
    world.allow(10)
    assert session.wait_idle(tools.timeout)
    assert "broken" in session.state.error
    assert shown_value(session) >= 2.0
    assert session.state.history[-1].endswith("(interrupted)")
    session.submit(c.Undo())
    assert session.wait_idle(tools.timeout)
    assert shown_value(session) == 0.0


@pytest.mark.parametrize("where", ["loss", "parameters"])
def test_a_nan_never_becomes_the_scene(open_session, world, tools, where):
    session = repaired(open_session(), tools)
    if where == "loss":
        world.losses = {2: float("nan")}
    else:
        original = world.start_trainer

        def poisoned(*arguments, **options):
            trainer = original(*arguments, **options)
            trainer._means[0, 0] = float("nan")
            return trainer

        world.start_trainer = poisoned
        session._engines = world.engines()
    session.submit(c.StartFusion(steps=4))
    assert session.wait_idle(tools.timeout)
    assert "last good state is kept" in session.state.error
    assert bool(torch.isfinite(session.store.latest().scene.background.means).all())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (c.RepairSegment(Stage(segment=(4, 9), lateral_offset=1.0)), "segment 4:9 is outside"),
        (c.StartFusion(), "accept at least one repaired frame first"),
        (c.AcceptFrames((77,)), "frame 77 is not among"),
        (c.SaveAs("nowhere/at/all/x.ckpt"), "folder does not exist"),
        (c.Undo(), "nothing to undo"),
        (c.Redo(), "nothing to redo"),
        (c.Export(c.ExportRequest("nowhere/at/all/x.mp4")), "folder does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(open_session, tools, command, words):
    session = open_session()
    session.submit(command)
    tools.wait_until(lambda: session.state.error is not None)
    assert words in session.state.error
    assert session.state.error_id == 1


def test_without_a_recording_repair_says_what_to_open(open_session, tools):
    from dataclasses import replace

    session = open_session(replace(tools.scene(), capture=None))
    session.submit(c.RepairSegment(STAGE))
    tools.wait_until(lambda: session.state.error is not None)
    assert "no recorded path" in session.state.error
    assert not session.state.has_recording


def test_no_second_job_while_one_runs(open_session, world, tools):
    session = open_session()
    world.hold()
    session.submit(c.RepairSegment(STAGE))
    tools.wait_until(lambda: session.state.job is not None)
    session.submit(c.ComputeFisher())
    world.allow(10)
    tools.wait_until(lambda: session.state.error is not None)
    assert session.state.error.startswith("Repair +3 m, frames 1-3 is running")
    assert session.wait_idle(tools.timeout)
    assert len(session.state.frames) == 3


def test_rejected_frames_are_not_learned_from(open_session, tools):
    session = repaired(open_session(), tools)
    session.submit(c.AcceptFrames((2,), accepted=False))
    assert session.wait_idle(tools.timeout)
    assert [f.accepted for f in session.state.frames] == [True, False, True]
    session.submit(c.AcceptFrames(None, accepted=False))
    session.submit(c.StartFusion())
    assert session.wait_idle(tools.timeout)
    assert session.state.error == "accept at least one repaired frame first."


def test_saving_clears_unsaved_and_undo_brings_it_back(open_session, world, tools, tmp_path):
    session = fused(open_session(), tools)
    target = tmp_path / "mine.ckpt"
    session.submit(c.SaveAs(str(target)))
    assert session.wait_idle(tools.timeout)
    assert target in world.saved
    assert session.state.path == str(target)
    assert not session.state.unsaved
    session.submit(c.Undo())
    assert session.wait_idle(tools.timeout)
    assert session.state.unsaved


def test_the_opened_file_is_never_overwritten(open_session, world, tools, tmp_path):
    opened = tmp_path / "opened.ckpt"
    opened.write_bytes(b"original")
    session = open_session(path=opened)
    session.submit(c.SaveAs(str(opened)))
    assert session.wait_idle(tools.timeout)
    assert "never overwritten" in session.state.error
    assert opened.read_bytes() == b"original"


def test_close_keeps_unsaved_work_and_says_where(open_session, world, tools, tmp_path):
    session = fused(open_session(), tools)
    kept = session.close()
    assert kept == tmp_path / "runs" / "scenes" / "autosave.ckpt"
    assert float(world.saved[kept].background.means[0, 0]) == 5.0
    assert str(kept) in session.state.notice


def test_close_during_a_fusion_keeps_what_was_learned(open_session, world, tools):
    session = repaired(open_session(), tools)
    world.hold()
    session.submit(c.StartFusion(steps=100))
    world.allow(2)
    tools.wait_until(lambda: session.state.job is not None and session.state.job.done == 2)
    closing = threading.Timer(0.05, world.allow)
    closing.start()
    kept = session.close()
    assert float(world.saved[kept].background.means[0, 0]) == 3.0


def test_close_without_changes_writes_nothing(open_session, world):
    assert open_session().close() is None
    assert world.saved == {}


def test_an_autosave_that_cannot_be_written_goes_elsewhere(
    open_session, world, tools, tmp_path, monkeypatch
):
    session = fused(open_session(), tools)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "elsewhere"))
    (tmp_path / "runs").write_text("a file where a folder should be")
    kept = session.close()
    assert (tmp_path / "elsewhere") in kept.parents
    assert kept in world.saved


def test_an_export_reads_one_snapshot_while_fusion_goes_on(open_session, world, tools, tmp_path):
    session = repaired(open_session(), tools)
    target = tmp_path / "a.mp4"
    request = c.ExportRequest(
        str(target), camera_path="segment", segment=(1, 4), lateral_offset=2.0
    )
    session.submit(c.Export(request))
    session.submit(c.StartFusion(steps=5))
    assert session.wait_idle(tools.timeout)
    tools.wait_until(lambda: session.state.exports)
    scene, _, cameras = world.exported[0]
    assert float(scene.background.means[0, 0]) == 0.0
    assert [float(camera.position[0]) for camera in cameras] == pytest.approx([-1.0, 0.0, 1.0])
    assert session.state.exports == (str(target),)
    assert session.state.export is None


def test_a_cancelled_export_closes_its_generator(open_session, world, tools, tmp_path):
    session = open_session()
    world.hold()
    session.submit(c.Export(c.ExportRequest(str(tmp_path / "a.mp4"))))
    world.allow(1)
    tools.wait_until(lambda: session.state.export is not None and session.state.export.done == 1)
    session.submit(c.Export(c.ExportRequest(str(tmp_path / "b.mp4"))))
    tools.wait_until(lambda: session.state.error is not None)
    assert session.state.error.startswith("an export is running")
    session.submit(c.CancelExport())
    tools.wait_until(lambda: session.state.export is None or session.state.export.asked)
    world.allow(1)
    tools.wait_until(lambda: session.state.export is None)
    assert world.export_closed == 1
    assert world.exported == []
    assert session.state.exports == ()
    assert "was cancelled" in session.state.notice


def test_a_failing_export_is_one_sentence(open_session, world, tools, tmp_path):
    session = open_session()
    world.fail_at = {1001: OSError(28, "No space left on device")}
    session.submit(c.Export(c.ExportRequest(str(tmp_path / "a.mp4"))))
    tools.wait_until(lambda: session.state.error is not None)
    assert "no space left" in session.state.error
    assert session.state.export is None


def test_the_worker_leaves_a_core_to_a_moving_viewer(open_session, world, tools):
    session = open_session()
    session._cpus = 4
    repaired(session, tools)
    assert set(world.limits) == {4}
    world.limits.clear()
    session.note_viewer_activity()
    repaired(session, tools)
    assert set(world.limits) == {3}


def test_listeners_hear_the_newest_state_and_can_leave(open_session, tools):
    session, heard, broken = open_session(), [], []

    def fails(state):
        broken.append(state)
        raise KeyError("a listener of its own making")

    session.subscribe(fails)
    leave = session.subscribe(heard.append)
    tools.wait_until(lambda: heard)
    session.submit(c.SetSky((1.0, 0.0, 0.0)))
    tools.wait_until(lambda: heard[-1].history == ("Opened", "Change the sky"))
    leave()
    count = len(heard)
    session.submit(c.Undo())
    assert session.wait_idle(tools.timeout)
    tools.wait_until(lambda: broken[-1].cursor == 0)
    assert len(heard) == count
