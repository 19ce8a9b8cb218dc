"""The loop that fits the refiner to pairs: crops, losses, averaged weights, checkpoints.

What is learned is what will be shown: the loss is taken after the gate. A step's crops and changes follow
from the seed and the step's number alone, so a resumed run is the run that was not interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.repair.refiner_network import (
    BELIEF,
    BEST,
    EIG,
    FUSED,
    GATE,
    RENDER,
    UNKNOWN_EIG,
    Refined,
    Refiner,
    Size,
)
from faithfusion_studio.training.pairs import PairFile, TrainingError


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


@dataclass(frozen=True)
class FittingConfig:
    """How the refiner is trained; the defaults are those of size S on a CPU."""

    size: Size = "S"
    steps: int = 3000
    batch: int = 6
    """Crops per step."""
    crop: tuple[int, int] = (128, 160)
    """Height and width of a crop, pixels."""
    rate: float = 2e-3
    """Of AdamW, falling as a cosine to a hundredth."""
    warm_up: int = 50
    """Steps over which the rate rises."""
    eig_dropout: float = 0.15
    """Share of crops that are shown no EIG."""
    average: float = 0.99
    """Of the exponential mean of the weights, which is what is saved."""
    seed: int = 0
    device: str = "cpu"
    losses: RefinerLosses = field(default_factory=RefinerLosses)


PRESETS: dict[Size, FittingConfig] = {
    "S": FittingConfig(),
    "M": FittingConfig(
        size="M", steps=9000, batch=16, crop=(256, 448), rate=5e-4, warm_up=200, average=0.999
    ),
}


class FittingProgress(NamedTuple):
    """One step."""

    step: int
    loss: float
    gain: float
    """Of this step's crops: PSNR after the gate over that of the reprojection, dB."""
    seconds: float
    """Since the first step, pauses left out."""


class Crops(NamedTuple):
    """A step's inputs."""

    degraded: Float[Tensor, "B C h w"]
    gate: Float[Tensor, "B 1 h w"]
    """How much will show; unlike the network's own map never hidden."""


