"""What is done to the selected object: move, turn, duplicate, delete, put something else in its place."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any, get_args

from faithfusion_studio.editing.fitting import Up
from faithfusion_studio.errors import StudioError
from faithfusion_studio.session.commands import (
    DuplicateNode,
    MoveNode,
    RemoveNode,
    ReplaceNode,
)
from faithfusion_studio.session.state import NodeInfo
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.widgets import PLAIN, change

FRAMES = {"object": "Forward, left, up of it", "world": "World x, y, z"}
FILE = "a splat file"


class ObjectToolError(StudioError):
    """A tool that lacks what it needs."""


class ObjectTools:
    """The controls, in the current container; they act on the object the view has selected."""

    def __init__(self, gui: Any, session: Any, view: View) -> None:
        self._session, self._view = session, view
        self._handle = gui.add_checkbox(
            "Arrows", True, hint="Drag them in the picture to move and turn it."
        )
        self._shift = gui.add_vector3("Move (m)", (0.0, 0.0, 0.0), step=0.1)
        self._frame = gui.add_dropdown("Along", tuple(FRAMES.values()))
        self._turn = gui.add_number(
            "Turn (\u00b0)", 0.0, step=5.0, hint="Counter-clockwise from above."
        )
        self._move = gui.add_button("Move and turn", color=PLAIN)
        self._copy = gui.add_button(
            "Duplicate",
            color=PLAIN,
            hint="Beside it by the numbers above, or 3 m to its left where they are 0.",
        )
        self._delete = gui.add_button("Delete the object", color="red")
        with gui.add_folder("Replace", expand_by_default=False):
            self._by = gui.add_dropdown("With", (FILE,))
            self._path = gui.add_text("File", "", hint="A .ply, .spz, .splat, .ckpt, ... here.")
            self._upload = gui.add_upload_button("Upload a file", color=PLAIN)
            self._up = gui.add_dropdown("Up in the file", get_args(Up), initial_value="+z")
            self._way = gui.add_number("Turn it (\u00b0)", 0.0, step=90.0)
            self._put = gui.add_button("Replace", color=PLAIN)
        self._bind()

    def show(self, node: NodeInfo) -> None:
        """Follow the selected object."""
        busy = self._session.state.job is not None
        for button in (self._move, self._delete, self._put):
            change(button, disabled=busy or node.locked)
        change(self._copy, disabled=busy)
        others = (one.name for one in self._session.state.nodes if one.name != node.name)
        options = (FILE, *others)
        if self._by.options != options:
            self._by.options = options
        for widget in (self._path, self._upload, self._up):
            change(widget, visible=self._by.value == FILE)

    def _bind(self) -> None:
        guarded, submit = self._view.guarded, self._session.submit

        def name() -> str:
            return self._view.get().selected

        self._handle.on_update(guarded(lambda _e: self._view.set(handle=self._handle.value)))
        self._move.on_click(guarded(lambda _e: self._submit_move()))
        self._delete.on_click(guarded(lambda _e: submit(RemoveNode(name()))))
        self._by.on_update(guarded(lambda _e: self._show_file()))
        self._put.on_click(guarded(lambda _e: self._replace(self._path.value.strip())))

        @self._copy.on_click
        @guarded
        def _(_event: Any) -> None:
            x, y, z = self._shift.value
            beside = (float(x), float(y), float(z)) if any((x, y, z)) else (0.0, 3.0, 0.0)
            submit(DuplicateNode(name(), beside))

        @self._upload.on_upload
        @guarded
        def _(_event: Any) -> None:
            sent = self._upload.value
            folder = Path(tempfile.mkdtemp(prefix="ff-studio-upload-"))
            target = folder / Path(sent.name).name
            target.write_bytes(sent.content)
            self._path.value = str(target)
            self._replace(str(target))

    def _show_file(self) -> None:
        for widget in (self._path, self._upload, self._up):
            change(widget, visible=self._by.value == FILE)

    def _submit_move(self) -> None:
        x, y, z = (float(v) for v in self._shift.value)
        yaw = math.radians(float(self._turn.value))
        if not any((x, y, z, yaw)):
            raise ObjectToolError("give a distance or an angle other than 0 first.")
        frame = "object" if self._frame.value == FRAMES["object"] else "world"
        self._session.submit(MoveNode(self._view.get().selected, (x, y, z), yaw, frame))

    def _replace(self, path: str) -> None:
        turn = math.radians(float(self._way.value))
        name, by = self._view.get().selected, self._by.value
        if by != FILE:
            self._session.submit(ReplaceNode(name, node=by, turn=turn))
            return
        if not path:
            raise ObjectToolError("write the path of a splat file above, or upload one.")
        self._session.submit(ReplaceNode(name, path=path, up=self._up.value, turn=turn))
