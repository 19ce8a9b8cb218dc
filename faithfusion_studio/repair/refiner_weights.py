"""The refiner's weights as a file; the header says size and training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faithfusion_studio.repair.base import RepairError
from faithfusion_studio.repair.network_weights import (
    fill,
    packaged_file,
    read_weights,
    write_weights,
)
from faithfusion_studio.repair.refiner_network import TEMPORAL, WIDTHS, Refiner

FORMAT = "faithfusion-refiner-1"
"""Changed when the network's inputs or layers change."""
FILE_NAME = "refiner.safetensors"
COMMAND = "ff-studio train-refiner"


def packaged_weights() -> Path:
    """Where the shipped weights are, or would be."""
    return packaged_file(FILE_NAME)


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
    write_weights(network, path, header)


def load_refiner(path: Path | None = None) -> Refiner:
    """A network from a file, as float32 and ready to run.

    A file from before the network had its attention over time gives one whose attention changes nothing.

    Args:
        path: None takes the weights that come with the program.

    Raises:
        MissingWeightsError: There is no such file.
        RepairError: The file is damaged, or holds something else.
    """
    path = packaged_weights() if path is None else path
    missing = (
        f"the refiner's weights ({FILE_NAME}, about 1 MB, Apache-2.0) are not at {path}; take "
        f"them from the project's assets, train them with `{COMMAND}`, or choose the engine "
        "reprojection."
    )
    header, tensors = read_weights(path, missing, COMMAND)
    size = header.get("size")
    if header.get("format") != FORMAT or size not in WIDTHS:
        raise RepairError(
            f"{path}: says format {header.get('format')!r} and size {size!r}; expected {FORMAT!r} "
            f"and one of {', '.join(WIDTHS)}, so these are not weights of this refiner."
        )
    network = Refiner(size)
    if not any(name.startswith(TEMPORAL) for name in tensors):
        unlearned = {k: v for k, v in network.state_dict().items() if k.startswith(TEMPORAL)}
        tensors = {**tensors, **unlearned}
    fill(network, tensors, path, f"a refiner of size {size}", COMMAND)
    return network
