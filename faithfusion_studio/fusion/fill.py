"""Content expansion: splats where a repair shows surfaces and the scene has nothing, to look at before they are added.

Source: GenFusion (2025), section on content expansion, with agreement of several frames in place of its random tenth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from faithfusion_studio.fusion.batches import working_scale
from faithfusion_studio.fusion.losses import FusionError
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.spawn import EmptyRule, SeenSurface, spawn_gaussians
from faithfusion_studio.gaussians import Gaussians, TopologyChange, concatenate
from faithfusion_studio.scene import Scene

FILL = EmptyRule(transparent=0.5, apart=0.1, agreeing=1)
"""What is offered first."""
LOOKED_AT = 10
"""Recorded views that must not be blocked."""


def fill_candidates(
    scene: Scene,
    frames: Sequence[RepairedFrame],
    rule: EmptyRule,
    limit: int = 20_000,
    seed: int = 0,
) -> Gaussians:
    """What would be added to a scene.

    Args:
        scene: Where the frames were repaired.
        frames: Accepted repaired frames with depth.
        rule: Which pixels are empty, and how many other frames must agree about the surface.
        limit: At most this many.
        seed: Of the choice where there are more.

    Raises:
        FusionError: No frame is accepted.
    """
    accepted = [frame for frame in frames if frame.accepted]
    if not accepted:
        raise FusionError("accept at least one repaired frame first; it says what is to be filled.")
    generator = torch.Generator().manual_seed(seed)
    degree = scene.background.sh_degree
    return spawn_gaussians(
        accepted, _seen_surfaces(scene, accepted), degree, limit, generator, rule
    )


def with_filling(scene: Scene, filling: Gaussians) -> Scene:
    """The scene with new splats at the end of its background; its evidence knows nothing of them yet."""
    from faithfusion_studio.fusion.parts import follow_rows

    old, extra = len(scene.background), len(filling)
    background = concatenate([scene.background, filling.to(scene.device)])
    grown = replace(scene, background=background)
    if scene.fisher is None or len(scene.fisher.blocks) != scene.num_gaussians:
        return replace(grown, fisher=None)
    rows = torch.arange(old + extra)
    change = TopologyChange(source=rows * (rows < old), is_new=rows >= old)
    return replace(grown, fisher=follow_rows(scene.fisher, change, grown))


def _seen_surfaces(scene: Scene, frames: Sequence[RepairedFrame]) -> list[SeenSurface]:
    """What recorded views around the frames see."""
    from faithfusion_studio.render.views import render_view

    if scene.capture is None:
        return []
    first, last = frames[0].frame, frames[-1].frame
    near = range(max(0, first - 12), min(len(scene.capture), last + 13))
    chosen = np.unique(np.linspace(near.start, near.stop - 1, LOOKED_AT).round().astype(int))
    surfaces = []
    for index in chosen.tolist():
        camera = scene.capture.frames[index].camera.scaled(working_scale(scene))
        with torch.no_grad():
            view = render_view(scene, camera)
        surfaces.append(SeenSurface(camera, view.depth.cpu(), view.alpha.cpu()))
    return surfaces
