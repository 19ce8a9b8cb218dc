"""The stages of a plan of fusion in the side panel: choose a plan, look at its stages, change them one by one."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from faithfusion_studio.fusion.presets import PRESETS, PlanError, progressive_stages
from faithfusion_studio.fusion.schedule import FusionConfig, Stage, Weighting
from faithfusion_studio.session.state import SessionState
from faithfusion_studio.studio.view_state import View, ViewState
from faithfusion_studio.studio.widgets import change, note, raw_note

WEIGHTINGS: dict[str, Weighting] = {
    "EIG (as the paper)": "eig",
    "Four tiers (as the release)": "released",
    "Nats up to a cap": "logdet",
    "Uniform": "uniform",
}
STRIP = "The repaired frames, once"
PLANS: dict[str, str] = {
    "default": "Three metres at a time",
    "progressive": "Metre by metre",
    "jump": "At once",
    "faithfusion": "FaithFusion (as released)",
    "difix3d": "Difix3D (as released)",
    "cyclic": "Cyclic (GenFusion)",
}
"""Presets by their names for people."""
LONGEST = 1500
"""Steps to which a published plan is shortened when it is chosen, for a CPU."""


class StageList:
    """The plan that would be carried out, in the current container.

    Args:
        gui: Where the widgets go.
        engines: Names of the repair engines by their titles.
        view: Its segment, offset and threshold are what a plan starts from.
        changed: Called when the plan is another one.
    """

    def __init__(
        self, gui: Any, engines: dict[str, str], view: View, changed: Callable[[], None]
    ) -> None:
        self._view, self._changed, self._engines = view, changed, engines
        self._titles = {title: name for name, title in PLANS.items()}
        self.stages: tuple[Stage, ...] = ()
        """Empty where only the frames in the strip are learned, or where there can be no plan yet."""
        self.config = FusionConfig()
        self._edited = False
        self._state: tuple[tuple[Stage, ...], int, bool] = ((), 0, False)
        self._choice = gui.add_dropdown(
            "Plan",
            (STRIP, *self._titles),
            hint="One stage from the frames in the strip, or a whole plan that repairs anew for every stage.",
        )
        self._table = gui.add_html("", visible=False)
        self._edit = gui.add_folder("Change the stages", expand_by_default=False, visible=False)
        with self._edit:
            self._index = gui.add_slider("Stage", 1, 2, 1, 1)
            self._offset = gui.add_number("Offset, m", 0.0, min=-6.0, max=6.0, step=0.25)
            self._steps = gui.add_number("Stage steps", 500, min=1, max=100_000, step=10)
            self._weighting = gui.add_dropdown("Stage weighting", tuple(WEIGHTINGS))
            self._engine = gui.add_dropdown("Stage engine", tuple(engines))
            self._gated = gui.add_checkbox("Only UCR may change", True)
            self._rows = gui.add_button_group("Stages", ("Add", "Remove"))
        self._choice.on_update(view.guarded(lambda _event: self._choose()))
        self._index.on_update(view.guarded(lambda _event: self._show_stage()))
        for widget in (self._offset, self._steps, self._weighting, self._engine, self._gated):
            widget.on_update(view.guarded(lambda _event: self._take_stage()))
        self._rows.on_click(view.guarded(lambda _event: self._add_or_remove()))
        view.subscribe(self._follow)

    @property
    def is_plan(self) -> bool:
        """Whether a whole plan is chosen instead of the frames in the strip."""
        return self._choice.value != STRIP

    @property
    def problem(self) -> str:
        """Why there is no plan although one is chosen; empty when there is one."""
        if not self.is_plan or self.stages:
            return ""
        return "Fuse: move the path sideways first (offset slider in the timeline)."

    def update(self, state: SessionState) -> None:
        """Mark what is done and what is in progress."""
        fusing = state.job is not None and state.job.kind == "fusion"
        shown = (state.plan, state.plan_done, fusing)
        if shown != self._state:
            self._state = shown
            self._draw()

    # ------------------------------------------------------------------------------------ the plan

    def _choose(self) -> None:
        self._edited = False
        self._make(self._view.get())

    def _follow(self, shown: ViewState) -> None:
        """A plan that was not changed by hand goes where the view goes."""
        if self.is_plan and not self._edited:
            self._make(shown)

    def _make(self, shown: ViewState) -> None:
        self.stages = ()
        if self.is_plan and shown.offset:
            config = PRESETS[self._titles[self._choice.value]][1]
            config = replace(config, offset=shown.offset, eig_threshold=shown.threshold[1])
            segment = (shown.segment.start, shown.segment.stop)
            steps = sum(stage.steps for stage in progressive_stages(config, segment))
            self.config = replace(config, pace=min(1.0, LONGEST / steps))
            self.stages = progressive_stages(self.config, segment)
        self._show_stage()
        self._draw()
        self._changed()

    def _take_stage(self) -> None:
        """The widgets' values become those of the selected stage."""
        if not self.stages:
            return
        index = self._selected()
        stage = replace(
            self.stages[index],
            lateral_offset=float(self._offset.value),
            steps=int(self._steps.value),
            weighting=WEIGHTINGS[self._weighting.value],
            engine=self._engines[self._engine.value],
            gated=bool(self._gated.value),
        )
        self._replace((*self.stages[:index], stage, *self.stages[index + 1 :]))

    def _add_or_remove(self) -> None:
        if not self.stages:
            return
        index = self._selected()
        if self._rows.value == "Add":
            again = replace(self.stages[index], repair=True)
            self._replace((*self.stages[: index + 1], again, *self.stages[index + 1 :]))
            return
        if len(self.stages) == 1:
            raise PlanError("a plan has at least one stage; choose another plan instead.")
        rest = (*self.stages[:index], *self.stages[index + 1 :])
        # A stage that goes on from the frames of the one that was removed has to repair its own.
        if not rest[0].repair or (index < len(rest) and not rest[index].repair):
            at = 0 if not rest[0].repair else index
            rest = (*rest[:at], replace(rest[at], repair=True), *rest[at + 1 :])
        self._replace(rest)

    def _replace(self, stages: tuple[Stage, ...]) -> None:
        self.stages, self._edited = stages, True
        self._show_stage()
        self._draw()
        self._changed()

    # ------------------------------------------------------------------------------------ widgets

    def _selected(self) -> int:
        return min(max(int(self._index.value) - 1, 0), len(self.stages) - 1)

    def _show_stage(self) -> None:
        change(self._edit, visible=bool(self.stages))
        change(self._table, visible=self.is_plan)
        if not self.stages:
            return
        count = len(self.stages)
        change(self._index, max=max(count, 2), visible=count > 1)
        change(self._index, value=min(int(self._index.value), count))
        stage = self.stages[self._selected()]
        change(self._offset, value=stage.lateral_offset)
        change(self._steps, value=stage.steps)
        names = {name: title for title, name in WEIGHTINGS.items()}
        change(self._weighting, value=names[stage.weighting])
        titles = {name: title for title, name in self._engines.items()}
        change(self._engine, value=titles.get(stage.engine, self._engine.value))
        change(self._gated, value=stage.gated)

    def _draw(self) -> None:
        if not self.is_plan:
            change(self._table, content="")
            return
        if not self.stages:
            change(self._table, content=note(self.problem))
            return
        sentence = html.escape(PRESETS[self._titles[self._choice.value]][0])
        rows = "".join(self._row(i, stage) for i, stage in enumerate(self.stages))
        total = sum(stage.steps for stage in self.stages)
        table = f'<table style="width:100%;border-spacing:0;font-size:12px">{rows}</table>'
        text = f"{sentence}<br>{table}{len(self.stages)} stage(s), {total} steps."
        change(self._table, content=raw_note(text))

    def _row(self, index: int, stage: Stage) -> str:
        plan, done, fusing = self._state
        same = plan == self.stages
        mark = "✓" if same and index < done else "▶" if same and fusing and index == done else ""
        how = stage.weighting if stage.gated else f"{stage.weighting}, ungated"
        engine = stage.engine if stage.repair else "same frames"
        cells = (
            mark,
            str(index + 1),
            stage.label,
            f"{stage.steps} steps",
            html.escape(engine),
            how,
        )
        inner = "".join(f'<td style="padding:0 4px">{cell}</td>' for cell in cells)
        return f"<tr>{inner}</tr>"
