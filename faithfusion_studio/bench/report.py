"""What a benchmark measures and how it is told: one object of stable keys, Markdown, a plot."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from faithfusion_studio.bench.figures import FIGURES, Judgement, Value, judge
from faithfusion_studio.bench.measuring import PROTOCOL, Timing, machine, versions
from faithfusion_studio.errors import StudioError


class BenchError(StudioError):
    """A benchmark that measures nothing."""


@dataclass(frozen=True)
class BenchConfig:
    """What is measured; `topics.configure` knows the sizes of each topic."""

    gaussians: int
    """Of the generated street."""
    size: tuple[int, int]
    """Width and height, pixels; of the browser's canvas in the topic view."""
    repeats: int
    """Alternating runs after the warm-up."""
    threads: int = 2
    """Of the core."""
    seed: int = 0
    """Of the generated street."""
    counts: tuple[int, ...] = ()
    """scale: numbers of Gaussians, at `size`."""
    sizes: tuple[tuple[int, int], ...] = ()
    """scale: widths and heights, at `gaussians`."""
    seconds: float = 8.0
    """view: how long the camera moves, without and with fusion each. train: how long each races."""
    recorded: tuple[int, int] = (1242, 376)
    """view: width and height of the recorded frames; fusion trains at half of that."""
    peer: str | None = None
    """train: the program OpenSplat, run beside our trainer."""
    capture: str | None = None
    """train: the recording both train on; uncertainty, fusion: one that brings its truth; None generates one."""
    scenes: int = 0
    """uncertainty, fusion: test streets."""
    family: str = "urban"
    """uncertainty: kind of the test streets."""
    trainings: int = 1
    """uncertainty, fusion: reconstructions of each scene, by seed."""
    members: int = 0
    """uncertainty: further trainings of the ensemble, each on a bootstrap of the frames; with 0 the other trainings
    of the scene are its members, and with fewer than three of these it is left out."""
    steps: int = 0
    """uncertainty, fusion: of each reconstruction."""
    views: int = 0
    """uncertainty: true views per scene and block."""
    formats: tuple[str, ...] = ()
    """robustness: names of the formats; all when empty."""
    mutants: int = 0
    """robustness: damaged files per format, each of `gaussians`."""
    kills: int = 0
    """robustness: saves that are killed."""
    scale: float = 1.0
    """uncertainty, fusion: size of everything over the recorded size."""
    offset: float = 3.0
    """fusion: lateral offset of the true views of procedural streets, m."""
    engines: tuple[str, ...] = ()
    """fusion: repair engines by name, the first with all chains; all that can be used where empty."""
    pace: float = 1.0
    """fusion: factor on the steps of every distillation."""
    plans: bool = True
    """fusion: also compare the named plans at equal steps."""
    detector: str | None = None
    """fusion: a YOLOX network as ONNX, for the IoU of vehicles."""
    lane_net: str | None = None
    """fusion: the weights of TwinLiteNet, for the IoU of lanes."""


