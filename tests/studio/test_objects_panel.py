"""The tab Objects on a real viser server and a real session: two cars on a small street."""

import asyncio
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_job_panels import Gui, Window

pytest.importorskip("viser")
sys.path.insert(0, str(Path(__file__).parents[1] / "editing"))
from object_worlds import assert_same, camera, cloud, world  # noqa: E402

from faithfusion_studio.io import save_scene  # noqa: E402
from faithfusion_studio.scene import Scene  # noqa: E402
from faithfusion_studio.session import commands as c  # noqa: E402
from faithfusion_studio.session.session import Session  # noqa: E402
from faithfusion_studio.studio.arrows import movement  # noqa: E402
from faithfusion_studio.studio.chosen import Chosen, Drawn  # noqa: E402
from faithfusion_studio.studio.layers import ViewLayers  # noqa: E402
from faithfusion_studio.studio.object_outlines import ObjectOutlines  # noqa: E402
from faithfusion_studio.studio.panels.objects import add_objects_panel  # noqa: E402
from faithfusion_studio.studio.stroke_pad import StrokePad  # noqa: E402
from faithfusion_studio.studio.view_state import View, ViewState  # noqa: E402
from faithfusion_studio.studio.wireframes import edges  # noqa: E402
from faithfusion_studio.transforms import rotmat_to_quat  # noqa: E402


@pytest.fixture(scope="module")
def server():
    import viser

    server = viser.ViserServer(host="127.0.0.1", port=18751, verbose=False)
    yield server
    server.stop()


@pytest.fixture
def shown(server, tmp_path):
    session = Session(world(), run_folder=tmp_path / "run")
    gui, window = Gui(server.gui), Window()
    window.current_camera = camera
    view = View(ViewState(), num_frames=0, window=window)
    update = add_objects_panel(gui, session, view)
    update(session.state)

    def settle():
        assert session.wait_idle(20.0)
        update(session.state)
        return session.store.latest().scene

    def button(start):
        found = [h for k, h in gui.made if k == "add_button" and str(h.label).startswith(start)]
        return found[-1].label

    yield SimpleNamespace(
        gui=gui,
        window=window,
        view=view,
        session=session,
        settle=settle,
        button=button,
        server=server,
    )
    session.close(save=False)


def test_a_row_selects_its_object_and_marks_are_undone(shown):
    gui, start = shown.gui, shown.session.store.latest().scene
    assert not gui.find("Selected object").visible
    gui.use(shown.button("car"))
    assert shown.view.get().selected == "car" and gui.find("Selected object").visible
    gui.use("Visible", False)
    assert shown.settle().nodes[0].hidden
    assert "hidden" in shown.button("\u25b8 car")
    gui.use("Locked", True)
    gui.use("Colour", (255, 0, 0))
    node = shown.settle().nodes[0]
    assert node.locked and node.color == (1.0, 0.0, 0.0)
    assert gui.find("Delete the object").disabled and gui.find("Move and turn").disabled
    for _ in range(3):
        gui.use(shown.button("Undo"))
        shown.settle()
    assert_same(shown.session.store.latest().scene, start)
    assert gui.find("Undo").disabled


def test_the_selected_object_is_moved_copied_replaced_and_deleted(shown, tmp_path):
    gui = shown.gui
    gui.use("Selected", "van")
    gui.use("Move and turn")
    assert "other than 0" in shown.window.notes[-1][1]
    gui.use("Move (m)", (1.0, 0.0, 0.0))
    gui.use("Turn (\u00b0)", 90.0)
    gui.use("Move and turn")
    before, after = world().nodes[1].poses, shown.settle().nodes[1].poses
    assert (after - before)[0, :3, 3].tolist() == pytest.approx([1.0, 0.0, 0.0])
    gui.use("Duplicate")
    assert [n.name for n in shown.settle().nodes] == ["car", "van", "van 2"]
    gui.use("Replace")
    assert "write the path" in shown.window.notes[-1][1]
    save_scene(Scene(cloud(25, 3)), tmp_path / "thing.ply")
    gui.use("File", str(tmp_path / "thing.ply"))
    gui.use("Replace")
    assert len(shown.settle().nodes[1].gaussians) == 25
    gui.use("With", "car")
    gui.use("Replace")
    assert len(shown.settle().nodes[1].gaussians) == 30
    gui.use("Delete the object")
    assert [n.name for n in shown.settle().nodes] == ["car", "van 2"]
    assert shown.view.get().selected == "" and not gui.find("Selected object").visible


