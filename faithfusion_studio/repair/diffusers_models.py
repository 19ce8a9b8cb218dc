"""Building the published classes of diffusers from a folder, without its loader and without remote code.

`from_pretrained` would drop tensors it does not know with a warning, and may follow code named in a
configuration. Here the class is chosen by the caller, the settings are filtered by its signature,
and every tensor has to find its place.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from faithfusion_studio.errors import reason_of
from faithfusion_studio.io.model_folders import load_strict, read_config, read_tensors
from faithfusion_studio.repair.base import RepairError

MINIMUM = (0, 38)
"""Older versions of diffusers had ways to run code from a folder (CVE-2026-44513)."""


def diffusers_class(name: str) -> Any:
    """A class of the installed diffusers.

    Raises:
        RepairError: diffusers is not installed, too old, or lacks the class.
    """
    try:
        with warnings.catch_warnings():
            # Optional parts it cannot find, and deprecations of its own dependencies, are no
            # concern of the user of an engine.
            warnings.simplefilter("ignore")
            import diffusers

            found = getattr(diffusers, name)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise RepairError(
            f"this engine needs diffusers >= 0.38 with {name} ({reason_of(error)}); "
            "install the extra: pip install 'faithfusion-studio[diffusion]'."
        ) from error
    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    if version < MINIMUM:
        raise RepairError(
            f"diffusers {diffusers.__version__} is older than 0.38 and can be made to run code "
            "from a model folder; upgrade it: pip install -U diffusers."
        )
    diffusers.logging.set_verbosity_error()
    return found


def build(name: str, config: Mapping[str, Any], *, device: str = "meta") -> nn.Module:
    """A model of a class of diffusers with some settings, without values when on the meta device.

    Args:
        name: Class name.
        config: Settings; those the class does not know are left out.
        device: "meta" costs no memory; parameters come from `load_strict`.

    Raises:
        RepairError: The class is not there, or refuses the settings.
    """
    kind = diffusers_class(name)
    known = inspect.signature(kind.__init__).parameters
    try:
        with torch.device(device):
            return kind(**{key: value for key, value in config.items() if key in known})
    except (TypeError, ValueError) as error:
        raise RepairError(
            f"{name} refuses the settings in config.json ({reason_of(error)}); fetch the "
            "folder again."
        ) from error


def load_model(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model from its folder, every tensor in its place, ready to run.

    Raises:
        ModelFolderError: Files are missing, damaged, or do not fit the class.
        RepairError: The class is not there.
    """
    module = build(name, read_config(folder))
    return with_buffers(load_strict(module, read_tensors(folder, dtype=dtype), folder))


def with_buffers(module: nn.Module) -> nn.Module:
    """A model built on the meta device, with the tables that no file holds computed."""
    for child in module.modules():
        if type(child).__name__ == "WanRotaryPosEmbed":
            fresh = type(child)(child.attention_head_dim, child.patch_size, child.max_seq_len)
            for key, value in fresh.named_buffers():
                child.register_buffer(key, value, persistent=False)
        table = getattr(child, "pos_embedding", None)
        if isinstance(table, torch.Tensor) and table.is_meta:
            fresh = child._get_positional_embeddings(  # type: ignore[operator]
                child.sample_height, child.sample_width, child.sample_frames
            )
            child.register_buffer("pos_embedding", fresh, persistent=False)
    empty = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not empty, f"tables without values: {empty}"
    return module


def to_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model in a number format, except for the parts its class wants in float32."""
    module.to(dtype)
    precise = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
    for name, parameter in module.named_parameters():
        if any(part in name.split(".") for part in precise):
            parameter.data = parameter.data.float()
    return module


def count_parameters(module: nn.Module) -> int:
    """Numbers a model holds, its stored tables not counted."""
    return sum(parameter.numel() for parameter in module.parameters())
