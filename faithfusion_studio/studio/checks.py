"""Is the picture right, and is EIG right? Numbers against recorded photos, with their protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.errors import StudioError
from faithfusion_studio.metrics import ause, block_mean, psnr, spearman
from faithfusion_studio.render.views import apply_exposure
from faithfusion_studio.scene import Scene
from faithfusion_studio.studio.layers import ViewLayers
from faithfusion_studio.studio.viewport import drawing, scene_has_evidence

CHECK_PIXELS = 640 * 360
"""Photos are compared at this size at most."""


class QualityError(StudioError):
    """Nothing to compare with."""


@dataclass(frozen=True, eq=False)
class FrameCheck:
    """One recorded frame against the rendering at its camera."""

    frame: int
    psnr: float
    """dB, after the frame's fitted exposure; a held-out frame has none."""
    held_out: bool
    """Whether the reconstruction never saw this photo."""
    spearman: float
    """Rank correlation of EIG and absolute error over 8x8 blocks; nan without EIG."""
    ause: float
    """Area between the sparsification curves of EIG and of the true error; nan without EIG."""
    error: Float32[Tensor, "H W"]
    """Mean absolute error over channels, 0..1."""


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
    recorded = scene.capture.frames[index]
    camera = recorded.camera
    pixels = camera.width * camera.height
    if pixels > CHECK_PIXELS:
        camera = camera.scaled((CHECK_PIXELS / pixels) ** 0.5)
    photo = recorded.image((camera.width, camera.height))
    with drawing():
        layers = ViewLayers(scene, camera, "block")
        held_out = index in held_out_frames(scene)
        exposure = None if held_out or scene.exposures is None else scene.exposures[index]
        rendered = apply_exposure(layers.view.rgb.detach(), exposure).clamp(0, 1).cpu()
        error = (rendered - photo).abs().mean(-1)
        correlation = area = float("nan")
        if scene_has_evidence(scene):
            correlation, area = _agreement(layers, error)
    return FrameCheck(
        frame=index,
        psnr=psnr(rendered, photo),
        held_out=held_out,
        spearman=correlation,
        ause=area,
        error=error,
    )


def _agreement(layers: ViewLayers, error: Tensor) -> tuple[float, float]:
    eig, residual = block_mean(layers.eig.eig.cpu()), block_mean(error)
    return spearman(eig, residual), ause(eig, residual)


def check_frames(scene: Scene, indices: list[int]) -> Iterator[FrameCheck]:
    """One result after the other, so that a panel can show how far it is."""
    for index in indices:
        yield check_frame(scene, index)


def summary(results: list[FrameCheck]) -> dict[str, float]:
    """Means over frames; nan where nothing was measured."""
    names = ("psnr", "spearman", "ause")
    if not results:
        return dict.fromkeys(names, float("nan"))
    rows = [[getattr(one, name) for name in names] for one in results]
    columns = torch.tensor(rows, dtype=torch.float64)
    return dict(zip(names, columns.nanmean(0).tolist(), strict=True))
