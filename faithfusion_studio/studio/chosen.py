"""The splats one client has selected, and what was drawn over the picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from jaxtyping import Bool, Int
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.scene import Scene


@dataclass(frozen=True, eq=False)
class Chosen:
    """Selected splats of a scene; two selections are the same only if they are one value."""

    scene: Scene
    """Whose rows they are."""
    mask: Bool[Tensor, "N"]
    """By rows of the scene."""

    @cached_property
    def rows(self) -> Int[Tensor, "M"]:
        """Rows that are selected."""
        return self.mask.nonzero()[:, 0]

    def fits(self, scene: Scene) -> bool:
        """Whether the rows mean the same splats in another scene: nothing was added, removed or learned."""
        mine = (self.scene.background, *(node.gaussians for node in self.scene.nodes))
        other = (scene.background, *(node.gaussians for node in scene.nodes))
        return len(mine) == len(other) and all(a is b for a, b in zip(mine, other, strict=True))

    def words(self) -> str:
        """How many, and of what."""
        parts, start = [], 0
        named = [("background", len(self.scene.background))]
        named += [(node.name, len(node.gaussians)) for node in self.scene.nodes]
        for name, count in named:
            here = int(self.mask[start : start + count].sum())
            start += count
            if here:
                parts.append(f"{name} {here:,}")
        total = f"{len(self.rows):,} of {len(self.mask):,} splats selected"
        return f"{total}: {', '.join(parts)}" if parts else "No splats are selected."


@dataclass(frozen=True)
class Drawn:
    """A gesture on the picture."""

    kind: Literal["rectangle", "stroke", "place"]
    points: tuple[tuple[float, float], ...]
    """Two corners, the way of the pointer (a click is one place), or one place; pixels of `camera`."""
    camera: Camera
    """What the client looked through."""
