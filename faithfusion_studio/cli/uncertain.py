"""What `ff-studio metrics --regions eig` adds: does EIG predict the error, and distances of UCR and HPR alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from faithfusion_studio.cli.truth import TrueFrame
from faithfusion_studio.metrics import (
    aurg,
    ause,
    block_mean,
    capture,
    coverage,
    gaussian_nll,
    roc_auc,
    spearman,
)
from faithfusion_studio.metrics.frechet import feature_moments, frechet_distance
from faithfusion_studio.scene import Scene

if TYPE_CHECKING:
    from faithfusion_studio.cli.measure import Sheet

LARGE_ERROR = 0.1
"""Mean absolute RGB error from which a pixel is wrong, for the ROC curve."""
LEAST_REGION = 0.01
"""A frame with a smaller share of its pixels in a region leaves both sets of that region."""


@runtime_checkable
class FeatureNetwork(Protocol):
    """Gives the features a Frechet distance compares."""

    name: str
    protocol: str

    def pooled(self, images: list[Tensor]) -> Tensor:
        """One row per image."""
        ...


def uncertain_region(
    sheet: Sheet, scene: Scene, true: TrueFrame, rgb: Tensor, threshold: float
) -> Tensor:
    """The UCR of a true frame's view; on the way, how well EIG ranks and measures the error of its render."""
    from faithfusion_studio.information import eig_map, predicted_std, split_regions
    from faithfusion_studio.render.views import rasterize_view

    assert scene.fisher is not None
    with torch.no_grad():
        view = rasterize_view(scene, true.camera)
        found = eig_map(scene, true.camera, view=view)
        ucr = split_regions(found, threshold).ucr.cpu()
        std = predicted_std(view, true.camera, scene.fisher, found).cpu()
    eig, covered = found.eig.cpu(), found.coverage.cpu()
    signed = rgb - true.image
    error = signed.abs().mean(-1)
    most = torch.where(covered, eig, eig.max() + 1)
    how = "per view then mean, EIG form block against mean absolute RGB error, uncovered first"
    sheet.put("ucr_share", float(ucr.float().mean()), f"of the pixels, threshold {threshold:g}")
    sheet.put("spearman", spearman(block_mean(most), block_mean(error)), f"{how}, 8x8 averages")
    sheet.put("ause_l1", ause(most, error), how)
    sheet.put("aurg_l1", aurg(most, error), how)
    for share in (0.1, 0.2):
        words = f"share of the worst {share:.0%} of the pixels that are among the {share:.0%} most uncertain"
        sheet.put(f"capture_{round(100 * share)}", capture(most, error, share), f"{words}; {how}")
    sheet.put("auroc", roc_auc(most, error > LARGE_ERROR), f"error > {LARGE_ERROR:g}; {how}")
    variance = std.square()[..., None].expand_as(signed)
    how = "per colour channel, predicted standard deviation as it is, per view then mean"
    sheet.put("nll", gaussian_nll(signed, variance), f"nats, {how}")
    for probability in (0.5, 0.9):
        inside = coverage(signed, variance, probability)
        words = f"share of the errors inside the {probability:.0%} interval, {how}"
        sheet.put(f"coverage_{round(100 * probability)}", inside, words)
    return ucr


class RegionSets:
    """Features of renders and true frames with one region shown and the rest black.

    The published FID-UCR and FID-HPR name a threshold and nothing else; mask, fill and least region are ours.
    """

    def __init__(self, network: FeatureNetwork, threshold: float) -> None:
        self._network, self._threshold = network, threshold
        self._rows: dict[str, tuple[list[Tensor], list[Tensor]]] = {
            "ucr": ([], []),
            "hpr": ([], []),
        }

    def add(self, ucr: Tensor, rgb: Tensor, truth: Tensor) -> None:
        """One frame, for the regions that are large enough in it."""
        for name, mask in (("ucr", ucr), ("hpr", ~ucr)):
            if float(mask.float().mean()) >= LEAST_REGION:
                for rows, image in zip(self._rows[name], (rgb, truth), strict=True):
                    rows.append(self._network.pooled([image * mask[..., None]]))

    def finish(self, sheet: Sheet, prefix: str) -> None:
        """Put PREFIX_ucr and PREFIX_hpr, or why one is missing."""
        for name, (rendered, true) in self._rows.items():
            key = f"{prefix}_{name}"
            if len(true) < 2:
                sheet.missing[key] = (
                    f"{name.upper()} is at least {LEAST_REGION:.0%} of {len(true)} frame(s); two are needed."
                )
                continue
            moments = [feature_moments(torch.cat(rows)) for rows in (rendered, true)]
            how = (
                f"(ours) Frechet distance with {name.upper()} shown and the rest black in both, threshold "
                f"{self._threshold:g}, mean features of {self._network.protocol}, n = {len(true)} a side"
            )
            sheet.put_whole(key, frechet_distance(*moments), how)
