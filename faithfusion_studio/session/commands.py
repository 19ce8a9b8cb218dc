"""Everything a person can ask of the session, as values; and the edits among them as functions."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from faithfusion_studio import editing
from faithfusion_studio.editing.fitting import Up
from faithfusion_studio.editing.objects import MoveFrame
from faithfusion_studio.editing.rows import Edited, EditError
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.fill import FILL
from faithfusion_studio.fusion.schedule import FusionConfig, Stage, Weighting
from faithfusion_studio.fusion.spawn import EmptyRule
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io import load_scene
from faithfusion_studio.scene import Scene
from faithfusion_studio.session.box_commands import (
    BoxEdit,
    ExportBoxes,
    FollowBox,
    apply_box_edit,
    box_label,
)
from faithfusion_studio.sky import ConstantSky


class CommandError(StudioError):
    """Something that was asked for cannot be done to this scene, or not now."""


# ---------------------------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class RepairSegment:
    """Render the frames of a stage and repair them; nothing in the scene changes."""

    stage: Stage
    preview: bool = False
    """The result is only looked at: it goes to `SessionState.preview`, not into the strip."""


@dataclass(frozen=True)
class AcceptFrames:
    """Say which repaired frames may be learned from."""

    frames: tuple[int, ...] | None = None
    """Indices into the recorded trajectory; None means all of the strip."""
    accepted: bool = True


@dataclass(frozen=True)
class StartFusion:
    """Distil repaired frames into the splats: the accepted ones of the strip, or stage by stage a whole plan."""

    steps: int = 500
    """Without stages: optimiser steps."""
    weighting: Weighting = "eig"
    """Without stages: how much each repaired pixel is believed."""
    stages: tuple[Stage, ...] = ()
    """A plan, each stage repaired when its turn comes; stages that are done already are left out."""
    config: FusionConfig = field(default_factory=FusionConfig)


@dataclass(frozen=True)
class FillEmpty:
    """Put splats where the accepted repaired frames show surfaces and the scene has nothing."""

    rule: EmptyRule = FILL
    preview: bool = False
    """Only say where they would be: they go to `SessionState.filling`, the scene stays."""


@dataclass(frozen=True)
class ComputeFisher:
    """Sum the evidence of the recorded views, which EIG needs."""


@dataclass(frozen=True)
class Pause:
    """Halt the running job between two steps."""


@dataclass(frozen=True)
class Resume:
    """Go on with a paused job."""


@dataclass(frozen=True)
class StepOnce:
    """Do one step and stay paused."""


@dataclass(frozen=True)
class Stop:
    """End the running job and keep what it has done so far."""


@dataclass(frozen=True)
class CancelJob:
    """End the running job and drop what it has done to the scene."""


# ------------------------------------------------------------------------------------- readers


@dataclass(frozen=True)
class ExportRequest:
    """A video, a folder of pictures, or a splat file of the scene as it is when the export starts."""

    path: str
    """Target; .mp4 is a video, .ckpt and the names of splat files are scenes, else a folder of PNG."""
    camera_path: Literal["recorded", "shown", "segment"] = "recorded"
    """The drive, the drive at `lateral_offset`, or only its `segment` at `lateral_offset`."""
    lateral_offset: float = 0.0
    """m, + = left."""
    segment: tuple[int, int] | None = None
    """Half-open range of recorded frames; needed for the camera path "segment"."""
    layers: tuple[str, ...] = ("rgb",)
    """Of "rgb", "eig", "depth"."""
    layout: Literal["single", "side-by-side", "before-after", "columns"] = "single"
    """"before" is the scene as it was opened."""
    fps: float = 10.0
    size: tuple[int, int] | None = None
    """Width and height of one picture, px; None keeps the recorded size."""
    caption: str = ""
    """Burned into the lower left corner; empty for none."""
    provenance: bool = False
    """Also burn in which share of each picture was generated."""
    cameras: tuple[str, ...] = ()
    """Cameras of the rig by name, or "all"; empty takes the first."""
    arrange: Literal["files", "grid"] = "files"
    """Several cameras: a video for each, or all in one picture."""


@dataclass(frozen=True)
class Export:
    """Write an export in the background."""

    request: ExportRequest


@dataclass(frozen=True)
class CancelExport:
    """Stop the running export; nothing appears under its final name."""


@dataclass(frozen=True)
class SaveAs:
    """Write the scene to a file: .ckpt (everything), or the name of a splat file (splats only)."""

    path: str


# ------------------------------------------------------------------------------------- history


@dataclass(frozen=True)
class Undo:
    """Go back by one entry of the history."""


@dataclass(frozen=True)
class Redo:
    """Go forward by one entry of the history."""


@dataclass(frozen=True)
class GoTo:
    """Go to an entry of the history."""

    index: int


# --------------------------------------------------------------------------------------- edits


@dataclass(frozen=True, eq=False)
class DeleteGaussians:
    """Remove Gaussians."""

    rows: Int[Tensor, "M"]
    """Rows in scene order: background first, then the nodes."""


@dataclass(frozen=True)
class SetSky:
    """Replace the sky by one colour."""

    color: tuple[float, float, float]
    """RGB in [0, 1]."""


@dataclass(frozen=True)
class RemoveNode:
    """Remove a moving object."""

    name: str


@dataclass(frozen=True)
class MoveNode:
    """Shift and turn a moving object at all times."""

    name: str
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Along the axes of `frame`, m."""
    yaw: float = 0.0
    """Turn about its own up axis, rad, counter-clockwise from above."""
    frame: MoveFrame = "world"


