"""What moves in a recording, by its box tracks, and the recording without it.

A vehicle that moves becomes a node of its own; one that stays where it is belongs to the background,
like a house. What moves and changes its shape (walkers, riders) cannot be a rigid node: its pixels are
left out of the training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn.functional import max_pool2d

from faithfusion_studio.annotating.refining import refined
from faithfusion_studio.boxes import BoxTrack, box_mask, inside_box, tracks_mask
from faithfusion_studio.cameras import Camera
from faithfusion_studio.scene import Capture, PointCloud, PosedImage, Scene

MOVING = 1.0
"""A vehicle whose centre travels less than this over the recording is parked, m."""
SOFT = ("pedestrian", "cyclist", "person", "walker")
"""Categories that are not rigid."""
SHOWN = 0.3
"""A pixel shows a moving object where its share of the blending is larger than this."""
MARGIN = 0.15
"""Boxes are widened by this to each side where their contents are kept out of the background, m."""
FLOOR = 0.12
"""Points this close to the bottom of a box are road, m."""


if TYPE_CHECKING:
    from faithfusion_studio.render.views import RasterizedView


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


def registered_movers(
    capture: Capture, found: Movers, bounds: tuple[float, float, float]
) -> Movers:
    """Rigid movers with poses that agree with the laser sweeps; see `annotating.refining.refined`."""
    rigid = tuple(refined(capture, track, bounds=bounds) for track in found.rigid)
    return replace(found, rigid=rigid)


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


def moving_nodes(scene: Scene) -> list[int]:
    """Indices of the nodes that travel farther than `MOVING` while they are there."""
    found = []
    for index, node in enumerate(scene.nodes):
        there = node.poses[node.visible]
        centres = there[:, :3, 3]
        if len(centres) and float(torch.cdist(centres, centres).max()) > MOVING:
            found.append(index)
    return found


def recorded_movers(scene: Scene, camera: Camera) -> Bool[Tensor, "H W"] | None:
    """Pixels of a recorded camera that something moving may have covered at its time.

    The boxes of the scene's moving nodes, and the moving box tracks of its recording that have no node. None
    where the scene knows of nothing that moves.

    Args:
        scene: Whose nodes and recording are asked.
        camera: Where and when from.
    """
    tracks = () if scene.capture is None else movers(scene.capture).all
    nodes = moving_nodes(scene)
    names = {scene.nodes[index].name for index in nodes}
    others = [track for track in tracks if track.name not in names]
    if not nodes and not others:
        return None
    mask = tracks_mask(others, camera, margin=MARGIN)
    for index in nodes:
        node = scene.nodes[index]
        pose = node.pose_at(camera.time)
        if pose is not None:
            mask |= box_mask(pose, node.size + 2 * MARGIN, camera)
    # A pixel on the outline is a blend of both sides.
    return max_pool2d(mask[None, None].to(torch.float32), 3, 1, 1)[0, 0] > 0


def shown_movers(scene: Scene, camera: Camera, view: RasterizedView) -> Bool[Tensor, "H W"] | None:
    """Pixels of a rendered view that show a moving node; None where the scene has none.

    Args:
        scene: What was rendered.
        camera: From where and when.
        view: The rendering.
    """
    from faithfusion_studio.render.views import render_features

    nodes = moving_nodes(scene)
    if not nodes:
        return None
    index = view.world.node_index
    wanted = torch.zeros(len(scene.nodes) + 1, device=index.device)
    wanted[nodes] = 1  # the background, -1, is the last one
    with torch.no_grad():
        share, _, _ = render_features(view, camera, wanted[index][:, None])
    return (share[..., 0] > SHOWN).cpu()
