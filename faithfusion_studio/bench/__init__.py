"""Repeatable measurements of speed as ratios, one file per topic, one report as JSON and Markdown."""

from typing import Any

_HOMES = {
    "BenchConfig": "report",
    "BenchError": "report",
    "Report": "report",
    "Timing": "report",
    "run_bench": "topics",
    "run_eig": "information",
    "run_raster": "rendering",
}
__all__ = [
    "BenchConfig",
    "BenchError",
    "Report",
    "Timing",
    "run_bench",
    "run_eig",
    "run_raster",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