@dataclass(frozen=True)
class MarkNode:
    """Hide or show, lock or unlock, or colour a moving object; what is None stays."""

    name: str
    hidden: bool | None = None
    locked: bool | None = None
    color: tuple[float, float, float] | None = None
    """RGB in [0, 1]."""


@dataclass(frozen=True)
class DuplicateNode:
    """Add a second object like one of the scene."""

    name: str
    offset: tuple[float, float, float] = (0.0, 3.0, 0.0)
    """Forward, left, up of the object, m."""


@dataclass(frozen=True)
class ReplaceNode:
    """Put another object, or the splats of a file, where an object drives; one of the two is given."""

    name: str
    node: str | None = None
    """Name of the other object."""
    path: str | None = None
    """Any file that opens as a scene."""
    up: Up = "+z"
    """Which axis points up in the file."""
    turn: float = 0.0
    """Rad, counter-clockwise from above."""


NodeEdit: TypeAlias = RemoveNode | MoveNode | MarkNode | DuplicateNode | ReplaceNode
Edit: TypeAlias = DeleteGaussians | SetSky | NodeEdit | BoxEdit
Command: TypeAlias = (
    RepairSegment
    | AcceptFrames
    | StartFusion
    | FillEmpty
    | ComputeFisher
    | FollowBox
    | Pause
    | Resume
    | StepOnce
    | Stop
    | CancelJob
    | Export
    | CancelExport
    | SaveAs
    | ExportBoxes
    | Undo
    | Redo
    | GoTo
    | Edit
)


def edit_label(command: Edit) -> str:
    """What the history calls an edit."""
    match command:
        case DeleteGaussians():
            return f"Delete {len(command.rows)} splats"
        case SetSky():
            return "Change the sky"
        case MarkNode():
            return _mark_label(command)
        case ReplaceNode():
            return f"Replace {command.name} by {command.node or Path(command.path or '').name}"
        case RemoveNode() | MoveNode() | DuplicateNode():
            verbs = {RemoveNode: "Remove", MoveNode: "Move", DuplicateNode: "Duplicate"}
            return f"{verbs[type(command)]} {command.name}"
    return box_label(command)


def _mark_label(command: MarkNode) -> str:
    words = {True: ("Hide", "Lock"), False: ("Show", "Unlock")}
    for given, at in ((command.hidden, 0), (command.locked, 1)):
        if given is not None:
            return f"{words[given][at]} {command.name}"
    return f"Colour {command.name}"


