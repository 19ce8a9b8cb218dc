"""How the refiner is fitted: single frames first, then its attention over time on clips, all else frozen.

The loss is taken after the gate: what is learned is what will be shown. The second stage adds what still
flickers: how far neighbouring frames differ along the true motion of the surfaces. Because the rest of
the network is frozen then, a frame without neighbours stays what the first stage made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional

from faithfusion_studio.metrics.temporal import DEPTH_TOLERANCE
from faithfusion_studio.repair.refiner_network import (
    EIG,
    GATE,
    RENDER,
    UNKNOWN_EIG,
    Refined,
    Refiner,
    Size,
    reprojected,
)
from faithfusion_studio.repair.temporal_attention import Paths, View, fetch, inside_picture
from faithfusion_studio.training.loop import Loop, LoopConfig, vary
from faithfusion_studio.training.pairs import PairFile


@dataclass(frozen=True)
class RefinerLosses:
    """Weights of the terms, after the gate unless said otherwise."""

    squared: float = 6.0
    """Squared error, which PSNR measures."""
    absolute: float = 0.5
    """Absolute error; raising it keeps edges."""
    gradient: float = 0.3
    """Absolute error of differences between neighbours, at two scales."""
    everywhere: float = 0.1
    """Absolute error before the gate, so that the network stays near the truth on HPR pixels too."""
    error: float = 0.02
    """Negative log-likelihood of the absolute error under the predicted one."""
    flicker: float = 0.5
    """Warp error of neighbouring frames, in the second stage; raising it steadies and blurs."""


@dataclass(frozen=True, kw_only=True)
class FittingConfig(LoopConfig):
    """How the refiner is trained; the defaults are those of size S on a CPU."""

    size: Size = "S"
    steps: int = 4000
    batch: int = 6
    temporal_share: float = 0.25
    """Of the steps, the last ones: the attention over time learns and all else is frozen."""
    clips: int = 1
    """Clips per step then."""
    frames: int = 8
    """Of a clip."""
    clip_crop: tuple[int, int] = (128, 192)
    """Height and width of their crops, pixels."""
    losses: RefinerLosses = field(default_factory=RefinerLosses)


PRESETS: dict[Size, FittingConfig] = {
    "S": FittingConfig(),
    "M": FittingConfig(
        size="M",
        steps=12000,
        batch=16,
        crop=(256, 448),
        rate=5e-4,
        warm_up=200,
        average=0.999,
        clips=2,
        clip_crop=(216, 384),
    ),
}


class Crops(NamedTuple):
    """A step's inputs; those of clips have an axis of time before the maps."""

    degraded: Float[Tensor, "*B C h w"]
    gate: Float[Tensor, "*B 1 h w"]
    """How much will show; unlike the network's own map never hidden."""


class Fitting(Loop[Refiner, FittingConfig]):
    """The refiner in training.

    Args:
        files: Training pairs.
        config: See `FittingConfig`.
    """

    def __init__(self, files: Sequence[PairFile], config: FittingConfig) -> None:
        super().__init__(files, config, lambda: Refiner(config.size))

    @property
    def alone_steps(self) -> int:
        """Steps on single frames, before the attention over time learns."""
        return round((1 - self.config.temporal_share) * self.config.steps)

    def _stage(self) -> tuple[int, int]:
        first = self.alone_steps
        return (0, first) if self.step < first else (first, self.config.steps - first)

    def _loss(self, rng: np.random.Generator) -> tuple[Tensor, float]:
        if self.step >= self.alone_steps:
            return self._loss_of_clips(rng)
        inputs, truth = self._crops(rng)
        with torch.autocast(torch.device(self.config.device).type, torch.bfloat16):
            refined = self.network(inputs.degraded)
        return losses(refined, inputs, truth, self.config.losses)

    def _crops(self, rng: np.random.Generator) -> tuple[Crops, Tensor]:
        config = self.config
        pairs = [self.draw(rng, 1) for _ in range(config.batch)]
        degraded = torch.cat([pair.degraded for pair in pairs]).float()
        truth = torch.cat([pair.truth for pair in pairs]).float()
        degraded, truth, _ = vary(degraded, truth, rng)
        gate = degraded[:, GATE : GATE + 1].clone()
        hidden = torch.from_numpy(rng.random(config.batch) < config.eig_dropout)
        degraded[hidden, EIG], degraded[hidden, GATE] = UNKNOWN_EIG, 1.0
        device = config.device
        return Crops(degraded.to(device), gate.to(device)), truth.to(device)

    def _loss_of_clips(self, rng: np.random.Generator) -> tuple[Tensor, float]:
        network, config = self.network, self.config
        if self.step == self.alone_steps > 0:
            network.load_state_dict(self.averaged.state_dict())
        network.requires_grad_(False)
        assert network.temporal is not None
        network.temporal.requires_grad_(True)
        inputs, truth, depth, view = self._clips(rng)
        count = truth.shape[1]
        with torch.autocast(torch.device(config.device).type, torch.bfloat16):
            looks = [
                network.look(inputs.degraded[:, t], View(*(part[:, t] for part in view)))
                for t in range(count)
            ]
        steadied = zip(*network.clip(looks), strict=True)
        refined = Refined(*(torch.stack(parts, 1).flatten(0, 1) for parts in steadied))
        flat = Crops(*(part.flatten(0, 1) for part in inputs))
        loss, gain = losses(refined, flat, truth.flatten(0, 1), config.losses)
        shown = torch.lerp(flat.degraded[:, RENDER], refined.rgb, flat.gate)
        flickering = flicker(shown.unflatten(0, truth.shape[:2]), depth, view)
        return loss + config.losses.flicker * flickering, gain

    def _clips(self, rng: np.random.Generator) -> tuple[Crops, Tensor, Tensor, View]:
        """What the network sees of clips [B, T, ...], their truth and its depth, and the cameras."""
        config = self.config
        pairs = [self.draw(rng, config.frames, config.clip_crop) for _ in range(config.clips)]
        degraded = torch.stack([pair.degraded for pair in pairs]).float()
        truth = torch.stack([pair.truth for pair in pairs]).float()
        depth = torch.stack([pair.depth for pair in pairs]).float()
        intrinsics = torch.stack([pair.view.intrinsics for pair in pairs])
        degraded, truth, mirrored = vary(degraded, truth, rng)
        depth[mirrored] = depth[mirrored].flip(-1)
        intrinsics[mirrored] = mirror(truth.shape[-1]) @ intrinsics[mirrored]
        gate = degraded[:, :, GATE : GATE + 1].clone()
        hidden = torch.from_numpy(rng.random(config.clips) < config.eig_dropout)
        degraded[hidden, :, EIG], degraded[hidden, :, GATE] = UNKNOWN_EIG, 1.0
        device = config.device
        view = View(intrinsics, torch.stack([pair.view.camtoworld for pair in pairs]))
        crops = Crops(degraded.to(device), gate.to(device))
        return crops, truth.to(device), depth.to(device), view


