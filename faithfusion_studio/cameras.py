"""Pinhole cameras in OpenCV convention and the paths they follow, including lateral offset.

Frames: camera x right, y down, z forward; ego x forward, y left, z up; world as the scene says
(driving scenes: x forward, y left, z up, metres). Pixel centres lie at +0.5. Poses are float64 so
that moving a path there and back is exact to rounding; renderers convert to float32.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from faithfusion_studio.errors import StudioError
from faithfusion_studio.transforms import (
    invert_rigid,
    quat_to_rotmat,
    rotmat_to_quat,
    slerp,
    translation,
)


class TrajectoryError(StudioError):
    """A path that is empty, not rigid, or lacks what an operation needs."""


@dataclass(frozen=True, eq=False)
class Camera:
    """One pinhole view of the world."""

    camtoworld: Float64[Tensor, "4 4"]
    """Rigid transform camera -> world, OpenCV axes."""
    K: Float64[Tensor, "3 3"]
    """Intrinsics in pixels, for pixel centres at +0.5."""
    width: int
    height: int
    time: float = 0.0
    """Seconds since the start of the recording."""
    name: str = ""
    """Which camera of the rig, e.g. "left"; empty where there is only one."""

    @property
    def viewmat(self) -> Float64[Tensor, "4 4"]:
        """World -> camera."""
        return invert_rigid(self.camtoworld)

    @property
    def position(self) -> Float64[Tensor, "3"]:
        """Camera centre in the world, m."""
        return self.camtoworld[:3, 3]

    def resized(self, width: int, height: int) -> Camera:
        """The same field of view on a grid of another size; each axis is scaled on its own."""
        scale = torch.tensor([width / self.width, height / self.height, 1.0], dtype=torch.float64)
        return replace(self, K=scale[:, None] * self.K, width=width, height=height)

    def scaled(self, factor: float) -> Camera:
        """Resized by one factor, sizes rounded to whole pixels."""
        return self.resized(max(1, round(self.width * factor)), max(1, round(self.height * factor)))

    def moved(self, camtoworld: Tensor, time: float | None = None) -> Camera:
        """The same lens at another pose (and time)."""
        pose = camtoworld.to(torch.float64)
        return replace(self, camtoworld=pose, time=self.time if time is None else time)


class Segment(NamedTuple):
    """A contiguous range of recorded frames, half-open."""

    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A path of cameras with the ego pose of the vehicle at each of them.

    A rig contributes several cameras with the same time; each carries the ego pose of that time.
    """

    cameras: tuple[Camera, ...]
    ego_to_worlds: Float64[Tensor, "T 4 4"]
    """Ego pose at each camera, T = len(cameras)."""
    ego_is_camera: bool = False
    """True where no ego poses were recorded and a camera stands in: sideways is then camera-left."""

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def timestamps(self) -> list[float]:
        """Seconds, one per camera."""
        return [camera.time for camera in self.cameras]

    @property
    def camtoworlds(self) -> Float64[Tensor, "T 4 4"]:
        """All poses, stacked."""
        return torch.stack([camera.camtoworld for camera in self.cameras])

    @property
    def length_m(self) -> float:
        """Length of the ego path, m."""
        centres = self.ego_to_worlds[:, :3, 3]
        return float((centres[1:] - centres[:-1]).norm(dim=-1).sum())

    def select(self, indices: Sequence[int] | range) -> Trajectory:
        """The cameras at these indices, in this order."""
        index = torch.tensor(list(indices), dtype=torch.long)
        return replace(
            self,
            cameras=tuple(self.cameras[i] for i in index.tolist()),
            ego_to_worlds=self.ego_to_worlds[index],
        )

    def segment(self, segment: Segment) -> Trajectory:
        """The cameras of a half-open range of frames.

        Raises:
            TrajectoryError: The range is empty or leaves the recording.
        """
        start, stop = segment
        if not 0 <= start < stop <= len(self):
            raise TrajectoryError(
                f"segment {start}:{stop} is outside the drive, which has frames 0:{len(self)}; "
                "choose a non-empty range inside it."
            )
        return self.select(range(start, stop))