def apply_edit(
    scene: Scene, command: Edit, *, load: Callable[[Path], Scene] = load_scene
) -> Edited:
    """The scene after an edit; untouched tensors are shared, evidence rows follow.

    Args:
        scene: The scene before; stays as it is.
        command: What to change.
        load: Reads a scene file.

    Raises:
        CommandError: The scene does not allow the edit, or names something it does not have.
        StudioError: A file cannot be read.
    """
    try:
        match command:
            case DeleteGaussians():
                return editing.delete_rows(scene, command.rows)
            case SetSky():
                return Edited(_with_sky(scene, command.color))
            case RemoveNode() | MoveNode() | MarkNode() | DuplicateNode() | ReplaceNode():
                return _edited_node(scene, command, load)
            case _:
                return apply_box_edit(scene, command)
    except EditError as error:
        raise CommandError(str(error)) from error


def _edited_node(scene: Scene, command: NodeEdit, load: Callable[[Path], Scene]) -> Edited:
    name = command.name
    match command:
        case RemoveNode():
            return editing.remove_node(scene, name)
        case MoveNode(offset=offset, yaw=yaw, frame=frame):
            return editing.move_node(scene, name, offset=offset, yaw=yaw, frame=frame)
        case MarkNode(hidden=hidden, locked=locked, color=color):
            return editing.mark_node(scene, name, hidden=hidden, locked=locked, color=color)
        case DuplicateNode():
            return editing.duplicate_node(scene, name, offset=command.offset)
        case ReplaceNode():
            by = _replacement(command, load)
            return editing.replace_node(scene, name, by, up=command.up, turn=command.turn)


def _with_sky(scene: Scene, color: tuple[float, float, float]) -> Scene:
    if not all(math.isfinite(c) and 0 <= c <= 1 for c in color):
        raise CommandError(f"the sky colour {color} is not three numbers in 0..1.")
    fisher = None if scene.fisher is None else replace(scene.fisher, sky=None)
    return replace(scene, sky=ConstantSky(torch.tensor(color, device=scene.device)), fisher=fisher)


def _replacement(command: ReplaceNode, load: Callable[[Path], Scene]) -> str | Gaussians:
    """The name of the other object, or what a file shows at its first moment."""
    if bool(command.node) == bool(command.path):
        raise CommandError("name another object or a file to put there, one of the two.")
    if command.node:
        return command.node
    return load(Path(str(command.path)).expanduser()).at(0.0).gaussians


# --------------------------------------------------------------------------------------- checks


def check_target(path: Path, opened: Path | None, num_bytes: int) -> None:
    """Refuse a target that cannot be written, before any work is done.

    Args:
        path: Where to write; its folder must exist.
        opened: The file the scene came from, which is never overwritten.
        num_bytes: About how much will be written.

    Raises:
        CommandError: One sentence that says what to do.
    """
    folder = path.parent
    if path.name in ("", ".", "..") or path.is_dir():
        raise CommandError(f"{path}: this is a folder; give the name of a file in it.")
    if not folder.is_dir():
        raise CommandError(f"{folder}: the folder does not exist; create it or choose another.")
    if not os.access(folder, os.W_OK):
        raise CommandError(f"{folder}: the folder cannot be written; choose another.")
    if opened is not None and path.exists() and opened.exists() and path.samefile(opened):
        raise CommandError(
            f"{path}: this is the file that was opened, which is never overwritten; "
            "choose another name."
        )
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise CommandError(
            f"{folder}: no space left, about {num_bytes / 1e6:.0f} MB are needed and "
            f"{free / 1e6:.0f} MB are free; make room or choose another folder."
        )


def scene_bytes(scene: Scene) -> int:
    """About how large the scene is as a native file."""
    tensors = [scene.background, *(node.gaussians for node in scene.nodes)]
    total = sum(part.num_bytes() for part in tensors) + (1 << 20)
    if scene.fisher is not None:
        total += scene.fisher.blocks.nbytes + scene.fisher.sh.nbytes
    if scene.capture is not None:
        for frame in scene.capture.frames:
            data = frame.data
            total += len(data) if isinstance(data, bytes) else data.stat().st_size
    return total
