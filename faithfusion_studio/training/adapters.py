"""Training one's own adapters for the large engines on repair data: an EIG-Difix, or an EIGent branch.

Both write the official layouts, which `DifixRepairer` and `CogVideoXRepairer` load. Losses need no
downloads: squared error, and gradients of the picture for Difix; the velocity of the noisy clip for EIGent.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.model_folders import load_strict, read_config, read_tensors
from faithfusion_studio.repair.clips import Letterbox, mapped_eig, to_latents
from faithfusion_studio.repair.diffusers_models import build, load_model
from faithfusion_studio.repair.difix import DifixConfig, resized
from faithfusion_studio.repair.difix_networks import (
    SKIPS,
    DifixUnet,
    SkipVae,
    add_skips,
    one_step,
    widen_for_eig,
)
from faithfusion_studio.repair.eigent_branch import EigentContextBranch, injected
from faithfusion_studio.repair.eigent_cogvideox import CogVideoXRepairer
from faithfusion_studio.repair.lora import ALPHA
from faithfusion_studio.training.pairs import TrainingError
from faithfusion_studio.training.repair_data import RepairData

ADAPTER = "vae_skip"
"""Name of the VAE's adapter in the files of Difix3D."""
LORA_ENDS = (
    *("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", *SKIPS),
    *("to_k", "to_q", "to_v", "to_out.0"),
)
"""Ends of the names of the decoder's layers that are adapted."""


@dataclass(frozen=True)
class AdapterConfig:
    """How an adapter is trained."""

    steps: int = 1000
    rate: float = 2e-5
    """Of AdamW, falling as a cosine to a tenth."""
    rank: int = 4
    """Of the adapters in Difix's decoder."""
    layers: int = 2
    """Blocks of an EIGent branch; each is as large as a block of the trunk."""
    eig_dropout: float = 0.15
    """Share of steps that are shown no EIG."""
    reference_dropout: float = 0.15
    """Share of steps that are shown no reference."""
    gradient: float = 0.5
    """Weight of absolute differences between neighbours; raising it keeps edges."""
    seed: int = 0
    device: str = "cpu"


class AdapterProgress(NamedTuple):
    """One step."""

    step: int
    loss: float
    seconds: float


@runtime_checkable
class AdapterTask(Protocol):
    """What is trained, and how its file looks."""

    parameters: list[nn.Parameter]

    def loss(self, rng: np.random.Generator) -> Tensor:
        """The loss of one random example."""
        ...

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write what was learned in the official layout."""
        ...


def train_adapter(task: AdapterTask, config: AdapterConfig) -> Iterator[AdapterProgress]:
    """Train to the last step; stop consuming to stop early.

    Args:
        task: Difix or EIGent.
        config: Steps and rate.

    Raises:
        TrainingError: The loss is not a number.
    """
    optimizer = torch.optim.AdamW(task.parameters, lr=config.rate, weight_decay=1e-4)
    started = time.monotonic()
    for step in range(config.steps):
        torch.manual_seed(hash((config.seed, step)) % (1 << 63))
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
            group["lr"] = config.rate * (0.1 + 0.9 * cosine)
        loss = task.loss(np.random.default_rng([config.seed, step]))
        if not bool(torch.isfinite(loss)):
            raise TrainingError(f"the loss is not a number at step {step}; choose a lower --rate.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(task.parameters, 1.0)
        optimizer.step()
        yield AdapterProgress(step + 1, float(loss.detach()), time.monotonic() - started)


# --------------------------------------------------------------------------------------- Difix


class LoraLayer(nn.Module):
    """A layer with a low-rank adapter beside it, under peft's names.

    Args:
        base: Linear or convolution, frozen.
        rank: Of the adapter, which changes nothing at first.
    """

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        a: nn.Module
        b: nn.Module
        if isinstance(base, nn.Conv2d):
            given: dict[str, Any] = {"stride": base.stride, "padding": base.padding}
            a = nn.Conv2d(base.in_channels, rank, base.kernel_size, bias=False, **given)  # type: ignore[arg-type]
            b = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        else:
            assert isinstance(base, nn.Linear)
            a = nn.Linear(base.in_features, rank, bias=False)
            b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(a.weight, std=1 / rank)  # type: ignore[arg-type]
        nn.init.zeros_(b.weight)  # type: ignore[arg-type]
        self.lora_A, self.lora_B = nn.ModuleDict({ADAPTER: a}), nn.ModuleDict({ADAPTER: b})
        self._scale = ALPHA / rank

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output and, scaled, the adapter's."""
        return self.base_layer(x) + self._scale * self.lora_B[ADAPTER](self.lora_A[ADAPTER](x))