def losses(
    refined: Refined, inputs: Crops, truth: Float[Tensor, "B 3 h w"], weights: RefinerLosses
) -> tuple[Tensor, float]:
    """The training loss, and by how many dB the refined crops beat the reprojected ones."""
    render, base = inputs.degraded[:, RENDER], reprojected(inputs.degraded)
    shown = torch.lerp(render, refined.rgb, inputs.gate)
    difference = shown - truth
    squared = difference.square().mean()
    free = (refined.rgb - truth).abs().mean(1)
    likelihood = (refined.error.log() + free.detach() / refined.error).mean()
    total = (
        weights.squared * squared
        + weights.absolute * (difference.square() + 1e-6).sqrt().mean()
        + weights.gradient * (_slopes(difference) + _slopes(functional.avg_pool2d(difference, 2)))
        + weights.everywhere * free.mean()
        + weights.error * likelihood
    )
    with torch.no_grad():
        before = (torch.lerp(render, base, inputs.gate) - truth).square().mean((1, 2, 3))
        after = difference.square().mean((1, 2, 3))
        gain = 10 * ((before + 1e-8) / (after + 1e-8)).log10().mean()
    return total, float(gain)


def _slopes(difference: Tensor) -> Tensor:
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def mirror(width: int) -> Float64[Tensor, "3 3"]:
    """What takes pixels of a picture to those of the picture with left and right exchanged."""
    return torch.tensor([[-1, 0, width], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)


def flicker(
    shown: Float[Tensor, "B T 3 h w"], depth: Float[Tensor, "B T h w"], view: View
) -> Tensor:
    """Mean absolute difference of neighbouring frames along the motion of a static world.

    Args:
        shown: Frames.
        depth: Along z, m; 0 does not count.
        view: Cameras [B, T].

    Returns:
        A scalar; 0 where neighbouring frames share nothing. Differentiable in `shown`.
    """
    own, following = (View(*(part[:, cut].flatten(0, 1) for part in view)) for cut in _NEIGHBOURS)
    z, next_z = (depth[:, cut].flatten(0, 1)[:, None] for cut in _NEIGHBOURS)
    here, there = (shown[:, cut].flatten(0, 1) for cut in _NEIGHBOURS)
    pixels, nearness = Paths.between(own, [following]).follow(1 / z.clamp(min=1e-2), step=1)
    ratio = fetch(next_z, pixels, step=1) / (z * nearness).clamp(min=1e-2)
    valid = (z > 0) & (nearness > 0) & inside_picture(pixels, *depth.shape[-2:])
    valid &= (ratio - 1).abs() <= DEPTH_TOLERANCE
    apart = (fetch(there, pixels, step=1) - here).abs().mean(1, keepdim=True)
    return (apart * valid).sum() / valid.sum().clamp(min=1)


_NEIGHBOURS = slice(None, -1), slice(1, None)


def held_out_gain(network: Refiner, file: PairFile) -> tuple[float, float]:
    """Mean PSNR over whole clips after the gate: reprojection and refiner over the render, dB."""
    gains = []
    for index in range(len(file)):
        pair = file.whole(index)
        degraded = pair.degraded.float().to(next(network.parameters()).device)
        rgb = torch.cat([refined.rgb for refined in refined_clip(network, degraded, pair.view)])
        gains += gains_over_render(degraded, (reprojected(degraded), rgb), pair.truth.float())
    means = np.mean(gains, axis=0)
    return float(means[0]), float(means[1])


@torch.no_grad()
def refined_clip(network: Refiner, degraded: Float[Tensor, "T C H W"], view: View) -> list[Refined]:
    """The frames of a clip, one by one, as the engine makes them."""
    frames = range(len(degraded))
    return network.clip(
        [
            network.look(degraded[t : t + 1], View(*(part[t : t + 1] for part in view)))
            for t in frames
        ]
    )


def gains_over_render(
    degraded: Float[Tensor, "B C h w"], repairs: Sequence[Tensor], truth: Float[Tensor, "B 3 h w"]
) -> list[list[float]]:
    """Per view, by how many dB each repair is nearer to the truth than the render, after the gate."""
    render, gate = degraded[:, RENDER], degraded[:, GATE : GATE + 1]
    shown = [render, *(torch.lerp(render, rgb, gate) for rgb in repairs)]
    errors = [(image.cpu() - truth).square().mean((1, 2, 3)) for image in shown]
    gains = [10 * (errors[0] / error.clamp(min=1e-9)).log10() for error in errors[1:]]
    return torch.stack(gains, dim=1).tolist()
