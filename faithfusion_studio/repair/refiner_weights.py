"""The refiner's weights as a file: fp16 safetensors whose header says size, inputs and training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import faithfusion_studio
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.repair.base import MissingWeightsError, RepairError
from faithfusion_studio.repair.refiner_network import WIDTHS, Refiner

FORMAT = "faithfusion-refiner-1"
"""Changed when the network's inputs or layers change."""
FILE_NAME = "refiner.safetensors"


def packaged_weights() -> Path:
    """Where the shipped weights are, or would be: inside an installed package, or beside it."""
    package = Path(faithfusion_studio.__file__).resolve().parent
    inside = package / "assets" / FILE_NAME
    return inside if inside.exists() else package.parent / "assets" / FILE_NAME


def save_refiner(network: Refiner, path: Path, training: Mapping[str, Any]) -> None:
    """Write a network as fp16.

    Args:
        network: Any size.
        path: Target; replaced only when everything is written.
        training: What made it, as JSON values: seeds, steps, seconds.

    Raises:
        RepairError: The file cannot be written.
    """
    header = {"format": FORMAT, "size": network.size, "training": json.dumps(dict(training))}
    tensors = {
        name: value.detach().cpu().half().contiguous()
        for name, value in network.state_dict().items()
    }
    with write_atomically(path, RepairError) as temporary:
        save_file(tensors, temporary, header)


def load_refiner(path: Path | None = None) -> Refiner:
    """A network from a file, as float32 and ready to run.

    Args:
        path: None takes the weights that come with the program.

    Raises:
        MissingWeightsError: There is no such file.
        RepairError: The file is damaged, or holds something else.
    """
    path = packaged_weights() if path is None else path
    if not path.is_file():
        raise MissingWeightsError(
            f"the refiner's weights ({FILE_NAME}, about 1 MB, Apache-2.0) are not at {path}; take "
            "them from the project's assets, train them with `ff-studio train-refiner`, or choose "
            "the engine reprojection."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RepairError(
            f"{path}: cannot be read as weights ({str(error).splitlines()[0]}); it is damaged, so "
            "take the file again or train it with `ff-studio train-refiner`."
        ) from error
    size = header.get("size")
    if header.get("format") != FORMAT or size not in WIDTHS:
        raise RepairError(
            f"{path}: says format {header.get('format')!r} and size {size!r}; expected {FORMAT!r} "
            f"and one of {', '.join(WIDTHS)}, so these are not weights of this refiner."
        )
    network = Refiner(size)
    _check(tensors, network, path)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def _check(tensors: Mapping[str, torch.Tensor], network: Refiner, path: Path) -> None:
    """Raise at the first tensor that is missing, too much, of another shape, or not finite."""
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            what = "lacks" if name in expected else "holds"
            raise RepairError(
                f"{path}: {what} the tensor {name}, unlike a refiner of size {network.size}; it is "
                "damaged, so take the file again or train it with `ff-studio train-refiner`."
            )
        found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if found != wanted or not bool(torch.isfinite(tensors[name]).all()):
            raise RepairError(
                f"{path}: the tensor {name} has shape {found} and must have {wanted} and finite "
                "numbers; take the file again or train it with `ff-studio train-refiner`."
            )
