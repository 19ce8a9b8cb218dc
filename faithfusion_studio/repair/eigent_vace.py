"""EIGent on Wan2.1-VACE-1.3B, whose stock model is a dual-branch transformer: the licence-clean video engine.

The context says what to keep (the render) and what to replace (the reprojection, inside the UCR); the
branch counts per token, by EIG; denoising starts from the render. Checked against class definitions, not
against released weights.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from torch.nn import functional

from faithfusion_studio.io.model_folders import (
    load_strict,
    read_config,
    read_file,
    read_tensors,
    refuse_code,
)
from faithfusion_studio.repair import clips
from faithfusion_studio.repair.base import (
    FrameRepair,
    RepairBatch,
    Repairer,
    RepairerInfo,
    RepairStep,
)
from faithfusion_studio.repair.devices import engine_device, engine_dtype, released, teraflops
from faithfusion_studio.repair.diffusers_models import (
    build,
    count_parameters,
    diffusers_class,
    load_model,
    to_precision,
    with_buffers,
)
from faithfusion_studio.repair.lora import fold_lora, plain_lora_names
from faithfusion_studio.repair.model_store import CATALOG, CHECKED, provenance_note, required_folder
from faithfusion_studio.repair.offload import Memory, Profile, choose_profile, on_device, visiting
from faithfusion_studio.repair.prompts import engine_prompt, prompt_embedding
from faithfusion_studio.repair.taehv import TaehvDecoder, load_taehv
from faithfusion_studio.repair.video import (
    Clip,
    Cues,
    build_clip,
    clip_windows,
    finished,
    joined,
    windowed,
)

PROMPT = (
    "A drive through a city, filmed from a moving car: a static world, parked vehicles stay where "
    "they are, sharp and clean frames, realistic colours."
)
SHIFT = 3.0
"""Of the noise schedule, as Wan runs 480p."""
PATCH = 8
"""Pixels of a latent's side."""
TERAFLOP_PER_STEP = 194.0
"""One step on 49 frames of 480 x 832."""
FULL_PARAMETERS = 2.154e9
MEMORY = Memory(whole=14.0, parts=11.0, blocks=7.0)


@dataclass(frozen=True)
class VaceConfig:
    """How a clip is repaired."""

    size: tuple[int, int] = (480, 832)
    """Height and width it works at, multiples of 16; below 480 rows the autoencoder blurs."""
    frames: int = 49
    """Of a window, 4 n + 1."""
    steps: int | None = None
    """Denoising steps; None is 20, or 6 with a distilled adapter."""
    strength: float = 0.65
    """Share of noise at the start, the rest is the render; above 0.7 it starts to invent."""
    scale: float = 1.0
    """Weight of the context branch."""
    extreme_scale: float = 0.0
    """Its weight on tokens of extreme EIG, which are left to the trunk."""
    references: int = 1
    """So many of the clip's per-frame repairs are also shown as reference images."""
    overlap: int = 9
    """Frames shared by two windows."""
    profile: Profile = "auto"


