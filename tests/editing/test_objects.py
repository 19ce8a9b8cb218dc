"""Objects are hidden, locked, moved, copied, removed and replaced; what is kept per Gaussian follows."""

import math
from dataclasses import replace

import pytest
import torch
from object_worlds import assert_same, camera, cloud, world

from faithfusion_studio.editing import (
    EditError,
    delete_rows,
    duplicate_node,
    mark_node,
    move_node,
    object_at,
    remove_node,
    replace_node,
)
from faithfusion_studio.editing.fitting import extent, fitted
from faithfusion_studio.gaussians import Provenance
from faithfusion_studio.information import eig_map, recorded_fisher
from faithfusion_studio.io import load_scene, save_scene
from faithfusion_studio.render.cpu import deterministic
from faithfusion_studio.render.views import rasterize_view, render_view


def test_a_hidden_object_is_neither_drawn_nor_counted_in_eig():
    scene = world()
    hidden = mark_node(scene, "car", hidden=True).scene
    removed = remove_node(scene, "car").scene
    torch.testing.assert_close(
        render_view(hidden, camera()).rgb, render_view(removed, camera()).rgb, rtol=0, atol=0
    )
    torch.testing.assert_close(
        eig_map(hidden, camera()).eig, eig_map(removed, camera()).eig, rtol=0, atol=0
    )
    shown = mark_node(hidden, "car", hidden=False).scene
    assert_same(shown, scene)
    assert hidden.as_recorded().at(0.1).rows is None and scene.as_recorded() is scene


def test_the_recording_still_shows_what_is_hidden():
    """Evidence of the recorded views is that of the whole scene, whatever is hidden now."""
    import cv2

    from faithfusion_studio.cameras import trajectory_from_cameras
    from faithfusion_studio.render.views import to_uint8
    from faithfusion_studio.scene import Capture, PosedImage

    scene = world(60)
    cameras = [camera(0.0), camera(0.1)]
    photos = []
    for one in cameras:
        pixels = to_uint8(render_view(scene, one).rgb).numpy()[:, :, ::-1]
        photos.append(PosedImage(one, cv2.imencode(".png", pixels)[1].tobytes()))
    scene = replace(scene, capture=Capture(tuple(photos), trajectory_from_cameras(cameras)))
    hidden = mark_node(scene, "car", hidden=True).scene
    with deterministic():  # else two threads may add up their tiles in another order
        assert torch.equal(recorded_fisher(hidden).blocks, recorded_fisher(scene).blocks)


def test_marks_are_written_and_read_back(tmp_path):
    scene = replace(world(20), fisher=None)  # evidence is rounded in a file
    scene = mark_node(scene, "van", hidden=True, locked=True, color=(1.0, 0.5, 0.0)).scene
    save_scene(scene, tmp_path / "a.ckpt")
    assert_same(load_scene(tmp_path / "a.ckpt"), scene)


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: move_node(s, "car", offset=(1.0, 0.0, 0.0)),
        lambda s: remove_node(s, "car"),
        lambda s: replace_node(s, "car", "van"),
        lambda s: delete_rows(s, torch.tensor([3, 200])),
    ],
)
def test_a_locked_object_refuses_in_one_sentence(edit):
    scene = mark_node(world(), "car", locked=True).scene
    with pytest.raises(EditError, match=r"^car is locked, so it cannot be \w+; unlock it first\.$"):
        edit(scene)
    assert duplicate_node(scene, "car").scene.nodes[-1].locked is False
    edit(mark_node(scene, "car", locked=False).scene)


def test_moving_in_the_objects_own_frame_follows_its_heading():
    scene = move_node(world(), "car", yaw=math.pi / 2).scene
    before = scene.nodes[0].poses[:, :3, 3]
    own = move_node(scene, "car", offset=(2.0, 0.0, 0.5), frame="object").scene.nodes[0].poses
    moved = (own[:, :3, 3] - before).tolist()
    assert moved == [pytest.approx([0.0, 2.0, 0.5])] * 3
    world_way = move_node(scene, "car", offset=(2.0, 0.0, 0.5)).scene.nodes[0].poses
    assert (world_way[:, :3, 3] - before).tolist() == [pytest.approx([2.0, 0.0, 0.5])] * 3


def test_a_copy_stands_beside_with_its_evidence_and_is_marked_as_edited():
    scene = world()
    edited = duplicate_node(scene, "van", offset=(0.0, 4.0, 0.0)).scene
    copy = edited.nodes[-1]
    assert [n.name for n in edited.nodes] == ["car", "van", "van 2"]
    assert bool((copy.gaussians.provenance == int(Provenance.EDITED)).all())
    a, b = edited.nodes[1].placed_at(0.1), copy.placed_at(0.1)
    torch.testing.assert_close(b.means - a.means, torch.tensor([[0.0, 4.0, 0.0]]).expand(30, 3))
    assert torch.equal(edited.fisher.blocks[260:], scene.fisher.blocks[230:260])
    assert torch.equal(edited.fisher.blocks[:260], scene.fisher.blocks)
    assert duplicate_node(edited, "van").scene.nodes[-1].name == "van 3"
    assert duplicate_node(edited, "van 2").scene.nodes[-1].name == "van 3"
    eig_map(edited, camera())


def test_removing_a_copy_gives_back_the_scene_bit_by_bit():
    scene = world()
    again = remove_node(duplicate_node(scene, "car").scene, "car 2").scene
    assert_same(again, scene)


