"""The topic `fusion`: scenes, chains, and one table of what each did to good, bad and recorded pixels."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from faithfusion_studio.bench.figures import Value
from faithfusion_studio.bench.fusion.cases import FusionCase, cases
from faithfusion_studio.bench.fusion.chains import (
    FRAMES,
    GRID,
    PLANS,
    Chain,
    Chains,
    ChainScore,
    usable_engines,
)
from faithfusion_studio.bench.fusion.scoring import Judges, Scorer
from faithfusion_studio.bench.fusion.tables import FusionReport
from faithfusion_studio.bench.report import BenchConfig, BenchError
from faithfusion_studio.bench.uncertainty.scoring import interval
from faithfusion_studio.fusion.presets import preset

NUMBERS = (
    "bad_half_db", "good_half_db", "recorded_db", "psnr", "psnr_ucr", "psnr_hpr", "ssim", "ssim_ucr", "ssim_hpr",
    "lpips", "blur_bad_db", "blur_good_db", "warp_error", "lane_iou", "vehicle_iou", "trusted_moved", "seconds",
)  # fmt: skip
INTERVALS = ("bad_half_db", "good_half_db", "recorded_db", "psnr_ucr")
BEFORE = "before"
PROTOCOL = (
    "splats re-rendered at true views one offset aside, means over views, then trainings, then scenes; low and high are "
    "the 95 % bootstrap interval over scenes. bad_half_db and good_half_db: PSNR change in the half of the pixels with "
    "the larger and the smaller error before (8x8 blocks, per view); blur_*: the same split for a blur of the render "
    "that changes it as much. recorded_db: PSNR change of recorded views of the segment. UCR by calibrated EIG before. "
    "SSIM 11x11 Gaussian, LPIPS alex of whole views; warp_error: L1 to the next frame along the flow of the true depth. "
    "trusted_moved: share of HPR pixels of the newest repaired frames that differ visibly from before their stage."
)


def run_fusion(config: BenchConfig) -> FusionReport:
    """All chains on all scenes.

    Args:
        config: `scenes` streets from 600 + `seed` on, or the recording `capture`; `trainings` of each, with `steps`
            each and at most `gaussians`; `views` true views per scene, at `size`; `engines` to repair with.

    Raises:
        BenchError: The recording brings no truth, or nothing is to be measured.
        RepairError: An engine was named that does not exist.
    """
    if min(config.scenes, config.trainings, config.steps, config.views) < 1:
        raise BenchError(
            f"bench fusion: found {config.scenes} scenes, {config.trainings} trainings, {config.steps} steps and "
            f"{config.views} views; at least one of each is needed."
        )
    engines, notes = usable_engines(config.engines)
    if not engines:
        raise BenchError(f"bench fusion: no engine can be used here. {' '.join(notes)}")
    judges = Judges.of(config)
    notes += judges.missing
    scores: list[ChainScore] = []
    started = time.perf_counter()
    for case in cases(config, _say):
        scores += _one(case, judges, engines, config)
        _say(f"{case.name}: done after {(time.perf_counter() - started) / 60:.1f} min")
    if not scores:
        raise BenchError(
            f"bench fusion: no true views {config.offset:g} m aside were found; choose another --offset."
        )
    rows = table(scores)
    return FusionReport(
        "fusion",
        config,
        headline(rows),
        counts={
            "scenes": float(len({s.case.name for s in scores})),
            "trainings": float(len({(s.case.name, s.case.training) for s in scores})),
        },
        table=tuple(rows),
        notes=tuple(notes),
        protocol=PROTOCOL,
    )


def _one(
    case: FusionCase, judges: Judges, engines: Sequence[str], config: BenchConfig
) -> Iterator[ChainScore]:
    base = replace(preset("jump"), pace=config.pace)
    scorer = Scorer(case, judges, base.eig_threshold)
    chains = Chains(case, scorer, base, _say)
    yield ChainScore(Chain(BEFORE, "-", "-", "-", "-"), case, scorer.score(case.scene))
    for number, engine in enumerate(engines):
        yield chains.frames(engine)
        yield from chains.grid(engine, ("none", "ungated", "gated") if number == 0 else ("gated",))
        yield chains.default_plan(engine)
    if config.plans:
        yield from chains.plans(engines[0])


def table(scores: Sequence[ChainScore]) -> list[dict[str, Any]]:
    """One row per chain and offset, groups in the order they were run."""
    keys = list(dict.fromkeys((s.chain, _offset(s)) for s in scores))
    order = {group: i for i, group in enumerate(dict.fromkeys(c.group for c, _ in keys))}
    keys.sort(key=lambda key: (key[1], order[key[0].group]))
    return [_row(chain, offset, scores) for chain, offset in keys]


def _offset(score: ChainScore) -> float:
    return round(score.case.offset, 1)


def _row(chain: Chain, offset: float, scores: Sequence[ChainScore]) -> dict[str, Any]:
    found = [s for s in scores if s.chain == chain and _offset(s) == offset]

    def by_scene(number: Callable[[ChainScore], float]) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {}
        for one in found:
            values.setdefault(one.case.name, []).append(number(one))
        return values

    row: dict[str, Any] = {
        "group": chain.group,
        "offset_m": offset,
        "engine": chain.engine,
        "repair": chain.repair,
        "distillation": chain.distillation,
        "plan": chain.plan,
    }
    for name in NUMBERS:
        mean, low, high = interval(by_scene(lambda s, n=name: s.values.get(n, math.nan)))
        row[name] = mean
        if name in INTERVALS:
            row |= {f"{name}_low": low, f"{name}_high": high}
    row["scenes"] = len({s.case.name for s in found})
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Value]:
    """The default chain: the default plan with its default engine."""
    engine = preset("default").engine
    default = _find(rows, group=PLANS, engine=engine)
    gains = [_find(rows, group=PLANS, engine=name) for name in ("refiner", "reprojection")]
    over = None
    if all(row and row["psnr_ucr"] is not None for row in gains):
        over = gains[0]["psnr_ucr"] - gains[1]["psnr_ucr"]
    frames = [_find(rows, group=FRAMES, engine=name) for name in ("refiner", "reprojection")]
    over_frames = None
    if all(row and row["psnr_ucr"] is not None for row in frames):
        over_frames = frames[0]["psnr_ucr"] - frames[1]["psnr_ucr"]
    before = _find(rows, group=BEFORE)
    ucr = hpr = None
    if default and before and None not in (default["psnr_ucr"], before["psnr_ucr"]):
        ucr = default["psnr_ucr"] - before["psnr_ucr"]
        hpr = default["psnr_hpr"] - before["psnr_hpr"]
    return {
        "bad_half_db": default.get("bad_half_db"),
        "good_half_db": default.get("good_half_db"),
        "recorded_db": default.get("recorded_db"),
        "refiner_over_reprojection_ucr_db": over,
        "refiner_over_reprojection_frames_ucr_db": over_frames,
        "ucr_db": ucr,
        "hpr_db": hpr,
        "best_cell": _best_cell(rows),
        "seconds": default.get("seconds"),
    }


def _find(rows: Sequence[dict[str, Any]], **wanted: str) -> dict[str, Any]:
    """The first row with these values; empty where there is none."""
    return next((r for r in rows if all(r[k] == v for k, v in wanted.items())), {})


def _best_cell(rows: Sequence[dict[str, Any]]) -> Value:
    """Repair and distillation of the cell with the largest gain in both halves together."""
    cells = [row for row in rows if row["group"] == GRID and row["bad_half_db"] is not None]
    if not cells:
        return None
    best = max(cells, key=lambda row: row["bad_half_db"] + row["good_half_db"])
    return f"{best['repair']} + {best['distillation']}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
