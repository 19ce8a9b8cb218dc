"""Take it away: a video of a path in chosen layers, or the splats themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from faithfusion_studio.rig import Rig
from faithfusion_studio.session.commands import CancelExport, Export, ExportRequest
from faithfusion_studio.session.state import SessionState
from faithfusion_studio.studio.view_state import View, ViewState
from faithfusion_studio.studio.widgets import PLAIN, JobBar, change, next_step, note, set_button

PATHS: dict[str, Literal["shown", "segment", "recorded"]] = {
    "Shown path": "shown",
    "Segment of the shown path": "segment",
    "Recorded drive": "recorded",
}
LAYERS = {"Colour": "rgb", "EIG": "eig", "Depth": "depth"}
LAYOUTS: dict[str, Literal["single", "side-by-side", "before-after", "columns"]] = {
    "One after the other": "single",
    "Side by side": "side-by-side",
    "Before | after the last fusion": "before-after",
    "Before | after | EIG, with captions": "columns",
}
ARRANGE: dict[str, Literal["files", "grid"]] = {
    "One video each": "files",
    "One video, a grid": "grid",
}
SPLATS = {
    "PLY, as 3DGS writes it": ".ply",
    "Compressed PLY (SuperSplat)": ".compressed.ply",
    "SPZ (Niantic)": ".spz",
    "SOG (PlayCanvas)": ".sog",
    "splat (antimatter15)": ".splat",
    "gsplat checkpoint": ".pt",
}
SIZES = {"As recorded": None, "1280 wide": 1280, "960 wide": 960, "640 wide": 640, "480 wide": 480}


def add_export_panel(gui: Any, session: Any, view: View) -> Callable[[SessionState], None]:
    """Build the tab Export in the current container; returns what shows a new session state."""
    path = gui.add_dropdown("Path", tuple(PATHS), initial_value="Segment of the shown path")
    what = gui.add_html("")
    rig = RigChoice(gui, view)
    layers = {key: gui.add_checkbox(title, key == "rgb") for title, key in LAYERS.items()}
    layout = gui.add_dropdown(
        "Layout", tuple(LAYOUTS), initial_value="Before | after the last fusion"
    )
    more = gui.add_folder("More", expand_by_default=False)
    with more:
        fps = gui.add_slider("Frames per second", 2, 30, 1, 10)
        size = gui.add_dropdown("Size", tuple(SIZES), initial_value="As recorded")
        caption = gui.add_text("Caption", "", hint="Burned into the lower left corner.")
        provenance = gui.add_checkbox(
            "Say what is generated",
            False,
            hint="Burn in which share of each picture is from repair.",
        )
        name = gui.add_text("File name", "", hint="Empty: a name is made from path and layout.")
    video = gui.add_button("Export MP4")
    kind = gui.add_dropdown(
        "Splats as", tuple(SPLATS), hint="What the format cannot hold is said when it is written."
    )
    splats = gui.add_button("Export splats", hint="Opens in other 3DGS viewers.")
    why = gui.add_html("")
    bar = JobBar(gui)
    cancel = gui.add_button("Cancel export", visible=False, color="red")
    show_files = _add_files(gui, session, view)

    def request() -> ExportRequest:
        shown = view.get()
        chosen = tuple(key for key, box in layers.items() if box.value) or ("rgb",)
        kind = PATHS[path.value]
        stem = name.value.strip() or _stem(kind, LAYOUTS[layout.value], shown)
        target = session.run_folder / "videos" / f"{Path(stem).name.removesuffix('.mp4')}.mp4"
        return ExportRequest(
            str(_free(target)),
            camera_path=kind,
            lateral_offset=shown.offset,
            segment=(shown.segment.start, shown.segment.stop),
            layers=chosen,
            layout=LAYOUTS[layout.value],
            fps=float(fps.value),
            size=_pixels(session, SIZES[size.value]),
            caption=caption.value.strip(),
            provenance=bool(provenance.value),
            cameras=rig.chosen(),
            arrange=rig.arrange(),
        )

    @video.on_click
    @view.guarded
    def _(_event: Any) -> None:
        session.submit(Export(request()))

    @splats.on_click
    @view.guarded
    def _(_event: Any) -> None:
        folder = session.run_folder / "splats"
        target = folder / f"{name.value.strip() or 'splats'}{SPLATS[kind.value]}"
        session.submit(Export(ExportRequest(str(_free(target)))))

    cancel.on_click(view.guarded(lambda _event: session.submit(CancelExport())))

    def show_choice(shown: ViewState) -> None:
        change(what, content=note(_describe(PATHS[path.value], shown, view.rig)))

    @path.on_update
    @view.guarded
    def _(_event: Any) -> None:
        show_choice(view.get())

    view.subscribe(show_choice)
    show_choice(view.get())

    def update(state: SessionState) -> None:
        busy = "" if state.export is None else f"Export: {state.export.label} is running."
        need = (
            ""
            if state.has_recording
            else "Export of a video needs a recording: open a scene that has one."
        )
        eig = layers["eig"].value and not state.fisher_ready
        evidence = "EIG is not available: measure the evidence in the tab Look." if eig else ""
        set_button(video, busy or need or evidence, highlight=next_step(state) == "export")
        set_button(splats, busy)
        change(why, content=note((need or evidence) if not busy else "", warn=True))
        bar.show(state.export)
        change(cancel, visible=state.export is not None)
        show_files(state)

    return update


def _add_files(gui: Any, session: Any, view: View) -> Callable[[SessionState], None]:
    """What was exported, newest first, with a download."""
    folder = gui.add_folder("Exported", visible=False)
    with folder:
        files = gui.add_dropdown("File", ("-",))
        where = gui.add_html("")
        download = gui.add_button("Download", color=PLAIN)

    def chosen(state: SessionState) -> Path:
        return next(Path(p) for p in reversed(state.exports) if Path(p).name == files.value)

    @download.on_click
    @view.guarded
    def _(_event: Any) -> None:
        file = chosen(session.state)
        view.download(file.name, file.read_bytes())

    @files.on_update
    @view.guarded
    def _(_event: Any) -> None:
        change(where, content=note(str(chosen(session.state))))

    def update(state: SessionState) -> None:
        change(folder, visible=bool(state.exports))
        names = tuple(dict.fromkeys(Path(p).name for p in reversed(state.exports)))
        if names and files.options != names:
            files.options = names
            files.value = names[0]
            change(where, content=note(str(chosen(state))))

    return update


class RigChoice:
    """Which cameras of a rig are exported, and whether into one picture; nothing where there is one camera."""

    def __init__(self, gui: Any, view: View) -> None:
        self._view = view
        rig = view.rig
        self._folder = gui.add_folder("Cameras", visible=rig.several)
        with self._folder:
            self._boxes = [gui.add_checkbox(title, i == 0) for i, title in enumerate(rig.titles)]
            self._arrange = gui.add_dropdown("Several", tuple(ARRANGE))

    def chosen(self) -> tuple[str, ...]:
        """Names of the ticked cameras; the shown one where none is, and empty where there is one only."""
        rig = self._view.rig
        if not rig.several:
            return ()
        ticked = [t for t, box in zip(rig.titles, self._boxes, strict=True) if box.value]
        return tuple(ticked) or (rig.titles[rig.camera_of(self._view.get().frame)],)

    def arrange(self) -> Literal["files", "grid"]:
        """How several cameras are put down."""
        return ARRANGE[self._arrange.value]


def _describe(kind: str, shown: ViewState, rig: Rig) -> str:
    num_frames = len(rig)
    if num_frames == 0:
        return ""
    first, last = rig.span(shown.segment)[0], rig.span(shown.segment)[1] - 1
    return {
        "recorded": f"All {num_frames} frames of the drive, as recorded.",
        "shown": f"All {num_frames} frames, {shown.offset:+g} m.",
        "segment": f"Frames {first} to {last}, {shown.offset:+g} m.",
    }[kind]


def _stem(kind: str, layout: str, shown: ViewState) -> str:
    parts = [kind] if kind == "recorded" else [kind, f"{shown.offset:+g}m"]
    return "_".join([*parts, layout])


def _free(target: Path) -> Path:
    """The name, or the same with a number, so that no earlier export is replaced, nor a file per camera or layer."""
    known = [end for end in SPLATS.values() if target.name.endswith(end)]
    end = max(known, key=len, default=target.suffix)
    path, number = target, 2
    while path.exists() or (end == ".mp4" and any(path.parent.glob(f"{path.stem}_*.mp4"))):
        path = target.with_name(f"{target.name.removesuffix(end)}-{number}{end}")
        number += 1
    return path


def _pixels(session: Any, width: int | None) -> tuple[int, int] | None:
    """Even sizes of the recorded shape, as video encoders want them."""
    scene = session.store.latest().scene
    if width is None or scene.capture is None:
        return None
    camera = scene.capture.trajectory.cameras[0]
    return width, max(2, round(width * camera.height / camera.width / 2) * 2)
