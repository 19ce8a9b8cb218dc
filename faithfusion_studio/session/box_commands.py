"""What a person can ask about the annotated vehicles of the recording, as values; and how it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float64
from torch import Tensor

from faithfusion_studio.editing import boxes
from faithfusion_studio.editing.rows import Edited, EditError
from faithfusion_studio.scene import Scene

Triple: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class AddBox:
    """Fit a box to the laser points about a place: a new vehicle with one keyframe."""

    at: Triple
    """On the vehicle, world, m."""
    time: float
    """s."""
    category: str = "car"
    name: str = ""
    """Empty for the category and a number."""


@dataclass(frozen=True)
class PlaceBox:
    """Put a box of the usual size on the road: a new vehicle with one keyframe."""

    at: Triple
    """On the road, world, m."""
    time: float
    """s."""
    category: str = "car"
    name: str = ""
    """Empty for the category and a number."""


@dataclass(frozen=True, eq=False)
class SetKeyframe:
    """Say where a vehicle is at a time."""

    name: str
    time: float
    """s."""
    pose: Float64[Tensor, "4 4"]
    """Box -> world."""


@dataclass(frozen=True)
class FitKeyframe:
    """Lay a vehicle's box on the laser points where it stands at a time."""

    name: str
    time: float
    """s."""


@dataclass(frozen=True)
class RemoveKeyframe:
    """Forget where a vehicle is at a time."""

    name: str
    time: float
    """s."""


@dataclass(frozen=True)
class ChangeBox:
    """Rename a vehicle, say what it is, or give it another size; what is None stays."""

    name: str
    new_name: str | None = None
    category: str | None = None
    size: Triple | None = None
    """Length, width, height, m."""


@dataclass(frozen=True)
class RemoveBox:
    """Forget a vehicle."""

    name: str


@dataclass(frozen=True)
class FollowBox:
    """Follow a vehicle from its keyframes through all sweeps; a job."""

    name: str


@dataclass(frozen=True)
class ExportBoxes:
    """Write the vehicles to a JSON file that `ff-studio reconstruct --boxes` reads."""

    path: str


BoxEdit: TypeAlias = (
    AddBox | PlaceBox | SetKeyframe | FitKeyframe | RemoveKeyframe | ChangeBox | RemoveBox
)


def box_label(command: BoxEdit) -> str:
    """What the history calls an edit."""
    match command:
        case AddBox() | PlaceBox():
            return f"Box of {command.name or f'a {command.category}'}"
        case SetKeyframe() | FitKeyframe():
            return f"Keyframe of {command.name} at {command.time:.1f} s"
        case RemoveKeyframe():
            return f"Remove the keyframe of {command.name} at {command.time:.1f} s"
        case ChangeBox(new_name=str() as new) if new != command.name:
            return f"Rename {command.name} to {new}"
        case ChangeBox():
            return f"{'Category' if command.size is None else 'Size'} of {command.name}"
        case RemoveBox():
            return f"Remove the box of {command.name}"


def apply_box_edit(scene: Scene, command: BoxEdit) -> Edited:
    """The scene after an edit.

    Raises:
        EditError: The recording does not allow it, or has no such vehicle or keyframe.
        StudioError: A box cannot be fitted there.
    """
    match command:
        case AddBox() | PlaceBox():
            at = torch.tensor(command.at, dtype=torch.float64)
            add = boxes.add_box if isinstance(command, AddBox) else boxes.place_box
            return add(scene, at, command.time, category=command.category, name=command.name)
        case SetKeyframe():
            return boxes.set_keyframe(scene, command.name, command.time, command.pose)
        case FitKeyframe():
            return boxes.fit_keyframe(scene, command.name, command.time)
        case RemoveKeyframe():
            return boxes.remove_keyframe(scene, command.name, command.time)
        case ChangeBox():
            return boxes.change_box(
                scene,
                command.name,
                new_name=command.new_name,
                category=command.category,
                size=command.size,
            )
        case RemoveBox():
            return boxes.remove_box(scene, command.name)


def export_boxes(scene: Scene, target: Path) -> int:
    """Write where every vehicle is at each recorded time while it is annotated; returns how many vehicles.

    Raises:
        EditError: Nothing is annotated.
        CaptureError: The file cannot be written.
    """
    from faithfusion_studio.io.annotations import write_box_tracks

    capture = scene.capture
    if capture is None or not capture.boxes:
        raise EditError("no vehicle is annotated yet; fit a box to one first.")
    times = capture.trajectory.timestamps
    write_box_tracks([boxes.at_times(track, times) for track in capture.boxes], target)
    return len(capture.boxes)
