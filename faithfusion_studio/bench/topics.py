"""The topics `ff-studio bench` knows."""

from __future__ import annotations

from collections.abc import Callable

from faithfusion_studio.bench.information import run_eig
from faithfusion_studio.bench.rendering import run_raster
from faithfusion_studio.bench.report import BenchConfig, BenchError, Report

TOPICS: dict[str, Callable[[BenchConfig], Report]] = {"raster": run_raster, "eig": run_eig}


def run_bench(topic: str, config: BenchConfig) -> Report:
    """Run one topic.

    Raises:
        BenchError: No topic has this name, or the configuration measures nothing.
    """
    if topic not in TOPICS:
        raise BenchError(f"bench: found {topic!r}; choose from {', '.join(TOPICS)}.")
    if config.gaussians < 1 or config.repeats < 1:
        raise BenchError(
            f"bench: found {config.gaussians} Gaussians and {config.repeats} repeats; at least one "
            "of each is needed."
        )
    return TOPICS[topic](config)
