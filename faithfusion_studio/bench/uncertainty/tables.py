"""The report of the topic `uncertainty`: rows as JSON and CSV, Markdown per block, and its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faithfusion_studio.bench.report import Report, in_words
from faithfusion_studio.bench.uncertainty.scoring import SceneScores

SHOWN = (
    "ause_l1", "against_block", "ause_dssim", "ause_depth", "aurg", "spearman", "capture10", "nll", "cov90",
    "cov90_calibrated", "ms", "setup_s",
)  # fmt: skip


@dataclass(frozen=True)
class UncertaintyReport(Report):
    """As `Report`, but "rows" is the table of methods: one object per block and method."""

    has_csv = True

    scores: tuple[SceneScores, ...] = ()
    """What the rows were made of."""

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {**super().to_json(), "rows": [dict(row) for row in self.table], "table": []}

    def to_markdown(self) -> str:
        """One table per block, the best AUSE-L1 first; then notes and the protocol."""
        lines = [f"## uncertainty: {self.counts['trainings']:.0f} reconstructions", ""]
        for judgement in self.judgements:
            goal = "" if judgement.goal is None else f" (goal {in_words(judgement.goal)})"
            lines.append(f"- {judgement.figure}: {in_words(judgement.value)}{goal}")
        for block in dict.fromkeys(row["block"] for row in self.table):
            rows = [row for row in self.table if row["block"] == block]
            lines += [
                "",
                f"### {block}, {rows[0]['scenes']} scene(s), {rows[0]['views']} views",
                "",
            ]
            lines += [f"| method | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 1) + "|"]
            lines += [
                f"| {row['method']} | {' | '.join(_cell(row, key) for key in SHOWN)} |"
                for row in rows
            ]
        lines += ["", *(f"- {note}" for note in self.notes), f"Protocol: {self.protocol}"]
        return "\n".join(lines)

    def draw(self, path: Path) -> None:
        """Write sparsification, PSNR against kept EIG, and reliability, per block."""
        from faithfusion_studio.bench.uncertainty.pictures import draw_uncertainty

        draw_uncertainty(self, path)


def _cell(row: Any, key: str) -> str:
    text = in_words(row[key])
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    if low is None or high is None:
        return text
    return f"{text} ({in_words(low)} to {in_words(high)})"
