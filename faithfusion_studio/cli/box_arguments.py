"""The arguments of the command boxes; see `arguments`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from faithfusion_studio.cli.arguments import Command


@dataclass(frozen=True, kw_only=True)
class Boxes(Command):
    """Annotate what moves in a recording: fit boxes to its laser points, follow them, write them to a file.

    `reconstruct --boxes FILE` then learns each vehicle that moves as an object of its own. Without options it lists
    the boxes. Done in the order of the options below, whatever the order they are given in. Example:

    `ff-studio boxes drive boxes.json --add "car=0:625,240" --follow car --picture check.png`
    """

    recording: Positional[Path]
    """A capture folder with laser sweeps, or a scene with its recording."""
    file: Positional[Path]
    """The boxes (.json): read where it exists, else begun with the recording's own; written where they change."""
    remove: tuple[str, ...] = ()
    """Names of boxes to take out."""
    add: tuple[str, ...] = ()
    """NAME=FRAME:X,Y (pixel of a recorded frame) or NAME=FRAME:X,Y,Z (place in the world, m): fit a box to the laser
    points there; where NAME exists, a further key frame with its size."""
    category: tuple[str, ...] = ()
    """NAME=CATEGORY of boxes added: car, van, truck, trailer, bus, motorcycle, cyclist, pedestrian; car when not given.
    Unseen sides are completed to its usual size."""
    size: tuple[str, ...] = ()
    """NAME=LENGTH,WIDTH,HEIGHT of boxes added, m, where they are known; an existing box keeps its places."""
    heading: tuple[str, ...] = ()
    """NAME=DEGREES of boxes added: where their front points, counter-clockwise from +x of the world, to about 15."""
    place: tuple[str, ...] = ()
    """NAME=FRAME:X,Y,Z,TURN: a key frame by hand, of a box that exists or whose --size is given: the middle of its
    bottom in the world, m, and its heading, degrees. No laser is needed."""
    move: tuple[str, ...] = ()
    """NAME=FRAME:FORWARD,LEFT,UP or with TURN: its box at this frame moved in its own frame, m and degrees; by hand."""
    drop: tuple[str, ...] = ()
    """NAME=FRAME: take out the key frame at this frame."""
    follow: tuple[str, ...] = ()
    """Names of boxes to find in all sweeps around their key frames. Those placed by --add, --place and --move stay."""
    picture: Path | None = None
    """Draw the boxes into recorded frames: one sheet (.png or .jpg), or a folder for a picture of each frame."""
    frames: str | None = None
    """Half-open range A:B of the frames in the picture; all when not given."""
    every: int = 1
    """Every n-th of them only."""
    columns: int = 2
    """Pictures beside each other on a sheet."""
    width: int = 960
    """Of each picture on a sheet, pixels."""
