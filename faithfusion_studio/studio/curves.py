"""Live curves of a fusion: loss, recorded views, and how much of the trusted area moved."""

from __future__ import annotations

from typing import Any

import numpy as np

from faithfusion_studio.session.state import SessionState
from faithfusion_studio.studio.widgets import change

SMOOTH = 0.95
"""Steps on recorded and on repaired views have very different losses; shown is a running mean."""


class Curves:
    """Three charts in the current container, each shown once it has two points."""

    def __init__(self, gui: Any) -> None:
        self._charts = (
            _add_chart(gui, "loss, running mean", "#e8b64c"),
            _add_chart(gui, "recorded views, dB", "#6ab0ff"),
            _add_chart(gui, "trusted pixels moved, %", "#e06c9f"),
        )
        self._drawn: list[Any] = [None] * len(self._charts)

    def update(self, state: SessionState) -> None:
        """Draw what is new."""
        moved = tuple((step, 100 * share) for step, share in state.moved_curve)
        curves = (state.loss_curve, state.psnr_curve, moved)
        for index, (chart, curve) in enumerate(zip(self._charts, curves, strict=True)):
            change(chart, visible=len(curve) > 1)
            if curve != self._drawn[index] and len(curve) > 1:
                self._drawn[index] = curve
                chart.data = _columns(curve, smooth=SMOOTH if index == 0 else 0.0)


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
