"""The picture of a report: every row with its spread, and the table of the topic scale as curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from faithfusion_studio.bench.figures import FIGURES
from faithfusion_studio.bench.report import Report, in_words

COLORS = {"meets goal": "#2f8f5b", "meets floor": "#c58a1a", "MISSES FLOOR": "#c23b3b"}
PLAIN, FAINT = "#4a78b5", "#8a8f98"
SERIES = {"frame": PLAIN, "step": "#b5654a"}


def draw(report: Report, path: Path) -> None:
    """Write the picture of a report (.png or .svg, by suffix)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    judged = [
        j for j in report.judgements if isinstance(j.value, (int, float)) and j.goal is not None
    ]
    parts = [
        (0.5 + 0.42 * len(judged), _targets if judged else None),
        (0.5 + 0.42 * len(report.rows), _times if report.rows else None),
        (3.2, CURVES.get(report.topic) if report.table else None),
    ]
    heights = [height for height, part in parts if part is not None]
    canvas = Canvas(figsize=(9, 1.2 + sum(heights)), layout="constrained")
    FigureCanvasAgg(canvas)
    boxes = iter(canvas.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    for _, part in parts:
        if part is not None:
            part(next(boxes), report)
    width, height = report.config.size
    canvas.suptitle(
        f"ff-studio bench {report.topic}: {report.config.gaussians:,} Gaussians, {width}x{height}, "
        f"{report.config.threads} threads",
        fontsize=11,
    )
    canvas.savefig(path, dpi=130)


def _targets(box: Any, report: Report) -> None:
    """Each figure over its floor, so that 1 is the floor and the better side is always on the left."""
    axes = box.subplots()
    judged = [
        j for j in report.judgements if isinstance(j.value, (int, float)) and j.goal is not None
    ]
    axes.set_title("figure relative to its floor (left of 1 is better)", fontsize=9, loc="left")
    kinds = FIGURES[report.topic]
    for y, j in enumerate(judged):
        lower = kinds[j.figure].better == "lower"
        place, goal = (
            (_over(j.value, j.floor), _over(j.goal, j.floor))
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


def _over(value: float, floor: float) -> float:
    """A value over its floor; over a floor of nothing, anything at all is beyond it."""
    return value / floor if floor else 2.0 * (value > 0)


def _times(box: Any, report: Report) -> None:
    axes = box.subplots()
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


def _growth(box: Any, report: Report) -> None:
    """Time and memory over N, time over pixels, with the slope of N log N beside them."""
    over_n, over_pixels, memory = box.subplots(1, 3)
    c = report.config
    along_n = [
        r for r in report.table if (r["width"], r["height"]) == c.size and r["n"] in c.counts
    ]
    along_pixels = [
        r for r in report.table if r["n"] == c.gaussians and (r["width"], r["height"]) in c.sizes
    ]
    for axes, rows, key, label in (
        (over_n, along_n, "n", "Gaussians"),
        (over_pixels, along_pixels, "pixels", "pixels"),
    ):
        for what, color in SERIES.items():
            here = [r for r in rows if r["what"] == what]
            if here:
                x, y = [r[key] for r in here], [r["ms"] for r in here]
                slope = report.figures[f"{what}_exponent_{key}"]
                axes.loglog(x, y, "o-", ms=4, color=color, label=f"{what}, slope {in_words(slope)}")
                guide = [y[0] * n * math.log(n) / (x[0] * math.log(x[0])) for n in x]
                axes.loglog(x, guide, ":", lw=1, color=color)
        axes.set_title("ms (dotted: growth like N log N)", fontsize=9, loc="left")
        axes.set_xticks(sorted({r[key] for r in rows}))
        _legend(axes, label)
    for what, color in SERIES.items():
        here = [r for r in along_n if r["what"] == what]
        memory.loglog(
            [r["n"] for r in here],
            [r["bytes"] / 1e9 for r in here],
            "o-",
            ms=4,
            color=color,
            label=what,
        )
    memory.axhline(6, color="black", lw=0.8, ls=":")
    memory.set_title("peak memory, GB (dotted: 6)", fontsize=9, loc="left")
    memory.set_xticks(sorted({r["n"] for r in along_n}))
    _legend(memory, "Gaussians")


def _race(box: Any, report: Report) -> None:
    """Held-out PSNR over wall time, of our trainer and of the peer."""
    axes = box.subplots()
    for who, color in (("ours", PLAIN), ("peer", "#b5654a")):
        here = [r for r in report.table if r["who"] == who]
        axes.plot(
            [r["seconds"] for r in here],
            [r["psnr_holdout"] for r in here],
            "o-",
            ms=4,
            color=color,
            label=who,
        )
    axes.set_title("held-out PSNR, dB, over seconds of training", fontsize=9, loc="left")
    _legend(axes, "s")


def _short(value: Any, _position: Any = 0) -> str:
    """A number on an axis: 50k, 1.3M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _legend(axes: Any, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_short))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color="#e3e5e8", lw=0.6)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


CURVES = {"scale": _growth, "train": _race}
