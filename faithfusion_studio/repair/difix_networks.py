"""The networks of Difix on the stock classes of diffusers: a VAE with skips, and views that attend jointly.

Layouts of nvidia/difix and nvidia/difix_ref, of Difix3D's training files, and of FaithFusion's EIG-Difix;
checked against class definitions, not against released weights.

Symbols: B scenes, V views of each (the first is repaired, the others are references), N tokens of a
view, C channels, h w latent pixels (1/8 of H W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from faithfusion_studio.io.checkpoints import read_torch_file
from faithfusion_studio.io.model_folders import load_strict, read_config, read_tensors
from faithfusion_studio.repair.base import RepairError
from faithfusion_studio.repair.diffusers_models import build, diffusers_class
from faithfusion_studio.repair.lora import ALPHA, fold_lora

TIMESTEP = 199
"""The one step: noise level at which the render is taken for a noisy image."""
BETAS = (0.00085, 0.012)
"""Ends of Stable Diffusion's "scaled linear" noise schedule over 1000 steps."""
EIG_STRENGTH = 0.3
"""Features of EIG-Difix are scaled by 1 + this times EIG before each attention."""
SKIPS = ("skip_conv_1", "skip_conv_2", "skip_conv_3", "skip_conv_4")


def kept_signal(timestep: int = TIMESTEP) -> float:
    """alphas_cumprod: the share of the signal's variance left at a step; 0.755 at 199."""
    roots = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, 1000, dtype=torch.float64)
    return float(torch.cumprod(1 - roots**2, 0)[timestep])


def one_step(latent: Tensor, noise: Tensor) -> Tensor:
    """The clean latent in closed form, z0 = (z - sqrt(1 - a) eps) / sqrt(a), a = `kept_signal`."""
    a = kept_signal()
    return (latent - (1 - a) ** 0.5 * noise) / a**0.5


# ------------------------------------------------------------------------------------ the VAE


class SkipVae:
    """A stock `AutoencoderKL` whose decoder also sees what went into the encoder's blocks.

    Args:
        vae: Stock autoencoder; its decoder gets `skip_conv_1..4`, 1x1 without bias.

    Source: Difix3D, whose fork stores the inputs of the four down blocks and adds
    `skip_conv_i(inputs[-i])` before up block i. Hooks do the same without a fork.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.scaling: float = vae.config.scaling_factor
        self._inputs: list[Tensor] = []
        for i, block in enumerate(vae.encoder.down_blocks):
            block.register_forward_pre_hook(self._store(i))
        for i, block in enumerate(vae.decoder.up_blocks):
            block.register_forward_pre_hook(self._add(i))

    def _store(self, index: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            del self._inputs[index:]
            self._inputs.append(inputs[0])

        return hook

    def _add(self, index: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            skip = getattr(self.vae.decoder, SKIPS[index])(self._inputs[-1 - index])
            return (inputs[0] + skip, *inputs[1:])

        return hook

    def encode(self, images: Float[Tensor, "V 3 H W"]) -> Float[Tensor, "V 4 h w"]:
        """The mean, scaled; a sample of the distribution would flicker from frame to frame."""
        return self.vae.encode(2 * images - 1).latent_dist.mode() * self.scaling

    def decode(self, latents: Float[Tensor, "V 4 h w"]) -> Float[Tensor, "V 3 H W"]:
        """Images in [0, 1], of those views that were encoded last."""
        images = self.vae.decode(latents / self.scaling).sample
        self._inputs.clear()
        return (images / 2 + 0.5).clamp(0, 1)


def add_skips(vae: Any) -> None:
    """Give a stock decoder its skip convolutions, with the shapes its blocks ask for."""
    widths = list(vae.config.block_out_channels)
    entering = [widths[max(i - 1, 0)] for i in range(len(widths))]
    decoding = [widths[-1], *reversed(widths[1:])]
    device = next(vae.parameters()).device
    for name, source, target in zip(SKIPS, reversed(entering), decoding, strict=True):
        setattr(vae.decoder, name, nn.Conv2d(source, target, 1, bias=False, device=device))


def load_skip_vae(folder: Path, training: Mapping[str, Any] | None = None) -> SkipVae:
    """The VAE of a Difix folder: adapters folded, every tensor in its place.

    Args:
        folder: `config.json` and safetensors, with skips, and with or without adapters.
        training: The state of a training file; its adapters and skips take the place of the folder's.

    Raises:
        RepairError: A stock VAE, which would give blurred, wrong pictures without a word.
    """
    tensors = read_tensors(folder)
    if training is not None:
        tensors = with_adapters(tensors, training["state_dict_vae"])
    missing = [
        name for name in SKIPS if not any(key.startswith(f"decoder.{name}.") for key in tensors)
    ]
    if missing:
        raise RepairError(
            f"{folder}: is a stock autoencoder, it lacks decoder.{missing[0]} and its like, "
            "without which Difix blurs; fetch the folder vae of nvidia/difix or nvidia/difix_ref."
        )
    vae = build("AutoencoderKL", read_config(folder))
    add_skips(vae)
    return SkipVae(load_strict(vae, fold_lora(tensors, alpha=ALPHA), folder))


def with_adapters(
    tensors: Mapping[str, Tensor], adapters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A VAE's tensors with those of a training file, which holds only adapters and skips.

    The names of a training file say which layers are wrapped (`X.base_layer.weight` in its own
    model); the folder's may or may not be wrapped already, so both are brought to plain names first.
    """
    plain = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in tensors.items()
        if ".lora_" not in name
    }
    return {**plain, **{n.replace(".base_layer.", "."): t for n, t in adapters.items()}}


# ----------------------------------------------------------------------------------- the U-Net


