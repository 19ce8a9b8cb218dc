"""Folders with the weights of large public models: read as numbers only, strictly, or refused.

Such a folder is what a model hub hands out: sub-folders with a `config.json` and safetensors, whole
or in shards. Nothing in it is ever executed; a folder that carries code is refused, because another
program might run it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from faithfusion_studio.errors import reason_of
from faithfusion_studio.io.weights import WeightsError

CODE_SUFFIXES = (".py", ".pyc", ".pyd", ".so", ".dll", ".ipynb")
STEM = "diffusion_pytorch_model"
"""How diffusers names the weights in a sub-folder."""
_SHOWN = 4
"""Names a message lists before it only counts."""


class ModelFolderError(WeightsError):
    """A folder of weights that is not what it should be, or carries code."""


def refuse_code(folder: Path) -> None:
    """Raise where a model folder holds anything that some program could execute.

    Args:
        folder: Looked through with all its sub-folders.

    Raises:
        ModelFolderError: It holds Python files or libraries, or a configuration that names code
            to be fetched and run (`auto_map`, or a module name in `model_index.json`).
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix in CODE_SUFFIXES:
            raise ModelFolderError(
                f"{path}: a folder of weights must hold no code and none is run; delete every "
                "*.py file in it (they are not needed here), or fetch it again without them."
            )
    for path in sorted(folder.rglob("*.json")):
        if path.stat().st_size < 1 << 20 and '"auto_map"' in path.read_text(errors="replace"):
            raise ModelFolderError(
                f"{path}: names code to be run (auto_map); remove that entry, which is not needed "
                "here, or take the weights from their publisher."
            )


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The settings of one model, without the entries that start with an underscore.

    Raises:
        ModelFolderError: Missing, or not a JSON object.
    """
    path = folder / name
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ModelFolderError(
            f"{path}: is not there ({error.strerror}); fetch the whole folder again."
        ) from error
    except ValueError as error:
        raise ModelFolderError(f"{path}: is not JSON ({error}); fetch it again.") from error
    if not isinstance(found, dict):
        raise ModelFolderError(
            f"{path}: holds a {type(found).__name__}; expected an object with the model's settings."
        )
    return {key: value for key, value in found.items() if not key.startswith("_")}


def weight_files(folder: Path, stem: str = STEM) -> list[Path]:
    """The safetensors of one model: the single file, or the shards of its index.

    Raises:
        ModelFolderError: None is there, or the index names a file outside the folder.
    """
    for variant in ("", ".fp16"):
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [single]
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if not index.is_file():
            continue
        names = read_config(folder, index.name).get("weight_map")
        if not isinstance(names, dict):
            raise ModelFolderError(f"{index}: has no weight_map; fetch it again.")
        shards = sorted({str(name) for name in names.values()})
        if any(Path(name).name != name for name in shards):
            raise ModelFolderError(
                f"{index}: names files outside its folder; take the weights from their publisher."
            )
        return [folder / name for name in shards]
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")])
    hint = f"; {pickled[0].name} is a pickle and is not read" if pickled else ""
    raise ModelFolderError(
        f"{folder}: holds no {stem}.safetensors{hint}; fetch the safetensors files."
    )


def read_tensors(
    folder: Path, stem: str = STEM, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """All tensors of one model, on the CPU.

    Args:
        folder: With one safetensors file or an index and its shards.
        stem: File name without its ending.
        dtype: Floating point numbers are converted to it; None keeps what is in the file.

    Raises:
        ModelFolderError: A file is missing or damaged.
    """
    found: dict[str, Tensor] = {}
    for path in weight_files(folder, stem):
        found.update(_tensors_of(path, dtype))
    return found


def _tensors_of(path: Path, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_tensor(name)
                wanted = dtype if dtype is not None and tensor.is_floating_point() else None
                yield name, tensor if wanted is None else tensor.to(wanted)
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(
            f"{path}: cannot be read as safetensors ({reason_of(error)}); fetch it again."
        ) from error


def read_file(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of one safetensors file, on the CPU.

    Raises:
        ModelFolderError: It is missing or damaged.
    """
    return dict(_tensors_of(path, dtype))


def load_strict(
    module: nn.Module, tensors: Mapping[str, Tensor], where: Path | str, *, hint: str = ""
) -> nn.Module:
    """Put tensors into a module, each in its place and none left over; ready to run, not to train.

    Args:
        module: May lie on the meta device; it takes over the given tensors without a copy.
        tensors: By parameter name.
        where: What the message names.
        hint: Added to the message where names do not fit.

    Raises:
        ModelFolderError: Tensors are missing, too many, or of other shapes.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    for what, names in (("lacks", missing), ("holds unknown", unknown), ("has", shapes)):
        if names:
            raise ModelFolderError(
                f"{where}: {what} {_listed(names)}, unlike {type(module).__name__}"
                f"{'; ' + hint if hint else '; it is damaged or of another model'}."
            )
    module.load_state_dict(dict(tensors), assign=True)
    return module.eval().requires_grad_(False)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
