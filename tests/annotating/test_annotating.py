"""Fitting a box where a person clicked, keyframing it, and following it; against worlds with exact truth."""

import math
from dataclasses import replace

import pytest
import torch
from box_world import errors, pose_of, recording, sweep, track

from faithfusion_studio.annotating import (
    Annotation,
    AnnotationError,
    Keyframe,
    fit_at,
    fit_box,
    follow,
    place_at,
    sweep_near,
)
from faithfusion_studio.annotating.refining import refined
from faithfusion_studio.boxes import inside_box

TIMES = [round(0.2 * i, 3) for i in range(12)]


def ahead(time):
    """Drives ahead of the laser and brakes."""
    return 10 + 6 * time - 0.8 * time**2, 0.3, 0.0


def turning(time):
    """Turns off to the left."""
    angle = 0.25 * time
    return 14 + 16 * math.sin(angle), -3 + 16 * (1 - math.cos(angle)), angle


def oncoming(time):
    """Comes towards the laser on the other side."""
    return 34 - 8 * time, 3.6, math.pi


TRACKS = tuple(track(f.__name__, f, TIMES) for f in (ahead, turning, oncoming))


@pytest.fixture(scope="module")
def capture():
    return recording(TRACKS, TIMES)


def on(true, scan):
    """A measured place on a car."""
    inside = scan[inside_box(scan, true.poses[0], true.size, floor=0.3)]
    return inside[len(inside) // 2]


def finished(generator):
    """The value that a generator returns, and what it yielded."""
    seen = []
    while True:
        try:
            seen.append(next(generator))
        except StopIteration as end:
            return end.value, seen


# --------------------------------------------------------------------------------------- annotation


def test_a_track_passes_its_key_frames_and_does_not_overshoot_a_stop():
    keys = [
        Keyframe(t, pose_of(x, 0, 0.1 * t)) for t, x in ((0.0, 0), (1.0, 5), (2.0, 5), (3.0, 5))
    ]
    annotation = Annotation("a", "car", torch.tensor([4.0, 2, 1.5]), tuple(keys))
    found = annotation.track([0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 9.0])
    assert found.timestamps.tolist() == [0, 0.5, 1, 1.5, 2.5, 3]
    assert torch.allclose(found.poses[2], keys[1].pose)
    assert found.poses[:, 0, 3].max() <= 5 and 2.5 < found.poses[1, 0, 3] < 5
    headings = torch.atan2(found.poses[:, 1, 0], found.poses[:, 0, 0])
    assert torch.allclose(headings, 0.1 * found.timestamps, atol=1e-9)


def test_a_heading_is_interpolated_across_half_a_turn():
    keys = (Keyframe(0.0, pose_of(0, 0, 3.0)), Keyframe(1.0, pose_of(1, 0, -3.0)))
    pose = Annotation("a", "car", torch.tensor([4.0, 2, 1.5]), keys).pose_at(0.5)
    assert abs(math.atan2(float(pose[1, 0]), float(pose[0, 0]))) == pytest.approx(math.pi)


def test_key_frames_are_added_replaced_and_taken_out():
    start = Annotation("a", "car", torch.tensor([4.0, 2, 1.5]), (Keyframe(1.0, pose_of(0, 0, 0)),))
    more = start.with_keyframe(Keyframe(0.0, pose_of(3, 0, 0))).with_keyframe(
        Keyframe(1.0, pose_of(7, 0, 0), by_hand=False)
    )
    assert more.times == [0, 1] and more.keyframes[1].pose[0, 3] == 7
    assert more.without_keyframe(1.0).times == [0] and start.times == [1]
    with pytest.raises(AnnotationError, match="no key frame at 5 s; it has them at 0, 1"):
        more.without_keyframe(5.0)
    with pytest.raises(AnnotationError, match="only key frame"):
        start.without_keyframe(1.0)


def test_a_track_becomes_an_annotation_and_back():
    back = Annotation.from_track(TRACKS[1]).track()
    assert back.name == TRACKS[1].name and torch.equal(back.size, TRACKS[1].size)
    assert torch.allclose(back.poses, TRACKS[1].poses) and back.timestamps.tolist() == TIMES


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"keyframes": ()}, "no key frame"),
        ({"size": torch.tensor([4.0, -1, 2])}, "positive lengths"),
        ({"size": torch.tensor([4.0, float("nan"), 2])}, "positive lengths"),
        ({"keyframes": (Keyframe(1.0, torch.eye(4).double()),) * 2}, "do not ascend"),
        ({"keyframes": (Keyframe(1.0, 2 * torch.eye(4).double()),)}, "not rigid"),
    ],
)
def test_what_is_no_annotation_is_refused(changes, reason):
    good = Annotation.from_track(TRACKS[0])
    with pytest.raises(AnnotationError, match=reason):
        replace(good, **changes)


