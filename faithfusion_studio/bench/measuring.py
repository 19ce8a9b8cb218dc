"""How anything is timed, and on what: alternating runs of everything that is compared."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROTOCOL = (
    "wall time, everything interleaved in one process: each repeat runs every row once in the same "
    "order after one warm-up; median (min to max). Ratios are medians of the ratios within each "
    "repeat, so a load on the machine that lasts longer than a repeat cancels. Absolute times hold "
    "for this machine and its load only."
)


@dataclass(frozen=True)
class Timing:
    """One thing that was timed."""

    name: str
    ms: tuple[float, ...]
    """One wall time per run."""
    cpu_ms: tuple[float, ...]
    """Time of all threads of the process per run; hardly moved by other programs."""

    @property
    def median(self) -> float:
        """ms."""
        return statistics.median(self.ms)


@dataclass(frozen=True)
class Timings:
    """Several things timed in turns."""

    rows: tuple[Timing, ...]

    def __getitem__(self, name: str) -> Timing:
        return next(row for row in self.rows if row.name == name)

    def ratio(self, numerator: str, denominator: str) -> float:
        """Median over the repeats of the ratio of wall times within each repeat in which both ran."""
        pairs = zip(self[numerator].ms, self[denominator].ms, strict=False)
        return statistics.median(a / b for a, b in pairs)

    def cpu_ratio(self, numerator: str, denominator: str) -> float:
        """The same of processor time: for one thread against one thread, where one takes seconds."""
        pairs = zip(self[numerator].cpu_ms, self[denominator].cpu_ms, strict=False)
        return statistics.median(a / max(b, 1e-6) for a, b in pairs)


def interleave(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    fewer: Mapping[str, int] | None = None,
) -> Timings:
    """Time several calls in turns.

    Args:
        calls: What to time, by name; run in this order.
        repeats: Rounds after one warm-up round.
        fewer: Calls too slow for every round: they run in the first so many, without a warm-up.
    """
    fewer = fewer or {}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        for name, call in calls.items():
            if name in fewer and not 1 <= round_ <= fewer[name]:
                continue
            started, worked = time.perf_counter(), time.process_time()
            call()
            if round_ > 0:
                wall[name].append(1000 * (time.perf_counter() - started))
                cpu[name].append(1000 * (time.process_time() - worked))
    return Timings(tuple(Timing(name, tuple(wall[name]), tuple(cpu[name])) for name in calls))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside, torch's own operations use so many threads; its pool suffers where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, Any]:
    """What the numbers hold for: processor, cores this process may use, memory, load, core path."""
    from faithfusion_studio.render.cpu import _load_core

    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {
        "cpu": cpu,
        "cores": cores or 1,
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "load": round(load, 1),
        "instruction_set": _load_core().instruction_set(),
        "system": f"{platform.system()} {platform.release()}",
    }


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def versions() -> dict[str, str]:
    """Of what was measured and what it stands on."""
    import numpy
    import torch

    from faithfusion_studio import __version__

    return {
        "faithfusion_studio": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }
