"""The topic robustness: mutants of every format in child processes, and what hostile files try."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faithfusion_studio.bench.report import BenchConfig, BenchError, Report
from faithfusion_studio.bench.robustness.samples import SAMPLES
from faithfusion_studio.bench.robustness.trust import escapes, nonfinite, pickles

VERDICTS = ("refused", "opened", "crash", "hang", "memory", "traceback", "wrong count")
BAD = VERDICTS[2:]
STUCK = 30.0
"""Seconds of silence after which a child is taken for hung, whatever its clock says."""
_MAX_RESTARTS = 50
PROTOCOL = (
    "each mutant is opened in a child process that has opened the good file before: at most 2 s of its "
    "processor time, at most 256 MiB and four times the file above its memory before (peak, /proc), only "
    "errors of one line, and as many Gaussians as were written or as the damaged file itself says. Half of "
    "the mutants of packed files are damaged inside and packed again. Seeds: config.seed, the name of the "
    "format, the number of the mutant."
)


@dataclass
class Tally:
    """What came of the mutants of one format."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VERDICTS, 0))
    worst: list[str] = field(default_factory=list)
    """The first few that were bad, with their number."""


def run_robustness(config: BenchConfig) -> Report:
    """Mutants, malicious pickles, escaping paths, broken numbers, and kills during saves.

    Raises:
        BenchError: A name of `config.formats` is unknown, or the system has no POSIX signals.
    """
    if sys.platform == "win32":
        raise BenchError("bench robustness: needs POSIX signals and /proc; run it on Linux.")
    names = config.formats or tuple(SAMPLES)
    unknown = [name for name in names if name not in SAMPLES]
    if unknown:
        raise BenchError(
            f"--formats: found {unknown[0]!r}; choose from {', '.join(map(repr, SAMPLES))}."
        )
    tallies = {name: Tally() for name in names}
    shares = [names[part :: config.threads] for part in range(config.threads)]
    threads = [
        threading.Thread(target=_open_mutants, args=(share, config, tallies), daemon=True)
        for share in shares
        if share
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tried, ran, unclear = pickles()
    paths, outside, unclear_paths = escapes()
    broken, miscounted = nonfinite(max(4, config.mutants // 10), config.seed)
    kills = _kills(config)
    notes = [line for tally in tallies.values() for line in tally.worst]
    notes += [f"pickle {line}" for line in unclear] + [f"path {line}" for line in unclear_paths]
    notes += miscounted[:5] + kills["corrupt"][:5]
    notes.append(
        f"{kills['kills']} kills left the old file {kills['old']} times, the new one {kills['new']} "
        f"times; {kills['leftovers']} temporary files were left after the next save."
    )
    totals = {verdict: sum(t.counts[verdict] for t in tallies.values()) for verdict in VERDICTS}
    return Report(
        topic="robustness",
        config=config,
        figures={
            "mutants": float(sum(totals.values())),
            "crashes": float(totals["crash"]),
            "hangs": float(totals["hang"]),
            "memory_excesses": float(totals["memory"]),
            "tracebacks": float(totals["traceback"] + len(unclear) + len(unclear_paths)),
            "wrong_counts": float(totals["wrong count"]),
            "pickles_executed": float(ran),
            "paths_read_outside": float(outside),
            "nonfinite_miscounted": float(len(miscounted)),
            "corrupt_after_kill": float(len(kills["corrupt"])),
        },
        counts={
            "pickles": float(tried),
            "paths": float(paths),
            "nonfinite_files": float(broken),
            "kills": float(kills["kills"]),
        },
        table=tuple({"format": name, **tally.counts} for name, tally in tallies.items()),
        notes=tuple(notes),
        protocol=PROTOCOL,
    )


def _kills(config: BenchConfig) -> Mapping[str, Any]:
    command = [sys.executable, "-m", "faithfusion_studio.bench.robustness.kills"]
    words = [str(config.kills), "20000", str(config.seed)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"bench robustness: the saves ended with {done.stderr.strip()[-200:]}.")
    return json.loads(done.stdout)


def _open_mutants(names: tuple[str, ...], config: BenchConfig, tallies: dict[str, Tally]) -> None:
    """Give a share of the formats to children, one after the other; go on after one that died."""
    left, first, skip = list(names), 0, []
    with tempfile.TemporaryDirectory() as place:
        progress = Path(place) / "progress"
        for _ in range(_MAX_RESTARTS):
            order = {
                "names": left,
                "first": first,
                "skip": skip,
                "mutants": config.mutants,
                "gaussians": config.gaussians,
                "seed": config.seed,
                "progress": str(progress),
            }
            done, how = _child(order, progress, tallies)
            if how is None:
                return
            name, _, index = progress.read_text().partition("\n")
            tallies[name].counts[how] += 1
            tallies[name].worst.append(f"{name} {index}: {how}")
            skip.append([name, int(index)])
            left, first = left[left.index(name) :], done.get(name, 0)
    for name in left:
        tallies[name].worst.append(f"{name}: gave up after {_MAX_RESTARTS} children died")


def _child(
    order: dict[str, Any], progress: Path, tallies: dict[str, Tally]
) -> tuple[dict[str, int], str | None]:
    """Run one child; returns how far each format came, and how it died if it did."""
    command = [sys.executable, "-m", "faithfusion_studio.bench.robustness.worker"]
    child = subprocess.Popen(
        [*command, json.dumps(order)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    hung = threading.Event()
    watch = threading.Thread(target=_watch, args=(child, progress, hung), daemon=True)
    watch.start()
    done: dict[str, int] = {}
    assert child.stdout is not None
    for line in child.stdout:
        told = json.loads(line)
        tally = tallies[told["name"]]
        if "done" in told:
            done[told["name"]] = told["done"]
            for verdict, count in told["tally"].items():
                tally.counts[verdict] += count
        elif len(tally.worst) < 5:
            tally.worst.append(f"{told['name']} {told['index']}: {told['verdict']}, {told['told']}")
    code = child.wait()
    child.stdout.close()
    watch.join()
    if code == 0:
        return done, None
    if not progress.exists():
        raise BenchError("bench robustness: a child ended before it opened anything.")
    return done, "hang" if hung.is_set() else "crash"


def _watch(child: subprocess.Popen[str], progress: Path, hung: threading.Event) -> None:
    """End a child that has been at one mutant for too long."""
    last, since = "", time.monotonic()
    while child.poll() is None:
        time.sleep(0.2)
        now = progress.read_text() if progress.exists() else ""
        if now != last:
            last, since = now, time.monotonic()
        elif now and time.monotonic() - since > STUCK:
            hung.set()
            child.kill()
