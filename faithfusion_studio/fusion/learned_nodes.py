"""Nodes in training: whose row is whose, where they stand at a time, and how far their poses are off.

All rows, of background and nodes, are in one table in the order that growing and pruning leaves them;
`owner` says whose each is, -1 being the background. Rows of a node are in its frame. Before a view is
drawn they are put into the world; gradients come back the same way, and on to the pose.

A pose is corrected in its own frame by [x, y, z (m), rotation vector (rad)], each number b tanh(p / b)
with a bound b. Each recorded time has one correction, between them they are interpolated, and their
mean over a track is kept at zero: else a node could shift in its frame and every pose back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from faithfusion_studio.fusion.parameters import GaussianParameters
from faithfusion_studio.fusion.schedule import PoseRates
from faithfusion_studio.gaussians import Gaussians, TopologyChange
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.transforms import quat_multiply, rotate_sh, rotmat_to_quat

MARGIN = 0.15
"""How far centres may be outside of their box: mirrors, and the shadow below, m."""
LARGEST = 0.25
"""Largest standard deviation of a Gaussian over the smallest side of its box."""
_PLACED = ("means", "quats", "sh")


@dataclass(frozen=True, eq=False)
class _Placement:
    """What was put into the world for one view, to take gradients back through."""

    node: int
    rows: Int64[Tensor, "R"]
    local: dict[str, Tensor]
    placed: dict[str, Tensor]
    knots: Int64[Tensor, "2"]
    correction: Float32[Tensor, "2 6"]


class LearnedNodes:
    """The nodes of a scene in training.

    Args:
        nodes: Start values; their Gaussians follow the background's in the table, in order.
        num_background: Rows before them.
        times: Recorded times that are learned from, s.
        rates: Step sizes and bounds of the poses.
        device: Where the table is.
    """

    def __init__(
        self,
        nodes: Sequence[RigidNode],
        num_background: int,
        times: Sequence[float],
        rates: PoseRates,
        device: torch.device | str = "cpu",
    ) -> None:
        self.nodes, self.rates = tuple(nodes), rates
        counts = torch.tensor([num_background, *(len(node.gaussians) for node in nodes)])
        self.owner = torch.repeat_interleave(torch.arange(-1, len(nodes)), counts).to(device)
        self._corrections = [_Corrections(node, times, rates) for node in nodes]
        self._learn_poses = rates.step > 0
        self._find_rows()

    def _find_rows(self) -> None:
        self._rows = [
            (self.owner == index).nonzero().squeeze(1) for index in range(len(self.nodes))
        ]

    def follow(self, change: TopologyChange) -> None:
        """Rows grew or were pruned: a new row belongs where its parent does."""
        self.owner = self.owner[change.source]
        self._find_rows()

    # ------------------------------------------------------------------------------------ views

    def place(
        self, leaves: dict[str, Tensor], time: float
    ) -> tuple[dict[str, Tensor], list[_Placement]]:
        """The table in the world at a time: leaves to draw and to differentiate by, and the way back.

        Rows of a node that is not there at that time get the opacity zero.
        """
        world = {name: value.detach() for name, value in leaves.items()}
        for name in (*_PLACED, "opacities"):
            world[name] = world[name].clone()
        placements = []
        for index, node in enumerate(self.nodes):
            rows, pose = self._rows[index], node.pose_at(time)
            if pose is None:
                world["opacities"][rows] = 0
                continue
            if not len(rows):
                continue
            placement = self._placed(index, rows, pose, leaves, time)
            for name, value in placement.placed.items():
                world[name][rows] = value.detach()
            placements.append(placement)
        return {name: value.requires_grad_() for name, value in world.items()}, placements

    def _placed(
        self, index: int, rows: Tensor, pose: Tensor, leaves: dict[str, Tensor], time: float
    ) -> _Placement:
        local = {name: leaves[name].detach()[rows].requires_grad_() for name in _PLACED}
        corrections = self._corrections[index]
        knots, shares = corrections.around(time)
        values = corrections.values[knots].requires_grad_(self._learn_poses)
        device = rows.device
        shift, turn = corrections.bounded((shares[:, None] * values).sum(0))
        pose = pose.to(torch.float32)
        rotation = (pose[:3, :3] @ turn).to(device)
        centre = (pose[:3, :3] @ shift + pose[:3, 3]).to(device)
        # Which way the colours and axes turn is not worth the gradient of a degree.
        quat = rotmat_to_quat(rotation.detach())
        sh = local["sh"]
        if self.nodes[index].turns_colors:
            higher = rotate_sh(sh[:, 1:], rotation.detach())
            sh = torch.cat([sh[:, :1], higher], 1)
        placed = {
            "means": local["means"] @ rotation.T + centre,
            "quats": quat_multiply(quat.expand(len(rows), 4), local["quats"]),
            "sh": sh,
        }
        return _Placement(index, rows, local, placed, knots, values)

    def pull_back(self, placements: list[_Placement], gradients: dict[str, Tensor]) -> None:
        """Turn gradients by the world's rows into those of the table, in place, and correct the poses by them."""
        for placement in placements:
            wanted = [*placement.local.values()]
            if self._learn_poses:
                wanted.append(placement.correction)
            upstream = [gradients[name][placement.rows] for name in placement.placed]
            found = torch.autograd.grad(
                list(placement.placed.values()), wanted, upstream, allow_unused=True
            )
            for name, gradient in zip(placement.local, found, strict=False):
                gradients[name][placement.rows] = gradient
            if self._learn_poses:
                self._corrections[placement.node].step(placement.knots, found[-1])

    def set_pose_factor(self, factor: float) -> None:
        """Scale the step size of the poses."""
        for corrections in self._corrections:
            corrections.factor = factor

    # ------------------------------------------------------------------------------------- table

    @torch.no_grad()
    def confine(self, parameters: GaussianParameters) -> None:
        """Bring centres back into their box and sizes below its own."""
        changed = False
        for node, rows in zip(self.nodes, self._rows, strict=True):
            limit = (node.size / 2 + MARGIN).to(rows.device)
            means, log_scales = parameters["means"][rows], parameters["log_scales"][rows]
            widest = math.log(LARGEST * float(node.size.min()))
            out, wide = (means.abs() > limit).any(-1), (log_scales > widest).any(-1)
            if bool(out.any()):
                parameters["means"][rows[out]] = means[out].clamp(-limit, limit)
            if bool(wide.any()):
                parameters["log_scales"][rows[wide]] = log_scales[wide].clamp(max=widest)
                changed = True
        if changed:
            parameters.refresh()

    def split(self, table: Gaussians) -> tuple[Gaussians, tuple[RigidNode, ...]]:
        """Background and nodes of a table, the nodes with corrected poses; a node that lost all rows is gone."""
        nodes = []
        for node, rows, corrections in zip(self.nodes, self._rows, self._corrections, strict=True):
            if len(rows):
                poses = corrections.applied(node)
                nodes.append(replace(node, gaussians=table.select(rows), poses=poses))
        return table.select(self.owner < 0), tuple(nodes)


