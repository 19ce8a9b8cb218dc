"""Annotated vehicles and lanes survive a folder with cameras.json, and damage is one sentence."""

import json
from dataclasses import replace

import pytest
import torch

from faithfusion_studio.io import load_capture, write_cameras_json
from faithfusion_studio.io.capture_files import CaptureError
from faithfusion_studio.scene import BoxTrack
from faithfusion_studio.synthetic import StreetConfig, build_street, drive, record


@pytest.fixture(scope="module")
def capture():
    street = build_street(StreetConfig(seed=3, length=20.0))
    found = record(street, drive(street, frames=2, size=(32, 18)))
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[1, 0, 3] = 1.5
    times = torch.tensor([0.0, 0.1], dtype=torch.float64)
    box = BoxTrack("car 1", "vehicle", torch.tensor([4.25, 1.75, 1.5]), poses, times)
    return replace(found, boxes=(*found.boxes, box))


def test_boxes_and_lanes_come_back(capture, tmp_path):
    write_cameras_json(capture, tmp_path)
    found = load_capture(tmp_path)
    assert len(found.boxes) == len(capture.boxes) > 0
    for a, b in zip(found.boxes, capture.boxes, strict=True):
        assert (a.name, a.category) == (b.name, b.category)
        assert torch.equal(a.size, b.size.float())
        assert torch.equal(a.poses, b.poses) and torch.equal(a.timestamps, b.timestamps)
    assert len(found.lanes) == len(capture.lanes) > 0
    for a, b in zip(found.lanes, capture.lanes, strict=True):
        assert torch.equal(a, b)


def test_a_recording_without_annotations_has_no_such_keys(capture, tmp_path):
    write_cameras_json(replace(capture, boxes=(), lanes=()), tmp_path)
    assert not {"boxes", "lanes"} & set(json.loads((tmp_path / "cameras.json").read_text()))
    assert load_capture(tmp_path).boxes == load_capture(tmp_path).lanes == ()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("boxes", {}, "boxes is a dict; expected a list"),
        ("boxes", [3], "box 0 is a int"),
        ("boxes", [{"size": [1, 2]}], "size is not 3 finite numbers"),
        ("boxes", [{"size": [1, 2, 3], "timestamps": [0], "world_from_box": []}], "1 x 4 x 4"),
        ("boxes", [{"size": [1, 2, 0], "timestamps": [], "world_from_box": None}], "0 x 4 x 4"),
        (
            "boxes",
            [{"size": [1, 2, 3], "timestamps": [0], "world_from_box": [[[2.0] * 4] * 4]}],
            "rigid",
        ),
        ("lanes", [[[1, 2]]], "lane 0 is not N x 3 finite numbers"),
        ("lanes", [[[1, 2, "x"]]], "lane 0 is not N x 3 finite numbers"),
        ("lanes", "none", "lanes is a str; expected a list"),
    ],
)
def test_damaged_annotations_are_one_sentence(capture, tmp_path, key, value, words):
    write_cameras_json(capture, tmp_path)
    file = tmp_path / "cameras.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(CaptureError, match=words):
        load_capture(tmp_path)
