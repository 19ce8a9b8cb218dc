"""How time and memory grow with the number of Gaussians and of pixels.

Every point is measured in a process of its own that opens the street from a file, so that its peak
memory is that of a program that opens, renders and then trains such a scene.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from faithfusion_studio.bench.measuring import interleave
from faithfusion_studio.bench.report import BenchConfig, BenchError, Report
from faithfusion_studio.bench.street import bench_camera, bench_scene

PROTOCOL = (
    "every point in a process of its own, which opens the street from a file, draws frames, then trains: "
    "wall time, medians over the repeats after one warm-up; bytes are the peak memory of that process so "
    "far. Slopes are least squares of the logarithms."
)
LARGE = 4_000_000
"""Gaussians that have to open and render within 6 GB."""
NOTHING_WORSE = "no worse than N log N"


@dataclass(frozen=True)
class Point:
    """One measurement."""

    what: str
    """"open" (read the file), "frame" or "step" (one whole training step)."""
    n: int
    pixels: int
    width: int
    height: int
    ms: float
    """Median."""
    bytes: int
    """Peak memory of the process so far."""


def run_scale(config: BenchConfig) -> Report:
    """Points along N at one size and along the pixels at one N, with their slopes."""
    if not config.counts or not config.sizes:
        raise BenchError("bench: scale needs at least one number of Gaussians and one size.")
    points: list[Point] = []
    wanted = {(n, config.size) for n in config.counts}
    wanted |= {(config.gaussians, size) for size in config.sizes}
    with tempfile.TemporaryDirectory() as folder:
        path, written = Path(folder) / "street.ckpt", -1
        for n, size in sorted(wanted):
            if n != written:
                _write(n, config.seed, path)
                written = n
            points += _measured(path, size, config)
    return Report("scale", config, _figures(points, config), table=tuple(asdict(p) for p in points))


def _write(gaussians: int, seed: int, path: Path) -> None:
    from faithfusion_studio.io import save_scene

    save_scene(bench_scene(gaussians, seed), path)


def _measured(path: Path, size: tuple[int, int], config: BenchConfig) -> list[Point]:
    code = (
        "import sys; from faithfusion_studio.bench.scaling import measure; "
        "measure(sys.argv[1], *map(int, sys.argv[2:]))"
    )
    words = [str(path), *map(str, (*size, config.repeats, config.threads))]
    run = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        said = run.stderr.strip().splitlines()
        raise BenchError(f"bench: a point of the topic scale failed: {said[-1] if said else '?'}.")
    return [Point(**line) for line in json.loads(run.stdout.splitlines()[-1])]


def measure(path: str, width: int, height: int, repeats: int, threads: int) -> None:
    """Open a street, draw it, train on it; prints the points as JSON. Runs in a process of its own."""
    from faithfusion_studio.bench.rendering import frame_call
    from faithfusion_studio.bench.training import street_trainer
    from faithfusion_studio.io import load_scene

    found: list[Point] = []
    started = time.perf_counter()
    scene = load_scene(path)
    opened = 1000 * (time.perf_counter() - started)
    n, size = scene.num_gaussians, (width, height)

    def note(what: str, ms: float) -> None:
        found.append(Point(what, n, width * height, width, height, ms, peak_bytes()))

    note("open", opened)
    frame = frame_call(scene.background, bench_camera(size))
    note("frame", interleave({"frame": lambda: frame(threads)}, repeats)["frame"].median)
    step = street_trainer(scene, size, threads)
    note("step", interleave({"step": step}, repeats)["step"].median)
    sys.stdout.write(json.dumps([asdict(point) for point in found]) + "\n")


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _figures(points: list[Point], config: BenchConfig) -> dict[str, float | str | None]:
    along_n = [p for p in points if (p.width, p.height) == config.size and p.n in config.counts]
    along_pixels = [
        p for p in points if p.n == config.gaussians and (p.width, p.height) in config.sizes
    ]
    slopes: dict[str, float | None] = {}
    limits: dict[str, float] = {}
    for name, chosen, axis in (("n", along_n, "n"), ("pixels", along_pixels, "pixels")):
        for what in ("frame", "step"):
            here = [p for p in chosen if p.what == what]
            size = [float(getattr(p, axis)) for p in here]
            key = f"{what}_exponent_{name}"
            slopes[key] = slope(size, [p.ms for p in here])
            limits[key] = slope(size, [x * math.log(x) for x in size]) or math.inf
    worse = [k for k, value in slopes.items() if value is not None and value > limits[k]]
    memory = {what: _growth([p for p in along_n if p.what == what]) for what in ("frame", "step")}
    large = [p.bytes for p in points if p.what == "frame" and p.n == LARGE]
    return {
        **slopes,
        "n_log_n_exponent": limits["frame_exponent_n"]
        if math.isfinite(limits["frame_exponent_n"])
        else None,
        "growth": "worse than N log N: " + ", ".join(worse) if worse else NOTHING_WORSE,
        "frame_bytes_per_gaussian": memory["frame"],
        "step_bytes_per_gaussian": memory["step"],
        "open_and_render_4m_bytes": float(max(large)) if large else None,
    }


def slope(x: list[float], y: list[float]) -> float | None:
    """Least-squares slope of log y over log x; None for fewer than two different x."""
    if len(set(x)) < 2:
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _growth(points: list[Point]) -> float | None:
    """Bytes per Gaussian, least squares."""
    n = [float(p.n) for p in points]
    if len(set(n)) < 2:
        return None
    return float(np.polyfit(n, [float(p.bytes) for p in points], 1)[0])
