"""The command edit: the same edits as in the studio, checked against the edit functions themselves."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "editing"))
from object_worlds import assert_same, cloud, world

from faithfusion_studio import cli, editing
from faithfusion_studio.io import load_scene, save_scene
from faithfusion_studio.scene import Scene


@pytest.fixture
def edit(tmp_path, capsys):
    save_scene(world(), tmp_path / "a.ckpt")

    def call(*words):
        code = cli.main(
            ["edit", str(tmp_path / "a.ckpt"), str(tmp_path / "b.ckpt"), *words, "--json"]
        )
        return code, json.loads(capsys.readouterr().out)

    return call


def test_objects_are_edited_as_in_the_studio(edit, tmp_path):
    code, said = edit("--move", "car=1,0,0,90", "--duplicate", "car=0,3,0", "--hide", "van")
    assert code == 0 and said["edits"] == ["Move car", "Duplicate car", "Hide van"]
    wanted = load_scene(tmp_path / "a.ckpt")
    wanted = editing.move_node(
        wanted, "car", offset=(1.0, 0.0, 0.0), yaw=math.radians(90.0), frame="object"
    ).scene
    wanted = editing.duplicate_node(wanted, "car", offset=(0.0, 3.0, 0.0)).scene
    wanted = editing.mark_node(wanted, "van", hidden=True).scene
    save_scene(wanted, tmp_path / "c.ckpt")
    assert_same(load_scene(tmp_path / "b.ckpt"), load_scene(tmp_path / "c.ckpt"))


def test_a_file_replaces_an_object_and_splats_are_deleted(edit, tmp_path):
    save_scene(Scene(cloud(25, 3)), tmp_path / "thing.ply")
    code, said = edit(
        "--replace",
        f"van={tmp_path / 'thing.ply'}",
        "--delete-range",
        "opacity=0:0.5",
        "--delete-box",
        "9,0,1,20,20,20",
        "--among",
        "background",
    )
    assert code == 0 and said["nodes"] == ["car", "van"]
    scene = world()
    gone = editing.by_value(scene, "opacity", 0.0, 0.5)[:200]
    gone &= editing.in_box(scene, editing.Box((9.0, 0.0, 1.0), (20.0, 20.0, 20.0)), 0.0)[:200]
    assert said["gaussians"] == 200 - int(gone.sum()) + 30 + 25


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to change was asked for"),
        (("--move", "bus=1,0,0"), "no object called 'bus'; the scene has: car, van"),
        (("--move", "car"), "expected NAME=..."),
        (("--move", "car=1,2"), "found 2 numbers; expected 3 or 4"),
        (("--delete-range", "weight=0:1"), "expected one of size, opacity, evidence, provenance"),
        (("--delete-range", "opacity=2:3"), "no splats are selected"),
        (("--replace", "car=nowhere.ply"), "nowhere.ply"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(edit, tmp_path, words, message):
    code, said = edit(*words)
    assert code == 2 and message in said["error"] and not (tmp_path / "b.ckpt").exists()
