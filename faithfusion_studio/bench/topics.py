"""The topics `ff-studio bench` knows, and the sizes each is measured at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from faithfusion_studio.bench.report import BenchConfig, BenchError, Report

TOPICS: dict[str, tuple[str, BenchConfig, BenchConfig]] = {
    "raster": (
        "rendering.run_raster",
        BenchConfig(500_000, (640, 360), repeats=11),
        BenchConfig(100_000, (640, 360), repeats=5),
    ),
    "eig": (
        "information.run_eig",
        BenchConfig(500_000, (640, 360), repeats=11),
        BenchConfig(100_000, (640, 360), repeats=5),
    ),
    "train": (
        "training.run_train",
        BenchConfig(200_000, (621, 188), repeats=30, seconds=240.0),
        BenchConfig(200_000, (621, 188), repeats=10, seconds=10.0),
    ),
    "view": (
        "interaction.run_view",
        BenchConfig(200_000, (1280, 720), repeats=1, seconds=20.0),
        BenchConfig(60_000, (1280, 720), repeats=1, seconds=5.0),
    ),
    "scale": (
        "scaling.run_scale",
        BenchConfig(
            500_000,
            (640, 360),
            repeats=7,
            counts=(50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 4_000_000),
            sizes=((320, 180), (640, 360), (960, 540), (1280, 720), (1920, 1280)),
        ),
        BenchConfig(
            100_000,
            (640, 360),
            repeats=3,
            counts=(50_000, 100_000, 200_000, 400_000),
            sizes=((320, 180), (640, 360), (1280, 720)),
        ),
    ),
    "robustness": (
        "robustness.run.run_robustness",
        BenchConfig(24, (16, 12), repeats=1, mutants=10_000, kills=200),
        BenchConfig(24, (16, 12), repeats=1, mutants=200, kills=16),
    ),
    "uncertainty": (
        "uncertainty.run.run_uncertainty",
        BenchConfig(
            150_000,
            (480, 270),
            repeats=1,
            scenes=5,
            trainings=3,
            members=3,
            steps=1500,
            views=6,
        ),
        BenchConfig(
            40_000,
            (320, 180),
            repeats=1,
            scenes=2,
            members=2,
            steps=400,
            views=3,
        ),
    ),
    "fusion": (
        "fusion.run.run_fusion",
        BenchConfig(150_000, (480, 270), repeats=1, scenes=5, trainings=3, steps=1500, views=6),
        BenchConfig(
            40_000,
            (320, 180),
            repeats=1,
            scenes=1,
            steps=400,
            views=3,
            engines=("reprojection", "refiner"),
            pace=0.5,
        ),
    ),
}
"""Where each topic is run, its full size, and its size with --quick."""


def configure(topic: str, *, quick: bool = False, **changes: Any) -> BenchConfig:
    """The configuration of a topic.

    Args:
        topic: Of `TOPICS`.
        quick: The smaller one, for a look in less than a minute.
        changes: Fields of `BenchConfig` that differ from it; None leaves a field.

    Raises:
        BenchError: No topic has this name.
    """
    if topic not in TOPICS:
        raise BenchError(f"bench: found {topic!r}; choose from {', '.join(TOPICS)}.")
    given = {name: value for name, value in changes.items() if value is not None}
    _, full, small = TOPICS[topic]
    return replace(small if quick else full, **given)


def run_bench(topic: str, config: BenchConfig) -> Report:
    """Run one topic.

    Raises:
        BenchError: No topic has this name, or the configuration measures nothing.
    """
    if topic not in TOPICS:
        raise BenchError(f"bench: found {topic!r}; choose from {', '.join(TOPICS)}.")
    if min(config.gaussians, config.repeats, config.threads) < 1:
        raise BenchError(
            f"bench: found {config.gaussians} Gaussians, {config.repeats} repeats and "
            f"{config.threads} threads; at least one of each is needed."
        )
    if topic == "robustness" and config.mutants < 1:
        raise BenchError(f"--mutants: found {config.mutants}; at least one is needed.")
    module, _, name = TOPICS[topic][0].rpartition(".")
    run: Callable[[BenchConfig], Report] = getattr(
        import_module(f"faithfusion_studio.bench.{module}"), name
    )
    return run(config)
