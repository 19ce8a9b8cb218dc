"""HTML for what the picture means: name, unit, colour bar, values, histogram and status line."""

from __future__ import annotations

import html
import math

from faithfusion_studio.studio.compose import DIFFERENCE_GAIN
from faithfusion_studio.studio.layers import (
    DEPTH_RANGE,
    HISTOGRAM_BINS,
    NATS_KNEE,
    PALETTES,
    table,
)
from faithfusion_studio.studio.view_state import SOURCES, Measurement, ViewState

MEANINGS = {
    "depth": "distance along the view, metres, logarithmic",
    "alpha": "how much the splats cover the pixel; the rest is sky",
    "eig": "what another picture from here would teach, nats; bright = unknown",
    "calibrated": "0 = the middle recorded pixel, 0.4 = less known than 60 % of them, 1 = never seen",
    "overlay": "heat where the scene is not known from the recording",
    "provenance": "magenta = distilled from repairs, grey = recorded",
    "photo": "what the camera really saw, where it stood",
    "before": "the scene before the last fusion",
    "repaired": "the picture the repair proposes",
    "confidence": "white = sure, black = guessed",
}
_BAR = "height:8px;border-radius:2px;margin-top:5px;"
_CARD = (
    "color:#f2f4f8;background:rgba(16,19,26,.78);border-radius:6px;padding:7px 10px;"
    "font:12.5px/1.4 system-ui,sans-serif;"
)


