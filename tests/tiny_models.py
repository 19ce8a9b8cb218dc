"""Tiny random models in the layouts of the large public ones, written as their publishers write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

LORA_LAYERS = (
    *("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out"),
    *("skip_conv_1", "skip_conv_2", "skip_conv_3", "skip_conv_4"),
    *("to_k", "to_q", "to_v", "to_out.0"),
)
"""Ends of the names of the decoder's layers that Difix3D adapts."""


def need_diffusers():
    pytest.importorskip("diffusers", reason="diffusers is not installed")


def randomise(module, scale=0.3):
    """Small random numbers everywhere, so that no branch is silent."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = scale * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return module.eval()


def write_model(folder: Path, config: dict, tensors: dict, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "Model", **config}))
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    stem = "diffusion_pytorch_model"
    if shards == 1:
        save_file(tensors, folder / f"{stem}.safetensors")
        return
    names, where = sorted(tensors), {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        where.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


UNET = {
    "sample_size": 4,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "in_channels": 4,
    "out_channels": 4,
}
VAE = {
    "block_out_channels": [8, 16, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 32,
    "scaling_factor": 0.18215,
}


def tiny_vae():
    from faithfusion_studio.repair.diffusers_models import build
    from faithfusion_studio.repair.difix_networks import add_skips

    vae = build("AutoencoderKL", VAE, device="cpu")
    add_skips(vae)
    return randomise(vae, 0.2)


def adapted(vae, rank=4, adapter="vae_skip"):
    """The decoder's state as peft would save it: wrapped layers with their adapters."""
    generator = torch.Generator().manual_seed(5)
    layers = {
        name
        for name, _ in vae.named_modules()
        if "decoder" in name and any(name.endswith(end) for end in LORA_LAYERS)
    }
    tensors = {}
    for name, tensor in vae.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer not in layers:
            tensors[name] = tensor
            continue
        tensors[f"{layer}.base_layer.{kind}"] = tensor
        if kind == "weight":
            out, into, *kernel = tensor.shape
            a = (rank, into, *kernel)
            b = (out, rank, *(1 for _ in kernel))
            tensors[f"{layer}.lora_A.{adapter}.weight"] = torch.randn(a, generator=generator) * 0.1
            tensors[f"{layer}.lora_B.{adapter}.weight"] = torch.randn(b, generator=generator) * 0.1
    return tensors


def write_difix(folder: Path, *, stock_vae=False, prompt=True) -> Path:
    from faithfusion_studio.repair.diffusers_models import build

    unet = randomise(build("UNet2DConditionModel", UNET, device="cpu"))
    write_model(folder / "unet", UNET, unet.state_dict())
    vae = tiny_vae()
    tensors = adapted(vae)
    if stock_vae:
        tensors = {k: v for k, v in vae.state_dict().items() if "skip_conv" not in k}
    write_model(folder / "vae", {**VAE, "lora_rank": 4, "gamma": 1.0}, tensors)
    if prompt:
        embeds = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(1))
        save_file({"prompt_embeds": embeds}, folder / "prompt_embeds.safetensors")
    return folder


def write_difix_training(path: Path, *, eig=True) -> Path:
    """What Difix3D's and EIG-Difix's training scripts save, with other numbers than the folder's."""
    from faithfusion_studio.repair.diffusers_models import build
    from faithfusion_studio.repair.difix_networks import widen_for_eig

    torch.manual_seed(9)
    unet = build("UNet2DConditionModel", UNET, device="cpu").state_dict()
    if eig:
        unet = widen_for_eig(unet)
        unet["conv_in.weight"][:, 4:] = 0.05 * torch.randn(8, 5, 3, 3)
    vae = {k: v + 0.01 for k, v in adapted(tiny_vae()).items() if "lora" in k or "skip" in k}
    state = {
        "vae_lora_target_modules": ["decoder.conv_in"],
        "rank_vae": 4,
        "state_dict_unet": dict(unet),
        "state_dict_vae": vae,
        "optimizer": {"state": {}, "param_groups": [{"lr": 2e-5}]},
    }
    torch.save(state, path)
    return path


def tiny_engine(name: str, folder: Path):
    """A large engine with tiny random weights, loaded as the real one is."""
    need_diffusers()
    from faithfusion_studio.repair import difix

    return {
        "difix": lambda: difix.DifixRepairer.from_pretrained(write_difix(folder)),
    }[name]()
