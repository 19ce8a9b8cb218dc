"""Warping, consensus depth and the choice of references, on a world with exact answers."""

from dataclasses import replace

import pytest
import torch
from toy import psnr, toy_camera, toy_view

from faithfusion_studio.repair.base import Reference, RepairBatch
from faithfusion_studio.repair.depth_repair import anchor_depth, smooth_planes
from faithfusion_studio.repair.gated import repair_batch
from faithfusion_studio.repair.reprojection import (
    ReprojectionConfig,
    ReprojectionRepairer,
    consensus_depth,
    prepare,
    select_references,
    warp_references,
)
from faithfusion_studio.repair.warping import (
    SKY_DEPTH,
    close_cracks,
    depth_edges,
    fill_gaps,
    reproject,
    sample,
    splat_mean,
)

PLACES = (-3.0, -1.0, 0.5, 2.0, 4.0, 6.0)


def recorded(noise: float = 0.0, size=(96, 54)) -> list[Reference]:
    """References along y = 0, their depth wrong by a slow ripple."""
    references = []
    for i, x in enumerate(PLACES):
        camera = toy_camera(x, 0.0, size)
        image, depth = toy_view(camera)
        generator = torch.Generator().manual_seed(i)
        coarse = torch.randn(1, 1, 5, 7, generator=generator)
        ripple = torch.nn.functional.interpolate(coarse, depth.shape, mode="bicubic")[0, 0]
        references.append(Reference(image, depth * (1 + noise * ripple), camera))
    return references


def warp(camera, references, config=None):
    config = config or ReprojectionConfig()
    nothing = torch.zeros(camera.height, camera.width)
    return warp_references(
        camera, [prepare(r, config) for r in references], nothing, nothing, config
    )


def test_a_view_reprojected_into_itself_is_itself():
    camera = toy_camera(0.0)
    image, depth = toy_view(camera)
    points = reproject(camera, camera, depth.clamp(min=1.0))
    assert bool(points.inside.all())
    columns = (torch.arange(camera.width) + 0.5).expand(camera.height, camera.width)
    assert torch.allclose(points.u, columns, atol=1e-3)
    again = sample(image.permute(2, 0, 1).contiguous(), points, camera).permute(1, 2, 0)
    assert torch.allclose(again, image, atol=1e-3)


def test_images_finer_than_their_depth_are_sampled_at_the_same_place():
    camera = toy_camera(0.0)
    depth = toy_view(camera)[1].clamp(min=1.0)
    fine = toy_view(camera.scaled(2.0))[0].permute(2, 0, 1).contiguous()
    halved = torch.nn.functional.avg_pool2d(fine[None], 2)[0]
    assert torch.allclose(sample(fine, reproject(camera, camera, depth), camera), halved, atol=1e-4)


def test_slopes_are_not_edges_and_silhouettes_are():
    _, depth = toy_view(toy_camera(0.0))
    depth = torch.where(depth > 0, depth, torch.tensor(SKY_DEPTH))
    edges = depth_edges(depth, 0.05)
    assert not bool(edges[36:, 30:60].any()), "the road, seen at a grazing angle"
    assert bool(edges[:, 60:].any()), "the pole before the facade"


def test_splats_of_one_surface_are_averaged_and_hidden_ones_ignored():
    camera = toy_camera(0.0, size=(8, 6))
    splats = []
    for z in (10.0, 10.4, 20.0):
        depth = torch.full((6, 8), z)
        splats.append((reproject(camera, camera, depth), torch.ones(6, 8, dtype=torch.bool)))
    buffer = splat_mean(splats, 6, 8, band=0.12)
    assert torch.allclose(buffer, torch.tensor(2 / (1 / 10.0 + 1 / 10.4)), rtol=1e-5)
    assert bool(torch.isinf(splat_mean([], 6, 8, band=0.1)).all())


def test_cracks_are_closed_with_the_surface_they_are_in():
    buffer = torch.full((9, 9), 5.0)
    buffer[:, 4] = 30.0
    buffer[2] = torch.inf
    filled = fill_gaps(close_cracks(buffer), longest=3)
    assert torch.allclose(filled, torch.tensor(5.0))


def test_a_gap_between_two_surfaces_takes_the_farther_one():
    buffer = torch.full((5, 12), 5.0)
    buffer[:, 7:] = 30.0
    buffer[:, 4:7] = torch.inf
    filled = fill_gaps(buffer, longest=6)
    assert torch.allclose(filled[:, 4:7], torch.tensor(30.0), rtol=1e-4)
    assert bool(torch.isinf(fill_gaps(buffer, longest=2)[:, 4:7]).all())


def test_consensus_depth_meets_the_exact_depth_beside_the_path():
    camera = toy_camera(1.0, 1.5)
    _, truth = toy_view(camera)
    config = ReprojectionConfig()
    references = [prepare(reference, config) for reference in recorded()]
    nothing = torch.zeros_like(truth)
    depth = consensus_depth(camera, references, nothing, nothing, config)
    seen = (truth > 0) & (depth < 0.5 * SKY_DEPTH)
    error = (depth / truth - 1).abs()[seen]
    assert float(seen.float().mean()) > 0.6
    assert float(error.median()) < 0.01
    assert float((error > 0.1).float().mean()) < 0.1


