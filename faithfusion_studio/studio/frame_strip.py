"""The result of a repair in the side panel: strip, selector, wipe, masks, accept and reject."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from faithfusion_studio.session.commands import AcceptFrames
from faithfusion_studio.session.state import SessionState
from faithfusion_studio.studio.frame_images import (
    LEGENDS,
    VIEWS,
    describe_frame,
    frame_image,
    strip_image,
)
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.widgets import change, next_step, raw_note


class FrameStrip:
    """Shows `SessionState.frames`, or the newer `SessionState.preview`, in the current container."""

    def __init__(self, gui: Any, session: Any, view: View) -> None:
        self._session, self._view = session, view
        self._frames: tuple[Any, ...] = ()
        self._preview: Any = None
        self._previewing = False
        self._drawn: tuple[Any, ...] = ()
        blank = np.zeros((8, 8, 3), np.uint8)
        self._folder = gui.add_folder("Repaired frames", visible=False)
        with self._folder:
            self._strip = gui.add_image(blank, visible=False)
            self._select = gui.add_slider("Frame", 0, 1, 1, 0, visible=False)
            self._kind = gui.add_dropdown("Show", tuple(VIEWS.values()))
            self._picture = gui.add_image(blank, jpeg_quality=85)
            self._wipe = gui.add_slider("Wipe", 0.0, 1.0, 0.01, 0.5)
            self._about = gui.add_html("")
            self._accept = gui.add_checkbox("Accept frame", True)
            self._every = gui.add_button_group("All frames", ("Accept all", "Reject all"))
            self._big = gui.add_button("Compare in the big picture", color="gray")
        self._select.on_update(view.guarded(self._selected))
        self._kind.on_update(view.guarded(lambda _event: self._draw()))
        self._wipe.on_update(view.guarded(lambda _event: self._draw()))
        self._accept.on_update(view.guarded(self._accepted))
        self._every.on_click(view.guarded(self._all_accepted))
        self._big.on_click(view.guarded(self._compare))

    def update(self, state: SessionState) -> None:
        """Show what the session has now."""
        if state.preview is not self._preview:
            self._preview, self._previewing = state.preview, state.preview is not None
        if state.frames is not self._frames:
            self._frames, self._previewing = state.frames, False
            if state.frames:
                numbers = [frame.frame for frame in state.frames]
                first, last = min(numbers), max(numbers)
                change(self._select, min=first, max=max(last, first + 1))
                if not first <= self._select.value <= last:
                    self._select.value = first
        change(self._folder, visible=bool(state.frames) or state.preview is not None)
        several = len(self._frames) > 0
        change(self._strip, visible=several)
        change(self._select, visible=len(self._frames) > 1)
        change(self._every, visible=several)
        hint = "Accept at least one frame to go on." if next_step(state) == "accept" else None
        change(self._every, hint=hint)
        self._draw()

    def _shown(self) -> Any:
        """The frame in the picture; None before the first repair."""
        if self._previewing or not self._frames:
            return self._preview
        wanted = self._select.value
        return min(self._frames, key=lambda frame: abs(frame.frame - wanted))

    def _draw(self) -> None:
        frame = self._shown()
        if frame is None:
            return
        kind = next(key for key, title in VIEWS.items() if title == self._kind.value)
        wanted = (frame, self._frames, kind, self._wipe.value, self._previewing)
        if len(self._drawn) == len(wanted) and all(
            a is b or (isinstance(a, (str, float, bool)) and a == b)
            for a, b in zip(wanted, self._drawn, strict=True)
        ):
            return
        self._drawn = wanted
        self._picture.image = frame_image(frame, kind, float(self._wipe.value))
        change(self._wipe, visible=kind == "wipe")
        name = html.escape(self._view.rig.name_of(frame.frame))
        title = f"Preview of frame {name}" if self._previewing else f"Frame {name}"
        lines = [f"<b>{title}</b> \u00b7 {LEGENDS[kind]}", describe_frame(frame)]
        lines += [html.escape(text) for text in frame.notes]
        change(self._about, content=raw_note("<br>".join(lines)))
        change(self._accept, visible=not self._previewing, value=frame.accepted)
        if self._frames:
            selected = [i for i, other in enumerate(self._frames) if other is frame]
            self._strip.image = strip_image(self._frames, selected[0] if selected else -1)

    def _selected(self, _event: Any) -> None:
        self._previewing = False
        self._draw()

    def _accepted(self, _event: Any) -> None:
        self._session.submit(AcceptFrames((self._shown().frame,), bool(self._accept.value)))

    def _all_accepted(self, _event: Any) -> None:
        self._session.submit(AcceptFrames(None, self._every.value == "Accept all"))

    def _compare(self, _event: Any) -> None:
        stage, frame = self._session.state.stage, self._shown().frame
        offset = self._view.get().offset
        if stage is not None and not self._previewing:
            offset = stage.lateral_offset
        self._view.set(
            frame=frame,
            offset=offset,
            follow=True,
            layer="rgb",
            compare="wipe",
            compare_with="repaired",
        )
