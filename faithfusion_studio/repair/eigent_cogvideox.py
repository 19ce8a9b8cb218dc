"""EIGent in its official layout: CogVideoX-5b-I2V with a context branch, over clips of any length.

Loads CogVideoX-5b-I2V with VideoPainter's branch, or with anyone's EIGent branch in the layout of
FaithFusion's code, whose own weights are unpublished. Checked against class definitions, not against
released weights.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from faithfusion_studio.io.model_folders import read_config, refuse_code
from faithfusion_studio.repair import clips
from faithfusion_studio.repair.base import (
    FrameRepair,
    RepairBatch,
    Repairer,
    RepairerInfo,
    RepairStep,
)
from faithfusion_studio.repair.devices import engine_device, engine_dtype, released, teraflops
from faithfusion_studio.repair.diffusers_models import count_parameters, diffusers_class, load_model
from faithfusion_studio.repair.eigent_branch import EigentContextBranch, Rope, injected, load_branch
from faithfusion_studio.repair.model_store import CATALOG, CHECKED, provenance_note, required_folder
from faithfusion_studio.repair.offload import Memory, Profile, choose_profile, on_device, visiting
from faithfusion_studio.repair.prompts import engine_prompt, prompt_embedding
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
"""Used where the folder has no prompt.txt."""
TERAFLOP_PER_STEP = 375.0
"""One step of trunk and branch on 49 frames of 480 x 720."""
FULL_PARAMETERS = 5.99e9
"""Of trunk and branch with two layers."""
MEMORY = Memory(whole=24.0, parts=18.0, blocks=10.0)


@dataclass(frozen=True)
class CogVideoXConfig:
    """How a clip is repaired."""

    steps: int = 50
    """Denoising steps; 20 is a fair preview."""
    strength: float = 1.0
    """Share of the noise schedule that is run; below 1 it starts from the render."""
    eig_cap: float = 0.1
    """EIG of the form "released" that is shown as 1."""
    beta: float = 0.0
    """How strongly EIG regulates the look at the reference; 0 is the release."""
    soft_keep: bool = False
    """Blend the render's latents back after each step where EIG is below 0.1."""
    overlap: int = 9
    """Frames shared by two windows."""
    blob_radius: int = 8
    """VideoPainter's branch sees the UCR grown by so many pixels."""
    profile: Profile = "auto"


