"""Which engine repairs: a list, what the chosen one costs, and the licence it may ask for."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from faithfusion_studio.session.engines import RepairEngine
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.widgets import change, duration, raw_note


class EngineChoice:
    """Dropdown, description and the button that accepts a licence, in the current container.

    Args:
        gui: Of the client.
        session: Which engines there are.
        view: Whose window is told of errors.
        changed: Called when another engine was chosen, or the chosen one may be used now.
    """

    def __init__(self, gui: Any, session: Any, view: View, changed: Callable[[], None]) -> None:
        self._session, self._changed = session, changed
        self._engines = _by_label(session)
        self._dropdown = gui.add_dropdown("Engine", tuple(self._engines))
        self._about = gui.add_html("")
        self._accept = gui.add_button("I accept this licence", visible=False, color="orange")
        self._dropdown.on_update(view.guarded(lambda _event: changed()))
        self._accept.on_click(view.guarded(lambda _event: self._accepted()))

    @property
    def engine(self) -> RepairEngine:
        """The chosen one."""
        return self._engines[self._dropdown.value]

    def show(self, count: int) -> None:
        """Say what the chosen engine does, and what it costs for so many frames."""
        change(self._accept, visible=bool(self.engine.terms))
        change(self._about, content=raw_note(_describe(self.engine, count)))

    def _accepted(self) -> None:
        name = self.engine.name
        self._session.accept_licence(name)
        self._engines = _by_label(self._session)
        self._dropdown.options = tuple(self._engines)
        self._dropdown.value = next(k for k, e in self._engines.items() if e.name == name)
        self._changed()


def _by_label(session: Any) -> dict[str, RepairEngine]:
    return {engine.label: engine for engine in session.repair_engines()}


def _describe(engine: RepairEngine, count: int) -> str:
    parts = [html.escape(engine.description)]
    if engine.terms:
        parts.append(
            f"<b>Before it is used, accept the licence of its weights:</b> {html.escape(engine.terms)} It is "
            "asked once on this machine, and what is made with them says so."
        )
    elif engine.licence:
        parts.append(f"Licence: {html.escape(engine.licence)}.")
    if engine.seconds_per_frame is not None:
        each = max(engine.seconds_per_frame, 0.1)
        total = duration(max(each * count, 1.0))
        parts.append(f"About {each:.1f} s a frame here, <b>{total}</b> for the segment.")
    return " ".join(parts)