def test_an_uploaded_file_takes_the_objects_place(shown, tmp_path):
    from viser import UploadedFile

    save_scene(Scene(cloud(25, 3)), tmp_path / "thing.ply")
    shown.gui.use("Selected", "car")
    data = (tmp_path / "thing.ply").read_bytes()
    shown.gui.use("Upload a file", UploadedFile("../../thing.ply", data))
    assert len(shown.settle().nodes[0].gaussians) == 25
    shown.gui.use("Upload a file", UploadedFile("thing.ply", b"nonsense"))
    shown.settle()
    assert "thing.ply" in shown.session.state.error and "\n" not in shown.session.state.error


def test_splats_are_counted_before_they_are_deleted(shown):
    gui, start = shown.gui, shown.session.store.latest().scene
    delete = gui.find("Delete the selected splats")
    assert delete.disabled
    gui.use("Only what is seen", False)
    shown.view.publish_drawn(Drawn("rectangle", ((0.0, 0.0), (96.0, 64.0)), camera()))
    first = len(shown.view.get().chosen.rows)
    assert f"{first:,} of 260 splats selected: background" in gui.text() and not delete.disabled
    gui.use("Among", "van")
    shown.view.publish_drawn(Drawn("rectangle", ((0.0, 0.0), (96.0, 64.0)), camera()))
    rows = shown.view.get().chosen.rows
    assert 0 < len(rows) <= 30 and int(rows.min()) >= 230
    gui.use("Delete the selected splats")
    assert shown.settle().num_gaussians == 260 - len(rows)
    assert shown.view.get().chosen is None and delete.disabled
    gui.use(shown.button("Undo"))
    assert_same(shown.settle(), start)


def test_the_brush_adds_and_takes_away_along_its_way(shown):
    gui, view = shown.gui, shown.view
    with pytest.raises(Exception, match="choose one in the tab Objects"):
        view.publish_drawn(Drawn("stroke", ((40.0, 30.0),), camera()))
    gui.use("By", "Brush on the picture")
    gui.use("Only what is seen", False)
    gui.use("Brush (px)", 8)
    gui.use("Selection", "Add to it")
    counts = []
    for way in (((30.0, 40.0),), ((30.0, 40.0), (60.0, 40.0))):
        view.publish_drawn(Drawn("stroke", way, camera()))
        counts.append(len(view.get().chosen.rows))
    assert 0 < counts[0] < counts[1]
    between = Drawn("stroke", ((45.0, 40.0),), camera())
    gui.use("Selection", "Take away from it")
    view.publish_drawn(between)
    assert len(view.get().chosen.rows) < counts[1]
    gui.use("Clear the selection")
    assert view.get().chosen is None and "No splats are selected." in gui.text()


def test_a_stroke_is_taken_from_the_globe_around_the_camera(shown):
    drawn, done = [], threading.Event()

    def draw(places, over):
        drawn.append((places, over))
        done.set()

    pad = StrokePad(shown.server.scene, shown.view, draw)
    pad.update(shown.view.get())
    assert pad._globe is None
    shown.view.set(brushing=True)
    pad.update(shown.view.get())
    assert pad._globe.position.tolist() == pytest.approx([0.0, 0.0, 1.0])

    async def gesture():
        for phase, x in (("start", 0.3), ("update", 0.5), ("end", 0.6)):
            await pad._dragged(
                SimpleNamespace(phase=phase, start_screen_pos=(0.2, 0.4), end_screen_pos=(x, 0.4))
            )

    asyncio.run(gesture())
    assert done.wait(10.0) and drawn[0][0] == [(0.2, 0.4), (0.3, 0.4), (0.5, 0.4), (0.6, 0.4)]
    shown.view.set(brushing=False)
    pad.update(shown.view.get())
    assert pad._globe is None