@pytest.mark.parametrize(("noise", "least"), [(0.0, 27.0), (0.02, 25.0)])
def test_warped_colors_meet_the_exact_view_beside_the_path(noise, least):
    camera = toy_camera(1.0, 1.5)
    truth, _ = toy_view(camera)
    features = warp(camera, recorded(noise))
    seen = features.weight > 0.3
    assert float(seen.float().mean()) > 0.85
    assert psnr(features.fused[seen], truth[seen]) > least
    assert psnr(features.best[seen], truth[seen]) > least - 3
    assert bool((features.best_weight <= features.weight + 1e-5).all())


def test_a_reference_that_disagrees_in_color_is_outvoted():
    camera = toy_camera(1.0, 1.5)
    truth, _ = toy_view(camera)
    references = recorded()
    references[2] = replace(references[2], image=torch.zeros_like(references[2].image))
    features = warp(camera, references)
    clean = warp(camera, recorded())
    seen = features.weight > 0.6
    assert psnr(features.fused[seen], truth[seen]) > 17
    assert float(features.variance[seen].mean()) > 3 * float(clean.variance[seen].mean())


def test_distrusted_depth_weighs_less():
    camera = toy_camera(1.0, 1.5)
    references = [replace(r, trust=torch.full_like(r.depth, 0.1)) for r in recorded()]
    assert float(warp(camera, references).weight.mean()) < 0.2 * float(
        warp(camera, recorded()).weight.mean()
    )


def test_the_engine_repairs_a_ruined_render_and_knows_where_it_cannot():
    camera = toy_camera(1.0, 1.5)
    truth, depth = toy_view(camera)
    shape = depth.shape
    render = torch.rand(*shape, 3, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, *shape)
    batch = RepairBatch(
        renders=render[None],
        alphas=ones,
        depths=depth[None],
        eig=ones,
        calibrated_eig=ones,
        coverage=ones.bool(),
        ucr=ones.bool(),
        cameras=(camera,),
        references=tuple(recorded(0.01)),
    )
    result = repair_batch(ReprojectionRepairer(), batch)
    repaired = result.pixel_provenance[0] == 1
    assert psnr(result.rgb[0][repaired], truth[repaired]) > 20
    assert torch.equal(result.rgb[0][~repaired], render[~repaired])
    assert float(result.confidence[0][~repaired].max()) == 0
    error = (result.rgb[0] - truth).abs().mean(-1)
    sure = result.confidence[0] > 0.9
    assert float(error[sure].mean()) < float(error[repaired & ~sure].mean())


def test_references_lie_behind_and_ahead_and_are_never_repeated():
    candidates = [toy_camera(float(x)) for x in range(-20, 20)]
    camera = toy_camera(0.0, 3.0)
    chosen = select_references(camera, candidates, count=6)
    along = [float(candidates[i].position[0]) for i in chosen]
    assert len(set(chosen)) == 6
    assert min(along) < -4 and max(along) > 2
    assert max(abs(x) for x in along) <= 12
    assert sorted(select_references(camera, candidates[:3], count=6)) == [0, 1, 2]
    assert select_references(camera, [], count=6) == []


def test_references_that_look_elsewhere_come_last():
    ahead = [toy_camera(float(x)) for x in range(-9, 9, 3)]
    turned = []
    for camera in ahead:
        pose = camera.camtoworld.clone()
        pose[:3, [0, 2]] = -pose[:3, [0, 2]]
        turned.append(camera.moved(pose))
    chosen = select_references(toy_camera(0.0, 1.0), turned + ahead, count=6)
    assert set(chosen) == set(range(6, 12))


def test_biased_depth_is_anchored_by_measured_points():
    camera = toy_camera(0.0)
    _, depth = toy_view(camera)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 54, (600,), generator=generator)
    columns = torch.randint(0, 96, (600,), generator=generator)
    z = depth[rows, columns]
    rows, columns, z = rows[z > 0], columns[z > 0], z[z > 0]
    K = camera.K.float()
    local = torch.stack(
        [(columns + 0.5 - K[0, 2]) / K[0, 0] * z, (rows + 0.5 - K[1, 2]) / K[1, 1] * z, z], dim=-1
    )
    pose = camera.camtoworld.float()
    points = local @ pose[:3, :3].T + pose[:3, 3]
    solid = depth > 0
    biased = depth * 1.04
    anchored = anchor_depth(biased, camera, points)
    assert float((anchored / depth - 1)[solid].abs().median()) < 0.01
    assert torch.equal(anchored[~solid], depth[~solid])
    nowhere = points + torch.tensor([-1000.0, 0.0, 0.0])
    assert torch.equal(anchor_depth(biased, camera, nowhere), biased)


def test_smoothing_removes_ripples_and_keeps_edges():
    camera = toy_camera(0.0)
    _, depth = toy_view(camera)
    depth = torch.where(depth > 0, depth, torch.tensor(SKY_DEPTH))
    assert torch.allclose(smooth_planes(depth[40:], 2, 0.02), depth[40:], rtol=0.02)
    generator = torch.Generator().manual_seed(0)
    rippled = depth * (1 + 0.02 * torch.randn(depth.shape, generator=generator))
    smooth = smooth_planes(rippled, 3, 0.03)
    road = (slice(36, None), slice(30, 60))
    assert float((smooth / depth - 1)[road].abs().mean()) < 0.5 * float(
        (rippled / depth - 1)[road].abs().mean()
    )
    step = torch.cat([torch.full((20, 20), 5.0), torch.full((20, 20), 20.0)], dim=1)
    kept = smooth_planes(step, 3, 0.03)
    assert torch.allclose(kept, step, rtol=0.05)
