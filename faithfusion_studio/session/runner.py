"""Drives one job at a time over the history and the store; called by the worker thread only."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from faithfusion_studio.errors import StudioError
from faithfusion_studio.scene import Scene
from faithfusion_studio.session import commands as c
from faithfusion_studio.session.history import History
from faithfusion_studio.session.jobs import Job, JobResult, JobStep, require_finite
from faithfusion_studio.session.memory import release_unused
from faithfusion_studio.session.state import (
    JobKind,
    JobState,
    StateBoard,
    scene_facts,
    sentence,
)
from faithfusion_studio.session.store import SceneStore

PUBLISH_EVERY = 0.5
"""Seconds between two snapshots of a running fusion."""
RELEASE_EVERY = 2.0
"""Seconds between two returns of freed memory while a job runs."""

_log = logging.getLogger(__name__)


@dataclass
class _Running:
    """The job that is not finished."""

    job: Job
    kind: JobKind
    label: str
    follow_up: c.Command | None = None
    asked: str | None = None
    single_step: bool = False
    started: bool = False
    last: JobStep | None = None
    shown: Scene | None = None
    """The last snapshot of it that was published."""


class JobRunner:
    """The running job, step by step, and what becomes of its result.

    Args:
        store: Where scenes are published.
        history: Where results are entered.
        board: Where progress is told.
    """

    def __init__(self, store: SceneStore, history: History, board: StateBoard) -> None:
        self._store, self._history, self._board = store, history, board
        self._running: _Running | None = None
        self._published = 0.0
        self._released = 0.0
        self._saved = history.current.number
        board.change(**self._facts())

    # ------------------------------------------------------------------------------------ state

    @property
    def idle(self) -> bool:
        """No job is running or paused."""
        return self._running is None

    @property
    def due(self) -> bool:
        """A step can be taken now."""
        running, job = self._running, self._board.state.job
        if running is None:
            return False
        paused = job is not None and job.paused
        return not paused or running.single_step or running.asked is not None

    def require_idle(self) -> None:
        """Raise a `CommandError` while a job runs."""
        if self._running is not None:
            raise c.CommandError(f"{self._running.label} is running; stop it or wait for its end.")

    def show(self) -> None:
        """Publish the history's current entry."""
        self._store.publish(self._history.current.scene)
        self._published = time.monotonic()
        self._board.change(**self._facts())

    def mark_saved(self) -> None:
        """The current entry is in a file now."""
        self._saved = self._history.current.number
        self._board.change(unsaved=False)

    def _facts(self) -> dict[str, Any]:
        labels, cursor = self._history.labels, self._history.cursor
        return {
            **scene_facts(self._history.current.scene),
            "history": labels,
            "cursor": cursor,
            "undo_label": labels[cursor] if cursor > 0 else None,
            "redo_label": labels[cursor + 1] if cursor + 1 < len(labels) else None,
            "unsaved": self._history.current.number != self._saved,
        }

    # -------------------------------------------------------------------------------- the steps

    def begin(
        self, job: Job, kind: JobKind, label: str, follow_up: c.Command | None = None
    ) -> None:
        """Take on a job; `follow_up` is handed back when it has succeeded."""
        self._running = _Running(job, kind, label, follow_up)
        self._board.change(job=JobState(kind, label))

    def advance(self) -> c.Command | None:
        """One step of the job; returns its follow-up when that was the last one."""
        running = self._running
        assert running is not None
        asked, running.asked = running.asked, None
        try:
            if running.started:
                step = running.job.send(asked)
            else:
                running.started = True
                step = next(running.job)
        except StopIteration as end:
            return self._finish(running, end.value)
        running.last, running.single_step = step, False
        if step.entry is not None:
            self._enter(running, step.entry)
        job = self._board.state.job or JobState(running.kind, running.label)
        if job.paused or time.monotonic() - self._published >= PUBLISH_EVERY:
            self._publish(running, step)
        if time.monotonic() - self._released >= RELEASE_EVERY:
            release_unused()
            self._released = time.monotonic()
        job = replace(job, done=step.done, total=step.total, seconds_left=step.seconds_left)
        if step.picture is not None:
            job = replace(job, picture=step.picture)
        if step.label is not None:
            running.label = step.label
            job = replace(job, label=step.label)
        self._board.change(job=job, **step.changes)
        return None

    def _enter(self, running: _Running, result: JobResult) -> None:
        """A part of the job becomes an entry of the history; cancelling goes back to it from now on."""
        assert result.scene is not None and result.label is not None
        self._history.push(result.label, result.scene, result.optimizer_state)
        running.shown = None
        self.show()
        if result.notice is not None:
            self._board.change(notice=result.notice)

    def _publish(self, running: _Running, step: JobStep) -> None:
        if step.scene is None:
            return
        scene = step.scene()
        require_finite(scene)
        self._store.publish(scene, step.done)
        running.shown = scene
        self._published = time.monotonic()

    def _finish(self, running: _Running, result: JobResult) -> c.Command | None:
        self._running = None
        release_unused()
        if result.scene is not None:
            if result.label is None:
                self._history.amend(result.scene)
            else:
                self._history.push(result.label, result.scene, result.optimizer_state)
            self.show()
        self._board.change(job=None)
        if running.follow_up is None and result.notice is not None:
            self._board.change(notice=result.notice)
        return running.follow_up

    def control(self, command: c.Pause | c.Resume | c.StepOnce | c.Stop | c.CancelJob) -> None:
        """Pause, go on, step, stop or cancel; nothing happens without a job."""
        running = self._running
        if running is None:
            return
        match command:
            case c.Pause():
                if running.last is not None:
                    self._publish(running, running.last)
                self._board.change_job(paused=True, asked="")
            case c.Resume():
                self._board.change_job(paused=False, asked="")
            case c.StepOnce():
                running.single_step = True
                self._board.change_job(paused=True, asked="")
            case c.Stop() if running.started and running.kind not in ("fisher", "follow"):
                running.asked = "stop"
                self._board.change_job(paused=False, asked="stopping")
            case _:
                self._drop(running)

    def _drop(self, running: _Running) -> None:
        """Cancel: back to the scene before the job."""
        self._running = None
        running.job.close()
        if running.shown is not None:
            self.show()
        self._board.change(job=None, notice=f"{running.label} was cancelled.", **self._facts())

    def fail(self, error: BaseException) -> None:
        """The job raised; what it had last shown stays, as an entry that can be undone."""
        running, self._running = self._running, None
        if running is None:
            return
        if not isinstance(error, StudioError):
            _log.error("%s failed", running.label, exc_info=error)
        if running.shown is not None:
            self._history.push(f"{running.label} (interrupted)", running.shown)
            self.show()
        self._board.change(job=None, error=sentence(error, running.label), **self._facts())

    def keep_interrupted(self) -> None:
        """On closing: what a fusion has learned so far becomes the current entry.

        Raises:
            JobError: It is not finite; the entry before stays.
        """
        running, self._running = self._running, None
        if running is None:
            return
        try:
            if running.last is not None and running.last.scene is not None:
                scene = running.last.scene()
                require_finite(scene)
                self._history.push(f"{running.label} (interrupted)", scene)
                self.show()
        finally:
            running.job.close()