@dataclass
class Attending:
    """What the attention layers of one pass share."""

    views: int = 1
    eig: Float[Tensor, "BV 1 h w"] | None = None
    """In [0, 1]; None leaves the features alone."""
    _by_tokens: dict[int, Tensor] = field(default_factory=dict)

    def start(self, views: int, eig: Tensor | None) -> None:
        """Set for the next pass."""
        self.views, self.eig = views, eig
        self._by_tokens.clear()

    def gain(self, tokens: int) -> Float[Tensor, "BV N 1"]:
        """1 + 0.3 EIG at the resolution at which a view has so many tokens."""
        assert self.eig is not None
        if tokens not in self._by_tokens:
            height, width = self.eig.shape[-2:]
            scale = 2.0 ** round(torch.tensor(tokens / (height * width)).log2().item() / 2)
            size = (int(height * scale), int(width * scale))
            eig = functional.interpolate(self.eig, size, mode="bilinear", align_corners=False)
            self._by_tokens[tokens] = 1 + EIG_STRENGTH * eig.flatten(2).transpose(1, 2)
        return self._by_tokens[tokens]


def joint_processor(attending: Attending, joint: bool) -> Any:
    """An attention processor: the stock one, over all views together where `joint`.

    Args:
        attending: Views and EIG of the pass.
        joint: True for attn1, whose tokens of all views see each other; False for attn2.
    """
    stock = diffusers_class("models").attention_processor.AttnProcessor2_0

    class JointViews(stock):  # type: ignore[misc, valid-type]
        def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if attending.eig is not None:
                gain = attending.gain(hidden_states.shape[1])
                hidden_states = hidden_states * gain.to(hidden_states.dtype)
            if not joint or attending.views == 1:
                return super().__call__(attn, hidden_states, *args, **kwargs)
            shape = hidden_states.shape
            together = hidden_states.reshape(-1, attending.views * shape[1], shape[2])
            return super().__call__(attn, together, *args, **kwargs).reshape(shape)

    return JointViews()


def attend_jointly(unet: Any, attending: Attending) -> None:
    """Replace the processors of a stock U-Net's transformer blocks."""
    unet.set_attn_processor(
        {name: joint_processor(attending, ".attn1." in name) for name in unet.attn_processors}
    )


class DifixUnet:
    """A stock `UNet2DConditionModel` that predicts noise for views that attend to each other.

    Args:
        unet: With 4 input channels, or 9 (latent 4, EIG 1, latent times EIG 4) and 5 outputs.
    """

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self.uses_eig: bool = unet.config.in_channels == 9
        self._attending = Attending()
        attend_jointly(unet, self._attending)

    def noise(
        self,
        latents: Float[Tensor, "V 4 h w"],
        prompt: Float[Tensor, "1 N C"],
        eig: Float[Tensor, "V 1 h w"] | None = None,
    ) -> Float[Tensor, "V 4 h w"]:
        """Predicted noise of all views of one frame.

        Args:
            latents: The frame first, then its references.
            prompt: Text embedding.
            eig: In [0, 1], 0 for references; ignored by weights without EIG.
        """
        eig = eig if self.uses_eig else None
        views = latents.shape[0]
        if self.uses_eig:
            eig = torch.zeros_like(latents[:, :1]) if eig is None else eig
            latents = torch.cat([latents, eig, latents * eig], dim=1)
        self._attending.start(views, eig)
        step = torch.full((views,), TIMESTEP, device=latents.device)
        text = prompt.to(latents.dtype).expand(views, -1, -1)
        return self.unet(latents, step, encoder_hidden_states=text).sample[:, :4]


def load_unet(folder: Path, training: Mapping[str, Any] | None = None) -> DifixUnet:
    """The U-Net of a Difix folder, or of a training file on top of that folder's settings.

    Raises:
        ModelFolderError: Tensors do not fit.
    """
    config = dict(read_config(folder))
    tensors = read_tensors(folder)
    if training is not None:
        tensors = {**tensors, **training["state_dict_unet"]}
    config["in_channels"] = tensors["conv_in.weight"].shape[1]
    config["out_channels"] = tensors["conv_out.weight"].shape[0]
    if config["in_channels"] not in (4, 9):
        raise RepairError(
            f"{folder}: its conv_in takes {config['in_channels']} channels; expected 4 (Difix) or "
            "9 (EIG-Difix); these are weights of another model."
        )
    return DifixUnet(load_strict(build("UNet2DConditionModel", config), tensors, folder))


def widen_for_eig(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A U-Net's tensors with 5 more input channels and 1 more output channel, all zero.

    The output for any EIG is then the old one as far as the convolutions go: the start of training.

    Source: FaithFusion, EIG-Difix's surgery of conv_in and conv_out.
    """
    wide = dict(tensors)
    into, out = tensors["conv_in.weight"], tensors["conv_out.weight"]
    wide["conv_in.weight"] = torch.cat([into, into.new_zeros(into.shape[0], 5, *into.shape[2:])], 1)
    wide["conv_out.weight"] = torch.cat([out, out.new_zeros(1, *out.shape[1:])])
    bias = tensors["conv_out.bias"]
    wide["conv_out.bias"] = torch.cat([bias, bias.new_zeros(1)])
    return wide


def read_difix_training(path: Path) -> dict[str, Any]:
    """A training file of Difix3D or EIG-Difix: `state_dict_unet`, `state_dict_vae`, rank and layers.

    Raises:
        RepairError: It is another file.
    """
    found = read_torch_file(path)
    lacking = [key for key in ("state_dict_unet", "state_dict_vae") if key not in found]
    if lacking:
        raise RepairError(
            f"{path}: has no {lacking[0]}; expected a training file of Difix3D or EIG-Difix."
        )
    return found