class VaceRepairer:
    """EIGent on VACE; all frames of a window influence each other.

    Args:
        trunk: Stock `WanVACETransformer3DModel`.
        vae: Stock `AutoencoderKLWan`, kept in float32.
        prompt: Text embedding, zero on padding.
        config: Steps and options.
        distilled: The trunk carries an adapter for few steps.
        cue: Engine of the per-frame repairs; None takes the reprojection.
        look: Decoder of the pictures that are shown while it works; None shows none.
        note: Added to every frame.
    """

    name = "eigent-vace"
    info = RepairerInfo(
        title="EIGent (Wan VACE)",
        summary="Video diffusion from the render, gated per token by EIG; " + CHECKED + ".",
        licence=CATALOG["eigent-vace"].licence.name,
        needs_weights=True,
        video=True,
        window=40,
        lead_in=9,
        depth=True,
        minimum_vram_gib=MEMORY.blocks,
    )

    def __init__(
        self,
        trunk: Any,
        vae: Any,
        prompt: Float[Tensor, "1 S E"],
        config: VaceConfig | None = None,
        *,
        distilled: bool = False,
        cue: Repairer | None = None,
        look: TaehvDecoder | None = None,
        note: str = "",
    ) -> None:
        self.trunk, self.vae, self.prompt, self.look = trunk, vae, prompt, look
        self.config, self.note = config or VaceConfig(), note
        self.steps = self.config.steps or (6 if distilled else 20)
        self._cues = Cues(cue)
        if self.config.size[0] >= 480:
            vae.enable_tiling()

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        config: VaceConfig | None = None,
        *,
        cue: Repairer | None = None,
        note: str = "",
        dtype: torch.dtype = torch.float32,
    ) -> VaceRepairer:
        """The engine from a folder: `transformer`, `vae`, the prompt; `lora.safetensors` and TAEHV if they are there.

        Raises:
            RepairError: Weights that do not fit, or code in the folder.
            MissingWeightsError: A file is not there.
        """
        refuse_code(folder)
        text = engine_prompt(folder, PROMPT)
        prompt = prompt_embedding(folder, text, "UMT5EncoderModel", length=512, trim=True)
        adapter = folder / "lora.safetensors"
        distilled = adapter.is_file()
        trunk = load_vace(folder / "transformer", adapter if distilled else None, dtype)
        vae = load_model("AutoencoderKLWan", folder / "vae")
        look = load_taehv(folder)
        return cls(trunk, vae, prompt, config, distilled=distilled, cue=cue, look=look, note=note)

    def estimate_seconds(self, frames: int, height: int, width: int, device: str = "cpu") -> float:
        """Expected time, s: counted operations of all windows over what such devices reach."""
        own = _seconds(frames, self.steps, device) * count_parameters(self.trunk) / FULL_PARAMETERS
        return own + self._cues.seconds(frames, height, width, device)

    @staticmethod
    def full_size_seconds(frames: int, height: int, width: int, device: str = "cpu") -> float:
        """`estimate_seconds` of the published size, without loading it."""
        return _seconds(frames, 20, device) + Cues().seconds(frames, height, width, device)

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair | RepairStep]:
        """Cues first, then window after window, then all frames."""
        device = engine_device(batch)
        profile = choose_profile(self.config.profile, MEMORY, device)
        to_precision(self.trunk, engine_dtype(device))
        clip, warped = yield from build_clip(batch, self._cues, self.config.size, None)
        made = None
        with released(self.trunk, self.vae):
            for window in clip_windows(clip, self.config.frames, self.config.overlap):
                part, count = windowed(clip, made, window, _clip_length(window.stop - window.start))
                new = yield from self._window(part, len(batch.cameras), batch.seed, device, profile)
                made = joined(made, new[:count], window)
        assert made is not None
        yield from finished(clip, made, warped, (self.note,) if self.note else ())

    # ------------------------------------------------------------------------------- one window

    def _window(
        self, clip: Clip, frames: int, seed: int, device: torch.device, profile: Profile
    ) -> Generator[RepairStep, None, Float32[Tensor, "N 3 MH MW"]]:
        """One window from pictures to pictures."""
        total = self.steps + 2
        yield RepairStep(0, total, "encoding", frames)
        with on_device(profile, device, self.vae), torch.no_grad():
            shown = self._encode(clip.renders.to(device))
            context, references = self._context(clip, device)
        scale = self._scale(clip, shown, references).to(device)
        with visiting(profile, device, self.trunk, self.trunk.blocks):
            latents = yield from self._denoise(shown, context, scale, references, seed, frames)
        yield RepairStep(total - 1, total, "decoding", frames)
        with on_device(profile, device, self.vae), torch.no_grad():
            return self._decode(latents)

    def _context(self, clip: Clip, device: torch.device) -> tuple[Float[Tensor, "1 96 F h w"], int]:
        """Inactive 16, reactive 16 and mask 64 channels; reference images come before the clip.

        Inactive is the render outside the UCR, reactive the cue inside; mask 1 means: generate. A
        reference image is (its latents, zeros, mask 0).
        """
        mask = clip.ucr[:, None].to(torch.float32)
        inactive, reactive = (
            self._encode_signed(((2 * clip.renders - 1) * (1 - mask)).to(device)),
            self._encode_signed(((2 * clip.cues - 1) * mask).to(device)),
        )
        inside = torch.cat([inactive, reactive, folded_mask(clip.ucr).to(device)], dim=1)
        chosen = torch.linspace(0, len(clip.cues) - 1, self.config.references + 2)[1:-1].long()
        before = []
        for index in chosen.tolist():
            latent = self._encode(clip.cues[index : index + 1].to(device))
            empty = torch.zeros_like(latent)
            before.append(torch.cat([latent, empty, empty.repeat(1, 4, 1, 1, 1)], dim=1))
        return torch.cat([*before, inside], dim=2), len(before)

    def _scale(self, clip: Clip, shown: Tensor, references: int) -> Float32[Tensor, "L 1 N 1"]:
        """The weight of the context branch per token, M (.) G in the paper, for every layer of it.

        Tokens of extreme EIG get `extreme_scale`, all others and the references `scale`.
        """
        frames, (height, width) = shown.shape[2], shown.shape[-2:]
        eig = clips.to_latents(clip.eig, frames, height, width)
        extreme = clips.any_per_token(eig > clips.EXTREME)
        per_token = torch.where(extreme, self.config.extreme_scale, self.config.scale)
        known = torch.full((references * height * width // 4,), self.config.scale)
        weights = torch.cat([known, per_token.to(torch.float32)])
        layers = len(self.trunk.config.vace_layers)
        return weights[None, None, :, None].expand(layers, 1, -1, 1)

    def _denoise(
        self,
        shown: Float[Tensor, "1 16 F h w"],
        context: Float[Tensor, "1 96 R h w"],
        scale: Float[Tensor, "L 1 N 1"],
        references: int,
        seed: int,
        frames: int,
    ) -> Generator[RepairStep, None, Float[Tensor, "1 16 F h w"]]:
        """From (1 - s) render + s noise to clean latents, one pass per step, without guidance."""
        scheduler = self._scheduler(shown.device)
        source = torch.Generator().manual_seed(seed)
        padded = (*shown.shape[:2], shown.shape[2] + references, *shown.shape[3:])
        noise = torch.randn(padded, generator=source).to(shown)
        start = torch.cat([torch.zeros_like(noise[:, :, :references]), shown], dim=2)
        share = scheduler.sigmas[0]
        latents = (1 - share) * start + share * noise
        if references:
            latents[:, :, :references] = noise[:, :, :references]
        dtype = self.trunk.patch_embedding.weight.dtype
        text = self.prompt.to(shown.device, dtype)
        picture = None
        for i, time in enumerate(scheduler.timesteps):
            yield RepairStep(i + 1, self.steps + 2, "denoising", frames, picture)
            with torch.no_grad():
                velocity = self.trunk(
                    hidden_states=latents.to(dtype),
                    timestep=time.expand(1),
                    encoder_hidden_states=text,
                    control_hidden_states=context.to(dtype),
                    control_hidden_states_scale=scale.to(dtype),
                    return_dict=False,
                )[0]
                clean = latents - scheduler.sigmas[i] * velocity.float()
                latents = scheduler.step(velocity.float(), time, latents, return_dict=False)[0]
            if self.look is not None:
                picture = self.look.to(clean.device).look(clean[0, :, references:])
        return latents[:, :, references:]

    def _scheduler(self, device: torch.device) -> Any:
        """Shifted flow matching whose first noise level is `strength`."""
        scheduler = diffusers_class("FlowMatchEulerDiscreteScheduler")(shift=SHIFT)
        strength = self.config.strength
        first = strength / (SHIFT - (SHIFT - 1) * strength)  # shifting takes it to `strength`
        sigmas = np.linspace(first, first / self.steps, self.steps)
        scheduler.set_timesteps(sigmas=sigmas.tolist(), device=device)
        return scheduler

    # ------------------------------------------------------------------------------ autoencoder

    def _encode(self, pictures: Float[Tensor, "T 3 MH MW"]) -> Float[Tensor, "1 16 F h w"]:
        return self._encode_signed(2 * pictures - 1)

    def _encode_signed(self, pictures: Float[Tensor, "T 3 MH MW"]) -> Float[Tensor, "1 16 F h w"]:
        mean, std = self._statistics(pictures)
        video = pictures.permute(1, 0, 2, 3)[None]
        return (self.vae.encode(video).latent_dist.mode() - mean) / std

    def _decode(self, latents: Float[Tensor, "1 16 F h w"]) -> Float32[Tensor, "T 3 MH MW"]:
        mean, std = self._statistics(latents)
        video = self.vae.decode(latents * std + mean).sample[0].permute(1, 0, 2, 3)
        return (video.float().cpu() / 2 + 0.5).clamp(0, 1)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' channels."""
        config = self.vae.config
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, std


def folded_mask(mask: Bool[Tensor, "T MH MW"]) -> Float32[Tensor, "1 64 F h w"]:
    """The mask at full resolution: the 8 x 8 pixels of a latent become 64 channels, time by the nearest.

    Source: VACE's `prepare_masks`; 1 is "generate", the opposite of Wan's own image-to-video mask.
    """
    frames, height, width = mask.shape
    cells = mask.to(torch.float32).view(frames, height // PATCH, PATCH, width // PATCH, PATCH)
    channels = cells.permute(2, 4, 0, 1, 3).flatten(0, 1)
    size = ((frames + 3) // 4, height // PATCH, width // PATCH)
    return functional.interpolate(channels[None], size, mode="nearest-exact")


def load_vace(folder: Path, adapter: Path | None, dtype: torch.dtype) -> Any:
    """The stock transformer, with an adapter folded in.

    Args:
        folder: `config.json` and safetensors.
        adapter: LoRA in the names of diffusers, or in Wan's own.
        dtype: Of its large tensors.

    Raises:
        RepairError: Tensors or layers that do not fit.
    """
    tensors: Mapping[str, Tensor] = read_tensors(folder)
    if adapter is not None:
        tensors = fold_lora({**tensors, **plain_lora_names(read_file(adapter))}, alpha=None)
    module = build("WanVACETransformer3DModel", read_config(folder))
    with_buffers(load_strict(module, tensors, folder))
    return to_precision(module, dtype)


def _clip_length(frames: int) -> int:
    """The next length a video autoencoder takes, 4 n + 1."""
    return -(-(frames - 1) // 4) * 4 + 1


def _seconds(frames: int, steps: int, device: str) -> float:
    """Time of the published size, s; every window costs a whole clip."""
    windows = max(1, -(-frames // VaceRepairer.info.window))
    return windows * steps * TERAFLOP_PER_STEP / teraflops(device)


def load_eigent_vace(config: VaceConfig | None = None) -> VaceRepairer:
    """The engine with the weights on this machine.

    Raises:
        MissingWeightsError: They are not there.
    """
    entry = CATALOG["eigent-vace"]
    folder = required_folder(entry)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return VaceRepairer.from_pretrained(folder, config, note=provenance_note(entry), dtype=dtype)
