"""An object that a person annotates: a box of one size, placed at key times of the recording.

Between its key times the centre follows a monotone cubic (no overshoot at a stop) and the rotation is slerped,
which for an upright box interpolates the heading by its angle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from faithfusion_studio.boxes import BoxTrack
from faithfusion_studio.errors import StudioError
from faithfusion_studio.transforms import pose_between

SAME_TIME = 1e-3
"""Times closer than this are one time, s."""


class AnnotationError(StudioError):
    """An annotation that cannot be made or used as asked."""


@dataclass(frozen=True, eq=False)
class Keyframe:
    """Where an annotated object is at one time."""

    time: float
    """s."""
    pose: Float64[Tensor, "4 4"]
    """Box -> world; origin at the centre, x forward, y left, z up."""
    by_hand: bool = True
    """False where it was found by following: it may be found anew, what a person placed may not."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """A box of one size with its key frames.

    Raises:
        AnnotationError: No key frame, times that do not ascend, a pose that is not rigid, or a size that is not positive.
    """

    name: str
    category: str
    size: Float32[Tensor, "3"]
    """Length, width, height, m."""
    keyframes: tuple[Keyframe, ...]

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.size).all() and (self.size > 0).all()):
            raise AnnotationError(
                f"{self.name}: found the size {self.size.tolist()}; expected three positive lengths in metres."
            )
        if not self.keyframes:
            raise AnnotationError(f"{self.name}: has no key frame; place its box at one time.")
        times = [key.time for key in self.keyframes]
        if not np.isfinite(times).all() or (np.diff(times) < SAME_TIME).any():
            raise AnnotationError(
                f"{self.name}: its key times {times} do not ascend; give each time one pose."
            )
        for key in self.keyframes:
            turn, last = key.pose[:3, :3], key.pose[3]
            straight = (turn @ turn.T - torch.eye(3, dtype=turn.dtype)).abs().max() < 1e-3
            rigid = straight & (torch.linalg.det(turn) > 0) & torch.isfinite(key.pose).all()
            if not bool(rigid & (last == last.new_tensor([0, 0, 0, 1])).all()):
                raise AnnotationError(
                    f"{self.name}: its pose at {key.time:g} s is not rigid; place the box anew."
                )

    @classmethod
    def from_track(cls, track: BoxTrack) -> Annotation:
        """An annotation with a key frame at every time of a track.

        Args:
            track: As read from a file or found elsewhere. Where it does not say which poses a person set,
                all count as set by hand.
        """
        marks = [True] * len(track.poses) if track.by_hand is None else track.by_hand.tolist()
        keys = zip(track.timestamps.tolist(), track.poses, marks, strict=True)
        return cls(
            track.name,
            track.category,
            track.size.to(torch.float32),
            tuple(Keyframe(time, pose.clone(), by_hand) for time, pose, by_hand in keys),
        )

    @property
    def times(self) -> list[float]:
        """Key times, s."""
        return [key.time for key in self.keyframes]

    def track(self, times: Sequence[float] | None = None) -> BoxTrack:
        """The box over time.

        Args:
            times: s; those outside of the key frames are left out. The key times when not given.

        Raises:
            AnnotationError: None of the times lies between the first and the last key frame.
        """
        first, last = self.keyframes[0].time, self.keyframes[-1].time
        wanted = self.times if times is None else sorted(set(times))
        inside = [t for t in wanted if first - SAME_TIME <= t <= last + SAME_TIME]
        if not inside:
            raise AnnotationError(
                f"{self.name}: is annotated from {first:g} to {last:g} s, which none of the "
                f"{len(wanted)} times asked for is; add a key frame."
            )
        return BoxTrack(
            self.name,
            self.category,
            self.size,
            poses=self._poses(inside),
            timestamps=torch.tensor(inside, dtype=torch.float64),
            by_hand=torch.tensor([self._is_by_hand(time) for time in inside]),
        )

    def _is_by_hand(self, time: float) -> bool:
        return any(key.by_hand and abs(key.time - time) < SAME_TIME for key in self.keyframes)

    def pose_at(self, time: float) -> Float64[Tensor, "4 4"] | None:
        """Pose at a time (s); None outside of the key frames."""
        first, last = self.keyframes[0].time, self.keyframes[-1].time
        if not first - SAME_TIME <= time <= last + SAME_TIME:
            return None
        return self._poses([time])[0]

    def _poses(self, times: Sequence[float]) -> Float64[Tensor, "T 4 4"]:
        keys = torch.stack([key.pose for key in self.keyframes])
        at = torch.tensor(self.times, dtype=torch.float64)
        poses = torch.stack([pose_between(keys, at, time) for time in times]).clone()
        if len(at) > 2:
            from scipy.interpolate import PchipInterpolator

            centre = PchipInterpolator(at.numpy(), keys[:, :3, 3].numpy(), axis=0)
            held = np.clip(np.array(times, np.float64), float(at[0]), float(at[-1]))
            poses[:, :3, 3] = torch.from_numpy(centre(held))
        return poses

    def with_keyframe(self, keyframe: Keyframe) -> Annotation:
        """With one more key frame; one of the same time is replaced."""
        others = [k for k in self.keyframes if abs(k.time - keyframe.time) >= SAME_TIME]
        keys = sorted([*others, keyframe], key=lambda key: key.time)
        return replace(self, keyframes=tuple(keys))

    def without_keyframe(self, time: float) -> Annotation:
        """Without the key frame of a time, s.

        Raises:
            AnnotationError: There is none at that time, or it is the only one.
        """
        kept = tuple(k for k in self.keyframes if abs(k.time - time) >= SAME_TIME)
        if len(kept) == len(self.keyframes):
            known = ", ".join(f"{t:g}" for t in self.times)
            raise AnnotationError(
                f"{self.name}: has no key frame at {time:g} s; it has them at {known} s."
            )
        if not kept:
            raise AnnotationError(
                f"{self.name}: this is its only key frame; remove the object instead."
            )
        return replace(self, keyframes=kept)
