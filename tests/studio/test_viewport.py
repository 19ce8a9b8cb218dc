"""The render loop of one client: newest wins, coarse then full, nothing escapes."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from street_scene import (
    HEIGHT,
    WIDTH,
    recorded_camera,
    street,
    with_true_photos,
    without_recording,
)

from faithfusion_studio.errors import StudioError
from faithfusion_studio.information.fisher import recorded_fisher
from faithfusion_studio.studio import layers as layers_module
from faithfusion_studio.studio import viewport as viewport_module
from faithfusion_studio.studio.lens import pose_of
from faithfusion_studio.studio.pacing import FrameBudget
from faithfusion_studio.studio.viewport import FULL_BUDGET, Viewport

CANVAS = (WIDTH, HEIGHT)


class FakeScreen:
    def __init__(self, pose=None):
        self.newest = pose
        self.images = []

    def pose(self):
        return self.newest

    def show(self, image, quality):
        assert image.dtype == np.uint8
        self.images.append(image)


@pytest.fixture
def screen():
    return FakeScreen(pose_of(recorded_camera(0), CANVAS))


@pytest.fixture
def viewport(screen, session, view):
    made = Viewport(screen, session, view, before=lambda: session.before_scene)
    yield made
    made.close()


def at_rest(viewport, start=None):
    """Steps far enough apart that every movement has come to rest."""
    now = time.monotonic() + 1.0 if start is None else start
    for _ in range(3):
        viewport.step(now)
        now += 1.0
    return now


def test_before_the_first_camera_message_nothing_is_drawn(screen, viewport):
    screen.newest = None
    viewport.step()
    assert screen.images == []


def test_an_unchanged_view_is_drawn_once(screen, viewport):
    at_rest(viewport)
    assert len(screen.images) == 1
    assert screen.images[0].shape == (HEIGHT, WIDTH, 3)


def test_a_moving_camera_is_drawn_coarse_and_once_more_in_full_at_rest(
    screen, viewport, view, monkeypatch
):
    now = at_rest(viewport)
    monkeypatch.setattr(FrameBudget, "pixels", lambda _self, canvas: canvas // 4)
    screen.newest = pose_of(recorded_camera(1), CANVAS)
    viewport.step(now)
    assert view.measurement.coarse
    assert screen.images[-1].shape[0] < HEIGHT
    monkeypatch.undo()
    viewport.step(now + 0.5)
    assert not view.measurement.coarse
    assert screen.images[-1].shape == (HEIGHT, WIDTH, 3)
    assert len(screen.images) == 3


def test_only_the_newest_camera_is_drawn(screen, viewport, session):
    now = at_rest(viewport)
    for index in range(1, 8):
        screen.newest = pose_of(recorded_camera(index), CANVAS)
    viewport.step(now)
    assert len(screen.images) == 2
    assert session.activity >= 1


def test_a_new_snapshot_is_drawn_without_any_movement(screen, viewport, session):
    now = at_rest(viewport)
    session.publish(street(seed=5))
    viewport.step(now)
    assert len(screen.images) == 2
    assert (screen.images[0] != screen.images[1]).any()


@pytest.fixture
def rasterised(monkeypatch):
    """Sizes of all passes over the Gaussians, in order."""
    sizes = []
    original = layers_module.rasterize_view

    def counted(scene, camera, options):
        sizes.append((camera.width, camera.height))
        return original(scene, camera, options)

    monkeypatch.setattr(layers_module, "rasterize_view", counted)
    return sizes


@pytest.fixture
def known(session, monkeypatch):
    """The session's scene with evidence of its recorded views; no answer counts as slow."""
    monkeypatch.setattr(viewport_module, "NOTICED", 1e9)
    scene = with_true_photos(session.snapshot.scene)
    session.publish(replace(scene, fisher=recorded_fisher(scene, max_views=3)))


def test_what_lies_over_the_picture_needs_no_new_rendering(
    screen, viewport, view, known, rasterised
):
    now = at_rest(viewport)
    del rasterised[:]
    changed = [
        {"layer": "overlay"},
        {"overlay_opacity": 0.3},
        {"tint": True},
        {"threshold": (0.1, 0.3)},
        {"threshold": (0.1, 0.5)},
        {"layer": "depth"},
        {"layer": "rgb", "tint": False},
        {"layer": "eig"},
        {"eig_form": "trace"},
        {"compare": "wipe", "compare_with": "photo"},
    ]
    for number, change in enumerate(changed):
        view.set(**change)
        now = at_rest(viewport, now)
        assert len(screen.images) == number + 2, change
        assert rasterised == [], change


def test_the_scene_before_the_fusion_is_rendered_once_too(
    screen, viewport, view, session, known, rasterised
):
    now = at_rest(viewport)
    session.before_scene = street(seed=5)
    view.set(compare="wipe", compare_with="before")
    now = at_rest(viewport, now)
    del rasterised[:]
    for wipe in (0.2, 0.4, 0.9):
        view.set(wipe=wipe)
        now = at_rest(viewport, now)
    assert rasterised == []


