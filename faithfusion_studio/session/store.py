"""The scene everybody looks at: one writer swaps it, readers take it without a lock."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Generic, TypeVar

from faithfusion_studio.scene import Scene

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A scene as it was at one moment; nothing in it is ever written again."""

    version: int
    """Rises by one with every publish, starting at 1."""
    scene: Scene
    step: int = 0
    """Optimiser step of the running fusion, 0 outside one."""


class SceneStore:
    """Holds the current `Snapshot`; publishing is a swap of one reference."""

    def __init__(self, scene: Scene) -> None:
        self._condition = threading.Condition()
        self._current = Snapshot(1, scene)

    def publish(self, scene: Scene, step: int = 0) -> Snapshot:
        """Make `scene` the current one and wake whoever waits for it."""
        with self._condition:
            self._current = Snapshot(self._current.version + 1, scene, step)
            self._condition.notify_all()
            return self._current

    def latest(self) -> Snapshot:
        """The current snapshot; never blocks."""
        return self._current

    def wait_newer(self, version: int, timeout: float | None = None) -> Snapshot | None:
        """The current snapshot once its version exceeds `version`; None when time ran out (s)."""
        with self._condition:
            newer = self._condition.wait_for(lambda: self._current.version > version, timeout)
            return self._current if newer else None


class LatestSlot(Generic[T]):
    """One request, where a new one replaces the old: whoever serves it never falls behind."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._value: T | None = None
        self._full = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once nobody will put anything any more."""
        return self._closed

    def put(self, value: T) -> None:
        """Replace the waiting request, if any; does nothing after `close`."""
        with self._condition:
            if self._closed:
                return
            self._value, self._full = value, True
            self._condition.notify()

    def get(self, timeout: float | None = None) -> T | None:
        """Take the newest request; None when time (s) ran out or the slot was closed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while not self._full and not self._closed:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._condition.wait(left)
            if self._closed:
                return None
            value, self._value, self._full = self._value, None, False
            return value

    def close(self) -> None:
        """Wake and dismiss whoever waits."""
        with self._condition:
            self._closed, self._full, self._value = True, False, None
            self._condition.notify_all()
