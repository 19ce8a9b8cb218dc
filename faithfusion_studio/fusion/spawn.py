"""New Gaussians where a repaired pixel shows a surface that no splat stands on (content expansion).

Source: GenFusion (2025), section on content expansion (unreliable = transparent or depth disagrees), with
sizes from the pixel footprint and a cap instead of its random tenth of the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.gaussians import Gaussians, Provenance, concatenate, empty_gaussians
from faithfusion_studio.transforms import rgb_to_sh0

STRIDE = 3
"""Pixels between candidates; a new Gaussian covers about this many."""
MIN_CONFIDENCE = 0.5
MAX_DEPTH = 80.0
"""Farther surfaces move too little between lanes to need new splats, m."""


def spawn_gaussians(
    frames: Sequence[RepairedFrame], sh_degree: int, limit: int, generator: torch.Generator
) -> Gaussians:
    """Gaussians on repaired, confident pixels, thinned to at most `limit` over all frames.

    Args:
        frames: Repaired frames with depth.
        sh_degree: Bands to allocate (zero).
        limit: At most this many.
        generator: Of the random choice.
    """
    if limit <= 0:
        return empty_gaussians(sh_degree)
    parts = [_from_frame(frame, sh_degree) for frame in frames[:: max(1, len(frames) // 8)]]
    spawned = concatenate(parts)
    if len(spawned) > limit:
        spawned = spawned.select(torch.randperm(len(spawned), generator=generator)[:limit])
    return spawned


def _from_frame(frame: RepairedFrame, sh_degree: int) -> Gaussians:
    usable = (
        frame.ucr
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


def _lift(
    frame: RepairedFrame, row: Tensor, column: Tensor, depth: Tensor
) -> Float32[Tensor, "M 3"]:
    K, pose = frame.camera.K.to(torch.float32), frame.camera.camtoworld.to(torch.float32)
    x = (column + 0.5 - K[0, 2]) / K[0, 0] * depth
    y = (row + 0.5 - K[1, 2]) / K[1, 1] * depth
    return torch.stack([x, y, depth], -1) @ pose[:3, :3].T + pose[:3, 3]
