"""The arguments of the command edit; see `arguments`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from faithfusion_studio.cli.arguments import Command


@dataclass(frozen=True, kw_only=True)
class Edit(Command):
    """Change a scene by hand: put other things in the place of objects, move, copy, remove or hide them, delete splats.

    Done in the order of the options below, whatever the order they are given in. `info SCENE` names the objects.
    Evidence, motions and provenance follow.
    """

    scene: Positional[Path]
    out: Positional[Path]
    replace: tuple[str, ...] = ()
    """NAME=OTHER: another object of the scene, or a file whose splats are fitted into the object's box."""
    up: Literal["+x", "-x", "+y", "-y", "+z", "-z"] = "+z"
    """Which axis points up in these files."""
    move: tuple[str, ...] = ()
    """NAME=FORWARD,LEFT,UP or NAME=FORWARD,LEFT,UP,TURN: m in the object's own frame; degrees, counter-clockwise."""
    duplicate: tuple[str, ...] = ()
    """NAME=FORWARD,LEFT,UP: a copy beside it, m."""
    remove: tuple[str, ...] = ()
    """Names of objects to take out."""
    hide: tuple[str, ...] = ()
    """Names of objects that are kept in a .ckpt but not drawn."""
    show: tuple[str, ...] = ()
    """Names of hidden objects to draw again."""
    delete_box: str | None = None
    """X,Y,Z,LENGTH,WIDTH,HEIGHT or with TURN: delete the splats in an upright box of the world; m and degrees."""
    delete_range: tuple[str, ...] = ()
    """NUMBER=LOW:HIGH with NUMBER of size (m), opacity, evidence (nats), provenance (0 to 3): delete these splats; of
    several, those in all ranges, and in the box where one is given."""
    among: str = "everything"
    """Delete only among "background", "everything" or one object's splats."""
    time: float = 0.0
    """Seconds; where moving objects are when the box is laid over them."""
