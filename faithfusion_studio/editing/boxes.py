"""Edits of the annotated vehicles of a recording: each takes a scene and gives a new one; its splats stay.

A vehicle is a box of one size with keyframes: poses at some times, set by hand or followed through the sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from faithfusion_studio.annotating import Annotation, Keyframe, fit_at, follow, usual_size
from faithfusion_studio.boxes import BoxTrack
from faithfusion_studio.editing.rows import Edited, EditError
from faithfusion_studio.scene import Capture, Scene

SHORTEST, LONGEST = 0.2, 30.0
"""Sides of a box that a vehicle may have, m."""
LONGEST_NAME = 60


def annotated(scene: Scene, name: str) -> Annotation:
    """A vehicle of the recording with its keyframes.

    Raises:
        EditError: There is no vehicle of this name.
    """
    boxes = _capture(scene).boxes
    return Annotation.from_track(boxes[_index(boxes, name)])


def add_box(
    scene: Scene, at: Float[Tensor, "3"], time: float, *, category: str = "car", name: str = ""
) -> Edited:
    """A new vehicle with one keyframe: the box fitted to the laser points about a place.

    Args:
        scene: The scene before.
        at: A place on the vehicle, world, m.
        time: Of the keyframe, s; that of the nearest sweep is taken.
        category: What it is, e.g. "car".
        name: Unique among the vehicles; empty for the category and a number.

    Raises:
        EditError: The recording has no sweeps, or the name is taken.
        AnnotationError: There are too few points about the place.
    """
    capture = _capture(scene)
    name = _new_name(capture, category, name)
    fitted, when = fit_at(capture, time, at, category=category)
    new = Annotation(name, category, fitted.size, (Keyframe(when, fitted.pose),))
    return _with_boxes(scene, (*capture.boxes, new.track()))


def place_box(
    scene: Scene, at: Float[Tensor, "3"], time: float, *, category: str = "car", name: str = ""
) -> Edited:
    """A new vehicle with one keyframe: a box of the usual size that stands on the road and points as we drive.

    Args:
        scene: The scene before.
        at: A place on the road, world, m.
        time: Of the keyframe, s; that of the nearest frame is taken.
        category: See `add_box`.
        name: See `add_box`.

    Raises:
        EditError: There is no recording, or the name is taken.
    """
    capture = _capture(scene)
    name = _new_name(capture, category, name)
    times = capture.trajectory.timestamps
    nearest = min(range(len(times)), key=lambda i: abs(times[i] - time))
    size = torch.tensor(usual_size(category))
    pose = capture.trajectory.ego_to_worlds[nearest].clone()
    pose[:3, 3] = at.to(pose) + 0.5 * float(size[2]) * pose[:3, 2]
    new = Annotation(name, category, size, (Keyframe(times[nearest], pose),))
    return _with_boxes(scene, (*capture.boxes, new.track()))


def set_keyframe(scene: Scene, name: str, time: float, pose: Float[Tensor, "4 4"]) -> Edited:
    """Say by hand where a vehicle is at a time.

    Args:
        scene: The scene before.
        name: Of the vehicle.
        time: s.
        pose: Box -> world; rigid.

    Raises:
        EditError: There is no such vehicle.
        AnnotationError: The pose is not rigid.
    """
    keyframe = Keyframe(time, pose.to(torch.float64))
    return _with_annotation(scene, name, annotated(scene, name).with_keyframe(keyframe))


def fit_keyframe(scene: Scene, name: str, time: float) -> Edited:
    """Lay a vehicle's box on the laser points about the place where it stands at a time; its size stays.

    Raises:
        EditError: There is no such vehicle, or it is not there at this time.
        AnnotationError: There are too few points.
    """
    found = annotated(scene, name)
    pose = found.track().pose_at(time)
    if pose is None:
        raise EditError(f"{name} is not there at {time:.2f} s; set a keyframe there first.")
    fitted, when = fit_at(
        _capture(scene),
        time,
        pose[:3, 3],
        category=found.category,
        size=found.size,
        heading=math.atan2(float(pose[1, 0]), float(pose[0, 0])),
    )
    return _with_annotation(scene, name, found.with_keyframe(Keyframe(when, fitted.pose)))


def remove_keyframe(scene: Scene, name: str, time: float) -> Edited:
    """Forget where a vehicle is at a time.

    Raises:
        EditError: There is no such vehicle.
        AnnotationError: It has no keyframe there, or this is the only one.
    """
    return _with_annotation(scene, name, annotated(scene, name).without_keyframe(time))


def change_box(
    scene: Scene,
    name: str,
    *,
    new_name: str | None = None,
    category: str | None = None,
    size: tuple[float, float, float] | None = None,
) -> Edited:
    """Rename a vehicle, say what it is, or give it another size; what is None stays.

    Args:
        scene: The scene before.
        name: Of the vehicle.
        new_name: Unique among the vehicles.
        category: E.g. "car".
        size: Length, width, height, m. Its bottom stays on the road.

    Raises:
        EditError: There is no such vehicle, the name is empty or taken, or a side is impossible.
    """
    boxes, found = _capture(scene).boxes, annotated(scene, name)
    if new_name is not None and new_name.strip() != name:
        new_name = new_name.strip()
        _require_free(new_name, [track.name for track in boxes])
        found = replace(found, name=new_name)
    if category is not None:
        found = replace(found, category=category)
    if size is not None:
        found = _resized(found, size)
    return _with_annotation(scene, name, found)


def remove_box(scene: Scene, name: str) -> Edited:
    """Forget a vehicle of the recording; an object learned from it stays.

    Raises:
        EditError: There is no such vehicle.
    """
    boxes = _capture(scene).boxes
    index = _index(boxes, name)
    return _with_boxes(scene, (*boxes[:index], *boxes[index + 1 :]))


def follow_box(scene: Scene, name: str) -> Generator[tuple[int, int], None, Scene]:
    """Follow a vehicle from its keyframes through all sweeps; yields (done, total), returns the scene.

    Raises:
        EditError: There is no such vehicle, or the recording has no sweeps.
    """
    found = yield from follow(_capture(scene), annotated(scene, name))
    return _with_annotation(scene, name, found).scene


def nearest_pose(track: BoxTrack, time: float) -> Float64[Tensor, "4 4"]:
    """Where a vehicle is at a time (s), or at its nearest keyframe where it is not annotated then."""
    pose = track.pose_at(time)
    return track.poses[int((track.timestamps - time).abs().argmin())] if pose is None else pose


def moved_pose(
    pose: Float64[Tensor, "4 4"], shift: tuple[float, float, float], yaw: float
) -> Float64[Tensor, "4 4"]:
    """A pose shifted in the world (m) and turned about its own up axis (rad, counter-clockwise from above)."""
    c, s = math.cos(yaw), math.sin(yaw)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    moved = pose.to(torch.float64).clone()
    moved[:3, :3] = moved[:3, :3] @ turn
    moved[:3, 3] += torch.tensor(shift, dtype=torch.float64)
    return moved


def at_times(track: BoxTrack, times: Sequence[float]) -> BoxTrack:
    """A track with poses at its key times and at all of some times (s) between them."""
    return Annotation.from_track(track).track([*times, *track.timestamps.tolist()])


def _capture(scene: Scene) -> Capture:
    if scene.capture is None:
        raise EditError("this scene has no recording, so nothing can be annotated in it.")
    return scene.capture


def _index(boxes: tuple[BoxTrack, ...], name: str) -> int:
    names = [track.name for track in boxes]
    if name not in names:
        known = ", ".join(names) if names else "none"
        raise EditError(f"there is no vehicle called {name!r}; the recording has: {known}.")
    return names.index(name)


def _new_name(capture: Capture, category: str, wanted: str) -> str:
    """A name that is free: the wanted one, or the category with a number."""
    names = [track.name for track in capture.boxes]
    if not wanted.strip():
        numbered = (f"{category} {number}" for number in range(1, len(names) + 2))
        return next(name for name in numbered if name not in names)
    _require_free(wanted.strip(), names)
    return wanted.strip()


def _require_free(name: str, names: list[str]) -> None:
    if not name or len(name) > LONGEST_NAME:
        raise EditError(f"found a name of {len(name)} letters; expected 1 to {LONGEST_NAME}.")
    if name in names:
        raise EditError(f"there is a vehicle called {name!r} already; choose another name.")


def _resized(found: Annotation, size: tuple[float, float, float]) -> Annotation:
    """The same vehicle with other sides, its bottom where it was at every keyframe."""
    if not all(math.isfinite(side) and SHORTEST <= side <= LONGEST for side in size):
        raise EditError(
            f"found the size {' x '.join(f'{side:g}' for side in size)} m; expected sides of "
            f"{SHORTEST:g} to {LONGEST:g} m."
        )
    lift = 0.5 * (size[2] - float(found.size[2]))
    keyframes = []
    for keyframe in found.keyframes:
        pose = keyframe.pose.clone()
        pose[:3, 3] += lift * pose[:3, 2]
        keyframes.append(replace(keyframe, pose=pose))
    return replace(found, size=torch.tensor(size), keyframes=tuple(keyframes))


def _with_annotation(scene: Scene, name: str, changed: Annotation) -> Edited:
    boxes = _capture(scene).boxes
    index = _index(boxes, name)
    return _with_boxes(scene, (*boxes[:index], changed.track(), *boxes[index + 1 :]))


def _with_boxes(scene: Scene, boxes: tuple[BoxTrack, ...]) -> Edited:
    return Edited(replace(scene, capture=replace(_capture(scene), boxes=boxes)))
