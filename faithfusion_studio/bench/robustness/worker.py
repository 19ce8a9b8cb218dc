"""A child process that opens mutants and says, a JSON line at a time, what came of them.

Arguments: one JSON object with "names", "first" (of the first name), "skip", "mutants", "gaussians",
"seed". A crash ends the process; the parent sees which mutant was being opened and goes on after it.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from time import process_time
from typing import Any

from faithfusion_studio.bench.robustness.mutants import mutant, seeded
from faithfusion_studio.bench.robustness.samples import SAMPLES, Sample
from faithfusion_studio.errors import StudioError

SECONDS = 2.0
"""Processor time a mutant may take."""
MEMORY = 256 << 20
"""Bytes a mutant may take beyond four times its size."""
_CEILING = 4 << 30
"""Address space beyond which nothing is given, so that the machine stays usable."""
_REPORT_EVERY = 250
_MAX_LINE = 700


class TooSlow(BaseException):
    """Raised by the clock; no reader may catch it."""


def _too_slow(*_: Any) -> None:
    raise TooSlow


def memory(key: str) -> int:
    """VmRSS, VmHWM or VmSize of this process, bytes; 0 where the system does not tell."""
    try:
        found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def forget_peak() -> None:
    """Let the peak of memory start from what is used now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def opened(sample: Sample, target: Path) -> int | None:
    """Gaussians a file gave, those that were dropped included; None for a recording."""
    from faithfusion_studio.io import camera_path_stems, load_capture, load_scene, read_camera_path

    if sample.opens == "capture":
        load_capture(target)
        return None
    if sample.opens == "path":
        read_camera_path(target)
        camera_path_stems(target)
        return None
    scene = load_scene(target)
    text = " ".join(map(str, scene.metadata.get("notes", [])))
    dropped = re.findall(r"([\d,]+) of [\d,]+ Gaussians were left out", text)
    return scene.num_gaussians + sum(int(count.replace(",", "")) for count in dropped)


def judged(sample: Sample, target: Path, data: bytes, count: int) -> tuple[str, str]:
    """What opening one mutant came to, and a sentence about it."""
    before = memory("VmRSS")
    forget_peak()
    started = process_time()
    try:
        found = opened(sample, target)
        verdict, told = "opened", ""
        if found not in (None, count, sample.declared(data)):
            verdict, told = "wrong count", f"{found} Gaussians of {count}"
    except StudioError as error:
        verdict, told = "refused", str(error)
        if "\n" in told or len(told) > _MAX_LINE:
            verdict = "traceback"
    except TooSlow:
        return "hang", f"more than {SECONDS:g} s"
    except Exception as error:  # exactly what must not come out of a reader
        verdict, told = "traceback", f"{type(error).__name__}: {str(error)[:200]}"
    peak = memory("VmHWM") - before
    if peak > MEMORY + 4 * len(data):
        return "memory", f"{peak >> 20} MiB for {len(data):,} bytes"
    if process_time() - started > SECONDS:
        return "hang", f"{process_time() - started:.1f} s"
    return verdict, told


def _run(name: str, order: dict[str, Any], first: int) -> None:
    sample = SAMPLES[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = sample.make(folder, order["gaussians"])
        target = folder if sample.by_folder else path
        good = path.read_bytes()
        count = opened(sample, target)
        tally: dict[str, int] = {}
        for index in range(first, order["mutants"]):
            if [name, index] not in order["skip"]:
                data = mutant(good, sample.container, seeded(order["seed"], name, index))
                path.write_bytes(data)
                Path(order["progress"]).write_text(f"{name}\n{index}")
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                try:
                    verdict, told = judged(sample, target, data, count or 0)
                except TooSlow:
                    verdict, told = "hang", f"more than {SECONDS:g} s"
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                tally[verdict] = tally.get(verdict, 0) + 1
                if verdict not in ("opened", "refused"):
                    say({"name": name, "index": index, "verdict": verdict, "told": told})
            if (index + 1) % _REPORT_EVERY == 0 or index + 1 == order["mutants"]:
                say({"name": name, "done": index + 1, "tally": tally})
                tally = {}


def say(line: dict[str, Any]) -> None:
    """One JSON line to the parent."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Open the mutants that were ordered."""
    order = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _too_slow)
    import torch

    torch.set_num_threads(1)
    ceiling = memory("VmSize") + _CEILING
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    for number, name in enumerate(order["names"]):
        _run(name, order, order["first"] if number == 0 else 0)


if __name__ == "__main__":
    main()
