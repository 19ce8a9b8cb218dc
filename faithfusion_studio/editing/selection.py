"""Which Gaussians a person means: by a box in the world, a shape on the screen, or a range of a number.

Every selection is a mask over the rows of the scene (background first, then the nodes in order).
Hidden objects, and objects that are not there at the time, are never selected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.editing.quantities import Quantity, in_range, values_of
from faithfusion_studio.editing.rows import EditError, node_index, node_rows
from faithfusion_studio.render.views import ViewOptions, gather_pixels, rasterize_view
from faithfusion_studio.scene import Scene

SEEN = 0.1
"""A Gaussian is seen where this share of its light reaches the camera."""
BACKGROUND, EVERYTHING = "background", "everything"
"""What a selection may be limited to, besides the name of an object."""


# --------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Box:
    """An upright box in the world."""

    center: tuple[float, float, float]
    """World, m."""
    size: tuple[float, float, float]
    """Along its own x, y, z, m."""
    yaw: float = 0.0
    """Turn about z, rad, counter-clockwise from above."""

    def contains(self, points: Float[Tensor, "*B 3"]) -> Bool[Tensor, "*B"]:
        """Whether points of the world are inside or on its faces."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        x, y, z = (points - points.new_tensor(self.center)).unbind(-1)
        own = torch.stack([c * x + s * y, c * y - s * x, z], -1)
        return (own.abs() <= points.new_tensor(self.size) / 2).all(-1)


@runtime_checkable
class ScreenShape(Protocol):
    """A part of a picture."""

    def contains(self, points: Float[Tensor, "*B 2"]) -> Bool[Tensor, "*B"]:
        """Whether places of the picture (column, row; pixels) are in it."""
        ...


@dataclass(frozen=True)
class Rectangle:
    """Between two corners of a picture."""

    corner: tuple[float, float]
    """Column and row, pixels."""
    opposite: tuple[float, float]

    def contains(self, points: Float[Tensor, "*B 2"]) -> Bool[Tensor, "*B"]:
        """Inside or on the border."""
        corners = points.new_tensor([self.corner, self.opposite])
        low, high = corners.amin(0), corners.amax(0)
        return ((points >= low) & (points <= high)).all(-1)


@dataclass(frozen=True)
class Stroke:
    """What a round brush touches on its way over a picture."""

    points: tuple[tuple[float, float], ...]
    """Column and row, pixels; one is a disc."""
    radius: float
    """Pixels."""

    def contains(self, points: Float[Tensor, "*B 2"]) -> Bool[Tensor, "*B"]:
        """Within the radius of the broken line through `points`."""
        way = points.new_tensor(self.points)
        starts, ends = (way, way) if len(way) == 1 else (way[:-1], way[1:])
        inside = torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)
        for start, end in zip(starts, ends, strict=True):
            along = end - start
            share = ((points - start) @ along) / along.square().sum().clamp(min=1e-12)
            nearest = start + share.clamp(0, 1)[..., None] * along
            inside |= (points - nearest).square().sum(-1) <= self.radius**2
        return inside


# ----------------------------------------------------------------------------------- selections


def in_box(scene: Scene, box: Box, time: float) -> Bool[Tensor, "N"]:
    """Gaussians whose centre is in a box of the world at a time (s)."""
    if not all(math.isfinite(v) for v in (*box.center, *box.size, box.yaw)) or min(box.size) <= 0:
        raise EditError("a box needs three finite coordinates and three sizes above 0 m.")
    world = scene.at(time)
    return _by_rows(scene, world.rows, box.contains(world.gaussians.means))


def in_shape(
    scene: Scene, camera: Camera, shape: ScreenShape, *, seen_only: bool = False
) -> Bool[Tensor, "N"]:
    """Gaussians whose centre is seen in a part of a picture.

    Args:
        scene: At `camera.time`.
        camera: Whose picture it is, in its pixels.
        shape: The part of it.
        seen_only: Leave out what is behind other things: where less than a tenth of the light that a
            Gaussian would send alone reaches the camera.
    """
    with torch.no_grad():
        world = scene.at(camera.time)
        means = world.gaussians.means
        viewmat, K = camera.viewmat.to(means), camera.K.to(means)
        x, y, depth = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).unbind(-1)
        place = torch.stack([K[0, 0] * x / depth + K[0, 2], K[1, 1] * y / depth + K[1, 2]], -1)
        frame = Rectangle((0.0, 0.0), (float(camera.width), float(camera.height)))
        chosen = (depth > ViewOptions().near_plane) & frame.contains(place) & shape.contains(place)
        if seen_only and bool(chosen.any()):
            chosen &= reaching_light(scene, camera) >= SEEN
    return _by_rows(scene, world.rows, chosen)


def reaching_light(scene: Scene, camera: Camera) -> Float[Tensor, "M"]:
    """Share of each placed Gaussian's light that reaches a camera, about 0 (hidden) to 1.

    Its blending weights summed over the picture, over what they would sum to if it were alone:
    opacity * 2 pi * sqrt(det cov2d).
    """
    view = rasterize_view(scene, camera, ViewOptions(depth=False, sky=False))
    ones = torch.ones(camera.height, camera.width, 1, device=view.alpha.device)
    filled = gather_pixels(view, camera, ones)[:, 0]
    xx, xy, yy = view.meta.conics[0].unbind(-1)
    alone = view.meta.opacities[0] * 2 * math.pi * (xx * yy - xy * xy).clamp(min=1e-12).rsqrt()
    drawn = (view.meta.radii[0] > 0).all(-1)
    return torch.where(drawn, filled / alone.clamp(min=1e-9), 0.0)


def by_value(scene: Scene, quantity: Quantity, low: float, high: float) -> Bool[Tensor, "N"]:
    """Gaussians of shown objects and the background whose number lies in [low, high].

    Raises:
        EditError: The range is not one.
        MissingFisherError: "evidence" of a scene without any.
    """
    if not low <= high:
        raise EditError(f"the range from {low:g} to {high:g} is empty; give the smaller end first.")
    return in_range(values_of(scene, quantity), low, high).cpu() & limited_to(scene, EVERYTHING)


def limited_to(scene: Scene, target: str) -> Bool[Tensor, "N"]:
    """Rows of "background", of one object, or of "everything" that is shown.

    Raises:
        EditError: No such object.
    """
    mask = torch.zeros(scene.num_gaussians, dtype=torch.bool)
    if target in (BACKGROUND, EVERYTHING):
        mask[: len(scene.background)] = True
    only = None if target in (BACKGROUND, EVERYTHING) else node_index(scene, target)
    for index, rows in enumerate(node_rows(scene)):
        if target == EVERYTHING or index == only:
            mask[rows.start : rows.stop] = not scene.nodes[index].hidden
    return mask


def _by_rows(scene: Scene, rows: Tensor | None, chosen: Tensor) -> Bool[Tensor, "N"]:
    """A mask over placed Gaussians as one over the rows of the scene, on the CPU."""
    if rows is None:
        return chosen.cpu()
    mask = torch.zeros(scene.num_gaussians, dtype=torch.bool)
    mask[rows.cpu()] = chosen.cpu()
    return mask


def combined(current: Bool[Tensor, "N"], more: Bool[Tensor, "N"], how: str) -> Bool[Tensor, "N"]:
    """A selection changed by another one: "new", "add" to it, or "remove" from it.

    Raises:
        EditError: Another word.
    """
    ways = {"new": more, "add": current | more, "remove": current & ~more}
    if how not in ways:
        raise EditError(f"found {how!r}; a selection is new, or adds, or removes.")
    return ways[how]
