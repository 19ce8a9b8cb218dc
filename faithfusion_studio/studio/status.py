"""The status line: device, speed, size of the scene, memory, and whether it is saved."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from faithfusion_studio.studio.view_state import Measurement

JOBS = {"fisher": "Evidence", "repair": "Repair", "fusion": "Fusion", "save": "Saving"}


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
    job = state.job
    parts = [
        _device_text(state.device) if job is None else _job_text(job),
        f"{speed} at {width}x{height}",
        f"{count_text(state.num_gaussians)} splats",
        f"{memory_bytes() / 1e9:.1f} GB",
        "unsaved" if state.unsaved else "saved",
    ]
    if job is None:
        parts.append("H: keys")
    return " · ".join(parts)


def _job_text(job: Any) -> str:
    """The running job in few words; its tab tells the whole."""
    total = f" {job.done}/{job.total}" if job.total else ""
    return f"{JOBS.get(job.kind, job.kind)}{total}{' (paused)' if job.paused else ''}"


def _device_text(device: str) -> str:
    """The device without what stands in brackets, which the terminal has told."""
    return re.sub(r" \([^)]*\)", "", device)
