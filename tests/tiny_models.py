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


COGVIDEOX = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 32,
    "out_channels": 16,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "num_layers": 5,
    "sample_width": 8,
    "sample_height": 6,
    "sample_frames": 9,
    "max_text_seq_length": 5,
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True,
}
COGVIDEOX_VAE = {
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 16,
    "sample_height": 48,
    "sample_width": 64,
    "scaling_factor": 0.7,
}
COGVIDEOX_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
    "set_alpha_to_one": True,
}


def tiny_trunk():
    from faithfusion_studio.repair.diffusers_models import build

    return randomise(build("CogVideoXTransformer3DModel", COGVIDEOX, device="cpu"), 0.2)


def tiny_branch(layers=2, reference=True):
    from faithfusion_studio.repair.eigent_branch import EigentContextBranch

    config = {**COGVIDEOX, "num_layers": layers}
    return randomise(EigentContextBranch(config, reference=reference), 0.2)


def write_cogvideox(folder: Path, *, reference=True) -> Path:
    from faithfusion_studio.repair.diffusers_models import build

    write_model(folder / "transformer", COGVIDEOX, tiny_trunk().state_dict(), shards=2)
    vae = randomise(build("AutoencoderKLCogVideoX", COGVIDEOX_VAE, device="cpu"))
    write_model(folder / "vae", COGVIDEOX_VAE, vae.state_dict())
    branch = tiny_branch(reference=reference)
    write_model(folder / "branch", {**COGVIDEOX, "num_layers": 2}, branch.state_dict())
    (folder / "scheduler").mkdir()
    settings = json.dumps({"_class_name": "CogVideoXDDIMScheduler", **COGVIDEOX_SCHEDULER})
    (folder / "scheduler" / "scheduler_config.json").write_text(settings)
    embeds = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(1))
    save_file({"prompt_embeds": embeds}, folder / "prompt_embeds.safetensors")
    return folder


VACE = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 3,
    "vace_layers": [0, 2],
    "vace_in_channels": 96,
}
WAN_VAE = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def tiny_vace():
    from faithfusion_studio.repair.diffusers_models import build

    return randomise(build("WanVACETransformer3DModel", VACE, device="cpu"), 0.2)


def write_vace(folder: Path) -> Path:
    from faithfusion_studio.repair.diffusers_models import build

    write_model(folder / "transformer", VACE, tiny_vace().state_dict(), shards=2)
    vae = randomise(build("AutoencoderKLWan", WAN_VAE, device="cpu"))
    write_model(folder / "vae", WAN_VAE, vae.state_dict())
    embeds = torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(1))
    save_file({"prompt_embeds": embeds}, folder / "prompt_embeds.safetensors")
    return folder


def tiny_engine(name: str, folder: Path):
    """A large engine with tiny random weights, loaded as the real one is."""
    need_diffusers()
    from faithfusion_studio.repair import difix
    from faithfusion_studio.repair import eigent_cogvideox as cogvideox
    from faithfusion_studio.repair import eigent_vace as vace

    return {
        "difix": lambda: difix.DifixRepairer.from_pretrained(write_difix(folder)),
        "eigent-vace": lambda: vace.VaceRepairer.from_pretrained(
            write_vace(folder), vace.VaceConfig(size=(32, 48), frames=9, steps=2)
        ),
        "eigent-cogvideox": lambda: cogvideox.CogVideoXRepairer.from_pretrained(
            write_cogvideox(folder), cogvideox.CogVideoXConfig(steps=2)
        ),
    }[name]()
