"""The studio in a real headless Chromium, as a person uses it; skipped where there is none."""

import importlib
import shutil
import time

import pytest
import torch
from passing_car import SIZE, START, passing_car
from street_scene import street, with_true_photos
from test_rig_view import rig_street

from faithfusion_studio.session.session import Session
from faithfusion_studio.studio.app import launch

pytestmark = pytest.mark.filterwarnings("ignore:Queued a:UserWarning")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def chromium():
    # Compiling modules in a thread beside Playwright's greenlets trips over an interpreter bug.
    for name in ("render.cpu", "information.fisher", "information.regions", "fusion.trainer"):
        importlib.import_module(f"faithfusion_studio.{name}")
    for name in ("repairing", "spawn", "learner"):
        importlib.import_module(f"faithfusion_studio.fusion.{name}")
    importlib.import_module("faithfusion_studio.repair.reprojection")
    importlib.import_module("faithfusion_studio.editing.selection")
    importlib.import_module("faithfusion_studio.annotating.following")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no system Chromium found; install the package chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def session(tmp_path):
    made = Session(with_true_photos(street(num_gaussians=900)), run_folder=tmp_path / "run")
    yield made
    made.close(save=False)


@pytest.fixture
def studio(session):
    made = launch(session, port=0)
    yield made
    made.close()


@pytest.fixture
def page(chromium, studio):
    page = chromium.new_page(viewport={"width": 1280, "height": 720})
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(studio.url)
    page.get_by_role("tab", name="Scene").wait_for(timeout=60_000)
    page.get_by_text("recorded lane").first.wait_for(timeout=60_000)
    wait_for(lambda: studio.clients and studio.clients[0].view.measurement.ms > 0)
    yield page
    page.close()
    assert problems == []


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_newcomer_finds_the_eig_of_a_shifted_lane(page, studio, session):
    """Opens on the recorded camera, three metres by key, evidence by button, heat by key."""
    view = studio.clients[0].view
    assert view.get().follow and view.get().offset == 0.0
    first, last = (page.get_by_role("tab", name=name).bounding_box() for name in ("Look", "Scene"))
    assert first["y"] == last["y"], "all tabs stand in one line"
    for _ in range(3):
        page.keyboard.press("Shift+{")
    wait_for(lambda: view.get().offset == 3.0)
    page.get_by_text("3.00 m left").first.wait_for()
    page.get_by_role("button", name="Measure the evidence").click()
    wait_for(lambda: session.state.fisher_ready)
    page.keyboard.press("g")
    wait_for(lambda: view.get().layer == "overlay" and not view.measurement.problem)
    wait_for(lambda: view.measurement.histogram)
    page.get_by_text("UCR").first.wait_for()
    page.keyboard.press("h")
    page.get_by_text("Back to the shown path").wait_for()
    page.get_by_role("button", name="Close").last.click()
    page.keyboard.press("]")
    wait_for(lambda: view.get().offset == 2.75)


def test_the_arrow_on_the_road_drags_the_offset(page, studio):
    """With a real mouse on the real mesh: the same value as the slider's."""
    client = studio.clients[0]
    view, node = client.view, client.handle._node
    x, y = on_page(page, client, node.position)
    for _ in range(5):  # the page finds what is under the pointer when it repaints
        page.mouse.move(x, y)
        time.sleep(0.3)
        page.mouse.down()
        for step in range(1, 13):
            page.mouse.move(x - 10 * step, y)
            time.sleep(0.05)
        page.mouse.up()
        time.sleep(0.3)
        if view.get().offset:
            break
        client.back_to_path()
    assert 0.5 < view.get().offset < 6.0
    assert view.get().follow
    wait_for(lambda: f"{view.get().offset:.2f} m left" in page.content())


def test_splats_are_selected_with_the_mouse_counted_deleted_and_brought_back(page, studio, session):
    view, start = studio.clients[0].view, session.store.latest().scene
    page.get_by_role("tab", name="Objects").click()
    page.get_by_text("Select splats").first.click()
    page.get_by_text("Hold Ctrl and drag").wait_for()
    page.keyboard.down("Control")
    page.mouse.move(250, 250)
    page.mouse.down()
    page.mouse.move(500, 400, steps=5)
    time.sleep(0.3)
    page.mouse.up()
    page.keyboard.up("Control")
    wait_for(lambda: view.get().chosen is not None)
    count = len(view.get().chosen.rows)
    page.get_by_text(f"{count:,} of 900 splats selected").wait_for()
    page.get_by_role("button", name="Delete the selected splats").click()
    wait_for(lambda: session.state.num_gaussians == 900 - count)
    page.get_by_role("button", name="Undo: Delete").click()
    wait_for(lambda: session.store.latest().scene is start)


