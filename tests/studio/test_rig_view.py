"""Several cameras in the studio: switching, moments, filmstrip, and the photo beside the rendering."""

from dataclasses import replace

import pytest
import torch
from street_scene import street, with_true_photos
from studio_fakes import FakeSession

from faithfusion_studio.cameras import Segment, trajectory_from_cameras
from faithfusion_studio.rig import rig_of
from faithfusion_studio.studio.compose import DIFFERENCE_GAIN, Stills, compose
from faithfusion_studio.studio.filmstrip import Filmstrip, stops
from faithfusion_studio.studio.keys import KeyPressError, keys
from faithfusion_studio.studio.layers import ViewLayers
from faithfusion_studio.studio.legend import legend
from faithfusion_studio.studio.panels.timeline import _place
from faithfusion_studio.studio.photo_section import PhotoSection, no_photo
from faithfusion_studio.studio.player import Player
from faithfusion_studio.studio.view_state import Measurement, View, ViewState
from faithfusion_studio.transforms import translation

NAMES = ("front", "left")


def rig_street(frames: int = 6):
    """The made-up street, seen by a front camera and one half a metre to its left."""
    scene, photos = street(frames=frames), []
    for photo in scene.capture.frames:
        for side, name in enumerate(NAMES):
            shift = translation(torch.tensor([0.0, 0.5 * side, 0.0], dtype=torch.float64))
            camera = replace(photo.camera.moved(shift @ photo.camera.camtoworld), name=name)
            photos.append(replace(photo, camera=camera, name=f"{photo.name}_{name}"))
    trajectory = trajectory_from_cameras([photo.camera for photo in photos])
    return replace(
        scene, capture=replace(scene.capture, frames=tuple(photos), trajectory=trajectory)
    )


@pytest.fixture
def scene():
    return with_true_photos(rig_street())


@pytest.fixture
def view(window, scene):
    path = scene.capture.trajectory
    return View(ViewState(), num_frames=len(path), window=window, rig=rig_of(path))


def press(session, view, hotkey):
    next(k for k in keys(session, view, lambda: None) if k.hotkey == hotkey).run()


def test_another_camera_shows_the_same_moment_with_its_own_divider(session, view):
    view.set(frame=4, wipe=0.2)
    press(session, view, "N")
    assert (view.get().frame, view.moment, view.get().wipe) == (5, 2, 0.5)
    view.set(wipe=0.8)
    press(session, view, "N")
    assert (view.get().frame, view.get().wipe) == (4, 0.2)
    view.look_through(1)
    assert view.get().wipe == 0.8


def test_one_frame_on_stays_with_the_camera(session, view):
    view.set(frame=1)
    press(session, view, ".")
    press(session, view, ".")
    assert view.get().frame == 5
    press(session, view, ",")
    assert view.get().frame == 3


def test_playing_stays_with_the_camera(view):
    seen = []
    view.set(frame=1)
    view.subscribe(lambda state: seen.append(state.frame))
    view.set(playing=True)
    Player(view)._play()
    assert view.get().frame == 11 and not view.get().playing
    assert set(seen) <= {1, 3, 5, 7, 9, 11} and len(set(seen)) > 3


def test_the_caption_counts_moments_and_names_the_camera(view):
    view.set(frame=5, segment=Segment(2, 8))
    text = _place(view.get(), view.rig)
    assert "Frame 2</b> / 5 · <b>left</b>" in text and "segment 1-3" in text


class Widget:
    """What a panel sets on a widget."""

    def __init__(self, *args, **values):
        self.content, self.visible, self.value, self.disabled = "", True, None, False
        self.options = args[1] if len(args) > 1 else ()
        self.__dict__.update(values)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def on_click(self, call):
        self.click = call

    on_update = on_click


class Gui:
    def __init__(self):
        self.made = []

    def __getattr__(self, _name):
        def add(*args, **values):
            self.made.append(Widget(*args, **values))
            return self.made[-1]

        return add


def event(value):
    from types import SimpleNamespace

    return SimpleNamespace(client=1, target=SimpleNamespace(value=value))


def test_the_filmstrip_shows_every_camera_now_and_goes_where_it_is_told(scene, view):
    gui = Gui()
    strip = Filmstrip(gui, FakeSession(scene), view)
    html, cameras, drive = gui.made
    strip.update()
    assert not html.visible and not drive.visible and cameras.visible
    view.set(filmstrip="cameras", frame=4)
    strip.update()
    assert html.content.count("<img") == 2 and html.content.count("#409cff") == 1
    assert cameras.options == NAMES and 'data-press="left"' in html.content
    cameras.click(event("left"))
    assert view.get().frame == 5
    before = html.content
    view.set(playing=True, frame=7)
    strip.update()
    assert html.content == before  # decoding would steal time from the picture
    view.set(playing=False, filmstrip="drive")
    strip.update()
    assert html.content.count("<img") == 6 and drive.visible
    drive.click(event("#4"))
    assert view.get().frame == 9
    assert stops(1) == [0] and stops(0) == [] and stops(100)[::6] == [0, 99]


