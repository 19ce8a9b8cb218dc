"""Everything a person can ask of the session, as values; and the edits among them as functions."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.fill import FILL
from faithfusion_studio.fusion.schedule import FusionConfig, Stage, Weighting
from faithfusion_studio.fusion.spawn import EmptyRule
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import Scene, StoredFisher
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
    """World axes, m."""
    yaw: float = 0.0
    """Turn about its own up axis, rad, counter-clockwise from above."""


Edit: TypeAlias = DeleteGaussians | SetSky | RemoveNode | MoveNode
Command: TypeAlias = (
    RepairSegment
    | AcceptFrames
    | StartFusion
    | FillEmpty
    | ComputeFisher
    | Pause
    | Resume
    | StepOnce
    | Stop
    | CancelJob
    | Export
    | CancelExport
    | SaveAs
    | Undo
    | Redo
    | GoTo
    | Edit
)


def edit_label(command: Edit) -> str:
    """What the history calls an edit."""
    if isinstance(command, DeleteGaussians):
        return f"Delete {len(command.rows)} splats"
    if isinstance(command, SetSky):
        return "Change the sky"
    return f"{'Remove' if isinstance(command, RemoveNode) else 'Move'} {command.name}"


def apply_edit(scene: Scene, command: Edit) -> Scene:
    """The scene after an edit; untouched tensors are shared, evidence rows follow.

    Args:
        scene: The scene before; stays as it is.
        command: What to change.

    Raises:
        CommandError: The edit names something this scene does not have.
    """
    if isinstance(command, DeleteGaussians):
        return _delete(scene, command.rows)
    if isinstance(command, SetSky):
        if not all(math.isfinite(c) and 0 <= c <= 1 for c in command.color):
            raise CommandError(f"the sky colour {command.color} is not three numbers in 0..1.")
        fisher = None if scene.fisher is None else replace(scene.fisher, sky=None)
        color = torch.tensor(command.color, device=scene.device)
        return replace(scene, sky=ConstantSky(color), fisher=fisher)
    index = _node_index(scene, command.name)
    if isinstance(command, RemoveNode):
        start = len(scene.background) + sum(len(n.gaussians) for n in scene.nodes[:index])
        rows = torch.arange(start, start + len(scene.nodes[index].gaussians))
        kept = scene.nodes[:index] + scene.nodes[index + 1 :]
        return replace(scene, nodes=kept, fisher=_without_rows(scene, rows))
    moved = _moved(scene.nodes[index], command)
    return replace(scene, nodes=(*scene.nodes[:index], moved, *scene.nodes[index + 1 :]))


def _moved(node: RigidNode, command: MoveNode) -> RigidNode:
    if not all(math.isfinite(v) for v in (*command.offset, command.yaw)):
        raise CommandError(f"{command.name} cannot be moved by a distance that is not finite.")
    c, s = math.cos(command.yaw), math.sin(command.yaw)
    turn = torch.eye(4, dtype=node.poses.dtype)
    turn[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=node.poses.dtype)
    poses = node.poses @ turn
    poses[:, :3, 3] += torch.tensor(command.offset, dtype=poses.dtype)
    return replace(node, poses=poses)


def _node_index(scene: Scene, name: str) -> int:
    names = [node.name for node in scene.nodes]
    if name not in names:
        known = ", ".join(names) if names else "none"
        raise CommandError(f"there is no object called {name!r}; the scene has: {known}.")
    return names.index(name)


def _delete(scene: Scene, rows: Tensor) -> Scene:
    total = scene.num_gaussians
    if len(rows) == 0:
        raise CommandError("no splats are selected; select some first.")
    if int(rows.min()) < 0 or int(rows.max()) >= total:
        raise CommandError(
            f"row {int(rows.max())} does not exist; the scene has {total} splats. Select again."
        )
    keep = torch.ones(total, dtype=torch.bool)
    keep[rows.cpu()] = False
    start = len(scene.background)
    nodes = []
    for node in scene.nodes:
        part = keep[start : start + len(node.gaussians)]
        nodes.append(replace(node, gaussians=_rows(node.gaussians, part)))
        start += len(node.gaussians)
    background = _rows(scene.background, keep[: len(scene.background)])
    return replace(
        scene, background=background, nodes=tuple(nodes), fisher=_without_rows(scene, rows)
    )


def _rows(gaussians: Gaussians, keep: Tensor) -> Gaussians:
    return gaussians if bool(keep.all()) else gaussians.select(keep.to(gaussians.means.device))


def _without_rows(scene: Scene, rows: Tensor) -> StoredFisher | None:
    fisher = scene.fisher
    if fisher is None:
        return None
    keep = torch.ones(scene.num_gaussians, dtype=torch.bool)
    keep[rows.cpu()] = False
    variance = fisher.residual_variance
    return replace(
        fisher,
        blocks=fisher.blocks[keep],
        sh=fisher.sh[keep],
        residual_variance=None if variance is None else variance[keep],
    )


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
