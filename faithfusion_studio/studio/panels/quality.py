"""Is this right? The rendering and EIG against recorded photos, in numbers with their protocol."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from faithfusion_studio.studio.checks import FrameCheck, check_frame, held_out_frames, summary
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.widgets import PLAIN

PROTOCOL = (
    "Photos at most 640x360, colours 0 to 1. EIG against absolute error over 8x8 blocks of the "
    "picture: Spearman is the rank correlation (1 = EIG ranks errors perfectly, 0 = chance), AUSE "
    "the area between sorting by EIG and by the true error (0 = perfect)."
)
MAX_FRAMES = 12
"""Frames of one check of the drive: enough for a mean, few enough to wait for."""


def add_quality_panel(gui: Any, session: Any, view: View) -> Callable[[Any], None]:
    """Build the tab Quality in the current container; returns what shows a new session state."""
    gui.add_html(_note("<b>Is the picture right here? Is EIG right here?</b>"))
    one = gui.add_button(
        "Check this frame", hint="Compares with the recorded photo of the frame.", color=PLAIN
    )
    drive = gui.add_button(
        "Check the drive", hint=f"Up to {MAX_FRAMES} frames, held-out ones first.", color=PLAIN
    )
    progress = gui.add_progress_bar(0.0, visible=False)
    result = gui.add_html(_note("Nothing is measured yet."))
    compare = gui.add_button("Show the photo beside the rendering", color=PLAIN)
    with gui.add_folder("How this is measured", expand_by_default=False):
        gui.add_html(_note(PROTOCOL))
    running = threading.Lock()

    def check(frames: list[int]) -> None:
        """Runs in viser's callback pool; one at a time."""
        if not running.acquire(blocking=False):
            view.notify("Still measuring", "Wait for the running check.")
            return
        try:
            scene = session.store.latest().scene
            results = []
            progress.visible = len(frames) > 1
            for index, frame in enumerate(frames):
                progress.value = 100.0 * index / len(frames)
                results.append(check_frame(scene, frame))
                result.content = _table(results)
        finally:
            progress.visible = False
            running.release()

    @one.on_click
    @view.guarded
    def _(_event: Any) -> None:
        check([view.get().frame])

    @drive.on_click
    @view.guarded
    def _(_event: Any) -> None:
        check(_spread(held_out_frames(session.store.latest().scene), view.num_frames))

    @compare.on_click
    @view.guarded
    def _(_event: Any) -> None:
        view.set(layer="rgb", compare="wipe", compare_with="photo", offset=0.0, follow=True)

    def update(state: Any) -> None:
        for button in (one, drive, compare):
            _disable(button, not state.has_recording)
        if not state.has_recording:
            words = "This scene came without a recording, so there is nothing to compare with."
            result.content = _note(words)

    return update


def _spread(held_out: list[int], num_frames: int) -> list[int]:
    """Held-out frames if there are any, else the drive, thinned evenly."""
    frames = held_out or list(range(num_frames))
    step = max(1, math.ceil(len(frames) / MAX_FRAMES))
    return frames[::step]


def _table(results: list[FrameCheck]) -> str:
    means = summary(results)
    rows = "".join(
        f"<tr><td>{one.frame}{' *' if one.held_out else ''}</td><td>{one.psnr:.1f}</td>"
        f"<td>{_number(one.spearman)}</td><td>{_number(one.ause)}</td></tr>"
        for one in results
    )
    mean = (
        f"<tr style='font-weight:600;border-top:1px solid #556'><td>mean</td>"
        f"<td>{means['psnr']:.1f}</td><td>{_number(means['spearman'])}</td>"
        f"<td>{_number(means['ause'])}</td></tr>"
    )
    head = "<tr style='color:#9aa4b5'><td>frame</td><td>PSNR dB</td><td>Spearman</td><td>AUSE</td></tr>"
    held = any(one.held_out for one in results)
    foot = (
        "* held out: the reconstruction never saw this photo."
        if held
        else (
            "These photos were trained on: the numbers say how well they are reproduced, "
            "not how well new views are."
        )
    )
    table = f"<table style='width:100%;border-collapse:collapse'>{head}{rows}{mean}</table>"
    return _note(f"{table}<div style='margin-top:6px'>{verdict(means)} {foot}</div>")


def verdict(means: dict[str, float]) -> str:
    """What the rank correlation allows to say, in one sentence."""
    value = means["spearman"]
    if math.isnan(value):
        return "EIG is not validated: this scene has no evidence of recorded views."
    if value >= 0.4:
        return "EIG ranks the errors of these views well."
    if value >= 0.2:
        return "EIG says something about the errors of these views, with many exceptions."
    return "EIG is not validated on these views: it hardly ranks their errors."


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _disable(handle: Any, disabled: bool) -> None:
    if handle.disabled != disabled:
        handle.disabled = disabled


def _note(inner: str) -> str:
    return f'<div style="padding:2px 12px 6px;font-size:12.5px;color:#d5dae3">{inner}</div>'
