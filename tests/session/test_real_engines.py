"""The journey without a window on the real parts: repair, fuse, undo, export, save."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.fusion.schedule import Stage
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.scene import Capture, PosedImage, Scene
from faithfusion_studio.session import commands as c
from faithfusion_studio.session.session import Session
from faithfusion_studio.sky import ConstantSky

WIDTH, HEIGHT, FRAMES = 64, 48, 5


def make_street(seed: int = 0) -> Scene:
    """Splats on a road and two walls, driven through along x."""
    g = torch.Generator().manual_seed(seed)
    n = 1500
    x = torch.rand(n, generator=g) * 20 + 2
    side = torch.randint(0, 3, (n,), generator=g)
    across = torch.rand(n, generator=g)
    y = torch.where(side == 0, 8 * across - 4, torch.where(side == 1, 4.0, -4.0))
    z = torch.where(side == 0, torch.zeros(n), 3 * across)
    colors = torch.rand(n, 1, 3, generator=g)
    gaussians = Gaussians(
        means=torch.stack([x, y, z], dim=-1),
        log_scales=torch.full((n, 3), math.log(0.3)),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        logit_opacities=torch.full((n,), 2.0),
        sh0=(colors - 0.5) / 0.28209479,
        shN=torch.zeros(n, 0, 3),
        provenance=torch.zeros(n, dtype=torch.uint8),
    )
    return Scene(gaussians, sky=ConstantSky(torch.tensor([0.5, 0.6, 0.8])))


def make_camera(index: int) -> Camera:
    pose = torch.tensor(
        [[0.0, 0, 1, 0.8 * index], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]],
        dtype=torch.float64,
    )
    K = torch.tensor([[40.0, 0, WIDTH / 2], [0, 40, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, WIDTH, HEIGHT, time=0.1 * index)


def recorded(truth: Scene) -> Scene:
    """A scene that saw only part of the truth, with its recording."""
    from faithfusion_studio.render.views import render_view, to_uint8

    cameras = [make_camera(i) for i in range(FRAMES)]
    frames = []
    for index, camera in enumerate(cameras):
        pixels = to_uint8(render_view(truth, camera).rgb).numpy()
        encoded = cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))[1].tobytes()
        frames.append(PosedImage(camera, encoded, name=f"{index:03d}"))
    capture = Capture(tuple(frames), trajectory_from_cameras(cameras))
    keep = torch.arange(len(truth.background)) % 5 > 0
    metadata = {"reconstruction": {"scale": 1.0}}
    background = truth.background.select(keep)
    return replace(truth, background=background, capture=capture, metadata=metadata)


@pytest.fixture
def session(tmp_path):
    pytest.importorskip("faithfusion_studio.render._core", reason="the compiled core is not built")
    session = Session(recorded(make_street()), run_folder=tmp_path / "runs")
    yield session
    session.close(save=False)


def run(session, command):
    session.submit(command)
    assert session.wait_idle(120.0)
    assert session.state.error is None, session.state.error


def test_the_journey_without_a_window(session, tmp_path):
    opened = session.store.latest().scene
    run(session, c.RepairSegment(Stage(segment=(1, 4), lateral_offset=0.7, eig_threshold=0.3)))
    state = session.state
    assert state.fisher_ready
    assert [frame.frame for frame in state.frames] == [1, 2, 3]
    assert all(frame.hpr_changed == 0 for frame in state.frames)

    views = session.store.latest().scene.fisher.num_views
    run(session, c.AcceptFrames(None, True))
    run(session, c.StartFusion(steps=6, weighting="uniform"))
    fused = session.store.latest().scene
    assert session.state.history[-1].startswith("Fusion +0.7 m, frames 1-3")
    assert len(session.state.loss_curve) == 6
    assert session.state.psnr_before is not None
    assert len(fused.fisher.blocks) == fused.num_gaussians
    assert fused.fisher.num_views == views + 3
    assert fused.capture is opened.capture

    run(session, c.Undo())
    back = session.store.latest().scene
    assert torch.equal(back.background.means, opened.background.means)
    run(session, c.Redo())
    assert torch.equal(session.store.latest().scene.background.means, fused.background.means)

    target = tmp_path / "fused.ckpt"
    run(session, c.SaveAs(str(target)))
    from faithfusion_studio.io import load_scene

    again = load_scene(target)
    assert torch.equal(again.background.means, fused.background.means)
    assert len(again.capture) == FRAMES


def test_an_export_is_a_video_of_the_path(session, tmp_path):
    import av

    target = tmp_path / "path.mp4"
    request = c.ExportRequest(
        str(target),
        camera_path="segment",
        segment=(1, 4),
        lateral_offset=0.5,
        layout="before-after",
    )
    session.submit(c.Export(request))
    with session._board._condition:
        session._board._condition.wait_for(
            lambda: session.state.exports or session.state.error, timeout=120
        )
    assert session.state.error is None
    with av.open(str(target)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3
    assert frames[0].shape[1] >= 2 * WIDTH


def test_history_spills_to_native_files_and_comes_back_bit_by_bit(session):
    from faithfusion_studio.session.history import History

    scene = session.store.latest().scene
    engines = session._engines
    history = History(scene, max_bytes=0, save=engines.save, load=engines.load)
    moments = {"means": {"exp_avg": torch.randn(5, 3), "step": torch.tensor(3.0)}}
    moved = replace(scene, background=replace(scene.background, means=scene.background.means + 1))
    history.push("moved", moved, moments)
    history.push("again", scene)
    entry = history.go_to(1)
    for name in ("means", "log_scales", "quats", "sh0", "provenance"):
        assert torch.equal(getattr(entry.scene.background, name), getattr(moved.background, name))
    assert entry.scene.capture is scene.capture
    assert entry.scene.metadata == scene.metadata
    assert torch.equal(entry.optimizer_state["means"]["exp_avg"], moments["means"]["exp_avg"])
    history.close()


def test_every_engine_can_be_chosen_and_one_without_weights_says_why(tmp_path, monkeypatch):
    from faithfusion_studio.repair import REPAIRERS, refiner_weights
    from faithfusion_studio.repair.model_store import CATALOG
    from faithfusion_studio.session.engines import list_engines

    monkeypatch.setenv("FF_STUDIO_WEIGHTS", str(tmp_path))

    scene = recorded(make_street())
    engines = {engine.name: engine for engine in list_engines(scene)}
    assert list(engines) == list(REPAIRERS) and {"reprojection", "refiner"} <= set(engines)
    for name, engine in engines.items():
        if name in CATALOG:  # weights that are not ours are not here
            assert "is missing" in engine.problem and engine.title != name and engine.licence
        else:
            assert engine.problem is None and engine.seconds_per_frame > 0
    monkeypatch.setattr(refiner_weights, "packaged_weights", lambda: tmp_path / "none.safetensors")
    engines = {engine.name: engine for engine in list_engines(scene)}
    assert "none.safetensors" in engines["refiner"].problem
    assert engines["reprojection"].problem is None
