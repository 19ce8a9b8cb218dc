"""Every key of the studio, in one table: what it does, and how it is listed by H.

Letters W A S D Q E and the arrows belong to flying, so no command takes them.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from faithfusion_studio.cameras import Segment
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.session.commands import Redo, RepairSegment, Undo
from faithfusion_studio.studio.photo_section import no_photo
from faithfusion_studio.studio.view_state import LAYERS, View

STEP = 0.25
BIG_STEP = 1.0
"""Steps of the lateral offset, m."""


class KeyPressError(StudioError):
    """A key that can do nothing now."""


@dataclass(frozen=True)
class Key:
    """One keyboard command."""

    shown: str
    """As people write it."""
    label: str
    hotkey: str
    """viser's name of the key."""
    run: Callable[[], None]
    modifier: str | None = None
    listed: bool = True
    """False for a second way to do the same."""


def keys(session: Any, view: View, go_to_path: Callable[[], None]) -> list[Key]:
    """All commands of one client."""

    def shift(metres: float) -> Callable[[], None]:
        return lambda: view.set(offset=snapped(view.get().offset + metres), follow=True)

    def frame(step: int) -> Callable[[], None]:
        return lambda: view.set(frame=view.frame_at(view.moment + step), playing=False, follow=True)

    def toggle(field: str) -> Callable[[], None]:
        return lambda: view.set(**{field: not getattr(view.get(), field)})

    def layer(name: str) -> Callable[[], None]:
        return lambda: view.set(layer=name)

    def overlay() -> None:
        view.set(layer="rgb" if view.get().layer == "overlay" else "overlay")

    def wipe() -> None:
        order = {"off": "wipe", "wipe": "side", "side": "difference", "difference": "off"}
        view.set(compare=order[view.get().compare])

    def next_camera() -> None:
        view.look_through(view.rig.camera_of(view.get().frame) + 1)

    def photo() -> None:
        state = view.get()
        if state.compare != "off" and state.compare_with == "photo":
            view.set(compare="off")
            return
        reason = no_photo(session.store.latest().scene, state)
        if reason:
            raise KeyPressError(reason)
        view.set(layer="rgb", compare="wipe", compare_with="photo")

    def flicker() -> None:
        state = view.get()
        shown = state.compare == "wipe" and state.compare_with == "repaired" and state.wipe == 0.0
        view.set(layer="rgb", compare="wipe", compare_with="repaired", wipe=1.0 if shown else 0.0)

    def repair() -> None:
        state = view.get()
        if state.offset == 0.0:
            raise KeyPressError("the recorded lane needs no repair; move the path sideways first.")
        stage = Stage(
            Segment(state.frame, state.frame + 1), state.offset, eig_threshold=state.threshold[1]
        )
        session.submit(RepairSegment(stage, preview=True))
        view.set(compare="wipe", compare_with="repaired", layer="rgb")

    table = [
        Key(str(i + 1), f"Layer: {title}", str(i + 1), layer(name), listed=False)
        for i, (name, title) in enumerate(LAYERS.items())
    ]
    table += [
        Key("G", "EIG over colour on or off", "G", overlay),
        Key("M", "Tint UCR red on or off", "M", toggle("tint")),
        Key("X", "Before or after the last fusion", "X", toggle("before")),
        Key("B", "Flicker: repaired frame or rendering", "B", flicker),
        Key("V", "Comparison: off, wipe, side by side, difference", "V", wipe),
        Key("F", "Recorded photo beside the rendering, on or off", "F", photo),
        Key("N", "Next camera of the rig", "N", next_camera, listed=view.rig.several),
        Key(", .", "One frame back or on", ",", frame(-1)),
        Key(".", "One frame on", ".", frame(1), listed=False),
        Key("[ ]", f"{STEP} m to the left or right", "[", shift(STEP)),
        Key("]", "To the right", "]", shift(-STEP), listed=False),
        Key("{ }", f"{BIG_STEP:.0f} m to the left or right", "{", shift(BIG_STEP), "shift"),
        Key("}", "Far to the right", "}", shift(-BIG_STEP), "shift", listed=False),
        Key("J L", "The same on keyboards without brackets", "J", shift(STEP)),
        Key("L", "To the right (keyboards without brackets)", "L", shift(-STEP), listed=False),
        Key("0", "Back to the recorded lane", "0", lambda: view.set(offset=0.0, follow=True)),
        Key("Space", "Play or stop", "space", toggle("playing")),
        Key("C", "Back to the shown path from free flight", "C", go_to_path),
        Key("P", "Paths on or off", "P", toggle("show_paths")),
        Key("R", "Repair this frame (preview)", "R", repair),
        Key("Ctrl+Z", "Undo the last edit", "Z", lambda: session.submit(Undo()), "cmd/ctrl"),
        Key(
            "Ctrl+Shift+Z",
            "Redo",
            "Z",
            lambda: session.submit(Redo()),
            "cmd/ctrl+shift",
        ),
    ]
    return table


