"""Following an annotated object from its key frames through the laser sweeps.

From each key frame a person placed, forwards and backwards: where the object will be at constant velocity is
predicted, and the sweep is registered to the points gathered of the object so far. When all are found, each
sweep is registered once more to the points of all others near it in time.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
import torch

from faithfusion_studio.annotating.registration import (
    Cloud,
    Pose,
    Prior,
    between,
    cloud_of,
    joined,
    matched,
    moved,
    registered,
    searched,
    to_frame,
)
from faithfusion_studio.annotating.sweeps import Ground, ground_of, raw_sweep_near, standing
from faithfusion_studio.annotation import SAME_TIME, Annotation, AnnotationError, Keyframe
from faithfusion_studio.boxes import BoxTrack
from faithfusion_studio.scene import Capture

FASTEST = 20.0
"""Speed up to which an object is sought that was placed once, m/s."""
FARTHEST = 4.0
"""It is not sought farther than this from one sweep to the next, m."""
ACCELERATION = 6.0
"""Change of velocity that a prediction allows for, m/s^2."""
BEND = 0.05
"""Change of the turn per metre that it allows for, rad/m."""
ROOM = 0.5
"""Over less than this the turn per metre cannot be told, m."""
LEAST = 8
"""Fewer matched points than this are no support."""
AGREE = 0.4
"""Share of the points in the box that must lie on the object's points."""
FADED = 0.25
"""As many points must match, as a share of those in the box of the sweep beside."""
PATIENCE = 2
"""Sweeps without support that are bridged."""
SURE = 1.0
"""What is found once within this of where it was placed needs no second sweep to confirm it, m."""
SLIP = (0.05, 0.01)
"""What drives goes where its front points: its speed across over that along, at most, for a heading found or known."""
KNOWN = 0.015
"""Standard deviation of headings that are given, rad."""
GATHER = 0.1
"""Points this far outside of the box are still gathered, m."""
THIN = 0.06
"""One point per cube of this side is kept of a sweep, m,"""
KEPT = 600
"""and at most so many."""
BESIDE = 6
"""A sweep is registered to the points of so many sweeps nearest to it in time,"""
SPREAD = 8
"""and of so many spread over the rest, which keep small errors from adding up."""
ROUNDS = 2
"""How often each sweep is registered to the others."""


@dataclass(frozen=True, eq=False)
class _Sweep:
    """What one sweep shows."""

    time: float
    points: np.ndarray
    """[M, 3] without the road, world, m."""
    ground: Ground

    def near(self, pose: Pose, size: np.ndarray, margin: float, ahead: float = 0.0) -> np.ndarray:
        """Points in a box widened to each side, and by more along it."""
        local = np.abs(to_frame(self.points, pose))
        limit = size / 2 + margin + np.array([ahead, 0, 0])
        return self.points[(local <= limit).all(1)]

    def height(self, pose: Pose) -> float:
        """Height of the ground under a pose, world z, m."""
        return float(self.ground.under(torch.from_numpy(pose[None, :2, 3]).float())[0])


def _prior(pose: Pose, unsure: float, travelled: float) -> Prior:
    """What a vehicle does that moved so far, where it may be out by so much, m: it turns only as it drives."""
    return Prior(
        pose, 0.05 + unsure, 0.03 + 0.2 * unsure, 0.003 + BEND * (travelled + 0.1 * unsure)
    )


def _thinned(points: np.ndarray, kept: int = KEPT) -> np.ndarray:
    """Points spread evenly over the surfaces, at most so many."""
    first = np.sort(np.unique(np.floor(points / THIN), axis=0, return_index=True)[1])
    return points[first[np.linspace(0, len(first) - 1, min(kept, len(first))).astype(int)]]


def follow(
    capture: Capture, annotation: Annotation, *, headings: BoxTrack | None = None
) -> Generator[tuple[int, int], None, Annotation]:
    """Find an annotated object at the times of the sweeps around its key frames.

    Yields how many sweeps of how many were looked at; closing the generator leaves everything as it was.

    Args:
        capture: With one laser sweep per time.
        annotation: With key frames placed by hand; those found before are found anew. Where none was
            placed by hand, the first counts as placed.
        headings: The object's headings where they are roughly known, to about a degree.

    Returns:
        The annotation with a key frame at each time at which the object was found. Those placed by hand are as they were.

    Raises:
        AnnotationError: No sweeps, or too few points in the box at every key frame.
    """
    raw_sweep_near(capture, 0.0)
    work = _Following(capture, annotation, headings)
    total = len(work.times) * (1 + ROUNDS)
    done = 0
    for _ in work.trace():
        done = min(done + 1, len(work.times))
        yield done, total
    done = len(work.times)
    for _ in work.settle():
        done += 1
        yield min(done, total), total
    yield total, total
    return work.annotation()


