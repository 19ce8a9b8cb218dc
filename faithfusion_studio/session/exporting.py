"""Exports: readers of one snapshot, in a thread of their own, one at a time."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from faithfusion_studio.errors import StudioError
from faithfusion_studio.io import is_writable
from faithfusion_studio.scene import Scene
from faithfusion_studio.session.commands import CommandError, ExportRequest
from faithfusion_studio.session.engines import Engines
from faithfusion_studio.session.jobs import export_cameras, export_job
from faithfusion_studio.session.state import JobState, StateBoard, sentence

_log = logging.getLogger(__name__)


class Exporter:
    """Runs exports and reports on the board."""

    def __init__(self, engines: Engines, board: StateBoard) -> None:
        self._engines, self._board = engines, board
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, scene: Scene, before: Scene, request: ExportRequest, target: Path) -> None:
        """Begin an export of one scene.

        Raises:
            CommandError: An export is running.
            SceneError: A video was asked of a scene without a recording.
            TrajectoryError: The segment is outside the drive.
        """
        if self._thread is not None and self._thread.is_alive():
            raise CommandError("an export is running; cancel it or wait for its end.")
        if not is_writable(target):
            export_cameras(scene, request)
        self._cancelled.clear()
        label = f"Export {target.name}"
        self._board.change(export=JobState("export", label))
        self._thread = threading.Thread(
            target=self._run,
            args=(scene, before, request, label),
            name="session-export",
            daemon=True,
        )
        self._thread.start()

    def cancel(self, wait: float = 0.0) -> None:
        """Ask the running export to end, and wait for it so long (s)."""
        self._cancelled.set()
        thread = self._thread
        if thread is None or not thread.is_alive():
            return
        self._board.change_export(asked="stopping")
        if wait > 0:
            thread.join(wait)

    def _run(self, scene: Scene, before: Scene, request: ExportRequest, label: str) -> None:
        job = export_job(self._engines, scene, before, request)
        try:
            while not self._cancelled.is_set():
                with self._engines.thread_limit(1):
                    step = next(job)
                self._board.change_export(
                    done=step.done, total=step.total, seconds_left=step.seconds_left
                )
            job.close()
            self._board.change(export=None, notice=f"{label} was cancelled.")
        except StopIteration as end:
            self._board.add_exports(end.value.files)
            self._board.change(export=None, notice=end.value.notice)
        except Exception as error:  # an export that fails must not end the session
            if not isinstance(error, StudioError):
                _log.error("%s failed", label, exc_info=error)
            self._board.change(export=None, error=sentence(error, label))
