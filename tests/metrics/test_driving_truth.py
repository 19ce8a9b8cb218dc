"""NTA and NTL truth against exact pictures of a procedural street: a renderer that shares no code."""

import numpy as np
import pytest
import torch

from faithfusion_studio.boxes import box_corners
from faithfusion_studio.cameras import offset_laterally
from faithfusion_studio.metrics.boxes import image_boxes, nta_iou
from faithfusion_studio.metrics.detectors import OracleDetector
from faithfusion_studio.metrics.lanes import visible_pieces
from faithfusion_studio.metrics.temporal import sampled
from faithfusion_studio.synthetic import StreetConfig, box_tracks, build_street, drive, trace_view


@pytest.fixture(scope="module")
def street():
    return build_street(StreetConfig(seed=5, length=30.0, num_moving=2))


@pytest.fixture(scope="module")
def trajectory(street):
    return drive(street, frames=4, size=(320, 180))


@pytest.mark.parametrize("offset", [0.0, 3.0, -1.0])
def test_boxes_enclose_what_the_ray_tracer_sees_of_each_car(street, trajectory, offset):
    """An oracle that boxes the pixels of each car: bodies are rounder than their boxes, so not 1."""
    tracks = box_tracks(street, sorted(set(trajectory.timestamps)))
    truth, seen = [], []
    for i, camera in enumerate(offset_laterally(trajectory, offset).cameras):
        poses = torch.stack([track.poses[i] for track in tracks])
        corners = box_corners(poses, torch.stack([track.size for track in tracks]))
        boxes, kept = image_boxes(corners, camera, preset="drivedreamer4d")
        truth.append(boxes[kept])
        view = trace_view(street, camera, 1)
        found = []
        for node in range(len(tracks)):
            rows, columns = np.nonzero(view.node_index == node)
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            found.append([v * s for v, s in zip(extent, (1.5, 320 / 180) * 2, strict=True)])
        seen.append(torch.tensor(found, dtype=torch.float64))
    detector = OracleDetector(seen)
    score = nta_iou(truth, [detector.detect(torch.zeros(1, 1, 3)) for _ in truth])
    assert score.boxes == 8
    assert (score.matched_share, score.unmatched_detections) == (1.0, 0)
    assert score.nta_iou > 0.75


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_lane_lines_lie_on_the_paint_the_ray_tracer_sees(street, trajectory, offset):
    camera = offset_laterally(trajectory, offset).cameras[1].resized(640, 360)
    picture = torch.from_numpy(np.asarray(trace_view(street, camera, 4).rgb))
    brightness = picture.mean(-1, keepdim=True)
    ahead = [
        lane[(lane[:, 0] > camera.position[0] + 7) & (lane[:, 0] < 22)] for lane in edges(street)
    ]
    measured = 0
    for lane in ahead:
        on = torch.cat(visible_pieces(lane, camera))
        beside = torch.cat(visible_pieces(lane + torch.tensor([0.0, 0.5, 0.0]), camera))
        inside = ((on > 4) & (on < torch.tensor([636.0, 356.0]))).all(-1)
        if int(inside.sum()) < 4:
            continue
        measured += 1
        contrast = [sampled(brightness, at[inside][None])[0, :, 0] for at in (on, beside)]
        assert float((contrast[0] - contrast[1]).median()) > 0.1
    assert measured == 2


def edges(street):
    return [torch.from_numpy(lane.astype(np.float32)) for lane in street.lanes()[1:]]
