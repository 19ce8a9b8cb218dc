"""Our one-file scene: a safetensors container whose header carries one JSON text; no pickle.

The tensors are named by path (`background/means`, `frames/3/image`); `scene_layout` says which.
Everything is lossless except the Fisher evidence, which `fisher_packing` stores compactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from faithfusion_studio.errors import StudioError, reason_of
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.scene_layout import scene_from_tensors, scene_to_tensors
from faithfusion_studio.io.tensor_table import LayoutError
from faithfusion_studio.scene import Scene

NATIVE_VERSION = (1, 0)
"""Major and minor; a reader opens every minor version of its own major version."""
METADATA_KEY = "faithfusion_studio"


class NativeFileError(StudioError):
    """A native scene file that cannot be read or written."""


def read_native(path: Path | str) -> Scene:
    """A scene from a native file, with every tensor on the CPU.

    Raises:
        NativeFileError: Missing, truncated, of a newer major version, or not a scene of ours.
    """
    path = Path(path)
    tensors, description = _read_container(path)
    version = description.get("version")
    if (
        not isinstance(version, list)
        or len(version) != 2
        or not all(isinstance(v, int) for v in version)
    ):
        raise NativeFileError(
            f"{path}: states the file version {str(version)[:40]}; expected two numbers such as "
            f"{list(NATIVE_VERSION)}, so the file is damaged."
        )
    if version[0] != NATIVE_VERSION[0]:
        raise NativeFileError(
            f"{path}: was written with file version {version[0]}.{version[1]}, and this program "
            f"reads version {NATIVE_VERSION[0]}.x; install a FaithFusion Studio of that version."
        )
    try:
        return scene_from_tensors(tensors, description)
    except (LayoutError, OverflowError) as error:
        raise NativeFileError(
            f"{path}: {error}; the file is damaged or was not written by this program."
        ) from error


def _read_container(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                found = ", ".join(sorted(file.keys())[:5]) or "no tensors"
                raise NativeFileError(
                    f"{path}: is a safetensors file without our scene description (it holds "
                    f"{found}); expected a scene written by FaithFusion Studio."
                )
            # Copies: a mapped file that is cut short later would end the process.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        description = json.loads(text)
    except NativeFileError:
        raise
    except OSError as error:
        reason = reason_of(error)
        raise NativeFileError(f"{path}: cannot be read ({reason}); check the path.") from error
    except (SafetensorError, ValueError, RecursionError, RuntimeError, MemoryError) as error:
        reason = reason_of(error)
        raise NativeFileError(
            f"{path}: is not a complete scene file ({reason}); it is truncated or damaged, so open "
            "another copy."
        ) from error
    if not isinstance(description, dict):
        raise NativeFileError(f"{path}: its scene description is not an object; it is damaged.")
    return tensors, description


def write_native(scene: Scene, path: Path | str) -> None:
    """Write a scene with its recording and evidence; an older file stays until the new one is whole.

    Args:
        scene: What to write, from any device.
        path: The final name, in an existing folder.

    Raises:
        NativeFileError: The scene holds something the file cannot express, the disk is full, or the
            folder is not writable; the file that was there before is untouched.
    """
    path = Path(path)
    try:
        tensors, description = scene_to_tensors(scene)
        text = json.dumps(_plain({"version": list(NATIVE_VERSION), **description}))
    except (LayoutError, TypeError, ValueError) as error:
        raise NativeFileError(f"{path}: the scene cannot be written ({error}).") from error
    with write_atomically(path, NativeFileError) as temporary:
        save_file(_separate(tensors), temporary, metadata={METADATA_KEY: text})


def _plain(value: Any) -> Any:
    """A value JSON can say: mappings, sequences and paths become plain, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors that are contiguous and own their memory, as the container demands."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if plain.numel() and (storage.nbytes() != plain.nbytes or storage.data_ptr() in seen):
            plain = plain.clone()
            storage = plain.untyped_storage()
        seen.add(storage.data_ptr())
        result[name] = plain
    return dict(sorted(result.items(), key=lambda item: item[0]))
