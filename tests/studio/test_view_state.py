"""The per-client view: clamping, subscribers, guarded callbacks, shares from a histogram."""

from types import SimpleNamespace

import pytest

from faithfusion_studio.cameras import Segment
from faithfusion_studio.errors import StudioError
from faithfusion_studio.studio.view_state import Measurement


def test_set_clamps_frame_offset_and_segment_to_what_exists(view):
    view.set(frame=99, offset=-20.0, segment=(8, 50), wipe=1.7)
    state = view.get()
    assert (state.frame, state.offset, state.wipe) == (9, -6.0, 1.0)
    assert state.segment == Segment(8, 10)


def test_a_segment_is_never_empty(view):
    view.set(segment=(5, 5))
    assert view.get().segment == Segment(5, 6)


def test_subscribers_hear_changes_once_and_not_what_stays_equal(view):
    heard = []
    stop = view.subscribe(heard.append)
    view.set(offset=1.0)
    view.set(offset=1.0)
    stop()
    view.set(offset=2.0)
    assert [state.offset for state in heard] == [1.0]


def test_an_unknown_field_is_refused(view):
    with pytest.raises(TypeError):
        view.set(colour="red")


def test_a_guarded_callback_ignores_our_own_assignments(view):
    calls = []
    run = view.guarded(calls.append)
    run(SimpleNamespace(client=None))
    run(SimpleNamespace(client="browser"))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "error", [StudioError("no frames are accepted; accept one."), KeyError("x")]
)
def test_an_error_in_a_callback_becomes_one_message(view, window, error):
    def fail(_event):
        raise error

    view.guarded(fail)(SimpleNamespace(client="browser"))
    assert len(window.messages) == 1
    title, body, is_error = window.messages[0]
    assert title and body and is_error


def test_shares_above_a_threshold_interpolate_inside_a_bin():
    measurement = Measurement(
        ms=1.0, fps=0.0, size=(2, 2), coarse=False, histogram=(0.5, 0.0, 0.25, 0.25)
    )
    assert measurement.share_above(0.0) == pytest.approx(1.0)
    assert measurement.share_above(0.5) == pytest.approx(0.5)
    assert measurement.share_above(0.125) == pytest.approx(0.75)
    assert measurement.share_above(1.0) == pytest.approx(0.0)


def test_tint_and_eig_layers_need_an_eig_pass(view):
    assert not view.get().needs_eig
    view.set(compare="wipe", compare_with="overlay")
    assert view.get().needs_eig
    view.set(compare="off")
    assert not view.get().needs_eig
    view.set(tint=True)
    assert view.get().needs_eig


def test_a_listener_that_fails_neither_stops_the_others_nor_the_setter(view, window):
    heard = []

    def fail(_state):
        raise KeyError("gone")

    view.subscribe(fail)
    view.subscribe(heard.append)
    view.set(offset=1.0)
    assert len(heard) == 1
    assert len(window.messages) == 1
