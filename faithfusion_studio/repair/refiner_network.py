"""The refiner's network: what it sees, what it computes, and its weights as a file.

It stands on the reprojection: its base is the frame that engine returns, and with its head at zero it
returns that frame. It may move each pixel along the colours that are known there (render, fused warp,
best single warp) and add a bounded residual, so that it cannot run away from the evidence. Last, its
neighbours in time steady a frame (`temporal_attention.py`); a frame without neighbours stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from faithfusion_studio.repair.base import FrameRepair, RepairBatch
from faithfusion_studio.repair.gate import GateConfig, blend_gate
from faithfusion_studio.repair.temporal_attention import (
    AHEAD,
    BEHIND,
    FrameState,
    TemporalAttention,
    Told,
    View,
)

Size = Literal["S", "M"]
WIDTHS: dict[Size, tuple[int, ...]] = {"S": (24, 32, 48, 64), "M": (64, 112, 176, 256)}
"""Channels at 1/2, 1/4, 1/8 and 1/16 of the image."""
BLOCKS: dict[Size, int] = {"S": 1, "M": 2}
"""Residual blocks per level on the way down, and as many on the way up."""

CHANNELS = 19
RENDER, FUSED, BEST = slice(0, 3), slice(3, 6), slice(6, 9)
BELIEF, SEEN, INVERSE_DEPTH, EIG, GATE = 10, 11, 15, 17, 18
"""Where `refiner_inputs` puts what other code needs to find again."""
OUTPUTS = 6
"""Maps that `compose` takes: residual 3, two shifts, error."""
TEMPORAL = "temporal."
"""How the names of the tensors of the attention over time begin."""
UNKNOWN_EIG = 0.5
"""Calibrated EIG the network is shown where none is known."""
FARTHEST_SHOWN = 200.0
"""Depth beyond which the network is not told how far things are, m."""
MAX_RESIDUAL = 0.25
"""Largest colour the network may add beyond the known colours."""
GENERATED_FROM = 0.1
"""A pixel with a larger colour from the network itself counts as generated."""
ERROR_SCALE = 0.08
"""Expected absolute colour error at which confidence is one half."""


def refiner_inputs(
    batch: RepairBatch, t: int, reprojected: FrameRepair, config: GateConfig | None = None
) -> Float32[Tensor, "C H W"]:
    """What the network sees of frame t, `CHANNELS` maps of about unit range.

    Args:
        batch: Renders and their EIG.
        t: Frame.
        reprojected: What the reprojection made of it, with its features.
        config: Of the gate, whose opening is one of the maps.
    """
    features = reprojected.features
    assert features is not None
    gate = blend_gate(
        batch.calibrated_eig[t],
        batch.ucr[t],
        batch.coverage[t],
        batch.eig_threshold,
        config or GateConfig(),
    )
    own, warped = batch.depths[t], features.depth
    apart = (warped.clamp(0.5, 200) / own.clamp(0.5, 200)).log().clamp(-1, 1)
    seen = (features.weight / 0.3).clamp(0, 1)
    maps = [
        batch.alphas[t],
        reprojected.confidence,
        seen,
        torch.log1p(features.weight) / 2,
        torch.log1p(features.best_weight) / 2,
        5 * features.variance.clamp(min=0).sqrt(),
        2 / warped.clamp(2, FARTHEST_SHOWN),
        apart,
        batch.calibrated_eig[t],
        gate,
    ]
    colors = torch.cat([batch.renders[t], features.fused, features.best], dim=-1)
    return torch.cat([colors.permute(2, 0, 1), torch.stack(maps)])


class Refined(NamedTuple):
    """What the network makes of frames."""

    rgb: Float[Tensor, "B 3 H W"]
    """In [0, 1]."""
    error: Float[Tensor, "B H W"]
    """Expected absolute error of `rgb`, mean over channels, > 0."""
    residual: Float[Tensor, "B H W"]
    """Largest colour that comes from no recorded or rendered pixel, in [0, `MAX_RESIDUAL`]."""


class Look(NamedTuple):
    """Frames refined each alone, with all that their neighbours may ask."""

    inputs: Float[Tensor, "B C H W"]
    """With the render where nothing was seen."""
    refined: Refined
    told: Told | None
    """None in a network without attention over time."""


class Refiner(nn.Module):
    """A U-Net at half resolution over one frame, and attention over time on what it finds.

    Args:
        size: "S" trains on a CPU; "M" is for a GPU.
        temporal: Whether it has the attention over time.
    """

    def __init__(self, size: Size = "S", *, temporal: bool = True) -> None:
        super().__init__()
        self.size: Size = size
        widths, blocks = WIDTHS[size], BLOCKS[size]
        self.stem = nn.Conv2d(4 * CHANNELS, widths[0], 1)
        self.down = nn.ModuleList(_level(width, blocks) for width in widths)
        self.shrink = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.grow = nn.ModuleList(
            nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.up = nn.ModuleList(_level(width, blocks) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 4 * OUTPUTS, 1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        # Last, so that a network without it draws the same random numbers.
        self.temporal = TemporalAttention(widths[0]) if temporal else None

    def forward(self, inputs: Float[Tensor, "B C H W"]) -> Refined:
        """Refine frames of any size, each alone."""
        return self._alone(inputs)[1]

    def _alone(self, inputs: Tensor) -> tuple[Tensor, Refined, Tensor]:
        """Filled inputs, what becomes of them, and the features behind it (of the padded size)."""
        inputs = filled(inputs)
        height, width = inputs.shape[-2:]
        multiple = 2 ** len(self.down)
        pad = (0, -width % multiple, 0, -height % multiple)
        padded = functional.pad(inputs, pad, mode="replicate")
        features = self._features(self.stem(functional.pixel_unshuffle(padded, 2)))
        return inputs, self._refined(inputs, features), features

    def _refined(self, inputs: Tensor, features: Tensor) -> Refined:
        height, width = inputs.shape[-2:]
        out = functional.pixel_shuffle(self.head(features), 2)[..., :height, :width]
        return compose(inputs.float(), out.float())

    def look(
        self,
        inputs: Float[Tensor, "B C H W"],
        view: View,
        moving: Bool[Tensor, "B H W"] | None = None,
    ) -> Look:
        """Refine frames each alone, and keep what their neighbours may ask.

        Args:
            inputs: From `refiner_inputs`.
            view: Their cameras.
            moving: Pixels of things that move, which are not looked for at other times.
        """
        inputs, refined, features = self._alone(inputs)
        inverse = inputs[:, INVERSE_DEPTH : INVERSE_DEPTH + 1].float() / 2
        state = FrameState(
            features=features.float(),
            colors=torch.cat([refined.rgb, refined.residual[:, None]], 1),
            inverse_depth=torch.where(inverse * FARTHEST_SHOWN > 1.01, inverse, 0.0),
            still=torch.ones_like(inverse) if moving is None else 1.0 - moving[:, None].float(),
            view=view,
        )
        if self.temporal is None:
            return Look(inputs, refined, None)
        with torch.autocast(inputs.device.type, enabled=False):
            return Look(inputs, refined, self.temporal.tell(state))

    def steady(self, own: Look, others: Sequence[tuple[int, Look]]) -> Refined:
        """A frame as its neighbours in time steady it; without any it is the frame refined alone.

        Args:
            own: The frame.
            others: Neighbours with their places in time relative to it, -`BEHIND` to `AHEAD`, not 0.
        """
        neighbours = [(dt, other.told) for dt, other in others if other.told is not None]
        if self.temporal is None or own.told is None or not neighbours:
            return own.refined
        found = self.temporal(own.told, neighbours)
        alone = self._refined(own.inputs, own.told.state.features + found.change)
        moved = found.amount * found.drift
        return Refined(
            rgb=(alone.rgb + moved[:, :3]).clamp(0, 1),
            error=alone.error,
            residual=(alone.residual + moved[:, 3].detach()).clamp(0, MAX_RESIDUAL),
        )

    def clip(self, looks: Sequence[Look]) -> list[Refined]:
        """Every frame of a clip, steadied by its neighbours.

        Args:
            looks: The frames in the order of time.
        """
        steadied = []
        for t, own in enumerate(looks):
            near = range(max(0, t - BEHIND), min(len(looks), t + AHEAD + 1))
            steadied.append(self.steady(own, [(s - t, looks[s]) for s in near if s != t]))
        return steadied

    def alone_weights(self) -> dict[str, Tensor]:
        """The weights of everything but the attention over time."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith(TEMPORAL)}

    def decode(self, inputs: Tensor, extra: Tensor | None = None) -> Tensor:
        """What `compose` takes, for filled inputs whose sides are multiples of 16.

        Args:
            inputs: From `refiner_inputs`, [B, C, H, W].
            extra: Features of somebody else, added behind the stem, [B, stem's width, H/2, W/2].
        """
        x = self.stem(functional.pixel_unshuffle(inputs, 2))
        x = self._features(x if extra is None else x + extra)
        return functional.pixel_shuffle(self.head(x), 2)

    def _features(self, x: Tensor) -> Tensor:
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=False):
            x = level(x)
            skips.append(x)
            x = shrink(x)
        x = self.down[-1](x)
        for skip, grow, level in reversed(list(zip(skips, self.grow, self.up, strict=True))):
            x = functional.interpolate(grow(x), scale_factor=2.0, mode="nearest")
            x = level(x + skip)
        return x


