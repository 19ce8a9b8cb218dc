"""Edits of moving objects: each takes a scene and gives a new one that shares what it does not touch.

Node frame: x forward, y left, z up, origin at the box centre. World: z up.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from faithfusion_studio.editing.fitting import Up, fitted
from faithfusion_studio.editing.rows import (
    Edited,
    EditError,
    node_index,
    node_rows,
    require_unlocked,
    with_evidence,
)
from faithfusion_studio.gaussians import Gaussians, Provenance
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import Scene

MoveFrame = Literal["world", "object"]


def mark_node(
    scene: Scene,
    name: str,
    *,
    hidden: bool | None = None,
    locked: bool | None = None,
    color: tuple[float, float, float] | None = None,
) -> Edited:
    """Hide or show, lock or unlock, or colour an object; what is None stays.

    Args:
        scene: The scene before.
        name: Of the object.
        hidden: Take it out of every view. Evidence of its Gaussians is kept.
        locked: Refuse all edits of it but these.
        color: RGB in [0, 1] that marks it in lists and outlines.

    Raises:
        EditError: No such object, or not a colour.
    """
    index = node_index(scene, name)
    node = scene.nodes[index]
    if color is not None and not all(math.isfinite(c) and 0 <= c <= 1 for c in color):
        raise EditError(f"the colour {color} is not three numbers in 0..1.")
    marked = replace(
        node,
        hidden=node.hidden if hidden is None else hidden,
        locked=node.locked if locked is None else locked,
        color=node.color if color is None else color,
    )
    return Edited(_with_node(scene, index, marked))


def move_node(
    scene: Scene,
    name: str,
    *,
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0),
    yaw: float = 0.0,
    frame: MoveFrame = "world",
) -> Edited:
    """Shift and turn an object at all times.

    Args:
        scene: The scene before.
        name: Of the object.
        offset: m, along the axes of `frame`.
        yaw: Turn about its own up axis, rad, counter-clockwise from above.
        frame: "world", or "object": forward, left and up of the object at each time, before it is turned.

    Raises:
        EditError: No such object, it is locked, or a number is not finite.
    """
    index = node_index(scene, name)
    node = scene.nodes[index]
    require_unlocked(node, what="moved")
    if not all(math.isfinite(v) for v in (*offset, yaw)):
        raise EditError(f"{name} cannot be moved by a distance that is not finite.")
    return Edited(_with_node(scene, index, replace(node, poses=_moved(node, offset, yaw, frame))))


def duplicate_node(
    scene: Scene, name: str, *, offset: tuple[float, float, float] = (0.0, 3.0, 0.0)
) -> Edited:
    """Add a second object like one of the scene, beside it.

    The copy is unlocked, shown and marked as edited. What is known of a Gaussian is known of its copy, so
    evidence is taken along.

    Args:
        scene: The scene before.
        name: Of the object.
        offset: From the object to its copy at each time, m: forward, left, up of the object.

    Raises:
        EditError: No such object, or a number is not finite.
    """
    index = node_index(scene, name)
    node = scene.nodes[index]
    if not all(math.isfinite(v) for v in offset):
        raise EditError(f"a copy of {name} cannot be put at a distance that is not finite.")
    copy = replace(
        node,
        name=free_name(scene, name),
        gaussians=_edited(node.gaussians),
        poses=_moved(node, offset, 0.0, "object"),
        hidden=False,
        locked=False,
    )
    rows = node_rows(scene)[index]
    edited = replace(scene, nodes=(*scene.nodes, copy))
    sources = [torch.arange(scene.num_gaussians), torch.arange(rows.start, rows.stop)]
    return Edited(with_evidence(edited, scene.fisher, sources))


def remove_node(scene: Scene, name: str) -> Edited:
    """Take an object out of the scene for good.

    Raises:
        EditError: No such object, or it is locked.
    """
    index = node_index(scene, name)
    require_unlocked(scene.nodes[index], what="deleted")
    rows = node_rows(scene)[index]
    edited = replace(scene, nodes=scene.nodes[:index] + scene.nodes[index + 1 :])
    sources = [torch.arange(rows.start), torch.arange(rows.stop, scene.num_gaussians)]
    return Edited(with_evidence(edited, scene.fisher, sources))


def replace_node(
    scene: Scene, name: str, by: str | Gaussians, *, up: Up = "+z", turn: float = 0.0
) -> Edited:
    """Put something else where an object drives; its name, path, times and colour stay.

    Another object keeps its own size and stands on the same ground, with its evidence. Gaussians of a file
    are turned upright, scaled as a whole to fit the object's box and set on its floor; nobody has seen
    them yet, so they have no evidence.

    Args:
        scene: The scene before.
        name: Of the object that goes.
        by: Name of another object, or Gaussians in any frame and unit.
        up: Which axis of these Gaussians points up.
        turn: Further turn about the up axis, rad, counter-clockwise from above.

    Raises:
        EditError: No such object, it is locked, it would replace itself, or there is nothing to fit.
    """
    index = node_index(scene, name)
    node = scene.nodes[index]
    require_unlocked(node, what="replaced")
    if not math.isfinite(turn):
        raise EditError(f"{name} cannot be turned by an angle that is not finite.")
    if by == name:
        raise EditError(f"{name} would be replaced by itself; choose another object or a file.")
    if isinstance(by, str):
        found = node_index(scene, by)
        rows = node_rows(scene)[found]
        changed = _in_place_of(node, scene.nodes[found], turn)
        source: Tensor | int = torch.arange(rows.start, rows.stop)
    else:
        gaussians = _edited(fitted(by, node.size, up=up, turn=turn).to(scene.device))
        changed = replace(node, gaussians=gaussians, motion=None, turns_colors=True)
        source = len(gaussians)
    rows = node_rows(scene)[index]
    before, after = torch.arange(rows.start), torch.arange(rows.stop, scene.num_gaussians)
    edited = _with_node(scene, index, changed)
    return Edited(with_evidence(edited, scene.fisher, [before, source, after]))


def free_name(scene: Scene, name: str) -> str:
    """A name like this one that no node has: "car 2", "car 3", ..."""
    taken = {node.name for node in scene.nodes}
    stem, _, number = name.rpartition(" ")
    stem = stem if number.isdigit() and stem else name
    return next(found for i in range(2, len(taken) + 3) if (found := f"{stem} {i}") not in taken)


def _in_place_of(node: RigidNode, other: RigidNode, turn: float) -> RigidNode:
    lift = (0.0, 0.0, float(other.size[2] - node.size[2]) / 2)
    return replace(
        node,
        gaussians=_edited(other.gaussians),
        poses=_moved(node, lift, turn, "object"),
        size=other.size,
        category=other.category,
        motion=other.motion,
        turns_colors=other.turns_colors,
    )


def _moved(
    node: RigidNode, offset: tuple[float, float, float], yaw: float, frame: MoveFrame
) -> Tensor:
    c, s = math.cos(yaw), math.sin(yaw)
    change = torch.eye(4, dtype=node.poses.dtype)
    change[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=node.poses.dtype)
    shift = torch.tensor(offset, dtype=node.poses.dtype)
    if frame == "object":
        change[:3, 3] = shift
    poses = node.poses @ change
    if frame == "world":
        poses[:, :3, 3] += shift
    return poses


def _edited(gaussians: Gaussians) -> Gaussians:
    return replace(
        gaussians, provenance=torch.full_like(gaussians.provenance, int(Provenance.EDITED))
    )


def _with_node(scene: Scene, index: int, node: RigidNode) -> Scene:
    return replace(scene, nodes=(*scene.nodes[:index], node, *scene.nodes[index + 1 :]))
