"""Difix as a repair engine: one step of SD-Turbo per frame, beside a reference that was warped into place.

Runs the weights of nvidia/difix, nvidia/difix_ref, of Difix3D's training, and of EIG-Difix, on stock
diffusers. The reference is the fused reprojection instead of the raw nearest photograph: it is aligned,
where a distant photograph misleads the attention between views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from faithfusion_studio.io.model_folders import refuse_code
from faithfusion_studio.repair.base import (
    FrameRepair,
    PixelProvenance,
    RepairBatch,
    RepairerInfo,
    RepairStep,
    WarpFeatures,
)
from faithfusion_studio.repair.devices import engine_device, engine_dtype, released, teraflops
from faithfusion_studio.repair.diffusers_models import count_parameters
from faithfusion_studio.repair.difix_networks import (
    DifixUnet,
    SkipVae,
    load_skip_vae,
    load_unet,
    one_step,
    read_difix_training,
)
from faithfusion_studio.repair.model_store import CATALOG, CHECKED, provenance_note, required_folder
from faithfusion_studio.repair.prompts import prompt_embedding
from faithfusion_studio.repair.reprojection import ReprojectionRepairer, select_references

PROMPT = "remove degradation"
FULL_PARAMETERS = 949.5e6
"""Of the published U-Net and VAE; work scales with them."""
TERAFLOP_PER_VIEW = 10.5
"""At 576x1024: U-Net 2.1, encoder 2.6, decoder 5.8."""
STEPS = 3
"""Encode, denoise, decode."""


@dataclass(frozen=True)
class DifixConfig:
    """How frames are shown to the network."""

    long_side: int | None = None
    """Pixels it works at; None is twice the size its U-Net was trained at, 1024 for SD-Turbo."""
    warped_reference: bool = True
    """Show the fused reprojection as the first reference."""
    recorded_references: int = 0
    """Also show so many of the nearest recorded photographs; each costs as much as a view."""
    eig_cap: float = 1.0
    """Nats (form "released") at which the EIG shown to EIG-Difix is 1, as its authors run it."""


class DifixRepairer:
    """Difix, frame by frame; the same seed gives the same frame, because there is no noise in it.

    Args:
        unet: Predicts noise.
        vae: With skips.
        prompt: Embedding of `PROMPT`, [1, N, C].
        config: Working size and references.
        note: Added to every frame.
    """

    name = "difix"
    info = RepairerInfo(
        title="Difix",
        summary="One step of SD-Turbo beside the reprojection; " + CHECKED + ".",
        licence=CATALOG["difix"].licence.name,
        needs_weights=True,
        depth=True,
        minimum_vram_gib=8.0,
        released_eig=True,
    )

    def __init__(
        self,
        unet: DifixUnet,
        vae: SkipVae,
        prompt: Float[Tensor, "1 N C"],
        config: DifixConfig | None = None,
        note: str = "",
    ) -> None:
        self.unet, self.vae, self.prompt = unet, vae, prompt
        self.config, self.note = config or DifixConfig(), note
        self._reprojection = ReprojectionRepairer()

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        config: DifixConfig | None = None,
        *,
        training: Path | None = None,
        note: str = "",
    ) -> DifixRepairer:
        """The engine from a folder in the layout of the hub.

        Args:
            folder: `unet`, `vae`, and `prompt_embeds.safetensors` or the text encoder.
            config: Working size and references.
            training: A file of Difix3D's or EIG-Difix's training, put on top.
            note: Added to every frame.

        Raises:
            RepairError: Weights that do not fit, a stock VAE, or code in the folder.
            MissingWeightsError: A file is not there.
        """
        refuse_code(folder)
        state = None if training is None else read_difix_training(training)
        prompt = prompt_embedding(folder, PROMPT, "CLIPTextModel", length=77)
        vae = load_skip_vae(folder / "vae", state)
        return cls(load_unet(folder / "unet", state), vae, prompt, config, note)

    def estimate_seconds(self, frames: int, height: int, width: int, device: str = "cpu") -> float:
        """Expected time, s: counted operations over what such devices were seen to reach.

        The working size is fixed, so that only frames and views count; the reprojection is added.
        """
        views = 1 + int(self.config.warped_reference) + self.config.recorded_references
        size = count_parameters(self.unet.unet) + count_parameters(self.vae.vae)
        own = _seconds(frames, views, device) * size / FULL_PARAMETERS
        return own + self._reprojection.estimate_seconds(frames, height, width, device)

    @staticmethod
    def full_size_seconds(frames: int, height: int, width: int, device: str = "cpu") -> float:
        """`estimate_seconds` of the published size, without loading it."""
        warping = ReprojectionRepairer().estimate_seconds(frames, height, width, device)
        return _seconds(frames, 2, device) + warping

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair | RepairStep]:
        """Frame by frame: warp, encode all views, one step, decode the first."""
        device = engine_device(batch)
        dtype = engine_dtype(device)
        self.unet.unet.to(device, dtype)
        self.vae.vae.to(device, dtype)
        with released(self.unet.unet, self.vae.vae):
            for t, warped in enumerate(self._reprojection.repair(batch)):
                assert warped.features is not None
                views = self._views(batch, t, warped.features).to(device, dtype)
                eig = self._eig(batch, t, views)
                yield RepairStep(0, STEPS, "encoding")
                with torch.no_grad():
                    latents = self.vae.encode(views)
                yield RepairStep(1, STEPS, "denoising")
                with torch.no_grad():
                    prompt = self.prompt.to(device, dtype)
                    clean = one_step(latents, self.unet.noise(latents, prompt, eig))
                yield RepairStep(2, STEPS, "decoding")
                with torch.no_grad():
                    images = self.vae.decode(clean)
                yield self._frame(batch, t, images[:1].float().cpu(), warped)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Working height and width: multiples of 64 pixels, which the U-Net halves three times."""
        long_side = self.config.long_side or 16 * int(self.unet.unet.config.sample_size)
        scale = long_side / max(height, width)
        return (
            max(64, round(height * scale / 64) * 64),
            max(64, round(width * scale / 64) * 64),
        )

    def _views(
        self, batch: RepairBatch, t: int, features: WarpFeatures
    ) -> Float[Tensor, "V 3 H W"]:
        """The render and its references at the working size.

        Where no recording was warped to, the reference shows the render.
        """
        render = batch.renders[t]
        size = self._size(*render.shape[:2])
        pictures = [render]
        if self.config.warped_reference:
            seen = features.weight.clamp(0, 1)[..., None]
            pictures.append(torch.lerp(render, features.fused, seen))
        if self.config.recorded_references:
            positions = [reference.camera for reference in batch.references]
            nearest = select_references(
                batch.cameras[t], positions, count=self.config.recorded_references
            )
            pictures += [batch.references[index].image for index in nearest]
        return torch.cat([resized(picture.permute(2, 0, 1)[None], size) for picture in pictures])

    def _eig(self, batch: RepairBatch, t: int, views: Tensor) -> Tensor | None:
        """EIG of the views at latent resolution; that of a reference is 0."""
        if not self.unet.uses_eig:
            return None
        nats = batch.eig[t] if batch.released_eig is None else batch.released_eig[t]
        shown = (nats / self.config.eig_cap).clamp(0, 1)
        shown = torch.where(batch.coverage[t], shown, torch.ones_like(shown))
        eig = torch.zeros_like(views[:, :1])
        eig[0] = functional.interpolate(shown[None, None], views.shape[-2:])[0].to(eig)
        size = (views.shape[-2] // 8, views.shape[-1] // 8)
        return functional.interpolate(eig, size, mode="bilinear", align_corners=True)

    def _frame(
        self, batch: RepairBatch, t: int, image: Float32[Tensor, "1 3 h w"], warped: FrameRepair
    ) -> FrameRepair:
        height, width = batch.renders.shape[1:3]
        rgb = resized(image, (height, width))[0].permute(1, 2, 0).contiguous()
        generated = torch.full((height, width), int(PixelProvenance.GENERATED), dtype=torch.uint8)
        assert warped.features is not None
        return FrameRepair(
            rgb=rgb,
            confidence=agreement(rgb, warped.features),
            pixel_provenance=generated,
            depth=warped.depth,
            features=warped.features,
            notes=(self.note,) if self.note else (),
        )


def _seconds(frames: int, views: int, device: str) -> float:
    """Time of the published networks at their working size, s."""
    return frames * views * TERAFLOP_PER_VIEW / teraflops(device)


def resized(images: Float[Tensor, "N 3 h w"], size: tuple[int, int]) -> Float[Tensor, "N 3 H W"]:
    """Images at another size, without ringing out of [0, 1]."""
    if images.shape[-2:] == size:
        return images
    return functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def agreement(
    rgb: Float32[Tensor, "H W 3"], features: WarpFeatures, tolerance: float = 0.15
) -> Float32[Tensor, "H W"]:
    """How far generated colours can be believed: by their agreement with what recordings show.

    Args:
        rgb: The engine's colours.
        features: The reprojection of the same view.
        tolerance: Colour distance at which belief has fallen to 1/e.

    Returns:
        In [0, 1]; 0.5 where no recording can tell.
    """
    distance = (rgb - features.fused).square().mean(-1).sqrt()
    seen = features.weight.clamp(0, 1)
    return torch.lerp(torch.full_like(seen, 0.5), torch.exp(-((distance / tolerance) ** 2)), seen)


def load_difix(config: DifixConfig | None = None) -> DifixRepairer:
    """The engine with the weights on this machine; see `model_store`.

    Raises:
        MissingWeightsError: They are not there.
        LicenceError: Their licence was not accepted.
    """
    entry = CATALOG["difix"]
    folder = required_folder(entry)
    training = folder / "model_last.pkl"
    return DifixRepairer.from_pretrained(
        folder,
        config,
        training=training if training.is_file() else None,
        note=provenance_note(entry),
    )
