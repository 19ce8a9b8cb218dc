"""What engines there are and whether they can run here, told without loading their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from faithfusion_studio.errors import StudioError
from faithfusion_studio.repair.base import RepairerInfo, RepairError
from faithfusion_studio.repair.model_store import (
    CATALOG,
    LicenceError,
    ModelEntry,
    required_folder,
)
from faithfusion_studio.repair.registry import REPAIRERS, create_repairer

LARGE = {
    "difix": ("difix", "DifixRepairer"),
    "eigent-vace": ("eigent_vace", "VaceRepairer"),
    "eigent-cogvideox": ("eigent_cogvideox", "CogVideoXRepairer"),
}
"""Module and class of the engines in `CATALOG`; each tells `info` and `full_size_seconds`."""


@dataclass(frozen=True)
class EngineFacts:
    """One engine, as a table or a panel shows it."""

    name: str
    info: RepairerInfo
    seconds: Callable[[int, int, int, str], float] | None
    """Expected time from frames, height, width and device; None where the engine does not load."""
    problem: str | None
    """Why it cannot run, one sentence; None when it can."""
    entry: ModelEntry | None = None
    """Its weights, where they are not ours."""
    must_accept: bool = False
    """Whether all is there and only the licence of the weights was not accepted yet."""


def engine_facts(name: str) -> EngineFacts:
    """What is known about an engine; large weights are looked for, not loaded.

    Raises:
        RepairError: No engine has this name.
    """
    if name in LARGE:
        module, kind = LARGE[name]
        engine = getattr(import_module(f"faithfusion_studio.repair.{module}"), kind)
        entry = CATALOG[name]
        problem = _problem(entry)
        return EngineFacts(
            name,
            engine.info,
            engine.full_size_seconds,
            None if problem is None else str(problem),
            entry,
            isinstance(problem, LicenceError),
        )
    try:
        loaded = create_repairer(name)
    except StudioError as error:
        if name not in REPAIRERS:
            raise
        unknown = RepairerInfo(title=name, summary="", licence="")
        return EngineFacts(name, unknown, None, str(error))
    return EngineFacts(name, loaded.info, loaded.estimate_seconds, None)


def _problem(entry: ModelEntry) -> StudioError | None:
    """Why the weights of an entry cannot be used; None where they can."""
    try:
        if find_spec("diffusers") is None:
            raise RepairError(
                "this engine needs diffusers; install the extra: pip install "
                "'faithfusion-studio[diffusion]'."
            )
        required_folder(entry)
    except StudioError as error:
        return error
    return None
