"""How the refiner is fitted: crops of single frames, and a loss that is taken after the gate.

What is learned is what will be shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

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


@dataclass(frozen=True, kw_only=True)
class FittingConfig(LoopConfig):
    """How the refiner is trained; the defaults are those of size S on a CPU."""

    size: Size = "S"
    steps: int = 3000
    batch: int = 6
    losses: RefinerLosses = field(default_factory=RefinerLosses)


PRESETS: dict[Size, FittingConfig] = {
    "S": FittingConfig(),
    "M": FittingConfig(
        size="M", steps=9000, batch=16, crop=(256, 448), rate=5e-4, warm_up=200, average=0.999
    ),
}


class Crops(NamedTuple):
    """A step's inputs."""

    degraded: Float[Tensor, "B C h w"]
    gate: Float[Tensor, "B 1 h w"]
    """How much will show; unlike the network's own map never hidden."""


class Fitting(Loop[Refiner, FittingConfig]):
    """The refiner in training.

    Args:
        files: Training pairs.
        config: See `FittingConfig`.
    """

    def __init__(self, files: Sequence[PairFile], config: FittingConfig) -> None:
        super().__init__(files, config, lambda: Refiner(config.size))

    def _loss(self, rng: np.random.Generator) -> tuple[Tensor, float]:
        inputs, truth = self._crops(rng)
        with torch.autocast(torch.device(self.config.device).type, torch.bfloat16):
            refined = self.network(inputs.degraded)
        return losses(refined, inputs, truth, self.config.losses)

    def _crops(self, rng: np.random.Generator) -> tuple[Crops, Tensor]:
        config = self.config
        pairs = [self.draw(rng, 1) for _ in range(config.batch)]
        degraded = torch.cat([pair.degraded for pair in pairs]).float()
        truth = torch.cat([pair.truth for pair in pairs]).float()
        degraded, truth = vary(degraded, truth, rng)
        gate = degraded[:, GATE : GATE + 1].clone()
        hidden = torch.from_numpy(rng.random(config.batch) < config.eig_dropout)
        degraded[hidden, EIG], degraded[hidden, GATE] = UNKNOWN_EIG, 1.0
        device = config.device
        return Crops(degraded.to(device), gate.to(device)), truth.to(device)


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


def held_out_gain(network: Refiner, file: PairFile) -> tuple[float, float]:
    """Mean PSNR over whole views after the gate: reprojection and refiner over the render, dB."""
    device, gains = next(network.parameters()).device, []
    for index, t in itertools.product(range(len(file)), range(file.shape[1])):
        pair = file.whole(index, slice(t, t + 1))
        degraded, truth = pair.degraded.float().to(device), pair.truth.float()
        with torch.no_grad():
            rgb = network(degraded).rgb
        gains += gains_over_render(degraded, (reprojected(degraded), rgb), truth)
    means = np.mean(gains, axis=0)
    return float(means[0]), float(means[1])


def gains_over_render(
    degraded: Float[Tensor, "B C h w"], repairs: Sequence[Tensor], truth: Float[Tensor, "B 3 h w"]
) -> list[list[float]]:
    """Per view, by how many dB each repair is nearer to the truth than the render, after the gate."""
    render, gate = degraded[:, RENDER], degraded[:, GATE : GATE + 1]
    shown = [render, *(torch.lerp(render, rgb, gate) for rgb in repairs)]
    errors = [(image.cpu() - truth).square().mean((1, 2, 3)) for image in shown]
    gains = [10 * (errors[0] / error.clamp(min=1e-9)).log10() for error in errors[1:]]
    return torch.stack(gains, dim=1).tolist()