def test_a_box_and_a_range_select(shown):
    gui, view = shown.gui, shown.view
    gui.use("By", "Box in the world")
    assert view.get().box is not None
    assert view.get().box.center == (8.0, 0.0, 1.0)
    view.set(selected="car")
    gui.use("Put it here")
    assert view.get().box.center == pytest.approx((6.0, 1.5, 0.7))
    assert view.get().box.size == pytest.approx((4.2, 1.9, 1.5))
    gui.use("Among", "car")
    gui.use("Select what is inside")
    assert len(view.get().chosen.rows) == 30
    gui.use("Among", "everything")
    gui.use("Turned (\u00b0)", 0.0)
    gui.use("Centre (m)", (9.0, 0.0, 1.0))
    gui.use("Size (m)", (50.0, 50.0, 50.0))
    gui.use("Select what is inside")
    assert len(view.get().chosen.rows) == 260
    gui.use("Size (m)", (0.0, 1.0, 1.0))
    gui.use("Select what is inside")
    assert "three sizes above 0 m" in shown.window.notes[-1][1]
    gui.use("By", "Range of a number")
    assert view.get().box is None
    for number in ("Opacity", "Size (m)", "Evidence (nats)", "Where it came from"):
        gui.find("Number").value = number
        gui.use("Number", number)
        gui.use("Range", (0, 100))
        assert len(view.get().chosen.rows) == 260, number
    gui.use("Number", "Opacity")
    gui.use("Range", (0, 30))
    assert 0 < len(view.get().chosen.rows) < 260 and "<svg" in gui.text()
    assert [n for n in shown.window.notes if "worked" in n[0]] == []


def test_a_selection_is_dropped_once_its_rows_mean_something_else(shown):
    scene = shown.session.store.latest().scene
    chosen = Chosen(scene, scene.all_gaussians.opacities > 0.5)
    shown.view.set(chosen=chosen)
    shown.session.submit(c.MoveNode("car", (1.0, 0.0, 0.0)))
    shown.settle()
    assert shown.view.get().chosen is chosen
    shown.session.submit(c.DuplicateNode("car"))
    shown.settle()
    assert shown.view.get().chosen is None


def test_the_picture_shows_the_selection_and_names_what_is_clicked():
    scene = world()
    layers = ViewLayers(scene, camera(), "block")
    mask = scene.all_gaussians.opacities > 2
    assert bool((layers.with_chosen(layers.rgb, Chosen(scene, mask)) == layers.rgb).all())
    mask[230:] = True
    image = layers.with_chosen(layers.rgb, Chosen(scene, mask))
    assert bool((image != layers.rgb).any())
    names = {layers.object_at(x / 20, y / 20) for x in range(20) for y in range(20)}
    assert names == {"", "car", "van"}


def test_outlines_follow_the_object_and_arrows_move_it(shown):
    import math

    import torch

    outlines = ObjectOutlines(shown.server.scene, shown.session, shown.view)
    outlines.update(shown.view.get(), 0.1)
    assert outlines._lines.names == set() and outlines._arrows.handles == ()
    shown.view.set(selected="car", show_boxes=True)
    outlines.update(shown.view.get(), 0.1)
    assert outlines._lines.names == {"/objects/0", "/objects/1"}
    assert outlines._arrows.handles[1].position.tolist() == pytest.approx([7.0, 1.5, 0.7])
    arrows = outlines._arrows.handles[0]
    outlines._arrows.dragged(SimpleNamespace(client=object(), phase="start", target=arrows))
    c_, s_ = math.cos(0.4), math.sin(0.4)
    turned = torch.tensor([[c_, -s_, 0], [s_, c_, 0], [0, 0, 1.0]], dtype=torch.float64)
    arrows.position = (8.0, 2.5, 0.7)
    arrows.wxyz = rotmat_to_quat(turned).numpy()
    outlines.update(shown.view.get(), 0.1)
    assert arrows.position.tolist() == pytest.approx([8.0, 2.5, 0.7])
    outlines._arrows.dragged(SimpleNamespace(client=object(), phase="end", target=arrows))
    pose = shown.settle().nodes[0].poses[1]
    assert pose[:3, 3].tolist() == pytest.approx([8.0, 2.5, 0.7])
    assert pose[:3, :3].tolist() == [pytest.approx(row, abs=1e-6) for row in turned.tolist()]
    shown.session.submit(c.MarkNode("car", locked=True))
    shown.settle()
    outlines.update(shown.view.get(), 0.1)
    assert outlines._arrows.handles == ()
    shown.view.set(selected="", show_boxes=False)
    outlines.update(shown.view.get(), 0.1)
    assert outlines._lines.names == set()
    assert movement(torch.eye(4, dtype=torch.float64), (0, 0, 0), (1, 0, 0, 0)) == ((0, 0, 0), 0.0)
    assert edges((4.0, 2.0, 1.0)).shape == (14, 2, 3)
