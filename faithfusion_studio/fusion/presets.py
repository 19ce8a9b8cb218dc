"""Plans by name, and what makes the stages of a plan; free of torch so that the CLI stays quick."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.schedule import FusionConfig, Stage, Weighting


class PlanError(StudioError):
    """A plan of fusion that cannot be carried out."""


PRESETS: Mapping[str, tuple[str, FusionConfig]] = {
    "default": (
        "Three metres at a time, gated and weighted by EIG, everything accepted is replayed.",
        FusionConfig(),
    ),
    "progressive": (
        "The same metre by metre.",
        FusionConfig(offset_step=1.0),
    ),
    "jump": (
        "The offset in one stage, gated and weighted by EIG.",
        FusionConfig(offset_step=0.0),
    ),
    "faithfusion": (
        "FaithFusion as released: 1 m every 2000 steps, refreshes of 6000, 6000 and 3000 steps, 0.4 of the steps on "
        "the newest frames, tiers until step 20,000 of its training (17,000 here).",
        FusionConfig(
            offset=6.0,
            offset_step=1.0,
            window=40,
            steps=2000,
            refresh_steps=(6000, 6000, 3000),
            weighting="released",
            late_weighting="uniform",
            late_from=17_000,
            gated=False,
            keep_stages=False,
            novel_weight=0.7,
            hold="repaired",
            novel_depth="points",
            replay=0.6,
            spawn=0,
            densify=True,
        ),
    ),
    "difix3d": (
        "Difix3D as released: half a metre every 2000 steps, 0.3 of the steps on the newest frames with a loss of 0.3, "
        "ungated and believed alike.",
        FusionConfig(
            offset=3.0,
            offset_step=0.5,
            steps=2000,
            weighting="uniform",
            gated=False,
            keep_stages=False,
            novel_weight=0.3,
            replay=0.7,
            spawn=0,
            densify=True,
        ),
    ),
    "cyclic": (
        "GenFusion: at the offset at once, repaired anew every 1000 steps into a growing set, weight rising and "
        "falling like a half sine, empty space filled.",
        FusionConfig(
            offset=3.0,
            offset_step=0.0,
            steps=1000,
            refresh_steps=(1000, 1000, 1000, 1000, 1000),
            weighting="uniform",
            gated=False,
            keep_stages=True,
            novel_weight=1.0,
            novel_curve="sine",
            novel_depth="consensus",
            densify=True,
        ),
    ),
}
"""A sentence and the numbers of each named plan. Steps are those of the publications, on a GPU; `pace` shortens them."""


def preset(name: str) -> FusionConfig:
    """The plan with this name.

    Raises:
        PlanError: There is none.
    """
    if name not in PRESETS:
        raise PlanError(f"preset: found {name!r}; choose from {', '.join(PRESETS)}.")
    return PRESETS[name][1]


def describe_presets() -> str:
    """The named plans and the values of a plan, for --help."""
    plain = FusionConfig()
    lines = ["Presets:"]
    for name, (sentence, config) in PRESETS.items():
        differing = [
            f"{f.name}={_in_words(getattr(config, f.name))}"
            for f in dataclasses.fields(config)
            if getattr(config, f.name) != getattr(plain, f.name)
        ]
        lines.append(f"{name}: {sentence} {' '.join(differing)}".rstrip())
    names = ", ".join(f.name for f in dataclasses.fields(plain))
    return "\n\n".join([*lines, f"Values for --set: {names}."])


def _in_words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def progressive_stages(config: FusionConfig, segment: tuple[int, int]) -> tuple[Stage, ...]:
    """The stages of a plan: each distance in turn, on one side or both, window by window, then the refreshes.

    Args:
        config: The plan.
        segment: Half-open range of recorded frames.

    Raises:
        PlanError: The plan has no stage, or a number in it makes no sense.
    """
    _check(config, segment)
    distances = _distances(config.offset, config.offset_step)
    rounds = [(d, config.steps, config.engine) for d in distances]
    late = config.late_engine or config.engine
    rounds += [(distances[-1], steps, late) for steps in config.refresh_steps]
    stages: list[Stage] = []
    for distance, steps, engine in rounds:
        sides = (distance, -distance) if config.both_sides else (distance,)
        stages += [
            Stage(
                segment=window,
                lateral_offset=side,
                engine=engine,
                steps=max(1, round(steps * config.pace)),
                weighting=config.weighting,
                eig_threshold=config.eig_threshold,
                profile=config.profile,
                gated=config.gated,
            )
            for side in sides
            for window in _windows(segment, config.window)
        ]
    if config.late_weighting is None:
        return tuple(stages)
    return _with_late_weighting(
        stages, config.late_weighting, round(config.late_from * config.pace)
    )


def _distances(offset: float, step: float) -> list[float]:
    """Offsets on the way, the last one exactly `offset`."""
    if step == 0 or offset == 0:
        return [offset]
    count = math.ceil(abs(offset) / step - 1e-9)
    return [math.copysign(step * (i + 1), offset) for i in range(count - 1)] + [offset]


def _windows(segment: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """The segment in parts of nearly equal length, at most `size` frames each."""
    start, stop = segment
    parts = math.ceil((stop - start) / size)
    edges = [start + round(i * (stop - start) / parts) for i in range(parts + 1)]
    return list(zip(edges, edges[1:], strict=False))


def _with_late_weighting(stages: Sequence[Stage], late: Weighting, after: int) -> tuple[Stage, ...]:
    """Stages with another weighting from a step on; the stage in which that falls goes on with its frames."""
    out, done = [], 0
    for stage in stages:
        before = min(max(after - done, 0), stage.steps)
        if before:
            out.append(replace(stage, steps=before))
        if before < stage.steps:
            rest = stage.steps - before
            out.append(replace(stage, steps=rest, weighting=late, repair=before == 0))
        done += stage.steps
    return tuple(out)


def _check(config: FusionConfig, segment: tuple[int, int]) -> None:
    start, stop = segment
    if stop <= start:
        raise PlanError(f"segment {start}:{stop} is empty; choose at least one frame.")
    limits = {
        "offset": (config.offset, -100.0, 100.0),
        "offset_step": (config.offset_step, 0.0, 100.0),
        "window": (config.window, 1, 1_000_000),
        "steps": (config.steps, 1, 10_000_000),
        "pace": (config.pace, 1e-6, 1000.0),
        "eig_threshold": (config.eig_threshold, 0.0, 1.0),
        "eig_cap": (config.eig_cap, 1e-6, 1e6),
        "novel_weight": (config.novel_weight, 0.0, 100.0),
        "novel_depth_weight": (config.novel_depth_weight, 0.0, 100.0),
        "evidence": (config.evidence, 0.0, 1.0),
        "replay": (config.replay, 0.0, 1.0),
        "generated_confidence": (config.generated_confidence, 0.0, 1.0),
        "scale": (config.scale, 0.02, 4.0),
        "warm_up": (config.warm_up, 1, 1_000_000),
        "psnr_every": (config.psnr_every, 1, 1_000_000),
        "spawn": (config.spawn, 0, 50_000_000),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise PlanError(f"{name}: found {value:g}; expected {low:g} to {high:g}.")
    if abs(config.offset) / max(config.offset_step, 1e-9) > 1000 and config.offset_step > 0:
        raise PlanError(
            f"offset_step: found {config.offset_step:g}, more than 1000 stages to {config.offset:g} m; "
            "take longer steps."
        )


# --------------------------------------------------------------------------------- values by name


def configured(config: FusionConfig, settings: Sequence[str]) -> FusionConfig:
    """A plan with some values replaced.

    Args:
        config: Where to start.
        settings: Each "name=value"; fields of `rates` and `weights` as "rates.means=1e-4", several numbers
            separated by commas.

    Raises:
        PlanError: A name that is none, or a value of another kind.
    """
    for setting in settings:
        name, mark, text = setting.partition("=")
        if not mark:
            raise PlanError(f"--set: found {setting!r}; expected name=value.")
        config = _with_value(config, name.strip(), name.strip().split("."), text.strip())
    return config


def _with_value(config: Any, name: str, path: Sequence[str], text: str) -> Any:
    kinds = typing.get_type_hints(type(config))
    if path[0] not in kinds:
        near = difflib.get_close_matches(path[0], kinds, n=1)
        hint = f"perhaps you meant {near[0]}" if near else f"choose from {', '.join(kinds)}"
        raise PlanError(f"--set: {name!r} is no value of a plan; {hint}.")
    kind = kinds[path[0]]
    if dataclasses.is_dataclass(kind) != (len(path) > 1):
        raise PlanError(f"--set: {name!r} names a group of values or a part of one value.")
    if len(path) > 1:
        value = _with_value(getattr(config, path[0]), name, path[1:], text)
    else:
        value = _parsed(kind, name, text)
    return replace(config, **{path[0]: value})


def _parsed(kind: Any, name: str, text: str) -> Any:
    """A value of a type annotation from its text."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = next(option for option in options if option is not type(None))
        return None if text.lower() == "none" else _parsed(inner, name, text)
    if origin is tuple:
        return tuple(_parsed(options[0], name, part) for part in text.split(",") if part.strip())
    if origin is typing.Literal or kind is bool:
        words = _WORDS if kind is bool else {option: option for option in options}
        if text not in words:
            raise PlanError(f"--set {name}: found {text!r}; choose from {', '.join(words)}.")
        return words[text]
    return text if kind is str else _number(kind, name, text)


_WORDS = {"true": True, "false": False}


def _number(kind: type, name: str, text: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = "a whole number" if kind is int else "a number"
        raise PlanError(f"--set {name}: found {text!r}; expected {what}.")
    return value
