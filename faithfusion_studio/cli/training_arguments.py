"""The arguments of the commands that train networks and write what they learn from; see `arguments`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from faithfusion_studio.cli.arguments import Command, DeviceCommand


@dataclass(frozen=True, kw_only=True)
class TrainNetwork(DeviceCommand):
    """What the trainings of our own networks share."""

    out: Positional[Path]
    """The weights to write (.safetensors)."""
    seeds: str = "110:150"
    """Half-open ranges A:B of the training streets' seeds, below 400, separated by commas."""
    validate: str | None = None
    """Streets A:B, not trained on, by which the best weights are kept; the last ones when not given."""
    steps: int | None = None
    """Optimiser steps; the size's own number when not given."""
    seed: int = 0
    """Of the network and of the order in which it learns."""
    cache: Path | None = None
    """Folder for streets and checkpoints; ~/.cache/faithfusion-studio/refiner when not given."""
    start: Path | None = None
    """Weights to begin with instead of random ones, of the same size."""
    test: str | None = None
    """Then measure on these test streets, a half-open range A:B of seeds from 400 on."""


@dataclass(frozen=True, kw_only=True)
class TrainRefiner(TrainNetwork):
    """Train the refiner's weights from nothing, on procedural streets; Ctrl+C keeps what is learned.

    Makes the streets, reconstructs them, takes pairs and fits the network: on single frames first, then its
    attention over time on clips of eight. Streets that are done and a checkpoint every two minutes stay in
    the cache, so the same command goes on where it stopped.
    """

    size: Literal["S", "M"] = "S"
    """S: 260 thousand parameters, 4000 steps, for a CPU. M: six million, 12000 steps, for a GPU."""
    temporal_share: float | None = None
    """Share of the steps, the last ones, in which only the attention over time learns; 0.25 when not given. 1 with --start steadies learned weights and keeps what they make of single frames."""


@dataclass(frozen=True, kw_only=True)
class TrainEigent(TrainNetwork):
    """Train the weights of the engine eigent-tiny from nothing, on the refiner's streets; Ctrl+C keeps them.

    The trunk learns first; then it is frozen and the EIG-gated branch learns. Streets that are done and a
    checkpoint every two minutes stay in the cache, so the same command goes on where it stopped.
    """

    decoder: Path | None = None
    """Weights of a refiner that becomes the decoder and stays it: size S for tiny, M for base; learned when not given."""

    size: Literal["tiny", "base"] = "tiny"
    """tiny: 2 million parameters, 2000 steps, for a CPU. base: 33 million, 20000 steps, for a GPU."""


@dataclass(frozen=True, kw_only=True)
class Pairs(DeviceCommand):
    """Build repair data: render, EIG, truth and reference where a scene was not trained; held-out poses, or another camera's."""

    scene: Positional[Path]
    """Reconstructed with frames held out, or from some cameras of a rig only."""
    out: Positional[Path]
    """The folder to write: PNGs, EIG as .npy, and pairs.json."""
    against: Path | None = None
    """A recording in the same world, such as that of the whole rig; the frames held out when not given."""
    cameras: str | None = None
    """Names of the cameras whose frames are the truth, separated by commas; all when not given."""
    frames: str | None = None
    """Half-open range A:B of the true frames; all when not given."""
    size: str | None = None
    """Picture size WxH, pixels; that the scene was trained at when not given."""


@dataclass(frozen=True, kw_only=True)
class TrainAdapter(DeviceCommand):
    """Train your own EIG-Difix or EIGent branch on a folder that `pairs` wrote; written in the official layouts."""

    pairs: Positional[Path]
    out: Positional[Path]
    """Difix: a file ending in .pkl. EIGent: a folder."""
    engine: Literal["difix", "eigent-cogvideox"] = "difix"
    """Which engine's weights to start from; see `ff-studio engines`."""
    weights: Path | None = None
    """Folder with the weights of engines that are not ours."""
    steps: int = 1000
    rate: float = 2e-5
    """Learning rate."""
    layers: int = 2
    """Blocks of an EIGent branch."""
    seed: int = 0


TRAINING: dict[str, type[Command]] = {
    "train-refiner": TrainRefiner,
    "train-eigent": TrainEigent,
    "pairs": Pairs,
    "train-adapter": TrainAdapter,
}
