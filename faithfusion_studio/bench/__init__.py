"""Repeatable measurements of speed, one file per topic, one report as JSON, Markdown and a plot."""

from typing import Any

_HOMES = {
    "BenchConfig": "report",
    "BenchError": "report",
    "Report": "report",
    "Timing": "measuring",
    "configure": "topics",
    "run_bench": "topics",
}
__all__ = [
    "BenchConfig",
    "BenchError",
    "Report",
    "Timing",
    "configure",
    "run_bench",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
