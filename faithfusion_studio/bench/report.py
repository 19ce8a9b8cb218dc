"""What a benchmark measures, how, and how it is told: alternating runs, medians, ratios."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faithfusion_studio.errors import StudioError

PROTOCOL = (
    "wall time, everything interleaved in one process: each repeat runs every row once in the same "
    "order after one warm-up; median (min to max). Ratios are medians of the ratios within each "
    "repeat, so a load on the machine that lasts longer than a repeat cancels. Absolute times hold "
    "for this machine and its load only."
)


class BenchError(StudioError):
    """A benchmark that measures nothing."""


@dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    gaussians: int = 100_000
    """Of the generated street."""
    size: tuple[int, int] = (640, 360)
    """Width and height, pixels."""
    repeats: int = 5
    """Alternating runs after the warm-up."""
    seed: int = 0


@dataclass(frozen=True)
class Timing:
    """One thing that was timed."""

    name: str
    ms: tuple[float, ...]
    """One wall time per repeat."""

    @property
    def median(self) -> float:
        """ms."""
        return statistics.median(self.ms)


@dataclass(frozen=True)
class Report:
    """The result of a topic."""

    topic: str
    config: BenchConfig
    rows: tuple[Timing, ...]
    ratios: Mapping[str, float]
    counts: Mapping[str, float]
    """What was measured: visible Gaussians and the like."""

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "topic": self.topic,
            "config": asdict(self.config),
            "rows": [
                {"name": r.name, "ms": r.median, "min_ms": min(r.ms), "max_ms": max(r.ms)}
                for r in self.rows
            ],
            "ratios": dict(self.ratios),
            "counts": dict(self.counts),
            "machine": machine(),
            "protocol": PROTOCOL,
        }

    def to_markdown(self) -> str:
        """A table of times, a table of ratios, and the protocol."""
        width, height = self.config.size
        lines = [
            f"## {self.topic}: {self.config.gaussians:,} Gaussians, {width}x{height}",
            "",
            "| what | ms | min | max |",
            "|---|---|---|---|",
            *(
                f"| {r.name} | {r.median:.1f} | {min(r.ms):.1f} | {max(r.ms):.1f} |"
                for r in self.rows
            ),
            "",
            "| ratio | value |",
            "|---|---|",
            *(f"| {name} | {value:.2f} |" for name, value in self.ratios.items()),
            "",
            ", ".join(f"{name} {value:,.1f}" for name, value in self.counts.items()),
            "",
            f"Machine: {', '.join(f'{k} {v}' for k, v in machine().items())}.",
            f"Protocol: {PROTOCOL}",
        ]
        return "\n".join(lines)

    def write(self, folder: Path) -> list[Path]:
        """Write bench_TOPIC.json and bench_TOPIC.md; returns both paths."""
        files = [folder / f"bench_{self.topic}{suffix}" for suffix in (".json", ".md")]
        files[0].write_text(json.dumps(self.to_json(), indent=1) + "\n")
        files[1].write_text(self.to_markdown() + "\n")
        return files


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {"cpu": cpu, "cores": os.cpu_count() or 1, "load": round(load, 1)}


def interleave(
    calls: Mapping[str, Callable[[], object]], repeats: int
) -> tuple[tuple[Timing, ...], Callable[[str, str], float]]:
    """Time several calls in turns.

    Args:
        calls: What to time, by name; run in this order.
        repeats: Rounds after one warm-up round.

    Returns:
        The timings, and a function that gives the median ratio of two of them.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if round_ > 0:
                times[name].append(1000 * (time.perf_counter() - started))

    def ratio(numerator: str, denominator: str) -> float:
        pairs = zip(times[numerator], times[denominator], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return tuple(Timing(name, tuple(values)) for name, values in times.items()), ratio
