"""The one thread that may change the scene: commands in order, jobs step by step, undo, state.

Everybody else reads: `store.latest()` for the scene, `state` for the words around it.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from faithfusion_studio.cameras import Segment
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.fill import fill_candidates, with_filling
from faithfusion_studio.fusion.progressive import FusionPlan, FusionState, Progression
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.spawn import EmptyRule
from faithfusion_studio.scene import Scene
from faithfusion_studio.session import commands as c
from faithfusion_studio.session.box_commands import export_boxes
from faithfusion_studio.session.engines import Engines, RepairEngine
from faithfusion_studio.session.exporting import Exporter
from faithfusion_studio.session.fusing import FusionTask, fusion_job
from faithfusion_studio.session.history import History
from faithfusion_studio.session.jobs import fisher_job, follow_job, repair_job
from faithfusion_studio.session.runner import JobRunner
from faithfusion_studio.session.state import JobState, SessionState, StateBoard, sentence
from faithfusion_studio.session.store import SceneStore

MOVING = 0.1
"""Somebody moves while the last movement is younger than this, s."""
VIEWER_PAUSE = 0.05
"""How long the worker steps aside before each step while somebody moves, s."""
WATCHED = 2.0
"""So long after a movement one core is left to the viewports, s."""
CLOSE_PATIENCE = 4.0
"""How long `close` waits for the step in progress, s."""

_log = logging.getLogger(__name__)


class Session:
    """A scene that is worked on, its history, and what is going on.

    Args:
        scene: The scene as opened.
        path: The file it came from; never overwritten.
        engines: What the jobs are made of.
        run_folder: Where autosaves and exports go; `runs/<scene>/<time>` when not given. It is
            created when first needed.
        history_bytes: Memory of the undo history; older entries go to files.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        path: Path | None = None,
        engines: Engines | None = None,
        run_folder: Path | None = None,
        history_bytes: int = 2 << 30,
    ) -> None:
        self._engines = engines or Engines()
        self._opened_path = path
        name = path.stem if path is not None else "scene"
        self.run_folder = run_folder or Path("runs") / name / time.strftime("%Y-%m-%d_%H-%M-%S")
        self.store = SceneStore(scene)
        self._history = History(
            scene, max_bytes=history_bytes, save=self._engines.save, load=self._engines.load
        )
        self._before = scene
        self._filled_by: EmptyRule | None = None
        self._board = StateBoard(SessionState(path=None if path is None else str(path)))
        self._runner = JobRunner(self.store, self._history, self._board)
        self._exporter = Exporter(self._engines, self._board)
        self._queue: deque[c.Command] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._busy = False
        self._viewer_moved = -1e9
        self._cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        self._worker = threading.Thread(target=self._work, name="session-worker", daemon=True)
        self._worker.start()

    # --------------------------------------------------------------------- what others may call

    @property
    def state(self) -> SessionState:
        """What is going on; replaced as a whole, never changed."""
        return self._board.state

    @property
    def before_scene(self) -> Scene:
        """The scene before the last fusion; as opened when there was none."""
        return self._before

    def subscribe(self, call: Callable[[SessionState], None]) -> Callable[[], None]:
        """Call back with the newest state, now and after changes, from one notifier thread.

        Changes in quick succession arrive as one. Returns the function that ends it.
        """
        return self._board.subscribe(call)

    def submit(self, command: c.Command) -> None:
        """Ask for something; returns at once, commands are taken in the order they came."""
        job = self.state.job
        if job is not None and isinstance(command, (c.Pause, c.Stop, c.CancelJob)):
            asked = "pausing" if isinstance(command, c.Pause) else "stopping"
            self._board.change_job(asked=asked)
        with self._wake:
            if self._closing:
                return
            self._queue.append(command)
            self._wake.notify_all()

    def note_viewer_activity(self) -> None:
        """Somebody moves: the picture goes first."""
        self._viewer_moved = time.monotonic()

    def repair_engines(self) -> tuple[RepairEngine, ...]:
        """The engines to choose from, with their cost on this scene."""
        return self._engines.list_engines(self.store.latest().scene)

    def accept_licence(self, engine: str) -> None:
        """Remember that the licence of an engine's weights was accepted at this machine.

        Raises:
            RepairError: The engine asks for none.
        """
        self._engines.accept_licence(engine)

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs or waits (an export aside); False when time (s) ran out."""
        with self._wake:
            return self._wake.wait_for(
                lambda: not self._queue and not self._busy and self._runner.idle, timeout
            )

    def close(self, save: bool = True) -> Path | None:
        """End all work.

        Args:
            save: Write what is not saved, a running fusion included, to an autosave.

        Returns:
            The autosave, None where there was nothing to save.

        Raises:
            CommandError: The autosave could not be written anywhere.
        """
        with self._wake:
            if self._closing:
                return None
            self._closing = True
            self._queue.clear()
            self._wake.notify_all()
        self._worker.join(CLOSE_PATIENCE)
        self._exporter.cancel(wait=CLOSE_PATIENCE)
        shown = self.store.latest().scene
        dirty = self.state.unsaved or shown is not self._history.current.scene
        kept = self._autosave(shown) if save and dirty else None
        self._board.close()
        self._history.close()
        return kept

    def _autosave(self, scene: Scene) -> Path:
        fallback = Path(tempfile.gettempdir()) / "ff-studio" / self.run_folder.name
        for folder in (self.run_folder, fallback):
            target = folder / "scenes" / "autosave.ckpt"
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._engines.save(scene, target)
            except (OSError, StudioError) as error:
                _log.warning("%s: not saved there: %s", target, error)
                continue
            self._board.change(notice=f"Unsaved work was kept in {target}.", unsaved=False)
            return target
        raise c.CommandError(
            f"unsaved work could be written neither to {self.run_folder} nor to {fallback}; "
            "make room and save again."
        )

    # ------------------------------------------------------------------------------ the worker

    def _work(self) -> None:
        while True:
            command = self._take()
            if self._closing:
                break
            try:
                if command is None:
                    command = self._step()
                if command is not None:
                    self._handle(command)
            except Exception as error:  # one failed command must not end the session
                if not isinstance(error, StudioError):
                    _log.exception("%s failed", type(command).__name__)
                self._board.change(error=sentence(error, type(command).__name__))
            with self._wake:
                self._busy = False
                self._wake.notify_all()
        try:
            self._runner.keep_interrupted()
        except Exception:  # closing goes on without the last half second
            _log.exception("the interrupted job could not be kept")

    def _take(self) -> c.Command | None:
        """The next command, or None when a step of the job is due."""
        with self._wake:
            while not self._closing:
                if self._queue:
                    self._busy = True
                    return self._queue.popleft()
                if not self._runner.due:
                    self._wake.wait()
                    continue
                if time.monotonic() - self._viewer_moved < MOVING:
                    self._wake.wait(VIEWER_PAUSE)
                    if self._queue or self._closing:
                        continue
                self._busy = True
                return None
        return None

    def _step(self) -> c.Command | None:
        """One step of the job; its failure ends the job and nothing else."""
        watched = time.monotonic() - self._viewer_moved < WATCHED
        threads = max(1, self._cpus - 1) if watched else self._cpus
        try:
            with self._engines.thread_limit(threads):
                return self._runner.advance()
        except Exception as error:  # whatever a job raises, the scene before it is still good
            self._runner.fail(error)
            return None

    # ------------------------------------------------------------------------------- commands

    def _handle(self, command: c.Command) -> None:
        match command:
            case c.Pause() | c.Resume() | c.StepOnce() | c.Stop() | c.CancelJob():
                self._runner.control(command)
            case c.AcceptFrames():
                self._accept(command)
            case c.SaveAs():
                self._save_as(command)
            case c.Export():
                target = Path(command.request.path)
                scene = self.store.latest().scene
                self._exporter.start(scene, self._before, command.request, self._check(target))
            case c.CancelExport():
                self._exporter.cancel()
            case c.RepairSegment() | c.StartFusion() | c.ComputeFisher():
                self._runner.require_idle()
                self._start(command)
            case c.FollowBox():
                self._runner.require_idle()
                entry = self._history.current
                job = follow_job(entry.scene, command.name, entry.optimizer_state)
                self._runner.begin(job, "follow", f"Follow {command.name}")
            case c.ExportBoxes():
                self._export_boxes(command)
            case c.FillEmpty():
                self._runner.require_idle()
                self._fill(command)
            case c.Undo() | c.Redo() | c.GoTo():
                self._runner.require_idle()
                self._travel(command)
            case _:
                self._runner.require_idle()
                entry = self._history.current
                edited = c.apply_edit(entry.scene, command, load=self._engines.load)
                reached = entry.optimizer_state
                if isinstance(reached, FusionState) and not isinstance(command, c.BoxEdit):
                    reached = reached.after_edit(edited.background)
                self._history.push(c.edit_label(command), edited.scene, reached)
                self._runner.show()

    def _accept(self, command: c.AcceptFrames) -> None:
        frames = self.state.frames
        unknown = set(command.frames or ()) - {frame.frame for frame in frames}
        if unknown:
            raise c.CommandError(f"frame {min(unknown)} is not among the repaired frames.")
        chosen = {f.frame for f in frames} if command.frames is None else set(command.frames)
        self._board.change(
            frames=tuple(
                replace(f, accepted=command.accepted) if f.frame in chosen else f for f in frames
            )
        )

    def _start(self, command: c.RepairSegment | c.StartFusion | c.ComputeFisher) -> None:
        entry = self._history.current
        scene = entry.scene
        trajectory = scene.trajectory
        if isinstance(command, c.RepairSegment):
            trajectory.segment(Segment(*command.stage.segment))
        elif isinstance(command, c.StartFusion) and not (
            command.stages or any(f.accepted for f in self.state.frames)
        ):
            raise c.CommandError("accept at least one repaired frame first.")
        self._board.change(filling=None)
        stale = scene.fisher is None or len(scene.fisher.blocks) != scene.num_gaussians
        if isinstance(command, c.ComputeFisher) or stale:
            follow_up = None if isinstance(command, c.ComputeFisher) else command
            label = "Evidence of the recorded views"
            self._runner.begin(fisher_job(self._engines, scene), "fisher", label, follow_up)
        elif isinstance(command, c.RepairSegment):
            what = "Preview" if command.preview else "Repair"
            job = repair_job(self._engines, scene, command.stage, command.preview)
            self._runner.begin(job, "repair", f"{what} {command.stage.label}")
        else:
            self._start_fusion(command, scene, entry.optimizer_state)

    def _start_fusion(self, command: c.StartFusion, scene: Scene, reached: object) -> None:
        strip, stage = self.state.frames, self.state.stage
        state = reached if isinstance(reached, FusionState) else None
        accepted = [frame for frame in strip if frame.accepted]
        if command.stages:
            task = self._plan_task(command, scene, state, accepted)
        else:
            assert stage is not None
            learned = replace(stage, steps=command.steps, weighting=command.weighting)
            again = None if state is None else replace(state, stages=())
            task = FusionTask(scene, FusionPlan((learned,), command.config), accepted, again)
        if min(stage.steps for stage in task.plan.stages) < 1:
            raise c.CommandError("a stage of no steps was asked for; at least one step is needed.")
        self._before = scene
        first = task.plan.stages[0]
        self._runner.begin(fusion_job(self._engines, task), "fusion", f"Fusion {first.label}")

    def _plan_task(
        self,
        command: c.StartFusion,
        scene: Scene,
        state: FusionState | None,
        accepted: list[RepairedFrame],
    ) -> FusionTask:
        """A plan from the first stage that is left, with the frames in the strip where they are that stage's."""
        plan = FusionPlan(command.stages, command.config)
        first = Progression(scene, plan, self._engines, state=state).first
        if first == len(plan.stages):
            raise c.CommandError(
                "all stages of this plan are done; undo one, or change or add a stage."
            )
        stage, shown = plan.stages[first], self.state.stage
        scene.trajectory.segment(Segment(*stage.segment))
        if shown is not None:
            shown = replace(
                shown, steps=stage.steps, weighting=stage.weighting, repair=stage.repair
            )
        frames = accepted if shown == stage else []
        return FusionTask(scene, plan, frames, state)

    def _fill(self, command: c.FillEmpty) -> None:
        """Show what would be added, or add it as one entry of the history."""
        scene, shown = self._history.current.scene, self.state.filling
        if command.preview and shown is not None and command.rule == self._filled_by:
            self._board.change(filling=None)
            return
        self._filled_by = command.rule
        found = fill_candidates(scene, self.state.frames, command.rule)
        if not len(found):
            self._board.change(filling=None)
            raise c.CommandError(
                "nothing is empty by these limits where the repaired frames agree; raise the opacity below which a "
                "pixel counts as empty, or lower the depth difference."
            )
        if command.preview:
            self._board.change(filling=found, notice=f"{len(found):,} splats would be added.")
            return
        self._before = scene
        self._history.push(f"Fill empty: {len(found):,} splats", with_filling(scene, found))
        self._runner.show()
        self._board.change(filling=None, notice=f"{len(found):,} splats were added.")

    def _travel(self, command: c.Undo | c.Redo | c.GoTo) -> None:
        history = self._history
        labels, cursor = history.labels, history.cursor
        match command:
            case c.Undo():
                target, notice = cursor - 1, f"Undid: {labels[cursor]}"
            case c.Redo():
                target, notice = cursor + 1, f"Redid: {labels[min(cursor + 1, len(labels) - 1)]}"
            case _:
                target = command.index
                notice = f"Back at: {labels[target]}" if 0 <= target < len(labels) else ""
        if not 0 <= target < len(labels):
            what = {c.Undo: "undo", c.Redo: "redo"}.get(type(command), "go back to")
            raise c.CommandError(f"there is nothing to {what}.")
        history.go_to(target)
        self._runner.show()
        self._board.change(notice=notice, filling=None)

    def _check(self, target: Path, scene: Scene | None = None) -> Path:
        """The target, once it is known that it can be written."""
        if target.parent.is_relative_to(self.run_folder):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise c.CommandError(f"{target.parent}: {error.strerror}.") from error
        needed = 16 << 20 if scene is None else c.scene_bytes(scene)
        c.check_target(target, self._opened_path, needed)
        return target

    def _save_as(self, command: c.SaveAs) -> None:
        target = Path(command.path).expanduser()
        scene = self.store.latest().scene
        self._check(target, scene)
        idle = self._runner.idle
        if idle:
            self._board.change(job=JobState("save", f"Save {target.name}"))
        try:
            lost = self._engines.save(scene, target)
        finally:
            if idle:
                self._board.change(job=None)
        if idle and target.suffix == ".ckpt":
            self._runner.mark_saved()
            self._board.change(path=str(target))
        self._board.change(notice=" ".join([f"Saved {target}.", *lost]))

    def _export_boxes(self, command: c.ExportBoxes) -> None:
        target = Path(command.path).expanduser()
        written = export_boxes(self.store.latest().scene, self._check(target))
        self._board.add_exports((str(target),))
        self._board.change(notice=f"Wrote {written} vehicles to {target}.")
