"""Fill empty: limits with a live mask, points to look at in 3D, then splats as one edit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from faithfusion_studio.fusion.fill import FILL
from faithfusion_studio.fusion.spawn import EmptyRule, empty_pixels
from faithfusion_studio.session.commands import FillEmpty
from faithfusion_studio.session.state import SessionState
from faithfusion_studio.studio.frame_images import masked_image
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.widgets import change, count, note, set_button


class FillSection:
    """The controls in the current container; shown once there are repaired frames."""

    def __init__(self, gui: Any, session: Any, view: View) -> None:
        self._session = session
        self._frames: tuple[Any, ...] = ()
        self._drawn: tuple[Any, ...] = ()
        self._folder = gui.add_folder("Fill empty", expand_by_default=False, visible=False)
        with self._folder:
            self._about = gui.add_html("")
            self._transparent = gui.add_slider(
                "Empty below opacity", 0.0, 1.0, 0.05, FILL.transparent
            )
            self._apart = gui.add_slider(
                "Or depth off by", 0.02, 0.5, 0.02, FILL.apart, hint="Share of the depth."
            )
            self._mask = gui.add_image(np.zeros((8, 8, 3), np.uint8), jpeg_quality=80)
            self._preview = gui.add_button(
                "Show the new points", color="gray", hint="Once more hides them."
            )
            self._add = gui.add_button("Add the splats", color="gray")
        for slider in (self._transparent, self._apart):
            slider.on_update(view.guarded(lambda _event: self._draw()))
        self._preview.on_click(view.guarded(lambda _event: self._ask(preview=True)))
        self._add.on_click(view.guarded(lambda _event: self._ask(preview=False)))

    @property
    def rule(self) -> EmptyRule:
        """The limits as they are set."""
        return replace(
            FILL, transparent=float(self._transparent.value), apart=float(self._apart.value)
        )

    def _ask(self, preview: bool) -> None:
        self._session.submit(FillEmpty(self.rule, preview=preview))

    def update(self, state: SessionState) -> None:
        """Show what the session has now."""
        self._frames = tuple(frame for frame in state.frames if frame.accepted)
        change(self._folder, visible=bool(self._frames))
        reason = "" if state.job is None else f"{state.job.label} is running."
        set_button(self._preview, reason)
        set_button(self._add, reason, highlight=state.filling is not None)
        found = "Splats where the repaired frames show surfaces and the scene has nothing."
        if state.filling is not None:
            found = f"{count(len(state.filling))} points are shown in magenta; add them, change the limits, or press again to hide them."
        change(self._about, content=note(found))
        self._draw()

    def _draw(self) -> None:
        """The middle frame with what is empty in it."""
        if not self._frames:
            return
        frame = self._frames[len(self._frames) // 2]
        wanted = (frame, self.rule)
        if self._drawn and self._drawn[0] is frame and self._drawn[1] == wanted[1]:
            return
        self._drawn = wanted
        self._mask.image = masked_image(frame, empty_pixels(frame, self.rule))
