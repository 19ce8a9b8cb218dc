"""The weights of the small EIGent as a file; the header says size and training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faithfusion_studio.repair.base import RepairError
from faithfusion_studio.repair.eigent_network import SIZES, Bridge
from faithfusion_studio.repair.network_weights import (
    fill,
    packaged_file,
    read_weights,
    write_weights,
)

FORMAT = "faithfusion-eigent-1"
"""Changed when the network's inputs or layers change."""
FILE_NAME = "eigent_tiny.safetensors"
COMMAND = "ff-studio train-eigent"


def packaged_weights() -> Path:
    """Where the shipped weights are, or would be."""
    return packaged_file(FILE_NAME)


def save_eigent(network: Bridge, path: Path, training: Mapping[str, Any]) -> None:
    """Write a network as fp16.

    Args:
        network: Of one of the `SIZES`.
        path: Target; replaced only when everything is written.
        training: What made it, as JSON values: seeds, steps, seconds.

    Raises:
        RepairError: The file cannot be written.
    """
    sizes = {config: name for name, config in SIZES.items()}
    header = {
        "format": FORMAT,
        "size": sizes[network.config],
        "training": json.dumps(dict(training)),
    }
    write_weights(network, path, header)


def load_eigent(path: Path | None = None) -> Bridge:
    """A network from a file, as float32 and ready to run.

    Args:
        path: None takes the weights that come with the program.

    Raises:
        MissingWeightsError: There is no such file.
        RepairError: The file is damaged, or holds something else.
    """
    path = packaged_weights() if path is None else path
    missing = (
        f"the weights of eigent-tiny ({FILE_NAME}, about 9 MB, Apache-2.0) are not at {path}; take "
        f"them from the project's assets, train them with `{COMMAND}`, or choose the engine "
        "reprojection."
    )
    header, tensors = read_weights(path, missing, COMMAND)
    size = header.get("size", "")
    if header.get("format") != FORMAT or size not in SIZES:
        raise RepairError(
            f"{path}: says format {header.get('format')!r} and size {size!r}; expected {FORMAT!r} "
            f"and one of {', '.join(SIZES)}, so these are not weights of this network."
        )
    network = Bridge(SIZES[size])
    fill(network, tensors, path, f"an EIGent of size {size}", COMMAND)
    return network
