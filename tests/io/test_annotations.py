"""Annotated vehicles and lanes survive a folder with cameras.json, and damage is one sentence."""

import json
from dataclasses import replace

import pytest
import torch

from faithfusion_studio import cli
from faithfusion_studio.io import load_capture, load_scene, write_cameras_json
from faithfusion_studio.io.annotations import read_box_tracks, write_box_tracks
from faithfusion_studio.io.capture_files import CaptureError
from faithfusion_studio.scene import BoxTrack
from faithfusion_studio.synthetic import StreetConfig, build_street, drive, record

BOX = {"size": [4, 2, 1], "timestamps": [0], "world_from_box": [torch.eye(4).tolist()]}


@pytest.fixture(scope="module")
def capture():
    street = build_street(StreetConfig(seed=3, length=20.0))
    found = record(street, drive(street, frames=2, size=(32, 18)))
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[1, 0, 3] = 1.5
    times = torch.tensor([0.0, 0.1], dtype=torch.float64)
    box = BoxTrack("car 1", "vehicle", torch.tensor([4.25, 1.75, 1.5]), poses, times)
    box = replace(box, by_hand=torch.tensor([False, True]))
    return replace(found, boxes=(*found.boxes, box))


def test_boxes_and_lanes_come_back(capture, tmp_path):
    write_cameras_json(capture, tmp_path)
    found = load_capture(tmp_path)
    assert len(found.boxes) == len(capture.boxes) > 0
    for a, b in zip(found.boxes, capture.boxes, strict=True):
        assert (a.name, a.category) == (b.name, b.category)
        assert torch.equal(a.size, b.size.float())
        assert torch.equal(a.poses, b.poses) and torch.equal(a.timestamps, b.timestamps)
        assert (a.by_hand is None) == (b.by_hand is None)
    assert found.boxes[-1].by_hand.tolist() == [False, True]
    assert len(found.lanes) == len(capture.lanes) > 0
    for a, b in zip(found.lanes, capture.lanes, strict=True):
        assert torch.equal(a, b)


def test_box_tracks_are_read_from_a_file_of_their_own(capture, tmp_path):
    write_cameras_json(capture, tmp_path)
    found = read_box_tracks(tmp_path / "cameras.json")
    assert [box.name for box in found] == [box.name for box in capture.boxes]
    assert torch.equal(found[-1].poses, capture.boxes[-1].poses)
    write_box_tracks(found, tmp_path / "boxes.json")
    assert torch.equal(read_box_tracks(tmp_path / "boxes.json")[-1].poses, found[-1].poses)
    for text in ("{", "[]", '{"boxes": 3}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CaptureError, match="bad.json"):
            read_box_tracks(tmp_path / "bad.json")
    with pytest.raises(CaptureError, match="gone.json"):
        read_box_tracks(tmp_path / "gone.json")


def test_reconstruct_learns_the_vehicles_of_a_file_and_counts_them(tmp_path, capsys):
    street = build_street(StreetConfig(seed=7, num_moving=2, ambient_rays=2))
    moving = record(street, drive(street, 4, (96, 54)))
    write_cameras_json(moving, tmp_path / "with")
    write_cameras_json(replace(moving, boxes=()), tmp_path / "without")
    words = [str(tmp_path / "without"), str(tmp_path / "out.ckpt"), "--scale", "1", "--steps", "3"]
    boxes = ["--boxes", str(tmp_path / "with" / "cameras.json"), "--symmetric"]
    assert cli.main(["reconstruct", *words, *boxes, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    scene = load_scene(tmp_path / "out.ckpt")
    assert values["vehicles"] == {n.name: len(n.gaussians) for n in scene.nodes} != {}


def test_a_recording_without_annotations_has_no_such_keys(capture, tmp_path):
    write_cameras_json(replace(capture, boxes=(), lanes=()), tmp_path)
    assert not {"boxes", "lanes"} & set(json.loads((tmp_path / "cameras.json").read_text()))
    assert load_capture(tmp_path).boxes == load_capture(tmp_path).lanes == ()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("boxes", {}, "boxes is a dict; expected a list"),
        ("boxes", [3], "box 0 is a int"),
        ("boxes", [BOX | {"by_hand": [1, 0]}], "by_hand is not 1 finite numbers"),
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
