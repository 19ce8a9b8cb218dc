"""The report of the topic `fusion`: rows as JSON and CSV, Markdown per group, and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faithfusion_studio.bench.report import Report, in_words

SHOWN = (
    "bad_half_db", "good_half_db", "recorded_db", "psnr", "psnr_ucr", "psnr_hpr", "ssim", "ssim_ucr", "ssim_hpr",
    "lpips", "blur_bad_db", "blur_good_db", "warp_error", "lane_iou", "vehicle_iou", "trusted_moved", "seconds",
)  # fmt: skip
NAMES = ("engine", "repair", "distillation", "plan")


@dataclass(frozen=True)
class FusionReport(Report):
    """As `Report`, but "rows" is the table of chains: one object per group, offset, engine, repair and distillation."""

    has_csv = True

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {**super().to_json(), "rows": [dict(row) for row in self.table], "table": []}

    def to_markdown(self) -> str:
        """One table per offset and group; then notes and the protocol."""
        lines = [f"## fusion: {self.counts['trainings']:.0f} reconstructions", ""]
        for judgement in self.judgements:
            goal = "" if judgement.goal is None else f" (goal {in_words(judgement.goal)})"
            lines.append(f"- {judgement.figure}: {in_words(judgement.value)}{goal}")
        for key in dict.fromkeys((row["offset_m"], row["group"]) for row in self.table):
            rows = [row for row in self.table if (row["offset_m"], row["group"]) == key]
            lines += ["", f"### {key[0]:+g} m, {key[1]}, {rows[0]['scenes']} scene(s)", ""]
            lines += [f"| {' | '.join((*NAMES, *SHOWN))} |", "|---" * len((*NAMES, *SHOWN)) + "|"]
            lines += [
                f"| {' | '.join([*(row[n] for n in NAMES), *(_cell(row, key) for key in SHOWN)])} |"
                for row in rows
            ]
        lines += ["", *(f"- {note}" for note in self.notes), f"Protocol: {self.protocol}"]
        return "\n".join(lines)

    def draw(self, path: Path) -> None:
        """Write what every chain did to the bad and to the good half, as points with intervals."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        rows = [row for row in self.table if row["bad_half_db"] is not None]
        canvas = Figure(figsize=(9, 1.5 + 0.28 * len(rows)), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots(1, 1)
        for name, color in (("bad_half_db", "#b5654a"), ("good_half_db", "#2f6fb3")):
            for place, row in enumerate(rows):
                axes.plot(row[name], -place, "o", color=color, markersize=5)
                low, high = row[f"{name}_low"], row[f"{name}_high"]
                if low is not None:
                    axes.plot([low, high], [-place, -place], color=color, linewidth=1)
            axes.plot([], [], "o", color=color, label=name)
        axes.axvline(0, color="#9aa2ad", linewidth=0.8)
        axes.set_yticks([-i for i in range(len(rows))], [_title(row) for row in rows], fontsize=7)
        axes.set_xlabel("PSNR change, dB")
        axes.legend(fontsize=8)
        canvas.savefig(path, dpi=110)


def _title(row: dict[str, Any]) -> str:
    parts = [row["group"], *(row[name] for name in NAMES if row[name] not in ("-", ""))]
    return f"{row['offset_m']:+g} m: {', '.join(parts)}"


def _cell(row: dict[str, Any], key: str) -> str:
    text = in_words(row[key])
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None or high is None:
        return text
    return f"{text} ({in_words(low)} to {in_words(high)})"
