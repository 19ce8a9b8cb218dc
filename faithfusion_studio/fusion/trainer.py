"""EIG-weighted distillation: repaired frames are learned, recorded ones replayed so none is forgotten.

One loop, as a generator that yields after every step; no threads, no files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.densify import DensifyState, GradientDensify, initial_state
from faithfusion_studio.fusion.learner import Learner
from faithfusion_studio.fusion.losses import TrainingView, eig_weight
from faithfusion_studio.fusion.parameters import KINDS
from faithfusion_studio.fusion.repairing import RepairedFrame, working_scale
from faithfusion_studio.fusion.schedule import FusionConfig, Progress, Weighting
from faithfusion_studio.fusion.spawn import SeenSurface, spawn_gaussians
from faithfusion_studio.gaussians import Provenance, TopologyChange
from faithfusion_studio.scene import Scene

MARGIN = 12
"""Recorded frames this far beyond the repaired segment are replayed too."""
MEASURED = 5
"""Recorded frames on which the live PSNR is measured."""


class FusionError(StudioError):
    """A distillation that cannot start."""


def compose_changes(first: TopologyChange | None, second: TopologyChange) -> TopologyChange:
    """One change that does `first`, then `second`."""
    if first is None:
        return second
    return TopologyChange(first.source[second.source], first.is_new[second.source] | second.is_new)


class Trainer:
    """Distils accepted repaired frames into a scene.

    Args:
        scene: The scene they were repaired on.
        frames: Result of a repair; only accepted ones are learned.
        config: See `FusionConfig`.
        steps: Optimiser steps to take.
        weighting: How much each repaired pixel is believed.
        seed: Of the order of views.
        optimizer_state: From an earlier `optimizer_state()`, to go on where it stopped.

    Raises:
        FusionError: No frame is accepted.
    """

    def __init__(
        self,
        scene: Scene,
        frames: Sequence[RepairedFrame],
        config: FusionConfig | None = None,
        *,
        steps: int,
        weighting: Weighting = "eig",
        seed: int = 0,
        optimizer_state: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        accepted = [frame for frame in frames if frame.accepted]
        if not accepted:
            raise FusionError(
                "no repaired frame is accepted; accept at least one, then start fusion."
            )
        self.config = config or FusionConfig()
        self.steps = steps
        self._random = np.random.default_rng(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._repaired = [self._training_view(frame, weighting) for frame in accepted]
        self._recorded = self._replayed_views(scene, accepted)
        extent = _extent(scene)
        rates = replace(
            self.config.rates,
            **{
                kind: getattr(self.config.rates, kind) * self.config.rate_scale
                for kind in ("log_scales", "quats", "logit_opacities", "sh0", "shN")
            },
            means=self.config.rates.means * self.config.means_scale,
        )
        self._rates = {kind: getattr(rates, kind) for kind in KINDS}
        self._rates["means"] *= extent
        self._learner = Learner(scene, rates, self.config.weights, extent=extent, learn_sky=False)
        self.change: TopologyChange | None = None
        """How the rows of `scene()` relate to those of the scene given; None while they are the same."""
        spawned = spawn_gaussians(
            accepted,
            self._seen_surfaces(scene),
            scene.background.sh_degree,
            self.config.spawn,
            self._generator,
        )
        if len(spawned):
            self.change = self._learner.parameters.append(spawned)
        elif optimizer_state is not None:
            self._learner.parameters.restore_moments(optimizer_state)
        self._densify = GradientDensify(
            extent=extent,
            max_gaussians=len(self._learner.parameters) + self.config.spawn,
            provenance_of_new=int(Provenance.REPAIRED),
            prune_opacity=0.003,
        )
        self._state = self._fresh_state()

    # ----------------------------------------------------------------------------------- views

    def _training_view(self, frame: RepairedFrame, weighting: Weighting) -> TrainingView:
        weight = eig_weight(frame.calibrated, frame.confidence, weighting)
        generated = frame.pixel_provenance == 2
        weight = torch.where(generated, weight * self.config.generated_confidence, weight)
        return TrainingView(frame.camera, frame.repaired, weight, source="repaired")

    def _replayed_views(self, scene: Scene, frames: Sequence[RepairedFrame]) -> list[TrainingView]:
        if scene.capture is None:
            return []
        held_out = set(scene.metadata.get("reconstruction", {}).get("holdout", []))
        first, last = frames[0].frame - MARGIN, frames[-1].frame + MARGIN
        scale = working_scale(scene)
        views = []
        for index in range(max(0, first), min(len(scene.capture), last + 1)):
            if index in held_out:
                continue
            recorded = scene.capture.frames[index]
            camera = recorded.camera.scaled(scale)
            image = recorded.image((camera.width, camera.height))
            mask = recorded.mask((camera.width, camera.height))
            weight = None if mask is None else (~mask).to(torch.float32)
            views.append(TrainingView(camera, image, weight, exposure_index=index))
        return views

    def _seen_surfaces(self, scene: Scene) -> list[SeenSurface]:
        from faithfusion_studio.render.views import render_view

        surfaces = []
        for index in _spread(len(self._recorded), 2 * MEASURED):
            camera = self._recorded[index].camera
            view = render_view(scene, camera)
            surfaces.append(SeenSurface(camera, view.depth.cpu(), view.alpha.cpu()))
        return surfaces

    # ------------------------------------------------------------------------------------ loop

    def run(self) -> Iterator[Progress]:
        """Distil; stop consuming to stop early, whatever was learned stays in `scene()`."""
        spent = 0.0
        degree = self._learner.parameters.sh_degree
        densify_every = max(20, self.steps // 8)
        for step in range(1, self.steps + 1):
            started = time.monotonic()
            self._warm_up(step)
            replayed = bool(self._recorded) and self._random.random() < self.config.replay
            views = self._recorded if replayed else self._repaired
            observed = self.config.densify and not replayed
            view = views[self._random.integers(len(views))]
            loss, meta = self._learner.step(view, degree, absgrad=observed)
            if observed:
                self._densify.observe(meta, self._state)
                if step % densify_every == 0 and step <= 0.7 * self.steps:
                    self._change_rows()
            measure = step in (1, self.steps) or step % self.config.psnr_every == 0
            psnr = self.psnr_recorded() if measure else math.nan
            spent += time.monotonic() - started
            provenance = self._learner.parameters.provenance
            yield Progress(
                step=step,
                steps=self.steps,
                loss=loss,
                psnr_recorded=psnr,
                num_gaussians=len(provenance),
                num_generated=int((provenance != int(Provenance.RECORDED)).sum()),
                seconds_left=(self.steps - step) * spent / step,
            )

    def _warm_up(self, step: int) -> None:
        """Ramp the step sizes up: Adam's first steps are as long as its later ones but know nothing yet."""
        share = min(1.0, step / self.config.warm_up)
        for kind in KINDS:
            self._learner.parameters.set_rate(kind, share * self._rates[kind])

    def _change_rows(self) -> None:
        change = self._densify.update(self._learner.parameters, self._state, self._generator)
        if change is not None:
            self.change = compose_changes(self.change, change)
            self._state = self._fresh_state()

    def _fresh_state(self) -> DensifyState:
        return initial_state(len(self._learner.parameters), self._learner.device)

    def psnr_recorded(self) -> float:
        """Mean PSNR over a few replayed frames as they are now, dB; NaN without a recording."""
        from faithfusion_studio.metrics import psnr
        from faithfusion_studio.render.views import apply_exposure, render_view

        if not self._recorded:
            return math.nan
        scene, values = self._learner.snapshot(), []
        for index in _spread(len(self._recorded), MEASURED):
            view = self._recorded[index]
            rgb = render_view(scene, view.camera).rgb
            if scene.exposures is not None:
                rgb = apply_exposure(rgb, scene.exposures[view.exposure_index]).clamp(0, 1)
            values.append(psnr(rgb.cpu(), view.image))
        return float(np.mean(values))

    def scene(self) -> Scene:
        """The scene as learned so far; its evidence is dropped, having been of other values."""
        return self._learner.snapshot()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Adam's moments per parameter kind, for history and resuming."""
        return self._learner.parameters.moments()


def _extent(scene: Scene) -> float:
    if scene.capture is None:
        means = scene.background.means
        return float((means - means.mean(0)).norm(dim=-1).quantile(0.9)) if len(means) else 1.0
    centres = scene.trajectory.camtoworlds[:, :3, 3]
    return max(1.1 * float((centres - centres.mean(0)).norm(dim=-1).max()), 5.0)


def _spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` indices below `count`, evenly spread."""
    chosen = np.linspace(0, count - 1, min(wanted, count)).round().astype(int)
    return sorted(set(chosen.tolist()))
