"""YOLOX's decoding on hand-made outputs; the real network if its file is here."""

from pathlib import Path

import numpy as np
import pytest
import torch

from faithfusion_studio.io.weights import WeightsError
from faithfusion_studio.metrics import detectors as D
from faithfusion_studio.metrics.boxes import counted_detections

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def test_cells_are_decoded_stride_by_stride():
    raw = torch.zeros(52**2 + 26**2 + 13**2, 85)
    raw[52 * 3 + 7, :4] = torch.tensor([0.5, 0.25, np.log(4.0), np.log(2.0)])
    raw[52 * 3 + 7, 4], raw[52 * 3 + 7, 5 + 2] = 0.9, 0.8
    last = 52**2 + 26**2 + 13 * 2 + 1
    raw[last, 2:4] = np.log(3.0)
    boxes, scores, classes = D.decoded(raw, 416)
    assert boxes[52 * 3 + 7].tolist() == pytest.approx([60 - 16, 26 - 8, 60 + 16, 26 + 8])
    assert float(scores[52 * 3 + 7]) == pytest.approx(0.72)
    assert int(classes[52 * 3 + 7]) == 2
    assert boxes[last].tolist() == pytest.approx([32 - 48, 64 - 48, 32 + 48, 64 + 48])


def test_weaker_boxes_of_one_class_give_way():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
    scores = torch.tensor([0.6, 0.9, 0.5, 0.3])
    classes = torch.tensor([2, 2, 7, 2])
    assert D.suppressed(boxes, scores, classes).tolist() == [1, 2, 3]
    assert len(D.suppressed(boxes[:0], scores[:0], classes[:0])) == 0


def test_the_picture_stands_in_the_upper_left_on_grey():
    square, ratio = D.letterboxed(np.full((320, 480, 3), 7, np.uint8), 416)
    assert square.shape == (1, 3, 416, 416)
    assert ratio == pytest.approx(416 / 480)
    assert square[0, :, 276, 415].tolist() == [7, 7, 7]
    assert square[0, :, 277, 0].tolist() == [114, 114, 114]


def test_what_is_no_network_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read"):
        D.YoloxDetector(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(WeightsError, match="expected a YOLOX export"):
        D.YoloxDetector(tmp_path / "text.onnx")


def test_yolox_nano_finds_the_cars_of_a_traffic_frame():
    weights = SHARED / "weights" / "yolox_nano" / "yolox_nano.onnx"
    frames = sorted((SHARED / "data" / "kitti_traffic_lidar" / "images").glob("*.jpg"))
    if not weights.is_file() or not frames:
        pytest.skip(f"{weights} or its test pictures are not here")
    import cv2

    detector = D.YoloxDetector(weights)
    assert detector.name == "yolox_nano 695e750a5d57"
    picture = cv2.imread(str(frames[0]))[:, :, ::-1].copy()
    found = detector.detect(torch.from_numpy(picture).float() / 255)
    cars = counted_detections(found, "recondreamer")
    assert len(cars) >= 2
    assert bool((cars[:, 2:] > cars[:, :2]).all())
    assert float(cars.min()) >= 0 and float(cars[:, 2].max()) <= 480
