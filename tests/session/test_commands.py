"""Edits make new scenes and take the evidence along; targets are checked before any work."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from faithfusion_studio.session import commands as c


def test_deleting_takes_rows_of_background_node_and_evidence(tools):
    scene = tools.scene(n=10)
    fisher = replace(scene.fisher, blocks=torch.arange(14.0)[:, None].repeat(1, 91))
    scene = replace(scene, fisher=fisher)
    edited = c.apply_edit(scene, c.DeleteGaussians(torch.tensor([0, 3, 10]))).scene
    assert len(edited.background) == 8
    assert len(edited.nodes[0].gaussians) == 3
    assert edited.fisher.blocks[:, 0].tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 11, 12, 13]
    assert scene.num_gaussians == 14


def test_an_edit_shares_what_it_does_not_touch(tools):
    scene = tools.scene()
    edited = c.apply_edit(scene, c.DeleteGaussians(torch.tensor([12]))).scene
    assert edited.background is scene.background
    assert edited.capture is scene.capture


def test_a_row_that_does_not_exist_is_named(tools):
    with pytest.raises(c.CommandError, match="row 14 does not exist; the scene has 14 splats"):
        c.apply_edit(tools.scene(), c.DeleteGaussians(torch.tensor([14])))


def test_removing_a_node_removes_its_evidence(tools):
    edited = c.apply_edit(tools.scene(), c.RemoveNode("car")).scene
    assert edited.nodes == ()
    assert len(edited.fisher.blocks) == 10


def test_an_unknown_node_is_answered_with_the_known_ones(tools):
    with pytest.raises(c.CommandError, match="'bus'; the scene has: car"):
        c.apply_edit(tools.scene(), c.MoveNode("bus"))


def test_moving_a_node_shifts_in_the_world_and_turns_about_itself(tools):
    command = c.MoveNode("car", offset=(1.0, 2.0, 0.0), yaw=math.pi / 2)
    pose = c.apply_edit(tools.scene(), command).scene.nodes[0].poses[0]
    assert torch.allclose(pose[:3, 3], torch.tensor([1.0, 2.0, 0.0], dtype=pose.dtype))
    assert torch.allclose(pose[:3, 0], torch.tensor([0.0, 1.0, 0.0], dtype=pose.dtype))


def test_the_sky_becomes_one_colour(tools):
    sky = c.apply_edit(tools.scene(), c.SetSky((0.1, 0.2, 0.3))).scene.sky
    assert torch.allclose(
        sky.radiance(torch.tensor([[0.0, 0, 1]])), torch.tensor([[0.1, 0.2, 0.3]])
    )
    with pytest.raises(c.CommandError, match="not three numbers in 0..1"):
        c.apply_edit(tools.scene(), c.SetSky((0.1, 2.0, 0.3)))


def test_commands_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        c.SaveAs("a.ckpt").path = "b.ckpt"


def test_targets_that_cannot_be_written_are_refused_in_one_sentence(tmp_path):
    opened = tmp_path / "opened.ckpt"
    opened.write_bytes(b"x")
    for path, needed, message in (
        (tmp_path / "none" / "a.ckpt", 0, "folder does not exist"),
        (tmp_path, 0, "this is a folder"),
        (opened, 0, "never overwritten"),
        (tmp_path / "a.ckpt", 1 << 60, "no space left"),
    ):
        with pytest.raises(c.CommandError, match=message):
            c.check_target(path, opened, needed)
    c.check_target(tmp_path / "a.ckpt", opened, 1)
