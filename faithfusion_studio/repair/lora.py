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
        tensors: Names such as `X.base_layer.weight`, `X.lora_A.NAME.weight`, and plain ones;
            `X.alpha` is lora_alpha of one layer.
        alpha: lora_alpha of the others; None means equal to the rank, so that s = 1.

    Returns:
        Plain names; `X.base_layer.weight` becomes `X.weight` with its adapter folded in.

    Raises:
        RepairError: Half an adapter, or one without the layer it adapts.
    """
    adapters: dict[str, dict[str, Tensor]] = {}
    folded: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        part = _PART.match(name)
        if part is not None:
            adapters.setdefault(part["layer"], {})[part["side"]] = tensor
        elif name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha")] = float(tensor)
        else:
            folded[name.replace(".base_layer.", ".")] = tensor
    for layer, sides in adapters.items():
        weight = folded.get(f"{layer}.weight")
        if weight is None or set(sides) != {"A", "B"}:
            raise RepairError(
                f"the adapter of {layer} is not whole (it has {', '.join(sorted(sides))} and "
                f"{'no ' if weight is None else 'a '}base weight); take the file again."
            )
        own = alphas.get(layer, alpha)
        scale = 1.0 if own is None else own / sides["A"].shape[0]
        change = scale * lora_change(sides["A"].float(), sides["B"].float())
        folded[f"{layer}.weight"] = (weight.float() + change).to(weight.dtype)
    return folded


def plain_lora_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter file's tensors under the names of diffusers' modules, without the prefix `transformer.`.

    Files in Wan's own names (`diffusion_model.blocks.0.self_attn.q.lora_down.weight`) are renamed by
    diffusers.

    Raises:
        RepairError: diffusers cannot rename them.
    """
    if any(name.startswith("diffusion_model.") or ".lora_down." in name for name in tensors):
        from faithfusion_studio.repair.diffusers_models import diffusers_class

        rename = diffusers_class("loaders").lora_conversion_utils
        try:
            tensors = rename._convert_non_diffusers_wan_lora_to_diffusers(dict(tensors))
        except (AttributeError, KeyError, ValueError) as error:
            raise RepairError(
                f"the adapter's names are not known ({str(error)[:80]}); take one in the layout of "
                "diffusers."
            ) from error
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def lora_change(a: Float[Tensor, "r ..."], b: Float[Tensor, "o r ..."]) -> Tensor:
    """B A, in the shape of the layer's weight."""
    if a.ndim == 2:
        return b @ a
    return torch.einsum("or,rikl->oikl", b.flatten(1), a)
