"""One immutable set of N Gaussians and the row operations on it.

Stored values are what an optimiser works on (log-scales, opacity logits, raw quaternions); the
properties `scales` and `opacities` give the activated values that rasterisers take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from faithfusion_studio.transforms import quat_multiply, rotate_sh, rotmat_to_quat


class Provenance(IntEnum):
    """Where a Gaussian came from; stored as one byte per Gaussian and kept through every edit."""

    RECORDED = 0
    REPAIRED = 1
    COMPLETED = 2
    EDITED = 3


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N anisotropic Gaussians in one frame (world, or a node's own); tensors are never written again."""

    means: Float[Tensor, "N 3"]
    """Centres, m."""
    log_scales: Float[Tensor, "N 3"]
    """Natural logarithm of the standard deviations in m, along the body axes."""
    quats: Float[Tensor, "N 4"]
    """Rotations body -> frame, wxyz, normalised on use."""
    logit_opacities: Float[Tensor, "N"]
    """Opacity before the sigmoid."""
    sh0: Float[Tensor, "N 1 3"]
    """Degree-0 SH coefficient."""
    shN: Float[Tensor, "N R 3"]
    """Higher SH coefficients, R = (degree + 1)^2 - 1; R = 0 for degree 0."""
    provenance: UInt8[Tensor, "N"]
    """A `Provenance` value per row."""

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def scales(self) -> Float[Tensor, "N 3"]:
        """Standard deviations, m."""
        return self._activated("scales", torch.exp, self.log_scales)

    @property
    def opacities(self) -> Float[Tensor, "N"]:
        """Opacities in (0, 1)."""
        return self._activated("opacities", torch.sigmoid, self.logit_opacities)

    def _activated(self, name: str, function: Callable[[Tensor], Tensor], stored: Tensor) -> Tensor:
        """Computed once, since stored values never change; anew where gradients are wanted."""
        if stored.requires_grad:
            return function(stored)
        if name not in self.__dict__:
            self.__dict__[name] = function(stored)
        return self.__dict__[name]

    @property
    def sh(self) -> Float[Tensor, "N K 3"]:
        """All SH coefficients, [N, K, 3] with K = (degree + 1)^2."""
        return torch.cat([self.sh0, self.shN], dim=1)

    @property
    def sh_degree(self) -> int:
        """0..3, from the number of stored coefficients."""
        return {0: 0, 3: 1, 8: 2, 15: 3}[self.shN.shape[1]]

    def select(self, index: Int[Tensor, "M"] | Bool[Tensor, "N"]) -> Gaussians:
        """Rows by integer index or by mask, in a new set."""
        return Gaussians(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def transformed(self, pose: Float[Tensor, "4 4"], *, turn_colors: bool = False) -> Gaussians:
        """The same Gaussians seen from the parent frame of `pose` (rigid, frame -> parent).

        Args:
            pose: Frame -> parent.
            turn_colors: Turn the higher SH coefficients too, as a real object's are. Without it they
                stay in the parent's axes, as all public driving models have them.
        """
        pose = pose.to(self.means)
        rotation = rotmat_to_quat(pose[:3, :3])
        return replace(
            self,
            means=self.means @ pose[:3, :3].T + pose[:3, 3],
            quats=quat_multiply(rotation.expand_as(self.quats), self.quats),
            shN=rotate_sh(self.shN, pose[:3, :3]) if turn_colors else self.shN,
        )

    def to(self, device: torch.device | str) -> Gaussians:
        """The same values on another device; returns self where nothing has to move."""
        if self.means.device == torch.device(device):
            return self
        return Gaussians(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def with_sh_degree(self, degree: int) -> Gaussians:
        """Cut or zero-pad the higher SH bands to `degree`."""
        wanted = (degree + 1) ** 2 - 1
        have = self.shN.shape[1]
        if wanted <= have:
            return replace(self, shN=self.shN[:, :wanted].contiguous())
        pad = self.shN.new_zeros(len(self), wanted - have, 3)
        return replace(self, shN=torch.cat([self.shN, pad], dim=1))

    def num_bytes(self) -> int:
        """Memory of all tensors, bytes."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))


@dataclass(frozen=True, eq=False)
class TopologyChange:
    """How the rows after a grow or prune relate to the rows before; sidecars follow by `old[source]`."""

    source: Int[Tensor, "M"]
    """Old row of each new row (the parent, for a new Gaussian)."""
    is_new: Bool[Tensor, "M"]
    """True for rows that did not exist: reset their optimiser state and evidence."""


def kept_rows(keep: Bool[Tensor, "N"]) -> TopologyChange:
    """The change of rows that keeps some, in their order."""
    source = keep.nonzero()[:, 0]
    return TopologyChange(source, torch.zeros_like(source, dtype=torch.bool))


def empty_gaussians(sh_degree: int = 0, device: torch.device | str = "cpu") -> Gaussians:
    """A set of no Gaussians."""
    zeros = torch.zeros
    return Gaussians(
        means=zeros(0, 3, device=device),
        log_scales=zeros(0, 3, device=device),
        quats=zeros(0, 4, device=device),
        logit_opacities=zeros(0, device=device),
        sh0=zeros(0, 1, 3, device=device),
        shN=zeros(0, (sh_degree + 1) ** 2 - 1, 3, device=device),
        provenance=zeros(0, dtype=torch.uint8, device=device),
    )


def concatenate(parts: Iterable[Gaussians]) -> Gaussians:
    """All rows of several sets in order; SH is zero-padded to the highest degree among them."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return empty_gaussians()
    degree = max(p.sh_degree for p in parts)
    padded = [p.with_sh_degree(degree) for p in parts]
    return Gaussians(
        **{f.name: torch.cat([getattr(p, f.name) for p in padded]) for f in fields(Gaussians)}
    )
