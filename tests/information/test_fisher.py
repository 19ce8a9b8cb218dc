"""Evidence of recorded views: sums, noise, weights, residuals, sky, calibration, topology."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_eig_laws import _ahead

from faithfusion_studio.cameras import trajectory_from_cameras
from faithfusion_studio.gaussians import TopologyChange
from faithfusion_studio.information import (
    FisherAccumulator,
    accumulate_fisher,
    add_views,
    eig_map,
    fisher,
    follow_topology,
    predicted_std,
    recorded_fisher,
)
from faithfusion_studio.information.fisher import local_mean, measure_noise, recorded_view
from faithfusion_studio.render.rasterization import rasterization
from faithfusion_studio.render.views import rasterize_view
from faithfusion_studio.scene import Capture, PosedImage, Scene, StoredFisher
from scenes import camera_at, recorded_cameras, tiny_scene


def evidence(scene, cameras, image=None, **more) -> StoredFisher:
    sum_ = FisherAccumulator(scene, noise_std=0.08)
    for camera in cameras:
        sum_.add(camera, image, **more)
    return sum_.finish()


def _png(array: np.ndarray) -> bytes:
    import cv2

    done, data = cv2.imencode(".png", array)
    assert done
    return io.BytesIO(data.tobytes()).getvalue()


def recorded_scene(noise: float, count: int = 6, wrong: bool = False) -> Scene:
    """A scene that recorded itself with noise; `wrong` paints a patch it cannot explain."""
    scene = tiny_scene(n=20, degree=0, seed=11)
    generator = torch.Generator().manual_seed(1)
    frames, cameras = [], [_ahead(-0.2 * i, 0.1 * i) for i in range(count)]
    for i, camera in enumerate(cameras):
        rgb = rasterize_view(scene, camera).rgb.clamp(0, 1)
        rgb = rgb + noise * torch.randn(rgb.shape, generator=generator)
        if wrong:
            rgb[10:20, 20:30] = 1 - rgb[10:20, 20:30]
        bgr = (rgb.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy()[:, :, ::-1]
        frames.append(PosedImage(camera, _png(np.ascontiguousarray(bgr)), name=f"{i}"))
    return replace(scene, capture=Capture(tuple(frames), trajectory_from_cameras(cameras)))


def test_evidence_is_additive_over_views() -> None:
    scene = tiny_scene(n=12, seed=1)
    a, b = recorded_cameras(1)
    parts = [evidence(scene, [camera]) for camera in (a, b)]
    both = evidence(scene, [a, b])
    torch.testing.assert_close(both.blocks, parts[0].blocks + parts[1].blocks)
    torch.testing.assert_close(both.sh, parts[0].sh + parts[1].sh)
    torch.testing.assert_close(both.sky, parts[0].sky + parts[1].sky)
    assert both.num_views == 2


def test_weights_scale_the_evidence_and_a_masked_view_gives_none() -> None:
    scene, (camera, _) = tiny_scene(n=12, seed=2), recorded_cameras(2)
    full = evidence(scene, [camera])
    half = evidence(scene, [camera], weight=0.5)
    torch.testing.assert_close(half.blocks, 0.5 * full.blocks)
    shape = (camera.height, camera.width)
    none = evidence(scene, [camera], torch.zeros(*shape, 3), weight=torch.zeros(shape))
    assert (none.blocks == 0).all() and (none.sky == 0).all()


def test_noise_is_the_robust_residual_of_the_recording() -> None:
    assert measure_noise(recorded_scene(0.05)) == pytest.approx(0.05, rel=0.1)
    assert measure_noise(recorded_scene(0.05, wrong=True)) == pytest.approx(0.05, rel=0.15)
    assert measure_noise(recorded_scene(0.0)) == pytest.approx(1 / 255)
    assert measure_noise(tiny_scene()) == pytest.approx(0.05)


def test_pixels_the_model_cannot_explain_are_weak_evidence() -> None:
    good, bad = recorded_scene(0.03), recorded_scene(0.03, wrong=True)
    camera = good.capture.frames[0].camera
    sums = []
    for scene in (good, bad):
        sum_ = FisherAccumulator(scene, noise_std=0.03)
        sum_.add(camera, scene.capture.frames[0].image())
        sums.append(sum_.finish())
    assert (sums[1].blocks[:, 0] <= sums[0].blocks[:, 0] * 1.001).all()
    assert float((sums[1].blocks[:, 0] / sums[0].blocks[:, 0]).min()) < 0.95
    assert float(sums[1].residual_variance.max()) > 4 * float(sums[0].residual_variance.max())


def test_residual_per_gaussian_is_the_weighted_mean_over_its_pixels() -> None:
    scene, camera = recorded_scene(0.05, wrong=True), _ahead(0.0, 0.0)
    image = scene.capture.frames[0].image()
    sum_ = FisherAccumulator(scene, noise_std=0.05)
    sum_.add(camera, image)
    found = sum_.finish().residual_variance
    g = scene.background
    view = rasterize_view(scene, camera)
    squared = (view.rgb.clamp(0, 1) - image).square().mean(-1)
    for i in (0, 7, 13):
        one = torch.zeros(len(g), 1)
        one[i] = 1
        weight, _, _ = rasterization(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            one,
            camera.viewmat.float()[None],
            camera.K.float()[None],
            camera.width,
            camera.height,
            near_plane=0.05,
        )
        w = weight[0, :, :, 0]
        if float(w.sum()) > 0.1:
            expected = float((w * squared).sum() / w.sum())
            assert float(found[i]) == pytest.approx(expected, rel=1e-3)


def test_exposure_of_a_frame_is_not_taken_for_residual() -> None:
    scene, camera = tiny_scene(n=20, degree=0, seed=11), _ahead(0.0, 0.0)
    exposure = torch.cat([0.8 * torch.eye(3), torch.full((3, 1), 0.05)], 1)
    image = rasterize_view(scene, camera).rgb.clamp(0, 1) @ exposure[:, :3].T + exposure[:, 3]
    with_, without = (evidence(scene, [camera], image, exposure=e) for e in (exposure, None))
    assert float(with_.residual_variance.max()) < 0.08**2
    assert float(with_.blocks[:, 0].sum()) > 1.3 * float(without.blocks[:, 0].sum())


def test_recorded_evidence_counts_its_views_and_calibrates_the_scene() -> None:
    scene = recorded_scene(0.03)
    steps = accumulate_fisher(scene)
    seen = []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as end:
            fisher = end.value
            break
    assert seen == [(i, 6) for i in range(1, 7)] and fisher.num_views == 6
    knots = fisher.calibration
    assert (knots[1:, 0] > knots[:-1, 0]).all() and (knots[1:, 1] >= knots[:-1, 1]).all()
    assert float(knots[0, 1]) == 0 and float(knots[-1, 1]) == 1
    recorded = torch.cat(
        [
            eig_map(scene, f.camera, fisher=fisher).calibrated.reshape(-1)
            for f in scene.capture.frames
        ]
    )
    assert float(recorded.median()) == pytest.approx(0, abs=0.1)
    assert recorded_fisher(scene, max_views=2).num_views == 2


def test_accepted_repairs_lower_the_eig_where_they_look() -> None:
    scene = tiny_scene(n=20, degree=1, seed=3)
    fisher, novel = evidence(scene, recorded_cameras(3)), camera_at(1.0, -2.5, 1.0)
    shape = (novel.height, novel.width)
    before = eig_map(scene, novel, fisher=fisher).eig
    none = add_views(fisher, scene, [novel], [torch.zeros(shape)])
    some = add_views(fisher, scene, [novel], [torch.full(shape, 0.3)])
    more = add_views(fisher, scene, [novel], [torch.ones(shape)])
    torch.testing.assert_close(eig_map(scene, novel, fisher=none).eig, before)
    after = [eig_map(scene, novel, fisher=f).eig for f in (some, more)]
    slack = 1e-5 * float(before.max())
    assert (after[0] <= before + slack).all() and (after[1] <= after[0] + slack).all()
    assert float(after[1].mean()) < 0.7 * float(before.mean())
    assert more.num_views == fisher.num_views + 1


def test_rows_follow_a_topology_change_and_new_ones_start_unseen() -> None:
    scene = tiny_scene(n=8, seed=4)
    fisher = evidence(scene, recorded_cameras(4))
    source = torch.tensor([7, 2, 2, 5])
    fresh = torch.tensor([False, False, True, False])
    moved = follow_topology(fisher, TopologyChange(source, fresh))
    torch.testing.assert_close(moved.blocks[[0, 1, 3]], fisher.blocks[[7, 2, 5]])
    assert (moved.blocks[2] == 0).all() and (moved.sh[2] == 0).all()
    smaller = replace(scene, background=scene.background.select(source))
    assert eig_map(smaller, camera_at(0.0, 0.0, 0.0), fisher=moved).eig.isfinite().all()


def test_predicted_error_grows_with_what_the_recording_never_explained() -> None:
    good, bad = recorded_scene(0.03), recorded_scene(0.03, wrong=True)
    camera = _ahead(0.0, 0.0)
    stds = []
    for scene in (good, bad):
        fisher, view = recorded_fisher(scene), rasterize_view(scene, camera)
        stds.append(predicted_std(view, camera, fisher, eig_map(scene, camera, fisher=fisher)))
    assert float(stds[1][10:20, 20:30].mean()) > 1.5 * float(stds[0][10:20, 20:30].mean())
    assert float(stds[0].min()) > 0


def test_local_mean_ignores_what_has_no_weight() -> None:
    values = torch.ones(30, 40)
    values[:, 20:] = 100
    weights = torch.ones(30, 40)
    weights[:, 20:] = 0
    found = local_mean(values, weights)
    torch.testing.assert_close(found[:, :20], torch.ones(30, 20))
    torch.testing.assert_close(local_mean(values * 0 + 3, torch.ones(30, 40)), values * 0 + 3)


def _rig_scene() -> Scene:
    """Eight moments of two cameras that look the same way, one of which sees noise only."""
    scene, rng = tiny_scene(n=12, seed=1), np.random.default_rng(0)
    frames = []
    for i in range(8):
        for name, side in (("left", -0.2), ("right", 0.2)):
            camera = replace(_ahead(side, 0.1 * i), time=i / 10, name=name)
            image = rasterize_view(scene, camera).rgb.clamp(0, 1).numpy()
            if name == "right":
                image = rng.random(image.shape)
            bgr = np.ascontiguousarray(image[..., ::-1] * 255 + 0.5).astype(np.uint8)
            frames.append(PosedImage(camera, _png(bgr)))
    trajectory = trajectory_from_cameras([frame.camera for frame in frames])
    return replace(scene, capture=Capture(tuple(frames), trajectory))


def test_evidence_of_a_rig_is_that_of_its_cameras_together() -> None:
    scene = _rig_scene()
    joint = FisherAccumulator(scene, noise_std=0.05)
    alone = {name: FisherAccumulator(scene, noise_std=0.05) for name in ("left", "right")}
    for index, frame in enumerate(scene.capture.frames):
        camera, image, exposure, weight = recorded_view(scene, index)
        for sum_ in (joint, alone[frame.camera.name]):
            sum_.add(camera, image, exposure=exposure, weight=weight)
    parts = [one.finish() for one in alone.values()]
    both = parts[0].blocks + parts[1].blocks  # summed in another order
    apart = (joint.finish().blocks - both).abs()
    assert float((apart / both.abs().amax(1, keepdim=True)).max()) < 1e-5
    assert recorded_fisher(scene).num_views == 16


def test_a_few_views_of_a_rig_are_of_all_its_cameras(monkeypatch) -> None:
    """With every second frame of an interleaved pair, only one of the two would ever be looked at."""
    scene, seen = _rig_scene(), []

    def watched(scene: Scene, index: int):
        seen.append(scene.capture.frames[index].camera.name)
        return recorded_view(scene, index)

    monkeypatch.setattr(fisher, "recorded_view", watched)
    measure_noise(scene)
    assert sorted(seen) == ["left"] * 3 + ["right"] * 3
    seen.clear()
    assert recorded_fisher(scene, max_views=8).num_views == 8
    assert sorted(seen[-8:]) == ["left"] * 4 + ["right"] * 4