def gradient(name: str, stops: int = 16) -> str:
    """A CSS gradient of a colour map."""
    colors = (table(name)[:: 256 // stops] * 255).int().tolist()
    return "linear-gradient(90deg," + ",".join(f"rgb({r},{g},{b})" for r, g, b in colors) + ")"


def color_bar(layer: str, eig_max: float) -> str:
    """Bar and ticks of a layer; empty for layers without a scale."""
    scale = "calibrated" if layer == "overlay" else layer
    if scale not in PALETTES:
        return ""
    ticks = _ticks(scale, eig_max)
    labels = "".join(
        f'<span style="position:absolute;white-space:nowrap;left:{position:.1%};transform:translateX('
        f'-{position:.0%});">{text}</span>'
        for position, text in ticks
    )
    return (
        f'<div style="{_BAR}background:{gradient(PALETTES[scale])};"></div>'
        f'<div style="position:relative;height:15px;font-size:11px;color:#c9cfda;">{labels}</div>'
    )


def _ticks(scale: str, eig_max: float) -> list[tuple[float, str]]:
    if scale == "depth":
        near, far = DEPTH_RANGE
        values = (1, 3, 10, 30, 100)
        return [(math.log(v / near) / math.log(far / near), f"{v} m") for v in values]
    if scale == "eig":
        end = max(eig_max, 1e-6)
        values = [v for v in (0.0, 0.1, 0.5, 2.0) if v < 0.7 * end] + [end]
        whole = math.log1p(end / NATS_KNEE)
        return [(math.log1p(v / NATS_KNEE) / whole, f"{v:.2g}") for v in values]
    if scale == "difference":
        return [(v / 4, f"{v / 4 / DIFFERENCE_GAIN:.2g}") for v in range(5)]
    return [(v / 4, f"{v / 4:g}") for v in range(5)]


def legend(state: ViewState, measurement: Measurement) -> str:
    """The card on the picture: what is shown, its scale, and the value asked for."""
    lines = [_title(state)]
    for layer in ["difference"] if state.compare == "difference" else _shown_layers(state):
        lines.append(color_bar(layer, measurement.eig_max))
    if state.tint:
        lines.append(_swatches())
    if measurement.problem:
        lines.append(_note(measurement.problem, "#ffb454"))
    if measurement.probe:
        lines.append(_note(measurement.probe, "#ffffff"))
        if state.highlight:
            lines.append(
                _note(f"In cyan: {len(state.highlight)} splats behind half of it", "#2ef2f2")
            )
    if state.chosen is not None:
        lines.append(_note(f"In orange: {len(state.chosen.rows):,} selected splats", "#ffa040"))
    if not measurement.probe and any(lines[1:]) and not measurement.problem:
        lines.append(_note("Shift+click: value at a pixel, and why", "#9aa4b5"))
    return f'<div style="{_CARD}">{"".join(lines)}</div>'


def _shown_layers(state: ViewState) -> list[str]:
    layers = [state.layer]
    if state.compare != "off" and state.compare_with != state.layer:
        layers.append(state.compare_with)
    return layers


def _title(state: ViewState) -> str:
    name = "Before the last fusion: " if state.before else ""
    name += SOURCES[state.layer]
    if state.compare == "difference":
        other = html.escape(SOURCES[state.compare_with])
        tail = "<div style='color:#c9cfda'>mean over the colours; dark = alike</div>"
        return f"<b>Difference: {html.escape(name)} and {other}</b>{tail}"
    if state.compare != "off":
        return (
            f"<b>{html.escape(name)}</b> <span style='color:#9aa4b5'>left</span> · "
            f"<b>{html.escape(SOURCES[state.compare_with])}</b> "
            "<span style='color:#9aa4b5'>right</span>"
        )
    meaning = MEANINGS.get(state.layer, "")
    tail = f"<div style='color:#c9cfda'>{meaning}</div>" if meaning else ""
    return f"<b>{html.escape(name)}</b>{tail}"


def _swatches() -> str:
    def swatch(color: str, text: str) -> str:
        return (
            f'<span style="display:inline-block;width:9px;height:9px;border-radius:2px;'
            f'background:{color};margin:0 4px 0 8px;"></span>{text}'
        )

    return (
        '<div style="margin-left:-8px;">'
        + swatch("#f22929", "UCR: would be regenerated")
        + swatch("#ffb81a", "check")
        + "</div>"
    )


def _note(text: str, color: str) -> str:
    return f"<div style='color:{color};max-width:340px;'>{html.escape(text)}</div>"


def shares(state: ViewState, measurement: Measurement) -> str:
    """One line: how much of the picture is UCR and HPR."""
    if not measurement.histogram:
        return "No EIG of this view yet."
    low, tau = state.threshold
    ucr = measurement.share_above(tau)
    band = max(measurement.share_above(low) - ucr, 0.0)
    return (
        f"<b style='color:#ff6b6b'>UCR {ucr:.0%}</b> regenerate · "
        f"<b style='color:#8fd694'>HPR {1 - ucr:.0%}</b> keep, "
        f"of which <b style='color:#ffb81a'>{band:.0%}</b> to check"
        f"<div style='color:#9aa4b5'>Right thumb, {tau:.2f}: from this EIG on, pixels are regenerated. "
        f"Left thumb, {low:.2f}: kept, but worth a look up to there.</div>"
    )


def histogram_svg(state: ViewState, measurement: Measurement) -> str:
    """Pixels of the view by calibrated EIG, coloured by what the two thumbs say about them."""
    width, height = 300, 64
    if not measurement.histogram:
        return (
            "<div style='color:#9aa4b5;font-size:12px;padding:14px 12px;'>"
            "The EIG histogram appears when the view rests.</div>"
        )
    low, tau = state.threshold
    top = math.sqrt(max(*measurement.histogram, 1e-12))
    step = width / HISTOGRAM_BINS
    bars = []
    for index, share in enumerate(measurement.histogram):
        middle = (index + 0.5) / HISTOGRAM_BINS
        color = "#f25c5c" if middle >= tau else "#ffb81a" if middle >= low else "#7fb98a"
        size = math.sqrt(share) / top * (height - 4)
        bars.append(
            f'<rect x="{index * step:.1f}" y="{height - size:.1f}" width="{step - 0.6:.1f}" '
            f'height="{size:.1f}" fill="{color}"/>'
        )
    return (
        # Padded so that the bars stand over the track of the two-thumb slider below.
        f'<div style="padding:4px 12px 0 118px;"><svg viewBox="0 0 {width} {height}" '
        f'preserveAspectRatio="none" style="width:100%;height:{height}px;display:block;">'
        f"{''.join(bars)}</svg><div style='display:flex;justify-content:space-between;"
        "font-size:11px;color:#9aa4b5'><span>known</span><span>pixels by EIG</span><span>"
        "never seen</span></div></div>"
    )
