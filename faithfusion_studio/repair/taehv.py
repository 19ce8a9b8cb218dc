"""TAEHV's decoder for Wan 2.1: a look at a clip while it is still being denoised, without its autoencoder.

The weights (`taew2_1.pth` or `.safetensors`, MIT, https://github.com/madebyollin/taehv) are the user's. Layout
of that file: `encoder.N...`, which is not needed here, and `decoder.N...` with N as in `TaehvDecoder`. Checked
against the published class definition, not against released weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from faithfusion_studio.io.model_folders import load_strict
from faithfusion_studio.io.weights import read_weights

FILES = ("taew2_1.safetensors", "taew2_1.pth")
"""What is looked for in the engine's folder, the first that is there."""
LATENT_CHANNELS = 16
WIDTHS = (256, 128, 64, 64)
GROWS = (1, 2, 2)
"""Frames that each stage makes of one."""
TRIMMED = 3
"""Frames at the start that stand for time before the clip: a latent makes 4 frames, the first one only 1."""
MEMORY = 3
"""Latents decoded for one picture: what is further back hardly matters."""


class _Softclamp(nn.Module):
    """3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class _Remembering(nn.Module):
    """Three convolutions over a frame and the one before it (zeros before the first), added to the frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = [_conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU()]
        self.conv = nn.Sequential(*parts, _conv(width, width))

    def forward(self, x: Float[Tensor, "T C h w"]) -> Float[Tensor, "T C h w"]:
        before = functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]
        return functional.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class _Grow(nn.Module):
    """Several frames of each one, by a 1 x 1 convolution."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * frames, 1, bias=False)

    def forward(self, x: Float[Tensor, "T C h w"]) -> Float[Tensor, "S C h w"]:
        return self.conv(x).reshape(-1, *x.shape[1:])


def _conv(given: int, made: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(given, made, 3, padding=1, bias=bias)


class TaehvDecoder(nn.Module):
    """From normalised latents to pictures, 8 times as large and about 4 times as many."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [_Softclamp(), _conv(LATENT_CHANNELS, WIDTHS[0]), nn.ReLU()]
        for width, following, frames in zip(WIDTHS, WIDTHS[1:], GROWS, strict=False):
            parts += [_Remembering(width) for _ in range(3)]
            parts += [nn.Upsample(scale_factor=2), _Grow(width, frames)]
            parts += [_conv(width, following, bias=False)]
        self.decoder = nn.Sequential(*parts, nn.ReLU(), _conv(WIDTHS[-1], 3))

    def forward(self, latents: Float[Tensor, "16 F h w"]) -> Float[Tensor, "T 3 MH MW"]:
        """4 F - 3 pictures in [0, 1]."""
        return self.decoder(latents.transpose(0, 1))[TRIMMED:].clamp(0, 1)

    def look(self, latents: Float[Tensor, "16 F h w"]) -> Float32[Tensor, "MH MW 3"]:
        """The last picture of the latent in the middle, on the CPU."""
        last = latents.shape[1] // 2
        part = latents[:, max(0, last - MEMORY + 1) : last + 1]
        with torch.no_grad():
            pictures = self(part.to(self.decoder[1].weight))
        return pictures[-1].permute(1, 2, 0).float().cpu()


def load_taehv(folder: Path) -> TaehvDecoder | None:
    """The decoder with the weights in a folder; None where it holds none.

    Raises:
        WeightsError: The file is damaged or of another model.
    """
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    tensors = {k: v for k, v in read_weights(path).items() if not k.startswith("encoder.")}
    with torch.device("meta"):
        decoder = TaehvDecoder()
    load_strict(decoder, {k: v.to(torch.float32) for k, v in tensors.items()}, path)
    return decoder
