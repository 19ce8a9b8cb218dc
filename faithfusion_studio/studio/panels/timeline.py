"""Where along and beside the drive: play, frame, segment, lateral offset and the status line."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from faithfusion_studio.rig import Rig
from faithfusion_studio.studio.filmstrip import Filmstrip
from faithfusion_studio.studio.keys import snapped
from faithfusion_studio.studio.status import status_text
from faithfusion_studio.studio.thumbnail import thumbnail_html
from faithfusion_studio.studio.view_state import MAX_OFFSET, View, ViewState

FIRST, BACK, PLAY, ON, LAST = "|<", "< Frame", "Play / stop", "Frame >", ">|"
WIDTH = 700
"""Of the floating panel, CSS pixels."""
LEFT_OF_PHOTO = 12 + WIDTH + 12
PATH, LANE = "To the path", "Offset 0"


def add_timeline_panel(
    gui: Any, session: Any, view: View, go_to_path: Callable[[], None]
) -> Callable[[Any], None]:
    """Build the timeline in the current container; returns what shows a new session state."""
    state, last = view.get(), max(len(view.rig) - 1, 1)
    recorded = view.num_frames > 0
    caption = gui.add_html(_caption(state, view, session.state))
    strip = Filmstrip(gui, session, view)
    transport = gui.add_button_group(
        "Drive", (FIRST, BACK, PLAY, ON, LAST, PATH, LANE), visible=recorded
    )
    frame = gui.add_slider("Frame", 0, last, 1, view.moment, visible=recorded)
    segment = gui.add_multi_slider(
        "Segment",  # no hint here and at the offset: it would cover the sliders beside them
        0,
        last + 1,
        1,
        view.rig.span(state.segment),
        min_range=1,
        visible=recorded,
    )
    offset = gui.add_slider(
        "Offset (+ left)",
        -MAX_OFFSET,
        MAX_OFFSET,
        0.05,
        state.offset,
        marks=tuple((float(m), f"{m:+d} m" if m else "recorded lane") for m in range(-6, 7, 3)),
        visible=recorded,
    )
    photo = gui.add_html("")

    @transport.on_click
    @view.guarded
    def _(event: Any) -> None:
        _transport(event.target.value, view, go_to_path)

    @frame.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(frame=view.frame_at(int(frame.value)), playing=False, follow=True)

    @segment.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(segment=view.rig.segment(int(segment.value[0]), int(segment.value[1])))

    @offset.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(offset=snapped(float(offset.value)), follow=True)

    def show_text() -> None:
        text = _caption(view.get(), view, session.state)
        if caption.content != text:
            caption.content = text

    def show_view(state: ViewState) -> None:
        _assign(frame, view.rig.moment_of(state.frame))
        _assign(segment, view.rig.span(state.segment))
        _assign(offset, state.offset)
        show_text()

    view.subscribe(show_view)
    view.on_measured(lambda _measurement: show_text())

    def update(_state: Any) -> None:
        show_text()
        strip.update()
        shown = view.get().frame
        text = thumbnail_html(
            session.store.latest().scene, shown, LEFT_OF_PHOTO, view.rig.name_of(shown)
        )
        if photo.content != text:
            photo.content = text

    return update


def _transport(button: str, view: View, go_to_path: Callable[[], None]) -> None:
    state, now = view.get(), view.moment
    if button == PLAY:
        view.set(playing=not state.playing, follow=True)
    elif button == PATH:
        go_to_path()
    elif button == LANE:
        view.set(offset=0.0, follow=True)
    else:
        targets = {FIRST: 0, BACK: now - 1, ON: now + 1, LAST: len(view.rig) - 1}
        view.set(frame=view.frame_at(targets[button]), playing=False, follow=True)


def _assign(handle: Any, value: Any) -> None:
    """Set a widget only where it differs; the callback it fires has no client and returns at once."""
    if handle.value != value:
        handle.value = value


def _caption(state: ViewState, view: View, session_state: Any) -> str:
    """One row: where the picture is on the left, how it is drawn on the right."""
    return (
        '<div style="display:flex;justify-content:space-between;gap:14px;white-space:nowrap;'
        'padding:0 12px 2px;font-size:13px;color:#e4e8ef">'
        f"<span>{_place(state, view.rig)}</span>"
        '<span style="font-size:11px;color:#9aa4b5;padding-top:2px;overflow:hidden;'
        'text-overflow:ellipsis">'
        f"{html.escape(status_text(session_state, view.measurement))}</span></div>"
    )


def _place(state: ViewState, rig: Rig) -> str:
    if len(rig) == 0:
        return "No recording in this scene: fly with WASD and the mouse."
    side = "left" if state.offset > 0 else "right"
    lane = "recorded lane" if state.offset == 0 else f"{abs(state.offset):.2f} m {side}"
    now = rig.moment_of(state.frame)
    camera = html.escape(rig.titles[rig.camera_of(state.frame)])
    named = f" · <b>{camera}</b>" if rig.several else ""
    where = f"<b>Frame {now}</b> / {len(rig) - 1}{named} · <b>{lane}</b>"
    if not state.follow:
        where = f"<b>Free flight</b>, time of frame {now}"
    first, stop = rig.span(state.segment)
    segment = f'<span style="color:#ff9620">segment {first}-{stop - 1}</span>'
    return f"{where}{' · playing' if state.playing else ''} · {segment}"