@dataclass(frozen=True)
class Report:
    """The result of a topic.

    The JSON object has, at its top level: "topic"; every key of `figures.FIGURES[topic]` with a number,
    a text or null; "targets" (one entry per figure that has one: figure, value, goal, floor, verdict,
    protocol); "rows" (name, ms = median, min_ms, max_ms, cpu_ms = median over
    all threads, runs); "counts"; "table" (topic scale: what, n, pixels,
    width, height, ms, bytes; topic train with a peer: who, seconds, steps, gaussians, psnr_holdout); "config"; "machine"; "versions"; "protocol"; "notes".
    """

    topic: str
    config: BenchConfig
    figures: Mapping[str, Value]
    rows: tuple[Timing, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)
    """What was measured: visible Gaussians and the like."""
    table: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    protocol: str = PROTOCOL
    """How it was measured."""
    has_csv: ClassVar[bool] = False
    """Whether the table is written as CSV too."""

    def __post_init__(self) -> None:
        assert set(self.figures) == set(FIGURES[self.topic]), "the keys of a topic are fixed"

    @property
    def judgements(self) -> list[Judgement]:
        """Every figure beside its target."""
        c = self.config
        return judge(self.topic, self.figures, c.gaussians, c.size, c.threads)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "topic": self.topic,
            **self.figures,
            "targets": [asdict(j) for j in self.judgements if j.verdict is not None],
            "rows": [
                {
                    "name": r.name,
                    "ms": r.median,
                    "min_ms": min(r.ms),
                    "max_ms": max(r.ms),
                    "cpu_ms": statistics.median(r.cpu_ms) if r.cpu_ms else None,
                    "runs": len(r.ms),
                }
                for r in self.rows
            ],
            "counts": dict(self.counts),
            "table": [dict(row) for row in self.table],
            "config": asdict(self.config),
            "machine": machine(),
            "versions": versions(),
            "protocol": self.protocol,
            "notes": list(self.notes),
        }

    def to_markdown(self) -> str:
        """Figures with their targets, times, counts, and the protocol."""
        width, height = self.config.size
        kinds = FIGURES[self.topic]
        lines = [
            f"## {self.topic}: {self.config.gaussians:,} Gaussians, {width}x{height}, "
            f"{self.config.threads} threads",
            "",
            "| figure | value | goal | floor | verdict | what |",
            "|---|---|---|---|---|---|",
            *(
                f"| {j.figure} | {in_words(j.value, kinds[j.figure].unit)} | {in_words(j.goal)} "
                f"| {in_words(j.floor)} | {_verdict(j)} | {kinds[j.figure].meaning} |"
                for j in self.judgements
            ),
        ]
        if self.rows:
            lines += [
                "",
                "| time | median ms | min | max | CPU ms | runs |",
                "|---|---|---|---|---|---|",
            ]
            lines += [
                f"| {r.name} | {r.median:.1f} | {min(r.ms):.1f} | {max(r.ms):.1f} "
                f"| {f'{statistics.median(r.cpu_ms):.1f}' if r.cpu_ms else '-'} | {len(r.ms)} |"
                for r in self.rows
            ]
        if self.table:
            keys = list(self.table[0])
            lines += ["", f"| {' | '.join(keys)} |", "|" + "---|" * len(keys)]
            lines += [f"| {' | '.join(in_words(row[k]) for k in keys)} |" for row in self.table]
        if self.counts:
            lines += ["", ", ".join(f"{k} {in_words(v)}" for k, v in self.counts.items()) + "."]
        lines += ["", *(f"- {note}" for note in self.notes)]
        stated = {**machine(), **versions()}
        lines += [f"Machine: {', '.join(f'{k} {v}' for k, v in stated.items())}."]
        return "\n".join([*lines, f"Protocol: {self.protocol}"])

    def write(self, folder: Path) -> list[Path]:
        """Write bench_TOPIC.json, .md, .png and, where the table is the result, .csv; returns the paths."""
        suffixes = (".json", ".md", ".png", *((".csv",) if self.has_csv else ()))
        files = [folder / f"bench_{self.topic}{suffix}" for suffix in suffixes]
        files[0].write_text(json.dumps(self.to_json(), indent=1) + "\n")
        files[1].write_text(self.to_markdown() + "\n")
        self.draw(files[2])
        if self.has_csv:
            with files[3].open("w", newline="") as file:
                writer = csv.DictWriter(file, list(self.table[0]))
                writer.writeheader()
                writer.writerows(self.table)
        return files

    def draw(self, path: Path) -> None:
        """Write the picture of the report (.png or .svg, by suffix)."""
        from faithfusion_studio.bench.plots import draw

        draw(self, path)


def in_words(value: Value | int, unit: str = "") -> str:
    """A value for people; three significant digits, whole numbers with separators."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if value == 0 or 1e-2 <= abs(value) < 1000:
        text = f"{value:.3g}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"
    return f"{text} {unit}".rstrip()


def _verdict(judgement: Judgement) -> str:
    if judgement.verdict is None:
        return ""
    if judgement.verdict == "n/a at this size":
        return f"n/a at this size (set for {judgement.protocol})"
    return judgement.verdict
