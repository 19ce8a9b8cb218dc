"""Is the picture right, and is EIG right? Numbers against photos and true views, with their protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.errors import StudioError
from faithfusion_studio.metrics import (
    ause,
    block_mean,
    capture,
    coverage,
    psnr,
    sparsification,
    spearman,
    widening,
)
from faithfusion_studio.render.views import apply_exposure
from faithfusion_studio.scene import PosedImage, Scene
from faithfusion_studio.studio.layers import ViewLayers
from faithfusion_studio.studio.viewport import drawing, scene_has_evidence

CHECK_PIXELS = 640 * 360
"""Photos are compared at this size at most."""
WORST = 0.1
"""Share of the pixels that counts as the worst ones."""
NOMINAL = 0.9
"""Probability of the predicted interval whose coverage is checked."""
KEPT_RATIOS = 4096
"""Normalised errors kept per view, with which the intervals of other views are widened."""
nan = float("nan")


class QualityError(StudioError):
    """Nothing to compare with."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """How well EIG predicts the error of one view."""

    spearman: float
    """Rank correlation with absolute error over 8x8 blocks."""
    ause: float
    """Area between the sparsification curves of EIG and of the true error, pixel by pixel."""
    found: float
    """Share of the worst 10 % of the pixels that are among the 10 % of largest EIG; chance reaches 0.1."""
    covered: float
    """Share of the errors inside the predicted 90 % interval, as it is."""
    ratios: Float32[Tensor, "_"]
    """|error| over the predicted standard deviation, a random part of the pixels."""
    left: Float32[Tensor, "100"]
    """Share of the error that is left as ever more pixels are removed, those of largest EIG first."""
    best: Float32[Tensor, "100"]
    """The same with the pixels of largest error first: what no map can beat."""


@dataclass(frozen=True, eq=False)
class FrameCheck:
    """One photo or true view against the rendering at its camera."""

    frame: int
    psnr: float
    """dB, after the frame's fitted exposure; a held-out frame has none."""
    held_out: bool
    """Whether the reconstruction never saw this picture."""
    agreement: Agreement | None
    """None without evidence."""
    error: Float32[Tensor, "H W"]
    """Mean absolute error over channels, 0..1."""

    @property
    def spearman(self) -> float:
        """Rank correlation of EIG and error; nan without EIG."""
        return nan if self.agreement is None else self.agreement.spearman

    @property
    def ause(self) -> float:
        """Area between the sparsification curves; nan without EIG."""
        return nan if self.agreement is None else self.agreement.ause

    @property
    def found(self) -> float:
        """Share of the worst pixels that EIG finds; nan without EIG."""
        return nan if self.agreement is None else self.agreement.found

    @property
    def covered(self) -> float:
        """Coverage of the predicted 90 % interval; nan without EIG."""
        return nan if self.agreement is None else self.agreement.covered


def held_out_frames(scene: Scene) -> list[int]:
    """Frames the reconstruction did not train on, as far as the scene says."""
    if scene.capture is None:
        return []
    reconstruction = scene.metadata.get("reconstruction")
    stored = reconstruction.get("holdout", []) if isinstance(reconstruction, Mapping) else []
    return [i for i in stored if isinstance(i, int) and 0 <= i < len(scene.capture)]


def check_frame(scene: Scene, index: int) -> FrameCheck:
    """Compare the rendering at a recorded camera with its photo.

    Raises:
        QualityError: The scene stores no photo of this frame.
    """
    if scene.capture is None or not 0 <= index < len(scene.capture):
        raise QualityError("this scene has no recorded photos to compare with.")
    held_out = index in held_out_frames(scene)
    exposure = None if held_out or scene.exposures is None else scene.exposures[index]
    return check_view(scene, scene.capture.frames[index], index, exposure, held_out)


