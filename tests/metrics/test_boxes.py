"""NTA-IoU against a second projector, closed forms, and the two public scripts' differences."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from faithfusion_studio.boxes import LONGEST_SLACK, BoxTrack, box_corners, box_mask, first_hit
from faithfusion_studio.cameras import Camera
from faithfusion_studio.metrics import MetricError
from faithfusion_studio.metrics import boxes as B
from faithfusion_studio.metrics.detectors import OracleDetector

WORLD_FROM_CAMERA = torch.tensor(
    [[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1]], dtype=torch.float64
)
K = torch.tensor([[960.0, 0, 960], [0, 960.0, 640], [0, 0, 1]], dtype=torch.float64)


def front(left=0.0, width=1920, height=1280):
    pose = WORLD_FROM_CAMERA.clone()
    pose[1, 3] = left
    camera = Camera(camtoworld=pose, K=K, width=1920, height=1280)
    return camera.resized(width, height)


def vehicle(x, y, yaw=0.0):
    """Pose of a box standing on the road, x m ahead and y m to the left."""
    c, s = math.cos(yaw), math.sin(yaw)
    return torch.tensor(
        [[c, -s, 0, x], [s, c, 0, y], [0, 0, 1, 0.75], [0, 0, 0, 1]], dtype=torch.float64
    )


SIZE = torch.tensor([[4.5, 1.8, 1.5]])


def corners_of(*poses):
    return box_corners(torch.stack(poses), SIZE.expand(len(poses), 3))


def second_projector(pose, left):
    """The same box by angles in the vehicle frame, written without matrices: [4] on the grid."""
    points = []
    for dx in (-2.25, 2.25):
        for dy in (-0.9, 0.9):
            for dz in (-0.75, 0.75):
                yaw = math.atan2(float(pose[1, 0]), float(pose[0, 0]))
                x = float(pose[0, 3]) + dx * math.cos(yaw) - dy * math.sin(yaw)
                y = float(pose[1, 3]) + dx * math.sin(yaw) + dy * math.cos(yaw)
                z = 0.75 + dz
                points.append((960 - 960 * (y - left) / x, 640 - 960 * (z - 1.6) / x))
    u, v = np.trunc(points).T / 4
    return torch.tensor([u.min(), v.min(), u.max(), v.max()], dtype=torch.float64)


def test_an_oracle_with_its_own_projector_scores_one():
    scene = [vehicle(15, 2, 0.3), vehicle(30, -3, -0.7), vehicle(22, -1, 1.5)]
    truth, oracle = [], []
    for left in (0.0, 1.0, -1.0):
        found, kept = B.image_boxes(corners_of(*scene), front(left))
        assert bool(kept.all())
        truth.append(found[kept])
        oracle.append(torch.stack([second_projector(pose, left) for pose in scene]))
    detector = OracleDetector(oracle)
    picture = torch.zeros(2, 3, 3)
    score = B.nta_iou([t.trunc() for t in truth], [detector.detect(picture) for _ in truth])
    assert score.nta_iou == 1.0
    assert (score.boxes, score.matched_share, score.unmatched_detections) == (9, 1.0, 0)
    for found, second in zip(truth, oracle, strict=True):
        assert float((found - second).abs().max()) == 0.0


def one(box, score=0.9, category=2):
    return B.Detections(torch.tensor([box]), torch.tensor([score]), torch.tensor([category]))


def test_a_shifted_box_has_the_closed_form():
    truth = [torch.tensor([[100.0, 100, 140, 120]])]
    assert B.nta_iou(truth, [one([105.0, 100, 145, 120])]).nta_iou == pytest.approx(35 / 45)
    assert B.nta_iou(truth, [one([110.0, 100, 150, 120])]).nta_iou == 0.0
    assert B.nta_iou(truth, [one([109.0, 100, 149, 120])]).nta_iou == pytest.approx(31 / 49)


def test_confidence_class_and_whole_pixels_follow_the_presets():
    truth = [torch.tensor([[100.0, 100, 140, 120]])]
    box = [100.9, 100.2, 140.8, 120.9]
    assert B.nta_iou(truth, [one(box)]).nta_iou == 1.0
    assert B.nta_iou(truth, [one(box, score=0.5)]).nta_iou == 0.0
    truck = B.nta_iou(truth, [one(box, category=7)])
    assert (truck.nta_iou, truck.matched_share, truck.unmatched_detections) == (0.0, 0.0, 0)
    assert B.nta_iou(truth, [one(box, category=7)], preset="drivedreamer4d").nta_iou == 1.0


def test_one_detection_may_serve_two_boxes_and_extra_ones_are_only_counted():
    truth = [torch.tensor([[100.0, 100, 140, 120], [102, 100, 142, 120]])]
    found = B.Detections(
        torch.tensor([[100.0, 100, 140, 120], [300, 10, 340, 40]]),
        torch.ones(2),
        torch.tensor([2, 2]),
    )
    score = B.nta_iou(truth, [found])
    assert score.nta_iou == pytest.approx((1 + 38 / 42) / 2)
    assert (score.matched_share, score.unmatched_detections) == (1.0, 1)


def test_frames_without_boxes_do_not_count():
    none = torch.zeros(0, 4)
    truth = [none, torch.tensor([[100.0, 100, 140, 120]])]
    found = [one([10.0, 10, 20, 20]), one([100.0, 100, 140, 120])]
    score = B.nta_iou(truth, found)
    assert (score.nta_iou, score.empty_frames, score.unmatched_detections) == (1.0, 1, 1)
    assert math.isnan(B.nta_iou([none], found[:1]).nta_iou)
    assert B.nta_iou([none], found[:1], strict_compat=True).nta_iou == 0.0
    four = B.nta_iou([none], found[:1], preset="drivedreamer4d", strict_compat=True)
    assert math.isnan(four.nta_iou)
    with pytest.raises(MetricError, match="1 frames with boxes but 2"):
        B.nta_iou([none], found)


def test_vehicles_behind_or_across_the_border_are_dropped():
    behind, across, ahead = vehicle(-15, 0.5), vehicle(8, 7.5), vehicle(20, 0)
    _, kept = B.image_boxes(corners_of(behind, across, ahead), front())
    assert kept.tolist() == [False, False, True]


def test_strict_compat_flips_what_is_behind_as_the_scripts_do():
    corners = corners_of(vehicle(-15, 0.5))
    boxes, kept = B.image_boxes(corners, front(), strict_compat=True)
    assert bool(kept[0])
    ours = B.projected_corners(corners, front())[0]
    assert float(boxes[0, 0]) == pytest.approx(float(ours[0, :, 0].trunc().min()) / 4)
    _, kept = B.image_boxes(corners, front(), preset="drivedreamer4d", strict_compat=True)
    assert not bool(kept[0])
    beside = corners_of(vehicle(1.0, 0.5))  # its rear is behind the camera, its front is not
    _, kept = B.image_boxes(beside, front(), preset="drivedreamer4d")
    assert not bool(kept[0])


def test_the_presets_round_differently_by_less_than_a_pixel():
    corners = corners_of(vehicle(17, 1, 0.4))
    first, _ = B.image_boxes(corners, front())
    second, _ = B.image_boxes(corners, front(), preset="drivedreamer4d")
    assert torch.equal(first * 4, (first * 4).trunc())
    assert torch.equal(second, second.trunc())
    assert 0 < float((first - second).abs().max()) < 1


def test_the_grid_is_the_same_for_every_picture_size():
    corners = corners_of(vehicle(17, 1, 0.4))
    large, _ = B.image_boxes(corners, front(), preset="drivedreamer4d")
    small, _ = B.image_boxes(corners, front(width=640, height=360), preset="drivedreamer4d")
    assert float((large - small).abs().max()) <= 1


def test_boxes_must_have_been_seen_and_measured_when_recorded():
    poses = torch.stack([vehicle(20, 0), vehicle(-20, 0)])
    seen = B.seen_when_recorded(box_corners(poses, SIZE.expand(2, 3)), front())
    assert seen.tolist() == [True, False]
    points = torch.tensor([[20.0, 0.3, 0.7], [22.2, -0.8, 1.4], [22.3, 0, 0.7], [-20, 0, 1.6]])
    assert B.laser_points_inside(points, poses, SIZE.expand(2, 3)).tolist() == [2, 0]
    turned = torch.stack([vehicle(0, 0, math.pi / 2)])
    along = torch.tensor([[0.0, 2.2, 0.7], [2.2, 0.0, 0.7]])
    assert B.laser_points_inside(along, turned, SIZE).tolist() == [1]


def test_the_protocol_names_preset_and_detector():
    words = B.nta_protocol("yolox_nano abc", "recondreamer", 7)
    assert "recondreamer" in words and "yolox_nano abc" in words and "COCO 2, 5" in words


def test_a_track_of_few_key_times_does_not_hold_far_beyond_its_ends():
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    times = torch.tensor([1.0, 9.0], dtype=torch.float64)
    track = BoxTrack("car", "car", torch.tensor([4.0, 2.0, 1.5]), poses, times)
    assert track.slack == LONGEST_SLACK
    assert track.pose_at(1.0 - 0.2) is not None and track.pose_at(1.0 - 0.3) is None


def test_a_ray_meets_the_nearest_of_turned_boxes_first():
    def track(name, pose):
        size, now = torch.tensor([4.0, 2.0, 1.5]), torch.zeros(1).double()
        return BoxTrack(name, "car", size, pose[None], now)

    tracks = [track("far", vehicle(20.0, -3.0)), track("near", vehicle(10.0, 0.6, yaw=0.7))]
    camera = front(width=240, height=160)
    masks = torch.stack([box_mask(t.poses[0], t.size, camera) for t in tracks]).float()[:, None]
    around = (
        torch.nn.functional.max_pool2d(masks, 3, 1, 1),
        -torch.nn.functional.max_pool2d(-masks, 3, 1, 1),
    )
    inner = (around[0] == around[1]).all(0)[0]  # a pixel on an outline is a matter of rounding
    far, near = (masks[:, 0] > 0).unbind()
    assert (inner & far & ~near).any() and (inner & near).any()
    for row in range(60, 120, 2):
        for column in range(70, 190, 2):
            if inner[row, column]:
                found = first_hit(tracks, camera, (column + 0.5, row + 0.5))
                name = "near" if near[row, column] else "far" if far[row, column] else None
                assert (None if found is None else found.name) == name
    behind = camera.moved(camera.camtoworld @ torch.diag(torch.tensor([-1.0, 1, -1, 1])).double())
    assert first_hit(tracks, behind, (120.5, 80.5)) is None
    assert first_hit(tracks, replace(camera, time=5.0), (120.5, 80.5)) is None
