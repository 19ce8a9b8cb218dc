"""Split a view into what may be repaired (UCR) and what must stay as it is (HPR)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.information.eig import EigMap

SMOOTHING = 1.5 / 320
"""Standard deviation of the smoothing, as a share of the image width."""
SMALLEST = 6e-4
"""Regions and holes below this share of the image are closed."""


@dataclass(frozen=True, eq=False)
class Regions:
    """A partition of the pixels of one view."""

    ucr: Bool[Tensor, "H W"]
    """Under-constrained: uncertain, or not covered by the scene."""
    hpr: Bool[Tensor, "H W"]
    """High precision: everything else; a repair leaves these pixels bit-exact."""


def split_regions(eig: EigMap, threshold: float) -> Regions:
    """Threshold the smoothed calibrated map and close crumbs.

    Args:
        eig: From `eig_map`.
        threshold: Calibrated value in [0, 1] from which a pixel is under-constrained.
    """
    smooth = smoothed_value(eig).cpu().numpy()
    mask = (smooth >= threshold) | ~eig.coverage.cpu().numpy()
    least = max(2, round(SMALLEST * mask.size))
    mask = _without_small(mask, least)
    mask = ~_without_small(~mask, least)
    ucr = torch.from_numpy(mask).to(eig.eig.device) | ~eig.coverage
    return Regions(ucr, ~ucr)


def smoothed_value(eig: EigMap) -> Float32[Tensor, "H W"]:
    """The value in [0, 1] that is compared with the threshold: calibrated EIG, smoothed; 1 if uncovered."""
    import cv2

    value = torch.where(eig.coverage, eig.calibrated, torch.ones_like(eig.calibrated))
    width = max(SMOOTHING * value.shape[1], 0.3)
    smooth = cv2.GaussianBlur(value.cpu().numpy(), (0, 0), width, borderType=cv2.BORDER_REPLICATE)
    return torch.from_numpy(smooth).to(value.device)


def _without_small(mask: np.ndarray, least: int) -> np.ndarray:
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = stats[:, cv2.CC_STAT_AREA] >= least
    keep[0] = False
    return keep[labels]
