"""Low-rank adapters (LoRA) in the layouts of peft, folded into the weights they adapt.

An adapter of rank r replaces W x by W x + s B (A x), s = lora_alpha / r, with A [r, in] and B [out, r].
For a convolution A has the kernel of W and B is 1x1. Folding gives one weight, W + s B A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.repair.base import RepairError

ALPHA = 8.0
"""peft's lora_alpha where a training script names none, as Difix3D's does not."""
_PART = re.compile(r"^(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>\w+))?\.weight$")


def fold_lora(tensors: Mapping[str, Tensor], *, alpha: float | None = ALPHA) -> dict[str, Tensor]:
    """A state dictionary without adapters, from one in which peft has wrapped layers.

    Args:
        tensors: Names such as `X.base_layer.weight`, `X.lora_A.NAME.weight`, and plain ones.
        alpha: lora_alpha of all adapters; None means equal to the rank, so that s = 1.

    Returns:
        Plain names; `X.base_layer.weight` becomes `X.weight` with its adapter folded in.

    Raises:
        RepairError: Half an adapter, or one without the layer it adapts.
    """
    adapters: dict[str, dict[str, Tensor]] = {}
    folded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part = _PART.match(name)
        if part is not None:
            adapters.setdefault(part["layer"], {})[part["side"]] = tensor
        else:
            folded[name.replace(".base_layer.", ".")] = tensor
    for layer, sides in adapters.items():
        weight = folded.get(f"{layer}.weight")
        if weight is None or set(sides) != {"A", "B"}:
            raise RepairError(
                f"the adapter of {layer} is not whole (it has {', '.join(sorted(sides))} and "
                f"{'no ' if weight is None else 'a '}base weight); take the file again."
            )
        scale = 1.0 if alpha is None else alpha / sides["A"].shape[0]
        change = scale * lora_change(sides["A"].float(), sides["B"].float())
        folded[f"{layer}.weight"] = (weight.float() + change).to(weight.dtype)
    return folded


def lora_change(a: Float[Tensor, "r ..."], b: Float[Tensor, "o r ..."]) -> Tensor:
    """B A, in the shape of the layer's weight."""
    if a.ndim == 2:
        return b @ a
    return torch.einsum("or,rikl->oikl", b.flatten(1), a)
