"""Image metrics as pure functions returning floats, each with its protocol in words.

Images are [H, W, 3] in [0, 1]; masks are True where a pixel counts. A number without its protocol
cannot be compared, so `MetricReport` carries one line that says how it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithfusion_studio.errors import StudioError

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
PROTOCOL = (
    "PSNR 10 log10(1/MSE) over all counted pixels; SSIM 11x11 Gaussian window, sigma 1.5, "
    "data range 1, without the 5 pixels next to the border"
)


class MetricError(StudioError):
    """Images that cannot be compared."""


@dataclass(frozen=True)
class MetricReport:
    """Numbers by name, and how they were measured."""

    values: Mapping[str, float]
    protocol: str

    def line(self) -> str:
        """All values in one line, for people."""
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in self.values.items())
        return f"{numbers}  [{self.protocol}]"


def measure(
    rendered: Float[Tensor, "H W 3"],
    truth: Float[Tensor, "H W 3"],
    mask: Bool[Tensor, "H W"] | None = None,
    *,
    quantized: bool = False,
) -> MetricReport:
    """PSNR and SSIM of one image with their protocol.

    Args:
        rendered: Image to judge, [0, 1].
        truth: What it should be, [0, 1].
        mask: Pixels that count; None = all.
        quantized: Round both to 8 bits first, as saved PNGs are.
    """
    _require_equal_shapes(rendered, truth)
    if quantized:
        rendered, truth = ((x.clamp(0, 1) * 255).round() / 255 for x in (rendered, truth))
    values = {"psnr": psnr(rendered, truth, mask), "ssim": ssim(rendered, truth, mask)}
    notes = "; 8-bit" if quantized else "; float"
    if mask is not None:
        notes += f"; masked, {float(mask.float().mean()):.1%} of the pixels"
    return MetricReport(values, PROTOCOL + notes)


def psnr(
    rendered: Float[Tensor, "H W 3"],
    truth: Float[Tensor, "H W 3"],
    mask: Bool[Tensor, "H W"] | None = None,
) -> float:
    """Peak signal-to-noise ratio in dB for a data range of 1; infinite for equal images.

    Args:
        rendered: Image to judge, [0, 1].
        truth: What it should be, [0, 1].
        mask: Pixels that count; None = all. No pixel at all gives NaN.

    Raises:
        MetricError: The images differ in size.
    """
    _require_equal_shapes(rendered, truth)
    squared = (rendered.double() - truth.double()).square().mean(-1)
    if mask is not None:
        squared = squared[mask]
    if squared.numel() == 0:
        return math.nan
    mse = float(squared.mean())
    return math.inf if mse == 0 else -10 * math.log10(mse)


def ssim(
    rendered: Float[Tensor, "H W 3"],
    truth: Float[Tensor, "H W 3"],
    mask: Bool[Tensor, "H W"] | None = None,
) -> float:
    """Mean structural similarity; with a mask, the mean of the full map over the mask.

    Raises:
        MetricError: The images differ in size or are smaller than the 11x11 window.
    """
    values = ssim_map(rendered, truth).mean(-1)
    if mask is not None:
        margin = SSIM_WINDOW // 2
        values = values[mask[margin:-margin, margin:-margin]]
    return float(values.mean()) if values.numel() else math.nan


def ssim_map(
    rendered: Float[Tensor, "H W 3"], truth: Float[Tensor, "H W 3"]
) -> Float[Tensor, "H2 W2 3"]:
    """Structural similarity per pixel and channel where the whole window fits; differentiable.

    Returns:
        [H - 10, W - 10, 3], at most 1.

    Source: Wang et al. 2004, with the Gaussian window of gsplat and Inria 3DGS.
    """
    _require_equal_shapes(rendered, truth)
    if min(rendered.shape[:2]) < SSIM_WINDOW:
        raise MetricError(
            f"the images are {rendered.shape[1]}x{rendered.shape[0]}; SSIM needs at least "
            f"{SSIM_WINDOW}x{SSIM_WINDOW} pixels, so compare larger ones."
        )
    a, b = rendered.permute(2, 0, 1), truth.to(rendered).permute(2, 0, 1)
    moments = _blur(torch.cat([a, b, a * a, b * b, a * b]))
    mean_a, mean_b, aa, bb, ab = moments.chunk(5)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    variances = (aa - mean_a**2) + (bb - mean_b**2)
    structure = (2 * (ab - mean_a * mean_b) + c2) / (variances + c2)
    return (luminance * structure).permute(1, 2, 0)


def _blur(channels: Tensor) -> Tensor:
    """Separable Gaussian filter of [C, H, W], valid part only."""
    offsets = torch.arange(SSIM_WINDOW, dtype=channels.dtype, device=channels.device)
    window = torch.exp(-0.5 * ((offsets - SSIM_WINDOW // 2) / SSIM_SIGMA) ** 2)
    window = window / window.sum()
    rows = torch.nn.functional.conv2d(channels[:, None], window.view(1, 1, -1, 1))
    return torch.nn.functional.conv2d(rows, window.view(1, 1, 1, -1))[:, 0]


def _require_equal_shapes(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise MetricError(
            f"the images differ in size: {tuple(a.shape)} against {tuple(b.shape)}; "
            "resize one of them first."
        )
