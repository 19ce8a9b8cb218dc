"""Clips for video engines: windows over any length, letterboxing, and EIG on the grid of latents and tokens.

Symbols: T frames of H x W pixels; F latent frames (the first pixel frame alone, then groups of four) of
h x w latents (1/8 of the pixels); tokens are 2 x 2 latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from torch.nn import functional

EXTREME = 0.99
"""Mapped EIG above which a latent is left to the frozen trunk, in the released code."""


@dataclass(frozen=True)
class Window:
    """Frames a video model sees at once."""

    start: int
    stop: int
    """Half-open range; shorter than the model's clip only where the whole segment is."""
    overlap: int
    """How many of its first frames the window before has made already."""


def plan_windows(total: int, size: int, overlap: int) -> tuple[Window, ...]:
    """Windows of one length that cover a segment, each beginning with frames of the one before.

    Args:
        total: Frames of the segment.
        size: Frames of a window.
        overlap: Frames shared with the window before, at least 1, so that each starts from a made frame;
            the last window may share more.
    """
    if total <= size:
        return (Window(0, total, 0),)
    windows, start = [Window(0, size, 0)], 0
    while windows[-1].stop < total:
        end = windows[-1].stop
        start = min(end - overlap, total - size)
        windows.append(Window(start, start + size, end - start))
    return tuple(windows)


def crossfade(made: Float32[Tensor, "O H W 3"], new: Float32[Tensor, "O H W 3"]) -> Tensor:
    """From what was made before to what is made now, over the frames that both windows hold."""
    count = made.shape[0]
    share = (torch.arange(count, dtype=torch.float32) + 1) / (count + 1)
    return torch.lerp(made, new, share[:, None, None, None])


@dataclass(frozen=True)
class Letterbox:
    """Frames fitted into a model's fixed size without changing their shape; the rest repeats the border."""

    height: int
    width: int
    """Of the frames."""
    model_height: int
    model_width: int

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the picture inside."""
        scale = min(self.model_height / self.height, self.model_width / self.width)
        return (
            min(self.model_height, max(1, round(self.height * scale))),
            min(self.model_width, max(1, round(self.width * scale))),
        )

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom, pixels."""
        across, down = self.model_width - self.inner[1], self.model_height - self.inner[0]
        return (across // 2, across - across // 2, down // 2, down - down // 2)

    def put(self, images: Float32[Tensor, "T C H W"]) -> Float32[Tensor, "T C MH MW"]:
        """Frames at the model's size."""
        inside = functional.interpolate(images, self.inner, mode="bilinear", antialias=True)
        return functional.pad(inside, self.padding, mode="replicate")

    def take(self, images: Float32[Tensor, "T C MH MW"]) -> Float32[Tensor, "T C H W"]:
        """The frames out of the model's pictures."""
        left, _, top, _ = self.padding
        height, width = self.inner
        inside = images[..., top : top + height, left : left + width]
        found = functional.interpolate(
            inside, (self.height, self.width), mode="bilinear", antialias=True
        )
        return found.clamp(0, 1)


def mapped_eig(
    eig: Float32[Tensor, "T H W"], coverage: Bool[Tensor, "T H W"], cap: float
) -> Float32[Tensor, "T H W"]:
    """EIG as released weights were shown it: min(eig, cap) / cap in 256 grey levels, 1 where uncovered.

    Args:
        eig: Of the form "released".
        coverage: False where no Gaussian reaches.
        cap: 0.1 for the video model, 1 for EIG-Difix.

    Source: FaithFusion, `waymo_dataset_img_pair_parallel.py`.
    """
    grey = torch.where(coverage, (eig / cap).clamp(0, 1), 1.0)
    return (grey * 255).floor() / 255


def to_latents(
    values: Float32[Tensor, "T MH MW"], frames: int, height: int, width: int
) -> Float32[Tensor, "F h w"]:
    """A map on the latent grid, by the nearest pixel in time and space, as the released code does."""
    size = (frames, height, width)
    return functional.interpolate(values[None, None], size, mode="nearest")[0, 0]


def any_per_token(values: Bool[Tensor, "F h w"], patch: int = 2) -> Bool[Tensor, " N"]:
    """True for the tokens in which any latent is True, in the order of the model's tokens."""
    pooled = functional.max_pool2d(values[:, None].to(torch.float32), patch)
    return pooled.flatten() > 0


def mean_per_token(values: Float[Tensor, "F h w"], patch: int = 2) -> Float[Tensor, " N"]:
    """The mean of a map over each token."""
    return functional.avg_pool2d(values[:, None], patch).flatten()


def dilated(mask: Bool[Tensor, "T H W"], radius: int) -> Bool[Tensor, "T H W"]:
    """Regions grown into blobs, which is what models trained on object masks expect."""
    grown = functional.max_pool2d(mask[:, None].to(torch.float32), 2 * radius + 1, 1, radius)
    return grown[:, 0] > 0


def soft_keep(
    generated: Float[Tensor, "..."], kept: Float[Tensor, "..."], eig: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Generated latents where EIG is at least 0.1, the render's where it is 0, a ramp between.

    Source: FaithFusion's option `replace_gt`, w = min(1, 10 EIG).
    """
    share = (10 * eig).clamp(0, 1)
    return kept + share * (generated - kept)
