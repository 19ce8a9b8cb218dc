"""Selections agree with brute force, and deleting them is undone bit by bit."""

import math
from dataclasses import replace

import pytest
import torch
from object_worlds import assert_same, camera, cloud, world

from faithfusion_studio.editing import (
    Box,
    EditError,
    Rectangle,
    Stroke,
    by_value,
    combined,
    delete_rows,
    in_box,
    in_shape,
    limited_to,
    mark_node,
)
from faithfusion_studio.editing.quantities import histogram, values_of
from faithfusion_studio.editing.selection import reaching_light
from faithfusion_studio.gaussians import concatenate
from faithfusion_studio.information.prior import FisherPrior, MissingFisherError
from faithfusion_studio.render.chain import unpack


def placed(scene, time):
    """Centre of every row in the world, in plain Python."""
    out = [m.tolist() for m in scene.background.means]
    for node in scene.nodes:
        pose = node.pose_at(time)
        g = node.gaussians if node.motion is None else node.motion.at(node.gaussians, time)
        out += [(pose[:3, :3] @ m.double() + pose[:3, 3]).tolist() for m in g.means]
    return out


@pytest.mark.parametrize("seed", range(4))
def test_a_box_selects_what_brute_force_finds(seed):
    scene = world(seed=seed)
    g = torch.Generator().manual_seed(seed)
    center = (
        torch.rand(3, generator=g) * torch.tensor([10.0, 6, 2]) + torch.tensor([3.0, -3, 0])
    ).tolist()
    box, time = Box(tuple(center), (6.0, 4.0, 2.5), yaw=0.7 * seed), 0.1
    expected = []
    for x, y, z in placed(scene, time):
        dx, dy = x - center[0], y - center[1]
        u = math.cos(box.yaw) * dx + math.sin(box.yaw) * dy
        v = -math.sin(box.yaw) * dx + math.cos(box.yaw) * dy
        expected.append(abs(u) <= 3 and abs(v) <= 2 and abs(z - center[2]) <= 1.25)
    found = in_box(scene, box, time)
    assert found.tolist() == expected and 0 < sum(expected) < len(expected)


def projected(scene, cam):
    view, K = cam.viewmat, cam.K
    for point in placed(scene, cam.time):
        x, y, z = (view[:3, :3] @ torch.tensor(point, dtype=torch.float64) + view[:3, 3]).tolist()
        yield (float(K[0, 0]) * x / z + 48, float(K[1, 1]) * y / z + 32, z)


