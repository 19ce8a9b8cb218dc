"""Attention over time along the paths of surface points: what steadies the refiner from frame to frame.

A token is a place at half resolution. It attends to itself and to the same surface point in up to seven
neighbouring frames, which consensus depth and cameras find there; frames that do not see the point (out of
the picture, hidden, of something that moves) take no part. The window slides: a frame depends on `BEHIND`
frames before it and `AHEAD` after it and on nothing else, so a long clip has no seams.

What is added is a mean of differences to the frame's own values, through projections that start at zero:
before training, and for a frame without neighbours at any time, the block changes nothing.

Symbols: B clips; S neighbours; C features; d channels of keys; h = H/2, w = W/2; rho inverse depth, 1/m.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from faithfusion_studio.transforms import invert_rigid

BEHIND, AHEAD = 4, 3
"""Neighbours before and after a frame; with itself eight frames."""
HEADS, HEAD_WIDTH = 2, 8
COLOR_STEP, DEPTH_STEP = 0.05, 0.05
"""Difference of colours, and relative difference of inverse depths, that count as one unit of unlikeness."""
MAX_UNLIKENESS = 6.0
FARTHEST = 1e-3
"""Inverse depths below it are all the same, 1/m."""
NEVER = -1e4
"""Logit of a neighbour that does not see the point."""


class View(NamedTuple):
    """Where frames were seen from."""

    intrinsics: Float[Tensor, "*B 3 3"]
    """Pixels, centres at +0.5; float64."""
    camtoworld: Float[Tensor, "*B 4 4"]
    """OpenCV axes, m; float64."""


class FrameState(NamedTuple):
    """What a frame is before its neighbours speak."""

    features: Float[Tensor, "B C h w"]
    """At half resolution; h and w may be larger than the picture needs."""
    colors: Float[Tensor, "B 4 H W"]
    """RGB of the frame refined alone, and how much of it no camera saw."""
    inverse_depth: Float[Tensor, "B 1 H W"]
    """Of the surface the colours belong to, 1/m; 0 is the sky."""
    still: Float[Tensor, "B 1 H W"]
    """1 where nothing moves, else 0."""
    view: View


class Told(NamedTuple):
    """What one frame tells the others."""

    state: FrameState
    maps: Float[Tensor, "B M h w"]
    """Keys, values, colours, inverse depth and stillness."""


class Attended(NamedTuple):
    """What the neighbours say about a frame."""

    change: Float[Tensor, "B C h w"]
    """Of its features."""
    amount: Float[Tensor, "B 1 H W"]
    """How far to move along `drift`, in (-1, 1)."""
    drift: Float[Tensor, "B 4 H W"]
    """Mean difference of the neighbours' colours to its own, by attention."""


