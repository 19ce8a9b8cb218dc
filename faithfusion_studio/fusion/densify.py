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
from jaxtyping import Float32, Int
from torch import Tensor

from faithfusion_studio.fusion.parameters import GaussianParameters
from faithfusion_studio.gaussians import TopologyChange
from faithfusion_studio.transforms import quat_to_rotmat

if TYPE_CHECKING:
    from faithfusion_studio.render.rasterization import RasterizationMeta


@dataclass(eq=False)
class DensifyState:
    """Running statistics since the last change."""

    gradient: Float32[Tensor, "N"]
    count: Int[Tensor, "N"]
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


def initial_state(count: int) -> DensifyState:
    """Statistics of nothing seen yet."""
    return DensifyState(
        torch.zeros(count), torch.zeros(count, dtype=torch.long), torch.zeros(count)
    )


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
        gradient = meta.absgrad[0].norm(dim=-1) * (0.5 * max(meta.width, meta.height))
        visible = meta.radii[0].amin(-1) > 0
        state.gradient += torch.where(visible, gradient, 0)
        state.count += visible
        share = meta.radii[0].amax(-1).to(torch.float32) / max(meta.width, meta.height)
        state.radius = torch.maximum(state.radius, torch.where(visible, share, 0))

    @torch.no_grad()
    def update(
        self, parameters: GaussianParameters, state: DensifyState, generator: torch.Generator
    ) -> TopologyChange | None:
        """Grow what is pulled at hardest (within the limit), then prune."""
        scales = parameters["log_scales"].exp()
        largest = scales.amax(-1)
        mean_gradient = state.gradient / state.count.clamp(min=1)
        opacity = torch.sigmoid(parameters["logit_opacities"])
        drop = (opacity < self.prune_opacity) | (largest > self.prune_scale * self.extent)
        drop |= ~torch.isfinite(parameters["means"]).all(-1)
        grow = (mean_gradient > self.gradient_threshold) & ~drop
        split_wide = (state.radius > self.split_radius) & ~drop
        room = self.max_gaussians - int((~drop).sum())
        grow = self._strongest(grow | split_wide, mean_gradient, room)
        split = grow & ((largest > self.split_scale * self.extent) | split_wide)
        clone = grow & ~split
        if not bool(grow.any() | drop.any()):
            return None

        keep = (~drop & ~split).nonzero().squeeze(-1)
        cloned, halves = clone.nonzero().squeeze(-1), split.nonzero().squeeze(-1).repeat(2)
        source = torch.cat([keep, cloned, halves])
        is_new = torch.arange(len(source)) >= len(keep)
        means = parameters["means"].detach()[source]
        log_scales = parameters["log_scales"].detach()[source]
        tail = slice(len(source) - len(halves), None)
        noise = torch.randn(len(halves), 3, generator=generator) * scales[halves]
        means[tail] += (
            quat_to_rotmat(parameters["quats"].detach()[halves]) @ noise[..., None]
        ).squeeze(-1)
        log_scales[tail] -= math.log(1.6)
        change = TopologyChange(source, is_new)
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
