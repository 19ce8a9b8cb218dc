"""Background learning: reconstruct a recording, and distil repaired views into the splats."""

from typing import Any

__all__ = [
    "FusionConfig",
    "Progress",
    "Reconstruction",
    "ReconstructionConfig",
    "RepairedFrame",
    "Stage",
    "Trainer",
    "repair_stage",
]

_HOMES = {
    "FusionConfig": "schedule",
    "Progress": "schedule",
    "ReconstructionConfig": "schedule",
    "Stage": "schedule",
    "Reconstruction": "reconstruction",
    "RepairedFrame": "repairing",
    "repair_stage": "repairing",
    "Trainer": "trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
