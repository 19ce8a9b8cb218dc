"""Trained models of other projects: opening PyTorch's zip without running anything in it.

Two fences, one behind the other. The pickle inside the archive is first scanned without being
loaded, and refused when it names anything beyond tensors, plain containers and NumPy scalars; what
is left goes to PyTorch's `weights_only` loader, in which the NumPy scalar is a class of ours that
accepts numbers only. Each project's layout has its own file; `formats` chooses among them.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from faithfusion_studio.errors import StudioError, reason_of

CheckpointKind = Literal["drivestudio", "gsplat", "nerfstudio", "checkpoint"]

TOP_KEYS: dict[str, CheckpointKind] = {
    "splats": "gsplat",
    "pipeline": "nerfstudio",
    "models": "drivestudio",
}
"""The key of the outermost dictionary that tells each project's checkpoints."""

MAX_PICKLE_BYTES = 64 * 1024 * 1024
MAX_MEMBERS = 200_000
_ALLOWED_GLOBALS = re.compile(
    r"collections (OrderedDict|Counter)|_codecs encode|torch\._utils "
    r"(_rebuild_tensor|_rebuild_tensor_v2|_rebuild_parameter)"
    r"|torch (Size|device|[A-Z][A-Za-z0-9]*Storage|b?float[0-9]+|u?int[0-9]+|bool|double|half|long)"
    r"|numpy(\._core|\.core)?(\.multiarray scalar| dtype)"
)


class CheckpointError(StudioError):
    """A trained model of another project that cannot be used."""


class _ScalarType:
    """Stands in for `numpy.dtype` in a checkpoint: a numeric type and its byte order, nothing else."""

    def __init__(self, name: str, *_flags: Any) -> None:
        kind = str(name)
        if not re.fullmatch(r"[<>|=]?([iuf][1248]|b1|\?)", kind):
            raise ValueError(f"the NumPy type {kind[:20]!r} is no number")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.dtype = self.dtype.newbyteorder(state[1])


def _scalar(kind: Any, data: Any) -> int | float | bool:
    """Stands in for `numpy.core.multiarray.scalar`: one number as a Python number."""
    if not isinstance(kind, _ScalarType) or not isinstance(data, bytes):
        raise ValueError("a NumPy scalar without a numeric type")
    return np.frombuffer(data, kind.dtype, count=1)[0].item()


_SAFE_GLOBALS: list[Any] = [
    (_ScalarType, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


def checkpoint_kind(path: Path) -> CheckpointKind:
    """Whose checkpoint a PyTorch archive is, from the words in its pickle; nothing is loaded.

    Raises:
        CheckpointError: Not a whole archive of PyTorch, or its pickle names code.
    """
    words = set(_scan(path, _pickle_of(path)))
    known: list[CheckpointKind] = [kind for key, kind in TOP_KEYS.items() if key in words]
    return known[0] if known else "checkpoint"


def is_torch_archive(path: Path) -> bool:
    """Whether a zip file is one that `torch.save` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def read_torch_file(path: Path | str) -> dict[str, Any]:
    """The outermost dictionary of a PyTorch file, tensors on the CPU; no code in the file runs.

    NumPy scalars become Python numbers. Every tensor is dense and owns as many bytes as it shows, so
    that nothing done with it needs more memory than the file has.

    Raises:
        CheckpointError: Missing, damaged, in the format before PyTorch 1.6, asking for code, or
            anything but a dictionary with text keys.
    """
    path = Path(path)
    words = _pickle_of(path)
    for _ in _scan(path, words):
        pass
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            found = torch.load(  # noqa: TID251 (weights only, scanned before)
                path, map_location="cpu", weights_only=True
            )
    except Exception as error:  # a damaged archive raises anything, from KeyError to RuntimeError
        raise CheckpointError(
            f"{path}: is not readable as a checkpoint ({type(error).__name__}); it is truncated or "
            "damaged, so copy it again."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise CheckpointError(
            f"{path}: holds a {type(found).__name__} that is not a dictionary with text keys; "
            "expected a checkpoint of DriveStudio, gsplat or nerfstudio."
        )
    _require_plain_tensors(path, found)
    return found


def _pickle_of(path: Path) -> bytes:
    """The pickle inside an archive, after everything its directory promises was checked."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4)
        if not head.startswith(b"PK"):
            raise CheckpointError(
                f"{path}: is not an archive of PyTorch 1.6 or newer (it starts with {head!r}); "
                "older pickles are never opened, so save it again with torch.save."
            )
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            pickles = [m for m in members if m.filename.endswith("/data.pkl")]
            stored = all(m.compress_type == zipfile.ZIP_STORED for m in members)
            total = sum(m.file_size for m in members)
            if len(pickles) != 1 or len(set(names)) != len(names) or len(names) > MAX_MEMBERS:
                raise CheckpointError(
                    f"{path}: is a zip archive of {len(names):,} members with {len(pickles)} "
                    "data.pkl; expected one that torch.save wrote."
                )
            if not stored or total > size or pickles[0].file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"{path}: promises {total:,} bytes in {size:,}, or is packed in a way "
                    "torch.save does not; it is damaged, so copy it again."
                )
            return archive.read(pickles[0])
    except CheckpointError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        reason = reason_of(error, 80)
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({reason}); check the path, or copy the file "
            "again."
        ) from error


