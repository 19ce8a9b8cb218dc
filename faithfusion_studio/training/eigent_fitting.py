"""How the small EIGent is fitted: the trunk first, then its branch beside the frozen trunk.

Clips on the bridge x_t = (1 - t) clean + t (reprojected + noise); the loss is the refiner's on what the
network says x_0 is, plus that of differences between neighbouring frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from faithfusion_studio.repair.eigent_network import SIZES, Bridge
from faithfusion_studio.repair.refiner_network import (
    EIG,
    GATE,
    RENDER,
    UNKNOWN_EIG,
    Refiner,
    reprojected,
)
from faithfusion_studio.training.fitting import Crops, RefinerLosses, gains_over_render, losses
from faithfusion_studio.training.loop import Loop, LoopConfig, vary
from faithfusion_studio.training.pairs import PairFile, TrainingError


@dataclass(frozen=True, kw_only=True)
class EigentFittingConfig(LoopConfig):
    """How the network is trained; the defaults are those of the size "tiny" on a CPU."""

    size: str = "tiny"
    steps: int = 2000
    batch: int = 1
    """Clips per step."""
    crop: tuple[int, int] = (96, 128)
    frames: int = 8
    """Of a clip."""
    rate: float = 1.5e-3
    trunk_share: float = 0.6
    """Of the steps; then the trunk is frozen and the branch learns."""
    noise: float = 0.3
    """Standard deviation of the noise at t = 1, colour unit."""
    start: float = 0.5
    """Share of clips at t = 1, where a repair begins; the others are at a random t."""
    continued: float = 0.3
    """Share of clips whose first frames are known, as in a window after the first."""
    overlap: int = 2
    """How many frames are known then."""
    temporal: float = 0.3
    """Weight of the absolute error of differences between neighbouring frames."""
    losses: RefinerLosses = field(default_factory=RefinerLosses)


EIGENT_PRESETS: dict[str, EigentFittingConfig] = {
    "tiny": EigentFittingConfig(),
    "base": EigentFittingConfig(
        size="base", steps=20000, batch=8, crop=(192, 256), rate=3e-4, warm_up=500, average=0.999
    ),
}


class EigentFitting(Loop[Bridge, EigentFittingConfig]):
    """The small EIGent in training.

    Args:
        files: Training pairs.
        config: See `EigentFittingConfig`.
    """

    def __init__(self, files: Sequence[PairFile], config: EigentFittingConfig) -> None:
        super().__init__(files, config, lambda: Bridge(SIZES[config.size]))
        self._decoder_fixed = False

    def start_decoder(self, refiner: Refiner) -> None:
        """Take a refiner as the decoder and keep it, so that the whole begins as that refiner.

        Raises:
            TrainingError: It is of another size, or the training is under way already.
        """
        if self.step or refiner.size != self.network.config.decoder:
            raise TrainingError(
                f"a refiner of size {refiner.size} cannot begin this training at step {self.step}; "
                f"it takes one of size {self.network.config.decoder} before the first step."
            )
        for network in (self.network, self.averaged):
            network.trunk.decoder.load_state_dict(refiner.alone_weights())
        self._decoder_fixed = True

    def _identity(self) -> str:
        return super()._identity() + (" with a given decoder" if self._decoder_fixed else "")

    @property
    def trunk_steps(self) -> int:
        """Steps before the trunk is frozen."""
        return round(self.config.trunk_share * self.config.steps)

    @property
    def complete(self) -> bool:
        """Whether the branch has had half of its steps: weights of before say nothing about the whole."""
        return self.step >= (self.trunk_steps + self.config.steps) // 2

    def _loss(self, rng: np.random.Generator) -> tuple[Tensor, float]:
        config = self.config
        branch = self.step >= self.trunk_steps
        self.network.trunk.requires_grad_(not branch)
        if self._decoder_fixed:
            self.network.trunk.decoder.requires_grad_(False)
        inputs, gate, truth = self._clips(rng)
        state, times = self._bridge(inputs, truth, rng)
        with torch.autocast(torch.device(config.device).type, torch.bfloat16):
            refined = self.network(state, times, inputs, branch=branch)
        crops = Crops(inputs.flatten(0, 1), gate.flatten(0, 1))
        loss, gain = losses(refined, crops, truth.flatten(0, 1), config.losses)
        moving = torch.lerp(crops.degraded[:, RENDER], refined.rgb, crops.gate)
        apart = (moving - truth.flatten(0, 1)).unflatten(0, truth.shape[:2])
        return loss + config.temporal * apart.diff(dim=1).abs().mean(), gain

    def _clips(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What the network sees, how much of it will show, and the truth."""
        config = self.config
        pairs = [self.draw(rng, config.frames) for _ in range(config.batch)]
        degraded = torch.stack([pair.degraded for pair in pairs]).float()
        truth = torch.stack([pair.truth for pair in pairs]).float()
        degraded, truth, _ = vary(degraded, truth, rng)
        gate = degraded[:, :, GATE : GATE + 1].clone()
        hidden = torch.from_numpy(rng.random(config.batch) < config.eig_dropout)
        degraded[hidden, :, EIG], degraded[hidden, :, GATE] = UNKNOWN_EIG, 1.0
        device = config.device
        return degraded.to(device), gate.to(device), truth.to(device)

    def _bridge(
        self, inputs: Tensor, truth: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """State and times of the clips; known frames are the truth at t = 0."""
        config = self.config
        base = reprojected(inputs.flatten(0, 1)).unflatten(0, truth.shape[:2])
        noise = torch.from_numpy(rng.standard_normal(base.shape, np.float32)).to(base)
        t = np.where(rng.random(config.batch) < config.start, 1.0, rng.random(config.batch))
        times = torch.from_numpy(t.astype(np.float32))[:, None].repeat(1, base.shape[1])
        continued = torch.from_numpy(rng.random(config.batch) < config.continued)
        times[continued, : config.overlap] = 0
        times = times.to(base)
        share = times[..., None, None, None]
        return (1 - share) * truth + share * (base + config.noise * noise), times


def eigent_held_out_gain(network: Bridge, file: PairFile) -> tuple[float, float]:
    """Mean PSNR over whole clips after the gate, one step without noise: reprojection and network over the render, dB."""
    device, gains = next(network.parameters()).device, []
    for index in range(len(file)):
        pair = file.whole(index)
        degraded, truth = pair.degraded.float().to(device), pair.truth.float()
        base = reprojected(degraded)
        with torch.no_grad():
            times = torch.ones(1, len(base), device=device)
            rgb = network(base[None], times, degraded[None]).rgb
        gains += gains_over_render(degraded, (base, rgb), truth)
    return tuple(np.mean(gains, axis=0).tolist())
