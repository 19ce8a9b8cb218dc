"""One finished picture for a client: a layer, or two sides of a comparison, with tint and messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.render.views import colorize, to_uint8
from faithfusion_studio.scene import Scene
from faithfusion_studio.studio.layers import PALETTES, ViewLayers, table
from faithfusion_studio.studio.lens import see_through, shares_centre
from faithfusion_studio.studio.view_state import EIG_LAYERS, ViewState

DIFFERENCE_GAIN = 4.0
"""A mean difference of 1 / 4 of the colour range is the hottest."""
NO_FISHER = (
    'EIG needs the evidence of the recorded views: press "Measure the evidence" in the tab Look.'
)
NO_RECORDING = "EIG needs recorded views, and this scene came without a recording."
NO_BEFORE = "There is no fusion to compare with yet: the scene is as it was opened."


@dataclass(frozen=True, eq=False)
class Still:
    """A picture that exists only for one camera: a photo, or the pixels a repair changed."""

    image: Float32[Tensor, "H W 3"]
    camera: Camera
    name: str
    """For messages, e.g. "The photo"."""
    changed: Float32[Tensor, "H W"] | None = None
    """1 where the picture differs from the rendering, which is shown elsewhere; None: everywhere."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What is sent to the browser."""

    image: Float32[Tensor, "H W 3"]
    problem: str = ""
    """Why a part could not be shown as asked, one sentence."""
    inside: Bool[Tensor, "H W"] | None = None
    """Where a still has pixels; None: everywhere."""


StillSource = Callable[[str, ViewState], Still | None]
"""Gives the photo, repaired frame or confidence map of the shown frame; None where there is none."""


def compose(
    state: ViewState, layers: ViewLayers, before: ViewLayers | None, stills: StillSource
) -> Picture:
    """Draw what the client asked for; what cannot be drawn falls back to colour with a reason."""
    if state.before and before is None:
        return Picture(layers.rgb, NO_BEFORE)
    base = before if state.before and before is not None else layers
    left = _side(state.layer, state, base, before, stills)
    if state.compare == "off":
        return left
    right = _side(state.compare_with, state, layers, before, stills)
    if state.compare == "difference":
        return _apart(left, right)
    join = _beside if state.compare == "side" else _wiped
    return Picture(join(left.image, right.image, state.wipe), left.problem or right.problem)


def _side(
    source: str,
    state: ViewState,
    layers: ViewLayers,
    before: ViewLayers | None,
    stills: StillSource,
) -> Picture:
    problem = ""
    if source == "before":
        if before is None:
            return Picture(layers.rgb, NO_BEFORE)
        return Picture(before.rgb)
    if source in ("photo", "repaired", "confidence"):
        return _still(source, state, layers, stills)
    if layers.scene.fisher is None and (source in EIG_LAYERS or state.tint):
        problem = NO_RECORDING if layers.scene.capture is None else NO_FISHER
        source = "rgb" if source in EIG_LAYERS else source
        return Picture(layers.image(source, state), problem)
    image = layers.image(source, state)
    if state.tint:
        image = layers.tinted(image, state.threshold)
    if state.highlight:
        image = layers.highlighted(image, state.highlight)
    if state.chosen is not None and state.chosen.fits(layers.scene):
        image = layers.with_chosen(image, state.chosen)
    return Picture(image, problem)


def _still(source: str, state: ViewState, layers: ViewLayers, stills: StillSource) -> Picture:
    still = stills(source, state)
    dimmed = layers.rgb * 0.35
    if still is None:
        missing = {
            "photo": "This scene stores no photo of the frame.",
            "repaired": "This frame has not been repaired at this offset: see the tab Repair.",
            "confidence": "This frame has not been repaired at this offset: see the tab Repair.",
        }
        return Picture(dimmed, missing[source])
    if not shares_centre(still.camera, layers.camera):
        return Picture(
            dimmed,
            f"{still.name} fits only where its camera stood: go back to the shown path"
            + (" at offset 0 m." if source == "photo" else "."),
        )
    image, inside = (
        t.to(dimmed.device) for t in see_through(still.image, still.camera, layers.camera)
    )
    covered = inside if still.changed is None else None
    outside = dimmed if still.changed is None else layers.rgb
    picture = torch.where(inside[..., None], image.clamp(0, 1), outside)
    if still.changed is not None:
        mask = still.changed[..., None].expand_as(still.image).contiguous()
        changed, _ = see_through(mask, still.camera, layers.camera)
        picture = torch.where(changed.to(dimmed.device) > 0.5, picture, layers.rgb)
    return Picture(picture, inside=covered)