# ------------------------------------------------------------------------------------------- sweeps


def test_the_road_is_taken_out_and_cars_stay(capture):
    points, when = sweep_near(capture, 0.29)
    assert when == pytest.approx(0.2)
    assert bool((points[:, 2] > 0.1).all())
    for true in TRACKS:
        scan = capture.sweeps[1][1]
        whole = inside_box(scan, true.poses[1], true.size, margin=0.1, floor=0.3).sum()
        left = inside_box(points, true.poses[1], true.size, margin=0.1, floor=0.3).sum()
        assert left == whole > 20


def test_a_sloping_road_is_road():
    points = sweep([], slope=0.06)
    capture = replace(recording((), [0.0]), lidar=(points,))
    left, _ = sweep_near(capture, 0.0)
    road = points[points[:, 1].abs() < 6]
    assert len(road) > 5000 and int((left[:, 1].abs() < 6).sum()) < 0.001 * len(road)


def test_a_pixel_gives_the_laser_point_it_shows(capture):
    camera = capture.frames[0].camera
    for true in TRACKS[:2]:
        place = on(true, capture.sweeps[0][1]).double()
        pixel = camera.K @ (camera.viewmat[:3, :3] @ place + camera.viewmat[:3, 3])
        found = place_at(capture, 0, (float(pixel[0] / pixel[2]), float(pixel[1] / pixel[2])))
        assert (found.double() - place).norm() < 0.3


@pytest.mark.parametrize(
    "frame, pixel, reason",
    [
        (0, (400.0, 2.0), "no laser point lies within 8 pixels of 400,2"),
        (99, (1.0, 1.0), "frame 99 does not exist"),
        (0, (900.0, 1.0), "has 800x300 pixels"),
    ],
)
def test_a_place_that_the_laser_did_not_meet_is_said(capture, frame, pixel, reason):
    with pytest.raises(AnnotationError, match=reason):
        place_at(capture, frame, pixel)


def test_sweeps_that_belong_to_no_time_are_refused(capture):
    with pytest.raises(AnnotationError, match="has 1 laser sweeps for 12 times"):
        sweep_near(replace(capture, lidar=capture.lidar[:1]), 0.0)


# ------------------------------------------------------------------------------------------ fitting


@pytest.mark.parametrize("heading", [0.0, 0.3, -0.4, 0.8, math.pi])
@pytest.mark.parametrize("place", [(9.0, 2.5), (12.0, -3.0), (16.0, 0.2)])
def test_a_box_is_fitted_to_what_is_seen_of_a_car(heading, place):
    size = torch.tensor([4.3, 1.75, 1.5])
    true = pose_of(*place, heading)
    scan = sweep([(true, size.tolist())])
    capture = replace(recording((), [0.0]), lidar=(scan,))
    at = scan[inside_box(scan, true, size, floor=0.3)][0]
    box, when = fit_at(capture, 0.0, at, heading=heading)
    shift, turn = errors(box.pose, true)
    assert when == 0 and shift < 0.3 and turn < 5
    assert abs(float(box.pose[2, 3] - box.size[2] / 2)) < 0.1
    assert box.support > 50
    free, _ = fit_at(capture, 0.0, at)
    shift, turn = errors(free.pose, true)
    assert shift < 0.3 and min(turn, 180 - turn) < 5
    known, _ = fit_at(capture, 0.0, at, size=size, heading=heading)
    assert torch.equal(known.size, size) and errors(known.pose, true)[0] < 0.2


