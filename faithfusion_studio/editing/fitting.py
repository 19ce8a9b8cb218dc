"""Gaussians of any frame and unit, upright, scaled as a whole and set on the floor of a box."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.editing.rows import EditError
from faithfusion_studio.gaussians import Gaussians

Up = Literal["+x", "-x", "+y", "-y", "+z", "-z"]
SOLID = 0.1
"""Gaussians below this opacity do not say how large a thing is."""
STRAY = 0.005
"""Share of Gaussians at each end of an axis that may be strays and do not say it either."""
_TO_UPRIGHT = {
    "+x": ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "-x": ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    "+y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "-y": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "+z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "-z": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
}
"""Rotation that brings an axis to +z, row by row."""


def fitted(
    gaussians: Gaussians, size: Float[Tensor, "3"], *, up: Up = "+z", turn: float = 0.0
) -> Gaussians:
    """Bring Gaussians into the frame of a box.

    They are turned so that `up` is z and their longer horizontal side lies along the box's, turned on
    by `turn`, scaled by the one factor that makes them just fit, and set on the middle of its floor.
    Colours turn with them.

    Args:
        gaussians: In any frame and unit.
        size: Length, width, height of the box, m; origin at its centre.
        up: Which of their axes points up.
        turn: About the up axis, rad, counter-clockwise from above.

    Raises:
        EditError: There are no Gaussians, or they have no extent.
    """
    if len(gaussians) == 0:
        raise EditError("the file holds no splats; choose another one.")
    upright = torch.tensor(_TO_UPRIGHT[up], dtype=torch.float32)
    low, high = extent(gaussians.means.cpu() @ upright.T, gaussians.opacities.cpu())
    longer = bool(high[0] - low[0] >= high[1] - low[1]) == bool(size[0] >= size[1])
    rotation = _about_z(turn + (0.0 if longer else math.pi / 2)) @ upright
    low, high = extent(gaussians.means.cpu() @ rotation.T, gaussians.opacities.cpu())
    span = (high - low).clamp(min=0)
    if not bool(torch.isfinite(span).all()) or float(span.max()) <= 0:
        raise EditError("all splats of the file lie at one point, so they cannot be fitted.")
    scale = float((size.cpu() / span.clamp(min=1e-9)).min())
    middle = torch.stack([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    floor = torch.tensor([0.0, 0.0, -float(size[2]) / 2])
    pose = torch.eye(4)
    pose[:3, :3] = rotation
    turned = gaussians.transformed(pose, turn_colors=True)
    shift = (floor - scale * middle).to(turned.means)
    return replace(
        turned,
        means=scale * turned.means + shift,
        log_scales=turned.log_scales + math.log(scale),
    )


def extent(
    means: Float[Tensor, "N 3"], opacities: Float[Tensor, "N"]
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Lower and upper corner of what is solid, without strays."""
    solid = means[opacities >= SOLID]
    ordered = (solid if len(solid) else means).sort(dim=0).values
    stray = int(STRAY * len(ordered))
    return ordered[stray], ordered[len(ordered) - 1 - stray]


def _about_z(angle: float) -> Float[Tensor, "3 3"]:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
