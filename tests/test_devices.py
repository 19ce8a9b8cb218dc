"""A whole scene on a device that is not the CPU: everything that is computed stays there, or is fetched."""

from dataclasses import fields, replace

import pytest
import torch
from elsewhere import Elsewhere, elsewhere, to_host
from fusion.worlds import drive_camera, tiny_capture, tiny_world

from faithfusion_studio.cameras import Segment
from faithfusion_studio.fusion.reconstruction import Reconstruction
from faithfusion_studio.fusion.repairing import repair_stage
from faithfusion_studio.fusion.schedule import FusionConfig, ReconstructionConfig, Stage
from faithfusion_studio.fusion.trainer import Trainer
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.information import (
    add_views,
    eig_map,
    predicted_std,
    recorded_fisher,
    split_regions,
)
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.render.views import ViewOptions, rasterize_view, render_view
from faithfusion_studio.repair import create_repairer
from faithfusion_studio.scene import Scene
from faithfusion_studio.sky import CubemapSky
from faithfusion_studio.studio.checks import check_frame
from faithfusion_studio.studio.compose import Still, compose, with_message
from faithfusion_studio.studio.layers import HISTOGRAM_BINS, ViewLayers
from faithfusion_studio.studio.view_state import ViewState


@pytest.fixture
def device(monkeypatch):
    with elsewhere(monkeypatch) as away:
        yield away


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A recorded street with a cube-map sky, exposures and a vehicle."""
    world, capture = tiny_world(count=500), tiny_capture(frames=4)
    world = replace(world, background=world.background.with_sh_degree(1))
    g = world.background.select(torch.arange(40))
    car = RigidNode(
        name="car",
        gaussians=replace(g, means=0.2 * g.means),
        poses=torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        timestamps=torch.tensor([0.0, 1.0], dtype=torch.float64),
        visible=torch.tensor([True, True]),
        size=torch.tensor([4.0, 2.0, 1.5]),
    )
    return replace(
        world,
        nodes=(car,),
        sky=CubemapSky(torch.rand(6, 8, 8, 3)),
        exposures=torch.eye(3, 4).repeat(4, 1, 1),
        capture=capture,
        metadata={"reconstruction": {"scale": 1.0}},
    )


@pytest.fixture(scope="module")
def known(scene) -> Scene:
    return replace(scene, fisher=recorded_fisher(scene))


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert isinstance(found, Elsewhere)
    scale = float(expected.abs().max()) or 1.0
    torch.testing.assert_close(to_host(found) / scale, expected / scale, rtol=0, atol=tolerance)


def test_a_mixture_of_devices_is_refused(device) -> None:
    with pytest.raises(RuntimeError, match="on the CPU"):
        torch.ones(3, device=device) + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        torch.ones(3, device=device).numpy()


def test_a_scene_goes_there_and_back_unchanged(scene, device) -> None:
    back = scene.to(device).to("cpu")
    for name in (f.name for f in fields(Gaussians)):
        assert torch.equal(getattr(back.all_gaussians, name), getattr(scene.all_gaussians, name))
    assert torch.equal(back.sky.texels, scene.sky.texels)
    assert scene.to("cpu") is scene


def test_views_and_evidence_and_eig_equal_those_on_the_cpu(known, device) -> None:
    camera = drive_camera(0.4, y=0.8, time=0.1)
    options = ViewOptions(provenance=True)
    away, expected = known.to(device), render_view(known, camera, options)
    found = render_view(away, camera, options)
    for name in ("rgb", "alpha", "depth", "generated"):
        same(getattr(found, name), getattr(expected, name))
    fisher = recorded_fisher(away)
    assert abs(fisher.noise_std - known.fisher.noise_std) < 1e-6
    for name in ("blocks", "sh", "sky", "residual_variance"):
        same(getattr(fisher, name), getattr(known.fisher, name), 1e-3)
    away = replace(away, fisher=fisher)
    for form in ("block", "trace", "diagonal", "released"):
        found_map = eig_map(away, camera, form=form)
        expected_map = eig_map(known, camera, form=form)
        same(found_map.eig, expected_map.eig, 1e-3)
        same(found_map.calibrated, expected_map.calibrated, 1e-2)
    view = rasterize_view(away, camera)
    found_map = eig_map(away, camera, view=view)
    spread = predicted_std(view, camera, fisher, found_map)
    view = rasterize_view(known, camera)
    same(spread, predicted_std(view, camera, known.fisher, eig_map(known, camera, view=view)), 1e-3)
    assert isinstance(split_regions(found_map, 0.4).ucr, Elsewhere)
    more = add_views(fisher, away, [camera], [torch.ones(camera.height, camera.width)])
    assert float(more.blocks.sum()) > float(fisher.blocks.sum())


@pytest.mark.parametrize("layer", ["rgb", "depth", "alpha", "eig", "overlay", "provenance"])
def test_every_layer_of_the_studio_is_drawn_there(known, device, layer) -> None:
    camera = drive_camera(0.4, y=0.8, time=0.1)
    state = ViewState(layer=layer, tint=True, compare="wipe", compare_with="photo")
    photo = Still(known.capture.frames[0].image(), camera, "The photo")
    pictures = []
    for scene in (known.to(device), known):
        layers = ViewLayers(scene, camera, "block")
        pictures.append(with_message(compose(state, layers, None, lambda *_: photo).image, ""))
        assert len(layers.histogram) == HISTOGRAM_BINS
    close = abs(pictures[0].astype(int) - pictures[1].astype(int)) <= 2
    assert close.all(-1).mean() > 0.99  # a pixel at the threshold may change sides


def test_a_repair_comes_back_to_the_cpu(known, device) -> None:
    stage = Stage(segment=tuple(Segment(1, 3)), lateral_offset=0.8, eig_threshold=0.3)
    frames = list(repair_stage(known.to(device), stage, create_repairer("reprojection")))
    expected = repair_stage(known, stage, create_repairer("reprojection"))
    for found, same_frame in zip(frames, expected, strict=True):
        assert not any(isinstance(getattr(found, f.name), Elsewhere) for f in fields(found))
        assert found.hpr_changed == 0
        agree = found.ucr == same_frame.ucr
        assert float(agree.float().mean()) > 0.99


def test_distillation_grows_and_learns_there(known, device) -> None:
    away = known.to(device)
    stage = Stage(segment=(1, 3), lateral_offset=0.8, eig_threshold=0.3)
    frames = list(repair_stage(away, stage, create_repairer("reprojection")))
    frames = [replace(frame, accepted=True) for frame in frames]
    config = FusionConfig(warm_up=2, psnr_every=20, spawn=50, densify=True)
    trainer = Trainer(away, frames, config, steps=42)
    steps = list(trainer.run())
    assert all(step.loss == step.loss for step in steps)
    learned = trainer.scene()
    assert learned.device == device
    assert isinstance(learned.background.shN, Elsewhere)
    assert trainer.change is not None
    assert len(trainer.change.source) == len(learned.background)
    again = Trainer(learned, frames, config, steps=1, optimizer_state=trainer.optimizer_state())
    assert len(list(again.run())) == 1


def test_a_recording_is_reconstructed_there(scene, device) -> None:
    config = ReconstructionConfig(steps=40, scale=1.0, max_gaussians=2000, holdout_every=4)
    work = Reconstruction(scene.capture, config, device=device)
    losses = [progress.loss for progress in work.run()]
    assert sum(losses[-8:]) < sum(losses[:8])
    learned = work.scene()
    assert learned.device == device
    assert isinstance(learned.sky.texels, Elsewhere)
    assert isinstance(learned.exposures, Elsewhere)
    assert work.report(learned).psnr_train > 10


def test_the_studio_s_check_of_a_frame_is_the_same_there(known, device) -> None:
    found, expected = check_frame(known.to(device), 1), check_frame(known, 1)
    assert abs(found.psnr - expected.psnr) < 1e-2
    assert abs(found.ause - expected.ause) < 1e-2
