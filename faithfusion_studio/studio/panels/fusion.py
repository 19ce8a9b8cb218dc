"""Make the splats learn the repaired frames, without harm: start, watch, pause, stop, undo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from faithfusion_studio.session.commands import Pause, Resume, StartFusion, StepOnce, Stop, Undo
from faithfusion_studio.session.state import SessionState
from faithfusion_studio.studio.curves import Curves
from faithfusion_studio.studio.stage_list import WEIGHTINGS, StageList
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.widgets import (
    JobBar,
    change,
    count,
    next_step,
    note,
    raw_note,
    set_button,
)


def add_fusion_panel(gui: Any, session: Any, view: View) -> Callable[[SessionState], None]:
    """Build the tab Fuse in the current container; returns what shows a new session state."""
    what = gui.add_html("")
    engines = {engine.title: engine.name for engine in session.repair_engines()}
    plan = StageList(gui, engines, view, lambda: show_choice())  # noqa: PLW0108 - not known yet
    steps = gui.add_slider(
        "Steps",
        50,
        2000,
        50,
        500,
        hint="Optimiser steps. More learns the repaired frames better and takes longer.",
    )
    weighting = gui.add_dropdown(
        "Weighting",
        tuple(WEIGHTINGS),
        hint="How much each repaired pixel is believed; trusted pixels are hardly moved with EIG.",
    )
    start = gui.add_button("Start fusion")
    why = gui.add_html("")
    bar = JobBar(gui)
    control = gui.add_button_group("Job", ("Pause", "Step", "Stop"), visible=False)
    counts = gui.add_html("")
    curves = Curves(gui)
    harm = gui.add_html("")
    undo = gui.add_button("Undo", color="gray")

    @start.on_click
    @view.guarded
    def _(_event: Any) -> None:
        if plan.is_plan:
            session.submit(StartFusion(stages=plan.stages, config=plan.config))
        else:
            session.submit(StartFusion(int(steps.value), WEIGHTINGS[weighting.value]))

    @control.on_click
    @view.guarded
    def _(_event: Any) -> None:
        commands = {"Pause": Pause, "Resume": Resume, "Step": StepOnce, "Stop": Stop}
        session.submit(commands[control.value]())

    @undo.on_click
    @view.guarded
    def _(_event: Any) -> None:
        session.submit(Undo())

    def show_choice() -> None:
        change(steps, visible=not plan.is_plan)
        change(weighting, visible=not plan.is_plan)
        show_buttons(session.state)

    def show_buttons(state: SessionState) -> str:
        reason = _reason(state, plan)
        set_button(start, reason, highlight=next_step(state) == "fuse")
        change(what, content=note("" if plan.is_plan else _describe(state)))
        return reason

    def update(state: SessionState) -> None:
        reason = show_buttons(state)
        plan.update(state)
        fusing = state.job is not None and state.job.kind in ("fusion", "fisher")
        change(why, content=note(reason if not fusing else "", warn=True))
        bar.show(state.job if fusing else None)
        paused = state.job is not None and state.job.paused
        options = ("Resume" if paused else "Pause", "Step", "Stop")
        change(control, visible=fusing, options=options)
        change(counts, content=raw_note(_counts(state)))
        curves.update(state)
        hint = "Next: take it away in the tab Export." if next_step(state) == "export" else ""
        change(harm, content=note(" ".join(filter(None, (_harm(state), hint)))))
        label = "Undo" if state.undo_label is None else f"Undo: {state.undo_label}"
        change(undo, label=label, disabled=state.undo_label is None or state.job is not None)

    return update


def _reason(state: SessionState, plan: StageList) -> str:
    """Why fusion cannot start now; empty when it can."""
    if not state.has_recording:
        return "Fuse needs a recording: open a scene that has one."
    if state.job is not None:
        return f"Fuse: {state.job.label} is running; stop it or wait for its end."
    if plan.is_plan:
        return plan.problem
    if not any(frame.accepted for frame in state.frames):
        return "Fuse: accept at least one repaired frame first (tab Repair)."
    return ""


def _describe(state: SessionState) -> str:
    if state.stage is None or not state.frames:
        return "Nothing is repaired yet."
    accepted = sum(frame.accepted for frame in state.frames)
    return (
        f"Learn from {accepted} of {len(state.frames)} repaired frames ({state.stage.label}); "
        "recorded frames around them are replayed."
    )


def _counts(state: SessionState) -> str:
    kinds = "all recorded"
    if state.num_generated:
        kinds = f"{count(state.num_generated)} of them made or moved by repair"
    return f"<b>{count(state.num_gaussians)}</b> splats, {kinds}"


def _harm(state: SessionState) -> str:
    """What the last fusion did to the recorded views; true of that run, also once it is undone."""
    if state.psnr_before is None or len(state.psnr_curve) < 2:
        return ""
    steps, after = state.psnr_curve[-1]
    change_db = after - state.psnr_before
    return (
        f"Recorded views (up to ten, from all of the drive), last fusion: {state.psnr_before:.2f} dB before, "
        f"{after:.2f} dB after {steps} steps ({change_db:+.2f}). {_moved(state)}"
    ).strip()


def _moved(state: SessionState) -> str:
    if not state.moved_curve:
        return ""
    return f"Of the pixels that needed no repair {state.moved_curve[-1][1]:.1%} look different."