def snapped(offset: float, *, width: float = 0.12) -> float:
    """The lateral offset, with the recorded lane catching values near it, m."""
    return 0.0 if abs(offset) < width else round(offset / 0.05) * 0.05


def register(gui: Any, view: View, table: list[Key]) -> None:
    """Make the keys work in one browser and appear in its command palette (Ctrl+K)."""
    for key in table:
        command = gui.add_command(key.label, hotkey=key.hotkey, modifier=key.modifier)
        command.on_trigger(view.guarded(_ignoring_event(key.run)))
    everything = [*table, Key("H", "This list", "H", lambda: None)]
    command = gui.add_command("List of all keys", hotkey="H")
    command.on_trigger(view.guarded(lambda _event: show_keys(gui, everything)))


PASS_ON = """
window.addEventListener("keydown", (event) => {
  const at = event.target;
  const writes = !(at instanceof HTMLInputElement) || !(at.type === "checkbox" || at.readOnly);
  if (writes || event.key.length !== 1 || event.key === " ") return;
  event.preventDefault();
  event.stopImmediatePropagation();
  const { key, code, ctrlKey, metaKey, shiftKey, altKey } = event;
  document.body.dispatchEvent(new KeyboardEvent("keydown", {
    key, code, ctrlKey, metaKey, shiftKey, altKey, bubbles: true, cancelable: true,
  }));
}, true);
"""
"""The page ignores keys while a control has the focus. Checkboxes and menus take no letters, and what was clicked
keeps the focus, so letters go on from them to the page; Space, Enter and the arrows stay theirs."""


def pass_on(gui: Any) -> None:
    """Keys also count in one browser after a click on a checkbox or a menu."""
    from viser._messages import RunJavascriptMessage

    gui._websock_interface.queue_message(RunJavascriptMessage(PASS_ON))


def _ignoring_event(run: Callable[[], None]) -> Callable[[Any], None]:
    return lambda _event: run()


FLIGHT = (
    ("W A S D", "Fly forward, left, back, right"),
    ("Q E", "Down, up"),
    ("Arrows", "Turn"),
    ("Mouse", "Left: orbit, right: shift, wheel: nearer"),
    ("Click", "Select an object, or a vehicle by its box"),
    ("Shift+click", "Values at a pixel"),
    ("Ctrl+drag", "Select splats (tab Objects)"),
    ("Ctrl+K", "Search commands"),
)


def show_keys(gui: Any, table: list[Key]) -> None:
    """A window with all keys, in small rows so that it fits a small screen."""
    rows = [(f"1 to {len(LAYERS)}", "Layer, in the order of the menu")]
    rows += [(key.shown, key.label) for key in table if key.listed]
    with gui.add_modal("Keys") as modal:
        gui.add_html(_rows([*rows, *FLIGHT]))
        close = gui.add_button("Close")
        close.on_click(lambda _event: modal.close())


def _rows(rows: list[tuple[str, str]]) -> str:
    items = "".join(
        f'<b style="white-space:nowrap">{html.escape(shown)}</b><span>{html.escape(label)}</span>'
        for shown, label in rows
    )
    return (
        '<div style="display:grid;grid-template-columns:max-content 1fr;gap:1px 18px;'
        f'padding:0 12px 10px;font-size:12.5px;line-height:1.5;">{items}</div>'
    )
