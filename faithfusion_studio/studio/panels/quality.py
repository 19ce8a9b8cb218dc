"""Is EIG right here, why is this pixel uncertain, and where to drive next: each with its protocol."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from faithfusion_studio.io.true_views import true_views
from faithfusion_studio.studio.checks import (
    FrameCheck,
    QualityError,
    check_frame,
    check_view,
    held_out_frames,
)
from faithfusion_studio.studio.verdict import answer
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.where_next import add_where_next
from faithfusion_studio.studio.widgets import PLAIN, change, raw_note

PROTOCOL = (
    "Pictures at most 640x360, colours 0 to 1; error is the mean over the three channels. Spearman: rank "
    "correlation of EIG (block) and error over 8x8 blocks (1 = EIG ranks errors perfectly, 0 = chance). AUSE: "
    "area between the curves of sorting by EIG and by the true error (0 = perfect). Found: share of the 10 % of "
    "pixels of largest error that are among the 10 % of largest EIG (chance: 0.10). In 90 %: share of the errors "
    "inside the predicted 90 % interval. Uncovered pixels count as most uncertain. Means over views."
)
MAX_FRAMES = 12
"""Views of one check: enough for a mean, few enough to wait for."""


def add_quality_panel(gui: Any, session: Any, view: View) -> Callable[[Any], None]:
    """Build the tab Quality in the current container; returns what shows a new session state."""
    gui.add_html(raw_note("<b>Is the picture right here? Is EIG right here?</b>"))
    one = gui.add_button(
        "Check this frame", hint="Compares with the recorded photo of the frame.", color=PLAIN
    )
    drive = gui.add_button(
        "Check the drive", hint=f"Up to {MAX_FRAMES} frames, held-out ones first.", color=PLAIN
    )
    progress = gui.add_progress_bar(0.0, visible=False)
    result = gui.add_html(raw_note("Nothing is measured yet."))
    clear = gui.add_button(
        "Clear the highlighted splats",
        hint="Shift+click on the picture says why a pixel is uncertain and highlights the splats that cause it.",
        color=PLAIN,
        disabled=True,
    )
    compare = gui.add_button("Show the photo beside the rendering", color=PLAIN)
    add_where_next(gui, session, view)
    with gui.add_folder("Against true views beside the path", expand_by_default=False):
        folder = gui.add_text(
            "Folder", "", hint="As `ff-studio synthesize` writes it: with truth/cameras_+3.0.json."
        )
        beside = gui.add_button("Check at the shown offset", color=PLAIN)
    with gui.add_folder("How this is measured", expand_by_default=False):
        gui.add_html(raw_note(PROTOCOL))
    running = threading.Lock()

    def check(views: Iterable[Callable[[], FrameCheck]], words: str = "") -> None:
        """Runs in viser's callback pool; one at a time."""
        if not running.acquire(blocking=False):
            view.notify("Still measuring", "Wait for the running check.")
            return
        try:
            todo, results = list(views), []
            for index, measure in enumerate(todo):
                change(progress, visible=len(todo) > 1, value=100.0 * index / len(todo))
                results.append(measure())
                change(result, content=raw_note(answer(results, words)))
        finally:
            change(progress, visible=False)
            running.release()

    def check_frames(frames: list[int]) -> None:
        scene = session.store.latest().scene
        check([lambda f=frame: check_frame(scene, f) for frame in frames])

    def check_beside() -> None:
        scene, offset = session.store.latest().scene, view.get().offset
        if not folder.value.strip():
            raise QualityError("no folder was given; write its path into the field above.")
        capture = true_views(Path(folder.value.strip()).expanduser(), offset)
        frames = _thinned(list(enumerate(capture.frames)))
        check(
            [lambda n=n, f=f: check_view(scene, f, n) for n, f in frames],
            f"at {offset:+g} m, from {capture.source or 'the folder'}",
        )

    one.on_click(view.guarded(lambda _e: check_frames([view.get().frame])))
    drive.on_click(
        view.guarded(
            lambda _e: check_frames(
                _thinned(
                    held_out_frames(session.store.latest().scene) or list(range(view.num_frames))
                )
            )
        )
    )
    beside.on_click(view.guarded(lambda _e: check_beside()))
    clear.on_click(view.guarded(lambda _e: view.set(highlight=())))
    compare.on_click(
        view.guarded(
            lambda _e: view.set(
                layer="rgb", compare="wipe", compare_with="photo", offset=0.0, follow=True
            )
        )
    )
    view.subscribe(lambda state: change(clear, disabled=not state.highlight))

    def update(state: Any) -> None:
        for button in (one, drive, compare):
            change(button, disabled=not state.has_recording)
        if not state.has_recording:
            words = "This scene came without a recording, so there is nothing to compare with."
            change(result, content=raw_note(words))

    return update


def _thinned(items: list[Any]) -> list[Any]:
    """At most `MAX_FRAMES` of them, evenly."""
    return items[:: max(1, math.ceil(len(items) / MAX_FRAMES))]