class _Following:
    """Poses by sweep, the object's points of each, and who placed it."""

    def __init__(
        self, capture: Capture, annotation: Annotation, headings: BoxTrack | None = None
    ) -> None:
        self._given, self._headings = annotation, headings
        self._raw = capture.sweeps
        self.times = [time for time, _ in self._raw]
        self._size = annotation.size.numpy().astype(np.float64)
        self._sweeps: dict[int, _Sweep] = {}
        self._poses: dict[int, Pose] = {}
        self._parts: dict[int, Cloud] = {}
        hand = tuple(k for k in annotation.keyframes if k.by_hand) or annotation.keyframes[:1]
        self._hand = replace(annotation, keyframes=hand)
        self._fixed: dict[int, Pose] = {}
        for key in hand:
            index = int(np.argmin(np.abs(np.array(self.times) - key.time)))
            if abs(self.times[index] - key.time) < SAME_TIME:
                self._fixed[index] = key.pose.numpy()
        if not self._fixed:
            raise AnnotationError(
                f"{annotation.name}: none of its key times {self._hand.times} is the time of a sweep; "
                "place its box at the time of a frame."
            )

    def _sweep(self, index: int) -> _Sweep:
        if index not in self._sweeps:
            time, scan = self._raw[index]
            ground = ground_of(scan)
            points = scan[standing(scan, ground)].numpy().astype(np.float64)
            self._sweeps[index] = _Sweep(time, points, ground)
        return self._sweeps[index]

    def trace(self) -> Generator[None, None, None]:
        """From every key frame outwards, to the middle between two of them."""
        for index, pose in self._fixed.items():
            self._accept(index, pose)
        if not any(len(part.points) >= LEAST for part in self._parts.values()):
            most = max(len(part.points) for part in self._parts.values())
            raise AnnotationError(
                f"{self._given.name}: found at most {most} laser points in its box; at least {LEAST} are "
                "needed to follow it, so place the box where the laser sees it."
            )
        fixed = sorted(self._fixed)
        for place, start in enumerate(fixed):
            after = fixed[place + 1] if place + 1 < len(fixed) else None
            before = fixed[place - 1] if place else None
            stop = len(self.times) if after is None else (start + after) // 2 + 1
            yield from self._walk(start, range(start + 1, stop))
            stop = -1 if before is None else (start + before) // 2
            yield from self._walk(start, range(start - 1, stop, -1))

    def _walk(self, start: int, indices: range) -> Generator[None, None, None]:
        """Find the object in sweep after sweep until it is lost."""
        known, missed = [start], 0
        sought = self._velocity(known) is None
        for index in indices:
            found = self._find(index, known)
            yield
            if found is None:
                missed += 1
                if missed > PATIENCE:
                    break
                continue
            missed = 0
            self._accept(index, found)
            known.append(index)
        if sought and len(known) == 2 and missed:
            self._doubt(start, known[1])

    def _doubt(self, start: int, index: int) -> None:
        """Take back what a wide search found once far away, and not again where it would have gone from there."""
        if abs(between(self._poses[start], self._poses[index])[0]) > SURE:
            del self._poses[index], self._parts[index]

    def _accept(self, index: int, pose: Pose) -> None:
        self._poses[index] = pose
        self._parts[index] = self._gathered(index, pose)

    def _gathered(self, index: int, pose: Pose) -> Cloud:
        local = to_frame(self._sweep(index).near(pose, self._size, GATHER), pose)
        return cloud_of(_thinned(local))

    def _find(self, index: int, known: list[int]) -> Pose | None:
        """The object in a sweep, seen from the last ones it was found in; None where it has no support."""
        if not len(self._raw[index][1]):
            return None
        prior, reach = self._expected(index, known)
        sweep = self._sweep(index)
        points = _thinned(sweep.near(prior.pose, self._size, 0.5, reach), 2 * KEPT)
        cloud = self._cloud(index, known)
        if len(points) < LEAST or len(cloud.points) < LEAST:
            return None
        start = searched(cloud, points, prior, reach)
        # What the search found is believed where it disagrees with a prediction that was none.
        held = replace(prior, pose=start) if len(known) < 2 else prior
        near = _thinned(sweep.near(start, self._size, 0.4))
        if len(near) < LEAST:
            return None
        pose = registered(cloud, near, start, held)
        return pose if self._supported(index, cloud, pose, known[-1]) else None

    def _supported(self, index: int, cloud: Cloud, pose: Pose, beside: int) -> bool:
        """Whether enough points speak for a pose, seen from a sweep beside it."""
        inside = _thinned(self._sweep(index).near(pose, self._size, GATHER))
        needed = max(LEAST, AGREE * len(inside), FADED * len(self._parts[beside].points))
        return matched(cloud, inside, pose) >= needed

    def _expected(self, index: int, known: list[int]) -> tuple[Prior, float]:
        """Where the object is expected at constant velocity, and how far along its box it may be from there, m."""
        last, step = known[-1], abs(self.times[index] - self.times[known[-1]])
        pose, speed = self._poses[last], self._velocity(known)
        unsure = 0.5 * ACCELERATION * step**2
        if speed is None:
            prior = Prior(pose, FASTEST * step, 0.3 + step, 0.1 + step)
            return self._grounded(index, prior, last), min(FASTEST * step, FARTHEST)
        shift = speed * (self.times[index] - self.times[last])
        prior = _prior(moved(pose, shift), unsure, abs(float(shift[0])))
        return self._grounded(index, prior, last), 0.3 + unsure

    def _velocity(self, known: list[int]) -> np.ndarray | None:
        """[along, across, turn] per second in the frame of the last pose; None where nothing tells it."""
        last, time = known[-1], self.times[known[-1]]
        if len(known) > 1:
            few = known[-4:-1]
            steps = np.array([between(self._poses[last], self._poses[i]) for i in few])
            spans = np.array([self.times[i] - time for i in few])
            speed = (steps * spans[:, None]).sum(0) / (spans**2).sum()
            # What hardly moves does not turn: the turn per metre is what goes on.
            bend = (steps[:, 2] * steps[:, 0]).sum() / ((steps[:, 0] ** 2).sum() + ROOM**2)
            slip = SLIP[self._headings is not None] * abs(speed[0])
            return np.array([speed[0], np.clip(speed[1], -slip, slip), bend * speed[0]])
        if len(self._hand.keyframes) < 2:
            return None
        side = [t for t in (time - 0.05, time + 0.05) if self._hand.pose_at(t) is not None]
        poses = [self._hand.pose_at(t).numpy() for t in side]  # type: ignore[union-attr]
        steps = [
            between(self._poses[last], p) / (t - time) for p, t in zip(poses, side, strict=True)
        ]
        return np.mean(steps, axis=0)

    def _grounded(self, index: int, prior: Prior, last: int) -> Prior:
        """A prior that has gone up or down with the road."""
        pose = prior.pose.copy()
        rise = self._sweep(index).height(pose) - self._sweep(last).height(self._poses[last])
        pose[2, 3] = self._poses[last][2, 3] + np.clip(rise, -0.1, 0.1)
        return self._headed(index, replace(prior, pose=pose))

    def _headed(self, index: int, prior: Prior) -> Prior:
        """A prior with the heading that is known, where one is."""
        known = None if self._headings is None else self._headings.pose_at(self.times[index])
        if known is None:
            return prior
        pose = prior.pose.copy()
        pose[:3, :3] = known[:3, :3].numpy()
        return replace(prior, pose=pose, turn=KNOWN)

    def _cloud(self, index: int, known: list[int]) -> Cloud:
        """The object's points in the sweeps that one is registered to."""
        order = sorted(known, key=lambda i: abs(i - index))
        rest = sorted(order[BESIDE:])
        spread = [
            rest[i] for i in np.linspace(0, len(rest) - 1, min(SPREAD, len(rest))).astype(int)
        ]
        placed = [i for i in self._fixed if i != index and i in self._parts]
        chosen = dict.fromkeys([*order[:BESIDE], *spread, *placed[:SPREAD]])
        return joined([self._parts[i] for i in chosen])

    def settle(self) -> Generator[None, None, None]:
        """Register every sweep to the points of the others; what contradicts them is dropped."""
        for _ in range(ROUNDS):
            for index in sorted(self._poses):
                if index not in self._fixed:
                    self._settle(index)
                yield

    def _settle(self, index: int) -> None:
        found = sorted(self._poses)
        others = [i for i in found if i != index]
        cloud = self._cloud(index, others)
        pose = self._poses[index]
        beside = min(others, key=lambda i: abs(i - index))
        step = abs(self.times[index] - self.times[beside])
        smooth = self._smooth(index, found)
        travelled = abs(float(between(self._poses[beside], smooth)[0]))
        prior = self._headed(index, _prior(smooth, 0.5 * ACCELERATION * step**2, travelled))
        points = _thinned(self._sweep(index).near(pose, self._size, 0.4))
        if len(points) < LEAST or len(cloud.points) < LEAST:
            return
        better = registered(cloud, points, pose, prior)
        if self._supported(index, cloud, better, beside):
            self._accept(index, better)

    def _smooth(self, index: int, found: list[int]) -> Pose:
        """The pose between those before and after; beyond the ends, at constant velocity."""
        place = found.index(index)
        if len(found) < 3:
            return self._poses[index]
        low = min(max(place - 1, 0), len(found) - 3)
        a, b = [i for i in found[low : low + 3] if i != index]
        span = self.times[b] - self.times[a]
        share = (self.times[index] - self.times[a]) / span
        pose = moved(self._poses[a], between(self._poses[a], self._poses[b]) * share)
        pose[2, 3] = self._poses[index][2, 3]
        return pose

    def _road(self, index: int) -> float:
        """Height of the road under the object, m: the middle of what the sweeps about that time say, as the object
        hides the road from some of them."""
        around = [i for i in self._sweeps if abs(i - index) <= BESIDE]
        return float(np.median([self._sweeps[i].height(self._poses[index]) for i in around]))

    def annotation(self) -> Annotation:
        """What was given, with every pose found."""
        result = self._hand
        for index in sorted(self._poses):
            if index not in self._fixed:
                pose = torch.from_numpy(self._poses[index].copy())
                beside = min(self._fixed, key=lambda i: abs(i - index))
                rise = self._road(index) - self._road(beside)
                pose[2, 3] = self._fixed[beside][2, 3] + rise
                result = result.with_keyframe(Keyframe(self.times[index], pose, by_hand=False))
        return result
