"""The functions the loop of fusion is made of, as one bundle; the tests bring their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.replay import RepairedView
from faithfusion_studio.fusion.schedule import FusionConfig, Progress, Stage, Weighting
from faithfusion_studio.gaussians import TopologyChange
from faithfusion_studio.repair.base import RepairStep
from faithfusion_studio.scene import Scene, StoredFisher

if TYPE_CHECKING:
    from faithfusion_studio.fusion.trainer import Moments, TrainerCheckpoint


@runtime_checkable
class TrainerLike(Protocol):
    """The part of `trainer.Trainer` the loop drives."""

    change: TopologyChange | None
    """How the background's rows relate to those at the start; None while they are the same."""
    views: tuple[RepairedView, ...]
    """The newest repaired views."""

    def run(self) -> Iterator[Progress]:
        """One optimiser step per item."""
        ...

    def scene(self) -> Scene:
        """A copy of the scene as it stands, never written again."""
        ...

    def optimizer_state(self) -> Moments:
        """What `start_trainer` takes to go on from here."""
        ...

    def checkpoint(self) -> tuple[Scene, TrainerCheckpoint]:
        """The scene as it stands and what it takes to go on in the middle of a stage."""
        ...


def repair(scene: Scene, stage: Stage) -> Iterator[RepairedFrame | RepairStep]:
    """Repaired frames of a stage, one per item, and the steps of a slow engine between them."""
    from faithfusion_studio.fusion.repairing import repair_stage_steps
    from faithfusion_studio.repair import create_repairer

    return repair_stage_steps(scene, stage, create_repairer(stage.engine))


def start_trainer(
    scene: Scene,
    frames: Sequence[RepairedFrame],
    config: FusionConfig,
    *,
    steps: int,
    weighting: Weighting = "eig",
    seed: int | Sequence[int] = 0,
    optimizer_state: Moments | None = None,
    earlier: Sequence[RepairedView] = (),
    views: Sequence[RepairedView] | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    checkpoint: TrainerCheckpoint | None = None,
) -> TrainerLike:
    """A trainer that distils repaired frames into a scene; see `trainer.Trainer`."""
    from faithfusion_studio.fusion.trainer import Trainer

    return Trainer(
        scene,
        frames,
        config,
        steps=steps,
        weighting=weighting,
        seed=seed,
        optimizer_state=optimizer_state,
        earlier=earlier,
        views=views,
        span=span,
        checkpoint=checkpoint,
    )


def follow_rows(fisher: StoredFisher, change: TopologyChange | None, scene: Scene) -> StoredFisher:
    """Evidence for the scene after its background grew or shrank; nodes keep their rows.

    Args:
        fisher: Evidence of the rows before.
        change: Of the background's rows; None where nothing grew or shrank.
        scene: The scene after.
    """
    from faithfusion_studio.information import follow_topology

    if change is None:
        return fisher
    before = len(fisher.blocks)
    nodes = scene.num_gaussians - len(scene.background)
    kept = torch.arange(before - nodes, before)
    source = torch.cat([change.source.cpu(), kept])
    is_new = torch.cat([change.is_new.cpu(), torch.zeros(nodes, dtype=torch.bool)])
    return follow_topology(fisher, TopologyChange(source, is_new))


def add_evidence(
    fisher: StoredFisher,
    scene: Scene,
    cameras: Sequence[Camera],
    weights: Sequence[Float32[Tensor, "H W"]],
) -> StoredFisher:
    """Evidence with more views in it."""
    from faithfusion_studio.information import add_views

    return add_views(fisher, scene, cameras, weights)


@dataclass(frozen=True)
class FusionParts:
    """What `progressive.Progression` calls."""

    repair: Callable[[Scene, Stage], Iterator[RepairedFrame | RepairStep]] = repair
    start_trainer: Callable[..., TrainerLike] = start_trainer
    follow_rows: Callable[[StoredFisher, TopologyChange | None, Scene], StoredFisher] = follow_rows
    add_evidence: Callable[..., StoredFisher] = add_evidence