@pytest.mark.parametrize("angle", [0.5, 2.0, -2.6])
def test_turning_and_shifting_the_world_turns_and_shifts_the_box(angle):
    size = torch.tensor([4.3, 1.75, 1.5])
    scan = sweep([(pose_of(11, 2.5, 0.2), size.tolist())])
    inside = inside_box(scan, pose_of(11, 2.5, 0.2), size, margin=0.2, floor=0.2)
    points, eye = scan[inside], torch.zeros(3)
    turn = pose_of(40, -70, angle, 3)
    at = points[len(points) // 2]
    here = fit_box(points, at, heading=0.2, sensor=eye)
    moved = [
        (p.double() @ turn[:3, :3].T + turn[:3, 3]).float() for p in (points, at[None], eye[None])
    ]
    there = fit_box(moved[0], moved[1][0], heading=0.2 + angle, sensor=moved[2][0])
    shift, off = errors(there.pose, turn @ here.pose)
    assert shift < 0.08 and off < 1 and (there.size - here.size).abs().max() < 0.08


def test_too_little_is_said_with_a_count():
    points = torch.tensor([[5.0, 0, 0.5], [5.1, 0, 0.5]])
    with pytest.raises(AnnotationError, match="found 2 laser points"):
        fit_box(points, points[0])
    with pytest.raises(AnnotationError, match="found 0 laser points"):
        fit_box(torch.zeros(0, 3), points[0])
    scattered = torch.cartesian_prod(torch.arange(3.0), torch.arange(4.0), torch.zeros(1))
    with pytest.raises(AnnotationError, match="found at most 1 laser points that hang together"):
        fit_box(scattered, scattered[0])


# ---------------------------------------------------------------------------------------- following


@pytest.mark.parametrize("index", range(len(TRACKS)))
def test_a_car_is_followed_over_the_whole_recording_from_one_key_frame(capture, index):
    true = TRACKS[index]
    start = Annotation(true.name, "car", true.size, (Keyframe(TIMES[5], true.poses[5]),))
    found, seen = finished(follow(capture, start))
    assert found.times == TIMES
    for key, pose in zip(found.keyframes, true.poses, strict=True):
        shift, turn = errors(key.pose, pose)
        assert shift < 0.2 and turn < 3, key.time
        assert abs(float(key.pose[2, 3] - pose[2, 3])) < 0.05
    assert [k.by_hand for k in found.keyframes].count(True) == 1
    assert torch.equal(found.keyframes[5].pose, true.poses[5])
    assert seen[-1][0] == seen[-1][1] and all(
        a[0] <= b[0] for a, b in zip(seen, seen[1:], strict=False)
    )


def test_key_frames_by_hand_stay_and_found_ones_are_found_anew(capture):
    true = TRACKS[0]
    wrong = true.poses[7].clone()
    wrong[0, 3] += 0.5
    keys = (Keyframe(TIMES[2], true.poses[2]), Keyframe(TIMES[7], wrong, by_hand=False))
    held = Keyframe(TIMES[9], wrong)
    start = Annotation("ahead", "car", true.size, (*keys, held))
    found, _ = finished(follow(capture, start))
    by_time = {k.time: k for k in found.keyframes}
    assert torch.equal(by_time[TIMES[9]].pose, wrong) and by_time[TIMES[9]].by_hand
    assert torch.equal(by_time[TIMES[2]].pose, true.poses[2])
    assert errors(by_time[TIMES[3]].pose, true.poses[3])[0] < 0.2
    assert not by_time[TIMES[7]].by_hand and not torch.equal(by_time[TIMES[7]].pose, wrong)


def test_following_stops_where_the_car_is_gone(capture):
    true = TRACKS[0]
    sweeps = list(capture.lidar)
    for i in (0, 1, 2, 3, 9, 10, 11):
        inside = inside_box(sweeps[i], true.poses[i], true.size, margin=0.2, floor=0.1)
        sweeps[i] = sweeps[i][~inside]
    start = Annotation("ahead", "car", true.size, (Keyframe(TIMES[6], true.poses[6]),))
    found, _ = finished(follow(replace(capture, lidar=tuple(sweeps)), start))
    assert found.times == TIMES[4:9]


def test_what_is_seen_once_far_away_is_something_else(capture):
    """A parked car that leaves the view, and a like one farther on in the next sweep only."""
    size = torch.tensor([4.3, 1.75, 1.5])
    here, there = pose_of(14, 3, 0), pose_of(17.4, 3, 0)
    cars = [[(here, size.tolist())], [(there, size.tolist())]] + [[]] * (len(TIMES) - 2)
    sweeps = tuple(sweep(some, seed=i) for i, some in enumerate(cars))
    start = Annotation("parked", "car", size, (Keyframe(TIMES[0], here),))
    found, _ = finished(follow(replace(capture, lidar=sweeps), start))
    assert found.times == TIMES[:1]
    again = tuple(sweep(cars[0], seed=i) if i < 2 else s for i, s in enumerate(sweeps))
    found, _ = finished(follow(replace(capture, lidar=again), start))
    assert found.times == TIMES[:2], "where it was placed one sweep is enough"


def test_a_sweep_that_was_lost_is_bridged(capture):
    true = TRACKS[0]
    sweeps = [*capture.lidar[:6], torch.zeros(0, 3), *capture.lidar[7:]]
    start = Annotation("ahead", "car", true.size, (Keyframe(TIMES[3], true.poses[3]),))
    found, _ = finished(follow(replace(capture, lidar=tuple(sweeps)), start))
    assert found.times == TIMES[:6] + TIMES[7:]
    assert errors(found.pose_at(TIMES[6]), true.poses[6])[0] < 0.2


def test_following_an_empty_box_is_refused(capture):
    start = Annotation("x", "car", torch.tensor([4.0, 2, 1.5]), (Keyframe(0.0, pose_of(20, 7, 0)),))
    with pytest.raises(AnnotationError, match="found at most [0-7] laser points in its box"):
        finished(follow(capture, start))
    late = Annotation("x", "car", torch.tensor([4.0, 2, 1.5]), (Keyframe(0.1, pose_of(20, 7, 0)),))
    with pytest.raises(AnnotationError, match="none of its key times"):
        finished(follow(capture, late))


# ----------------------------------------------------------------------------------------- refining


@pytest.mark.parametrize("axis", [0, 1])
def test_a_track_that_is_off_in_turn_comes_back_to_itself(capture, axis):
    """0.3 m forwards and backwards (or left and right) in turn; under 6 cm are left of it."""
    for true in TRACKS[:2]:
        poses = true.poses.clone()
        wave = 0.3 * torch.cos(math.pi * torch.arange(len(poses)).double())
        poses[:, :3, 3] += wave[:, None] * poses[:, :3, axis]
        found = refined(capture, replace(true, poses=poses))
        left = [errors(a, b)[0] for a, b in zip(found.poses, true.poses, strict=True)]
        assert sorted(left)[len(left) // 2] < 0.06 and max(left) < 0.2
        assert torch.equal(found.timestamps, true.timestamps)


def test_what_the_laser_cannot_tell_stays_as_it_was(capture):
    true = TRACKS[0]
    assert refined(replace(capture, lidar=()), true) is true
    followed = replace(true, by_hand=torch.tensor([True] + [False] * (len(TIMES) - 1)))
    assert refined(capture, followed) is followed
    aside = true.poses.clone()
    aside[:, 1, 3] += 40
    elsewhere = replace(true, poses=aside)
    assert refined(capture, elsewhere) is elsewhere
    bound = refined(capture, true, bounds=(0.0, 0.0, 0.0))
    assert all(errors(a, b)[0] < 1e-6 for a, b in zip(bound.poses, true.poses, strict=True))
