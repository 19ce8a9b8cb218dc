"""The side of a vehicle that nobody saw, mirrored from the one that was seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.meters import spread
from faithfusion_studio.fusion.spawn import SeenSurface, project_points
from faithfusion_studio.gaussians import Gaussians, Provenance, concatenate
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import Scene
from faithfusion_studio.transforms import quat_to_rotmat

BARE = 0.2
"""A place farther than this from every Gaussian of a vehicle is bare, m."""
VIEWS = 12
"""Recorded views that are asked whether they see the place of a copy."""
WIDTH = 320
"""They are drawn at most this wide, pixels."""
BEHIND = 0.05
"""A copy is hidden where it is this far behind what a view sees, m."""
REACH = 2.0
"""Standard deviations of a copy that have to be hidden with its centre."""


def completed(scene: Scene, cameras: Sequence[Camera]) -> Scene:
    """A scene whose vehicles show, on the side that nobody saw, the other one in a mirror.

    A copy whose place a recorded view sees is left out: that view shows what is there, which is the
    truth about this vehicle, symmetric or not.

    Args:
        scene: With the vehicles as they were learned.
        cameras: Of the recorded views, at the size they were learned at.
    """
    copies = [mirrored(node) for node in scene.nodes]
    if not any(copy is not None for copy in copies):
        return scene
    seen = list(_surfaces(scene, cameras))
    nodes = [
        node if copy is None else _with(node, copy, seen)
        for node, copy in zip(scene.nodes, copies, strict=True)
    ]
    return replace(scene, nodes=tuple(nodes))


def mirrored(node: RigidNode) -> Gaussians | None:
    """The other side of a vehicle in a mirror, where its own is bare, marked as completed; None without any.

    A Gaussian is mirrored about the plane of length and height where none is within `BARE` of its image. Its
    rotation (w, x, y, z) becomes (w, -x, y, -z), and the SH coefficients of order m < 0, odd in y, change sign.
    """
    g = node.gaussians
    if not len(g):
        return None
    mirror = torch.tensor([1.0, -1.0, 1.0], device=g.means.device)
    nearest = np.concatenate(
        [
            (part[:, None] - g.means[None]).norm(dim=2).amin(1).cpu().numpy()
            for part in (g.means * mirror).split(512)
        ]
    )
    rows = torch.from_numpy(nearest > BARE).to(g.means.device).nonzero().squeeze(1)
    copy = g.select(rows)
    odd = [i for i in range(1, (g.sh_degree + 1) ** 2) if i - math.isqrt(i) ** 2 < math.isqrt(i)]
    flips = torch.ones(copy.shN.shape[1], 1, device=g.means.device)
    flips[[i - 1 for i in odd]] = -1
    copy = replace(
        copy,
        means=copy.means * mirror,
        quats=copy.quats * torch.tensor([1.0, -1.0, 1.0, -1.0], device=g.means.device),
        shN=copy.shN * flips,
        provenance=torch.full_like(copy.provenance, Provenance.COMPLETED),
    )
    return copy if len(copy) else None


def _surfaces(scene: Scene, cameras: Sequence[Camera]) -> Iterable[SeenSurface]:
    """What some of the recorded views see of the scene as it is."""
    from faithfusion_studio.render.views import render_view

    for index in spread(len(cameras), VIEWS):
        camera = cameras[index].scaled(min(1.0, WIDTH / cameras[index].width))
        view = render_view(scene, camera)
        yield SeenSurface(camera, view.depth.cpu(), view.alpha.cpu())


def _with(node: RigidNode, copy: Gaussians, seen: Sequence[SeenSurface]) -> RigidNode:
    """A vehicle with those copies that every view either has outside of its picture or behind something."""
    hidden = torch.ones(len(copy), dtype=torch.bool)
    for surface in seen:
        placed = replace(node, gaussians=copy, motion=None).placed_at(surface.camera.time)
        if placed is not None:
            hidden &= _unseen(surface, placed)
    return replace(
        node, gaussians=concatenate([node.gaussians, copy.select(hidden.to(copy.means.device))])
    )


def _unseen(surface: SeenSurface, placed: Gaussians) -> Bool[Tensor, "N"]:
    """Gaussians of which a view sees neither the centre nor the ends of the axes."""
    axes = REACH * placed.scales[:, None, :] * quat_to_rotmat(placed.quats)  # columns
    points = torch.cat(
        [placed.means[..., None], placed.means[..., None] + axes, placed.means[..., None] - axes], 2
    )
    count, ends = len(placed), points.shape[2]
    pixels, z, inside = project_points(surface.camera, points.transpose(1, 2).reshape(-1, 3).cpu())
    solid = surface.alpha.reshape(-1)[pixels] > 0.5
    behind = solid & (z > surface.depth.reshape(-1)[pixels] + BEHIND)
    return (~inside | behind).reshape(count, ends).all(1)