class _Block(nn.Module):
    """x + two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(functional.relu(x))))


def _level(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(width) for _ in range(blocks)))


def filled(inputs: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The inputs with the render in place of warped colours where nothing was seen.

    There the warps are black, which a convolution takes for evidence and spreads.
    """
    unseen = inputs[:, SEEN : SEEN + 1] < 1e-3
    render = inputs[:, RENDER]
    warped = [torch.where(unseen, render, inputs[:, part]) for part in (FUSED, BEST)]
    return torch.cat([render, *warped, inputs[:, BEST.stop :]], dim=1)


def reprojected(inputs: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H W"]:
    """What the reprojection alone returns for these inputs: the base of everything learned."""
    belief = inputs[:, BELIEF : BELIEF + 1]
    return torch.lerp(inputs[:, RENDER], inputs[:, FUSED], belief).clamp(0, 1)


def compose(inputs: Float[Tensor, "B C H W"], out: Float[Tensor, "B O H W"]) -> Refined:
    """Colours from the known ones: base + shift (fused - render) + swap (best - fused) + residual.

    Args:
        inputs: From `refiner_inputs`.
        out: `OUTPUTS` maps of a network, unbounded; all zero returns the base.
    """
    render, fused, best = inputs[:, RENDER], inputs[:, FUSED], inputs[:, BEST]
    seen = inputs[:, SEEN : SEEN + 1]
    shift, swap = (torch.tanh(out[:, 3:5]) * seen).split(1, dim=1)
    residual = MAX_RESIDUAL * torch.tanh(out[:, :3])
    rgb = reprojected(inputs) + shift * (fused - render) + swap * (best - fused) + residual
    error = ERROR_SCALE * functional.softplus(out[:, 5] - 0.5) + 1e-3
    return Refined(rgb.clamp(0, 1), error, residual.detach().abs().amax(1))
