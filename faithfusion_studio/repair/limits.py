"""What an engine may cost: refusing early, in one sentence, what would be hopeless on this machine."""

from __future__ import annotations

import math
import os

from faithfusion_studio.errors import StudioError
from faithfusion_studio.repair.base import RepairBatch, Repairer, RepairError
from faithfusion_studio.repair.devices import free_vram_gib
from faithfusion_studio.repair.model_store import CATALOG
from faithfusion_studio.repair.registry import REPAIRERS

PATIENCE_MINUTES = 30.0
"""A repair that would take longer is refused, unless its budget or the variable `PATIENCE` allows it."""
PATIENCE = "FF_STUDIO_PATIENCE"
"""Environment variable with another number of minutes; `--patience` of the commands sets it."""


def patience_seconds() -> float:
    """How long a repair may take before it is refused, s.

    Raises:
        RepairError: The variable `PATIENCE` is not a number above 0.
    """
    text = os.environ.get(PATIENCE) or str(PATIENCE_MINUTES)
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not minutes > 0:
        raise RepairError(f"{PATIENCE}: found {text!r}; expected minutes, more than 0.")
    return 60 * minutes


def check_limits(repairer: Repairer, batch: RepairBatch) -> None:
    """Raise where a batch is over its budget, or hopeless where it has none.

    Raises:
        RepairError: The estimate is too long, or the GPU has too little memory free.
    """
    limit = batch.budget.seconds
    count, height, width = batch.renders.shape[:3]
    if limit is None:
        refuse_hopeless(repairer, count, height, width, batch.budget.device)
        return
    needed = repairer.estimate_seconds(count, height, width, batch.budget.device)
    if needed > limit:
        raise RepairError(
            f"{repairer.info.title} needs about {needed:.0f} s for {count} frames on "
            f"{batch.budget.device}, more than the {limit:.0f} s allowed; choose fewer frames, "
            "a smaller size or another engine."
        )


def refuse_hopeless(
    repairer: Repairer, frames: int, height: int, width: int, device: str = "cpu"
) -> None:
    """Raise before a repair starts that this device cannot do in reasonable time or memory.

    Args:
        repairer: The engine.
        frames: Of the whole segment.
        height: Of a frame, pixels.
        width: Of a frame, pixels.
        device: Where the engine would run.

    Raises:
        RepairError: With the estimate, and an engine that would do.
    """
    free, wanted = free_vram_gib(device), repairer.info.minimum_vram_gib
    if free is not None and free < wanted:
        raise RepairError(
            f"{repairer.info.title} needs {wanted:.0f} GiB of GPU memory and {free:.1f} GiB are "
            "free; close other programs on the GPU, or choose another engine."
        )
    needed = repairer.estimate_seconds(frames, height, width, device)
    if needed > patience_seconds():
        where = "this GPU" if device.startswith("cuda") else "this CPU"
        raise RepairError(
            f"{repairer.info.title} on {where}: about {in_words(needed)} for {frames} frames; "
            f"choose fewer frames, or {_alternative(repairer, frames, height, width, device)}; who "
            f"wants to wait allows it with --patience MINUTES."
        )


def _alternative(repairer: Repairer, frames: int, height: int, width: int, device: str) -> str:
    """An engine that would do, with its estimate: of our own ones the last named that loads."""
    for name in reversed(REPAIRERS):
        if name == repairer.name or name in CATALOG:
            continue
        try:
            other = REPAIRERS[name]()
        except StudioError:
            continue
        seconds = other.estimate_seconds(frames, height, width, device)
        if seconds < PATIENCE_MINUTES * 60:
            return f"use the engine {name}, about {in_words(seconds)}"
    return "another engine"


def in_words(seconds: float) -> str:
    """For people: "20 s", "4 min", "9 h"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
