"""The private, mutable side of a scene in training: parameters, their Adam state, row edits.

Every number of every row lives in one buffer with spare rows behind the last one. Optimiser steps, growth and
pruning write the rows they change and no others; only running out of spare rows copies everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

from faithfusion_studio.fusion.losses import shape_loss
from faithfusion_studio.fusion.schedule import LearningRates, LossWeights
from faithfusion_studio.gaussians import Gaussians, TopologyChange
from faithfusion_studio.render.learning import (
    Activation,
    AdamKind,
    ShapeTerms,
    activate,
    adam_step,
)

KINDS = ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN")
_STORED = ("means", "log_scales", "quats", "logit_opacities", "sh")
_ACTIVATIONS: dict[str, Activation] = {"log_scales": "exp", "logit_opacities": "sigmoid"}
_SPARE = 1.25
"""Room for rows, over those needed, when a buffer has to be made anew."""


def bytes_per_gaussian(sh_degree: int) -> int:
    """Memory that one row of `GaussianParameters` keeps for the whole of a training, bytes.

    With P = 11 + 3 (degree + 1)^2 numbers per Gaussian: 12 P for the value and two moments, 16 for activated
    scales and opacity, 8 for two clocks (see `adam_step`), 1 for the provenance and 1 for visibility.

    A step needs at its peak, besides, 4 P for the gradients, 16 for those on the image plane and about 100 + 64 per
    thread for the records and sums of each Gaussian in view; growing keeps 12 more. All of it is bounded by the
    capacity the parameters are made with: up to there rows are written in place, never copied.
    """
    return 12 * (11 + 3 * (sh_degree + 1) ** 2) + 16 + 8 + 2


@dataclass(eq=False)
class _Column:
    """One stored kind: value, moments and, where there is one, the activated value; all [capacity, ...]."""

    value: Tensor
    mean: Tensor
    square: Tensor
    activated: Tensor | None
    activation: Activation

    def buffers(self) -> list[Tensor]:
        given = (self.value, self.mean, self.square, self.activated)
        return [buffer for buffer in given if buffer is not None]


class GaussianParameters:
    """Parameters of one set of Gaussians and the optimiser that moves them.

    Steps write in place, so readers only ever get `snapshot()`, a clone.

    Args:
        gaussians: Start values, copied.
        rates: Step sizes of all kinds but the means.
        means_rate: Step size of the means, m.
        capacity: Rows to make room for, so that growth up to there copies nothing that stays.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        rates: LearningRates,
        *,
        means_rate: float,
        capacity: int = 0,
    ) -> None:
        self._rows = len(gaussians)
        self._columns: dict[str, _Column] = {}
        for kind in _STORED:
            value = getattr(gaussians, kind).detach().to(torch.float32).contiguous().clone()
            self._columns[kind] = _Column(
                value,
                torch.zeros_like(value),
                torch.zeros_like(value),
                torch.empty_like(value) if kind in _ACTIVATIONS else None,
                _ACTIVATIONS.get(kind, "none"),
            )
        device = gaussians.means.device
        self._clocks = torch.zeros(self._rows, 2, dtype=torch.int32, device=device)
        self._steps = 0
        self._provenance = gaussians.provenance.clone()
        self._visible = torch.zeros(self._rows, dtype=torch.uint8, device=device)
        self._rates = {kind: getattr(rates, kind) for kind in KINDS} | {"means": means_rate}
        self._activate()
        self.reserve(capacity)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, kind: str) -> Float32[Tensor, "N *_"]:
        """The current values of a kind, to read or write in place (then call `refresh`)."""
        return self._view(kind, "value")

    def _view(self, kind: str, part: str) -> Tensor:
        if kind in ("sh0", "shN"):
            sh = getattr(self._columns["sh"], part)[: self._rows]
            return sh[:, :1] if kind == "sh0" else sh[:, 1:]
        return getattr(self._columns[kind], part)[: self._rows]

    @property
    def scales(self) -> Float32[Tensor, "N 3"]:
        """Standard deviations, m."""
        return self._view("log_scales", "activated")

    @property
    def opacities(self) -> Float32[Tensor, "N"]:
        """Opacities in (0, 1)."""
        return self._view("logit_opacities", "activated")

    @property
    def provenance(self) -> UInt8[Tensor, "N"]:
        """A `Provenance` value per row."""
        return self._provenance[: self._rows]

    @property
    def visible(self) -> UInt8[Tensor, "N"]:
        """Scratch: 1 for the rows that reach a pixel of the current view."""
        return self._visible[: self._rows]

    @property
    def clocks(self) -> Int32[Tensor, "N 2"]:
        """Updates each row has had, and the step of the last one; 0 for a new row."""
        return self._clocks[: self._rows]

    @property
    def sh_degree(self) -> int:
        """Highest SH band stored."""
        return {1: 0, 4: 1, 9: 2, 16: 3}[self._columns["sh"].value.shape[1]]

    def refresh(self) -> None:
        """Bring the activated values up to date after writing to `self[kind]`."""
        self._activate()

    def snapshot(self) -> Gaussians:
        """A frozen copy of the current values."""
        values = {kind: self[kind].clone(memory_format=torch.contiguous_format) for kind in KINDS}
        return Gaussians(**values, provenance=self.provenance.clone())

    def set_rate(self, kind: str, rate: float) -> None:
        """Change the step size of one kind."""
        self._rates[kind] = rate

    # ------------------------------------------------------------------------------------- steps

    def leaves(self) -> dict[str, Tensor]:
        """Activated values as the rasteriser takes them, to differentiate by; gone stale after `step`."""
        leaves = {
            "means": self["means"],
            "quats": self["quats"],
            "scales": self.scales,
            "opacities": self.opacities,
            "sh": self._view("sh", "value"),
        }
        return {name: value.detach().requires_grad_() for name, value in leaves.items()}

    def step(
        self,
        gradients: Mapping[str, Tensor],
        weights: LossWeights | None = None,
        voxel: float = 1.0,
        *,
        num_visible: int | None = None,
    ) -> float:
        """Move the rows marked in `visible` (see `adam_step`); the rest stays bit-equal.

        Args:
            gradients: With respect to `leaves()`.
            weights: Of the regularisers of the visible rows; None for none.
            voxel: Their unit of length, m.
            num_visible: Rows marked in `visible`; None moves every row.

        Returns:
            The value of the regularisers before the step.
        """
        self._steps += 1
        mask = None if num_visible is None else self.visible
        terms, gradients, value = None, dict(gradients), 0.0
        if weights is not None and num_visible != 0:
            if self._clocks.device.type == "cpu":
                terms = _shape_terms(weights, voxel, num_visible or self._rows)
            else:
                value = self._add_shape_gradients(gradients, weights, voxel, mask)
        kinds = [self._kind(kind, gradients) for kind in _STORED]
        fused, _ = adam_step(kinds, self.clocks, self._steps, mask, terms=terms)
        return value + fused

    def _kind(self, kind: str, gradients: Mapping[str, Tensor]) -> AdamKind:
        column = self._columns[kind]
        name = {"log_scales": "scales", "logit_opacities": "opacities"}.get(kind, kind)
        width = column.value[0].numel()
        if kind == "sh":
            rates = torch.full((width,), self._rates["shN"])
            rates[:3] = self._rates["sh0"]
        else:
            rates = torch.full((width,), self._rates[kind])
        return AdamKind(
            self._view(kind, "value"),
            self._view(kind, "mean"),
            self._view(kind, "square"),
            gradients[name],
            rates.to(column.value.device),
            None if column.activated is None else self._view(kind, "activated"),
            column.activation,
        )

    def _add_shape_gradients(
        self, gradients: dict[str, Tensor], weights: LossWeights, voxel: float, mask: Tensor | None
    ) -> float:
        rows = slice(None) if mask is None else mask.nonzero().squeeze(-1)
        scales = self.scales[rows].requires_grad_()
        opacities = self.opacities[rows].requires_grad_()
        loss = shape_loss(scales, opacities, weights, voxel)
        gradient = torch.autograd.grad(loss, [scales, opacities])
        for name, more in zip(("scales", "opacities"), gradient, strict=True):
            total = gradients[name].clone()
            total[rows] += more
            gradients[name] = total
        return float(loss.detach())

    def _activate(self) -> None:
        for kind in _ACTIVATIONS:
            activation = self._columns[kind].activation
            activate(self._view(kind, "value"), activation, self._view(kind, "activated"))

    # --------------------------------------------------------------------------------- row edits

    def reserve(self, capacity: int) -> None:
        """Make room for that many rows; copies everything where there is less."""
        if capacity <= len(self._clocks):
            return

        def larger(buffer: Tensor) -> Tensor:
            fresh = buffer.new_empty(capacity, *buffer.shape[1:])
            fresh[: self._rows] = buffer[: self._rows]
            return fresh

        for column in self._columns.values():
            column.value, column.mean = larger(column.value), larger(column.mean)
            column.square = larger(column.square)
            if column.activated is not None:
                column.activated = larger(column.activated)
        self._clocks, self._provenance = larger(self._clocks), larger(self._provenance)
        self._visible = larger(self._visible)

    def edit_rows(
        self,
        change: TopologyChange,
        overrides: Mapping[str, Float32[Tensor, "R *_"]] | None = None,
        provenance_of_new: int | None = None,
    ) -> None:
        """Grow and prune: rows become `old[source]`, then new rows take their overrides and no moments.

        Only rows that are new or come from elsewhere are written.

        Args:
            change: Which old row each new row comes from, and which rows are new.
            overrides: Values of the new rows, in order, of kinds that differ from their source.
            provenance_of_new: Provenance of new rows; None inherits the parent's.
        """
        count = len(change.source)
        if count > len(self._clocks):
            self.reserve(int(_SPARE * count))
        moved = (change.source != torch.arange(count, device=change.source.device)) | change.is_new
        moved[self._rows :] = True
        rows = moved.nonzero().squeeze(-1)
        fresh = change.is_new.nonzero().squeeze(-1)
        source = change.source[rows]
        buffers = [buffer for column in self._columns.values() for buffer in column.buffers()]
        for buffer in [*buffers, self._clocks, self._provenance]:
            buffer[rows] = buffer[source]
        self._rows = count
        for kind, values in (overrides or {}).items():
            self[kind][fresh] = values
        for column in self._columns.values():
            column.mean[fresh] = 0
            column.square[fresh] = 0
            if column.activated is not None:
                value, activated = column.value[fresh], column.activated[fresh]
                activate(value, column.activation, activated)
                column.activated[fresh] = activated
        self._clocks[fresh] = 0
        if provenance_of_new is not None:
            self._provenance[fresh] = provenance_of_new

    def append(self, gaussians: Gaussians) -> TopologyChange:
        """Add rows at the end; returns the change for sidecars (new rows point at row 0)."""
        count, extra, device = len(self), len(gaussians), self.provenance.device
        rows, gaussians = torch.arange(count + extra, device=device), gaussians.to(device)
        change = TopologyChange(source=rows * (rows < count), is_new=rows >= count)
        self.edit_rows(change, {kind: getattr(gaussians, kind) for kind in KINDS})
        self.provenance[count:] = gaussians.provenance
        return change

    # ----------------------------------------------------------------------------------- history

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """A copy of the optimiser state per kind, for history and resuming.

        Each kind has "exp_avg" and "exp_avg_sq" in its own shape; "means" also has "step" [N], the updates
        each row has had, which all kinds share.
        """
        state = {
            kind: {
                "exp_avg": self._view(kind, "mean").clone(memory_format=torch.contiguous_format),
                "exp_avg_sq": self._view(kind, "square").clone(
                    memory_format=torch.contiguous_format
                ),
            }
            for kind in KINDS
        }
        state["means"]["clocks"] = self.clocks.clone()
        state["means"]["steps"] = torch.tensor(self._steps)
        return state

    def restore_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up saved optimiser state; kinds whose shape no longer fits start afresh."""
        for kind, entry in moments.items():
            if entry["exp_avg"].shape == self[kind].shape:
                self._view(kind, "mean").copy_(entry["exp_avg"])
                self._view(kind, "square").copy_(entry["exp_avg_sq"])
                if kind == "means":
                    self.clocks.copy_(entry["clocks"])
                    self._steps = int(entry["steps"])


def follow_moments(
    moments: Mapping[str, Mapping[str, Tensor]], change: TopologyChange
) -> dict[str, dict[str, Tensor]]:
    """Saved optimiser state after an edit of the rows: rows carry theirs along, new ones have none."""

    def followed(value: Tensor) -> Tensor:
        if value.ndim == 0:  # the steps all rows have in common
            return value
        rows = value[change.source.to(value.device)]
        fresh = change.is_new.to(value.device).view(-1, *[1] * (value.ndim - 1))
        return rows.masked_fill(fresh, 0)

    return {
        kind: {name: followed(value) for name, value in entry.items()}
        for kind, entry in moments.items()
    }


def _shape_terms(weights: LossWeights, voxel: float, count: int) -> ShapeTerms:
    shares = (weights.opacity, weights.scale, weights.flat, weights.shape)
    return ShapeTerms(
        scales=_STORED.index("log_scales"),
        opacities=_STORED.index("logit_opacities"),
        weights=tuple(share / count for share in shares),  # type: ignore[arg-type]  # four of them
        max_aspect=weights.max_aspect,
        voxel=voxel,
    )
