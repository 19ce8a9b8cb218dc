"""Where to drive next: lateral offsets ranked by what recording there would teach, as a small table."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from faithfusion_studio.information.next_view import (
    OFFSETS,
    ViewGain,
    expected_gains,
    spread_frames,
)
from faithfusion_studio.studio.checks import QualityError
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.viewport import drawing, scene_has_evidence
from faithfusion_studio.studio.widgets import PLAIN, change, count, raw_note

WORDS = (
    "What another drive over the segment would teach, nats per view: the fall of the entropy of all splats. "
    "0 m is the same drive once more. Only what was reconstructed can be learned about."
)
BAR = 120
"""Width of the longest bar, pixels."""


def add_where_next(gui: Any, session: Any, view: View) -> None:
    """Build the folder with its button and its table in the current container."""
    with gui.add_folder("Where to drive next", expand_by_default=False):
        rank = gui.add_button("Rank the lateral offsets", color=PLAIN)
        table = gui.add_html(raw_note(WORDS))
        go = gui.add_button("Go to the best offset", color=PLAIN, disabled=True)
    running, best = threading.Lock(), [0.0]

    def measure() -> None:
        scene = session.store.latest().scene
        if scene.capture is None or not scene.capture.trajectory.cameras:
            raise QualityError("this scene has no recorded path, so there is none to leave.")
        if not scene_has_evidence(scene):
            raise QualityError("measure the evidence first: the button is in the tab Look.")
        if not running.acquire(blocking=False):
            view.notify("Still ranking", "Wait for the running comparison.")
            return
        try:
            gains: list[ViewGain] = []
            path = scene.capture.trajectory
            frames = spread_frames(path, view.get().segment)
            with drawing():
                for gain in expected_gains(scene, path, OFFSETS, frames=frames):
                    gains.append(gain)
                    change(table, content=raw_note(ranking(gains, len(OFFSETS))))
            best[0] = max(gains, key=lambda gain: gain.nats).offset
            change(go, disabled=False, label=f"Go to {best[0]:+g} m")
        finally:
            running.release()

    rank.on_click(view.guarded(lambda _event: measure()))
    go.on_click(view.guarded(lambda _event: view.set(offset=best[0], follow=True)))


def ranking(gains: Sequence[ViewGain], total: int) -> str:
    """A table of the offsets measured so far, the most instructive first."""
    ranked = sorted(gains, key=lambda gain: -gain.nats)
    top = max(ranked[0].nats, 1e-9)
    rows = "".join(
        f"<tr><td style='white-space:nowrap;min-width:3.2em'>{gain.offset:+g} m</td>"
        f"<td style='width:100%;padding:0 8px'><div style='height:8px;border-radius:2px;background:#ff9d4d;"
        f"width:{BAR * max(gain.nats, 0) / top:.0f}px'></div></td>"
        f"<td style='text-align:right;white-space:nowrap'>{count(round(gain.nats))}</td></tr>"
        for gain in ranked
    )
    more = f"<div>{len(gains)} of {total} offsets …</div>" if len(gains) < total else ""
    return f"<div style='color:#9aa4b5'>{WORDS}</div><table style='width:100%'>{rows}</table>{more}"
