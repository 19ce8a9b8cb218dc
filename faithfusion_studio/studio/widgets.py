"""Small things every job panel needs: assign only what differs, say why, show progress, point on."""

from __future__ import annotations

import html
import math
from typing import Any, Literal, TypeAlias

import numpy as np

from faithfusion_studio.render.views import to_uint8
from faithfusion_studio.session.state import JobState, SessionState

Step: TypeAlias = Literal["repair", "accept", "fuse", "export", "save", "wait", "none"]
PLAIN = "gray"
"""Colour of a button that is not the next sensible step; the next one has the theme's own."""


def change(handle: Any, **values: Any) -> None:
    """Assign properties of a widget that differ; every assignment is a message to the browser."""
    for name, value in values.items():
        if getattr(handle, name) != value:
            setattr(handle, name, value)


def note(text: str, *, warn: bool = False) -> str:
    """A small line of text as HTML; the text is escaped."""
    return raw_note(html.escape(text), warn=warn) if text else ""


def raw_note(inner: str, *, warn: bool = False) -> str:
    """A small line as HTML from markup that is already safe."""
    color = "#e8b64c" if warn else "#c9cfda"
    return (
        f'<div style="padding:1px 12px 5px;font-size:12.5px;line-height:1.4;color:{color};'
        f'overflow-wrap:anywhere">{inner}</div>'
    )


def set_button(button: Any, reason: str, *, highlight: bool = False) -> None:
    """Enable a button, or disable it because of `reason`; highlight the next sensible step."""
    change(button, disabled=bool(reason), color=None if highlight and not reason else PLAIN)


def duration(seconds: float | None) -> str:
    """Seconds for people: "8 s", "3 min 20 s"; empty where unknown."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 90 else f"{whole // 60} min {whole % 60:02d} s"


def count(number: int) -> str:
    """A whole number with thin spaces between the thousands."""
    return f"{number:,}".replace(",", "\u202f")


def next_step(state: SessionState) -> Step:
    """What a person who just goes on would do now."""
    if state.job is not None:
        return "wait"
    last: Step = "save" if state.unsaved else "none"
    if not state.has_recording:
        return last
    done: tuple[tuple[Step, bool], ...] = (
        ("repair", bool(state.frames)),
        ("accept", any(frame.accepted for frame in state.frames)),
        ("fuse", _is_fused(state)),
        ("export", bool(state.exports)),
    )
    for step, is_done in done:
        if not is_done:
            return step
    return last


def _is_fused(state: SessionState) -> bool:
    if state.stage is None:
        return False
    return f"Fusion {state.stage.label}" in state.history[1 : state.cursor + 1]


class JobBar:
    """A progress bar with one line below: how far, how long; and what is being made, where that is known."""

    def __init__(self, gui: Any) -> None:
        self._bar = gui.add_progress_bar(0.0, visible=False)
        self._line = gui.add_html("", visible=False)
        self._picture = gui.add_image(
            np.zeros((8, 8, 3), np.uint8), label="So far, roughly", jpeg_quality=80, visible=False
        )
        self._shown: Any = None

    def show(self, job: JobState | None, extra: str = "") -> None:
        """Show a job, or nothing.

        Args:
            job: The job; None hides the bar.
            extra: More for the line, plain text.
        """
        change(self._bar, visible=job is not None)
        change(self._line, visible=job is not None)
        picture = None if job is None else job.picture
        if picture is not self._shown:
            self._shown = picture
            if picture is not None:
                self._picture.image = to_uint8(picture).numpy()
            change(self._picture, visible=picture is not None)
        if job is None:
            return
        share = 100.0 * job.done / job.total if job.total else 0.0
        change(self._bar, value=min(share, 100.0), animated=not job.paused)
        parts = [job.label]
        if job.total:
            parts.append(f"{job.done} / {job.total}")
        left = duration(job.seconds_left)
        if job.asked:
            parts.append(job.asked)
        elif job.paused:
            parts.append("paused")
        elif left:
            parts.append(f"{left} left")
        change(self._line, content=note(" · ".join([*parts, extra] if extra else parts)))