class Fitting:
    """A network, its average and its optimiser, over the pairs of some streets.

    Args:
        files: Training pairs.
        config: See `FittingConfig`.
    """

    def __init__(self, files: Sequence[PairFile], config: FittingConfig) -> None:
        if not files:
            raise TrainingError(
                "there are no training pairs; name at least one street to train on."
            )
        self.config, self.files = config, files
        torch.manual_seed(config.seed)
        self.network = Refiner(config.size).to(config.device)
        self.averaged = Refiner(config.size).to(config.device).requires_grad_(False)
        self.averaged.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.rate, betas=(0.9, 0.98), weight_decay=1e-4
        )
        self.step, self.seconds = 0, 0.0

    def run(self) -> Iterator[FittingProgress]:
        """Train to the last step; stop consuming to stop early."""
        while self.step < self.config.steps:
            started = time.monotonic()
            inputs, truth = self._crops(np.random.default_rng([self.config.seed, self.step]))
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate()
            with torch.autocast(torch.device(self.config.device).type, torch.bfloat16):
                refined = self.network(inputs.degraded)
            loss, gain = losses(refined, inputs, truth, self.config.losses)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self._follow()
            self.seconds += time.monotonic() - started
            yield FittingProgress(self.step, float(loss.detach()), gain, self.seconds)

    def _rate(self) -> float:
        config = self.config
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / config.steps))
        return config.rate * min(1.0, (self.step + 1) / config.warm_up) * (0.01 + 0.99 * cosine)

    def _follow(self) -> None:
        share = 1 - min(self.config.average, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(
                self.averaged.parameters(), self.network.parameters(), strict=True
            ):
                mean.lerp_(value, share)

    def _crops(self, rng: np.random.Generator) -> tuple[Crops, Tensor]:
        config, crops, truths = self.config, [], []
        for _ in range(config.batch):
            file = self.files[int(rng.integers(len(self.files)))]
            height = min(config.crop[0], file.shape[2])
            width = min(config.crop[1], file.shape[3])
            pair = file.crop(
                int(rng.integers(len(file))),
                int(rng.integers(file.shape[2] - height + 1)),
                int(rng.integers(file.shape[3] - width + 1)),
                height,
                width,
            )
            crops.append(pair.degraded.float())
            truths.append(pair.truth.float())
        degraded, truth = vary(torch.stack(crops), torch.stack(truths), rng)
        gate = degraded[:, GATE : GATE + 1].clone()
        hidden = torch.from_numpy(rng.random(config.batch) < config.eig_dropout)
        degraded[hidden, EIG], degraded[hidden, GATE] = UNKNOWN_EIG, 1.0
        device = config.device
        return Crops(degraded.to(device), gate.to(device)), truth.to(device)

    # ------------------------------------------------------------------------------ checkpoints

    def save(self, path: Path) -> None:
        """Write everything that is needed to go on."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        header = {"step": str(self.step), "seconds": str(self.seconds), "run": self._identity()}
        with write_atomically(path, TrainingError) as temporary:
            save_file(tensors, temporary, header)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: It is damaged, or of another run.
        """
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{path}: cannot be read ({str(error).splitlines()[0]}); delete it to start again."
            ) from error
        if header.get("run") != self._identity():
            raise TrainingError(
                f"{path}: belongs to a training with other settings; delete it to start again, or "
                "give the settings it was made with."
            )
        for name, network in (("network.", self.network), ("averaged.", self.averaged)):
            network.load_state_dict(_below(tensors, name))
        state = self.optimizer.state_dict()
        count = len(state["param_groups"][0]["params"])
        state["state"] = {i: _below(tensors, f"optimizer.{i}.") for i in range(count)}
        self.optimizer.load_state_dict(state)
        self.step, self.seconds = int(header["step"]), float(header["seconds"])

    def _identity(self) -> str:
        settings = asdict(self.config)
        settings.pop("device")
        return json.dumps([settings, [file.shape for file in self.files]], sort_keys=True)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def vary(degraded: Tensor, truth: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mirror some crops, exchange their colour channels and change their exposure."""
    for i in range(len(degraded)):
        gain = float(np.exp(rng.normal(0, 0.1)))
        order = torch.from_numpy(rng.permutation(3))
        mirrored = bool(rng.random() < 0.5)
        for colors in (RENDER, FUSED, BEST):
            degraded[i, colors] = (degraded[i, colors][order] * gain).clamp(0, 1)
        truth[i] = (truth[i][order] * gain).clamp(0, 1)
        if mirrored:
            degraded[i], truth[i] = degraded[i].flip(-1), truth[i].flip(-1)
    return degraded, truth


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


def reprojected(degraded: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 h w"]:
    """What the reprojection alone returns for these inputs."""
    belief = degraded[:, BELIEF : BELIEF + 1]
    return torch.lerp(degraded[:, RENDER], degraded[:, FUSED], belief).clamp(0, 1)


def _slopes(difference: Tensor) -> Tensor:
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def held_out_gain(network: Refiner, file: PairFile) -> tuple[float, float]:
    """Mean PSNR over whole views after the gate: reprojection and refiner over the render, dB."""
    device, gains = next(network.parameters()).device, []
    height, width = file.shape[2:]
    for index in range(len(file)):
        pair = file.crop(index, 0, 0, height, width)
        degraded, truth = pair.degraded.float()[None].to(device), pair.truth.float()[None]
        with torch.no_grad():
            rgb = network(degraded).rgb
        render, gate = degraded[:, RENDER], degraded[:, GATE : GATE + 1]
        shown = [render, torch.lerp(render, reprojected(degraded), gate)]
        shown.append(torch.lerp(render, rgb, gate))
        errors = [float((x.cpu() - truth).square().mean()) for x in shown]
        gains.append([10 * math.log10(errors[0] / max(e, 1e-9)) for e in errors[1:]])
    means = np.mean(gains, axis=0)
    return float(means[0]), float(means[1])