def adapt_decoder(vae: nn.Module, rank: int) -> list[str]:
    """Wrap the decoder's layers; returns their names."""
    names = [
        name
        for name, module in vae.named_modules()
        if name.startswith("decoder.")
        and name.endswith(LORA_ENDS)
        and isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = vae.get_submodule(parent)
        if isinstance(owner, nn.ModuleList):
            owner[int(last)] = LoraLayer(owner[int(last)], rank)
        else:
            setattr(owner, last, LoraLayer(getattr(owner, last), rank))
    return names


class DifixTask:
    """EIG-Difix on a Difix folder: the U-Net's ends and attention, and adapters of the decoder.

    Args:
        folder: `unet`, `vae` and the prompt's embedding.
        prompt: That embedding.
        data: Pairs.
        config: Rank, dropout, losses.
    """

    def __init__(
        self, folder: Path, prompt: Float[Tensor, "1 N C"], data: RepairData, config: AdapterConfig
    ) -> None:
        self.config, self.data, self.prompt = config, data, prompt.to(config.device)
        tensors = read_tensors(folder / "unet", dtype=torch.float32)
        if tensors["conv_in.weight"].shape[1] == 4:
            tensors = widen_for_eig(tensors)
        settings = {**read_config(folder / "unet"), "in_channels": 9, "out_channels": 5}
        unet = load_strict(build("UNet2DConditionModel", settings), tensors, folder / "unet")
        vae, self.layers = _adapted_vae(folder / "vae", config.rank)
        self._unet, self._vae = DifixUnet(unet.to(config.device)), SkipVae(vae.to(config.device))
        side = DifixConfig().long_side or 16 * int(settings["sample_size"])
        self._side = side
        learned = [
            parameter
            for name, parameter in unet.named_parameters()
            if name.startswith(("conv_in.", "conv_out.")) or ".attn" in name
        ]
        learned += [p for n, p in vae.named_parameters() if ".lora_" in n or ".skip_conv_" in n]
        self.parameters = [parameter.requires_grad_(True) for parameter in learned]

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Squared error and gradients of one decoded view."""
        config, pair = self.config, self.data.pair(int(rng.integers(len(self.data))))
        height, width = pair.render.shape[:2]
        scale = self._side / max(height, width)
        size = (max(64, round(height * scale / 64) * 64), max(64, round(width * scale / 64) * 64))
        shown = [pair.render]
        if rng.random() >= config.reference_dropout:
            shown.append(pair.warp if rng.random() < 0.5 else pair.reference)
        pictures = torch.cat(
            [resized(p.permute(2, 0, 1)[None], size) for p in [*shown, pair.truth]]
        )
        views, truth = pictures[:-1].to(config.device), pictures[-1:].to(config.device)
        eig = torch.zeros_like(views[:, :1, ::8, ::8])
        if rng.random() >= config.eig_dropout:
            grey = mapped_eig(pair.released[None], pair.coverage[None], 1.0)
            eig[:1] = functional.interpolate(grey[None], eig.shape[-2:]).to(config.device)
        with torch.no_grad():
            latents = self._vae.encode(views)
        clean = one_step(latents, self._unet.noise(latents, self.prompt, eig))
        made = self._vae.decode(clean)[:1]
        return functional.mse_loss(made, truth) + config.gradient * _gradient_loss(made, truth)

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """A training file in the layout of Difix3D and EIG-Difix."""
        vae = self._vae.vae.state_dict()
        state = {
            "vae_lora_target_modules": self.layers,
            "rank_vae": self.config.rank,
            "state_dict_unet": {k: v.cpu() for k, v in self._unet.unet.state_dict().items()},
            "state_dict_vae": {
                k: v.cpu() for k, v in vae.items() if ".lora_" in k or ".skip_conv_" in k
            },
            "optimizer": {},
            "about": json.dumps(about),
        }
        with write_atomically(path, TrainingError) as temporary:
            torch.save(state, temporary)


def _adapted_vae(folder: Path, rank: int) -> tuple[Any, list[str]]:
    """A VAE with skips and trainable adapters; those the folder has are where training starts."""
    tensors = read_tensors(folder, dtype=torch.float32)
    vae: Any = build("AutoencoderKL", read_config(folder), device="cpu")
    add_skips(vae)
    names = adapt_decoder(vae, rank)
    expected = vae.state_dict()
    found = {}
    for name in expected:
        plain = name.replace(".base_layer.", ".")
        own = tensors.get(name, tensors.get(plain))
        fresh = ".lora_" in name or ".skip_conv_" in name
        if own is not None and own.shape == expected[name].shape:
            found[name] = own
        elif fresh:
            found[name] = expected[name]
    vae.requires_grad_(False)
    return load_strict(vae, found, folder), names


def _gradient_loss(made: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of differences between neighbours, across and down."""
    across = (made.diff(dim=-1) - truth.diff(dim=-1)).abs().mean()
    return across + (made.diff(dim=-2) - truth.diff(dim=-2)).abs().mean()


# -------------------------------------------------------------------------------------- EIGent


class EigentTask:
    """A context branch on a frozen CogVideoX: the noise of true clips is predicted beside their renders.

    Args:
        folder: `transformer`, `vae`, `scheduler` and the prompt's embedding.
        prompt: That embedding.
        data: Pairs; runs of one camera are the clips.
        config: Layers and dropout.
    """

    def __init__(
        self, folder: Path, prompt: Float[Tensor, "1 S E"], data: RepairData, config: AdapterConfig
    ) -> None:
        self.config, self.data = config, data
        trunk = load_model("CogVideoXTransformer3DModel", folder / "transformer")
        self.branch = EigentContextBranch.from_transformer(trunk, config.layers).to(config.device)
        self._engine = CogVideoXRepairer(
            trunk.to(config.device),
            self.branch,
            load_model("AutoencoderKLCogVideoX", folder / "vae").to(config.device),
            read_config(folder / "scheduler", "scheduler_config.json"),
            prompt.to(config.device),
        )
        unused = ("norm_final.", "norm_out.", "proj_out.", "branch_x_embedder.")
        self.parameters = [
            parameter.requires_grad_(True)
            for name, parameter in self.branch.named_parameters()
            if not name.startswith(unused)
        ]
        self._scheduler = self._engine._make_scheduler()

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Squared error of the predicted velocity of one noisy clip."""
        engine, config = self._engine, self.config
        truth, render, cue, eig = self._clip(rng)
        with torch.no_grad():
            clean, shown, cue = (engine._encode(p) for p in (truth, render, cue))
        if rng.random() < config.eig_dropout:
            eig = torch.zeros_like(eig)
        grid = (clean.shape[1], *clean.shape[-2:])
        shown_eig = to_latents(eig, *grid)[None, :, None].to(clean)
        steps = len(self._scheduler.alphas_cumprod)
        step = torch.tensor([int(rng.integers(steps))], device=clean.device)
        noise = torch.randn_like(clean)
        noisy = self._scheduler.add_noise(clean, noise, step)
        target = self._scheduler.get_velocity(clean, noise, step)
        text, rope = engine.prompt.to(clean), engine._rope(clean)
        reference = None if rng.random() < config.reference_dropout else cue
        features = self.branch(noisy, shown, shown_eig, reference, text, step, rope)
        first = torch.cat([clean[:, :1], torch.zeros_like(clean[:, 1:])], dim=1)
        with injected(engine.trunk.transformer_blocks, features, None):
            found = engine.trunk(
                hidden_states=torch.cat([noisy, first], dim=2),
                encoder_hidden_states=text,
                timestep=step,
                image_rotary_emb=rope,
                return_dict=False,
            )[0]
        return functional.mse_loss(found, target)

    def _clip(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Truth, render, cue [T, 3, H, W] and mapped EIG [T, H, W] of one clip at the model's size."""
        runs = self.data.clips()
        run = runs[int(rng.integers(len(runs)))]
        length = self._engine.frames
        start = run.start + int(rng.integers(max(1, len(run) - length + 1)))
        index = [min(i, run.stop - 1) for i in range(start, start + length)]
        pairs = {i: self.data.pair(i) for i in set(index)}
        box = Letterbox(*pairs[index[0]].render.shape[:2], *self._engine.size)

        def stacked(kind: str) -> Tensor:
            pictures = torch.stack([getattr(pairs[i], kind) for i in index])
            return box.put(pictures.permute(0, 3, 1, 2)).to(self.config.device)

        cap = self._engine.config.eig_cap
        released = torch.stack([pairs[i].released for i in index])
        coverage = torch.stack([pairs[i].coverage for i in index])
        eig = box.put(mapped_eig(released, coverage, cap)[:, None])[:, 0]
        return stacked("truth"), stacked("render"), stacked("warp"), eig.to(self.config.device)

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """A folder in the layout of the published branch."""
        path.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.branch.state_dict().items()}
        config = {"_class_name": "CogvideoXBranchModel", **self.branch.config}
        with write_atomically(
            path / "diffusion_pytorch_model.safetensors", TrainingError
        ) as temporary:
            save_file(tensors, temporary, {"format": "pt", "about": json.dumps(about)})
        with write_atomically(path / "config.json", TrainingError) as temporary:
            temporary.write_text(json.dumps(config, indent=1))
