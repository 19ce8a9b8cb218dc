"""What a command says while it runs, and how it takes Ctrl+C: everything on standard error."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


class Terminated(BaseException):
    """A signal asked the process to end; unwinds so that temporary files disappear."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def say(line: str) -> None:
    """One line for people."""
    sys.stderr.write(line.rstrip() + "\n")
    sys.stderr.flush()


class ProgressLine:
    """A line with count, time left and a few words, at most four times a second (every 10 s in a log)."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._terminal = sys.stderr.isatty()
        self._shown = -1e9
        self._started = time.monotonic()

    def update(
        self, done: int, total: int, seconds_left: float | None = None, note: str = ""
    ) -> None:
        """Show where the job stands; the time left is estimated from the pace when not given."""
        now = time.monotonic()
        due = now - self._shown >= (0.25 if self._terminal else 10.0)
        if not due and not (done == total and self._terminal):
            return
        self._shown = now
        if seconds_left is None and 0 < done <= total:
            seconds_left = (now - self._started) / done * (total - done)
        left = "" if seconds_left is None else f"  {duration(seconds_left)} left"
        line = f"{self._what} {done}/{total}{left}  {note}".rstrip()
        sys.stderr.write(f"\r\x1b[K{line}" if self._terminal else line + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Leave the line; what comes next starts a new one."""
        if self._terminal and self._shown > 0:
            sys.stderr.write("\n")
            sys.stderr.flush()


def duration(seconds: float) -> str:
    """For people: "40 s", "3 min 20 s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min {seconds % 60:02d} s"


@dataclass
class Interruption:
    """Whether somebody asked to stop."""

    name: str = ""
    """The signal; empty while nobody asked."""

    @property
    def requested(self) -> bool:
        """True from the first signal on."""
        return bool(self.name)

    @property
    def exit_code(self) -> int:
        """0, or what the signal stands for."""
        return EXIT_CODES.get(self.name, 0)


@dataclass
class _Handlers:
    previous: dict[int, Any] = field(default_factory=dict)

    def install(self, handle: Any, names: tuple[str, ...]) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for name in names:
            if hasattr(signal, name):
                number = getattr(signal, name)
                self.previous[number] = signal.signal(number, handle)

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(what: str) -> Iterator[Interruption]:
    """Inside, the first Ctrl+C, SIGTERM or SIGHUP only asks to stop; the second one stops at once.

    Args:
        what: What happens next, e.g. "saving what is trained".
    """
    stop, handlers = Interruption(), _Handlers()

    def handle(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.requested:
            if name == "SIGINT":
                raise KeyboardInterrupt
            raise Terminated(EXIT_CODES[name])
        stop.name = name
        say(f"\nfinishing this step, then {what}; press Ctrl+C again to stop at once.")

    handlers.install(handle, tuple(EXIT_CODES))
    try:
        yield stop
    finally:
        handlers.restore()


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP unwind like Ctrl+C does, so that nothing half written stays."""

    def handle(number: int, _frame: FrameType | None) -> None:
        raise Terminated(EXIT_CODES[signal.Signals(number).name])

    handlers = _Handlers()
    handlers.install(handle, ("SIGTERM", "SIGHUP"))
    try:
        yield
    finally:
        handlers.restore()