def test_the_whole_journey(page, studio, session):
    """Look, repair, fuse while the view moves, undo, redo, export and play; a reload finds it again."""
    view = studio.clients[0].view
    page.get_by_role("button", name="Measure the evidence").click()
    wait_for(lambda: session.state.fisher_ready)
    view.set(segment=(2, 5), offset=1.0)
    page.get_by_role("tab", name="Repair").click()
    page.get_by_role("button", name="Repair segment").click()
    wait_for(lambda: len(session.state.frames) == 3 and session.state.job is None)
    page.get_by_role("tab", name="Fuse").click()
    start = page.get_by_role("button", name="Start fusion")
    wait_for(start.is_enabled)
    before = session.store.latest()
    start.click()
    wait_for(lambda: session.state.job is not None or session.state.undo_label)
    drawn = view.measurement
    page.keyboard.press("]")
    wait_for(lambda: view.measurement != drawn)
    wait_for(lambda: session.state.job is None and session.state.undo_label, seconds=180)
    after = session.store.latest()
    assert after.version > before.version
    page.keyboard.press("Control+z")
    wait_for(lambda: session.store.latest().scene is before.scene)
    page.keyboard.press("Control+Shift+z")
    wait_for(lambda: session.store.latest().scene is not before.scene)
    page.get_by_role("tab", name="Export").click()
    page.get_by_role("button", name="Export MP4").click()
    wait_for(lambda: session.state.exports, seconds=120)
    assert len(decoded_frames(session.state.exports[-1])) == 3
    page.reload()
    page.get_by_role("tab", name="Repair").wait_for(timeout=60_000)
    page.get_by_role("tab", name="Repair").click()
    page.get_by_text("Repaired frames").first.wait_for()
    assert len(session.state.frames) == 3


def decoded_frames(path):
    """Every picture of a video file, as arrays."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_click_on_a_thumbnail_goes_to_its_camera(chromium, tmp_path):
    session = Session(rig_street(), run_folder=tmp_path / "run")
    studio = launch(session, port=0)
    page = chromium.new_page(viewport={"width": 1280, "height": 720})
    page.goto(studio.url)
    page.locator('[data-press="left"]').first.wait_for(timeout=60_000)
    view = studio.clients[0].view
    page.locator('[data-press="left"]').first.click()
    wait_for(lambda: view.get().frame == 1)
    page.get_by_role("button", name="front", exact=True).click()
    wait_for(lambda: view.get().frame == 0)
    page.close()
    studio.close()
    session.close(save=False)


def test_a_click_on_a_car_becomes_a_box_and_keys_work_after_a_checkbox(chromium, tmp_path):
    session = Session(passing_car(), run_folder=tmp_path / "run")
    studio = launch(session, port=0)
    page = chromium.new_page(viewport={"width": 1280, "height": 720})
    page.goto(studio.url)
    page.get_by_role("tab", name="Objects").wait_for(timeout=60_000)
    page.get_by_role("tab", name="Objects").click()
    wait_for(lambda: studio.clients and studio.clients[0].view.measurement.ms > 0)
    client = studio.clients[0]
    page.get_by_role("button", name="Fit a box at a click").click()
    wait_for(lambda: client.view.get().placing)
    x, y = on_page(page, client, (START[0] - SIZE[0] / 2, START[1], START[2]))
    page.mouse.click(x, y)
    wait_for(lambda: client.view.get().vehicle == "car 1")
    page.get_by_text("keyframe here", exact=True).wait_for()
    page.get_by_role("button", name="Follow through the recording").click()
    wait_for(lambda: session.state.undo_label == "Follow car 1")
    wait_for(lambda: session.state.vehicles[0].travel > 4.9)
    page.get_by_label("Laser points").click()
    wait_for(lambda: client.view.get().show_sweep)
    page.keyboard.press("Control+z")
    wait_for(lambda: session.state.undo_label == "Box of a car")
    page.keyboard.press("Space")  # the checkbox's own
    wait_for(lambda: not client.view.get().show_sweep)
    page.locator('input[value*="boxes.json"], textarea:has-text("boxes.json")').first.click()
    page.keyboard.press("Control+z")  # of the text, not of the scene
    page.keyboard.press("Escape")
    assert session.state.undo_label == "Box of a car"
    page.close()
    studio.close()
    session.close(save=False)


def on_page(page, client, place):
    """Where the page shows a place of the world."""
    width, height = client.window.canvas
    size = page.locator("canvas").first.bounding_box()
    camera = client.window.pose().camera(width, height, time=0.0)
    x, y, z = (camera.K @ (camera.viewmat @ torch.tensor([*place, 1.0]).double())[:3]).tolist()
    return x / z * size["width"] / width, y / z * size["height"] / height
