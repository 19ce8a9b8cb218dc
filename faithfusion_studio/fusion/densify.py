"""Grow and prune by image-plane gradients, as a change of rows that any sidecar can follow.

Source: Kerbl et al. 2023, section 5.2, with the absolute gradients of AbsGS (Ye et al. 2024) in the form
of gsplat's DefaultStrategy (gradients in units of half the image size). Opacity is never reset: on short
CPU schedules a reset costs more than the floaters it removes; the opacity term of the loss does that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Bool, Float32, Int32, Int64
from torch import Tensor

from faithfusion_studio.fusion.parameters import GaussianParameters
from faithfusion_studio.gaussians import TopologyChange
from faithfusion_studio.render.learning import observe_rows
from faithfusion_studio.transforms import quat_to_rotmat

if TYPE_CHECKING:
    from faithfusion_studio.render.rasterization import RasterizationMeta


@dataclass(eq=False)
class DensifyState:
    """Running statistics since the last change."""

    gradient: Float32[Tensor, "N"]
    """Sum of absolute image-plane gradients, per half image size."""
    count: Int32[Tensor, "N"]
    """Views the row was seen in."""
    radius: Float32[Tensor, "N"]
    """Largest radius on screen over the image width, since the last change."""


class DensifyPolicy(Protocol):
    """When and how rows are added and removed."""

    def observe(self, meta: RasterizationMeta, state: DensifyState) -> None:
        """Take in the statistics of one backward pass."""
        ...

    def update(
        self, parameters: GaussianParameters, state: DensifyState, generator: torch.Generator
    ) -> TopologyChange | None:
        """Apply one change of rows to the parameters and return it; None where nothing changed."""
        ...


def initial_state(count: int, device: torch.device | str = "cpu") -> DensifyState:
    """Statistics of nothing seen yet."""
    zeros = torch.zeros(count, device=device)
    return DensifyState(zeros, zeros.to(torch.int32), zeros.clone())


@dataclass(frozen=True)
class GradientDensify:
    """Clone small and split large Gaussians that the image keeps pulling at; drop the useless."""

    extent: float
    """Scene extent, m."""
    max_gaussians: int
    gradient_threshold: float = 6e-4
    """Mean absolute image-plane gradient, per half image size, above which a Gaussian grows."""
    split_scale: float = 0.002
    """Gaussians larger than this share of the extent split, smaller ones are cloned."""
    prune_opacity: float = 0.01
    prune_scale: float = 0.2
    """Gaussians larger than this share of the extent are dropped."""
    split_radius: float = 0.1
    """Gaussians wider than this share of the image split, whatever their gradient."""
    provenance_of_new: int | None = None
    """Provenance of rows that grow here; None inherits the parent's."""

    def observe(self, meta: RasterizationMeta, state: DensifyState) -> None:
        """Add the absolute gradients of the visible Gaussians of one backward pass."""
        observe_rows(meta, state.gradient, state.count, state.radius)

    @torch.no_grad()
    def update(
        self, parameters: GaussianParameters, state: DensifyState, generator: torch.Generator
    ) -> TopologyChange | None:
        """Grow what is pulled at hardest (within the limit), then prune.

        A Gaussian that splits leaves its row to one half and a dropped one to whatever is new, then to the
        last rows; every other row stays where it is.
        """
        largest = parameters.scales.amax(-1)
        mean_gradient = state.gradient / state.count.clamp(min=1)
        drop = parameters.opacities < self.prune_opacity
        drop |= largest > self.prune_scale * self.extent
        drop |= ~torch.isfinite(parameters["means"]).all(-1)
        grow = (mean_gradient > self.gradient_threshold) & ~drop
        split_wide = (state.radius > self.split_radius) & ~drop
        room = self.max_gaussians - int((~drop).sum())
        grow = self._strongest(grow | split_wide, mean_gradient, room)
        split = grow & ((largest > self.split_scale * self.extent) | split_wide)
        clone = grow & ~split
        if not bool(grow.any() | drop.any()):
            return None

        splits, clones = split.nonzero().squeeze(-1), clone.nonzero().squeeze(-1)
        change = _placed(drop, splits, torch.cat([splits, clones]))
        born = change.source[change.is_new]
        means, log_scales = parameters["means"][born], parameters["log_scales"][born]
        halves = split[born]
        noise = torch.randn(int(halves.sum()), 3, generator=generator)
        noise = noise.to(means.device) * parameters.scales[born[halves]]
        rotation = quat_to_rotmat(parameters["quats"][born[halves]])
        means[halves] += (rotation @ noise[..., None]).squeeze(-1)
        log_scales[halves] -= math.log(1.6)
        overrides = {"means": means, "log_scales": log_scales}
        parameters.edit_rows(change, overrides, self.provenance_of_new)
        return change

    @staticmethod
    def _strongest(candidates: Tensor, strength: Tensor, room: int) -> Tensor:
        """At most `room` of the candidates, the strongest first."""
        if room <= 0:
            return torch.zeros_like(candidates)
        if int(candidates.sum()) <= room:
            return candidates
        index = torch.where(candidates, strength, -1.0).topk(room).indices
        return torch.zeros_like(candidates).index_fill_(0, index, True)


def _placed(
    drop: Bool[Tensor, "N"], replaced: Int64[Tensor, "R"], born: Int64[Tensor, "B"]
) -> TopologyChange:
    """Where rows go so that as few as possible move.

    Args:
        drop: Rows to be freed.
        replaced: Rows that a new row of their own takes the place of.
        born: Parents of further new rows: into freed rows first, then behind the last.
    """
    before, holes = len(drop), drop.nonzero().squeeze(-1)
    count = before - len(holes) + len(born)
    device = drop.device
    source = torch.arange(max(before, count), device=device)
    is_new = torch.zeros(len(source), dtype=torch.bool, device=device)
    is_new[replaced] = True
    filled = holes[: len(born)]
    behind = torch.arange(before, before + len(born) - len(filled), device=device)
    places = torch.cat([filled, behind])
    source[places], is_new[places] = born, True
    # Rows still free are taken by the last ones that stay.
    free = torch.zeros(len(source), dtype=torch.bool, device=device)
    free[holes[len(born) :]] = True
    gaps = free[:count].nonzero().squeeze(-1)
    movers = count + (~free[count:]).nonzero().squeeze(-1)
    source[gaps], is_new[gaps] = source[movers], is_new[movers]
    return TopologyChange(source[:count], is_new[:count])
