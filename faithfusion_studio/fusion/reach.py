"""Which Gaussians a distillation may move: those that a replayed frame shows best, and no others.

A repaired view looks far down the road, where it shows in a few pixels what later frames were
trained on from close by. Nothing replayed keeps that right, and Adam steps as far on a faint gradient
as on a clear one; left free, 200 steps on four frames cost the far end of the shipped street 10 dB.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithfusion_studio.cameras import Camera

NEAREST = 0.05
"""m; what is nearer to a camera is not drawn by it."""


def shown_best_elsewhere(
    means: Float[Tensor, "N 3"], cameras: Sequence[Camera], near: Collection[int]
) -> Bool[Tensor, "N"]:
    """Gaussians whose closest recorded view is not one of `near`.

    Args:
        means: Centres, world, m.
        cameras: Of all recorded frames.
        near: Indices of the frames around the repaired ones.

    Returns:
        True where the recorded camera with the centre in its picture and least depth is another one;
        False where no camera has it in its picture.
    """
    least = torch.full((len(means),), torch.inf, device=means.device)
    elsewhere = torch.zeros(len(means), dtype=torch.bool, device=means.device)
    for index, camera in enumerate(cameras):
        view = camera.viewmat.to(means)
        x, y, depth = (means @ view[:3, :3].T + view[:3, 3]).unbind(-1)
        K = camera.K.to(means)
        column, row = K[0, 0] * x / depth + K[0, 2], K[1, 1] * y / depth + K[1, 2]
        inside = (column >= 0) & (column <= camera.width) & (row >= 0) & (row <= camera.height)
        closer = inside & (depth > NEAREST) & (depth < least)
        least = torch.where(closer, depth, least)
        elsewhere = torch.where(closer, index not in near, elsewhere)
    return elsewhere
