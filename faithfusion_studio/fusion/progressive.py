"""The whole loop: per stage repair, distil, and count what was accepted as evidence for the next stage.

A generator, like the parts it is made of. What stands between two stages is a value (`FusionState`), so every
stage can be undone with its optimiser state, and a run that is cut in two ends where one ends that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from faithfusion_studio.fusion.losses import FusionError
from faithfusion_studio.fusion.parameters import follow_moments
from faithfusion_studio.fusion.parts import FusionParts, TrainerLike
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.replay import RepairedView
from faithfusion_studio.fusion.schedule import FusionConfig, Progress, Stage
from faithfusion_studio.fusion.trainer import Moments, TrainerCheckpoint
from faithfusion_studio.gaussians import TopologyChange
from faithfusion_studio.repair.base import RepairStep
from faithfusion_studio.scene import Scene, StoredFisher

Phase = Literal["repair", "learn", "evidence", "stage done"]


@dataclass(frozen=True, eq=False)
class FusionPlan:
    """What is to be done."""

    stages: tuple[Stage, ...]
    config: FusionConfig = field(default_factory=FusionConfig)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class FusionState:
    """What a plan carries from stage to stage, beside the scene."""

    stages: tuple[Stage, ...] = ()
    """Stages that are done."""
    replay: tuple[RepairedView, ...] = ()
    """Repaired views accepted so far, the newest stage's last (only those where a plan keeps no others)."""
    newest: int = 0
    """How many of `replay` are of the newest stage."""
    moments: Moments | None = None
    checkpoint: TrainerCheckpoint | None = None
    """Where the stage after `stages` was stopped in the middle; its views are the newest of `replay`."""

    def after_edit(self, change: TopologyChange | None) -> FusionState:
        """What is left of it when the scene was edited by hand: the optimiser's moments, on the rows they belong to.

        Stages and repaired views are of the scene before: replayed, they would teach back what was taken out.

        Args:
            change: Of the background's rows; None while they are the same.
        """
        moments = self.moments
        if moments is not None and change is not None:
            moments = follow_moments(moments, change)
        return FusionState(moments=moments)

    @property
    def newest_views(self) -> tuple[RepairedView, ...]:
        """Those of the newest stage."""
        return self.replay[len(self.replay) - self.newest :]

    @property
    def earlier_views(self) -> tuple[RepairedView, ...]:
        """Those of all stages before it."""
        return self.replay[: len(self.replay) - self.newest]


@dataclass(frozen=True, eq=False)
class FusionEvent:
    """Where a plan stands after one step of its work."""

    phase: Phase
    index: int
    """Of the stage, in the plan."""
    stage: Stage
    done: int
    """Frames repaired, steps taken or views counted."""
    total: int
    frames: tuple[RepairedFrame, ...] = ()
    """Of the stage so far; while repairing."""
    progress: Progress | None = None
    """While learning."""
    scene: Callable[[], Scene] | None = None
    """Gives a copy of the scene as it stands, with evidence; while learning."""


