"""The command boxes: what a person without a window does to annotate a recording."""

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "annotating"))
from box_world import errors, recording, track

from faithfusion_studio import cli
from faithfusion_studio.annotating import Annotation
from faithfusion_studio.annotating.overlay import captioned, drawn, sheet
from faithfusion_studio.boxes import box_edges, box_mask
from faithfusion_studio.io.annotations import read_box_tracks
from faithfusion_studio.synthetic.recording import encode_jpeg

TIMES = [0.0, 0.2, 0.4, 0.6]
CAR = track("car", lambda t: (10 + 4 * t, 0.5, 0.0), TIMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A capture folder with sweeps of a car that drives off ahead."""
    root = tmp_path_factory.mktemp("drive")
    capture = recording((CAR,), TIMES)
    (root / "images").mkdir()
    (root / "lidar").mkdir()
    frames = []
    for i, (frame, scan) in enumerate(zip(capture.frames, capture.lidar, strict=True)):
        grey = np.full((300, 800, 3), 0.5, np.float32)
        (root / f"images/{i}.jpg").write_bytes(encode_jpeg(grey, 90))
        millimetres = (scan.numpy() / 0.004).round().astype(np.int16)
        np.savez(root / f"lidar/{i}.npz", xyz_mm4=millimetres)
        frames.append(
            {
                "file": f"images/{i}.jpg",
                "lidar": f"lidar/{i}.npz",
                "world_from_camera": frame.camera.camtoworld.tolist(),
                "world_from_lidar": np.eye(4).tolist(),
            }
        )
    lens = {
        "model": "PINHOLE",
        "width": 800,
        "height": 300,
        "fx": 500,
        "fy": 500,
        "cx": 400,
        "cy": 150,
    }
    content = {"fps": 5, "cameras": {"cam": lens}, "frames": frames, "lidar_unit_m": 0.004}
    (root / "cameras.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def boxes(folder, tmp_path, capsys):
    def call(*words):
        code = cli.main(["boxes", str(folder), str(tmp_path / "b.json"), *words, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def clicked(index):
    """The pixel of a place on the car's back."""
    camera = recording((), TIMES).frames[index].camera
    pose = CAR.poses[index]
    place = pose[:3, :3] @ torch.tensor([-2.15, 0.2, 0.0]).double() + pose[:3, 3]
    pixel = camera.K @ (camera.viewmat[:3, :3] @ place + camera.viewmat[:3, 3])
    return f"{float(pixel[0] / pixel[2]):.1f},{float(pixel[1] / pixel[2]):.1f}"


def test_a_clicked_car_is_fitted_followed_written_and_drawn(boxes, tmp_path):
    code, said = boxes("--add", f"car=1:{clicked(1)}", "--size", "car=4.3,1.75,1.5",
                       "--follow", "car", "--picture", str(tmp_path / "check.png"))  # fmt: skip
    assert code == 0 and said["written"]
    (box,) = said["boxes"]
    assert (box["name"], box["category"], box["key_frames"], box["by_hand"]) == ("car", "car", 4, 1)
    assert box["moves"] and box["travel"] == pytest.approx(2.4, abs=0.2)
    (found,) = read_box_tracks(tmp_path / "b.json")
    assert found.by_hand.tolist() == [False, True, False, False]
    for pose, true in zip(found.poses, CAR.poses, strict=True):
        shift, turn = errors(pose, true)
        assert shift < 0.3 and turn < 5
    picture = cv2.imread(str(tmp_path / "check.png"))
    assert picture.shape == (720, 1920, 3)


def test_boxes_are_placed_moved_resized_and_taken_out_by_hand(boxes, tmp_path):
    code, said = boxes("--place", "van=0:10,3,0,90", "--size", "van=5,2,2", "--category", "van=van")
    assert code == 0 and said["boxes"][0]["category"] == "van"
    boxes("--place", "van=3:10,5,0,90")
    code, said = boxes("--move", "van=1:1,0,0.5,90", "--size", "van=6,2,3")
    (found,) = read_box_tracks(tmp_path / "b.json")
    assert code == 0 and found.size.tolist() == [6, 2, 3] and found.by_hand.all()
    first, moved, last = found.poses
    assert torch.allclose(first[:3, 3], torch.tensor([10.0, 3, 1.5]).double())
    assert torch.allclose(last[:3, 3], torch.tensor([10.0, 5, 1.5]).double())
    # A third of the way, and a metre ahead, which is along +y.
    assert torch.allclose(moved[:3, 3], torch.tensor([10, 3 + 2 / 3 + 1, 2.0]).double(), atol=1e-6)
    assert math.atan2(float(moved[1, 0]), float(moved[0, 0])) == pytest.approx(math.pi, abs=1e-6)
    code, said = boxes("--drop", "van=1")
    assert said["boxes"][0]["key_frames"] == 2
    code, said = boxes()
    assert not said["written"] and len(said["boxes"]) == 1
    code, said = boxes("--remove", "van")
    assert said["boxes"] == [] and read_box_tracks(tmp_path / "b.json") == ()


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--add", "car"], "--add: found 'car'; expected NAME=..."),
        (["--add", "car=9:1,2"], "found frame '9'; the recording has frames 0 to 3"),
        (["--add", "car=0:1"], "found 1 numbers in '0:1'; expected 2 or 3"),
        (["--add", "car=0:400,3"], "no laser point lies within 8 pixels of 400,3"),
        (["--add", "car=0:30,3,0.5"], "found 0 laser points within 1 m"),
        (["--follow", "bus"], "there is no box 'bus'; there is none"),
        (["--place", "bus=0:1,2,3,4"], "bus is new; give its --size"),
        (["--size", "bus=1,2"], "expected LENGTH,WIDTH,HEIGHT"),
        (["--picture", "a.png", "--every", "0"], "--every: found 0"),
    ],
)
def test_what_cannot_be_done_is_said_and_writes_nothing(boxes, tmp_path, words, reason):
    code, said = boxes(*words)
    assert code == 2 and reason in said["error"]
    assert not (tmp_path / "b.json").exists()


