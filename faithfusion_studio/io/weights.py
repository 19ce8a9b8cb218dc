"""Weights of networks on disk: where they are kept, what proves them, and reading them without running code.

Weights are never fetched unasked. A file is read as numbers only: safetensors, PyTorch's zip with
`weights_only`, or a pickle of NumPy arrays through an allow-list of three names.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faithfusion_studio.errors import StudioError


class WeightsError(StudioError):
    """Weights that are missing, damaged, or not the ones they should be."""


def cache_folder() -> Path:
    """Where converted weights are kept between runs: the platform's cache folder, outside any project.

    The environment variable FF_STUDIO_CACHE chooses another one.
    """
    chosen = os.environ.get("FF_STUDIO_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "faithfusion-studio"


def read_bytes(path: Path | str) -> bytes:
    """A whole file.

    Raises:
        WeightsError: It is missing or cannot be read.
    """
    path = Path(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{path}: these weights cannot be read ({error.strerror}); give the path of the file."
        ) from error


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file, hexadecimal; read piece by piece, so that its size does not matter.

    Raises:
        WeightsError: It is missing or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read ({error.strerror}); give the path of the file."
        ) from error
    return digest.hexdigest()


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values: the same whatever container they are written in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Named tensors of a safetensors file or of PyTorch's zip, on the CPU; no code in the file runs.

    A prefix `module.` that data-parallel training leaves on every name is taken off.

    Raises:
        WeightsError: Missing, damaged, or not a mapping of names to tensors.
    """
    path, data = Path(path), read_bytes(path)
    try:
        if data[:2] == b"PK":
            found: Any = torch.load(  # noqa: TID251 (weights only, from memory)
                io.BytesIO(data), map_location="cpu", weights_only=True
            )
        else:
            import safetensors.torch

            found = safetensors.torch.load(data)
    except Exception as error:  # a damaged file raises anything, from KeyError to UnpicklingError
        raise WeightsError(
            f"{path}: not readable as weights ({type(error).__name__}); expected a safetensors "
            "file or a PyTorch state dictionary, so fetch it again."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsError(
            f"{path}: holds a {type(found).__name__} that is not names and tensors; expected a "
            "state dictionary."
        )
    return {str(name).removeprefix("module."): value for name, value in found.items()}


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise WeightsError(
                f"the pickle asks for {module_name}.{global_name}; only NumPy arrays are allowed, "
                "so nothing of it was read."
            )
        return _ALLOWED[module_name, global_name]


def read_array_pickle(data: bytes) -> dict[str, Any]:
    """A (nested) dictionary of NumPy arrays from a pickle that may name nothing else.

    Raises:
        WeightsError: It names anything but NumPy's array constructor, or is damaged.
    """
    try:
        found = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise WeightsError(
            f"the pickle is damaged ({type(error).__name__}); fetch it again."
        ) from error
    if not isinstance(found, dict):
        raise WeightsError(
            f"the pickle holds a {type(found).__name__}; expected a dictionary of arrays."
        )
    return found
