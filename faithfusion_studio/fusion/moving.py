"""What moves in a recording, by its box tracks, and the recording without it.

A vehicle that moves becomes a node of its own; one that stays where it is belongs to the background,
like a house. What moves and changes its shape (walkers, riders) cannot be a rigid node: its pixels are
left out of the training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.boxes import BoxTrack, inside_box, tracks_mask
from faithfusion_studio.cameras import Camera
from faithfusion_studio.scene import Capture, PointCloud, PosedImage

MOVING = 1.0
"""A vehicle whose centre travels less than this over the recording is parked, m."""
SOFT = ("pedestrian", "cyclist", "person", "walker")
"""Categories that are not rigid."""
MARGIN = 0.15
"""Boxes are widened by this to each side where their contents are kept out of the background, m."""
FLOOR = 0.12
"""Points this close to the bottom of a box are road, m."""


@dataclass(frozen=True, eq=False)
class Movers:
    """The box tracks of what moves."""

    rigid: tuple[BoxTrack, ...] = ()
    """Vehicles, one future node each."""
    soft: tuple[BoxTrack, ...] = ()
    """What cannot be learned as a rigid node."""

    @property
    def all(self) -> tuple[BoxTrack, ...]:
        """Both kinds."""
        return self.rigid + self.soft

    def mask(self, camera: Camera) -> Bool[Tensor, "H W"]:
        """Pixels whose rays meet something that moves."""
        return tracks_mask(self.all, camera, margin=MARGIN)

    def unlearned(self, frame: PosedImage, camera: Camera) -> Bool[Tensor, "H W"] | None:
        """Pixels of a frame that nothing learned can explain: soft movers, and what the recording calls
        moving outside of every rigid box; None where there are none.

        Args:
            frame: With its mask, where it has one.
            camera: The frame's camera at the size wanted.
        """
        marked = frame.mask((camera.width, camera.height))
        if marked is None and not self.soft:
            return None
        left_out = tracks_mask(self.soft, camera, margin=MARGIN)
        if marked is not None:
            left_out |= marked & ~tracks_mask(self.rigid, camera, margin=MARGIN)
        return left_out if bool(left_out.any()) else None

    def still(self, points: Float32[Tensor, "M 3"]) -> Bool[Tensor, "M"]:
        """Points (world, m) that are at no time in the box of something that moves."""
        keep = torch.ones(len(points), dtype=torch.bool)
        for track in self.all:
            for pose in track.poses:
                keep &= ~inside_box(points, pose, track.size, margin=MARGIN, floor=FLOOR)
        return keep


def movers(capture: Capture, distance: float = MOVING) -> Movers:
    """The annotated things of a recording that travel farther than a distance, m."""
    moving = [track for track in capture.boxes if track.travel > distance]
    soft = tuple(track for track in moving if track.category.lower() in SOFT)
    return Movers(tuple(track for track in moving if track not in soft), soft)


def without_movers(capture: Capture, found: Movers) -> Capture:
    """A recording whose points are those of what stands still."""
    if capture.points is None or not found.all:
        return capture
    keep = found.still(capture.points.xyz)
    points = PointCloud(capture.points.xyz[keep], capture.points.rgb[keep])
    return replace(capture, points=points)


def measured_inside(
    capture: Capture, tracks: tuple[BoxTrack, ...], time: float
) -> Float32[Tensor, "M 3"]:
    """Laser points (world, m) of one time in the boxes of some tracks."""
    found = [torch.zeros(0, 3)]
    for when, scan in capture.sweeps:
        if abs(when - time) > 1e-3:
            continue
        for track in tracks:
            pose = track.pose_at(when)
            if pose is not None:
                found.append(scan[inside_box(scan, pose, track.size, margin=0.05, floor=FLOOR)])
    return torch.cat(found)