def test_a_name_that_is_no_json_is_refused(folder, capsys):
    assert cli.main(["boxes", str(folder), "boxes.txt"]) == 2
    assert "written as .json" in capsys.readouterr().err


def test_drawn_lines_bound_the_pixels_of_the_box():
    camera = recording((), TIMES).frames[0].camera
    lines = box_edges(CAR.poses[0], CAR.size, camera)
    assert lines.shape == (12, 2, 2)
    rows, columns = box_mask(CAR.poses[0], CAR.size, camera).nonzero(as_tuple=True)
    low, high = lines.reshape(-1, 2).amin(0), lines.reshape(-1, 2).amax(0)
    assert (
        abs(float(low[0]) - int(columns.min())) < 2 and abs(float(high[0]) - int(columns.max())) < 2
    )
    assert abs(float(low[1]) - int(rows.min())) < 2 and abs(float(high[1]) - int(rows.max())) < 2
    behind = CAR.poses[0].clone()
    behind[0, 3] = -20
    assert len(box_edges(behind, CAR.size, camera)) == 0
    around = CAR.poses[0].clone()
    around[:3, 3] = torch.tensor([0.0, 0, 1.6])
    assert bool(torch.isfinite(box_edges(around, CAR.size, camera)).all())


def test_pictures_show_the_boxes_of_their_time(folder):
    from faithfusion_studio.io import load_capture

    capture = load_capture(folder)
    annotation = Annotation.from_track(CAR)
    plain, marked = (drawn(capture.frames[0], a, width=400) for a in ((), (annotation,)))
    assert plain.shape == marked.shape == (150, 400, 3)
    changed = (plain != marked).any(2)
    assert 100 < changed.sum() < 0.2 * changed.size
    assert (sheet([plain, captioned(marked, "1"), plain], 2)[150:, 400:] == 0).all()
