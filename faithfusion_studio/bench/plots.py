"""The picture of a report: every row with its spread, and the table of the topic scale as curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from faithfusion_studio.bench.figures import FIGURES
from faithfusion_studio.bench.report import Report, in_words

COLORS = {"meets goal": "#2f8f5b", "meets floor": "#c58a1a", "MISSES FLOOR": "#c23b3b"}
PLAIN, FAINT = "#4a78b5", "#8a8f98"


def draw(report: Report, path: Path) -> None:
    """Write the picture of a report (.png or .svg, by suffix)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    judged = [j for j in report.judgements if isinstance(j.value, (int, float)) and j.goal]
    heights = [max(1, len(judged)), max(1, len(report.rows))]
    canvas = Canvas(figsize=(8.5, 1.7 + 0.42 * sum(heights)), layout="constrained")
    FigureCanvasAgg(canvas)
    above, below = canvas.subplots(2, 1, height_ratios=heights)
    width, height = report.config.size
    canvas.suptitle(
        f"ff-studio bench {report.topic}: {report.config.gaussians:,} Gaussians, {width}x{height}, "
        f"{report.config.threads} threads",
        fontsize=11,
    )
    _targets(above, report, judged)
    _times(below, report)
    canvas.savefig(path, dpi=130)


def _targets(axes: Any, report: Report, judged: list[Any]) -> None:
    """Each figure over its floor, so that 1 is the floor and the better side is always on the left."""
    axes.set_title("figure relative to its floor (left of 1 is better)", fontsize=9, loc="left")
    kinds = FIGURES[report.topic]
    for y, j in enumerate(judged):
        lower = kinds[j.figure].better == "lower"
        place, goal = (
            (j.value / j.floor, j.goal / j.floor)
            if lower
            else (j.floor / max(j.value, 1e-9), j.floor / j.goal)
        )
        color = COLORS.get(j.verdict, FAINT)
        axes.barh(y, place, height=0.55, color=color, alpha=0.85)
        axes.plot([goal, goal], [y - 0.36, y + 0.36], color="black", lw=1.2)
        words = f"{in_words(j.value, kinds[j.figure].unit)}  {j.verdict}"
        axes.text(max(place, goal) + 0.05, y, words, va="center", fontsize=8)
    axes.axvline(1, color="black", lw=0.8, ls=":")
    axes.set_yticks(range(len(judged)), [j.figure for j in judged], fontsize=8)
    _tidy(axes, len(judged))
    axes.set_xlim(0, 1.6 * max([1.0, axes.get_xlim()[1] / 1.05]))
    axes.set_xlabel("bar: measured; black mark: goal; dotted line: floor", fontsize=8)


def _times(axes: Any, report: Report) -> None:
    axes.set_title("times: median, with least and most", fontsize=9, loc="left")
    for y, row in enumerate(report.rows):
        axes.plot([min(row.ms), max(row.ms)], [y, y], color=PLAIN, lw=2.5, marker="|", alpha=0.6)
        axes.plot(row.median, y, color=PLAIN, marker="o", ms=6)
        axes.text(max(row.ms) * 1.08, y, f"{in_words(row.median)} ms", va="center", fontsize=8)
    axes.set_xscale("log")
    if report.rows:
        low, high = min(min(r.ms) for r in report.rows), max(max(r.ms) for r in report.rows)
        axes.set_xlim(0.6 * low, 3 * high)
    axes.set_yticks(range(len(report.rows)), [r.name for r in report.rows], fontsize=8)
    axes.set_xlabel("ms, logarithmic", fontsize=8)
    axes.grid(axis="x", color="#e3e5e8", lw=0.6)
    _tidy(axes, len(report.rows))


def _tidy(axes: Any, rows: int) -> None:
    axes.set_ylim(rows - 0.4, -0.6)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