def ego_from_cameras(camtoworlds: Float64[Tensor, "T 4 4"]) -> Float64[Tensor, "T 4 4"]:
    """Ego poses for a recording without them: the camera itself, with ego axes.

    Forward is the camera's +z, left its -x, up its -y, so that d metres to the left equal
    `camtoworld @ translate(-d, 0, 0)`.
    """
    camera_from_ego = torch.tensor(
        [[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64
    )
    return camtoworlds @ camera_from_ego


def trajectory_from_cameras(
    cameras: Sequence[Camera], ego_to_worlds: Float64[Tensor, "T 4 4"] | None = None
) -> Trajectory:
    """A trajectory; without ego poses the camera of the rig that looks ahead stands in at each time.

    Raises:
        TrajectoryError: No camera, or a pose that is not a rigid transform.
    """
    cameras = tuple(cameras)
    if not cameras:
        raise TrajectoryError("the path has no cameras; at least one is needed.")
    poses = torch.stack([camera.camtoworld for camera in cameras])
    _require_rigid(poses)
    if ego_to_worlds is not None:
        return Trajectory(cameras, ego_to_worlds.to(torch.float64))
    return Trajectory(cameras, ego_from_cameras(_lead_poses(cameras)), ego_is_camera=True)


AHEAD = 0.1
"""Cameras of a rig whose mean cosine to the direction of travel is so near the best one look ahead alike."""


def _lead_poses(cameras: Sequence[Camera]) -> Float64[Tensor, "T 4 4"]:
    """The pose of the camera that looks ahead, at the time of each camera: what the whole rig is moved by.

    Where it took no picture, it is where it usually sits as seen from the camera that did; of cameras that
    never look at the same time, it is between its own poses.
    """
    paths: dict[str, dict[float, Tensor]] = {}
    for camera in cameras:
        paths.setdefault(camera.name, {})[camera.time] = camera.camtoworld
    lead = paths[_looks_ahead({name: list(path.values()) for name, path in paths.items()})]
    return torch.stack([_lead_at(lead, camera, paths[camera.name]) for camera in cameras])


def _looks_ahead(paths: dict[str, list[Tensor]]) -> str:
    """The first camera of those that look most along the way they travel; the first of all at rest."""
    scores = {}
    for name, poses in paths.items():
        path = torch.stack(poses)
        steps = path[1:, :3, 3] - path[:-1, :3, 3]
        along = (steps * path[:-1, :3, 2]).sum()
        scores[name] = float(along / steps.norm(dim=-1).sum().clamp(min=1e-9))
    best = max(scores.values())
    return next(name for name, score in scores.items() if score >= best - AHEAD)


def _lead_at(lead: dict[float, Tensor], camera: Camera, own: dict[float, Tensor]) -> Tensor:
    if camera.time in lead:
        return lead[camera.time]
    shared = [time for time in own if time in lead]
    if shared:
        nearest = min(shared, key=lambda time: abs(time - camera.time))
        return camera.camtoworld @ invert_rigid(own[nearest]) @ lead[nearest]
    times = sorted(lead)
    after = min(max(bisect_right(times, camera.time), 1), len(times) - 1)
    if after < 1:
        return lead[times[0]]
    start, stop = times[after - 1], times[after]
    share = min(max((camera.time - start) / (stop - start), 0.0), 1.0)
    pair = torch.stack([lead[start], lead[stop]])
    return _blend(pair, torch.tensor([0]), torch.tensor([share], dtype=torch.float64))[0]


def _require_rigid(poses: Tensor) -> None:
    rotation = poses[:, :3, :3]
    error = (rotation @ rotation.transpose(1, 2) - torch.eye(3, dtype=poses.dtype)).abs()
    bad = ~(error.amax(dim=(1, 2)) < 1e-3) | ~torch.isfinite(poses).all(-1).all(-1)
    bad |= torch.linalg.det(torch.nan_to_num(rotation)) < 0
    if bool(bad.any()):
        raise TrajectoryError(
            f"the pose of frame {int(bad.nonzero()[0])} is not a rigid transform "
            "(finite, orthonormal, right-handed); check the camera file."
        )


def offset_profile(
    trajectory: Trajectory, metres: float, profile: Literal["constant", "ramp", "lane-change"]
) -> Float64[Tensor, "T"]:
    """Lateral offset of each camera of a path, m.

    Args:
        trajectory: The recorded path; all cameras of one time get one value.
        metres: Offset reached, + = left.
        profile: "constant" has it everywhere; "ramp" grows from 0 in proportion to the distance driven;
            "lane-change" goes from 0 to it with no sideways speed or acceleration at either end (quintic).
    """
    count = len(trajectory)
    if profile == "constant":
        return torch.full((count,), float(metres), dtype=torch.float64)
    centres = trajectory.ego_to_worlds[:, :3, 3]
    driven = torch.zeros(count, dtype=torch.float64)
    driven[1:] = (centres[1:] - centres[:-1]).norm(dim=-1).cumsum(0)
    if float(driven[-1]) < 1e-6:  # a vehicle that stands has no distance; its frames count instead
        driven = torch.arange(count, dtype=torch.float64)
    share = driven / driven[-1].clamp(min=1e-12)
    if profile == "lane-change":
        share = share**3 * (10 - 15 * share + 6 * share**2)
    return float(metres) * share


def offset_laterally(trajectory: Trajectory, metres: float | Float64[Tensor, "T"]) -> Trajectory:
    """Move every camera of a rig sideways, keeping its orientation.

    Args:
        trajectory: Recorded path; `ego_to_worlds` is [T, 4, 4], m, ego frame x forward, y left, z up.
        metres: Lateral offset along +y of the ego frame at each frame, one for all or one per camera;
            positive is left.

    Returns:
        A new trajectory with the same times and intrinsics; the ego poses move along.

    Source: FaithFusion `datasets/`, lane-shift convention (ego frame of the same frame).
    """
    amount = torch.as_tensor(metres, dtype=torch.float64).expand(len(trajectory))
    left = trajectory.ego_to_worlds[:, :3, 1] * amount[:, None]
    shift = translation(left)
    cameras = tuple(
        camera.moved(shift[i] @ camera.camtoworld) for i, camera in enumerate(trajectory.cameras)
    )
    return replace(trajectory, cameras=cameras, ego_to_worlds=shift @ trajectory.ego_to_worlds)


def interpolate(keyframes: Trajectory, n: int) -> Trajectory:
    """n cameras spread evenly over the key frames: linear positions, slerped rotations.

    Raises:
        TrajectoryError: Fewer than one output camera was asked for.
    """
    if n < 1:
        raise TrajectoryError(f"{n} cameras were asked for; at least one is needed.")
    if len(keyframes) == 1:
        return keyframes.select([0] * n)
    position = torch.linspace(0, len(keyframes) - 1, n, dtype=torch.float64)
    low = position.floor().long().clamp(max=len(keyframes) - 2)
    fraction = position - low
    poses = _blend(keyframes.camtoworlds, low, fraction)
    egos = _blend(keyframes.ego_to_worlds, low, fraction)
    times = torch.tensor(keyframes.timestamps, dtype=torch.float64)
    time = times[low] + fraction * (times[low + 1] - times[low])
    cameras = tuple(
        keyframes.cameras[int(low[i])].moved(poses[i], float(time[i])) for i in range(n)
    )
    return replace(keyframes, cameras=cameras, ego_to_worlds=egos)


def _blend(poses: Tensor, low: Tensor, fraction: Tensor) -> Tensor:
    quats = rotmat_to_quat(poses[:, :3, :3])
    result = poses[low].clone()
    result[:, :3, :3] = quat_to_rotmat(slerp(quats[low], quats[low + 1], fraction))
    result[:, :3, 3] = torch.lerp(poses[low, :3, 3], poses[low + 1, :3, 3], fraction[:, None])
    return result