def _apart(left: Picture, right: Picture) -> Picture:
    """How far two pictures are apart, in heat; dimmed where one of them has no pixels."""
    problem = left.problem or right.problem
    if problem:
        return Picture(right.image if right.problem else left.image, problem)
    distance = (left.image - right.image).abs().mean(-1) * DIFFERENCE_GAIN
    image = colorize(distance, table(PALETTES["difference"]))
    for side in (left, right):
        if side.inside is not None:
            image = torch.where(side.inside[..., None], image, right.image)
    return Picture(image)


def _wiped(left: Tensor, right: Tensor, position: float) -> Tensor:
    width = left.shape[1]
    column = min(max(round(position * width), 0), width)
    image = torch.cat([left[:, :column], right[:, column:]], dim=1)
    return _divider(image, column)


def _beside(left: Tensor, right: Tensor, _position: float) -> Tensor:
    """Both halves show the middle of the picture, so that like stands beside like."""
    width = left.shape[1]
    start = width // 4
    half = width // 2
    image = torch.cat(
        [left[:, start : start + half], right[:, start : start + width - half]], dim=1
    )
    return _divider(image, half)


def _divider(image: Tensor, column: int) -> Tensor:
    if 0 < column < image.shape[1]:
        image = image.clone()
        image[:, max(column - 1, 0) : column + 1] = 1.0
    return image


def with_message(
    image: Float32[Tensor, "H W 3"] | UInt8[Tensor, "H W 3"], text: str
) -> UInt8[np.ndarray, "H W 3"]:
    """Bytes of the picture with one line of text on a dark band at half height."""
    import cv2

    tensor = image if image.dtype == torch.uint8 else to_uint8(image)
    array = np.ascontiguousarray(tensor.cpu().numpy())
    if not text:
        return array
    height, width = array.shape[:2]
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 1
    scale = max(0.35, height / 1100)
    lines = _wrap(text, max(20, int(width / (20 * scale))))
    step = int(34 * scale)
    top = height // 2 - step * len(lines) // 2
    array[max(top - step, 0) : top + step * len(lines)] //= 4
    for index, line in enumerate(lines):
        origin = (int(20 * scale) + 8, top + index * step + step // 3)
        cv2.putText(array, line, origin, font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
    return array


def _wrap(text: str, columns: int) -> list[str]:
    import textwrap

    ascii_text = text.replace("·", "-").encode("ascii", "replace").decode()
    return textwrap.wrap(ascii_text, columns)[:4]


def black(size: tuple[int, int]) -> Float32[Tensor, "H W 3"]:
    """An empty picture of width and height, for messages."""
    return torch.full((size[1], size[0], 3), 0.08)


class Stills:
    """Photos and repaired frames of the shown frame; the last photo is kept decoded."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._photo: tuple[int, int, Still] | None = None
        self.scene: Scene | None = None

    def __call__(self, source: str, state: ViewState) -> Still | None:
        """The still of the shown frame, or None."""
        return self._recorded(state) if source == "photo" else self._repaired(source, state)

    def _recorded(self, state: ViewState) -> Still | None:
        capture = None if self.scene is None else self.scene.capture
        if capture is None or not 0 <= state.frame < len(capture.frames):
            return None
        key = (id(capture), state.frame)
        if self._photo is None or self._photo[:2] != key:
            frame = capture.frames[state.frame]
            still = Still(frame.image(), frame.camera, "The photo")
            self._photo = (*key, still)
        return self._photo[2]

    def _repaired(self, source: str, state: ViewState) -> Still | None:
        found = repaired_frame(self._session.state, state.frame)
        if found is None:
            return None
        if source == "repaired":
            changed = (found.pixel_provenance > 0).to(torch.float32)
            return Still(found.repaired, found.camera, "The repaired frame", changed)
        grey = found.confidence.to(torch.float32)[..., None].expand(*found.confidence.shape, 3)
        return Still(grey.contiguous(), found.camera, "The confidence map")


def repaired_frame(state: Any, frame: int) -> Any | None:
    """The newest repaired frame of an index: the preview first, then the strip."""
    preview = getattr(state, "preview", None)
    candidates = ([preview] if preview is not None else []) + list(state.frames)
    return next((one for one in candidates if one.frame == frame), None)
