"""Who computes first on shared cores: pictures somebody waits for, then work in the background.

The core's passes take tens of milliseconds and cannot be interrupted, so background threads ask
before each of them whether a picture is being drawn, and wait for its end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

PATIENCE = 0.1
"""Longest wait before one pass in the background, s: many viewers slow a job down, never stop it."""

_drawing = 0
_done = threading.Condition()
_local = threading.local()


@contextlib.contextmanager
def foreground() -> Iterator[None]:
    """While open, threads inside `background` begin no pass."""
    global _drawing  # noqa: PLW0603 - one machine, one count
    with _done:
        _drawing += 1
    try:
        yield
    finally:
        with _done:
            _drawing -= 1
            if _drawing == 0:
                _done.notify_all()


@contextlib.contextmanager
def background() -> Iterator[None]:
    """Passes this thread begins inside let pictures go first."""
    before = getattr(_local, "background", False)
    _local.background = True
    try:
        yield
    finally:
        _local.background = before


def give_way() -> None:
    """In the background: wait until no picture is being drawn, at most `PATIENCE`."""
    if _drawing and getattr(_local, "background", False):
        with _done:
            _done.wait_for(lambda: _drawing == 0, PATIENCE)
