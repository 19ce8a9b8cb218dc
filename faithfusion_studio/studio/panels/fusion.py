"""Make the splats learn the repaired frames, without harm: start, watch, pause, stop, undo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from faithfusion_studio.fusion.schedule import Weighting
from faithfusion_studio.session.commands import Pause, Resume, StartFusion, StepOnce, Stop, Undo
from faithfusion_studio.session.state import SessionState
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

WEIGHTINGS: dict[str, Weighting] = {
    "EIG (as the paper)": "eig",
    "Four tiers (as the release)": "released",
    "Nats up to a cap": "logdet",
    "Uniform": "uniform",
}

SMOOTH = 0.95
"""Steps on recorded and on repaired views have very different losses; shown is a running mean."""


def add_fusion_panel(gui: Any, session: Any, view: View) -> Callable[[SessionState], None]:
    """Build the tab Fuse in the current container; returns what shows a new session state."""
    what = gui.add_html("")
    steps = gui.add_slider(
        "Steps",
        50,
        2000,
        50,
        200,
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
    loss = _add_chart(gui, "loss, running mean", "#e8b64c")
    psnr = _add_chart(gui, "recorded views, dB", "#6ab0ff")
    harm = gui.add_html("")
    undo = gui.add_button("Undo", color="gray")

    @start.on_click
    @view.guarded
    def _(_event: Any) -> None:
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

    drawn: dict[str, Any] = {"loss": None, "psnr": None}

    def update(state: SessionState) -> None:
        reason = _reason(state)
        fusing = state.job is not None and state.job.kind in ("fusion", "fisher")
        change(what, content=note(_describe(state)))
        set_button(start, reason, highlight=next_step(state) == "fuse")
        change(why, content=note(reason if not fusing else "", warn=True))
        bar.show(state.job if fusing else None)
        paused = state.job is not None and state.job.paused
        options = ("Resume" if paused else "Pause", "Step", "Stop")
        change(control, visible=fusing, options=options)
        change(counts, content=raw_note(_counts(state)))
        for name, chart, curve in (
            ("loss", loss, state.loss_curve),
            ("psnr", psnr, state.psnr_curve),
        ):
            change(chart, visible=len(curve) > 1)
            if curve is not drawn[name] and len(curve) > 1:
                drawn[name] = curve
                chart.data = _columns(curve, smooth=SMOOTH if name == "loss" else 0.0)
        hint = "Next: take it away in the tab Export." if next_step(state) == "export" else ""
        change(harm, content=note(" ".join(filter(None, (_harm(state), hint)))))
        label = "Undo" if state.undo_label is None else f"Undo: {state.undo_label}"
        change(undo, label=label, disabled=state.undo_label is None or state.job is not None)

    return update


def _add_chart(gui: Any, label: str, color: str) -> Any:
    from viser import uplot

    return gui.add_uplot(
        _columns(((0, 0.0), (1, 0.0))),
        (
            uplot.Series(label="step"),
            uplot.Series(label=label, stroke=color, width=2, points={"show": False}),
        ),
        scales={"x": uplot.Scale(time=False, auto=True), "y": uplot.Scale(auto=True)},
        axes=(uplot.Axis(stroke="#c9cfda"), uplot.Axis(stroke="#c9cfda", size=58)),
        height=130,
        padding=(14, 18, 0, 0),  # room for half of the outermost tick labels
        visible=False,
    )


def _columns(
    curve: tuple[tuple[int, float], ...], smooth: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A curve as uPlot wants it (x strictly rising), thinned to what a narrow panel can show."""
    points = np.array(curve, dtype=np.float64)
    mean = points[: max(1, round(1 / (1 - smooth))), 1].mean()
    for index, value in enumerate(points[:, 1]):
        points[index, 1] = mean = smooth * mean + (1 - smooth) * value
    points = points[::-1][:: max(1, len(points) // 300)][::-1]
    return points[:, 0].copy(), points[:, 1].copy()


def _reason(state: SessionState) -> str:
    """Why fusion cannot start now; empty when it can."""
    if not state.has_recording:
        return "Fuse needs a recording: open a scene that has one."
    if state.job is not None:
        return f"Fuse: {state.job.label} is running; stop it or wait for its end."
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
        kinds = f"{count(state.num_generated)} of them from repair"
    return f"<b>{count(state.num_gaussians)}</b> splats, {kinds}"


def _harm(state: SessionState) -> str:
    """What the last fusion did to the recorded views; true of that run, also once it is undone."""
    if state.psnr_before is None or len(state.psnr_curve) < 2:
        return ""
    steps, after = state.psnr_curve[-1]
    change_db = after - state.psnr_before
    return (
        f"Recorded views, last fusion: {state.psnr_before:.2f} dB before, "
        f"{after:.2f} dB after {steps} steps ({change_db:+.2f})."
    )