def _scan(path: Path, data: bytes) -> Iterator[str]:
    """Every text in a pickle, which is refused as soon as it names something that is not data."""
    try:
        for operation, argument, _ in pickletools.genops(data):
            name = operation.name
            if name in ("GLOBAL", "INST"):
                if not _ALLOWED_GLOBALS.fullmatch(str(argument)):
                    shown = ".".join(str(argument).split())[:80]
                    raise CheckpointError(
                        f"{path}: asks to run {shown!r}; only tensors, plain containers and numbers "
                        "are allowed in a checkpoint, so nothing of it was opened."
                    )
            elif name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "OBJ", "NEWOBJ_EX"):
                raise CheckpointError(
                    f"{path}: its pickle uses {name}, which torch.save never writes; nothing of it "
                    "was opened."
                )
            elif name == "PROTO" and argument != 2:
                raise CheckpointError(
                    f"{path}: its pickle has protocol {argument}; torch.save writes 2, so save it "
                    "again without pickle_protocol."
                )
            elif isinstance(argument, str) and "UNICODE" in name:
                yield argument
    except CheckpointError:
        raise
    except Exception as error:  # pickletools raises many kinds on damaged bytes
        raise CheckpointError(
            f"{path}: its pickle is damaged ({reason_of(error, 80)}); copy the file again."
        ) from error


def _require_plain_tensors(path: Path, content: dict[str, Any]) -> None:
    """Refuse tensors that are not dense, or that repeat their memory to look larger than it is."""
    open_values: list[Any] = [content]
    seen: set[int] = set()
    while open_values:
        value = open_values.pop()
        if isinstance(value, Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu"
            if not plain or value.nbytes > value.untyped_storage().nbytes():
                raise CheckpointError(
                    f"{path}: holds a tensor of shape {tuple(value.shape)} that is not stored "
                    "whole; expected dense tensors, so save the checkpoint again."
                )
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            open_values += value.values() if isinstance(value, dict) else value


class TensorReader:
    """Float tensors of a foreign checkpoint, taken by name with their shape checked.

    Args:
        path: The file, for messages.
        table: Names and values; only tensors of floats can be taken.
        where: How the table is called in messages, such as "splats".
    """

    def __init__(self, path: Path, table: Any, where: str) -> None:
        if not isinstance(table, dict):
            raise CheckpointError(
                f"{path}: {where} is a {type(table).__name__}; expected a dictionary of tensors."
            )
        self.path, self.table, self.where = path, table, where

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A float32 tensor; None in `shape` is any length.

        Raises:
            CheckpointError: It is missing, has another shape, or is not of floats.
        """
        value = self.table.get(name)
        if not isinstance(value, Tensor):
            found = ", ".join(map(str, list(self.table)[:8])) or "nothing"
            raise CheckpointError(
                f"{self.path}: {self.where} lacks the tensor {name} (found {found}); expected "
                "3D Gaussians."
            )
        fits = value.dim() == len(shape) and all(
            want is None or want == have for want, have in zip(shape, value.shape, strict=True)
        )
        if not fits or not value.is_floating_point():
            wanted = ", ".join("N" if n is None else str(n) for n in shape)
            kind = str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{self.path}: {self.where}.{name} is {kind} of shape {tuple(value.shape)}; "
                f"expected floats of shape ({wanted})."
            )
        return value.detach().to(torch.float32).contiguous()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return isinstance(self.table.get(name), Tensor)
