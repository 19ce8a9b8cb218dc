"""Plays the drive through one camera: advances with the clock, however long a picture takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from faithfusion_studio.studio.view_state import View, ViewState

TICK = 0.04
DEFAULT_RATE = 10.0
"""Frames per second where the recording tells no times."""


class Player:
    """One per client; asleep unless its view plays."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._wake = threading.Event()
        self._closed = False
        self._unsubscribe = view.subscribe(self._notice)
        self._thread = threading.Thread(target=self._run, name="player", daemon=True)

    def start(self) -> None:
        """Wait for the view to play."""
        self._thread.start()

    def close(self) -> None:
        """Stop playing for good."""
        self._closed = True
        self._unsubscribe()
        self._wake.set()

    def _notice(self, state: ViewState) -> None:
        if state.playing:
            self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            self._play()

    def _play(self) -> None:
        if not len(self._view.rig):
            self._view.set(playing=False)
            return
        times = play_times(self._view.rig.times)
        moment = self._view.moment
        start_time = times[moment] if moment < len(times) - 1 else times[0]
        began = time.monotonic()
        while not self._closed and self._view.get().playing:
            now = start_time + time.monotonic() - began
            moment = moment_at(times, now)
            if self._view.get().playing:
                self._view.set(frame=self._view.frame_at(moment))
            if now >= times[-1]:
                self._view.set(playing=False)
                return
            time.sleep(TICK)


def play_times(times: Sequence[float]) -> list[float]:
    """When each moment is shown, s from the first; even steps where the recording tells no times."""
    rising = all(b >= a for a, b in zip(times, times[1:], strict=False))
    if rising and times[-1] > times[0]:
        return [t - times[0] for t in times]
    return [i / DEFAULT_RATE for i in range(len(times))]


def moment_at(times: list[float], now: float) -> int:
    """The last moment whose time has come."""
    import bisect

    return max(bisect.bisect_right(times, now) - 1, 0)