def test_a_rectangle_and_a_stroke_select_what_brute_force_finds():
    scene, cam = world(), camera(0.1)
    rectangle = Rectangle((60.0, 50.0), (20.0, 12.0))
    path = ((30.0, 30.0), (60.0, 40.0), (60.0, 20.0))
    stroke, disc = Stroke(path, 6.0), Stroke(path[:1], 9.0)

    def near(u, v, a, b):
        length = (b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2
        t = (
            0.0
            if not length
            else ((u - a[0]) * (b[0] - a[0]) + (v - a[1]) * (b[1] - a[1])) / length
        )
        t = min(max(t, 0.0), 1.0)
        return math.hypot(u - a[0] - t * (b[0] - a[0]), v - a[1] - t * (b[1] - a[1]))

    def inside(u, v, z):
        return z > 0.05 and 0 <= u <= 96 and 0 <= v <= 64

    places = list(projected(scene, cam))
    tests = (
        (rectangle, lambda u, v: 20 <= u <= 60 and 12 <= v <= 50),
        (stroke, lambda u, v: min(near(u, v, *path[:2]), near(u, v, *path[1:])) <= 6),
        (disc, lambda u, v: near(u, v, path[0], path[0]) <= 9),
    )
    for shape, contains in tests:
        expected = [inside(u, v, z) and contains(u, v) for u, v, z in places]
        assert in_shape(scene, cam, shape).tolist() == expected and sum(expected) > 3


def walled(scene):
    """With a wall 3 m ahead that hides the left half of the picture."""
    y, z = torch.meshgrid(torch.arange(0.2, 3.0, 0.2), torch.arange(-1.0, 3.0, 0.2), indexing="ij")
    count = y.numel()
    flat = cloud(count, 4)
    wall = replace(
        flat,
        means=torch.stack([torch.full((count,), 3.0), y.flatten(), z.flatten()], 1),
        log_scales=torch.full((count, 3), math.log(0.15)),
        logit_opacities=torch.full((count,), 4.0),
    )
    return replace(scene, background=concatenate([scene.background, wall]), fisher=None)


def test_only_what_is_seen_is_taken_when_asked():
    """A wall hides what is behind it: brute force over all pixels says whose light arrives."""
    from faithfusion_studio.information.explain import pixel_weights
    from faithfusion_studio.render.views import rasterize_view

    scene, cam = walled(world()), camera()
    view = rasterize_view(scene, cam)
    sums = torch.zeros(scene.num_gaussians)
    for y in range(cam.height):
        for x in range(cam.width):
            index, weights = pixel_weights(view, x, y)
            sums.index_add_(0, index, weights)
    xx, xy, yy = view.meta.conics[0].unbind(-1)
    alone = view.meta.opacities[0] * 2 * math.pi / (xx * yy - xy * xy).clamp(min=1e-12).sqrt()
    share = torch.where(alone > 0, sums / alone.clamp(min=1e-9), 0.0)
    found = reaching_light(scene, cam)
    torch.testing.assert_close(found, share, rtol=1e-3, atol=2e-3)
    everything = Rectangle((0.0, 0.0), (96.0, 64.0))
    through, seen = (
        in_shape(scene, cam, everything),
        in_shape(scene, cam, everything, seen_only=True),
    )
    assert 0 < int(seen.sum()) < int(through.sum()) and not bool((seen & ~through).any())
    assert bool((share[seen] > 0.09).all())
    behind = scene.background.means[:200]
    hidden = (behind[:, 0] > 3.5) & (behind[:, 1] > 0.15 * behind[:, 0]) & through[:200]
    assert int(hidden.sum()) > 10 and not bool((hidden & seen[:200]).any())


@pytest.mark.parametrize("quantity", ["size", "opacity", "evidence", "provenance"])
def test_a_range_selects_what_brute_force_finds_and_the_histogram_counts_it(quantity):
    scene = world()
    values = values_of(scene, quantity)
    parts = [scene.background, *(n.gaussians for n in scene.nodes)]
    if quantity == "size":
        brute = [max(math.exp(v) for v in row) for p in parts for row in p.log_scales.tolist()]
    elif quantity == "opacity":
        brute = [1 / (1 + math.exp(-v)) for p in parts for v in p.logit_opacities.tolist()]
    elif quantity == "provenance":
        brute = [v for p in parts for v in p.provenance.tolist()]
    else:
        precision = FisherPrior().precision(torch.cat([p.scales for p in parts])).double()
        H = unpack(scene.fisher.blocks.double(), 13)
        gain = torch.eye(13) + H / precision[:, :, None]
        brute = (0.5 * torch.linalg.slogdet(gain).logabsdet).tolist()
    assert values.tolist() == pytest.approx(brute, rel=2e-4, abs=2e-4)
    low, high = values.quantile(0.2).item(), values.quantile(0.6).item()
    chosen = by_value(scene, quantity, low, high)
    assert chosen.tolist() == [low <= v <= high for v in values.tolist()] and bool(chosen.any())
    bars = histogram(values, logarithmic=quantity == "size")
    assert sum(bars.counts) == scene.num_gaussians and len(bars.edges) == len(bars.counts) + 1
    assert bars.edges[0] == pytest.approx(values.min().item(), rel=1e-5, abs=1e-6)


def test_an_unseen_gaussian_has_no_evidence():
    scene = world()
    blocks = scene.fisher.blocks.clone()
    blocks[7] = 0
    scene = replace(scene, fisher=replace(scene.fisher, blocks=blocks))
    assert values_of(scene, "evidence")[7] == 0
    with pytest.raises(MissingFisherError):
        by_value(replace(scene, fisher=None), "evidence", 0.0, 1.0)


def test_hidden_objects_are_never_selected():
    scene = mark_node(world(), "van", hidden=True).scene
    everywhere = Box((9.0, 0.0, 0.0), (100.0, 100.0, 100.0))
    for mask in (
        in_box(scene, everywhere, 0.1),
        by_value(scene, "opacity", 0.0, 1.0),
        limited_to(scene, "everything"),
    ):
        assert mask.tolist() == [True] * 230 + [False] * 30
    assert int(limited_to(scene, "background").sum()) == 200
    assert limited_to(scene, "car").nonzero()[:, 0].tolist() == list(range(200, 230))


def test_selections_are_combined():
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert combined(a, b, "new").tolist() == b.tolist()
    assert combined(a, b, "add").tolist() == [True, True, True, False]
    assert combined(a, b, "remove").tolist() == [False, True, False, False]


def test_bad_selections_are_answered_in_one_sentence():
    scene = world(20)
    with pytest.raises(EditError, match="three sizes above 0 m"):
        in_box(scene, Box((0.0, 0.0, 0.0), (1.0, 0.0, 1.0)), 0.0)
    with pytest.raises(EditError, match="give the smaller end first"):
        by_value(scene, "size", 2.0, 1.0)
    with pytest.raises(EditError, match="no object called 'bus'"):
        limited_to(scene, "bus")
    with pytest.raises(EditError, match="no splats are selected"):
        delete_rows(scene, torch.tensor([], dtype=torch.long))
    with pytest.raises(EditError, match="leave at least one"):
        delete_rows(scene, torch.arange(scene.num_gaussians))


@pytest.mark.parametrize("seed", range(3))
def test_deleting_takes_every_row_that_belongs_to_a_gaussian(seed):
    scene = world(seed=seed)
    g = torch.Generator().manual_seed(seed)
    rows = torch.randperm(260, generator=g)[:90]
    keep = [r for r in range(260) if r not in set(rows.tolist())]
    edited = delete_rows(scene, rows)
    assert torch.equal(edited.scene.all_gaussians.means, scene.all_gaussians.means[keep])
    assert torch.equal(edited.scene.all_gaussians.provenance, scene.all_gaussians.provenance[keep])
    for name in ("blocks", "sh", "residual_variance"):
        assert torch.equal(getattr(edited.scene.fisher, name), getattr(scene.fisher, name)[keep])
    of_van = [r - 230 for r in keep if r >= 230]
    assert torch.equal(edited.scene.nodes[1].motion.taus, scene.nodes[1].motion.taus[of_van])
    assert edited.background.source.tolist() == [r for r in keep if r < 200]
    with pytest.raises(AssertionError):
        assert_same(edited.scene, scene)
