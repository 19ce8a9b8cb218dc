"""How large a picture may be to be ready in time, learned from the pictures drawn so far."""

from __future__ import annotations

import statistics
from collections import deque

MAX_PIXELS = 1280 * 800
MIN_PIXELS = 160 * 96
STEP = 0.5**0.5
"""Pixels of a size over those of the next larger one."""
CALM = 8
PROBE = 60
"""After so many late pictures a smaller size is tried, in case it helps after all."""
WORTH, WORTHLESS = 1.18, 1.12
"""Factor by which the next smaller size must be faster to be taken for its speed alone; below the
second one a size larger costs so little that it is taken though pictures are late already."""


class FrameBudget:
    """Chooses among a few sizes of the canvas so that a picture takes about a given time.

    Projecting and sorting the Gaussians costs the same at any size, so below some size a smaller picture
    is worse but hardly faster. How much a size gains over the next is therefore measured with every
    change. Sizes shrink after a few late pictures and grow after some with room to spare: one
    hiccup changes nothing, and sizes do not jump to and fro.

    Args:
        seconds: Time a picture may take.
        pixels: Size to begin with.
        calm: So many pictures in a row must leave room before they grow.
    """

    def __init__(self, seconds: float, pixels: int, calm: int = CALM) -> None:
        self._seconds, self._start, self._patience = seconds, pixels, calm
        self._level = -1  # into the ladder of sizes; -1 before the first picture
        self._gain = 1 / STEP
        self._times: deque[float] = deque(maxlen=3)
        self._count = self._late = self._calm = 0
        self._before: tuple[int, float] | None = None

    def pixels(self, canvas: int) -> int:
        """Pixels of the next picture on a canvas of so many."""
        ladder = _ladder(canvas)
        if self._level < 0:
            fitting = (k for k, size in enumerate(ladder) if size <= self._start)
            self._level = next(fitting, len(ladder) - 1)
        self._level = min(self._level, len(ladder) - 1)
        return ladder[self._level]

    @property
    def expected(self) -> float:
        """Time the next picture will take, s; 0 before the first."""
        if len(self._times) < 3:
            return min(self._times, default=0.0)
        return statistics.median(self._times)

    def learn(self, seconds: float) -> None:
        """Take account of a picture of the size last given."""
        self._times.append(max(seconds, 1e-4))
        self._count += 1
        time, budget = self.expected, self._seconds
        if self._count == 2 and self._before is not None:
            steps, old = self._before
            gain = (old / time) ** (1 / steps)
            self._gain = 0.3 * self._gain + 0.7 * min(max(gain, 1.0), 1 / STEP)
        late = time > 1.1 * budget
        room = 1.05 * self._gain * time < budget or (late and self._gain < WORTHLESS)
        self._late = self._late + 1 if late else 0
        self._calm = self._calm + 1 if room else 0
        far = time > 1.6 * budget
        if self._late >= (2 if far else 5) and self._gain > WORTH:
            self._move(2 if time > 2 * budget else 1)
        elif self._late >= PROBE:
            self._move(1)
        elif self._calm >= self._patience and self._level > 0:
            self._move(-1)

    def _move(self, steps: int) -> None:
        self._before = (steps, self.expected)
        self._level = max(self._level + steps, 0)
        self._times.clear()
        self._count = self._late = self._calm = 0


def _ladder(canvas: int) -> list[int]:
    sizes = [min(canvas, MAX_PIXELS)]
    while sizes[-1] * STEP >= MIN_PIXELS:
        sizes.append(int(sizes[-1] * STEP))
    return sizes
