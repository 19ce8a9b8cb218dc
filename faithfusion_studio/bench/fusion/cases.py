"""What is fused and looked at: a trained scene, the offset, the frames to repair, and true views from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from faithfusion_studio.bench.report import BenchConfig
from faithfusion_studio.bench.uncertainty.truth import (
    TrueView,
    TruthScene,
    procedural_scene,
    recorded_scene,
    trained,
)
from faithfusion_studio.cameras import Camera, offset_laterally
from faithfusion_studio.fusion.schedule import ReconstructionConfig
from faithfusion_studio.scene import Scene

FIRST_SEED = 600
"""Of the test streets; those below 200 are for choosing."""
FRAMES = 48
HOLD_OUT_EVERY = 8
MARGIN = 2
"""Frames repaired beyond the true views at either end."""


@dataclass(frozen=True, eq=False)
class FusionCase:
    """One trained scene with true views at one offset."""

    name: str
    training: int
    scene: Scene
    """With evidence."""
    offset: float
    """m, + = left."""
    segment: tuple[int, int]
    """Recorded frames of `scene` that are repaired."""
    views: tuple[TrueView, ...]
    next_cameras: tuple[Camera, ...]
    """The camera one recorded frame further along the shifted path, per true view; for the warp error."""


def cases(config: BenchConfig, say: Callable[[str], None]) -> Iterator[FusionCase]:
    """Every scene and training of a run, at the offset with true views that is nearest to the one wanted.

    Trained scenes are those of the topic `uncertainty`, kept in its cache.

    Raises:
        BenchError: The recording brings no truth.
    """
    for test in _scenes(config, say):
        kept = [i for i in range(len(test.capture)) if i % HOLD_OUT_EVERY != HOLD_OUT_EVERY // 2]
        for training in range(config.trainings):
            how = ReconstructionConfig(
                steps=config.steps,
                scale=config.scale,
                holdout_every=0,
                seed=training,
                max_gaussians=config.gaussians,
            )
            scene = trained(test, how, say, kept)
            found = [_case(test.name, training, scene, views) for views in test.beside.values()]
            yield min(found, key=lambda case: abs(case.offset - config.offset))


def _scenes(config: BenchConfig, say: Callable[[str], None]) -> Iterator[TruthScene]:
    if config.capture is not None:
        yield recorded_scene(Path(config.capture), config.views, config.scale)
        return
    for index in range(config.scenes):
        seed = FIRST_SEED + config.seed + index
        say(f"street {seed}: tracing the recording and the truth")
        yield procedural_scene(
            seed, config.size, FRAMES, config.views, config.scale, (config.offset,)
        )


def _case(name: str, training: int, scene: Scene, views: Sequence[TrueView]) -> FusionCase:
    """Offset and segment follow from where the true views stand."""
    found = [_place(scene, view.camera) for view in views]
    offset = sum(lateral for _, lateral in found) / len(found)
    first, last = min(i for i, _ in found), max(i for i, _ in found)
    segment = (max(0, first - MARGIN), min(len(scene.trajectory), last + MARGIN + 1))
    shifted = offset_laterally(scene.trajectory, offset).cameras
    following = tuple(
        shifted[min(i + 1, len(shifted) - 1)].resized(view.camera.width, view.camera.height)
        for (i, _), view in zip(found, views, strict=True)
    )
    return FusionCase(name, training, scene, round(offset, 3), segment, tuple(views), following)


def _place(scene: Scene, camera: Camera) -> tuple[int, float]:
    """The recorded frame beside which a camera stands, and how far to its left, m."""
    path = scene.trajectory
    centres = path.camtoworlds[:, :3, 3]
    ahead = ((camera.position - centres) * path.ego_to_worlds[:, :3, 0]).sum(-1)
    index = int(ahead.abs().argmin())
    left = path.ego_to_worlds[index, :3, 1]
    return index, float(torch.dot(camera.position - centres[index], left))
