"""What is wrong here, and what would be put there? Engine, preview, repair, and the strip to judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from faithfusion_studio.cameras import Segment
from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.rig import Rig
from faithfusion_studio.session.commands import RepairSegment, Stop
from faithfusion_studio.session.engines import RepairEngine
from faithfusion_studio.session.state import SessionState
from faithfusion_studio.studio.engine_choice import EngineChoice
from faithfusion_studio.studio.fill_section import FillSection
from faithfusion_studio.studio.frame_strip import FrameStrip
from faithfusion_studio.studio.repair_options import RepairOptions
from faithfusion_studio.studio.view_state import View, ViewState
from faithfusion_studio.studio.widgets import (
    JobBar,
    change,
    next_step,
    note,
    raw_note,
    set_button,
)


def add_repair_panel(gui: Any, session: Any, view: View) -> Callable[[SessionState], None]:
    """Build the tab Repair in the current container; returns what shows a new session state."""
    what = gui.add_html("")
    choice = EngineChoice(gui, session, view, lambda: show_choice(view.get()))
    options = RepairOptions(gui, view, lambda: show_choice(view.get()))
    preview = gui.add_button("Preview this frame", hint="Key R: repair only the frame shown.")
    repair = gui.add_button("Repair segment")
    why = gui.add_html("")
    bar = JobBar(gui)
    stop = gui.add_button("Stop and keep the frames so far", visible=False, color="red")
    results = (FrameStrip(gui, session, view), FillSection(gui, session, view))

    def stage() -> Stage:
        shown = view.get()
        chosen = Stage(
            segment=(shown.segment.start, shown.segment.stop),
            lateral_offset=shown.offset,
            engine=choice.engine.name,
            eig_threshold=shown.threshold[1],
        )
        return options.apply(chosen)

    def show_choice(shown: ViewState) -> None:
        wanted = stage()
        count = wanted.segment[1] - wanted.segment[0]
        text = raw_note(_describe(wanted, count, view.rig)) if view.num_frames else ""
        change(what, content=text)
        choice.show(count)
        show_buttons(session.state)

    def show_buttons(state: SessionState) -> None:
        reason = _reason(state, stage(), choice.engine) or options.problem
        step = next_step(state)
        moved = state.stage is None or state.stage.label != stage().label
        set_button(preview, reason)
        set_button(repair, reason, highlight=step == "repair" or (step != "wait" and moved))
        working = state.job is not None and state.job.kind in ("repair", "fisher")
        hint = "Next: judge the frames below, then go to the tab Fuse." if step == "fuse" else ""
        change(why, content=note(reason or hint, warn=bool(reason)) if not working else "")
        change(stop, visible=working)

    @preview.on_click
    @view.guarded
    def _(_event: Any) -> None:
        frame = view.get().frame
        wanted = stage()
        single = replace(wanted, segment=(frame, frame + 1))
        session.submit(RepairSegment(single, preview=True))

    @repair.on_click
    @view.guarded
    def _(_event: Any) -> None:
        session.submit(RepairSegment(stage()))

    @stop.on_click
    @view.guarded
    def _(_event: Any) -> None:
        session.submit(Stop())

    view.subscribe(show_choice)

    def update(state: SessionState) -> None:
        working = state.job is not None and state.job.kind in ("repair", "fisher")
        bar.show(state.job if working else None)
        show_buttons(state)
        for part in results:
            part.update(state)

    show_choice(view.get())
    return update


def _describe(stage: Stage, count: int, rig: Rig) -> str:
    side = "left" if stage.lateral_offset > 0 else "right"
    where = (
        f"{abs(stage.lateral_offset):g} m to the {side}" if stage.lateral_offset else "no offset"
    )
    first, stop = rig.span(Segment(*stage.segment))
    each = f"{count} pictures of {len(rig.names)} cameras" if rig.several else f"{count}"
    return (
        f"<b>Frames {first} to {stop - 1}</b> ({each}), <b>{where}</b>: pixels with EIG of "
        f"{stage.eig_threshold:.2f} or more (UCR) are repaired. Set these in the timeline and in Look."
    )


def _reason(state: SessionState, stage: Stage, engine: RepairEngine) -> str:
    """Why nothing can be repaired now; empty when it can."""
    if not state.has_recording:
        return "Repair needs a recording: open a scene that has one."
    if engine.problem is not None:
        return engine.problem
    if state.job is not None:
        return f"Repair: {state.job.label} is running; stop it or wait for its end."
    if stage.lateral_offset == 0:
        return "Repair: move the path sideways first (offset slider in the timeline)."
    return ""
