"""The one writer: commands in, snapshots and state out."""

from typing import Any

__all__ = [
    "CommandError",
    "Engines",
    "LatestSlot",
    "SceneStore",
    "Session",
    "SessionState",
    "Snapshot",
    "apply_edit",
]

_HOMES = {
    "CommandError": "commands",
    "Engines": "engines",
    "LatestSlot": "store",
    "SceneStore": "store",
    "Session": "session",
    "SessionState": "state",
    "Snapshot": "store",
    "apply_edit": "commands",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
