"""The answer to "is EIG right here?" as HTML: a sentence, a warning, the curve, and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from faithfusion_studio.studio.checks import (
    FrameCheck,
    is_trustworthy,
    mean_curves,
    summary,
)

WIDTH, HEIGHT = 300, 110
EIG_COLOR, BEST_COLOR, CHANCE_COLOR = "#ff9d4d", "#7fb98a", "#7d8698"


def verdict(means: Mapping[str, float]) -> str:
    """What the numbers allow to say, in one sentence."""
    if math.isnan(means["spearman"]) or math.isnan(means["found"]):
        return "EIG is not validated: this scene has no evidence of recorded views."
    words = f"On this scene EIG finds {_percent(means['found'])} of the worst 10 % of pixels"
    if not is_trustworthy(means):
        return f"EIG is not validated on these views. {words}; chance would find 10 %."
    if means["spearman"] >= 0.4:
        return f"{words} and ranks the errors well."
    return f"{words}, with many exceptions."


def warning(means: Mapping[str, float]) -> str:
    """What must not be overlooked; empty where EIG can be relied on."""
    if math.isnan(means["spearman"]):
        return ""
    if not is_trustworthy(means):
        return (
            "Do not rely on EIG here: it hardly ranks the errors of these views. Repairs guided by it may "
            "change what was right and keep what was wrong."
        )
    if means["covered"] < 0.8:
        return (
            f"The ranking can be used, the size cannot: only {_percent(means['covered'])} of the errors lie inside "
            "the predicted 90 % interval."
        )
    return ""


def answer(results: Sequence[FrameCheck], beside: str = "") -> str:
    """Everything about a finished or running check.

    Args:
        results: At least one view.
        beside: Where the views stand, in words; empty for recorded frames.
    """
    means = summary(results)
    parts = [f"<div style='margin:2px 0 6px;font-size:13.5px'><b>{verdict(means)}</b></div>"]
    caution = warning(means)
    if caution:
        parts.append(
            "<div style='border-left:3px solid #e8b64c;padding:2px 8px;color:#e8b64c;margin-bottom:6px'>"
            f"{caution}</div>"
        )
    parts += [curve(results), _intervals(means), _table(results, means)]
    parts.append(f"<div style='margin-top:6px;color:#9aa4b5'>{_about(results, beside)}</div>")
    return "".join(parts)


def _about(results: Sequence[FrameCheck], beside: str) -> str:
    if beside:
        return f"{len(results)} true views {beside}: the reconstruction never saw them."
    if any(one.held_out for one in results):
        return "* held out: the reconstruction never saw this photo."
    return (
        "These photos were trained on: the numbers say how well they are reproduced, not how well new "
        "views are. Reconstruct with held-out frames to know."
    )


def _intervals(means: Mapping[str, float]) -> str:
    if math.isnan(means["covered"]):
        return ""
    words = f"The predicted 90 % interval holds {_percent(means['covered'])} of the errors"
    if not math.isnan(means["calibrated"]):
        words += f", {_percent(means['calibrated'])} once widened as the other views need it"
    return f"<div style='margin:4px 0'>{words}.</div>"


def curve(results: Sequence[FrameCheck]) -> str:
    """The sparsification curve: error of what is left as the most uncertain pixels are removed."""
    curves = mean_curves(results)
    if curves is None:
        return ""
    left, best = curves
    top = max(1.0, *left)

    def line(values: Sequence[float], color: str, dash: str = "") -> str:
        step = WIDTH / (len(values) - 1)
        points = " ".join(
            f"{i * step:.1f},{(1 - v / top) * (HEIGHT - 4) + 2:.1f}" for i, v in enumerate(values)
        )
        style = f' stroke-dasharray="{dash}"' if dash else ""
        return (
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"{style}/>'
        )

    def name(color: str, text: str) -> str:
        return f"<span style='color:{color};margin-right:10px'>&#9644; {text}</span>"

    drawn = line([1.0] * len(left), CHANCE_COLOR, "4 4") + line(best, BEST_COLOR)
    drawn += line(left, EIG_COLOR)
    return (
        "<div style='font-size:11.5px;color:#9aa4b5'>Error of the pixels that are left</div>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" '
        f'style="width:100%;height:{HEIGHT}px;display:block;background:#161b24">{drawn}</svg>'
        "<div style='display:flex;justify-content:space-between;font-size:11px;color:#9aa4b5'>"
        "<span>all pixels</span><span>pixels removed</span><span>none left</span></div>"
        f"<div style='font-size:11.5px'>{name(EIG_COLOR, 'largest EIG first')}"
        f"{name(BEST_COLOR, 'largest error first')}{name(CHANCE_COLOR, 'at random')}</div>"
    )


def _table(results: Sequence[FrameCheck], means: Mapping[str, float]) -> str:
    def cells(values: Sequence[str]) -> str:
        return "".join(f"<td>{value}</td>" for value in values)

    rows = "".join(
        f"<tr>{cells([_name(one), f'{one.psnr:.1f}', *map(_number, _columns(one))])}</tr>"
        for one in results
    )
    total = [means["spearman"], means["ause"], means["found"], means["covered"]]
    mean = cells(["mean", f"{means['psnr']:.1f}", *map(_number, total)])
    head = cells(["frame", "PSNR dB", "Spearman", "AUSE", "found", "in 90 %"])
    return (
        "<table style='width:100%;border-collapse:collapse'>"
        f"<tr style='color:#9aa4b5'>{head}</tr>{rows}"
        f"<tr style='font-weight:600;border-top:1px solid #556'>{mean}</tr></table>"
    )


def _columns(one: FrameCheck) -> tuple[float, float, float, float]:
    return one.spearman, one.ause, one.found, one.covered


def _name(one: FrameCheck) -> str:
    return f"{one.frame}{' *' if one.held_out else ''}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
