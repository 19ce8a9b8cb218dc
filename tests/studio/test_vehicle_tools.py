"""Annotating vehicles in the tab Objects: a click becomes a box, keyframes move with the time, all undoable."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from passing_car import INTERVAL, SIZE, START, camera, passing_car, pixel, pose
from test_job_panels import Gui, Window

pytest.importorskip("viser")

from faithfusion_studio.io.annotations import read_box_tracks
from faithfusion_studio.rig import rig_of
from faithfusion_studio.session import box_commands as b
from faithfusion_studio.session.session import Session
from faithfusion_studio.session.state import VehicleInfo
from faithfusion_studio.studio.chosen import Drawn
from faithfusion_studio.studio.panels.objects import add_objects_panel
from faithfusion_studio.studio.vehicle_outlines import VehicleOutlines, way
from faithfusion_studio.studio.vehicle_tools import _about
from faithfusion_studio.studio.view_state import View, ViewState

REAR = (START[0] - SIZE[0] / 2, START[1], START[2])
LAST = 5


@pytest.fixture(scope="module")
def server():
    import viser

    server = viser.ViserServer(host="127.0.0.1", port=18761, verbose=False)
    yield server
    server.stop()


def opened(server, tmp_path, scene):
    session = Session(scene, run_folder=tmp_path / "run")
    gui, window = Gui(server.gui), Window()
    frames = 0 if scene.capture is None else len(scene.capture)
    rig = rig_of(scene.capture.trajectory) if frames else None
    view = View(ViewState(), num_frames=frames, window=window, rig=rig)
    update = add_objects_panel(gui, session, view)

    def settle():
        assert session.wait_idle(30.0)
        update(session.state)
        return session.store.latest().scene.capture.boxes

    def click(at, frame=0):
        drawn = Drawn("place", (at,), camera(frame))
        view.publish_drawn(drawn)

    update(session.state)
    return SimpleNamespace(
        gui=gui,
        window=window,
        view=view,
        session=session,
        settle=settle,
        click=click,
        server=server,
    )


@pytest.fixture
def shown(server, tmp_path):
    made = opened(server, tmp_path, passing_car())
    yield made
    made.session.close(save=False)
    server.gui.reset()


def test_a_click_on_a_vehicle_becomes_its_box(shown):
    gui, view = shown.gui, shown.view
    assert "press the button and click on it" in gui.text()
    gui.use("Fit a box at a click")
    shown.settle()
    assert view.get().placing == "fit" and gui.find("Click on the vehicle (or here to stop)")
    with pytest.raises(Exception, match="the laser met nothing there"):
        shown.click((64.0, 1.0))
    assert view.get().placing == "fit"
    shown.click(pixel(0.0))
    (box,) = shown.settle()
    assert view.get().placing == "off" and view.get().vehicle == "car 1"
    assert box.poses[0, :3, 3].tolist() == pytest.approx(list(START), abs=0.15)
    assert gui.find("Selected vehicle").visible
    assert "1 keyframe; <b>keyframe here</b>" in gui.text()
    assert "What travels less than 1 m" in gui.text() and "Nothing to reconstruct yet" in gui.text()
    assert view.get().show_vehicles and gui.find("Boxes").value
    gui.use("Boxes", False)
    gui.use("Laser points", True)
    assert not view.get().show_vehicles and view.get().show_sweep
    view.set(frame=3)
    shown.settle()
    assert "not annotated at this moment" in gui.text()
    assert gui.find("Fit to the points here").disabled
    gui.use(next(h.label for k, h in gui.made if str(getattr(h, "label", "")).startswith("Undo:")))
    assert shown.settle() == () and view.get().vehicle == ""


def test_keyframes_are_set_by_numbers_visited_and_removed(shown):
    gui, view = shown.gui, shown.view
    shown.session.submit(b.AddBox(REAR, 0.0))
    shown.settle()
    gui.use("Vehicle", "car 1")
    view.set(frame=LAST)
    shown.settle()
    end = pose(LAST * INTERVAL)[:3, 3].tolist()
    gui.use("Place (m)", tuple(end))
    gui.use("Heading (\u00b0)", 10.0)
    gui.use("Set a keyframe here")
    (box,) = shown.settle()
    assert box.timestamps.tolist() == pytest.approx([0.0, LAST * INTERVAL])
    assert box.poses[1, :3, 3].tolist() == pytest.approx(end)
    assert float(box.poses[1, 1, 0]) == pytest.approx(0.17365, abs=1e-4)
    view.set(frame=2)
    shown.settle()
    assert "between keyframes here" in gui.text()
    assert gui.find("Place (m)").value[0] == pytest.approx(START[0] + 2.0, abs=0.2)
    gui.use("Go to", "Keyframe >")
    assert view.get().frame == LAST
    gui.use("Go to", "Keyframe >")
    assert "no keyframe set by hand after this one" in shown.window.notes[-1][1]
    gui.use("Go to", "< Keyframe")
    assert view.get().frame == 0
    view.set(frame=3)
    gui.use("Fit to the points here")
    (box,) = shown.settle()
    assert box.poses[1, :3, 3].tolist() == pytest.approx(pose(0.6)[:3, 3].tolist(), abs=0.15)
    gui.use("Remove the keyframe here")
    assert len(shown.settle()[0].timestamps) == 2
    assert gui.find("Remove the keyframe here").disabled


def test_a_vehicle_is_followed_renamed_written_and_deleted(shown, tmp_path):
    gui, view = shown.gui, shown.view
    shown.session.submit(b.AddBox(REAR, 0.0))
    shown.settle()
    gui.use("Vehicle", "car 1")
    shown.settle()
    gui.use("Follow through the recording")
    (box,) = shown.settle()
    assert len(box.timestamps) == 6 and "1 keyframe, 5 followed" in gui.text()
    gui.use("Name", "taxi")
    gui.use("L, W, H (m)", (4.5, 1.9, 1.6))
    gui.use("Apply name, kind and size")
    (box,) = shown.settle()
    assert (box.name, view.get().vehicle) == ("taxi", "taxi")
    assert box.size.tolist() == pytest.approx([4.5, 1.9, 1.6])
    gui.use("Boxes file", str(tmp_path / "cars"))
    gui.use("Write the boxes")
    shown.settle()
    assert [x.name for x in read_box_tracks(tmp_path / "cars.json")] == ["taxi"]
    assert "ff-studio reconstruct \\\n  RECORDING \\\n  vehicles.ckpt \\\n  --boxes" in gui.text()
    gui.use("Delete the vehicle's box")
    assert shown.settle() == () and not gui.find("Selected vehicle").visible


def test_a_box_is_put_on_the_road_where_the_laser_sees_nothing(server, tmp_path):
    made = opened(server, tmp_path, passing_car(lidar=False))
    gui, view = made.gui, made.view
    assert "boxes are put on the road by hand" in gui.text()
    assert not gui.find("Fit a box at a click").visible
    gui.use("A new box is a", "van")
    gui.use("Put a box on the road")
    made.settle()
    with pytest.raises(Exception, match="there is no road within reach"):
        made.click((64.0, 5.0))
    made.click(pixel(0.0, (0.0, 0.0, -0.75)))
    (box,) = made.settle()
    assert view.get().vehicle == "van 1" and view.get().placing == "off"
    assert box.size.tolist() == pytest.approx([5.2, 2.0, 2.2])
    assert box.poses[0, :3, 3].tolist() == pytest.approx([START[0], START[1], 1.1], abs=1e-4)
    assert not gui.find("Follow through the recording").visible
    made.session.close(save=False)


def test_without_a_recording_there_is_nothing_to_annotate(server, tmp_path):
    made = opened(server, tmp_path, replace(passing_car(), capture=None))
    assert not made.gui.find("Vehicles in the recording").visible
    made.session.close(save=False)


def test_a_click_on_a_box_selects_its_vehicle(shown):
    shown.session.submit(b.AddBox(REAR, 0.0))
    shown.settle()
    shown.window.current_camera = lambda: camera(0)
    outlines = VehicleOutlines(shown.server.scene, shown.session, shown.view)
    shown.view.set(show_vehicles=True)
    x, y = pixel(0.0)
    assert outlines.hit(x / 128, y / 72) == "car 1"
    assert outlines.hit(0.95, 0.5) == ""
    shown.view.set(show_vehicles=False)
    assert outlines.hit(x / 128, y / 72) == ""
    shown.window.current_camera = lambda: camera(4)  # the car is not annotated then
    shown.view.set(show_vehicles=True)
    assert outlines.hit(x / 128, y / 72) == ""


def test_the_box_moves_with_the_time_and_arrows_make_keyframes(shown):
    shown.session.submit(b.AddBox(REAR, 0.0))
    shown.session.submit(b.SetKeyframe("car 1", 1.0, pose(1.0)))
    (box,) = shown.settle()
    outlines = VehicleOutlines(shown.server.scene, shown.session, shown.view)
    outlines.update(shown.view.get(), 0.0)
    assert outlines._lines.names == set()  # a recording with many boxes is not covered by them
    shown.view.set(show_vehicles=True)
    outlines.update(shown.view.get(), 0.0)
    assert outlines._lines.names == {"/vehicles/0"} and outlines._arrows.handles == ()
    shown.view.set(vehicle="car 1", show_sweep=True)
    outlines.update(shown.view.get(), 0.4)
    assert outlines._lines.names == {"/vehicles/0", "/vehicle_way"}
    arrows = outlines._arrows.handles[0]
    assert arrows.position[0] == pytest.approx(float(box.pose_at(0.4)[0, 3]))
    cloud = outlines._cloud
    assert 1000 < len(cloud.points) <= 1400  # without the road
    yellow = (cloud.colors == (255, 225, 70)).all(1)
    assert yellow.mean() > 0.95
    outlines.update(shown.view.get(), 0.4)
    assert outlines._cloud is cloud
    x, y, z = arrows.position
    arrows.position = (x, y + 0.5, z)
    outlines._arrows.dragged(SimpleNamespace(client=object(), phase="end", target=arrows))
    (moved,) = shown.settle()
    assert moved.timestamps.tolist() == pytest.approx([0.0, 0.4, 1.0])
    assert float(moved.poses[1, 1, 3] - box.pose_at(0.4)[1, 3]) == pytest.approx(0.5)
    assert len(way(moved).segments) == 2 + 3 * 2
    shown.view.set(selected="an object")
    outlines.update(shown.view.get(), 0.4)
    assert outlines._arrows.handles == ()  # its own arrows stand there
    shown.view.set(selected="")
    outlines.update(shown.view.get(), 9.0)  # long after it: grey, where it was last
    arrows = outlines._arrows.handles[0]
    assert arrows.position[0] == pytest.approx(float(moved.poses[-1, 0, 3]))
    shown.view.set(vehicle="", show_sweep=False)
    outlines.update(shown.view.get(), 9.0)
    assert outlines._lines.names == set() and outlines._cloud is None


def test_what_is_an_object_already_is_counted_as_such():
    one = VehicleInfo("car", "car", (4.0, 2.0, 1.5), 9.0, (0.0,), (0.0,))
    slow, walker = (
        replace(one, name="slow", travel=0.5),
        replace(one, name="a", category="pedestrian"),
    )
    text = _about((one, replace(one, name="van")), True, {"car"})
    assert (
        text
        == "2 annotated, 1 of them learned as objects already; 1 can become an object of its own."
    )
    assert _about((one,), True, {"car"}) == "1 annotated, 1 of them learned as objects already."
    text = _about((one, slow, walker), True, {"car"})
    assert "; 0 can become objects of their own. What travels less than 1 m, or is no" in text
