"""The tab Quality on a real viser server: checks, true views beside the path, where to drive next."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from street_scene import street, with_true_photos, without_recording
from studio_fakes import FakeSession
from test_job_panels import Gui, Window

pytest.importorskip("viser")

from faithfusion_studio.cameras import offset_laterally  # noqa: E402
from faithfusion_studio.information.fisher import recorded_fisher  # noqa: E402
from faithfusion_studio.information.next_view import OFFSETS, ViewGain  # noqa: E402
from faithfusion_studio.io import write_camera_path  # noqa: E402
from faithfusion_studio.render.views import render_view, to_uint8  # noqa: E402
from faithfusion_studio.studio.panels.quality import add_quality_panel  # noqa: E402
from faithfusion_studio.studio.view_state import View, ViewState  # noqa: E402
from faithfusion_studio.studio.where_next import ranking  # noqa: E402


@pytest.fixture(scope="module")
def server():
    import viser

    server = viser.ViserServer(host="127.0.0.1", port=18741, verbose=False)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def known():
    scene = with_true_photos(street())
    scene = replace(scene, fisher=recorded_fisher(scene, max_views=3))
    return replace(scene, metadata={"reconstruction": {"holdout": [2, 5]}})


def panel(server, scene):
    gui, window = Gui(server.gui), Window()
    session = FakeSession(scene)
    view = View(ViewState(), num_frames=10, window=window)
    update = add_quality_panel(gui, session, view)
    update(session.state)
    return SimpleNamespace(gui=gui, window=window, view=view, session=session)


def test_the_drive_is_checked_on_held_out_frames(server, known):
    shown = panel(server, known)
    shown.gui.use("Check the drive")
    text = shown.gui.text()
    assert "of the worst 10 % of pixels" in text and "held out" in text
    assert "2 *" in text and "5 *" in text and "<td>3" not in text
    assert "<polyline" in text and shown.window.notes == []


def test_offsets_are_ranked_and_the_best_one_is_one_press_away(server, known):
    shown = panel(server, known)
    assert shown.gui.find("Go to the best offset").disabled
    shown.gui.use("Rank the lateral offsets")
    assert shown.window.notes == []
    label = next(
        h.label for _, h in shown.gui.made if str(getattr(h, "label", "")).startswith("Go to")
    )
    shown.gui.use(label)
    best = shown.view.get().offset
    assert best in OFFSETS and best != 0.0 and label == f"Go to {best:+g} m"


def test_without_evidence_or_recording_the_reason_is_said(server):
    shown = panel(server, street())
    shown.gui.use("Rank the lateral offsets")
    assert "measure the evidence first" in shown.window.notes[-1][1]
    bare = panel(server, without_recording(street()))
    assert bare.gui.find("Check the drive").disabled
    assert "without a recording" in bare.gui.text()
    bare.gui.use("Rank the lateral offsets")
    assert "no recorded path" in bare.window.notes[-1][1]


def test_true_views_beside_the_path_are_measured_at_the_shown_offset(server, known, tmp_path):
    import cv2

    shown = panel(server, known)
    shown.gui.use("Check at the shown offset")
    assert "no folder was given" in shown.window.notes[-1][1]
    shown.gui.use("Folder", str(tmp_path))
    shown.view.set(offset=2.0)
    shown.gui.use("Check at the shown offset")
    assert "no true frames at +2 m (offsets there: none)" in shown.window.notes[-1][1]
    moved = offset_laterally(known.capture.trajectory, 2.0).select([0, 1])
    cameras = moved.cameras
    (tmp_path / "truth" / "+2.0").mkdir(parents=True)
    names = [f"+2.0/{i:06d}.png" for i in range(len(cameras))]
    for camera, name in zip(cameras, names, strict=True):
        picture = to_uint8(render_view(known, camera).rgb).numpy()[:, :, ::-1]
        cv2.imwrite(str(tmp_path / "truth" / name), picture)
    write_camera_path(moved, tmp_path / "truth" / "cameras_+2.0.json", files=names)
    count = len(shown.window.notes)
    shown.gui.use("Check at the shown offset")
    assert len(shown.window.notes) == count, shown.window.notes[-1]
    assert "2 true views at +2 m" in shown.gui.text()


def test_the_highlight_can_be_cleared_once_there_is_one(server, known):
    shown = panel(server, known)
    button = shown.gui.find("Clear the highlighted splats")
    assert button.disabled
    shown.view.set(highlight=(3, 4))
    assert not button.disabled
    shown.gui.use("Clear the highlighted splats")
    assert shown.view.get().highlight == () and button.disabled


def test_the_ranking_is_sorted_and_says_what_is_missing():
    text = ranking([ViewGain(-3.0, 10.0), ViewGain(1.0, 30.0)], 11)
    assert text.index("+1 m") < text.index("-3 m") and "2 of 11 offsets" in text
    assert "offsets …" not in ranking([ViewGain(0.0, 0.0)], 1)
