"""The command edit: objects and splats changed by hand, without a window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from faithfusion_studio.cli.edit_arguments import Edit
from faithfusion_studio.cli.inputs import CommandLineError, parse_numbers, reserved
from faithfusion_studio.cli.running import Result, scene_notes
from faithfusion_studio.editing import Box, by_value, in_box, limited_to
from faithfusion_studio.editing.quantities import QUANTITIES
from faithfusion_studio.scene import Scene
from faithfusion_studio.session.commands import (
    DeleteGaussians,
    DuplicateNode,
    MarkNode,
    MoveNode,
    NodeEdit,
    RemoveNode,
    ReplaceNode,
    apply_edit,
    edit_label,
)


def edit(args: Edit) -> Result:
    """Apply the edits one after the other and write the scene."""
    from faithfusion_studio.io import load_scene, save_scene

    scene = load_scene(args.scene)
    done = []
    for command in _node_edits(args, scene):
        scene = apply_edit(scene, command).scene
        done.append(edit_label(command))
    rows = _rows(args, scene)
    if rows is not None:
        command = DeleteGaussians(rows)
        scene = apply_edit(scene, command).scene
        done.append(edit_label(command))
    if not done:
        raise CommandLineError("nothing to change was asked for; ff-studio edit --help lists it.")
    with reserved(args.out, args.scene):
        lost = save_scene(scene, args.out)
    notes = [*scene_notes(scene), *lost]
    values: dict[str, Any] = {
        "edits": done,
        "gaussians": scene.num_gaussians,
        "nodes": [node.name for node in scene.nodes],
        "notes": notes,
        "out": args.out,
    }
    lines = [f"{args.out}: {scene.num_gaussians:,} Gaussians after: {'; '.join(done)}.", *notes]
    return Result(values, lines)


def _node_edits(args: Edit, scene: Scene) -> Iterator[NodeEdit]:
    names = {node.name for node in scene.nodes}
    for name, other in _pairs("--replace", args.replace):
        if other in names:
            yield ReplaceNode(name, node=other)
        else:
            yield ReplaceNode(name, path=other, up=args.up)
    for name, text in _pairs("--move", args.move):
        x, y, z, turn = _numbers("--move", text, 3, 4)
        yield MoveNode(name, (x, y, z), math.radians(turn), "object")
    for name, text in _pairs("--duplicate", args.duplicate):
        x, y, z = _numbers("--duplicate", text, 3, 3)
        yield DuplicateNode(name, (x, y, z))
    for name in args.remove:
        yield RemoveNode(name)
    for name in args.hide:
        yield MarkNode(name, hidden=True)
    for name in args.show:
        yield MarkNode(name, hidden=False)


def _rows(args: Edit, scene: Scene) -> Tensor | None:
    """Rows to delete; None where no deletion was asked for."""
    if args.delete_box is None and not args.delete_range:
        return None
    mask = limited_to(scene, args.among)
    if args.delete_box is not None:
        x, y, z, length, width, height, turn = _numbers("--delete-box", args.delete_box, 6, 7)
        box = Box((x, y, z), (length, width, height), math.radians(turn))
        mask &= in_box(scene, box, args.time)
    for name, text in _pairs("--delete-range", args.delete_range):
        if name not in QUANTITIES:
            raise CommandLineError(
                f"--delete-range: found {name!r}; expected one of {', '.join(QUANTITIES)}."
            )
        low, high = _numbers("--delete-range", text.replace(":", ","), 2, 2)
        mask &= by_value(scene, name, low, high)  # type: ignore[arg-type]
    return mask.nonzero()[:, 0]


def _pairs(option: str, texts: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for text in texts:
        name, equals, rest = text.partition("=")
        if not (name and equals and rest):
            raise CommandLineError(f"{option}: found {text!r}; expected NAME=...")
        yield name, rest


def _numbers(option: str, text: str, least: int, most: int) -> list[float]:
    """So many finite numbers; those left out are 0."""
    found = parse_numbers(text)
    if not least <= len(found) <= most:
        wanted = str(least) if least == most else f"{least} or {most}"
        raise CommandLineError(f"{option}: found {len(found)} numbers; expected {wanted}.")
    return [*found, *[0.0] * (most - len(found))]