def test_a_slow_answer_at_rest_is_drawn_coarse_first(screen, viewport, view, known, monkeypatch):
    monkeypatch.setattr(viewport_module, "NOTICED", -1.0)
    monkeypatch.setattr(viewport_module, "MEASURE_SECONDS", 1e9)
    now = at_rest(viewport)
    monkeypatch.setattr(
        FrameBudget,
        "pixels",
        lambda self, canvas: canvas if self._seconds == FULL_BUDGET else canvas // 4,
    )
    view.set(layer="overlay")
    at_rest(viewport, now)
    assert [len(image) for image in screen.images] == [HEIGHT, 28, HEIGHT]


def test_a_full_picture_nobody_waits_for_any_more_is_given_up(
    screen, viewport, view, session, known, monkeypatch
):
    now = at_rest(viewport)
    view.set(layer="overlay")
    original = layers_module.rasterize_view

    def moved_meanwhile(*arguments):
        screen.newest = pose_of(recorded_camera(1), CANVAS)
        return original(*arguments)

    session.publish(replace(session.snapshot.scene))
    monkeypatch.setattr(layers_module, "rasterize_view", moved_meanwhile)
    viewport.step(now)
    assert len(screen.images) == 1, "EIG was computed for a camera that had been left"
    monkeypatch.undo()
    viewport.step(now + 0.1)
    assert len(screen.images) == 2
    assert view.measurement.coarse


def test_cameras_that_come_while_drawing_do_not_queue(screen, viewport, session, monkeypatch):
    """Fifty cameras arrive during one picture: the next picture is of the last of them."""
    drawn, first, go_on = [], threading.Event(), threading.Event()
    original = layers_module.rasterize_view

    def slow(scene, camera, options):
        drawn.append(round(float(camera.position[0]), 3))
        first.set()
        assert go_on.wait(20.0)
        return original(scene, camera, options)

    monkeypatch.setattr(layers_module, "rasterize_view", slow)
    viewport.start()
    viewport.wake()
    assert first.wait(20.0)
    pose = screen.newest
    for index in range(1, 51):
        screen.newest = replace(pose, position=(index / 10, 0.0, 1.5))
        viewport.wake()
    go_on.set()
    wait_for(lambda: len(screen.images) >= 2)
    assert drawn[:2] == [0.0, 5.0]


def test_panels_hear_of_numbers_now_and_then_while_moving_and_always_at_rest(
    screen, viewport, view
):
    now = at_rest(viewport)
    told = []
    view.on_measured(told.append)
    for index in range(20):
        screen.newest = pose_of(recorded_camera(index % 2 + 1), CANVAS)
        viewport.step(now)
        now += 0.05
    assert len(screen.images) == 21
    assert len(told) < 20
    at_rest(viewport, now + 1.0)
    assert not told[-1].coarse
    assert view.measurement is told[-1]


def test_an_exception_becomes_a_line_on_the_picture_and_the_loop_goes_on(
    screen, viewport, session, view
):
    class BrokenSky:
        def radiance(self, directions):
            raise StudioError("this sky is broken; open another scene.")

    good = session.snapshot.scene
    session.publish(replace(good, sky=BrokenSky()))
    viewport.start()
    viewport.wake()
    wait_for(lambda: "broken" in view.measurement.problem)
    assert len(screen.images) == 1
    session.publish(good)
    viewport.wake()
    wait_for(lambda: len(screen.images) >= 2 and not view.measurement.problem)


def test_closing_ends_the_thread(viewport):
    viewport.start()
    viewport.close()
    assert not viewport._thread.is_alive()


def test_an_eig_layer_without_evidence_says_what_to_do(screen, viewport, view):
    view.set(layer="overlay")
    at_rest(viewport)
    assert "Measure the evidence" in view.measurement.problem
    assert len(screen.images) == 1