class _Corrections:
    """The corrections of one track and their optimiser: Adam whose rows rest while they are not seen."""

    def __init__(self, node: RigidNode, times: Sequence[float], rates: PoseRates) -> None:
        there = [time for time in sorted(set(times)) if node.pose_at(time) is not None]
        self.times = torch.tensor(there or [float(node.timestamps[0])], dtype=torch.float64)
        self.bounds = torch.tensor(rates.bounds, dtype=torch.float32)
        self.rates = rates.step * self.bounds
        self.factor = 1.0
        self.values = torch.zeros(len(self.times), 6)
        self._mean, self._square = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self._count = torch.zeros(len(self.times), 1)

    def around(self, time: float) -> tuple[Int64[Tensor, "2"], Float32[Tensor, "2"]]:
        """The two corrected times around a time, and how much each counts."""
        t, last = self.times, len(self.times) - 1
        high = min(int(torch.searchsorted(t, torch.tensor(time, dtype=t.dtype))), last)
        low = max(high - 1, 0)
        span = float(t[high] - t[low])
        share = min(max((time - float(t[low])) / span, 0.0), 1.0) if span > 0 else 1.0
        return torch.tensor([low, high]), torch.tensor([1 - share, share])

    def bounded(
        self, values: Float[Tensor, "6"]
    ) -> tuple[Float32[Tensor, "3"], Float32[Tensor, "3 3"]]:
        """Shift and rotation of a correction."""
        x, y, z, a, b, c = (self.bounds * torch.tanh(values / self.bounds)).unbind()
        zero = torch.zeros(())
        turn = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero]).reshape(3, 3)
        return torch.stack([x, y, z]), torch.linalg.matrix_exp(turn)

    @torch.no_grad()
    def step(self, knots: Int64[Tensor, "2"], gradient: Float32[Tensor, "2 6"]) -> None:
        """Move the corrections of two times; a gradient that is not finite moves nothing."""
        if not bool(torch.isfinite(gradient).all()):
            return
        total = torch.zeros_like(self.values).index_add_(0, knots, gradient)
        rows = knots[(gradient != 0).any(1)].unique()
        g = total[rows]
        self._count[rows] += 1
        self._mean[rows] = 0.9 * self._mean[rows] + 0.1 * g
        self._square[rows] = 0.99 * self._square[rows] + 0.01 * g * g
        mean = self._mean[rows] / (1 - 0.9 ** self._count[rows])
        square = self._square[rows] / (1 - 0.99 ** self._count[rows])
        self.values[rows] -= self.factor * self.rates * mean / (square.sqrt() + 1e-12)
        self.values -= self.values.mean(0)

    def applied(self, node: RigidNode) -> Float[Tensor, "T 4 4"]:
        """The poses of a node, corrected."""
        poses = node.poses.clone()
        for row, time in enumerate(node.timestamps.tolist()):
            knots, shares = self.around(time)
            shift, turn = self.bounded((shares[:, None] * self.values[knots]).sum(0))
            poses[row, :3, 3] += poses[row, :3, :3] @ shift.double()
            poses[row, :3, :3] = poses[row, :3, :3] @ turn.double()
        return poses
