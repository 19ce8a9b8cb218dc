"""Numbers of every Gaussian that a person selects by: size, opacity, evidence, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.information import learned_nats
from faithfusion_studio.scene import Scene

Quantity = Literal["size", "opacity", "evidence", "provenance"]
QUANTITIES: Mapping[str, str] = {
    "size": "Size (m)",
    "opacity": "Opacity",
    "evidence": "Evidence (nats)",
    "provenance": "Where it came from",
}
"""With their names for people."""
BINS = 48


def values_of(scene: Scene, quantity: Quantity) -> Float32[Tensor, "N"]:
    """One number per Gaussian, by rows of the scene.

    "size" is the largest standard deviation in m, "opacity" lies in (0, 1), "evidence" is what the recorded
    views have told about it in nats (0 = no view has shown it, so its EIG is largest), "provenance" a
    `Provenance` value.

    Raises:
        MissingFisherError: "evidence" of a scene without any.
        StaleFisherError: "evidence" of other Gaussians.
    """
    if quantity == "evidence":
        return learned_nats(scene)
    sets = (scene.background, *(node.gaussians for node in scene.nodes))
    return torch.cat([_values(one, quantity) for one in sets])


def _values(gaussians: Gaussians, quantity: Quantity) -> Tensor:
    if quantity == "size":
        return gaussians.scales.amax(1)
    if quantity == "opacity":
        return gaussians.opacities
    return gaussians.provenance.to(torch.float32)


def in_range(values: Float[Tensor, "N"], low: float, high: float) -> Bool[Tensor, "N"]:
    """Where low <= value <= high."""
    return (values >= low) & (values <= high)


@dataclass(frozen=True)
class Histogram:
    """Counts over bins of equal width, or of equal ratio where the values span decades."""

    edges: tuple[float, ...]
    """One more than counts, ascending."""
    counts: tuple[int, ...]
    logarithmic: bool

    def at(self, share: float) -> float:
        """The value at a share (0..1) of the axis, rounded outwards at its ends so that these include all."""
        low, high = self.edges[0], self.edges[-1]
        if share <= 0 or share >= 1:
            end = low if share <= 0 else high
            return end - 1e-5 * abs(end) if share <= 0 else end + 1e-5 * abs(end)
        if self.logarithmic:
            return low * (high / low) ** share
        return low + share * (high - low)


def histogram(values: Float[Tensor, "N"], *, logarithmic: bool, bins: int = BINS) -> Histogram:
    """How many values lie where, from the least to the greatest; each value is in one bin.

    Args:
        values: Finite, at least one; positive where `logarithmic`.
        logarithmic: Bins of equal ratio.
        bins: How many.
    """
    numbers = values.detach().cpu().double()
    numbers = numbers.clamp(min=1e-9).log() if logarithmic else numbers
    low, high = float(numbers.min()), float(numbers.max())
    high = high if high > low else low + 1e-6
    counts = torch.histc(numbers, bins=bins, min=low, max=high)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    edges = edges.exp() if logarithmic else edges
    return Histogram(tuple(edges.tolist()), tuple(int(c) for c in counts), logarithmic)
