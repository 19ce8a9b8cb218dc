"""What is in it, where it came from, what was done to it; going back and saving."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faithfusion_studio.scene import Scene
from faithfusion_studio.session.commands import GoTo, SaveAs
from faithfusion_studio.session.state import SessionState
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.widgets import change, count, next_step, note, raw_note, set_button

SHOWN_ENTRIES = 12
"""History entries listed at most, the newest."""
PROVENANCES = {
    "recorded": "recorded",
    "repaired": "from repair",
    "completed": "completed",
    "edited": "edited",
}


def add_scene_panel(gui: Any, session: Any, view: View) -> Callable[[SessionState], None]:
    """Build the tab Scene in the current container; returns what shows a new session state."""
    facts = gui.add_html("")
    target = gui.add_text(
        "Save as",
        "",
        hint="A .ckpt keeps everything; .ply, .spz, .sog, .splat or .pt hold the splats only.",
    )
    save = gui.add_button("Save")
    why = gui.add_html("")
    update_history = _add_history(gui, session, view)
    notes = gui.add_folder("Source and notes", expand_by_default=False)
    with notes:
        source = gui.add_html(_source(session.store.latest().scene))
    suggested = {"path": str(session.run_folder / "scenes" / "scene.ckpt")}
    target.value = suggested["path"]

    @save.on_click
    @view.guarded
    def _(_event: Any) -> None:
        path = Path(target.value.strip())
        session.submit(SaveAs(str(path if path.suffix else path.with_suffix(".ckpt"))))

    def update(state: SessionState) -> None:
        scene = session.store.latest().scene
        change(facts, content=raw_note(_facts(scene, state)))
        busy = state.job is not None and state.job.kind == "save"
        set_button(save, "saving" if busy else "", highlight=next_step(state) == "save")
        words = f"Changed since {state.path}." if state.path else "Not saved yet."
        change(why, content=note(words if state.unsaved else "", warn=True))
        update_history(state)
        change(source, content=_source(scene))

    return update


def _add_history(gui: Any, session: Any, view: View) -> Callable[[SessionState], None]:
    """The list of what was done; a click goes back to, or forward to, that state."""
    folder = gui.add_folder("History (click to go there)")
    shown: dict[str, Any] = {"labels": None, "buttons": []}

    def go(index: int) -> Callable[[Any], None]:
        return view.guarded(lambda _event: session.submit(GoTo(index)))

    def update(state: SessionState) -> None:
        if shown["labels"] != state.history:
            for _, button in shown["buttons"]:
                button.remove()
            first = max(0, len(state.history) - SHOWN_ENTRIES)
            with folder:
                shown["buttons"] = [
                    (index, gui.add_button(state.history[index], color="gray"))
                    for index in range(first, len(state.history))
                ]
            for index, button in shown["buttons"]:
                button.on_click(go(index))
            shown["labels"] = state.history
        for index, button in shown["buttons"]:
            here = index == state.cursor
            change(
                button,
                label=f"\u25b8 {state.history[index]}" if here else state.history[index],
                disabled=here or state.job is not None,
            )

    return update


def _facts(scene: Scene, state: SessionState) -> str:
    rows = [("Splats", count(state.num_gaussians))]
    if len(state.provenance) > 1:
        rows += [(f"&nbsp;&nbsp;{PROVENANCES[kind]}", count(n)) for kind, n in state.provenance]
    if scene.capture is not None:
        path = scene.capture.trajectory
        rows.append(("Recording", f"{len(path)} frames, {path.length_m:.0f} m"))
        rows.append(("Cameras", ", ".join(filter(None, scene.capture.camera_names)) or "one"))
        if path.ego_is_camera:
            rows.append(("Sideways", "camera-left (no ego poses)"))
    else:
        rows.append(("Recording", "none: EIG, repair and fusion are off"))
    rows.append(("Evidence", "ready" if state.fisher_ready else "not measured"))
    if state.nodes:
        rows.append(("Moving objects", str(len(state.nodes))))
    rows.append(("File", state.path or "not saved yet"))
    cells = "".join(
        f'<tr><td style="color:#9aa3b2;padding-right:10px;white-space:nowrap">{name}</td>'
        f'<td style="overflow-wrap:anywhere">{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def _source(scene: Scene) -> str:
    """Source, licence and notes as the file states them."""
    metadata = {"source": "", "licence": "", **scene.metadata}
    if scene.capture is not None:
        metadata["source"] = metadata["source"] or scene.capture.source
        metadata["licence"] = metadata["licence"] or scene.capture.licence
    rows = [
        f"<b>{title}</b>: {html.escape(str(metadata[key]) or 'not stated')}"
        for key, title in (("source", "Source"), ("licence", "Licence"))
    ]
    if metadata.get("notes"):
        rows.append(html.escape(str(metadata["notes"])))
    return raw_note("<br>".join(rows))