def test_the_photo_is_refused_in_words_where_it_was_not_taken(scene, view):
    assert no_photo(scene, view.get()) == ""
    assert "recorded lane" in no_photo(scene, ViewState(offset=1.0))
    assert "recorded camera" in no_photo(scene, ViewState(follow=False))
    assert "without recorded photos" in no_photo(replace(scene, capture=None), ViewState())
    broken = replace(scene.capture.frames[0], data=b"no picture")
    frames = (broken, *scene.capture.frames[1:])
    damaged = replace(scene, capture=replace(scene.capture, frames=frames))
    assert "not a readable image" in no_photo(damaged, ViewState())
    session, gui = FakeSession(scene), Gui()
    section = PhotoSection(gui, session, view)
    way, why = gui.made
    view.set(offset=2.0)
    section.update(view.get())
    assert way.disabled and "recorded lane" in why.content
    with pytest.raises(KeyPressError, match="recorded lane"):
        press(session, view, "F")
    view.set(offset=0.0)
    section.update(view.get())
    assert not way.disabled and not why.visible
    way.value = "Difference"
    way.click(event(None))
    assert (view.get().compare, view.get().compare_with) == ("difference", "photo")
    press(session, view, "F")
    assert view.get().compare == "off"


@pytest.mark.parametrize("frame", [2, 3])
def test_the_difference_to_the_photo_is_small_on_its_camera_and_measured_inside(scene, frame):
    """On a canvas ten pixels wider to each side, so that the photo covers its middle pixel by pixel."""
    camera = scene.capture.frames[frame].camera
    K = camera.K.clone()
    K[0, 2] += 10
    wider = replace(camera, K=K, width=camera.width + 20)
    layers, stills = ViewLayers(scene, wider, "block"), Stills(FakeSession(scene))
    stills.scene = scene
    state = ViewState(compare="difference", compare_with="photo", frame=frame)
    picture = compose(state, layers, None, stills)
    assert picture.problem == ""
    photo = compose(replace(state, compare="off", layer="photo"), layers, None, stills)
    torch.testing.assert_close(picture.image[:, :9], photo.image[:, :9])  # outside: dimmed
    inside = picture.image[2:-2, 12:-12]
    assert float(inside.mean()) < 0.03 and float(inside.max()) < 0.2
    apart = (layers.rgb - photo.image).abs().mean(-1)[2:-2, 12:-12] * DIFFERENCE_GAIN
    assert float(apart.max()) <= DIFFERENCE_GAIN * 2.5 / 255  # bilinear in 32nds of a pixel
    elsewhere = compose(replace(state, frame=(frame + 2) % 12), layers, None, stills)
    assert "back to the shown path" in elsewhere.problem


def test_the_legend_says_what_the_difference_is():
    measured = Measurement(ms=1.0, fps=0.0, size=(9, 9), coarse=False)
    text = legend(ViewState(compare="difference", compare_with="photo"), measured)
    assert "Difference" in text and "0.25" in text


def test_a_thumbnail_is_small_and_looks_like_the_photo(scene):
    photo = scene.capture.frames[0]
    small = torch.from_numpy(photo.thumbnail(24)).float() / 255
    assert small.shape == (14, 24, 3)
    assert float((small - photo.image((24, 14))).abs().mean()) < 0.03


def test_the_export_asks_for_the_ticked_cameras_and_never_over_older_files(view, tmp_path):
    from faithfusion_studio.studio.panels.export import RigChoice, _describe, _free

    gui = Gui()
    choice = RigChoice(gui, view)
    _, front, left, arrange = gui.made
    front.value, left.value, arrange.value = False, True, "One video, a grid"
    assert choice.chosen() == ("left",) and choice.arrange() == "grid"
    front.value = True
    assert choice.chosen() == NAMES
    front.value = left.value = False
    view.set(frame=5, segment=Segment(2, 8), offset=1.0)
    assert choice.chosen() == ("left",)
    assert _describe("segment", view.get(), view.rig) == "Frames 1 to 3, +1 m."
    (tmp_path / "a_front.mp4").write_bytes(b"")
    assert _free(tmp_path / "a.mp4").name == "a-2.mp4"