def test_the_photo_lies_exactly_on_its_camera_and_nowhere_else(screen, viewport, view):
    view.set(layer="photo")
    now = at_rest(viewport)
    image = screen.images[-1]
    assert image[HEIGHT // 2, WIDTH // 4].tolist() == [255, 0, 0]
    assert image[HEIGHT // 2, 3 * WIDTH // 4].tolist() == [128, 128, 128]
    screen.newest = pose_of(recorded_camera(2), CANVAS)
    at_rest(viewport, now)
    assert "fits only where its camera stood" in view.measurement.problem


def test_a_wipe_shows_both_sides(screen, viewport, view):
    view.set(layer="photo", compare="wipe", compare_with="alpha", wipe=0.5)
    at_rest(viewport)
    image = screen.images[-1].astype(int)
    assert image[HEIGHT // 2, WIDTH // 4].tolist() == [255, 0, 0]
    right = image[:, WIDTH // 2 + 4 :]
    assert np.abs(right[..., 0] - right[..., 1]).max() <= 1  # opacity is grey


def test_a_scene_without_a_recording_is_drawn_too(screen, session, window):
    from faithfusion_studio.studio.view_state import View, ViewState

    session.publish(without_recording(session.snapshot.scene))
    view = View(ViewState(), num_frames=0, window=window)
    viewport = Viewport(screen, session, view)
    at_rest(viewport)
    assert len(screen.images) == 1
    viewport.close()


def test_the_pixel_asked_for_is_told_in_metres(viewport, view):
    assert viewport.probe(0.5, 0.9) == ""
    at_rest(viewport)
    words = viewport.probe(0.5, 0.95)
    assert words.startswith("depth ") and " m · opacity" in words
    assert view.measurement.probe == words


def test_asking_for_a_pixel_explains_it_and_highlights_its_causes(screen, viewport, session, view):
    scene = with_true_photos(session.snapshot.scene)
    session.publish(replace(scene, fisher=recorded_fisher(scene, max_views=3)))
    now = at_rest(viewport)
    plain = screen.images[-1]
    words = viewport.probe(0.5, 0.95)
    assert words.startswith("EIG ") and "nats" in words and "half of it from" in words
    causes = view.get().highlight
    assert causes and set(causes) <= set(range(scene.num_gaussians))
    now = at_rest(viewport, now)
    assert view.measurement.probe == words, "the answer stays while the view stays"
    shown = screen.images[-1].astype(int)
    cyan = (shown[..., 1] + shown[..., 2] - 2 * shown[..., 0]) / 2
    was = plain.astype(int)
    was = (was[..., 1] + was[..., 2] - 2 * was[..., 0]) / 2
    row, column = int(0.95 * shown.shape[0]), shown.shape[1] // 2
    assert cyan[row, column] > was[row, column] + 15
    view.set(highlight=())
    at_rest(viewport, now)
    assert np.array_equal(screen.images[-1], plain)


def test_highlighted_splats_of_a_smaller_scene_are_ignored(scene):
    from faithfusion_studio.studio.layers import ViewLayers

    layers = ViewLayers(scene, recorded_camera(0), "block")
    image = layers.rgb
    none = layers.highlighted(image, (10**6,))
    torch.testing.assert_close(none, 0.6 * image)


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_layers_have_the_shape_of_the_picture(scene):
    from faithfusion_studio.studio.layers import ViewLayers
    from faithfusion_studio.studio.view_state import ViewState

    layers = ViewLayers(scene, recorded_camera(0), "block")
    for name in ("rgb", "depth", "alpha", "provenance"):
        image = layers.image(name, ViewState())
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert float(image.min()) >= 0 and float(image.max()) <= 1
    generated = layers.image("provenance", ViewState())
    magenta = generated[..., 0] - generated[..., 1]
    assert float(magenta.max()) > 0.3
    assert torch.isfinite(generated).all()


def test_a_sharper_screen_does_not_make_a_scene_less_known(scene):
    """EIG is about recorded pixels: the shares are those of the repair, whatever the window."""
    from faithfusion_studio.information import eig_map, split_regions
    from faithfusion_studio.studio.layers import ViewLayers
    from faithfusion_studio.studio.view_state import Measurement, ViewState

    scene = replace(scene, fisher=recorded_fisher(scene, max_views=3))
    camera = recorded_camera(4)
    sharp = ViewLayers(scene, camera.resized(4 * WIDTH, 4 * HEIGHT), "block")
    recorded = eig_map(scene, camera)
    assert torch.allclose(sharp.eig.eig, recorded.eig, rtol=1e-4, atol=1e-6)
    assert sharp.histogram == pytest.approx(ViewLayers(scene, camera, "block").histogram, abs=1e-3)
    shown = Measurement(0.0, 0.0, (1, 1), False, histogram=sharp.histogram)
    for tau in (0.3, 0.4, 0.6):
        ucr = split_regions(recorded, tau).ucr.to(torch.float32).mean()
        assert shown.share_above(tau) == pytest.approx(float(ucr), abs=0.04)
    state = ViewState(tint=True)
    for name in ("eig", "calibrated", "overlay"):
        assert sharp.image(name, state).shape == (4 * HEIGHT, 4 * WIDTH, 3)
    assert sharp.tinted(sharp.rgb, (0.2, 0.4)).shape == sharp.rgb.shape
    assert sharp.in_form("diagonal").eig_view is sharp.eig_view
    coarse = ViewLayers(scene, camera.resized(WIDTH // 2, HEIGHT // 2), "block")
    assert coarse.eig.eig.shape == (HEIGHT // 2, WIDTH // 2)


def test_a_repair_is_shown_only_where_it_changed_the_rendering(screen, viewport, session, view):
    half = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    half[:, : WIDTH // 2] = 1
    session.state.preview = SimpleNamespace(
        frame=0,
        camera=recorded_camera(0),
        repaired=torch.tensor([0.0, 0.0, 1.0]).expand(HEIGHT, WIDTH, 3).contiguous(),
        confidence=torch.ones(HEIGHT, WIDTH),
        pixel_provenance=half,
    )
    now = at_rest(viewport)
    view.set(layer="repaired")
    at_rest(viewport, now)
    rendered, repaired = screen.images
    assert repaired[HEIGHT // 2, 5].tolist() == [0, 0, 255]
    assert (repaired[:, WIDTH // 2 + 2 :] == rendered[:, WIDTH // 2 + 2 :]).all()
