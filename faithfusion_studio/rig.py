"""Which camera of a rig took which frame of a path, and when; how the cameras are mounted.

A path lists the frames of all cameras in order of time. Here they are a table with a row per moment
and a column per camera, so that one can stay with a camera along the drive, or at a moment and look
around. Frames always means indices into the path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import torch
from jaxtyping import Float64
from torch import Tensor

from faithfusion_studio.cameras import Camera, Segment, Trajectory
from faithfusion_studio.transforms import invert_rigid

RIGID = 1e-6
"""Mounts that differ by less over a drive, m and in entries of the rotation, count as fixed."""


@dataclass(frozen=True, eq=False)
class Rig:
    """The frames of a path by moment and camera."""

    names: tuple[str, ...]
    """Cameras in order of first use; a single camera may have no name."""
    times: tuple[float, ...]
    """When each moment begins, s, ascending."""
    table: tuple[tuple[int | None, ...], ...]
    """Frame of each moment and camera; None where that camera took no picture."""
    places: tuple[tuple[int, int], ...]
    """Moment and camera of each frame."""

    def __len__(self) -> int:
        return len(self.times)

    @property
    def several(self) -> bool:
        """Whether there is more than one camera."""
        return len(self.names) > 1

    @property
    def titles(self) -> tuple[str, ...]:
        """Names for people; "camera" where there is none."""
        return tuple(name or "camera" for name in self.names)

    def moment_of(self, frame: int) -> int:
        """The row of a frame; of the nearest one where the path has none of this index."""
        return self.places[min(max(frame, 0), len(self.places) - 1)][0] if self.places else 0

    def camera_of(self, frame: int) -> int:
        """The column of a frame."""
        return self.places[min(max(frame, 0), len(self.places) - 1)][1] if self.places else 0

    def name_of(self, frame: int) -> str:
        """A frame for people: its moment, and where there are several cameras which of them took it."""
        name = f", {self.titles[self.camera_of(frame)]}" if self.several else ""
        return f"{self.moment_of(frame)}{name}"

    def frame_at(self, moment: int, camera: int) -> int:
        """A camera's frame of a moment, or of the nearest moment at which it took one."""
        moment = min(max(moment, 0), len(self) - 1)
        for step in range(len(self)):
            for row in (moment - step, moment + step):
                frame = self.table[row][camera] if 0 <= row < len(self) else None
                if frame is not None:
                    return frame
        raise IndexError(f"camera {camera} of {len(self.names)} has no frame")

    def track(self, camera: int) -> list[int]:
        """All frames of one camera, in order of time."""
        return [frame for row in self.table if (frame := row[camera]) is not None]

    def segment(self, start: int, stop: int) -> Segment:
        """The frames of all cameras from one moment to another, half-open."""
        rows = self.table[max(start, 0) : max(stop, start + 1)]
        found = [frame for row in rows for frame in row if frame is not None]
        return Segment(min(found), max(found) + 1) if found else Segment(0, 1)

    def span(self, segment: Segment) -> tuple[int, int]:
        """Half-open range of the moments in which a segment has frames."""
        moments = [self.moment_of(frame) for frame in range(*segment)]
        return min(moments, default=0), max(moments, default=0) + 1


def single(count: int) -> Rig:
    """One camera without a name that takes a frame at each moment."""
    rows = tuple((i,) for i in range(count))
    times = tuple(float(i) for i in range(count))
    return Rig(("",), times, rows, tuple((i, 0) for i in range(count)))


@lru_cache(maxsize=4)
def rig_of(trajectory: Trajectory) -> Rig:
    """The rig that drove a path.

    Frames belong to one moment when their times differ by less than half the time between two frames
    of a camera, and no camera takes part twice.
    """
    cameras = trajectory.cameras
    names = tuple(dict.fromkeys(camera.name for camera in cameras))
    column = {name: i for i, name in enumerate(names)}
    if len(names) == 1:  # the order of the path counts, whatever its times say
        rows: list[dict[int, int]] = [{0: i} for i in range(len(cameras))]
    else:
        reach, rows = _reach(cameras), []
        began = 0.0
        for i in sorted(range(len(cameras)), key=lambda i: cameras[i].time):
            camera, own = cameras[i], column[cameras[i].name]
            if not rows or own in rows[-1] or camera.time - began > reach:
                rows.append({})
                began = camera.time
            rows[-1][own] = i
    places = {i: (row, own) for row, found in enumerate(rows) for own, i in found.items()}
    return Rig(
        names=names,
        times=tuple(min(cameras[i].time for i in row.values()) for row in rows),
        table=tuple(tuple(row.get(c) for c in range(len(names))) for row in rows),
        places=tuple(places[i] for i in range(len(cameras))),
    )


def _reach(cameras: Sequence[Camera]) -> float:
    """Half the usual time between two frames of a camera, s."""
    by_name: dict[str, list[float]] = {}
    for camera in cameras:
        by_name.setdefault(camera.name, []).append(camera.time)
    steps = [b - a for t in map(sorted, by_name.values()) for a, b in zip(t, t[1:], strict=False)]
    return 0.5 * median(steps) if steps else float("inf")


def spread_over_rig(names: Sequence[str], count: int | None) -> list[int]:
    """Some of the frames of a path, spread evenly over the drive and over the cameras.

    Taking every n-th frame would meet the same camera each time wherever n is a multiple of their number.

    Args:
        names: The camera of each frame.
        count: At most so many; None takes all.

    Returns:
        Indices, ascending.
    """
    total = len(names)
    if count is None or count >= total:
        return list(range(total))
    order = by_camera(names)
    return sorted(order[round((i + 0.5) * total / count - 0.5)] for i in range(count))


def by_camera(names: Sequence[str]) -> list[int]:
    """Indices of the frames, one camera after the other, each in its own order."""
    first = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return sorted(range(len(names)), key=lambda i: first[names[i]])


def mounts(trajectory: Trajectory) -> tuple[int, Float64[Tensor, "C 4 4"]] | None:
    """How the cameras sit on a rig whose first camera that is in every moment is the reference.

    Returns:
        The reference camera, and each camera in its frame (camera -> reference, OpenCV axes); None where
        there is one camera only, no camera is always there, or a mount is not the same all along.
    """
    rig = rig_of(trajectory)
    whole = [c for c in range(len(rig.names)) if all(row[c] is not None for row in rig.table)]
    if not rig.several or not whole:
        return None
    reference, poses = whole[0], trajectory.camtoworlds
    found = []
    for camera in range(len(rig.names)):
        frames = rig.track(camera)
        leads = [rig.frame_at(rig.moment_of(frame), reference) for frame in frames]
        relative = invert_rigid(poses[leads]) @ poses[frames]
        if float((relative - relative[0]).abs().max()) > RIGID:
            return None
        found.append(relative[0])
    return reference, torch.stack(found)
