"""The loop that fits a network of ours to pairs: rate, averaged weights, checkpoints.

A step's crops and changes follow from the seed and the step's number alone, so a resumed run is the run
that was not interrupted. What a network sees and what it is told to do stand in the modules of each.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from faithfusion_studio.errors import reason_of
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.repair.refiner_network import BEST, FUSED, RENDER
from faithfusion_studio.training.pairs import PairFile, TrainingError, TrainingPair


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What every training has; a subclass adds what its network needs."""

    steps: int
    batch: int
    """Crops per step."""
    crop: tuple[int, int] = (128, 160)
    """Height and width of a crop, pixels."""
    rate: float = 2e-3
    """Of AdamW, falling as a cosine to a hundredth."""
    warm_up: int = 50
    """Steps over which the rate rises; a tenth of all steps at most."""
    average: float = 0.99
    """Of the exponential mean of the weights, which is what is saved."""
    eig_dropout: float = 0.15
    """Share of crops that are shown no EIG."""
    seed: int = 0
    device: str = "cpu"


class FittingProgress(NamedTuple):
    """One step."""

    step: int
    loss: float
    gain: float
    """Of this step's crops: PSNR after the gate over that of the reprojection, dB."""
    seconds: float
    """Since the first step, pauses left out."""


Network = TypeVar("Network", bound=nn.Module)
Config = TypeVar("Config", bound=LoopConfig)


class Loop(ABC, Generic[Network, Config]):
    """A network, its average and its optimiser, over the pairs of some streets.

    Args:
        files: Training pairs.
        config: See the config's class.
        make: Builds the network; called twice.

    Raises:
        TrainingError: There are no pairs.
    """

    def __init__(
        self, files: Sequence[PairFile], config: Config, make: Callable[[], Network]
    ) -> None:
        if not files:
            raise TrainingError(
                "there are no training pairs; name at least one street to train on."
            )
        self.config, self.files = config, files
        torch.manual_seed(config.seed)
        self.network = make().to(config.device)
        self.averaged = make().to(config.device).requires_grad_(False)
        self.averaged.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=config.rate,
            betas=(0.9, 0.98),
            weight_decay=1e-4,
        )
        self.step, self.seconds = 0, 0.0

    @abstractmethod
    def _loss(self, rng: np.random.Generator) -> tuple[Tensor, float]:
        """The loss of one step, and by how many dB its crops beat the reprojection."""

    @property
    def complete(self) -> bool:
        """Whether every part of the network has begun to learn, so that its weights may be kept."""
        return True

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with weights that were learned before instead of random ones.

        Raises:
            TrainingError: The training is under way already.
        """
        if self.step:
            raise TrainingError(f"the training is at step {self.step}; weights come before it.")
        self.network.load_state_dict(weights)
        self.averaged.load_state_dict(weights)

    def run(self) -> Iterator[FittingProgress]:
        """Train to the last step; stop consuming to stop early."""
        while self.step < self.config.steps:
            started = time.monotonic()
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate()
            loss, gain = self._loss(np.random.default_rng([self.config.seed, self.step]))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self._follow()
            self.seconds += time.monotonic() - started
            yield FittingProgress(self.step, float(loss.detach()), gain, self.seconds)

    def _stage(self) -> tuple[int, int]:
        """First step and number of steps of the stage that is under way; each has its own cosine."""
        return 0, self.config.steps

    def _rate(self) -> float:
        config = self.config
        start, length = self._stage()
        done = self.step - start
        cosine = 0.5 * (1 + math.cos(math.pi * done / length))
        rising = (done + 1) / min(config.warm_up, max(1, length // 10))
        return config.rate * min(1.0, rising) * (0.01 + 0.99 * cosine)

    def _follow(self) -> None:
        share = 1 - min(self.config.average, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(
                self.averaged.parameters(), self.network.parameters(), strict=True
            ):
                mean.lerp_(value, share)

    def draw(
        self, rng: np.random.Generator, frames: int, crop: tuple[int, int] | None = None
    ) -> TrainingPair:
        """A random window of a random pair: so many neighbouring frames (or all there are)."""
        file = self.files[int(rng.integers(len(self.files)))]
        tall, wide = crop or self.config.crop
        _, length, _, rows, columns = file.shape
        height, width, frames = min(tall, rows), min(wide, columns), min(frames, length)
        first = int(rng.integers(length - frames + 1))
        return file.crop(
            int(rng.integers(len(file))),
            int(rng.integers(rows - height + 1)),
            int(rng.integers(columns - width + 1)),
            height,
            width,
            slice(first, first + frames),
        )

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
                f"{path}: cannot be read ({reason_of(error)}); delete it to start again."
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
        parts = {i: _below(tensors, f"optimizer.{i}.") for i in range(count)}
        state["state"] = {i: part for i, part in parts.items() if part}
        self.optimizer.load_state_dict(state)
        self.step, self.seconds = int(header["step"]), float(header["seconds"])

    def _identity(self) -> str:
        settings: dict[str, Any] = asdict(self.config)
        settings.pop("device")
        return json.dumps([settings, [file.shape for file in self.files]], sort_keys=True)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class Varied(NamedTuple):
    """Crops that were changed."""

    degraded: Tensor
    truth: Tensor
    mirrored: Tensor
    """[B] bool: left became right."""


def vary(degraded: Tensor, truth: Tensor, rng: np.random.Generator) -> Varied:
    """Mirror some crops [B, ..., C, h, w], exchange their colour channels and change their exposure."""
    flags = torch.zeros(len(degraded), dtype=torch.bool)
    for i in range(len(degraded)):
        gain = float(np.exp(rng.normal(0, 0.1)))
        order = torch.from_numpy(rng.permutation(3))
        mirrored = bool(rng.random() < 0.5)
        for colors in (RENDER, FUSED, BEST):
            degraded[i, ..., colors, :, :] = (
                degraded[i, ..., colors, :, :][..., order, :, :] * gain
            ).clamp(0, 1)
        truth[i] = (truth[i][..., order, :, :] * gain).clamp(0, 1)
        if mirrored:
            degraded[i], truth[i] = degraded[i].flip(-1), truth[i].flip(-1)
            flags[i] = True
    return Varied(degraded, truth, flags)
