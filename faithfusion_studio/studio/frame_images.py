"""Pictures of repaired frames for the narrow side panel; numpy only, bytes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

VIEWS = {
    "wipe": "Before | after",
    "side": "Before above after",
    "mask": "What was regenerated (UCR)",
    "confidence": "Confidence of the repair",
    "source": "Where pixels come from",
}
"""Ways to look at a repaired frame, with their names for people."""
LEGENDS = {
    "wipe": "left of the line: rendering; right: repaired",
    "side": "above: rendering; below: repaired",
    "mask": "red: UCR, may be regenerated; plain: HPR, kept bit by bit",
    "confidence": "dark to bright green: 0 to 1, on the pixels that changed",
    "source": "plain: rendering; blue: reprojected from recorded frames; magenta: generated",
}
PANEL_WIDTH = 480
"""Pictures are thinned to at most this width, or enlarged towards it, px."""
_RED, _BLUE, _MAGENTA = (230, 60, 50), (70, 140, 255), (225, 60, 220)


def frame_image(frame: Any, what: str, wipe: float = 0.5) -> UInt8[np.ndarray, "h w 3"]:
    """One view of a `RepairedFrame`, about as wide as the panel.

    Args:
        frame: Its images are [H, W, 3] in [0, 1].
        what: A key of `VIEWS`.
        wipe: Where the line stands, 0 left .. 1 right.
    """
    thin = -(-frame.repaired.shape[1] // PANEL_WIDTH)
    enlarge = max(1, PANEL_WIDTH * thin // frame.repaired.shape[1])
    image = _view(frame, what, wipe, thin).repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    if what == "wipe":
        column = round(wipe * image.shape[1])
        image[:, max(column - 1, 0) : column + 1] = 255
    return image


def _view(frame: Any, what: str, wipe: float, thin: int) -> UInt8[np.ndarray, "h w 3"]:
    repaired = _bytes(frame.repaired[::thin, ::thin])
    if what == "side":
        return np.concatenate([_bytes(frame.rendered[::thin, ::thin]), repaired])
    if what == "mask":
        return _tinted(repaired, _plane(frame.ucr, thin) > 0, _RED)
    if what == "confidence":
        return _confidence(frame, repaired, thin)
    if what == "source":
        source = _plane(frame.pixel_provenance, thin)
        return _tinted(_tinted(repaired, source == 1, _BLUE), source == 2, _MAGENTA)
    column = round(wipe * repaired.shape[1])
    image = repaired.copy()
    image[:, :column] = _bytes(frame.rendered[::thin, ::thin])[:, :column]
    return image


def masked_image(frame: Any, mask: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A repaired frame with some of its pixels [H, W] marked as generated, about as wide as the panel."""
    thin = -(-frame.repaired.shape[1] // PANEL_WIDTH)
    repaired = _bytes(frame.repaired[::thin, ::thin])
    return _tinted(repaired, _plane(mask, thin) > 0, _MAGENTA)


def strip_image(
    frames: Sequence[Any], selected: int, *, width: int = 360, columns: int = 7
) -> UInt8[np.ndarray, "h w 3"]:
    """Thumbnails of repaired frames in rows: green edge accepted, red rejected, white selected.

    Args:
        frames: `RepairedFrame`s, at least one.
        selected: Index into `frames`.
        width: Of the whole picture, px.
        columns: Thumbnails per row.
    """
    cell = width // columns
    height = max(8, round(cell * frames[0].repaired.shape[0] / frames[0].repaired.shape[1]))
    rows = -(-len(frames) // columns)
    sheet = np.full((rows * height, columns * cell, 3), 30, dtype=np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * height, index % columns * cell
        tile = _thumbnail(frame.repaired, cell - 2, height - 2)
        edge = (90, 200, 110) if frame.accepted else (230, 70, 60)
        if index == selected:
            edge = (255, 255, 255)
        sheet[top : top + height - 1, left : left + cell - 1] = edge
        inset = 2 if index == selected else 1
        part = tile[inset : height - 1 - inset, inset : cell - 1 - inset]
        if not frame.accepted:
            part = part // 3
        sheet[
            top + inset : top + inset + part.shape[0], left + inset : left + inset + part.shape[1]
        ] = part
    return sheet


def describe_frame(frame: Any) -> str:
    """The numbers of a repaired frame in one line."""
    ucr = _plane(frame.ucr, 1) > 0
    source = _plane(frame.pixel_provenance, 1)
    changed = source > 0
    parts = [f"UCR {ucr.mean():.0%} of the picture"]
    if changed.any():
        parts.append(f"changed {changed.mean():.0%}")
        parts.append(f"of it reprojected {(source == 1).sum() / changed.sum():.0%}")
        parts.append(f"mean confidence {np.asarray(frame.confidence)[changed].mean():.2f}")
    return " · ".join([*parts, f"HPR pixels changed: {frame.hpr_changed}"])


def _confidence(
    frame: Any, repaired: UInt8[np.ndarray, "h w 3"], thin: int
) -> UInt8[np.ndarray, "h w 3"]:
    grey = (repaired.mean(-1, keepdims=True) * 0.5).astype(np.uint8).repeat(3, axis=-1)
    value = _plane(frame.confidence, thin).clip(0, 1)[..., None]
    ramp = np.array([60, 20, 20]) + value * np.array([60, 215, 100])
    changed = (_plane(frame.pixel_provenance, thin) > 0)[..., None]
    return np.where(changed, ramp, grey).astype(np.uint8)


def _bytes(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    return (np.asarray(image).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _plane(values: Any, thin: int) -> np.ndarray:
    return np.asarray(values[::thin, ::thin]).astype(np.float32)


def _tinted(
    image: UInt8[np.ndarray, "h w 3"], where: np.ndarray, color: tuple[int, int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    mixed = (0.55 * image + 0.45 * np.array(color)).astype(np.uint8)
    return np.where(where[..., None], mixed, image)


def _thumbnail(image: Any, width: int, height: int) -> UInt8[np.ndarray, "h w 3"]:
    """Mean over a few samples per pixel: enough for a stamp."""
    samples = 3
    rows = np.linspace(0, image.shape[0] - 1, height * samples).round().astype(int)
    columns = np.linspace(0, image.shape[1] - 1, width * samples).round().astype(int)
    dense = np.asarray(image)[rows][:, columns]
    return _bytes(dense.reshape(height, samples, width, samples, 3).mean((1, 3)))
