"""Named tensors and JSON values, taken out with their shape and kind checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16)


class LayoutError(Exception):
    """A scene and a set of named tensors that do not fit; always turned into a NativeFileError."""


class TensorTable:
    """Tensors that are taken out one by one, so that what is left is known to be unknown."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.left = dict(tensors)

    def take(
        self, name: str, shape: tuple[int | None, ...], kinds: tuple[torch.dtype, ...]
    ) -> Tensor:
        """A tensor of a shape (None = any length) and one of the dtypes; it is then used up."""
        tensor = self.left.pop(name, None)
        if tensor is None:
            raise LayoutError(f"the tensor {name} is missing")
        fits = tensor.dim() == len(shape) and all(
            want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype not in kinds:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise LayoutError(
                f"the tensor {name} is {tensor.dtype} of shape {tuple(tensor.shape)} where "
                f"({wanted}) was expected"
            )
        return tensor

    def bytes(self, name: str) -> bytes:
        return self.take(name, (None,), (torch.uint8,)).numpy().tobytes()


def json_value(table: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    """A value of a JSON object, of one of the given types (a boolean is no number)."""
    if not isinstance(table, Mapping) or key not in table:
        raise LayoutError(f"the description lacks {key!r}")
    value = table[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise LayoutError(f"the description's {key!r} is a {type(value).__name__}")
    return value
