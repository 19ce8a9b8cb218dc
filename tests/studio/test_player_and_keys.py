"""Playing follows the clock; every key does what the list says."""

import pytest
from street_scene import street

from faithfusion_studio.session.commands import Redo, RepairSegment, Undo
from faithfusion_studio.studio.keys import KeyPressError, keys, snapped
from faithfusion_studio.studio.player import moment_at, play_times


def test_play_times_follow_the_recording():
    times = play_times(street(frames=4).capture.trajectory.timestamps)
    assert times == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [moment_at(times, t) for t in (0.0, 0.09, 0.15, 0.9)] == [0, 0, 1, 3]


def press(table, hotkey, modifier=None):
    found = [key for key in table if (key.hotkey, key.modifier) == (hotkey, modifier)]
    assert len(found) == 1
    found[0].run()


def test_offset_keys_step_and_catch_the_recorded_lane(session, view):
    table = keys(session, view, lambda: None)
    press(table, "[")
    assert view.get().offset == pytest.approx(0.25)
    press(table, "{", "shift")
    assert view.get().offset == pytest.approx(1.25)
    press(table, "}", "shift")
    press(table, "]")
    assert view.get().offset == 0.0
    assert snapped(0.08) == 0.0 and snapped(-0.3) == pytest.approx(-0.3)


def test_layer_keys_follow_the_order_of_the_menu(session, view):
    table = keys(session, view, lambda: None)
    for digit, layer in [("2", "depth"), ("4", "eig"), ("6", "overlay"), ("1", "rgb")]:
        press(table, digit)
        assert view.get().layer == layer


def test_undo_redo_and_repair_are_commands_not_view_changes(session, view):
    table = keys(session, view, lambda: None)
    view.set(frame=4, offset=2.0, threshold=(0.1, 0.55))
    press(table, "Z", "cmd/ctrl")
    press(table, "Z", "cmd/ctrl+shift")
    press(table, "R")
    undo, redo, repair = session.commands
    assert isinstance(undo, Undo) and isinstance(redo, Redo) and isinstance(repair, RepairSegment)
    assert repair.preview
    assert tuple(repair.stage.segment) == (4, 5)
    assert (repair.stage.lateral_offset, repair.stage.eig_threshold) == (2.0, 0.55)


def test_no_key_takes_a_letter_of_flying_and_none_is_given_twice(session, view):
    table = keys(session, view, lambda: None)
    plain = [key.hotkey for key in table if key.modifier is None]
    assert not set("WASDQEH") & set(plain)
    pairs = [(key.hotkey, key.modifier) for key in table]
    assert len(pairs) == len(set(pairs))


def test_repairing_the_recorded_lane_is_refused_with_the_next_step(session, view):
    with pytest.raises(KeyPressError, match="sideways"):
        press(keys(session, view, lambda: None), "R")
    assert session.commands == []
