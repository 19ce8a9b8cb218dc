"""The render loop of one client: newest wins, coarse then full, nothing escapes."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from street_scene import HEIGHT, WIDTH, recorded_camera, street, without_recording

from faithfusion_studio.errors import StudioError
from faithfusion_studio.studio import viewport as viewport_module
from faithfusion_studio.studio.lens import pose_of
from faithfusion_studio.studio.viewport import FrameBudget, Viewport

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


def test_a_moving_camera_is_drawn_coarse_and_once_more_in_full_at_rest(screen, viewport, view):
    viewport._coarse.pixels = WIDTH * HEIGHT // 4
    now = at_rest(viewport)
    screen.newest = pose_of(recorded_camera(1), CANVAS)
    viewport.step(now)
    assert view.measurement.coarse
    assert screen.images[-1].shape[0] < HEIGHT
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


def test_switching_the_layer_reuses_the_rasterisation(screen, viewport, view, monkeypatch):
    calls = []
    original = viewport_module.ViewLayers.view.func
    monkeypatch.setattr(
        viewport_module.ViewLayers.view, "func", lambda self: calls.append(1) or original(self)
    )
    now = at_rest(viewport)
    view.set(layer="depth")
    at_rest(viewport, now)
    assert len(screen.images) == 2
    assert len(calls) == 1


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


def test_a_budget_grows_for_fast_pictures_and_shrinks_for_slow_ones():
    budget = FrameBudget(0.1, 100_000)
    for _ in range(20):
        budget.learn(budget.pixels, budget.pixels * 1e-6)
    assert budget.pixels == pytest.approx(100_000, rel=0.05)
    for _ in range(20):
        budget.learn(budget.pixels, budget.pixels * 4e-6)
    assert budget.pixels == pytest.approx(25_000, rel=0.1)


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
