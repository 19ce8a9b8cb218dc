"""Metrics of images and of uncertainty, one implementation each."""

from faithfusion_studio.metrics.images import (
    PROTOCOL,
    SSIM_SIGMA,
    SSIM_WINDOW,
    MetricError,
    MetricReport,
    measure,
    psnr,
    ssim,
    ssim_map,
)
from faithfusion_studio.metrics.uncertainty import (
    aurg,
    ause,
    block_mean,
    capture,
    coverage,
    gaussian_nll,
    roc_auc,
    sparsification,
    spearman,
    widening,
)

__all__ = [
    "PROTOCOL",
    "SSIM_SIGMA",
    "SSIM_WINDOW",
    "MetricError",
    "MetricReport",
    "aurg",
    "ause",
    "block_mean",
    "capture",
    "coverage",
    "gaussian_nll",
    "measure",
    "psnr",
    "roc_auc",
    "sparsification",
    "spearman",
    "ssim",
    "ssim_map",
    "widening",
]
