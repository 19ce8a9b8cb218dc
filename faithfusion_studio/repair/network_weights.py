"""Weights of our own networks as files: fp16 safetensors whose header says what they are; checked before use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import faithfusion_studio
from faithfusion_studio.errors import reason_of
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.repair.base import MissingWeightsError, RepairError


def packaged_file(name: str) -> Path:
    """Where a shipped file is, or would be: inside an installed package, or beside it."""
    package = Path(faithfusion_studio.__file__).resolve().parent
    inside = package / "assets" / name
    return inside if inside.exists() else package.parent / "assets" / name


def write_weights(network: nn.Module, path: Path, header: Mapping[str, str]) -> None:
    """Write a network as fp16.

    Args:
        network: Any of ours.
        path: Target; replaced only when everything is written.
        header: What it is and what made it.

    Raises:
        RepairError: The file cannot be written.
    """
    tensors = {
        name: value.detach().cpu().half().contiguous()
        for name, value in network.state_dict().items()
    }
    with write_atomically(path, RepairError) as temporary:
        save_file(tensors, temporary, dict(header))


def read_weights(
    path: Path, missing: str, command: str
) -> tuple[Mapping[str, str], Mapping[str, Tensor]]:
    """Header and tensors (as float32) of a file.

    Args:
        path: To read.
        missing: The sentence for a file that is not there.
        command: What makes such weights.

    Raises:
        MissingWeightsError: There is no such file.
        RepairError: It is damaged.
    """
    if not path.is_file():
        raise MissingWeightsError(missing)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            names = list(file.keys())
            return header, {name: file.get_tensor(name).float() for name in names}
    except (OSError, SafetensorError) as error:
        raise RepairError(
            f"{path}: cannot be read as weights ({reason_of(error)}); it is damaged, so "
            f"take the file again or train it with `{command}`."
        ) from error


def fill(
    network: nn.Module, tensors: Mapping[str, Tensor], path: Path, what: str, command: str
) -> None:
    """Put tensors into a network, ready to run.

    Args:
        network: Of the size the file names.
        tensors: From `read_weights`.
        path: Where they come from.
        what: The network in words.
        command: What makes such weights.

    Raises:
        RepairError: A tensor is missing, too much, of another shape, or not finite.
    """
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            verb = "lacks" if name in expected else "holds"
            raise RepairError(
                f"{path}: {verb} the tensor {name}, unlike {what}; it is damaged, so take the file "
                f"again or train it with `{command}`."
            )
        found, wanted = tuple(tensors[name].shape), tuple(expected[name].shape)
        if found != wanted or not bool(torch.isfinite(tensors[name]).all()):
            raise RepairError(
                f"{path}: the tensor {name} has shape {found} and must have {wanted} and finite "
                f"numbers; take the file again or train it with `{command}`."
            )
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
