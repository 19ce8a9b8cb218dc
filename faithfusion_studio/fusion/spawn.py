"""New Gaussians where a repaired pixel shows a surface that no splat stands on (content expansion).

Source: GenFusion (2025), section on content expansion (unreliable = transparent or depth disagrees), with
sizes from the pixel footprint and a cap instead of its random tenth of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.gaussians import Gaussians, Provenance, concatenate, empty_gaussians
from faithfusion_studio.transforms import rgb_to_sh0

STRIDE = 3
"""Pixels between candidates; a new Gaussian covers about this many."""
MIN_CONFIDENCE = 0.5
MIN_ALPHA = 0.5
FREE_SPACE = 0.04
"""A point this share of the depth before a recorded surface stands in space that was seen to be empty."""
MAX_DEPTH = 80.0
"""Farther surfaces move too little between lanes to need new splats, m."""


@dataclass(frozen=True)
class EmptyRule:
    """Which repaired pixels have nothing behind them, and what may be put there."""

    transparent: float = 0.5
    """A pixel is empty where its render is less opaque than this, 0..1."""
    apart: float = 0.1
    """A pixel is empty where rendered and repaired depth differ by more than this share."""
    agreeing: int = 0
    """Other repaired frames that must see a surface at the same place."""


@dataclass(frozen=True, eq=False)
class SeenSurface:
    """What a recorded view already sees, so that nothing is put before it."""

    camera: Camera
    depth: Float32[Tensor, "H W"]
    alpha: Float32[Tensor, "H W"]


def spawn_gaussians(
    frames: Sequence[RepairedFrame],
    seen: Sequence[SeenSurface],
    sh_degree: int,
    limit: int,
    generator: torch.Generator,
    rule: EmptyRule | None = None,
) -> Gaussians:
    """Gaussians on repaired, confident pixels, thinned to at most `limit` over all frames.

    Args:
        frames: Repaired frames with depth.
        seen: Recorded views; a candidate that would stand before what one of them sees is dropped.
        sh_degree: Bands to allocate (zero).
        limit: At most this many.
        generator: Of the random choice.
        rule: Which pixels are empty.
    """
    if limit <= 0:
        return empty_gaussians(sh_degree)
    rule = rule or EmptyRule()
    chosen = frames[:: max(1, len(frames) // 8)]
    parts = [_from_frame(frame, sh_degree, rule, chosen) for frame in chosen]
    spawned = concatenate(parts)
    for surface in seen:
        spawned = spawned.select(~_blocks(surface, spawned.means))
    if len(spawned) > limit:
        spawned = spawned.select(torch.randperm(len(spawned), generator=generator)[:limit])
    return spawned


def _blocks(surface: SeenSurface, means: Tensor) -> Bool[Tensor, "M"]:
    """True for points in space that a recorded view looks through."""
    pixels, z, inside = project_points(surface.camera, means)
    solid = surface.alpha.reshape(-1)[pixels] > MIN_ALPHA
    before = z < (1 - FREE_SPACE) * surface.depth.reshape(-1)[pixels]
    return inside & (before | ~solid)


def project_points(camera: Camera, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat pixel (clamped to the image), depth along z, and whether each point falls into the image."""
    view, K = camera.viewmat.to(torch.float32), camera.K.to(torch.float32)
    local = means @ view[:3, :3].T + view[:3, 3]
    z = local[:, 2]
    safe = z.clamp(min=1e-3)
    u = (K[0, 0] * local[:, 0] / safe + K[0, 2]).clamp(-1, camera.width).floor().long()
    v = (K[1, 1] * local[:, 1] / safe + K[1, 2]).clamp(-1, camera.height).floor().long()
    inside = (z > 0.2) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    u, v = u.clamp(0, camera.width - 1), v.clamp(0, camera.height - 1)
    return v * camera.width + u, z, inside


def _from_frame(
    frame: RepairedFrame, sh_degree: int, rule: EmptyRule, others: Sequence[RepairedFrame]
) -> Gaussians:
    usable = (
        empty_pixels(frame, rule)
        & (frame.pixel_provenance > 0)
        & (frame.confidence > MIN_CONFIDENCE)
        & (frame.depth > 0.5)
        & (frame.depth < MAX_DEPTH)
    )
    grid = torch.zeros_like(usable)
    grid[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE] = True
    row, column = (usable & grid).nonzero(as_tuple=True)
    if not len(row):
        return empty_gaussians(sh_degree)
    depth = frame.depth[row, column]
    means = _lift(frame, row, column, depth)
    if rule.agreeing:
        votes = sum(_sees(other, means).long() for other in others if other is not frame)
        kept = torch.as_tensor(votes) >= rule.agreeing
        kept = kept.expand(len(means))
        row, column, depth, means = row[kept], column[kept], depth[kept], means[kept]
    size = (STRIDE / 2) * depth / float(frame.camera.K[0, 0])
    return Gaussians(
        means=means,
        log_scales=size.log()[:, None].repeat(1, 3),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(len(row), 1),
        logit_opacities=torch.full((len(row),), -1.4),
        sh0=rgb_to_sh0(frame.repaired[row, column])[:, None, :],
        shN=torch.zeros(len(row), (sh_degree + 1) ** 2 - 1, 3),
        provenance=torch.full((len(row),), int(Provenance.REPAIRED), dtype=torch.uint8),
    )


def empty_pixels(frame: RepairedFrame, rule: EmptyRule) -> Bool[Tensor, "H W"]:
    """Pixels whose repaired surface no splat stands on: transparent, or rendered at another depth; never those of a
    moving object, at whose place the background is empty at other times."""
    apart = (frame.rendered_depth - frame.depth).abs() > rule.apart * frame.depth
    empty = frame.ucr & ((frame.alpha < rule.transparent) | apart)
    return empty if frame.moving is None else empty & ~frame.moving


def _sees(frame: RepairedFrame, means: Tensor) -> Bool[Tensor, "M"]:
    """True for points at which a repaired frame has its surface too."""
    pixels, z, inside = project_points(frame.camera, means)
    depth = frame.depth.reshape(-1)[pixels]
    return inside & ((z - depth).abs() < FREE_SPACE * depth)


def _lift(
    frame: RepairedFrame, row: Tensor, column: Tensor, depth: Tensor
) -> Float32[Tensor, "M 3"]:
    K, pose = frame.camera.K.to(torch.float32), frame.camera.camtoworld.to(torch.float32)
    x = (column + 0.5 - K[0, 2]) / K[0, 0] * depth
    y = (row + 0.5 - K[1, 2]) / K[1, 1] * depth
    return torch.stack([x, y, depth], -1) @ pose[:3, :3].T + pose[:3, 3]