class Progression:
    """Carries out a plan on a scene.

    Args:
        scene: With its recording and evidence.
        plan: All stages; the first ones are left out where `state` has done the same.
        parts: What the work is made of.
        state: From an earlier stage of this or another plan.
        frames: Already repaired and judged frames of the first stage, which is then not repaired again.
    """

    def __init__(
        self,
        scene: Scene,
        plan: FusionPlan,
        parts: FusionParts | None = None,
        *,
        state: FusionState | None = None,
        frames: Sequence[RepairedFrame] = (),
    ) -> None:
        self.scene, self.plan, self.parts = scene, plan, parts or FusionParts()
        """`scene` is that after the last stage that is done."""
        self.state = state or FusionState()
        """As it is after the last stage that is done."""
        self._frames = tuple(frames)
        self._trainer: TrainerLike | None = None
        self._evidence: _Evidence | None = None
        self._stopped = False

    @property
    def first(self) -> int:
        """Index of the first stage of the plan that is left."""
        done = self.state.stages
        return len(done) if done == self.plan.stages[: len(done)] else 0

    def stop(self) -> None:
        """End with the step in progress; what the stage has learned is kept and counted as evidence."""
        self._stopped = True

    def checkpoint(self) -> tuple[Scene, FusionState]:
        """The scene and the state as they are now, between two events, to go on from later as if never stopped."""
        if self._trainer is None or self._evidence is None:
            return self.scene, self.state
        scene, inside = self._trainer.checkpoint()
        scene = replace(scene, fisher=self._evidence.fisher(scene))
        views = self._trainer.views
        replay = (*self._kept(repaired=True), *views)
        return scene, replace(self.state, replay=replay, newest=len(views), checkpoint=inside)

    def run(self) -> Iterator[FusionEvent]:
        """All stages that are left; stop consuming to drop the one in progress.

        Raises:
            FusionError: A stage has nothing to learn from, or its loss is not a number.
        """
        for index in range(self.first, len(self.plan.stages)):
            stage = self.plan.stages[index]
            frames = yield from self._repaired(index, stage)
            if self._stopped and not any(frame.accepted for frame in frames):
                return
            yield from self._learned(index, stage, frames)
            if self._stopped:
                return

    # ------------------------------------------------------------------------------------ a stage

    def _repaired(
        self, index: int, stage: Stage
    ) -> Generator[FusionEvent, None, tuple[RepairedFrame, ...]]:
        """The frames of a stage, repaired now unless they are there already."""
        frames, self._frames = self._frames, ()
        if frames or not self._repairs(stage):
            return frames
        start, stop = stage.segment
        for frame in self.parts.repair(self.scene, stage):
            if not isinstance(frame, RepairStep):
                frames = (*frames, frame)
            yield FusionEvent("repair", index, stage, len(frames), stop - start, frames)
            if self._stopped:
                break
        return frames

    def _repairs(self, stage: Stage) -> bool:
        """Whether a stage has frames of its own still to be repaired."""
        going_on = not stage.repair and self.state.newest > 0
        if not stage.repair and self.state.newest == 0:
            raise FusionError(
                f"{stage.label}: goes on from the frames of the stage before it, and there is none; let it repair its own."
            )
        return self.state.checkpoint is None and not going_on

    def _kept(self, repaired: bool) -> tuple[RepairedView, ...]:
        """What is replayed beside the newest views: of all stages before, where the plan keeps them."""
        if not self.plan.config.keep_stages:
            return ()
        state = self.state
        whole = repaired and state.checkpoint is None
        return state.replay if whole else state.earlier_views

    def _start(self, index: int, stage: Stage, frames: Sequence[RepairedFrame]) -> TrainerLike:
        """The trainer of a stage."""
        state, stages = self.state, self.plan.stages
        accepted = [frame for frame in frames if frame.accepted]
        views = None
        if not accepted and not self._repairs(stage):
            views = tuple(replace(v, weighting=stage.weighting) for v in state.newest_views)
        elif not accepted:
            raise FusionError(
                f"{stage.label}: no repaired frame was accepted, so there is nothing to learn; accept one, or choose "
                "another engine or a smaller offset."
            )
        total = sum(other.steps for other in stages)
        before = sum(other.steps for other in stages[:index])
        return self.parts.start_trainer(
            self.scene,
            accepted,
            self.plan.config,
            steps=stage.steps,
            weighting=stage.weighting,
            seed=(self.plan.seed, index),
            optimizer_state=state.moments,
            earlier=self._kept(repaired=views is None),
            views=views,
            span=(before / total, (before + stage.steps) / total),
            checkpoint=state.checkpoint,
        )

    def _learned(
        self, index: int, stage: Stage, frames: Sequence[RepairedFrame]
    ) -> Generator[FusionEvent, None, None]:
        """Distil a stage, then count its repaired pixels as observations."""
        trainer = self._start(index, stage, frames)
        evidence = _Evidence(self.parts, self.scene, trainer)
        again = not stage.repair and not frames
        kept = self._kept(repaired=not again)
        self._trainer, self._evidence = trainer, evidence
        for progress in trainer.run():
            if not math.isfinite(progress.loss):
                raise FusionError(
                    f"the loss was not a number at step {progress.step}; the last good state is kept. "
                    "Fuse again with fewer steps or other frames."
                )
            yield FusionEvent(
                "learn", index, stage, progress.step, stage.steps, (), progress, evidence.scene
            )
            if self._stopped:
                break
        scene = evidence.scene()
        counted = () if again else trainer.views
        for done, view in enumerate(counted if scene.fisher is not None else (), start=1):
            fisher = self.parts.add_evidence(
                scene.fisher, scene, [view.camera], [view.evidence_weight]
            )
            scene = replace(scene, fisher=fisher)
            yield FusionEvent("evidence", index, stage, done, len(counted))
        self.scene, self._trainer, self._evidence = scene, None, None
        self.state = FusionState(
            stages=self.plan.stages[: index + 1],
            replay=(*kept, *trainer.views),
            newest=len(trainer.views),
            moments=trainer.optimizer_state(),
        )
        yield FusionEvent("stage done", index, stage, stage.steps, stage.steps)


class _Evidence:
    """The evidence before a stage, on the rows of the scene as it grows."""

    def __init__(self, parts: FusionParts, scene: Scene, trainer: TrainerLike) -> None:
        self._parts, self._trainer = parts, trainer
        self._start = self._followed = scene.fisher
        self._change: TopologyChange | None = None

    def fisher(self, scene: Scene) -> StoredFisher | None:
        """Evidence for the scene as it stands; None where there was none."""
        if self._start is not None and self._trainer.change is not self._change:
            self._change = self._trainer.change
            self._followed = self._parts.follow_rows(self._start, self._change, scene)
        return self._followed

    def scene(self) -> Scene:
        """A copy of the scene as it stands, with evidence."""
        scene = self._trainer.scene()
        return replace(scene, fisher=self.fisher(scene))
