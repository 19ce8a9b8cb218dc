"""The job of fusion: a plan of stages, each of which becomes an entry of the history when it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from faithfusion_studio.fusion.progressive import FusionEvent, FusionPlan, FusionState, Progression
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.scene import Scene
from faithfusion_studio.session.engines import Engines
from faithfusion_studio.session.jobs import Job, JobResult, JobStep, require_finite

CLEARED = {"loss_curve": (), "psnr_curve": (), "moved_curve": (), "psnr_before": None}
"""What a new fusion takes off the board."""


@dataclass(frozen=True, eq=False)
class FusionTask:
    """What a fusion starts from."""

    scene: Scene
    """With evidence."""
    plan: FusionPlan
    frames: Sequence[RepairedFrame] = ()
    """Repaired and judged frames of the first stage that is left; empty to repair them first."""
    state: FusionState | None = None


class _Curves:
    """What is drawn live, over the steps of all stages."""

    def __init__(self, stages: Sequence[Stage], first: int) -> None:
        self._before = [sum(s.steps for s in stages[first:i]) for i in range(len(stages))]
        self.loss: tuple[tuple[int, float], ...] = ()
        self.psnr: tuple[tuple[int, float], ...] = ()
        self.moved: tuple[tuple[int, float], ...] = ()

    def changes(self, event: FusionEvent) -> dict[str, Any]:
        """The fields of the state that an event changes."""
        progress = event.progress
        if progress is None:
            return {"frames": event.frames, "stage": event.stage} if event.frames else {}
        step = self._before[event.index] + progress.step
        self.loss = (*self.loss, (step, progress.loss))
        if progress.psnr_recorded == progress.psnr_recorded:
            self.psnr = (*self.psnr, (step, progress.psnr_recorded))
        if progress.trusted_moved == progress.trusted_moved:
            self.moved = (*self.moved, (step, progress.trusted_moved))
        return {
            "loss_curve": self.loss,
            "psnr_curve": self.psnr,
            "moved_curve": self.moved,
            "psnr_before": self.psnr[0][1] if self.psnr else None,
            "num_gaussians": progress.num_gaussians,
            "num_generated": progress.num_generated,
        }


class _Pace:
    """Time left of a plan, from how long its frames and steps took so far."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._spent: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._last = time.monotonic()

    def left(self, event: FusionEvent) -> float | None:
        """Seconds, or None until a frame and a step were timed where both are to come."""
        now = time.monotonic()
        self._spent[event.phase] = self._spent.get(event.phase, 0.0) + now - self._last
        self._count[event.phase] = self._count.get(event.phase, 0) + 1
        self._last = now
        later = self._stages[event.index + 1 :]
        frames = sum(s.segment[1] - s.segment[0] for s in later if s.repair)
        steps = sum(s.steps for s in later)
        if event.phase == "repair":
            frames, steps = frames + event.total - event.done, steps + event.stage.steps
        elif event.phase == "learn":
            steps += event.total - event.done
        total = 0.0
        for phase, count in (("repair", frames), ("learn", steps)):
            if count and phase not in self._spent:
                return None
            total += count * self._spent.get(phase, 0.0) / max(1, self._count.get(phase, 0))
        return total


WORDS = {"repair": "repairing", "learn": "learning", "evidence": "counting evidence of"}


def fusion_job(engines: Engines, task: FusionTask) -> Job:
    """Carry out a plan of fusion; stopping keeps what the stage in progress has learned."""
    stages = task.plan.stages
    work = Progression(task.scene, task.plan, engines, state=task.state, frames=task.frames)
    first = work.first
    if (yield JobStep(0, stages[first].steps, changes={**CLEARED, "plan": stages})) == "stop":
        return JobResult()
    curves, pace = _Curves(stages, first), _Pace(stages)
    for event in work.run():
        left, changes = pace.left(event), curves.changes(event)
        entry, label = None, f"Fusion {event.stage.label}"
        if event.phase == "stage done":
            require_finite(work.scene)
            entry = JobResult(work.scene, label, work.state)
            changes = {"plan_done": event.index + 1}
        else:
            changes |= {"plan_done": event.index}
            if len(stages) > 1:
                label = f"{label}: {WORDS[event.phase]} (stage {event.index + 1} of {len(stages)})"
        asked = yield JobStep(event.done, event.total, left, changes, event.scene, label, entry)
        if asked == "stop":
            work.stop()
    return JobResult(notice=_notice(stages, first, curves))


def _notice(stages: Sequence[Stage], first: int, curves: _Curves) -> str:
    done = f"Fusion {stages[first].label}" if len(stages) - first == 1 else "Fusion"
    change = ""
    if curves.psnr:
        change = f" Recorded views {curves.psnr[0][1]:.2f} to {curves.psnr[-1][1]:.2f} dB."
    return f"{done} is done.{change}"