def test_another_object_takes_the_place_on_the_same_ground():
    scene = world()
    edited = replace_node(scene, "car", "van").scene
    node, van = edited.nodes[0], scene.nodes[1]
    assert node.name == "car" and node.motion is van.motion and torch.equal(node.size, van.size)
    floor = node.poses[:, 2, 3] - float(node.size[2]) / 2
    before = scene.nodes[0].poses[:, 2, 3] - float(scene.nodes[0].size[2]) / 2
    torch.testing.assert_close(floor, before)
    assert torch.equal(edited.fisher.blocks[200:230], scene.fisher.blocks[230:260])
    assert torch.equal(edited.fisher.blocks[230:], scene.fisher.blocks[230:])


def test_splats_of_a_file_fill_the_box_and_have_no_evidence():
    scene = world()
    thing = cloud(50, 7, (0.2, 0.9, 0.3), degree=2)
    edited = replace_node(scene, "van", thing).scene
    node = edited.nodes[1]
    low, high = extent(node.gaussians.means, node.gaussians.opacities)
    size = node.size
    assert bool((high - low <= size + 1e-4).all())
    assert bool(((high - low) > 0.999 * size).any())
    assert float(low[2]) == pytest.approx(-float(size[2]) / 2, abs=1e-4)
    assert float(high[0] - low[0]) > float(high[1] - low[1])  # the long side lies along the road
    fisher = edited.fisher
    assert len(fisher.blocks) == edited.num_gaussians and not bool(fisher.blocks[230:].any())
    assert fisher.sh.shape == (edited.num_gaussians, 8, 3)
    assert fisher.residual_variance[230:].tolist() == [pytest.approx(0.02**2)] * 50
    assert node.motion is None and node.turns_colors
    eig_map(edited, camera())
    back = remove_node(edited, "van").scene
    assert back.fisher.sh.shape[1] == 3


@pytest.mark.parametrize("up", ["+x", "-x", "+y", "-y", "+z", "-z"])
def test_the_named_axis_points_up_afterwards(up):
    thing = cloud(40, 3, (0.3, 0.3, 0.3))
    axis, sign = "xyz".index(up[1]), 1.0 if up[0] == "+" else -1.0
    top = int((sign * thing.means[:, axis]).argmax())
    out = fitted(replace(thing, logit_opacities=torch.full((40,), 3.0)), torch.ones(3), up=up)
    assert int(out.means[:, 2].argmax()) == top
    d = torch.cdist(thing.means, thing.means)
    ratio = torch.cdist(out.means, out.means)[d > 0.01] / d[d > 0.01]
    assert float(ratio.max() / ratio.min()) == pytest.approx(1.0, abs=1e-3)


def test_what_cannot_be_replaced_is_answered_in_one_sentence():
    scene = world()
    for by, message in (
        ("car", "replaced by itself"),
        ("bus", "no object called 'bus'; the scene has: car, van"),
        (cloud(0, 0), "holds no splats"),
        (replace(cloud(2, 0), means=torch.zeros(2, 3)), "at one point"),
    ):
        with pytest.raises(EditError, match=message):
            replace_node(scene, "car", by)
    with pytest.raises(EditError, match="not finite"):
        move_node(scene, "car", offset=(math.nan, 0.0, 0.0))
    with pytest.raises(EditError, match=r"three numbers in 0\.\.1"):
        mark_node(scene, "car", color=(2.0, 0.0, 0.0))


def test_a_click_finds_the_object_that_fills_the_pixel():
    """Against the same scene with every object drawn alone in a colour of its own."""
    from faithfusion_studio.render.views import render_features

    scene = world()
    view = rasterize_view(scene, camera())
    one_hot = torch.nn.functional.one_hot(view.world.node_index + 1, 3).float()
    shares, _, _ = render_features(view, camera(), one_hot)
    names, checked = [None, "car", "van"], 0
    for y in range(2, 64, 6):
        for x in range(2, 96, 6):
            ordered = shares[y, x].sort(descending=True)
            if (
                float(ordered.values[0] - ordered.values[1]) > 0.01
                and float(shares[y, x].sum()) > 0.2
            ):
                assert object_at(scene, view, x, y) == names[int(ordered.indices[0])]
                checked += 1
    assert checked > 20


def test_objects_of_every_kind_of_motion_are_copied_cut_and_removed(tmp_path):
    """Rigid, deformable and skinned objects of a driving checkpoint, as an independent writer makes it."""
    from reference.slow_drivestudio import make_checkpoint

    torch.save(make_checkpoint(), tmp_path / "checkpoint_30000.pth")
    scene = load_scene(tmp_path / "checkpoint_30000.pth")
    assert len({type(node.motion) for node in scene.nodes}) >= 3
    time = float(scene.nodes[0].timestamps[1])
    start, moved = len(scene.background), [n.placed_at(time) for n in scene.nodes]
    for index, node in enumerate(scene.nodes):
        count = len(node.gaussians)
        copied = duplicate_node(scene, node.name, offset=(0.0, 0.0, 0.0)).scene.nodes[-1]
        halved = scene
        if count > 1:
            halved = delete_rows(scene, torch.arange(start, start + count // 2)).scene
        placed = moved[index]
        if placed is not None:
            assert torch.equal(copied.placed_at(time).means, placed.means)
            rest = halved.nodes[index].placed_at(time)
            kept = count - count // 2 if count > 1 else count
            torch.testing.assert_close(rest.means, placed.means[count - kept :])
        assert len(remove_node(scene, node.name).scene.nodes) == len(scene.nodes) - 1
        start += count
