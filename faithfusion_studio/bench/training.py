"""Speed of the trainer: whole steps on the generated street, and beside another program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from faithfusion_studio.bench.measuring import PROTOCOL, interleave
from faithfusion_studio.bench.rendering import bench_like
from faithfusion_studio.bench.report import BenchConfig, Report
from faithfusion_studio.bench.street import bench_camera, bench_scene, road_depth
from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.densify import GradientDensify, initial_state
from faithfusion_studio.fusion.initialize import visible_points
from faithfusion_studio.fusion.learner import Learner
from faithfusion_studio.fusion.losses import TrainingView
from faithfusion_studio.fusion.schedule import LearningRates, LossWeights
from faithfusion_studio.render.cpu import thread_limit
from faithfusion_studio.render.views import render_view
from faithfusion_studio.scene import Scene
from faithfusion_studio.sky import CubemapSky

VIEWS = 6
"""Training views, 3 m apart."""
EXTENT = 20.0
"""Scene extent of the learning rates, m."""
STEP = "training step"


def run_train(config: BenchConfig) -> Report:
    """Training steps on the generated street; with `config.peer` also a race on a recording."""
    scene = bench_scene(config.gaussians, config.seed)
    step = street_trainer(scene, config.size, config.threads)
    t = interleave({STEP: step}, config.repeats)
    ours = 1000 / t[STEP].median
    figures = {"step_ms": t[STEP].median, "steps_per_s": ours}
    if config.peer is None:
        nothing = dict.fromkeys(("peer", "peer_steps_per_s", "ratio"))
        return Report("train", config, {**figures, **nothing}, t.rows)
    from faithfusion_studio.bench.peer import PROTOCOL as RACE_PROTOCOL
    from faithfusion_studio.bench.peer import race

    found = race(config)
    figures |= {
        "steps_per_s": found.steps_per_s,
        "peer": Path(config.peer).name,
        "peer_steps_per_s": found.peer_steps_per_s,
        "ratio": found.steps_per_s / found.peer_steps_per_s,
    }
    counts = {"frames": float(found.frames), "points": float(found.points)}
    return Report(
        "train",
        config,
        figures,
        t.rows,
        counts,
        found.table(),
        protocol=f"{PROTOCOL} The race: {RACE_PROTOCOL}",
    )


def street_trainer(scene: Scene, size: tuple[int, int], threads: int) -> Callable[[], None]:
    """A call that does one whole training step on the generated street.

    A step is what reconstruction does per step: the losses on colour, structure, depth at recorded
    points, the road, planes, sky and shapes; sky and exposure learned too; statistics for growing.

    Args:
        scene: From `bench_scene`.
        size: Width and height of the training views, pixels.
        threads: Of the core.
    """
    cameras = [_moved(bench_camera(size), 3.0 * i) for i in range(VIEWS)]
    views = [_training_view(scene, camera, index) for index, camera in enumerate(cameras)]
    start = Scene(
        scene.background,
        sky=CubemapSky(torch.full((6, 64, 64, 3), 0.7)),
        exposures=torch.eye(3, 4).repeat(VIEWS, 1, 1),
    )
    learner = Learner(start, LearningRates(), LossWeights(), extent=EXTENT)
    densify = GradientDensify(extent=EXTENT, max_gaussians=scene.num_gaussians)
    state = initial_state(scene.num_gaussians)
    done = 0

    def step() -> None:
        nonlocal done
        with thread_limit(threads):
            _, meta = learner.step(views[done % VIEWS], 1)
            densify.observe(meta, state)
        done += 1

    return step


def _moved(camera: Camera, ahead: float) -> Camera:
    pose = camera.camtoworld.clone()
    pose[0, 3] += ahead
    return camera.moved(pose)


def _training_view(scene: Scene, camera: Camera, index: int) -> TrainingView:
    """What a recorded frame of the street would bring: everything a step can learn from."""
    seen = render_view(bench_like(scene), camera)
    points = scene.background.means[:: max(1, len(scene.background) // 20_000)]
    return TrainingView(
        camera=camera,
        image=seen.rgb,
        exposure_index=index,
        depth=visible_points(points, camera),
        ground=road_depth(camera),
        sky_share=1 - seen.alpha,
    )
