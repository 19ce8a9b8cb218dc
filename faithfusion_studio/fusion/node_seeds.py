"""First Gaussians of a moving vehicle, in the frame of its box.

Laser points of all times are brought into the box's frame and coloured by the frames of their time.
Where too few were measured, recorded points that agree in colour with a frame at a time at which the
box holds them are taken too, and then the sides of the box that a frame looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.boxes import BoxTrack, box_frame, inside_box
from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.initialize import Seeds, as_gaussians
from faithfusion_studio.fusion.moving import FLOOR
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import Capture

FEW = 300
"""With fewer seeds than this the next source is asked too."""
CELL = 0.05
"""Seeds are thinned to one per cube of this side, m."""
ALIKE = 0.12
"""Colour difference up to which a recorded point may be of the vehicle."""
SIDES = 3000
"""Places tried on the sides of a box."""

Images = Callable[[int], Float32[Tensor, "H W 3"]]
"""The small picture of a frame, by its index."""


def initial_node(
    capture: Capture, track: BoxTrack, images: Images, *, seed: int, sh_degree: int, limit: int
) -> RigidNode:
    """A node for a vehicle.

    Args:
        capture: Frames to learn from, with laser sweeps where there are some.
        track: Of the vehicle.
        images: Pictures of the frames.
        seed: Of the random choices.
        sh_degree: Bands to allocate; the higher ones start at zero.
        limit: At most this many Gaussians.
    """
    generator = np.random.default_rng(seed)
    views = list(_views(capture, track))
    parts = [_laser_seeds(capture, track, images)]
    for more in (_cloud_seeds, _side_seeds):
        if sum(len(part.xyz) for part in parts) < FEW:
            parts.append(more(capture, track, views, images, generator))
    xyz, rgb = torch.cat([p.xyz for p in parts]), torch.cat([p.rgb for p in parts])
    order = torch.from_numpy(generator.permutation(len(xyz)))
    xyz, rgb = xyz[order], rgb[order]
    first = _one_per_cell(xyz)[:limit]
    timestamps, visible = _times(capture, track)
    start, end = float(track.timestamps[0]), float(track.timestamps[-1])
    poses = [track.pose_at(min(max(time, start), end)) for time in timestamps]
    return RigidNode(
        name=track.name,
        gaussians=as_gaussians(xyz[first], rgb[first], sh_degree, 2.0),
        poses=torch.stack([pose for pose in poses if pose is not None]),
        timestamps=torch.tensor(timestamps, dtype=torch.float64),
        visible=torch.tensor(visible),
        size=track.size.to(torch.float32),
        category=track.category,
        turns_colors=True,
    )


def _times(capture: Capture, track: BoxTrack) -> tuple[list[float], list[bool]]:
    """Times of the recording and of the track, and whether the track holds there."""
    recorded = set(capture.trajectory.timestamps)
    times = sorted(recorded | set(track.timestamps.tolist()))
    return times, [track.pose_at(time) is not None for time in times]


def _views(capture: Capture, track: BoxTrack) -> Iterator[tuple[int, Camera, Tensor]]:
    """Frames at whose time the track holds: index, camera, pose of the box."""
    for index, frame in enumerate(capture.frames):
        pose = track.pose_at(frame.camera.time)
        if pose is not None:
            yield index, frame.camera, pose


def _looked_up(
    image: Tensor, camera: Camera, points: Tensor
) -> tuple[Float32[Tensor, "M 3"], Bool[Tensor, "M"]]:
    """Colours of world points in a picture of a camera, and which of them fall into it."""
    size = (image.shape[1], image.shape[0])
    camera = camera.resized(*size)
    view, K = camera.viewmat.to(torch.float32), camera.K.to(torch.float32)
    local = points @ view[:3, :3].T + view[:3, 3]
    pixels = local @ K.T
    uv = pixels[:, :2] / pixels[:, 2:].clamp(min=1e-3)
    limit = torch.tensor(size)
    inside = (local[:, 2] > 0.3) & (uv >= 0).all(1) & (uv < limit).all(1)
    u, v = torch.minimum(uv.clamp(min=0).long(), limit - 1).unbind(1)
    return image[v, u], inside


def _laser_seeds(capture: Capture, track: BoxTrack, images: Images) -> Seeds:
    xyz, rgb = [torch.zeros(0, 3)], [torch.zeros(0, 3)]
    by_time: dict[float, list[int]] = {}
    for index, frame in enumerate(capture.frames):
        by_time.setdefault(frame.camera.time, []).append(index)
    for time, scan in capture.sweeps:
        pose = track.pose_at(time)
        if pose is None:
            continue
        points = scan[inside_box(scan, pose, track.size, margin=0.05, floor=FLOOR)]
        for index in by_time.get(time, []) if len(points) else ():
            colors, seen = _looked_up(images(index), capture.frames[index].camera, points)
            xyz.append(box_frame(points[seen], pose))
            rgb.append(colors[seen])
    return Seeds(torch.cat(xyz), torch.cat(rgb))


def _cloud_seeds(
    capture: Capture,
    track: BoxTrack,
    views: list[tuple[int, Camera, Tensor]],
    images: Images,
    generator: np.random.Generator,
) -> Seeds:
    """Points without a time: each is put at the time at which a frame shows its colour there best."""
    if capture.points is None:
        return Seeds(torch.zeros(0, 3), torch.zeros(0, 3))
    points, known = capture.points.xyz, capture.points.rgb.to(torch.float32) / 255
    best = torch.full((len(points),), ALIKE)
    local = torch.zeros(len(points), 3)
    for index, camera, pose in views:
        held = inside_box(points, pose, track.size, floor=FLOOR).nonzero().squeeze(1)
        if not len(held):
            continue
        colors, seen = _looked_up(images(index), camera, points[held])
        difference = (colors - known[held]).abs().mean(1)
        better = seen & (difference < best[held])
        rows = held[better]
        best[rows] = difference[better]
        local[rows] = box_frame(points[rows], pose)
    found = best < ALIKE
    return Seeds(local[found], known[found])


def _side_seeds(
    capture: Capture,
    track: BoxTrack,
    views: list[tuple[int, Camera, Tensor]],
    images: Images,
    generator: np.random.Generator,
) -> Seeds:
    """Places on the top and the four sides of the box, from the frame that looks at each most squarely from near."""
    size = track.size.to(torch.float32)
    place = torch.from_numpy(generator.uniform(-0.5, 0.5, (SIDES, 3)).astype(np.float32))
    axis = torch.from_numpy(generator.choice(3, SIDES, p=(0.3, 0.5, 0.2)))
    sign = torch.from_numpy(np.where(generator.random(SIDES) < 0.5, -0.5, 0.5).astype(np.float32))
    sign[axis == 2] = 0.5
    rows = torch.arange(SIDES)
    place[rows, axis] = sign
    normal = torch.zeros(SIDES, 3)
    normal[rows, axis] = 2 * sign
    local = 0.94 * size * place
    best, rgb = torch.zeros(SIDES), torch.zeros(SIDES, 3)
    for index, camera, pose in views:
        turn, centre = pose[:3, :3].to(torch.float32), pose[:3, 3].to(torch.float32)
        points = local @ turn.T + centre
        colors, seen = _looked_up(images(index), camera, points)
        towards = camera.camtoworld[:3, 3].to(torch.float32) - points
        distance = towards.norm(dim=1)
        facing = (towards * (normal @ turn.T)).sum(1) / distance
        worth = torch.where(seen, facing / distance, 0.0)
        better = worth > best
        best[better], rgb[better] = worth[better], colors[better]
    return Seeds(local[best > 0], rgb[best > 0])


def _one_per_cell(xyz: Float32[Tensor, "M 3"]) -> Tensor:
    """Index of the first point of every cell, in order."""
    _, inverse = torch.unique(torch.floor(xyz / CELL).long(), dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1 if len(inverse) else 0,), len(xyz))
    first.scatter_reduce_(0, inverse, torch.arange(len(xyz)), "amin")
    return first.sort().values
