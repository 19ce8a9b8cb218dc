"""Which objects drive here, and what is done to them; vehicles to annotate; single splats to delete."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from faithfusion_studio.session.commands import MarkNode, Undo
from faithfusion_studio.session.state import NodeInfo, SessionState
from faithfusion_studio.studio.object_tools import ObjectTools
from faithfusion_studio.studio.splat_tools import SplatTools
from faithfusion_studio.studio.vehicle_tools import VehicleTools
from faithfusion_studio.studio.view_state import View, ViewState
from faithfusion_studio.studio.widgets import PLAIN, change, count, note, raw_note

SHOWN = 8
"""Objects with a button of their own; all are in the menu below."""
NONE = "none"


def add_objects_panel(gui: Any, session: Any, view: View) -> Callable[[SessionState], None]:
    """Build the tab Objects in the current container; returns what shows a new session state."""
    about = gui.add_html("")
    rows = _Rows(gui, view)
    boxes = gui.add_checkbox("Outline all", False, hint="A box around every object.")
    selected = gui.add_dropdown("Selected", (NONE,), hint="Or click on it in the picture.")
    folder = gui.add_folder("Selected object", visible=False)
    with folder:
        facts = gui.add_html("")
        visible = gui.add_checkbox(
            "Visible", True, hint="Hidden objects count nowhere, EIG included."
        )
        locked = gui.add_checkbox("Locked", False, hint="Locked objects refuse every edit.")
        color = gui.add_rgb("Colour", (170, 180, 195), hint="Of its outline and its row above.")
        tools = ObjectTools(gui, session, view)
    more = (VehicleTools(gui, session, view), SplatTools(gui, session, view))
    undo = gui.add_button("Undo", color=PLAIN)

    def mark(**changes: Any) -> None:
        session.submit(MarkNode(view.get().selected, **changes))

    boxes.on_update(view.guarded(lambda _e: view.set(show_boxes=boxes.value)))
    visible.on_update(view.guarded(lambda _e: mark(hidden=not visible.value)))
    locked.on_update(view.guarded(lambda _e: mark(locked=locked.value)))
    color.on_update(view.guarded(lambda _e: mark(color=tuple(c / 255 for c in color.value))))
    undo.on_click(view.guarded(lambda _e: session.submit(Undo())))

    @selected.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(selected="" if selected.value == NONE else selected.value)

    def show_selected(state: ViewState) -> None:
        nodes = session.state.nodes
        node = next((one for one in nodes if one.name == state.selected), None)
        change(folder, visible=node is not None)
        change(selected, value=NONE if node is None else node.name)
        if node is not None:
            change(facts, content=raw_note(_facts(node)))
            change(visible, value=not node.hidden)
            change(locked, value=node.locked)
            if node.color is not None:
                change(color, value=tuple(round(255 * c) for c in node.color))
            tools.show(node)
        rows.show(nodes, state.selected)

    def update(state: SessionState) -> None:
        change(about, content=note(_about(state.nodes)))
        names = (NONE, *(one.name for one in state.nodes))
        if selected.options != names:
            selected.options = names
        for widget in (selected, boxes):
            change(widget, visible=bool(state.nodes))
        if view.get().selected not in names:
            view.set(selected="")
        show_selected(view.get())
        for part in more:
            part.show(state)
        words = "Undo" if state.undo_label is None else f"Undo: {state.undo_label}"
        change(undo, label=words, disabled=state.undo_label is None or state.job is not None)

    view.subscribe(show_selected)
    return update


class _Rows:
    """One button per object; a click selects it."""

    def __init__(self, gui: Any, view: View) -> None:
        self._folder = gui.add_folder("Objects", visible=False)
        self._gui, self._view = gui, view
        self._buttons: list[Any] = []
        self._names: tuple[str, ...] = ()

    def show(self, nodes: tuple[NodeInfo, ...], selected: str) -> None:
        """Show the first objects and whether each is seen, locked and selected."""
        shown = nodes[:SHOWN]
        self._names = tuple(one.name for one in shown)
        change(self._folder, visible=bool(shown))
        while len(self._buttons) > len(shown):
            self._buttons.pop().remove()
        with self._folder:
            for index in range(len(self._buttons), len(shown)):
                self._buttons.append(self._button(index))
        for button, node in zip(self._buttons, shown, strict=True):
            mark = "\u25b8 " if node.name == selected else ""
            words = [f"{mark}{node.name}", count(node.num_gaussians)]
            words += ["locked"] * node.locked + ["hidden"] * node.hidden
            tag = PLAIN if node.color is None else tuple(round(255 * c) for c in node.color)
            icon = "eye-off" if node.hidden else "lock" if node.locked else "eye"
            change(button, label=" · ".join(words), color=tag, icon=icon)

    def _button(self, index: int) -> Any:
        button = self._gui.add_button("-", color=PLAIN)

        @button.on_click
        @self._view.guarded
        def _(_event: Any) -> None:
            name = self._names[index]
            self._view.set(selected="" if self._view.get().selected == name else name)

        return button


def _about(nodes: tuple[NodeInfo, ...]) -> str:
    if not nodes:
        return "This scene has no moving objects; single splats can be selected and deleted below."
    more = f" The first {SHOWN} are listed; the menu has all." if len(nodes) > SHOWN else ""
    return f"{len(nodes)} moving objects: click one here or in the picture.{more}"


def _facts(node: NodeInfo) -> str:
    return html.escape(f"{node.category}, {count(node.num_gaussians)} splats")
