"""Pictures of the topic `uncertainty`: sparsification, PSNR against kept EIG, and reliability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from faithfusion_studio.bench.uncertainty.scoring import QUANTILES, SceneScores
from faithfusion_studio.bench.uncertainty.tables import UncertaintyReport

DRAWN = {
    "block": "#2f6fb3",
    "joint": "#d0408f",
    "deviation": "#2f8f5b",
    "rank_average": "#8a5fb0",
    "image_gradient": "#c58a1a",
    "residual": "#b5654a",
    "ensemble": "#4a4a4a",
    "random": "#b9bec6",
    "oracle": "#111111",
}


def draw_uncertainty(report: UncertaintyReport, path: Path) -> None:
    """One row of three pictures per block."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(row["block"] for row in report.table))
    canvas = Figure(figsize=(13, 3.4 * len(blocks)), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(len(blocks), 3, squeeze=False)
    for row, block in zip(axes, blocks, strict=True):
        _sparsification(row[0], report.scores, block)
        _psnr(row[1], report.scores, block)
        _reliability(row[2], report.scores, block)
    axes[0][0].legend(fontsize=7, ncol=2)
    axes[0][2].legend(fontsize=7)
    canvas.savefig(path, dpi=110)


def _views(scores: tuple[SceneScores, ...], method: str, block: str) -> list[Any]:
    return [view for one in scores for view in one.views.get((method, block), ())]


def _sparsification(axes: Any, scores: tuple[SceneScores, ...], block: str) -> None:
    removed = np.linspace(0, 0.999, 100)
    for method, color in DRAWN.items():
        curves = [view.left for view in _views(scores, method, block) if view.left is not None]
        if curves:
            style = "--" if method in ("random", "oracle") else "-"
            mean = torch.stack(curves).mean(0)
            axes.plot(removed, mean, style, color=color, label=method, lw=1.4)
    axes.set_title(f"{block}: error left as uncertain pixels go", fontsize=9)
    axes.set_xlabel("share of the pixels removed", fontsize=8)
    axes.set_ylabel("L1 of the rest / L1 of all", fontsize=8)
    axes.set_ylim(0, None)


def _psnr(axes: Any, scores: tuple[SceneScores, ...], block: str) -> None:
    kept = np.arange(1, QUANTILES + 1) / QUANTILES
    for one in scores:
        squared = np.array(one.curves.get(block, ()))
        if len(squared):
            psnr = -10 * np.log10(np.maximum(squared.mean(0), 1e-12))
            axes.plot(kept, psnr, color="#2f6fb3", alpha=0.6, lw=1.2, marker="o", ms=2.5)
    axes.set_title(f"{block}: PSNR of the most certain pixels (block EIG)", fontsize=9)
    axes.set_xlabel("share of the pixels kept, lowest EIG first", fontsize=8)
    axes.set_ylabel("PSNR, dB", fontsize=8)


def _reliability(axes: Any, scores: tuple[SceneScores, ...], block: str) -> None:
    nominal = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    reach = np.sqrt(2) * torch.erfinv(nominal)
    axes.plot([0, 1], [0, 1], color="#b9bec6", lw=1, ls="--")
    for method in ("block", "deviation", "residual", "ensemble"):
        ratios = [v.ratios for v in _views(scores, method, block) if v.ratios is not None]
        if ratios:
            inside = torch.cat(ratios).double()[None] <= reach[:, None]
            axes.plot(nominal, inside.double().mean(1), color=DRAWN[method], label=method, lw=1.4)
    axes.set_title(f"{block}: what predicted intervals cover, raw", fontsize=9)
    axes.set_xlabel("nominal probability", fontsize=8)
    axes.set_ylabel("share of the errors inside", fontsize=8)