class CogVideoXRepairer:
    """EIGent on CogVideoX; all frames of a window influence each other.

    Args:
        trunk: `CogVideoXTransformer3DModel` of the I2V kind, unchanged.
        branch: EIGent's or VideoPainter's.
        vae: `AutoencoderKLCogVideoX`.
        scheduler: Settings of `CogVideoXDPMScheduler`.
        prompt: Text embedding.
        config: Steps and options.
        cue: Engine of the per-frame repairs shown as reference; None takes the reprojection.
        note: Added to every frame.
    """

    name = "eigent-cogvideox"
    info = RepairerInfo(
        title="EIGent (CogVideoX)",
        summary="Video diffusion with an EIG-gated context branch; " + CHECKED + ".",
        licence=CATALOG["eigent-cogvideox"].licence.name,
        needs_weights=True,
        video=True,
        window=40,
        lead_in=9,
        depth=True,
        minimum_vram_gib=MEMORY.blocks,
        released_eig=True,
    )

    def __init__(
        self,
        trunk: Any,
        branch: EigentContextBranch,
        vae: Any,
        scheduler: dict[str, Any],
        prompt: Float[Tensor, "1 S E"],
        config: CogVideoXConfig | None = None,
        *,
        cue: Repairer | None = None,
        note: str = "",
    ) -> None:
        self.trunk, self.branch, self.vae = trunk, branch, vae
        self.prompt, self.config, self.note = prompt, config or CogVideoXConfig(), note
        self._scheduler = {**scheduler, "timestep_spacing": "trailing"}
        self._cues = Cues(cue)
        self.frames: int = trunk.config.sample_frames
        spatial = 2 ** (len(vae.config.block_out_channels) - 1)
        self.size = (trunk.config.sample_height * spatial, trunk.config.sample_width * spatial)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        config: CogVideoXConfig | None = None,
        *,
        cue: Repairer | None = None,
        note: str = "",
        dtype: torch.dtype = torch.float32,
    ) -> CogVideoXRepairer:
        """The engine from a folder: `transformer`, `vae`, `scheduler`, `branch` and the prompt.

        Raises:
            RepairError: Weights that do not fit, or code in the folder.
            MissingWeightsError: A file is not there.
        """
        refuse_code(folder)
        text = engine_prompt(folder, PROMPT)
        prompt = prompt_embedding(folder, text, "T5EncoderModel", length=226)
        return cls(
            load_model("CogVideoXTransformer3DModel", folder / "transformer", dtype),
            load_branch(folder / "branch", dtype),
            load_model("AutoencoderKLCogVideoX", folder / "vae", dtype),
            read_config(folder / "scheduler", "scheduler_config.json"),
            prompt,
            config,
            cue=cue,
            note=note,
        )

    def estimate_seconds(self, frames: int, height: int, width: int, device: str = "cpu") -> float:
        """Expected time, s: counted operations of all windows over what such devices reach."""
        size = count_parameters(self.trunk) + count_parameters(self.branch)
        own = _seconds(frames, self.config, device) * size / FULL_PARAMETERS
        return own + self._cues.seconds(frames, height, width, device)

    @staticmethod
    def full_size_seconds(frames: int, height: int, width: int, device: str = "cpu") -> float:
        """`estimate_seconds` of the published size, without loading it."""
        cues = Cues().seconds(frames, height, width, device)
        return _seconds(frames, CogVideoXConfig(), device) + cues

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair | RepairStep]:
        """Cues first, then window after window, then all frames."""
        device = engine_device(batch)
        profile = choose_profile(self.config.profile, MEMORY, device)
        clip, warped = yield from build_clip(batch, self._cues, self.size, self.config.eig_cap)
        made = None
        with released(self.trunk, self.branch, self.vae):
            for window in clip_windows(clip, self.frames, self.config.overlap):
                part, count = windowed(clip, made, window, self.frames)
                new = yield from self._window(part, len(batch.cameras), batch.seed, device, profile)
                made = joined(made, new[:count], window)
        assert made is not None
        yield from finished(clip, made, warped, (self.note,) if self.note else ())

    # ------------------------------------------------------------------------------- one window

    def _window(
        self, clip: Clip, frames: int, seed: int, device: torch.device, profile: Profile
    ) -> Generator[RepairStep, None, Float32[Tensor, "N 3 MH MW"]]:
        """One window from pictures to pictures."""
        dtype, steps = engine_dtype(device), self.config.steps
        for module in (self.trunk, self.branch, self.vae):
            module.to(dtype)
        yield RepairStep(0, steps + 2, "encoding", frames)
        # Tiles are half a side; of smaller pictures rounding would lose latents at their seams.
        self.vae.use_tiling = profile != "whole" and self.size[0] >= 480
        with on_device(profile, device, self.vae), torch.no_grad():
            render, mask = self._condition(clip)
            shown = self._encode(render.to(device, dtype))
            first = self._encode(clip.renders[:1].to(device, dtype))
            cue = self._encode(clip.cues.to(device, dtype)) if self._has_reference else None
        grid = (shown.shape[1], *shown.shape[-2:])
        eig = clips.to_latents(mask, *grid).to(device, dtype)[None, :, None]
        blocks = self.trunk.transformer_blocks
        with visiting(profile, device, self.trunk, blocks), on_device(profile, device, self.branch):
            latents = yield from self._denoise(shown, first, cue, eig, seed, frames)
        yield RepairStep(steps + 1, steps + 2, "decoding", frames)
        with on_device(profile, device, self.vae), torch.no_grad():
            return self._decode(latents)

    @property
    def _has_reference(self) -> bool:
        return hasattr(self.branch, "patch_embed_ref")

    def _condition(
        self, clip: Clip
    ) -> tuple[Float32[Tensor, "N 3 MH MW"], Float32[Tensor, "N MH MW"]]:
        """What the branch is shown: the whole render and its EIG; VideoPainter's, a hole and its mask."""
        if self._has_reference:
            return clip.renders, clip.eig
        hole = clips.dilated(clip.ucr, self.config.blob_radius)
        grey = torch.full_like(clip.renders, 0.5)
        return torch.where(hole[:, None], grey, clip.renders), hole.to(torch.float32)

    def _encode(self, pictures: Float[Tensor, "T 3 MH MW"]) -> Float[Tensor, "1 F 16 h w"]:
        video = (2 * pictures - 1).permute(1, 0, 2, 3)[None]
        latents = self.vae.encode(video).latent_dist.mode() * self.vae.config.scaling_factor
        return latents.permute(0, 2, 1, 3, 4)

    def _decode(self, latents: Float[Tensor, "1 F 16 h w"]) -> Float32[Tensor, "T 3 MH MW"]:
        video = latents.permute(0, 2, 1, 3, 4) / self.vae.config.scaling_factor
        pictures = self.vae.decode(video).sample[0].permute(1, 0, 2, 3)
        return (pictures.float().cpu() / 2 + 0.5).clamp(0, 1)

    def _denoise(
        self,
        shown: Float[Tensor, "1 F 16 h w"],
        first: Float[Tensor, "1 1 16 h w"],
        cue: Float[Tensor, "1 F 16 h w"] | None,
        eig: Float[Tensor, "1 F 1 h w"],
        seed: int,
        frames: int,
    ) -> Generator[RepairStep, None, Float[Tensor, "1 F 16 h w"]]:
        """The latents of a window, step by step; there is no guidance, so each step is one pass."""
        config = self.config
        scheduler = self._make_scheduler()
        scheduler.set_timesteps(config.steps, device=shown.device)
        skipped = config.steps - max(1, round(config.steps * config.strength))
        times = scheduler.timesteps[skipped:]
        source = torch.Generator().manual_seed(seed)
        noise = torch.randn(shown.shape, generator=source).to(shown)
        latents = noise if not skipped else scheduler.add_noise(shown, noise, times[:1])
        condition = torch.cat([first, torch.zeros_like(shown[:, 1:])], dim=1)
        text = self.prompt.to(shown)
        rope = self._rope(shown)
        extreme = clips.any_per_token(eig[0, :, 0].float() > clips.EXTREME)
        before = None
        for i, time in enumerate(times):
            yield RepairStep(skipped + i + 1, config.steps + 2, "denoising", frames)
            with torch.no_grad():
                step = time.expand(1)
                features = self.branch(latents, shown, eig, cue, text, step, rope, beta=config.beta)
                with injected(self.trunk.transformer_blocks, features, extreme):
                    predicted = self.trunk(
                        hidden_states=torch.cat([latents, condition], dim=2),
                        encoder_hidden_states=text,
                        timestep=step,
                        image_rotary_emb=rope,
                        return_dict=False,
                    )[0]
                latents, before = scheduler.step(
                    predicted.float(),
                    before,
                    time,
                    times[i - 1] if i else None,
                    latents.float(),
                    generator=source,
                    return_dict=False,
                )
                if config.soft_keep:
                    kept = shown.float()
                    if i + 1 < len(times):
                        kept = scheduler.add_noise(kept, noise.float(), times[i + 1 : i + 2])
                    latents = clips.soft_keep(latents, kept, eig.float())
                latents = latents.to(shown.dtype)
        return latents

    def _make_scheduler(self) -> Any:
        kind = diffusers_class("CogVideoXDPMScheduler")
        return kind.from_config(self._scheduler)

    def _rope(self, latents: Tensor) -> Rope | None:
        """Rotary positions of the model's own grid."""
        config = self.trunk.config
        if not config.use_rotary_positional_embeddings:
            return None
        patch = config.patch_size
        grid = (latents.shape[-2] // patch, latents.shape[-1] // patch)
        tables = diffusers_class("models").embeddings.get_3d_rotary_pos_embed(
            embed_dim=config.attention_head_dim,
            crops_coords=((0, 0), grid),
            grid_size=grid,
            temporal_size=latents.shape[1],
            device=latents.device,
        )
        return tables[0], tables[1]


def _seconds(frames: int, config: CogVideoXConfig, device: str) -> float:
    """Time of the published size, s; every window costs a whole clip."""
    windows = max(1, -(-frames // CogVideoXRepairer.info.window))
    return windows * config.steps * config.strength * TERAFLOP_PER_STEP / teraflops(device)


def load_cogvideox(config: CogVideoXConfig | None = None) -> CogVideoXRepairer:
    """The engine with the weights on this machine; Difix makes the cues where it can.

    Raises:
        MissingWeightsError: They are not there.
        LicenceError: Their licence was not accepted.
    """
    from faithfusion_studio.errors import StudioError
    from faithfusion_studio.repair.difix import load_difix

    entry = CATALOG["eigent-cogvideox"]
    folder = required_folder(entry)
    cue: Repairer | None
    try:
        cue = load_difix() if torch.cuda.is_available() else None
    except StudioError:
        cue = None
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return CogVideoXRepairer.from_pretrained(
        folder, config, cue=cue, note=provenance_note(entry), dtype=dtype
    )
