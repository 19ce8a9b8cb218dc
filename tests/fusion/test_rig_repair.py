"""A video engine sees one camera of a rig at a time."""

import pytest

from faithfusion_studio.fusion.repairing import _clips


@pytest.mark.parametrize(
    ("names", "window", "clips"),
    [
        ("aaabbb", 2, [(0, 2), (2, 3), (3, 5), (5, 6)]),
        ("aaabbb", 9, [(0, 3), (3, 6)]),
        ("abab", 1, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ("aaaa", 4, [(0, 4)]),
        ("", 4, []),
    ],
)
def test_no_clip_holds_two_cameras(names, window, clips):
    assert [(c.start, c.stop) for c in _clips(list(names), window)] == clips
