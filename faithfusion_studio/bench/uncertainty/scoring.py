"""From predictions and truth to numbers: one view, means over views, intervals over scenes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.bench.uncertainty.combination import SAMPLES, features
from faithfusion_studio.bench.uncertainty.knowledge import Knowledge, Sight
from faithfusion_studio.bench.uncertainty.methods import METHODS, ORACLE, Prediction
from faithfusion_studio.bench.uncertainty.truth import TrueView
from faithfusion_studio.information import eig_map, split_regions
from faithfusion_studio.metrics import (
    aurg,
    ause,
    block_mean,
    capture,
    coverage,
    gaussian_nll,
    roc_auc,
    sparsification,
    spearman,
    ssim_map,
    widening,
)
from faithfusion_studio.render.views import rasterize_view

LARGE_ERROR = 0.1
"""Absolute colour error from which a pixel is wrong, for the ROC curve."""
FARTHEST = 80.0
"""Depth errors are scored where the true surface is nearer than this, m."""
KEPT_RATIOS = 4096
"""Normalised errors kept per view, from which intervals of other scenes are widened."""
THRESHOLD = 0.4
"""Calibrated EIG from which the studio repairs: how much it asks for on each scene is noted."""
QUANTILES = 10
"""Points of the curve of PSNR against the kept share of EIG."""


@dataclass(frozen=True, eq=False)
class Errors:
    """What is wrong in one rendered view."""

    signed: Float32[Tensor, "H W 3"]
    l1: Float32[Tensor, "H W"]
    dssim: Float32[Tensor, "h w"]
    """(1 - SSIM) / 2 where the whole window fits: 5 pixels less on each side."""
    depth: Float32[Tensor, "_"] | None
    """Absolute, m, of the pixels of `depth_mask`."""
    depth_mask: Tensor | None


def errors_of(sight: Sight, true: TrueView) -> Errors:
    """Error maps of a view against what is really seen."""
    signed = sight.rgb - true.rgb
    dssim = ((1 - ssim_map(sight.rgb, true.rgb).mean(-1)) / 2).clamp(min=0)
    depth = mask = None
    if true.depth is not None:
        mask = (true.depth > 0) & (true.depth < FARTHEST)
        depth = (sight.view.depth - true.depth).abs()[mask]
    return Errors(signed, signed.abs().mean(-1), dssim, depth, mask)


@dataclass(frozen=True, eq=False)
class ViewScore:
    """One method on one view."""

    values: Mapping[str, float]
    ratios: Float32[Tensor, "_"] | None = None
    """|error| over predicted deviation, a random part."""
    left: Float32[Tensor, "100"] | None = None
    """L1 of what is left, over that of the whole view, as ever more uncertain pixels are removed."""


def score(prediction: Prediction, errors: Errors, seed: int) -> ViewScore:
    """All numbers of one view."""
    rank = torch.nan_to_num(prediction.rank.detach(), nan=math.inf, posinf=1e30)
    small, error = block_mean(rank), block_mean(errors.l1)
    values = {
        "ause_l1": ause(rank, errors.l1),
        "ause_dssim": ause(rank[5:-5, 5:-5], errors.dssim),
        "ause_depth": math.nan,
        "aurg": aurg(rank, errors.l1),
        "spearman": spearman(small, error),
        "capture10": capture(rank, errors.l1, 0.1),
        "capture20": capture(rank, errors.l1, 0.2),
        "auroc": roc_auc(rank, errors.l1 > LARGE_ERROR),
        "nll": math.nan,
        "cov50": math.nan,
        "cov90": math.nan,
    }
    if errors.depth is not None and errors.depth_mask is not None and errors.depth.numel():
        by_depth = rank if prediction.depth_rank is None else prediction.depth_rank.detach()
        values["ause_depth"] = ause(by_depth[errors.depth_mask], errors.depth)
    _, left, _ = sparsification(rank, errors.l1)
    left = (left / left[0].clamp(min=1e-12)).float()
    if prediction.variance is None:
        return ViewScore(values, left=left)
    variance = prediction.variance.detach()[..., None].expand_as(errors.signed)
    values["nll"] = gaussian_nll(errors.signed, variance)
    values["cov50"] = coverage(errors.signed, variance, 0.5)
    values["cov90"] = coverage(errors.signed, variance, 0.9)
    ratios = (errors.signed.abs() / variance.clamp(min=1e-12).sqrt()).flatten()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(ratios), (KEPT_RATIOS,), generator=generator)
    return ViewScore(values, ratios[chosen], left)


def oracle_score(errors: Errors) -> ViewScore:
    """What the error itself would reach, each map sorted by itself."""
    nothing = dict.fromkeys(("nll", "cov50", "cov90"), math.nan)
    known = errors.l1
    _, _, left = sparsification(known, known)
    return ViewScore(
        {
            "ause_l1": ause(known, known),
            "ause_dssim": ause(errors.dssim, errors.dssim),
            "ause_depth": math.nan if errors.depth is None else ause(errors.depth, errors.depth),
            "aurg": aurg(known, known),
            "spearman": spearman(block_mean(known), block_mean(known)),
            "capture10": capture(known, known, 0.1),
            "capture20": capture(known, known, 0.2),
            "auroc": roc_auc(known, known > LARGE_ERROR),
            **nothing,
        },
        left=(left / left[0].clamp(min=1e-12)).float(),
    )


@dataclass(eq=False)
class SceneScores:
    """Every method on every block of one scene."""

    name: str
    training_seed: int
    views: dict[tuple[str, str], list[ViewScore]] = field(default_factory=dict)
    """By method and block."""
    ms: dict[str, list[float]] = field(default_factory=dict)
    """Of each method per view, without the frame."""
    setup: dict[str, float] = field(default_factory=dict)
    """Seconds of what each method needs before it can look."""
    psnr: dict[str, list[float]] = field(default_factory=dict)
    """Of the renders, by block."""
    ucr: dict[str, list[float]] = field(default_factory=dict)
    """Share of UCR by block, form "block", at the studio's threshold."""
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    """By block: squared error of the pixels kept below each quantile of block EIG."""
    samples: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Per view: `combination.features` of random pixels [N, 2], and which of them are wrong [N]."""

    def mean(self, method: str, block: str, name: str) -> float:
        """Over the views of the scene that have this number."""
        found = [v.values[name] for v in self.views.get((method, block), ())]
        found = [value for value in found if not math.isnan(value)]
        return sum(found) / len(found) if found else math.nan


def score_scene(
    known: Knowledge,
    blocks: Mapping[str, Sequence[TrueView]],
    methods: Iterable[str],
    name: str,
    training_seed: int,
) -> SceneScores:
    """Run the methods on all true views of a scene."""
    scores = SceneScores(name, training_seed)
    methods = list(methods)
    for block, views in blocks.items():
        for number, true in enumerate(views):
            with torch.no_grad():
                sight = Sight(true.camera, rasterize_view(known.scene, true.camera))
                sight.view.depth  # noqa: B018 - the frame is not any method's cost
                errors = errors_of(sight, true)
                scores.psnr.setdefault(block, []).append(_psnr(errors.signed))
                scores.ucr.setdefault(block, []).append(_ucr_share(known, sight))
                for method in methods:
                    found, ms = _run(method, known, sight, errors, number)
                    scores.views.setdefault((method, block), []).append(found)
                    scores.ms.setdefault(method, []).append(ms)
                best = oracle_score(errors)
                scores.views.setdefault((ORACLE, block), []).append(best)
                scores.curves.setdefault(block, []).append(_kept_errors(known, sight, errors))
                scores.samples.append(_samples(known, sight, errors, number))
    for method in methods:
        scores.setup[method] = sum(known.seconds.get(n, 0.0) for n in METHODS[method].needs)
    return scores


def _run(
    method: str, known: Knowledge, sight: Sight, errors: Errors, seed: int
) -> tuple[ViewScore, float]:
    for need in METHODS[method].needs:
        getattr(known, need)
    started = time.perf_counter()
    prediction = METHODS[method].predict(known, sight)
    ms = 1000 * (time.perf_counter() - started)
    return score(prediction, errors, seed), ms


def _psnr(signed: Tensor) -> float:
    return -10 * math.log10(max(float(signed.double().square().mean()), 1e-12))


def _ucr_share(known: Knowledge, sight: Sight) -> float:
    found = eig_map(known.scene, sight.camera, fisher=known.fisher, view=sight.view)
    return float(split_regions(found, THRESHOLD).ucr.float().mean())


def _samples(known: Knowledge, sight: Sight, errors: Errors, seed: int) -> tuple[Tensor, Tensor]:
    eig, gradient = (
        METHODS[name].predict(known, sight).rank for name in ("block", "image_gradient")
    )
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(errors.l1.numel(), (SAMPLES,), generator=generator)
    return features(eig, gradient).view(-1, 2)[chosen], (errors.l1 > LARGE_ERROR).flatten()[chosen]


def _kept_errors(known: Knowledge, sight: Sight, errors: Errors) -> list[float]:
    """Mean squared error of the most certain tenth, two tenths, ... of the pixels, by block EIG."""
    rank = METHODS["block"].predict(known, sight).rank.flatten()
    squared = errors.signed.square().mean(-1).flatten()[rank.argsort()].double().cumsum(0)
    kept = [max(1, len(squared) * k // QUANTILES) for k in range(1, QUANTILES + 1)]
    return [float(squared[n - 1]) / n for n in kept]


def calibrated_coverage(scenes: Sequence[SceneScores], method: str, block: str) -> float:
    """Share of errors inside the 90 % interval, widened as all other scenes need it; NaN with fewer than two."""
    found = []
    for scene in scenes:
        others = [
            view.ratios
            for other in scenes
            if other.name != scene.name
            for view in other.views.get((method, block), ())
            if view.ratios is not None
        ]
        own = [v.ratios for v in scene.views.get((method, block), ()) if v.ratios is not None]
        if others and own:
            factor = widening(torch.cat(others), 0.9)
            ratios = torch.cat(own)
            found.append(coverage(ratios, torch.ones_like(ratios), 0.9, factor))
    return sum(found) / len(found) if found else math.nan


def interval(
    values: Mapping[str, Sequence[float]], draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over scenes with the 95 % bootstrap interval; all trainings of a scene are drawn together.

    Args:
        values: Numbers by scene; NaN is left out.
        draws: Of the bootstrap.
        seed: Of the draws.

    Returns:
        Mean, lower and upper end; the ends are NaN with fewer than two scenes.
    """
    kept = [[v for v in numbers if not math.isnan(v)] for numbers in values.values()]
    means = torch.tensor([sum(n) / len(n) for n in kept if n], dtype=torch.float64)
    if len(means) == 0:
        return math.nan, math.nan, math.nan
    mean = float(means.mean())
    if len(means) < 2:
        return mean, math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(means), (draws, len(means)), generator=generator)
    ends = means[chosen].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return mean, float(ends[0]), float(ends[1])
