"""What a repair did to good and to bad pixels: the region-split PSNR and its control.

Pixels are split by the error of the render BEFORE the repair (8x8 block average): the lower half is
good, the upper half bad. A repair should not lose in the good half and gain in the bad one. Because a
split by measured error favours whatever changes little, the same numbers of a control stand beside
it: a blur that changes the picture as much as the repair did.

Source: the over-restoration measure of GeoQuery, with the control added by us.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithfusion_studio.metrics.images import MetricError, psnr

BLOCK = 8
DRIFT_LIMIT = 0.2
"""A recorded view may lose so much PSNR before it counts as drift, dB."""
WIDEST_BLUR = 0.25
"""Standard deviation of the strongest control, as a share of the longer side."""


@dataclass(frozen=True)
class RegionPsnr:
    """PSNR in both regions before and after a repair, dB."""

    good_before: float
    good_after: float
    bad_before: float
    bad_after: float

    @property
    def good_change(self) -> float:
        """What the repair did where the render was good; >= 0 is the goal, dB."""
        return _change(self.good_before, self.good_after)

    @property
    def bad_change(self) -> float:
        """What the repair did where the render was bad; > 0 is the goal, dB."""
        return _change(self.bad_before, self.bad_after)


def _change(before: float, after: float) -> float:
    return 0.0 if before == after else after - before  # also for two infinite values


def bad_half(
    before: Float[Tensor, "H W 3"], truth: Float[Tensor, "H W 3"], block: int = BLOCK
) -> Bool[Tensor, "H W"]:
    """The half of the pixels with the larger squared error, averaged over blocks first.

    Equal errors are cut in raster order, so that exactly half of the pixels (rounded down) is bad.
    """
    error = (before.double() - truth.double()).square().mean(-1)
    means = torch.nn.functional.avg_pool2d(
        error[None, None], block, ceil_mode=True, count_include_pad=False
    )[0, 0]
    spread = means.repeat_interleave(block, 0).repeat_interleave(block, 1)
    flat = spread[: error.shape[0], : error.shape[1]].flatten()
    bad = torch.zeros_like(flat, dtype=torch.bool)
    bad[torch.argsort(flat, stable=True)[len(flat) - len(flat) // 2 :]] = True
    return bad.view(error.shape)


def region_psnr(
    before: Float[Tensor, "H W 3"],
    after: Float[Tensor, "H W 3"],
    truth: Float[Tensor, "H W 3"],
    bad: Bool[Tensor, "H W"],
) -> RegionPsnr:
    """PSNR in a region and its complement, before and after.

    Args:
        before: Render before the repair, [0, 1].
        after: After it.
        truth: What it should be.
        bad: From `bad_half`, or the UCR of an EIG map.
    """
    return RegionPsnr(
        good_before=psnr(before, truth, ~bad),
        good_after=psnr(after, truth, ~bad),
        bad_before=psnr(before, truth, bad),
        bad_after=psnr(after, truth, bad),
    )


@dataclass(frozen=True, eq=False)
class BlurControl:
    """A blur that changes a picture as much as a repair did."""

    image: Float[Tensor, "H W 3"]
    sigma: float
    """Standard deviation, pixels; 0 where the repair changed nothing."""
    reached: bool
    """False where even the strongest blur changes less than the repair."""


def blur_control(before: Float[Tensor, "H W 3"], after: Float[Tensor, "H W 3"]) -> BlurControl:
    """The Gaussian blur of `before` with the same root mean square change as `after` has.

    Found by bisection over the standard deviation; edges are replicated.
    """
    wanted = float((after.double() - before.double()).square().mean())
    if wanted == 0:
        return BlurControl(before, 0.0, True)
    low, high = 0.0, WIDEST_BLUR * max(before.shape[:2])
    if _change_of_blur(before, high) < wanted:
        return BlurControl(blurred(before, high), high, False)
    for _ in range(24):
        middle = (low + high) / 2
        weaker = _change_of_blur(before, middle) < wanted
        low, high = (middle, high) if weaker else (low, middle)
    return BlurControl(blurred(before, high), high, True)


def _change_of_blur(image: Tensor, sigma: float) -> float:
    return float((blurred(image, sigma).double() - image.double()).square().mean())


def blurred(image: Float[Tensor, "H W 3"], sigma: float) -> Float[Tensor, "H W 3"]:
    """Gaussian blur with replicated edges."""
    import cv2

    pixels = image.cpu().numpy()
    result = cv2.GaussianBlur(pixels, (0, 0), max(sigma, 1e-3), borderType=cv2.BORDER_REPLICATE)
    return torch.from_numpy(result).to(image)


def drift(before: Float[Tensor, "H W 3"], after: Float[Tensor, "H W 3"], recorded: Tensor) -> float:
    """PSNR change of a recorded view, dB; below `-DRIFT_LIMIT` a repair has harmed what was known."""
    return _change(psnr(before, recorded), psnr(after, recorded))


def changed_outside(
    before: Float[Tensor, "H W 3"],
    after: Float[Tensor, "H W 3"],
    mask: Bool[Tensor, "H W"],
) -> float:
    """Share of the pixels outside a mask that a repair changed in any bit; must be 0.

    Raises:
        MetricError: Mask and images differ in size.
    """
    if before.shape != after.shape or before.shape[:2] != mask.shape:
        raise MetricError(
            f"images {tuple(before.shape)} and {tuple(after.shape)} with a mask "
            f"{tuple(mask.shape)}; expected one size."
        )
    outside = ~mask
    changed = (before != after).any(-1) & outside
    return float(changed.sum()) / max(int(outside.sum()), 1)
