"""Small photos in the timeline: of every camera of the rig now, or of moments along the drive; a click goes there.

Photos are decoded small, once, and only while nothing plays, in the thread of the panels: the picture
never waits for them. A thumbnail presses the button below it that has its name, so everything also
works by buttons alone.
"""

from __future__ import annotations

import html
from typing import Any

from faithfusion_studio.studio.thumbnail import small_jpeg
from faithfusion_studio.studio.view_state import View, ViewState
from faithfusion_studio.studio.widgets import change

WIDTH = 240
"""Thumbnails are decoded at this width, px."""
HEIGHT, MAX_WIDTH = 62, 130
"""They are shown so high and at most so wide, CSS pixels; a wider photo shows its middle."""
STOPS = 7
"""Moments along the drive."""
_PRESS = (
    "const n=this.dataset.press;const b=[...document.querySelectorAll('button')]"
    ".filter(b=>b.textContent.trim()===n);if(b.length)b[b.length-1].click()"
)


class Filmstrip:
    """Thumbnails with their buttons in the current container."""

    def __init__(self, gui: Any, session: Any, view: View) -> None:
        self._session, self._view = session, view
        rig, several = view.rig, view.rig.several
        self._strip = gui.add_html("", visible=False)
        self._cameras = gui.add_button_group(
            "Camera", rig.titles if several else ("camera",), visible=several
        )
        self._stops = stops(len(rig))
        self._drive = gui.add_button_group(
            "Go to", tuple(_stop(m) for m in self._stops) or ("-",), visible=False
        )
        self._cameras.on_click(view.guarded(self._camera_chosen))
        self._drive.on_click(view.guarded(self._stop_chosen))

    def _camera_chosen(self, event: Any) -> None:
        self._view.look_through(self._view.rig.titles.index(event.target.value))

    def _stop_chosen(self, event: Any) -> None:
        moment = self._stops[[_stop(m) for m in self._stops].index(event.target.value)]
        self._view.set(frame=self._view.frame_at(moment), playing=False, follow=True)

    def update(self) -> None:
        """Show the photos of the moment the view rests at."""
        state = self._view.get()
        shown = state.filmstrip != "off" and self._view.num_frames > 0
        change(self._drive, visible=shown and state.filmstrip == "drive")
        change(self._strip, visible=shown)
        if shown and not state.playing:
            change(self._strip, content=self._html(state))

    def _html(self, state: ViewState) -> str:
        capture = self._session.store.latest().scene.capture
        if capture is None:
            return ""
        view, rig = self._view, self._view.rig
        if state.filmstrip == "cameras":
            frames = [rig.table[view.moment][camera] for camera in range(len(rig.names))]
            names = list(rig.titles)
        else:
            frames = [view.frame_at(moment) for moment in self._stops]
            names = [_stop(moment) for moment in self._stops]
        cells = [
            _cell(name, _photo(capture, frame), frame == state.frame)
            for name, frame in zip(names, frames, strict=True)
        ]
        return f'<div style="display:flex;gap:5px;padding:2px 12px 4px">{"".join(cells)}</div>'


def stops(moments: int) -> list[int]:
    """Moments spread evenly along a drive, the first and the last among them."""
    count = min(STOPS, moments)
    return [round(i * (moments - 1) / max(count - 1, 1)) for i in range(count)]


def _stop(moment: int) -> str:
    return f"#{moment}"


def _photo(capture: Any, frame: int | None) -> str:
    if frame is None or not 0 <= frame < len(capture.frames):
        return ""
    return small_jpeg(capture.frames[frame], WIDTH)


def _cell(name: str, data: str, here: bool) -> str:
    """One thumbnail; without a photo an empty frame of the same height."""
    edge = "#409cff" if here else "transparent"
    shown = html.escape(name, quote=True)
    picture = (
        f'<img src="data:image/jpeg;base64,{data}" style="height:{HEIGHT}px;width:100%;'
        'object-fit:cover;display:block"/>'
        if data
        else f'<div style="height:{HEIGHT}px;background:#2a2f3a"></div>'
    )
    return (
        f'<div data-press="{shown}" onclick="{_PRESS}" title="{shown}" '
        f'style="cursor:pointer;border:2px solid {edge};border-radius:5px;overflow:hidden;'
        f"flex:1 1 0;min-width:0;max-width:{MAX_WIDTH}px;font:11px/1.4 system-ui,sans-serif;"
        'color:#c9cfda;text-align:center;white-space:nowrap;text-overflow:ellipsis">'
        f"{picture}{shown}</div>"
    )