def check_view(
    scene: Scene,
    true: PosedImage,
    number: int,
    exposure: Float32[Tensor, "3 4"] | None = None,
    held_out: bool = True,
) -> FrameCheck:
    """Compare the rendering at any camera with what is really seen from there.

    Args:
        scene: With or without evidence.
        true: Camera and picture.
        number: Shown in the table.
        exposure: Fitted exposure of a frame that was trained on.
        held_out: Whether the reconstruction never saw this picture.
    """
    camera = true.camera
    pixels = camera.width * camera.height
    if pixels > CHECK_PIXELS:
        camera = camera.scaled((CHECK_PIXELS / pixels) ** 0.5)
    photo = true.image((camera.width, camera.height))
    with drawing():
        layers = ViewLayers(scene, camera, "block")
        rendered = apply_exposure(layers.view.rgb.detach(), exposure).clamp(0, 1).cpu()
        signed = rendered - photo
        agreement = _agreement(layers, signed, number) if scene_has_evidence(scene) else None
    return FrameCheck(number, psnr(rendered, photo), held_out, agreement, signed.abs().mean(-1))


def _agreement(layers: ViewLayers, signed: Tensor, seed: int) -> Agreement:
    """On the grid EIG is evaluated on, which has no smaller pixels than the recording."""
    from faithfusion_studio.information.eig import predicted_std

    scene, (camera, view) = layers.scene, layers.eig_view
    assert scene.fisher is not None
    eig, error = layers.eig.eig.cpu(), signed.abs().mean(-1)
    std = predicted_std(view, camera, scene.fisher, layers.eig).cpu()
    most = torch.where(layers.eig.coverage.cpu(), eig, eig.max() + 1)
    if most.shape != error.shape:
        most, std = (layers._on_screen(values) for values in (most, std))
    variance = std.square()[..., None].expand_as(signed)
    ratios = (signed.abs() / variance.sqrt().clamp(min=1e-6)).flatten()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(ratios), (KEPT_RATIOS,), generator=generator)
    _, left, best = sparsification(most, error)
    whole = left[0].clamp(min=1e-12)
    return Agreement(
        spearman=spearman(block_mean(most), block_mean(error)),
        ause=ause(most, error),
        found=capture(most, error, WORST),
        covered=coverage(signed, variance, NOMINAL),
        ratios=ratios[chosen].float(),
        left=(left / whole).float(),
        best=(best / whole).float(),
    )


def check_frames(scene: Scene, indices: list[int]) -> Iterator[FrameCheck]:
    """One result after the other, so that a panel can show how far it is."""
    for index in indices:
        yield check_frame(scene, index)


def summary(results: Sequence[FrameCheck]) -> dict[str, float]:
    """Means over frames; nan where nothing was measured.

    "calibrated" is the coverage of each view's 90 % interval after it was widened as the other views of the
    same check need it; nan with fewer than two views.
    """
    names = ("psnr", "spearman", "ause", "found", "covered")
    if not results:
        return dict.fromkeys((*names, "calibrated"), nan)
    rows = [[getattr(one, name) for name in names] for one in results]
    columns = torch.tensor(rows, dtype=torch.float64)
    means = dict(zip(names, columns.nanmean(0).tolist(), strict=True))
    return {**means, "calibrated": _calibrated(results)}


def _calibrated(results: Sequence[FrameCheck]) -> float:
    ratios = [one.agreement.ratios for one in results if one.agreement is not None]
    if len(ratios) < 2:
        return nan
    found = []
    for index, own in enumerate(ratios):
        factor = widening(torch.cat(ratios[:index] + ratios[index + 1 :]), NOMINAL)
        found.append(coverage(own, torch.ones_like(own), NOMINAL, factor))
    return sum(found) / len(found)


def mean_curves(results: Sequence[FrameCheck]) -> tuple[list[float], list[float]] | None:
    """Sparsification curves in mean over the views: by EIG and by the true error; None without EIG."""
    known = [one.agreement for one in results if one.agreement is not None]
    if not known:
        return None
    left = torch.stack([one.left for one in known]).mean(0)
    best = torch.stack([one.best for one in known]).mean(0)
    return left.tolist(), best.tolist()


def is_trustworthy(means: Mapping[str, float]) -> bool:
    """Whether EIG predicts the errors clearly better than chance would."""
    return (
        means["spearman"] >= 0.2 and means["found"] >= 2 * WORST and not math.isnan(means["ause"])
    )
