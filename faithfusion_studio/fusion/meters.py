"""What is watched while repairs are distilled: recorded views, and pixels that needed no repair."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch

from faithfusion_studio.fusion.losses import TrainingView
from faithfusion_studio.fusion.replay import RepairedView
from faithfusion_studio.scene import Scene

MEASURED = 5
"""Recorded frames around the repaired ones, and as many of all others, on which the live PSNR is measured."""
MEASURED_WIDTH = 640
"""Pixels; the live PSNR is measured at recorded size, but not wider."""
WATCHED = 3
"""Repaired frames on which it is measured how much of the trusted area moved."""
VISIBLE = 8 / 255
"""A trusted pixel has moved when a channel differs by more than this."""


class Meters:
    """Two measurements of a scene in training against where it started.

    Args:
        scene: At the start.
        near: Indices of the recorded frames around the repaired ones.
        views: The repaired views of the newest stage.
    """

    def __init__(self, scene: Scene, near: Collection[int], views: Sequence[RepairedView]) -> None:
        from faithfusion_studio.render.views import render_view

        frames = () if scene.capture is None else scene.capture.frames
        others = [index for index in range(len(frames)) if index not in near]
        # Held-out frames count too, and at recorded size: frames are replayed smaller.
        self._recorded = [
            recorded_view(scene, i, min(1.0, MEASURED_WIDTH / frames[i].camera.width))
            for indices in (sorted(near), others)
            for i in (indices[at] for at in spread(len(indices), MEASURED))
        ]
        chosen = [views[index] for index in spread(len(views), WATCHED)]
        self._watched = [(view, render_view(scene, view.camera).rgb.cpu()) for view in chosen]

    def psnr_recorded(self, scene: Scene) -> float:
        """Mean PSNR over some recorded frames, dB: near the repaired ones and all over the recording; NaN
        without a recording."""
        from faithfusion_studio.metrics import psnr
        from faithfusion_studio.render.views import apply_exposure, render_view

        values, scene = [], scene.as_recorded()
        for view in self._recorded:
            rgb = render_view(scene, view.camera).rgb
            if scene.exposures is not None:
                rgb = apply_exposure(rgb, scene.exposures[view.exposure_index]).clamp(0, 1)
            values.append(psnr(rgb.cpu(), view.image))
        return float(np.mean(values)) if values else math.nan

    def trusted_moved(self, scene: Scene) -> float:
        """Share of the pixels that needed no repair (HPR) and differ visibly from the start; NaN without any."""
        from faithfusion_studio.render.views import render_view

        moved, total = 0, 0
        for view, before in self._watched:
            now = render_view(scene, view.camera).rgb.cpu()
            trusted = ~view.ucr
            moved += int((((now - before).abs().amax(-1) > VISIBLE) & trusted).sum())
            total += int(trusted.sum())
        return moved / total if total else math.nan


def recorded_view(scene: Scene, index: int, scale: float) -> TrainingView:
    """A recorded frame to learn from, or to measure by, at a scale of its recorded size."""
    assert scene.capture is not None
    recorded = scene.capture.frames[index]
    camera = recorded.camera.scaled(scale)
    image = recorded.image((camera.width, camera.height))
    mask = recorded.mask((camera.width, camera.height))
    weight = None if mask is None else (~mask).to(torch.float32)
    return TrainingView(camera, image, weight, exposure_index=index)


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices below `count`, evenly spread."""
    chosen = np.linspace(0, count - 1, min(wanted, count)).round().astype(int)
    return sorted(set(chosen.tolist()))
