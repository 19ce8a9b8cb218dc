"""The private, mutable side of a scene in training: parameters, their Adam state, row edits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from faithfusion_studio.fusion.schedule import LearningRates
from faithfusion_studio.gaussians import Gaussians, TopologyChange

KINDS = ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN")


class GaussianParameters:
    """Parameters of one set of Gaussians and the optimiser that moves them.

    Adam writes in place, so readers only ever get `snapshot()`, a clone.
    """

    def __init__(self, gaussians: Gaussians, rates: LearningRates, *, means_rate: float) -> None:
        self.provenance: UInt8[Tensor, "N"] = gaussians.provenance.clone()
        self.tensors: dict[str, torch.nn.Parameter] = {
            kind: torch.nn.Parameter(getattr(gaussians, kind).detach().clone().contiguous())
            for kind in KINDS
        }
        groups = [
            {
                "params": [parameter],
                "lr": means_rate if kind == "means" else getattr(rates, kind),
                "name": kind,
            }
            for kind, parameter in self.tensors.items()
        ]
        self.optimizer = torch.optim.Adam(groups, lr=0.0, eps=1e-15, fused=True)

    def __len__(self) -> int:
        return self.tensors["means"].shape[0]

    def __getitem__(self, kind: str) -> torch.nn.Parameter:
        return self.tensors[kind]

    def snapshot(self) -> Gaussians:
        """A frozen copy of the current values."""
        values = {kind: p.detach().clone() for kind, p in self.tensors.items()}
        return Gaussians(**values, provenance=self.provenance.clone())

    def set_rate(self, kind: str, rate: float) -> None:
        """Change the step size of one kind."""
        for group in self.optimizer.param_groups:
            if group["name"] == kind:
                group["lr"] = rate

    def step(self) -> None:
        """One Adam step on all gradients present, which are then dropped."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def edit_rows(
        self,
        change: TopologyChange,
        overrides: Mapping[str, Float32[Tensor, "..."]],
        provenance_of_new: int | None = None,
    ) -> None:
        """Grow and prune: rows become `old[source]`, then new rows take their overrides.

        Args:
            change: Which old row each new row comes from, and which rows are new.
            overrides: Full-length values for kinds that differ from their source row.
            provenance_of_new: Provenance of new rows; None inherits the parent's.
        """
        source, is_new = change.source, change.is_new
        for group in self.optimizer.param_groups:
            kind = group["name"]
            old = self.tensors[kind]
            values = overrides[kind] if kind in overrides else old.detach()[source]
            fresh = torch.nn.Parameter(values.contiguous())
            state = self.optimizer.state.pop(old, None)
            if state:
                for moment in ("exp_avg", "exp_avg_sq"):
                    moved = state[moment][source]
                    moved[is_new] = 0
                    state[moment] = moved
                self.optimizer.state[fresh] = state
            group["params"] = [fresh]
            self.tensors[kind] = fresh
        self.provenance = self.provenance[source].clone()
        if provenance_of_new is not None:
            self.provenance[is_new] = provenance_of_new

    def append(self, gaussians: Gaussians) -> TopologyChange:
        """Add rows at the end; returns the change for sidecars (new rows point at row 0)."""
        count, extra = len(self), len(gaussians)
        change = TopologyChange(
            source=torch.cat([torch.arange(count), torch.zeros(extra, dtype=torch.long)]),
            is_new=torch.arange(count + extra) >= count,
        )
        values = {
            kind: torch.cat([self.tensors[kind].detach(), getattr(gaussians, kind)])
            for kind in KINDS
        }
        self.edit_rows(change, values)
        self.provenance[count:] = gaussians.provenance
        return change

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """A copy of the optimiser state per kind, for history and resuming."""
        state = {}
        for kind, parameter in self.tensors.items():
            entry = self.optimizer.state.get(parameter)
            if entry:
                state[kind] = {
                    name: torch.as_tensor(value).clone() for name, value in entry.items()
                }
        return state

    def restore_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up saved optimiser state; kinds whose shape no longer fits start afresh."""
        for kind, entry in moments.items():
            parameter = self.tensors[kind]
            if entry["exp_avg"].shape == parameter.shape:
                self.optimizer.state[parameter] = {name: v.clone() for name, v in entry.items()}