class TemporalAttention(nn.Module):
    """The block; it starts as the identity.

    Args:
        width: C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_WIDTH
        self.query, self.key, self.value = (
            nn.Conv2d(width, inner, 1, bias=False) for _ in range(3)
        )
        self.sharpness = nn.Parameter(torch.full((HEADS,), 2.0))
        self.when = nn.Parameter(torch.zeros(HEADS, BEHIND + 1 + AHEAD))
        self.unlike = nn.Parameter(torch.zeros(HEADS, 2))
        self.leave = nn.Conv2d(inner, width, 1, bias=False)
        self.judge = nn.Conv2d(width + inner + 2, width, 3, padding=1)
        self.amount = nn.Conv2d(width, 4, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.amount.weight)
        assert self.amount.bias is not None
        nn.init.zeros_(self.amount.bias)

    def tell(self, state: FrameState) -> Told:
        """What a frame tells the others, made once however many ask."""
        x = state.features
        key = functional.normalize(self.key(x).unflatten(1, (HEADS, -1)), dim=2).flatten(1, 2)
        coarse = torch.cat([state.colors[:, :3], state.inverse_depth, state.still], 1)
        return Told(state, torch.cat([key, self.value(x), _halved(coarse, x)], 1))

    def forward(self, own: Told, others: Sequence[tuple[int, Told]]) -> Attended:
        """What neighbours make of a frame.

        Args:
            own: The frame.
            others: Neighbours with their places in time relative to it, -`BEHIND` to `AHEAD`, not 0;
                at least one.
        """
        state, maps = own
        batch, _, height, width = state.colors.shape
        count = len(others)
        paths = Paths.between(state.view, [other.state.view for _, other in others])
        inverse = maps[:, -2:-1]
        pixels, nearness = paths.follow(inverse, step=2)
        seen = fetch(torch.cat([other.maps for _, other in others]), pixels, step=2)
        seen = seen.unflatten(0, (count, batch))
        nearness = nearness.unflatten(0, (count, batch))
        inside = inside_picture(pixels, height, width).unflatten(0, (count, batch)) & (nearness > 0)
        usable = inside & (seen[:, :, -1:] > 0.999) & (maps[:, -1:] > 0.999)
        apart = (seen[:, :, -5:-2] - maps[:, -5:-2]).abs().mean(2, keepdim=True) / COLOR_STEP
        ratio = (seen[:, :, -2:-1] * nearness + FARTHEST) / (inverse + FARTHEST)
        unlike = torch.cat([apart, (ratio - 1).abs() / DEPTH_STEP], 2).clamp(max=MAX_UNLIKENESS)

        weights = self._weights(state, maps, seen, unlike, usable, [dt for dt, _ in others])
        inner = HEADS * HEAD_WIDTH
        gap = (seen[:, :, inner : 2 * inner] - maps[:, inner : 2 * inner]).unflatten(2, (HEADS, -1))
        delta = (weights[:, :, :, None] * gap).sum(0).flatten(1, 2)
        shares = weights.mean(2, keepdim=True)
        told = torch.cat([shares.sum(0), (shares * apart.clamp(max=MAX_UNLIKENESS)).sum(0)], 1)
        judged = functional.relu(self.judge(torch.cat([state.features, delta, told], 1)))
        amount = functional.pixel_shuffle(torch.tanh(self.amount(judged)), 2)

        fine, _ = paths.follow(state.inverse_depth, step=1)
        fetched = fetch(torch.cat([other.state.colors for _, other in others]), fine, step=1)
        shares = functional.interpolate(shares.flatten(0, 1), scale_factor=2.0, mode="nearest")
        shares = shares[..., :height, :width].unflatten(0, (count, batch))
        drift = (shares * (fetched.unflatten(0, (count, batch)) - state.colors)).sum(0)
        return Attended(self.leave(delta), amount[..., :height, :width], drift)

    def _weights(
        self,
        own: FrameState,
        maps: Tensor,
        seen: Tensor,
        unlike: Tensor,
        usable: Tensor,
        times: Sequence[int],
    ) -> Tensor:
        """Attention to the neighbours [S, B, heads, h, w]; what is missing to one stays with the frame."""
        inner = HEADS * HEAD_WIDTH
        query = functional.normalize(self.query(own.features).unflatten(1, (HEADS, -1)), dim=2)
        keys = torch.cat([maps[None, :, :inner], seen[:, :, :inner]]).unflatten(2, (HEADS, -1))
        logits = self.sharpness[:, None, None] * (query * keys).sum(3)
        places = [BEHIND, *(BEHIND + dt for dt in times)]
        logits = logits + self.when[:, places].T[:, None, :, None, None]
        cost = (self.unlike.exp()[:, :, None, None] * unlike[:, :, None]).sum(3)
        others = torch.where(usable, logits[1:] - cost, NEVER)
        return torch.cat([logits[:1], others]).softmax(0)[1:]


class Paths(NamedTuple):
    """p = turn (x, y, 1) + move rho: a pixel with its inverse depth in another camera, homogeneous."""

    turn: Float[Tensor, "N 3 3"]
    move: Float[Tensor, "N 3"]

    @classmethod
    def between(cls, own: View, others: Sequence[View]) -> Paths:
        """From the frames of `own` to each of `others`; neighbours first, then clips."""
        lift = torch.linalg.inv(own.intrinsics.double())
        turns, moves = [], []
        for other in others:
            motion = invert_rigid(other.camtoworld.double()) @ own.camtoworld.double()
            turns.append(other.intrinsics.double() @ motion[:, :3, :3] @ lift)
            moves.append((other.intrinsics.double() @ motion[:, :3, 3:])[..., 0])
        return cls(torch.cat(turns).float(), torch.cat(moves).float())

    def follow(self, inverse_depth: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Pixels [N, h, w, 2] in the other cameras, and depth there over depth here [N, 1, h, w].

        Args:
            inverse_depth: Of the frames, [B, 1, h, w], 1/m.
            step: Pixels between two places.
        """
        device = inverse_depth.device
        height, width = inverse_depth.shape[-2:]
        x = (torch.arange(width, device=device) + 0.5) * step
        y = (torch.arange(height, device=device) + 0.5) * step
        turn, move = self.turn.to(device), self.move.to(device)
        across = turn[:, :, 0, None] * x
        down = turn[:, :, 1, None] * y + turn[:, :, 2, None]
        count = len(turn) // len(inverse_depth)
        rho = inverse_depth[:, 0].repeat(count, 1, 1)[:, None]
        p = across[:, :, None] + down[..., None] + move[:, :, None, None] * rho
        z = p[:, 2:]
        return (p[:, :2] / z.clamp(min=1e-3)).permute(0, 2, 3, 1), z


def inside_picture(pixels: Tensor, height: int, width: int) -> Tensor:
    """Which pixels [N, h, w, 2] lie between the outermost pixel centres, as [N, 1, h, w]."""
    limits = pixels.new_tensor([width, height])
    return ((pixels >= 0.5) & (pixels <= limits - 0.5)).all(-1)[:, None]


def fetch(images: Tensor, pixels: Tensor, step: int) -> Tensor:
    """Bilinear lookup at pixels of images whose places are `step` pixels apart; the border is repeated."""
    height, width = images.shape[-2:]
    grid = pixels / pixels.new_tensor([width * step / 2, height * step / 2]) - 1
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def _halved(maps: Tensor, features: Tensor) -> Tensor:
    """Maps at the resolution of the features."""
    height, width = features.shape[-2:]
    pad = (0, 2 * width - maps.shape[-1], 0, 2 * height - maps.shape[-2])
    return functional.avg_pool2d(functional.pad(maps, pad, mode="replicate"), 2)
