"""EIGent in small: a two-branch video transformer that walks a bridge from reprojected clips to clean ones.

Symbols: B clips of T frames; a token is a patch of P x P pixels of one frame, h x w of them per frame;
d channels. x_t = (1 - t) clean + t (reprojected + noise) is the bridge, t in [0, 1]; the network says what
x_0 is, so the velocity is v = (x_t - x_0) / t.

The trunk sees the bridge and the reprojected clip. The context branch clones its shape, sees all maps of
`refiner_inputs`, looks at the best single warps by cross-attention (the reference), and its features are
added to the trunk's tokens through projections that start at zero: eps_k += M (.) G_k. As in the released
code, M is zero for tokens in which any EIG is extreme, which are left to the trunk. There is no text and
no autoencoder: pixels are unshuffled into tokens, and a decoder with skips from the pixels returns what
`compose` needs. Attention stays in windows of all frames by `reach` x `reach` tokens, moved by half a
window in every other block, because attention over everything is too dear for a CPU.

The decoder is the refiner's network with the tokens and the bridge added behind its stem through
projections that start at zero. It may be a trained refiner; then the whole is that refiner before it
has learned anything, and what it learns is what neighbouring frames tell.

Source: FaithFusion (dual branch, EIG gate); Wan2.1-VACE as in diffusers' `WanVACETransformer3DModel`
(modulated blocks, zero-initialised projections); the rest is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from faithfusion_studio.repair.refiner_network import (
    BEST,
    CHANNELS,
    EIG,
    Refined,
    Refiner,
    Size,
    compose,
    filled,
    reprojected,
)

EXTREME = 0.99
"""Calibrated EIG above which a token is left to the trunk."""


@dataclass(frozen=True)
class EigentConfig:
    """Size of the network; the defaults are what a CPU can train in minutes."""

    width: int = 128
    """d; a multiple of `heads`."""
    heads: int = 2
    layers: int = 6
    """Blocks of the trunk."""
    every: int = 2
    """A context block feeds every so many-th block of the trunk."""
    feed_forward: int = 3
    """Width of the hidden layer of each block, in d."""
    patch: int = 8
    """P, pixels; even."""
    reach: int = 8
    """Side of an attention window, tokens."""
    decoder: Size = "S"
    """Size of the refiner that decodes."""


SIZES: dict[str, EigentConfig] = {
    "tiny": EigentConfig(),
    "base": EigentConfig(width=384, heads=6, layers=8, feed_forward=4, decoder="M"),
}
"""tiny: 2 million parameters, for a CPU. base: 33 million, for a GPU."""


class Bridge(nn.Module):
    """The whole network: trunk, context branch and decoder.

    Args:
        config: Its size.
    """

    def __init__(self, config: EigentConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EigentConfig()
        self.trunk = _Trunk(config)
        self.branch = _Branch(config)

    def forward(
        self,
        state: Float[Tensor, "B T 3 H W"],
        times: Float[Tensor, "B T"],
        inputs: Float[Tensor, "B T C H W"],
        *,
        reference_weight: float = 0.0,
        branch: bool = True,
    ) -> Refined:
        """What the clean clips are.

        Args:
            state: x_t, of any size.
            times: t of each frame; 0 for frames that are known already.
            inputs: `refiner_inputs` of each frame.
            reference_weight: beta; the reference counts 1 + beta (EIG - 0.5). 0 is the published code.
            branch: False runs the trunk alone.

        Returns:
            Frames in [0, 1], as B T frames in one row.
        """
        inputs = filled(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        *_, height, width = inputs.shape
        multiple = math.lcm(self.config.patch, 16)
        pad = (0, -width % multiple, 0, -height % multiple)
        clips = torch.cat([state, inputs], dim=2)
        clips = functional.pad(clips.flatten(0, 1), pad, mode="replicate").unflatten(
            0, clips.shape[:2]
        )
        state, maps = clips[:, :, :3], clips[:, :, 3:]
        tokens, moment = self.trunk.embed(state, maps, times)
        hints = [None] * self.config.layers
        if branch:
            hints = self.branch(tokens, maps, moment, reference_weight)
        features = self.trunk(tokens, moment, hints)
        out = self.trunk.decode(features, state, maps)[..., :height, :width]
        return compose(inputs.flatten(0, 1).float(), out.float())


class _Trunk(nn.Module):
    """Frozen when the branch learns."""

    def __init__(self, config: EigentConfig) -> None:
        super().__init__()
        d, patch = config.width, config.patch
        self.patch = patch
        self.enter = nn.Linear(6 * patch * patch, d)
        self.time = nn.Sequential(nn.Linear(64, d), nn.SiLU(), nn.Linear(d, 6 * d))
        self.blocks = nn.ModuleList(
            _Block(config, shifted=bool(i % 2)) for i in range(config.layers)
        )
        self.decoder = Refiner(config.decoder, temporal=False)
        width = self.decoder.stem.out_channels
        self.norm = nn.LayerNorm(d)
        self.leave = nn.Linear(d, width * (patch // 2) ** 2)
        self.bridge = nn.Conv2d(4 * 3, width, 1)
        for layer in (self.leave, self.bridge):
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def embed(self, state: Tensor, maps: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, h, w, d] and what modulates the blocks [B, T, 1, 1, 6, d]."""
        base = reprojected(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        tokens = self.enter(_patches(torch.cat([state, base], dim=2), self.patch))
        moment = self.time(_waves(times)).unflatten(-1, (6, -1))
        return tokens, moment[:, :, None, None]

    def forward(self, tokens: Tensor, moment: Tensor, hints: list[Tensor | None]) -> Tensor:
        for block, hint in zip(self.blocks, hints, strict=True):
            tokens = block(tokens, moment)
            if hint is not None:
                tokens = tokens + hint
        return tokens

    def decode(self, tokens: Tensor, state: Tensor, maps: Tensor) -> Tensor:
        """The maps that `compose` takes, [B T, OUTPUTS, H, W]."""
        told = self.leave(self.norm(tokens)).flatten(0, 1).permute(0, 3, 1, 2)
        told = functional.pixel_shuffle(told, self.patch // 2)
        told = told + self.bridge(functional.pixel_unshuffle(state.flatten(0, 1), 2))
        return self.decoder.decode(maps.flatten(0, 1), told)


class _Branch(nn.Module):
    """What the maps say, for every `every`-th block of the trunk."""

    def __init__(self, config: EigentConfig) -> None:
        super().__init__()
        d, patch = config.width, config.patch
        self.patch, self.every, self.layers = patch, config.every, config.layers
        self.enter = nn.Linear(CHANNELS * patch * patch, d)
        self.before = nn.Linear(d, d)
        self.reference = nn.Linear(4 * patch * patch, d)
        count = len(range(0, config.layers, config.every))
        self.blocks = nn.ModuleList(
            _Block(config, shifted=bool(i % 2), reference=True) for i in range(count)
        )
        self.inject = nn.ModuleList(nn.Linear(d, d) for _ in range(count))
        for layer in (self.before, *self.inject):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, tokens: Tensor, maps: Tensor, moment: Tensor, reference_weight: float
    ) -> list[Tensor | None]:
        eig = maps[:, :, EIG : EIG + 1]
        free = (_patches(eig, self.patch).amax(-1, keepdim=True) <= EXTREME).to(tokens.dtype)
        regulated = 1 + reference_weight * (_patches(eig, self.patch).mean(-1, True) - 0.5)
        seen = maps[:, :, BEST.stop + 3 : BEST.stop + 4]
        reference = self.reference(_patches(torch.cat([maps[:, :, BEST], seen], 2), self.patch))
        context = self.enter(_patches(maps, self.patch)) + self.before(tokens)
        hints: list[Tensor | None] = [None] * self.layers
        for index, (block, inject) in enumerate(zip(self.blocks, self.inject, strict=True)):
            context = block(context, moment, reference, regulated)
            hints[index * self.every] = free * inject(context)
        return hints


class _Block(nn.Module):
    """Self-attention in windows, for the branch cross-attention to the reference, and two layers."""

    def __init__(self, config: EigentConfig, *, shifted: bool, reference: bool = False) -> None:
        super().__init__()
        d = config.width
        self.heads, self.reach = config.heads, config.reach
        self.shift = config.reach // 2 if shifted else 0
        self.table = nn.Parameter(torch.randn(6, d) / math.sqrt(d))
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.first, self.second = (
            nn.Linear(d, config.feed_forward * d),
            nn.Linear(config.feed_forward * d, d),
        )
        if reference:
            self.ask, self.answer = nn.Linear(d, d), nn.Linear(d, d)
            self.key_value = nn.Linear(d, 2 * d)
            self.norm = nn.LayerNorm(d)

    def forward(
        self,
        x: Tensor,
        moment: Tensor,
        reference: Tensor | None = None,
        regulated: Tensor | None = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (moment + self.table).unbind(-2)
        width = x.shape[-1:]
        y = functional.layer_norm(x, width) * (1 + scale1) + shift1
        windows = _Windows(x, self.reach, self.shift)
        q, k, v = (self._split(part) for part in windows.cut(self.qkv(y)).chunk(3, -1))
        x = x + gate1 * windows.join(self.out(self._attend(q, k, v, windows)))
        if reference is not None:
            assert regulated is not None
            q = self._split(windows.cut(self.ask(self.norm(x))))
            parts = windows.cut(self.key_value(reference)).chunk(2, -1)
            k, v = (self._split(part) for part in parts)
            x = x + regulated * windows.join(self.answer(self._attend(q, k, v, windows)))
        y = functional.layer_norm(x, width) * (1 + scale2) + shift2
        return x + gate2 * self.second(functional.gelu(self.first(y), approximate="tanh"))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, windows: _Windows) -> Tensor:
        turn = windows.rotations(q.shape[-1])
        q, k = _rotated(q, turn), _rotated(k, turn)
        found = functional.scaled_dot_product_attention(q, k, v, attn_mask=windows.valid)
        return found.transpose(1, 2).flatten(2)


class _Windows:
    """Tokens [B, T, h, w, d] as windows of all frames by reach x reach, and back.

    Args:
        x: Tokens that say the shape.
        reach: Side of a window, tokens.
        shift: By how much windows begin before the first row and column.
    """

    def __init__(self, x: Tensor, reach: int, shift: int) -> None:
        self.clips, self.frames, self.rows, self.columns, _ = x.shape
        self.reach, self.shift = reach, shift
        down, across = -(self.rows + shift) % reach, -(self.columns + shift) % reach
        self.pad = (0, 0, shift, across, shift, down)
        self.grid = ((self.rows + shift + down) // reach, (self.columns + shift + across) // reach)
        self.valid: Tensor | None = None
        if any(self.pad):
            ones = torch.ones(1, self.frames, self.rows, self.columns, 1, device=x.device)
            inside = self._windows(functional.pad(ones, self.pad))[..., 0] > 0
            self.valid = inside.repeat(self.clips, 1)[:, None, None]

    def cut(self, x: Tensor) -> Tensor:
        """[B windows, tokens of a window, d]."""
        return self._windows(functional.pad(x, self.pad))

    def _windows(self, x: Tensor) -> Tensor:
        clips, frames = x.shape[:2]
        (rows, columns), r = self.grid, self.reach
        x = x.view(clips, frames, rows, r, columns, r, -1).permute(0, 2, 4, 1, 3, 5, 6)
        return x.reshape(clips * rows * columns, frames * r * r, -1)

    def join(self, x: Tensor) -> Tensor:
        """Back to [B, T, h, w, d]."""
        (rows, columns), r = self.grid, self.reach
        x = x.view(self.clips, rows, columns, self.frames, r, r, -1).permute(0, 3, 1, 4, 2, 5, 6)
        x = x.reshape(self.clips, self.frames, rows * r, columns * r, -1)
        top, left = self.shift, self.shift
        return x[:, :, top : top + self.rows, left : left + self.columns]

    def rotations(self, size: int) -> Tensor:
        """Angles of the rotary positions (time, row, column) of a window's tokens, [tokens, size / 2]."""
        r, pairs = self.reach, size // 2
        shares = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
        axes = torch.meshgrid(
            torch.arange(self.frames), torch.arange(r), torch.arange(r), indexing="ij"
        )
        angles = [
            axis.flatten()[:, None] * 100.0 ** (-torch.arange(n) / max(1, n))
            for axis, n in zip(axes, shares, strict=True)
        ]
        return torch.cat(angles, dim=1)


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    cosine, sine = angles.cos().to(x), angles.sin().to(x)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2)


def _patches(clips: Tensor, patch: int) -> Tensor:
    """[B, T, C, H, W] to [B, T, h, w, C P P]."""
    tokens = functional.pixel_unshuffle(clips.flatten(0, 1), patch).permute(0, 2, 3, 1)
    return tokens.unflatten(0, clips.shape[:2])


def _waves(times: Tensor) -> Tensor:
    """Sines and cosines of t, [..., 64]."""
    rates = torch.exp(torch.arange(32, device=times.device) * (-math.log(1e4) / 32))
    angles = 1000 * times[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
