"""Box tracks put right by the laser: the same object lies on the same points at every time.

Annotations of data sets, and boxes placed by hand, are off by some decimetres, differently at each time. What
matters for learning an object is that its poses agree with each other, which registration tells to
centimetres; where in its box the object sits is left as the track has it on average.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from faithfusion_studio.annotating.following import follow
from faithfusion_studio.annotating.registration import Pose, between, moved
from faithfusion_studio.annotation import Annotation, AnnotationError, Keyframe
from faithfusion_studio.boxes import BoxTrack, inside_box
from faithfusion_studio.scene import Capture

FEWEST = 30
"""A sweep shows enough of an object to start from with so many points in its box."""
FLOOR = 0.12
"""Points this close to the bottom of a box are road, m."""
ALIKE = 1.0
"""Where following ends up farther than this from the track, it followed something else, m."""


def refined(
    capture: Capture, track: BoxTrack, *, bounds: tuple[float, float, float] = (0.5, 0.5, 0.12)
) -> BoxTrack:
    """A track whose poses agree with the laser sweeps of its times.

    The object is followed from the time at which most of it was seen; what is found is moved, all of it alike,
    onto the track.

    Args:
        capture: With laser sweeps; without, the track is as it was.
        track: Roughly right. One that came from following (`by_hand` of some pose is false) is as it was.
        bounds: Poses that would change by more along the box, across it (m) or in heading (rad) stay.
    """
    if not capture.sweeps or (track.by_hand is not None and not bool(track.by_hand.all())):
        return track
    part = _while_there(capture, track)
    counts = [
        0
        if pose is None
        else int(inside_box(scan, pose, track.size, margin=0.2, floor=FLOOR).sum())
        for time, scan in part.sweeps
        for pose in [track.pose_at(time)]
    ]
    if not counts or max(counts) < FEWEST:
        return track
    time = part.sweeps[int(np.argmax(counts))][0]
    pose = track.pose_at(time)
    assert pose is not None
    start = Annotation(
        track.name, track.category, track.size.to(torch.float32), (Keyframe(time, pose),)
    )
    try:
        found = _finished(part, start, track)
    except AnnotationError:
        return track
    return _onto(track, found, bounds)


def _while_there(capture: Capture, track: BoxTrack) -> Capture:
    """The part of a recording in which a track has a pose."""
    times = capture.trajectory.timestamps
    return capture.select([i for i, time in enumerate(times) if track.pose_at(time) is not None])


def _finished(capture: Capture, annotation: Annotation, track: BoxTrack) -> Annotation:
    work = follow(capture, annotation, headings=track)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def _onto(track: BoxTrack, found: Annotation, bounds: tuple[float, float, float]) -> BoxTrack:
    """What was followed, moved as a whole onto a track."""
    given: dict[int, Pose] = {i: pose.numpy() for i, pose in enumerate(track.poses)}
    poses = {
        i: pose.numpy()
        for i, time in enumerate(track.timestamps.tolist())
        if (pose := found.pose_at(time)) is not None
    }
    offsets = np.array([between(poses[i], given[i]) for i in poses]).reshape(-1, 3)
    near = np.abs(offsets[:, :2] - np.median(offsets[:, :2], axis=0)).max(1) < ALIKE
    if near.sum() < 2:
        return track
    shift = offsets[near].mean(0)
    result = track.poses.clone()
    for i, pose in poses.items():
        change = between(given[i], moved(pose, shift))
        if (np.abs(change) <= bounds).all():  # height and slope are not what was registered
            result[i] = torch.from_numpy(moved(given[i], change))
    return replace(track, poses=result)
