"""The less usual choices of a repair: strength, seed, and which recorded frames to look at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.studio.view_state import View

AUTOMATIC = "auto"


class RepairOptions:
    """A closed folder "More" in the current container."""

    def __init__(self, gui: Any, view: View, changed: Any) -> None:
        with gui.add_folder("More", expand_by_default=False):
            self._strength = gui.add_slider(
                "Strength",
                0.0,
                1.0,
                0.05,
                1.0,
                hint="Share of the repair that shows where it may.",
            )
            self._seed = gui.add_number(
                "Seed", 0, min=0, max=2**31 - 1, step=1, hint="Of engines that draw at random."
            )
            self._references = gui.add_text(
                "References",
                AUTOMATIC,
                hint="Recorded frames to look at, such as 3, 8, 12; auto takes the best ones around each view.",
            )
        self._view = view
        self._references.on_update(view.guarded(lambda _event: changed()))

    @property
    def problem(self) -> str:
        """What is wrong with the references; empty when nothing is."""
        last = self._view.num_frames - 1
        for word in self._words():
            if not word.isdigit() or int(word) > last:
                return f"References: {word!r} is no recorded frame; give numbers from 0 to {last}, or auto."
        return ""

    def apply(self, stage: Stage) -> Stage:
        """The stage with these choices."""
        chosen = () if self.problem else tuple(int(word) for word in self._words())
        return replace(
            stage,
            strength=float(self._strength.value),
            seed=int(self._seed.value),
            references=chosen,
        )

    def _words(self) -> list[str]:
        words = self._references.value.replace(",", " ").split()
        return [word for word in words if word != AUTOMATIC]
