"""The status line: device, speed, size of the scene, memory, and whether it is saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from faithfusion_studio.studio.view_state import Measurement


def memory_bytes() -> int:
    """Resident memory of this process; its peak where the present value is not told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def count_text(count: int) -> str:
    """A number of splats in two or three digits."""
    if count < 1000:
        return str(count)
    if count < 1_000_000:
        return f"{count / 1000:.3g}k"
    return f"{count / 1e6:.3g}M"


def status_text(state: Any, measurement: Measurement) -> str:
    """The status line."""
    width, height = measurement.size
    speed = f"{measurement.fps:.0f} fps" if measurement.fps else f"{measurement.ms:.0f} ms"
    parts = [
        state.device,
        f"{speed} at {width}x{height}",
        f"{count_text(state.num_gaussians)} splats",
        f"{memory_bytes() / 1e9:.1f} GB",
        "unsaved" if state.unsaved else "saved",
    ]
    if state.job is not None:
        total = f" {state.job.done}/{state.job.total}" if state.job.total else ""
        parts.insert(0, f"{state.job.label}{total}{' (paused)' if state.job.paused else ''}")
    parts.append("H: keys")
    return " · ".join(parts)
