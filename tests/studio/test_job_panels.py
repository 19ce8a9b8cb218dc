"""The tabs Repair, Fuse, Export and Scene on a real viser server and a session on fakes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import session_fakes as fakes
import torch

pytest.importorskip("viser")

from faithfusion_studio.cameras import Segment
from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.session import commands as c
from faithfusion_studio.session.session import Session
from faithfusion_studio.session.state import JobState, SessionState
from faithfusion_studio.studio.frame_images import describe_frame, frame_image, strip_image
from faithfusion_studio.studio.panels.export import add_export_panel
from faithfusion_studio.studio.panels.fusion import add_fusion_panel
from faithfusion_studio.studio.panels.repair import add_repair_panel
from faithfusion_studio.studio.panels.scene import add_scene_panel
from faithfusion_studio.studio.view_state import View, ViewState
from faithfusion_studio.studio.widgets import duration, next_step


class Window:
    def __init__(self):
        self.notes, self.downloads = [], []

    def notify(self, title, body, error):
        self.notes.append((title, body, error))

    def download(self, name, data):
        self.downloads.append((name, data))

    def current_camera(self):
        return None


class Gui:
    """A viser GUI that remembers what was made, so that a test can find and press it."""

    def __init__(self, gui):
        self._gui, self.made = gui, []

    def __getattr__(self, name):
        def make(*arguments, **options):
            handle = getattr(self._gui, name)(*arguments, **options)
            self.made.append((name, handle))
            return handle

        return make

    def find(self, label):
        found = [h for _, h in self.made if getattr(h, "label", None) == label]
        assert found, f"no control {label!r}"
        return found[-1]

    def text(self):
        """All HTML that is shown."""
        shown = [h.content for kind, h in self.made if kind == "add_html" and h.visible]
        return " ".join(shown)

    def use(self, label, value=True):
        """What a browser does: the value arrives, then the callbacks run."""
        handle = self.find(label)
        assert not handle.disabled, f"{label!r} is disabled"
        handle._impl.value = value
        for call in tuple(handle._impl.update_cb):
            call(SimpleNamespace(client=object(), client_id=0, target=handle))


@pytest.fixture(scope="module")
def server():
    import viser

    server = viser.ViserServer(host="127.0.0.1", port=18731, verbose=False)
    yield server
    server.stop()


@pytest.fixture
def studio(server, tmp_path):
    """`studio(builder, scene=?)` -> gui, session, view, update, world."""
    sessions = []

    def build(builder, scene=None):
        world = fakes.World()
        session = Session(
            fakes.make_scene() if scene is None else scene,
            engines=world.engines(),
            run_folder=tmp_path / "runs",
        )
        sessions.append((session, world))
        frames = 6 if session.state.has_recording else 0
        state = ViewState(segment=Segment(1, 4), frame=2, offset=3.0)
        view = View(state, num_frames=frames, window=Window())
        gui = Gui(server.gui)
        update = builder(gui, session, view)

        def settle():
            assert session.wait_idle(fakes.TIMEOUT)
            update(session.state)

        update(session.state)
        return SimpleNamespace(
            gui=gui, session=session, view=view, update=update, world=world, settle=settle
        )

    yield build
    for session, world in sessions:
        world.free = True
        world.allow(1000)
        session.close(save=False)
    server.gui.reset()


def test_repair_says_what_it_would_do_and_what_it_costs(studio):
    s = studio(add_repair_panel)
    text = s.gui.text()
    assert "Frames 1 to 3" in text
    assert "3 m to the left" in text
    assert "EIG of 0.40 or more" in text
    assert "Does nothing. Licence: MIT." in text
    assert "About 0.1 s a frame" in text
    s.view.set(offset=-1.5, segment=Segment(0, 6))
    assert "Frames 0 to 5" in s.gui.text()
    assert "1.5 m to the right" in s.gui.text()


def test_a_licence_is_shown_and_accepted_in_the_panel(studio):
    s = studio(add_repair_panel)
    button = s.gui.find("I accept this licence")
    assert not button.visible
    s.gui.use("Engine", "Strict (licence)")
    assert "Strict &lt;1&gt;: for tests only." in s.gui.text()
    assert button.visible and s.gui.find("Repair segment").disabled
    s.gui.use("I accept this licence")
    assert s.world.accepted == ["strict"]
    assert s.gui.find("Engine").value == "Strict" and not button.visible
    assert not s.gui.find("Repair segment").disabled


def test_a_picture_of_what_an_engine_is_making_is_shown_while_it_works(studio):
    s = studio(add_repair_panel)
    picture = torch.full((4, 6, 3), 0.5)
    job = JobState("repair", "Repair", done=1, total=4, picture=picture)
    s.update(replace(s.session.state, job=job))
    shown = s.gui.find("So far, roughly")
    assert shown.visible and (shown.image == 128).all()
    s.update(replace(s.session.state, job=None))
    assert not shown.visible


def test_without_an_offset_repair_is_off_and_says_why(studio):
    s = studio(add_repair_panel)
    assert not s.gui.find("Repair segment").disabled
    s.view.set(offset=0.0)
    assert s.gui.find("Repair segment").disabled
    assert "move the path sideways first" in s.gui.text()


def test_without_a_recording_repair_is_off_and_says_why(studio):
    s = studio(add_repair_panel, replace(fakes.make_scene(), capture=None))
    assert s.gui.find("Repair segment").disabled
    assert "needs a recording" in s.gui.text()


def test_repair_shows_the_strip_and_frames_can_be_rejected(studio):
    s = studio(add_repair_panel)
    s.gui.use("Repair segment")
    s.settle()
    assert s.session.state.stage == Stage((1, 4), 3.0, "fake", eig_threshold=0.4)
    select = s.gui.find("Frame")
    assert (select.min, select.max) == (1, 3)
    assert "Frame 1" in s.gui.text()
    s.gui.use("Frame", 3)
    assert "Frame 3" in s.gui.text()
    s.gui.use("Accept frame", False)
    s.settle()
    assert [f.accepted for f in s.session.state.frames] == [True, True, False]
    s.gui.use("All frames", "Reject all")
    s.settle()
    assert not any(f.accepted for f in s.session.state.frames)
    s.gui.use("Compare in the big picture")
    shown = s.view.get()
    assert (shown.frame, shown.offset, shown.compare_with) == (3, 3.0, "repaired")


def test_a_preview_repairs_the_shown_frame_only(studio):
    s = studio(add_repair_panel)
    s.gui.use("Preview this frame")
    s.settle()
    assert s.session.state.preview.frame == 2
    assert s.session.state.frames == ()
    assert "Preview of frame 2" in s.gui.text()
    assert not s.gui.find("Accept frame").visible


def test_a_running_repair_shows_progress_and_can_be_stopped(studio):
    s = studio(add_repair_panel)
    s.world.hold()
    s.gui.use("Repair segment")
    s.world.allow(1)
    fakes.wait_until(lambda: len(s.session.state.frames) == 1)
    fakes.wait_until(lambda: s.session.state.job.done == 1)
    s.update(s.session.state)
    bar = next(h for kind, h in s.gui.made if kind == "add_progress_bar")
    assert bar.visible
    assert bar.value == pytest.approx(100 / 3)
    assert "1 / 3" in s.gui.text()
    assert s.gui.find("Repair segment").disabled
    s.gui.use("Stop and keep the frames so far")
    s.world.allow(1)
    s.settle()
    assert len(s.session.state.frames) == 2
    assert not bar.visible


def test_our_own_assignments_start_nothing(studio):
    s = studio(add_repair_panel)
    handle = s.gui.find("Repair segment")
    for call in tuple(handle._impl.update_cb):
        call(SimpleNamespace(client=None, client_id=None, target=handle))
    s.settle()
    assert s.session.state.frames == ()


def repaired(s):
    s.session.submit(c.RepairSegment(Stage((1, 4), 3.0)))
    s.settle()


def test_strength_seed_and_references_go_with_the_repair(studio):
    s = studio(add_repair_panel)
    s.gui.use("Strength", 0.4)
    s.gui.use("Seed", 11)
    s.gui.use("References", "1, 5")
    s.gui.use("Repair segment")
    s.settle()
    stage = s.session.state.stage
    assert (stage.strength, stage.seed, stage.references) == (0.4, 11, (1, 5))
    for wrong in ("1, x", "6"):
        s.gui.use("References", wrong)
        assert s.gui.find("Repair segment").disabled
        assert "is no recorded frame; give numbers from 0 to 5" in s.gui.text()
    s.gui.use("References", "auto")
    assert not s.gui.find("Repair segment").disabled


def test_fill_empty_is_shown_before_it_is_added_and_is_one_edit(studio, monkeypatch):
    from faithfusion_studio.session import session as module

    asked = []

    def candidates(scene, frames, rule):
        asked.append(rule)
        return fakes.make_gaussians(0 if rule.transparent > 0.9 else 7)

    monkeypatch.setattr(module, "fill_candidates", candidates)
    s = studio(add_repair_panel)
    assert not s.gui.find("Fill empty").visible
    repaired(s)
    assert s.gui.find("Fill empty").visible
    before = s.session.store.latest().scene.num_gaussians
    s.gui.use("Empty below opacity", 0.8)
    s.gui.use("Show the new points")
    s.settle()
    assert asked[-1].transparent == 0.8 and len(s.session.state.filling) == 7
    assert s.session.state.history == ("Opened",)
    assert "7 points are shown in magenta" in s.gui.text()
    s.gui.use("Show the new points")
    s.settle()
    assert s.session.state.filling is None  # the same limits again hide them
    s.gui.use("Show the new points")
    s.settle()
    assert s.session.state.filling is not None
    s.gui.use("Add the splats")
    s.settle()
    scene = s.session.store.latest().scene
    assert scene.num_gaussians == before + 7 and s.session.state.filling is None
    assert len(scene.fisher.blocks) == scene.num_gaussians
    assert s.session.state.history[-1] == "Fill empty: 7 splats"
    s.session.submit(c.Undo())
    s.settle()
    assert s.session.store.latest().scene.num_gaussians == before
    s.gui.use("Empty below opacity", 1.0)
    s.gui.use("Show the new points")
    s.settle()
    assert "nothing is empty by these limits" in s.session.state.error


def test_fuse_waits_for_an_accepted_frame_and_says_so(studio):
    s = studio(add_fusion_panel)
    assert s.gui.find("Start fusion").disabled
    assert "accept at least one repaired frame first" in s.gui.text()
    repaired(s)
    assert not s.gui.find("Start fusion").disabled
    assert "3 of 3 repaired frames (+3 m, frames 1-3)" in s.gui.text()


def test_fuse_runs_with_the_chosen_numbers_and_can_be_undone(studio):
    s = studio(add_fusion_panel)
    repaired(s)
    s.gui.use("Steps", 50)
    s.gui.use("Weighting", "Uniform")
    s.gui.use("Start fusion")
    s.settle()
    assert len(s.session.state.loss_curve) == 50
    charts = [h for kind, h in s.gui.made if kind == "add_uplot"]
    assert all(chart.visible for chart in charts)
    assert charts[0].data[0][-1] == 50
    assert "last fusion: 21.00 dB before, 70.00 dB after 50 steps (+49.00)" in s.gui.text()
    s.gui.use("Undo: Fusion +3 m, frames 1-3")
    s.settle()
    assert s.session.state.cursor == 0


def test_a_plan_follows_the_view_until_it_is_changed_by_hand(studio):
    s = studio(add_fusion_panel)
    s.gui.use("Plan", "Metre by metre")
    assert not s.gui.find("Steps").visible
    assert all(f"+{d} m, frames 1-3" in s.gui.text() for d in (1, 2, 3))
    assert "3 stage(s), 1500 steps." in s.gui.text()
    s.view.set(offset=-1.5, segment=Segment(2, 5))
    assert "-1.5 m, frames 2-4" in s.gui.text() and "2 stage(s)" in s.gui.text()
    s.view.set(offset=0.0)
    assert s.gui.find("Start fusion").disabled
    assert "move the path sideways first" in s.gui.text()
    s.view.set(offset=2.0)
    s.gui.use("Stage", 2)
    s.gui.use("Stage steps", 7)
    s.gui.use("Offset, m", 2.5)
    s.gui.use("Stage weighting", "Uniform")
    s.gui.use("Only UCR may change", False)
    assert "+2.5 m, frames 2-4" in s.gui.text() and "uniform, ungated" in s.gui.text()
    s.view.set(offset=-4.0)
    assert "+2.5 m, frames 2-4" in s.gui.text()  # what was changed by hand stays
    s.gui.use("Stages", "Add")
    assert "3 stage(s), 514 steps." in s.gui.text()
    s.gui.use("Stages", "Remove")
    s.gui.use("Stages", "Remove")
    assert "1 stage(s), 500 steps." in s.gui.text()
    s.gui.use("Stages", "Remove")
    assert any("at least one stage" in body for _, body, _ in s.view._window.notes)


def test_a_plan_is_carried_out_stage_by_stage_and_shows_where_it_is(studio):
    s = studio(add_fusion_panel)
    s.gui.use("Plan", "Metre by metre")
    for stage in (1, 2, 3):
        s.gui.use("Stage", stage)
        s.gui.use("Stage steps", 2)
    s.world.hold()
    s.gui.use("Start fusion")
    s.world.allow(3 + 2 + 1)
    fakes.wait_until(lambda: s.world.steps_done == 6 and s.session.state.plan_done == 1)
    s.update(s.session.state)
    assert s.gui.text().count("✓") == 1 and s.gui.text().count("▶") == 1
    s.world.free = True
    s.world.allow(100)
    s.settle()
    assert [label[:10] for label in s.session.state.history[1:]] == [
        "Fusion +1 ",
        "Fusion +2 ",
        "Fusion +3 ",
    ]
    assert s.gui.text().count("✓") == 3 and "▶" not in s.gui.text()
    assert "needed no repair 2.0% look different" in s.gui.text()
    s.gui.use("Undo: Fusion +3 m, frames 1-3")
    s.settle()
    s.gui.use("Start fusion")
    s.settle()
    assert len(s.session.state.history) == 4


def test_published_plans_are_shortened_for_a_cpu(studio):
    s = studio(add_fusion_panel)
    s.gui.use("Plan", "FaithFusion (as released)")
    text = s.gui.text()
    assert "released, ungated" in text and "same frames" not in text.split("stage(s)")[0][:200]
    assert 1400 < int(text.split("stage(s), ")[1].split(" steps")[0]) <= 1600


def test_pause_becomes_resume_and_stop_ends(studio):
    s = studio(add_fusion_panel)
    repaired(s)
    s.world.hold()
    s.gui.use("Start fusion")
    s.world.allow(1)
    fakes.wait_until(lambda: s.session.state.job and s.session.state.job.done == 1)
    s.update(s.session.state)
    s.gui.use("Job", "Pause")
    s.world.allow(1)
    fakes.wait_until(lambda: s.session.state.job.paused)
    s.update(s.session.state)
    assert s.gui.find("Job").options == ("Resume", "Step", "Stop")
    assert "paused" in s.gui.text()
    s.gui.use("Job", "Stop")
    s.settle()
    assert not s.gui.find("Job").visible
    assert s.session.state.history[-1] == "Fusion +3 m, frames 1-3"


def test_export_takes_path_layers_and_layout(studio):
    s = studio(add_export_panel)
    s.gui.use("EIG", True)
    s.gui.use("Layout", "Side by side")
    s.gui.use("Export MP4")
    fakes.wait_until(lambda: s.session.state.exports)
    s.update(s.session.state)
    scene, _, cameras = s.world.exported[0]
    assert scene is s.session.store.latest().scene
    assert len(cameras) == 3
    name = s.session.state.exports[0]
    assert name.endswith("segment_+3m_side-by-side.mp4")
    assert s.gui.find("File").value in name


def test_an_export_can_be_cancelled_and_a_file_downloaded(studio):
    s = studio(add_export_panel)
    s.world.hold()
    s.gui.use("Export MP4")
    s.world.allow(1)
    fakes.wait_until(lambda: s.session.state.export and s.session.state.export.done == 1)
    s.update(s.session.state)
    s.gui.use("Cancel export")
    fakes.wait_until(lambda: s.session.state.export is None or s.session.state.export.asked)
    s.world.allow(1)
    fakes.wait_until(lambda: s.session.state.export is None)
    s.world.free = True
    s.update(s.session.state)
    s.gui.use("Export splats")
    fakes.wait_until(lambda: s.session.state.exports)
    s.update(s.session.state)
    s.gui.use("Download")
    assert s.view._window.downloads == [("splats.ply", b"scene")]


def test_a_second_export_does_not_replace_the_first(studio):
    s = studio(add_export_panel)
    for count in (1, 2):
        s.gui.use("Export splats")
        fakes.wait_until(lambda count=count: len(s.session.state.exports) == count)
        fakes.wait_until(lambda: s.session.state.export is None)
        s.update(s.session.state)
    assert s.gui.find("File").options == ("splats-2.ply", "splats.ply")


def test_eig_export_without_evidence_says_what_to_do(studio):
    s = studio(add_export_panel, fakes.make_scene(fisher=False))
    s.gui.use("EIG", True)
    s.update(s.session.state)
    assert s.gui.find("Export MP4").disabled
    assert "measure the evidence" in s.gui.text()


def test_scene_lists_facts_and_the_history_goes_back(studio):
    s = studio(add_scene_panel)
    assert "6 frames, 5 m" in s.gui.text()
    assert "camera-left" in s.gui.text()
    s.session.submit(c.SetSky((0.0, 0.0, 1.0)))
    s.settle()
    assert s.gui.find("\u25b8 Change the sky").disabled
    assert "Not saved yet" in s.gui.text()
    s.gui.use("Opened")
    s.settle()
    assert s.session.state.cursor == 0
    s.gui.use("Change the sky")
    s.settle()
    assert s.session.state.cursor == 1


def test_scene_saves_with_a_suffix(studio, tmp_path):
    s = studio(add_scene_panel)
    s.gui.use("Save as", str(tmp_path / "mine"))
    s.gui.use("Save")
    s.settle()
    assert (tmp_path / "mine.ckpt").exists()


def test_the_highlighted_buttons_lead_through_the_journey():
    state = SessionState(has_recording=True, history=("Opened",))
    assert next_step(state) == "repair"
    frame = fakes.make_frame(1)
    stage = Stage((1, 2), 3.0)
    state = replace(state, frames=(replace(frame, accepted=False),), stage=stage)
    assert next_step(state) == "accept"
    state = replace(state, frames=(frame,))
    assert next_step(state) == "fuse"
    assert next_step(replace(state, job=JobState("fusion", "Fusion"))) == "wait"
    state = replace(state, history=("Opened", f"Fusion {stage.label}"), cursor=1, unsaved=True)
    assert next_step(state) == "export"
    state = replace(state, exports=("a.mp4",))
    assert next_step(state) == "save"
    assert next_step(replace(state, unsaved=False)) == "none"


def test_pictures_show_before_left_and_after_right():
    frame = fakes.make_frame(1)
    image = frame_image(frame, "wipe", 0.5)
    assert image.shape == (360, 480, 3)
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[0, -1].tolist() == [255, 255, 255]
    red = frame_image(frame, "mask")[0, 0].astype(int)
    assert red[0] > red[1] + 50
    assert frame_image(frame, "confidence").shape == (360, 480, 3)
    blue = frame_image(frame, "source")[0, 0].astype(int)
    assert blue[2] > blue[0]
    assert "UCR 100%" in describe_frame(frame)
    assert "HPR pixels changed: 0" in describe_frame(frame)


def test_the_strip_marks_selected_and_rejected_frames():
    frames = [fakes.make_frame(i) for i in range(9)]
    frames[1] = replace(frames[1], accepted=False, repaired=torch.ones(6, 8, 3))
    sheet = strip_image(frames, 0, width=140, columns=7)
    cell = 20
    assert sheet.shape[1] == 140
    assert sheet[0, 0].tolist() == [255, 255, 255]
    assert sheet[0, cell].tolist() == [230, 70, 60]
    assert sheet[0, 2 * cell].tolist() == [90, 200, 110]


def test_durations_are_for_people():
    assert [duration(v) for v in (None, float("nan"), 8.4, 200.0)] == ["", "", "8 s", "3 min 20 s"]
