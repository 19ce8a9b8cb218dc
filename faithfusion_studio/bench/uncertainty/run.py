"""The topic `uncertainty`: scenes, trainings, methods, and one table of what each method reached."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faithfusion_studio.bench.figures import Value
from faithfusion_studio.bench.report import BenchConfig, BenchError
from faithfusion_studio.bench.uncertainty.combination import fit
from faithfusion_studio.bench.uncertainty.knowledge import Knowledge
from faithfusion_studio.bench.uncertainty.methods import METHODS, ORACLE
from faithfusion_studio.bench.uncertainty.scoring import (
    THRESHOLD,
    SceneScores,
    calibrated_coverage,
    interval,
    score_scene,
)
from faithfusion_studio.bench.uncertainty.tables import UncertaintyReport
from faithfusion_studio.bench.uncertainty.truth import (
    HELD_OUT,
    TruthScene,
    held_out_views,
    procedural_scene,
    recorded_scene,
    trained,
)
from faithfusion_studio.fusion.schedule import ReconstructionConfig

FIRST_SEED = 600
"""Of the test streets; seeds below are for development, for choosing and for other reports."""
HOLD_OUT_EVERY = 8
FRAMES = 48
NUMBERS = (
    "ause_l1", "ause_dssim", "ause_depth", "aurg", "spearman", "capture10", "capture20", "auroc",
    "nll", "cov50", "cov90",
)  # fmt: skip
PROTOCOL = (
    "means over views, then trainings, then scenes; low and high are the 95 % bootstrap interval over scenes "
    "(all trainings of a scene drawn together), against_block is the paired difference in AUSE-L1 to block "
    "(below 0 is better). AUSE and AURG per view, 100 fractions up to 0.999, both curves over the larger maximum; "
    "Spearman over 8x8 block means; AUROC for |error| > 0.1; depth errors absolute, m, where the truth is nearer "
    "than 80 m; pixels without coverage count as most uncertain. NLL and coverage per colour channel with the "
    "method's own variance; cov90_calibrated widened by one factor per block from the other scenes. ms per view "
    "without its frame, setup_s once per scene."
)


def run_uncertainty(config: BenchConfig) -> UncertaintyReport:
    """All methods on all scenes.

    Args:
        config: `scenes` streets from `FIRST_SEED` + `seed` on, or the recording `capture`; `trainings` of each, with
            `steps` each and at most `gaussians`; `views` true views per block, at `size`.

    Raises:
        BenchError: The recording brings no truth, or nothing is to be measured.
    """
    if min(config.scenes, config.trainings, config.steps) < 1 or not 0 < config.scale <= 1:
        raise BenchError(
            f"bench uncertainty: found {config.scenes} scenes, {config.trainings} trainings, {config.steps} steps and "
            f"scale {config.scale:g}; at least one of each and a scale in (0, 1] are needed."
        )
    started = time.perf_counter()
    scores = []
    for test in _scenes(config):
        for training in range(config.trainings):
            scores.append(_one(test, config, training))
            minutes = (time.perf_counter() - started) / 60
            _say(f"{test.name}, training {training}: scored after {minutes:.1f} min")
    rows = table(scores)
    found = [sample for s in scores for sample in s.samples]
    a, b = fit(torch.cat([x for x, _ in found]), torch.cat([y for _, y in found]))
    notes = [
        f"a logistic of block and image_gradient fitted on these scenes weighs them {a:.2f} to {b:.2f}"
    ]
    notes += [f"{s.name}, training {s.training_seed}: {_renders(s)}" for s in scores]
    return UncertaintyReport(
        "uncertainty",
        config,
        headline(rows),
        counts={"scenes": float(len({s.name for s in scores})), "trainings": float(len(scores))},
        table=tuple(rows),
        notes=tuple(notes),
        protocol=PROTOCOL,
        scores=tuple(scores),
    )


def _renders(scores: SceneScores) -> str:
    def means(values: Mapping[str, Sequence[float]], form: str, unit: str) -> str:
        return ", ".join(f"{b} {sum(v) / len(v):{form}}{unit}" for b, v in values.items())

    renders = means(scores.psnr, ".2f", " dB")
    return f"renders {renders}; UCR of block at {THRESHOLD:g}: {means(scores.ucr, '.0%', '')}"


def _scenes(config: BenchConfig) -> Iterator[TruthScene]:
    if config.capture is not None:
        capture = Path(config.capture)
        yield recorded_scene(capture, config.views, config.scale)
        return
    for index in range(config.scenes):
        seed = FIRST_SEED + config.seed + index
        _say(f"{config.family} street {seed}: tracing the recording and the truth")
        yield procedural_scene(
            seed, config.size, FRAMES, config.views, config.scale, family=config.family
        )


def _one(test: TruthScene, config: BenchConfig, training: int) -> SceneScores:
    frames = range(len(test.capture))
    held_out = [i for i in frames if i % HOLD_OUT_EVERY == HOLD_OUT_EVERY // 2]
    kept = [i for i in frames if i not in set(held_out)]

    def reconstruct(seed: int, chosen: Sequence[int]):
        how = ReconstructionConfig(
            steps=config.steps,
            scale=config.scale,
            holdout_every=0,
            seed=seed,
            max_gaussians=config.gaussians,
        )
        return trained(test, how, _say, chosen)

    def members() -> list:
        if config.members == 0:
            return [reconstruct(k, kept) for k in range(config.trainings) if k != training]
        random = np.random.default_rng(1000 + training)
        drawn = [
            sorted(set(random.choice(kept, len(kept)).tolist())) for _ in range(config.members)
        ]
        return [reconstruct(100 * (training + 1) + k, frames) for k, frames in enumerate(drawn)]

    known = Knowledge(reconstruct(training, kept), members, seed=training)
    few = held_out[:: max(1, len(held_out) // config.views)][: config.views]
    blocks = {HELD_OUT: held_out_views(test.capture, few, config.scale), **test.beside}
    several = config.members > 0 or config.trainings > 2
    methods = [m for m in METHODS if m != "ensemble" or several]
    return score_scene(known, blocks, methods, test.name, training)


def table(scores: Sequence[SceneScores]) -> list[dict[str, Any]]:
    """One row per block and method, best AUSE-L1 first within a block."""
    blocks = list(dict.fromkeys(block for s in scores for _, block in s.views))
    rows = []
    for block in blocks:
        methods = list(dict.fromkeys(m for s in scores for m, b in s.views if b == block))
        found = [_row(scores, method, block) for method in methods]
        rows += sorted(found, key=lambda row: row["ause_l1"])
    return rows


def _row(scores: Sequence[SceneScores], method: str, block: str) -> dict[str, Any]:
    def by_scene(number: Callable[[SceneScores], float]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for one in scores:
            found.setdefault(one.name, []).append(number(one))
        return found

    row: dict[str, Any] = {"method": method, "block": block, "offset_m": _offset(block)}
    for name in NUMBERS:
        row[name], low, high = interval(by_scene(lambda s, n=name: s.mean(method, block, n)))
        if name == "ause_l1":
            row |= {"ause_l1_low": low, "ause_l1_high": high}
            paired = by_scene(
                lambda s: s.mean(method, block, "ause_l1") - s.mean("block", block, "ause_l1")
            )
            keys = ("against_block", "against_block_low", "against_block_high")
            row |= dict(zip(keys, interval(paired), strict=True))
    row["cov90_calibrated"] = calibrated_coverage(scores, method, block)
    times = sorted(ms for s in scores for ms in s.ms.get(method, ()))
    row["ms"] = times[len(times) // 2] if times else math.nan
    setups = [s.setup[method] for s in scores if method in s.setup]
    row["setup_s"] = sum(setups) / len(setups) if setups else math.nan
    row["scenes"] = len({s.name for s in scores if (method, block) in s.views})
    row["views"] = sum(len(s.views.get((method, block), ())) for s in scores)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _offset(block: str) -> float | None:
    if block == HELD_OUT:
        return 0.0
    return float(block.removesuffix(" m")) if block.endswith(" m") else None


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Value]:
    """The few figures that have targets; null where the block was not measured."""

    def of(method: str, block: str, name: str) -> Value:
        found = [r[name] for r in rows if (r["method"], r["block"]) == (method, block)]
        return found[0] if found else None

    def best(block: str, name: str) -> Value:
        ranked = [
            r
            for r in rows
            if r["block"] == block
            and r["method"] not in (ORACLE, "ensemble")
            and r[name] is not None
        ]
        return min(ranked, key=lambda r: r[name])["method"] if ranked else None

    return {
        "best_ause_l1_3m": best("3 m", "ause_l1"),
        "best_ause_depth_3m": best("3 m", "ause_depth"),
        "best_ause_l1_6m": best("6 m", "ause_l1"),
        "best_ause_depth_6m": best("6 m", "ause_depth"),
        "block_ause_l1_3m": of("block", "3 m", "ause_l1"),
        "block_spearman_3m": of("block", "3 m", "spearman"),
        "block_capture10_3m": of("block", "3 m", "capture10"),
        "deviation_cov90": of("deviation", HELD_OUT, "cov90"),
        "deviation_cov90_calibrated_3m": of("deviation", "3 m", "cov90_calibrated"),
    }


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
