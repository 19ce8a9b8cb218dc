"""EIG-weighted distillation: repaired frames are learned, recorded ones replayed so none is forgotten.

One loop, as a generator that yields after every step; no threads, no files. What is drawn at random depends on
the seed and the number of the step alone, so a run that was cut in two takes the steps of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from faithfusion_studio.fusion.batches import working_scale
from faithfusion_studio.fusion.densify import DensifyState, GradientDensify, initial_state
from faithfusion_studio.fusion.learner import Learner
from faithfusion_studio.fusion.losses import FusionError, TrainingView
from faithfusion_studio.fusion.meters import Meters, recorded_view, spread
from faithfusion_studio.fusion.parameters import KINDS
from faithfusion_studio.fusion.reach import shown_best_elsewhere
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.replay import RepairedView, repaired_views
from faithfusion_studio.fusion.schedule import Curve, FusionConfig, Progress, Weighting
from faithfusion_studio.fusion.spawn import SeenSurface, spawn_gaussians
from faithfusion_studio.gaussians import Gaussians, Provenance, TopologyChange
from faithfusion_studio.scene import Scene

MARGIN = 12
"""Recorded frames this far beyond the repaired frames are replayed too."""
SURFACES = 10
"""Recorded frames that tell where surfaces were seen, so that no Gaussian is added before them."""

Moments = Mapping[str, Mapping[str, Tensor]]
"""Adam's state per parameter kind."""


def compose_changes(first: TopologyChange | None, second: TopologyChange) -> TopologyChange:
    """One change that does `first`, then `second`."""
    if first is None:
        return second
    return TopologyChange(first.source[second.source], first.is_new[second.source] | second.is_new)


def novel_factor(curve: Curve, done: float) -> float:
    """Factor on the loss of repaired views when a share `done` of a plan has been learned.

    Source: GenFusion, lambda(k) = sin(pi (k - k0) / (k1 - k0)).
    """
    return 1.0 if curve == "constant" else math.sin(math.pi * min(max(done, 0.0), 1.0))


@dataclass(frozen=True, eq=False)
class TrainerCheckpoint:
    """What a distillation needs, beside the scene as it stands, to go on as if it had not been stopped."""

    step: int
    """Steps done."""
    moments: Moments
    statistics: DensifyState
    start: Gaussians
    """The background before the first step, which tells what was displaced since."""
    grown: TopologyChange | None
    """How the rows relate to those of `start`."""


class Trainer:
    """Distils accepted repaired frames into a scene.

    Args:
        scene: The scene they were repaired on; with a checkpoint, as it stood there.
        frames: Result of a repair; only accepted ones are learned.
        config: See `FusionConfig`.
        steps: Optimiser steps to take.
        weighting: How much each repaired pixel is believed.
        seed: Of the order of views and of what grows; several numbers are one seed.
        optimizer_state: From an earlier `optimizer_state()`, to go on where it stopped.
        earlier: Repaired views of earlier stages, replayed with the newest.
        views: The newest views where they are known already, instead of `frames`; nothing is added to the scene.
        span: Shares of the whole plan that are done before and after these steps, for `novel_curve`.
        checkpoint: Of the same distillation with the same views, to go on in the middle of it.

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
        seed: int | Sequence[int] = 0,
        optimizer_state: Moments | None = None,
        earlier: Sequence[RepairedView] = (),
        views: Sequence[RepairedView] | None = None,
        span: tuple[float, float] = (0.0, 1.0),
        checkpoint: TrainerCheckpoint | None = None,
    ) -> None:
        accepted = [frame for frame in frames if frame.accepted]
        if not accepted and not views:
            raise FusionError(
                "no repaired frame is accepted; accept at least one, then start fusion."
            )
        self.config = config or FusionConfig()
        self.steps = steps
        self._seed = [seed] if isinstance(seed, int) else list(seed)
        self._span = span
        if views is None:
            views = repaired_views(accepted, scene, self.config, weighting)
        self.views = tuple(views)
        self._repaired = [*earlier, *self.views]
        self._near = self._frames_around(scene)
        held_out = set(scene.metadata.get("reconstruction", {}).get("holdout", []))
        scale = working_scale(scene)
        self._recorded = [recorded_view(scene, i, scale) for i in sorted(self._near - held_out)]
        self._meters = Meters(scene, self._near, self.views)
        self._start = scene.background
        extent = _extent(scene)
        self._rates, self._learner = self._prepare(scene, extent)
        self.change: TopologyChange | None = None
        """How the rows of `scene()` relate to those of the scene given; None while they are the same."""
        self._grown: TopologyChange | None = None
        if checkpoint is None:
            self._begin(scene, accepted, optimizer_state)
        self._densify = GradientDensify(
            extent=extent,
            max_gaussians=len(self._learner.parameters) + self.config.spawn,
            provenance_of_new=int(Provenance.REPAIRED),
            prune_opacity=0.003,
        )
        self._statistics = self._no_statistics()
        self._first = 1
        if checkpoint is not None:
            self._go_on(checkpoint)
        cameras = () if scene.capture is None else scene.capture.trajectory.cameras
        self._elsewhere = shown_best_elsewhere(self._start.means, cameras, self._near)
        self._frozen = self._frozen_rows()

    def _prepare(self, scene: Scene, extent: float) -> tuple[dict[str, float], Learner]:
        """Step sizes after the warm-up, and the learner."""
        config = self.config
        scaled = {
            kind: getattr(config.rates, kind) * config.rate_scale
            for kind in ("log_scales", "quats", "logit_opacities", "sh0", "shN")
        }
        rates = replace(config.rates, **scaled, means=config.rates.means * config.means_scale)
        final = {kind: getattr(rates, kind) for kind in KINDS}
        final["means"] *= extent
        return final, Learner(scene, rates, config.weights, extent=extent, learn_sky=False)

    def _begin(
        self, scene: Scene, frames: Sequence[RepairedFrame], moments: Moments | None
    ) -> None:
        """Take up the optimiser's state, then add Gaussians where repaired surfaces have none."""
        parameters = self._learner.parameters
        if moments is not None:
            parameters.restore_moments(moments)
        if not frames:
            return
        spawned = spawn_gaussians(
            frames,
            self._seen_surfaces(scene),
            scene.background.sh_degree,
            self.config.spawn,
            self._generator(0),
        )
        if len(spawned):
            self.change = self._grown = parameters.append(spawned)

    def _go_on(self, checkpoint: TrainerCheckpoint) -> None:
        self._learner.parameters.restore_moments(checkpoint.moments)
        self._statistics = _copied(checkpoint.statistics)
        self._start, self._grown = checkpoint.start, checkpoint.grown
        self._first = checkpoint.step + 1

    # ----------------------------------------------------------------------------------- views

    def _frames_around(self, scene: Scene) -> set[int]:
        """Indices of the recorded frames around every repaired one."""
        if scene.capture is None:
            return set()
        near = {
            index
            for view in self._repaired
            for index in range(view.frame - MARGIN, view.frame + MARGIN + 1)
        }
        return near & set(range(len(scene.capture)))

    def _frozen_rows(self) -> Bool[Tensor, "N"] | None:
        """Rows that other frames show best, among those there are now; added ones are free. None: no row."""
        if not bool(self._elsewhere.any()):
            return None
        if self._grown is None:
            return self._elsewhere
        return self._elsewhere[self._grown.source] & ~self._grown.is_new

    def _seen_surfaces(self, scene: Scene) -> list[SeenSurface]:
        from faithfusion_studio.render.views import render_view

        surfaces = []
        for index in spread(len(self._recorded), SURFACES):
            camera = self._recorded[index].camera
            view = render_view(scene, camera)
            surfaces.append(SeenSurface(camera, view.depth.cpu(), view.alpha.cpu()))
        return surfaces

    # ------------------------------------------------------------------------------------ loop

    def run(self) -> Iterator[Progress]:
        """Distil; stop consuming to stop early, whatever was learned stays in `scene()`."""
        spent, config, first = 0.0, self.config, self._first
        densify_every = max(20, self.steps // 8)
        for step in range(first, self.steps + 1):
            started = time.monotonic()
            self._warm_up(step)
            random = np.random.default_rng([*self._seed, step])
            replayed = bool(self._recorded) and random.random() < config.replay
            observed = config.densify and not replayed
            if replayed:
                view = self._recorded[random.integers(len(self._recorded))]
            else:
                view = self._novel_view(random, step)
            degree = self._learner.parameters.sh_degree
            held = self._held(replayed)
            depth = 1.0 if replayed else config.novel_depth_weight
            loss, meta = self._learner.step(
                view,
                degree,
                absgrad=observed,
                held=held,
                frozen=self._frozen,
                depth_factor=depth,
            )
            if observed:
                self._densify.observe(meta, self._statistics)
                if step % densify_every == 0 and step <= 0.7 * self.steps:
                    self._change_rows(step)
            self._first = step + 1
            measure = step in (1, self.steps) or step % config.psnr_every == 0
            psnr, moved = math.nan, math.nan
            if measure:
                now = self._learner.snapshot()
                psnr, moved = self._meters.psnr_recorded(now), self._meters.trusted_moved(now)
            spent += time.monotonic() - started
            provenance = self._learner.parameters.provenance
            yield Progress(
                step=step,
                steps=self.steps,
                loss=loss,
                psnr_recorded=psnr,
                num_gaussians=len(provenance),
                num_generated=int((provenance != int(Provenance.RECORDED)).sum()),
                seconds_left=(self.steps - step) * spent / (step - first + 1),
                trusted_moved=moved,
            )

    def _novel_view(self, random: np.random.Generator, step: int) -> TrainingView:
        """A repaired view of any stage, its weights scaled to where the plan stands."""
        before, after = self._span
        done = before + (after - before) * step / self.steps
        factor = self.config.novel_weight * novel_factor(self.config.novel_curve, done)
        return self._repaired[random.integers(len(self._repaired))].training_view(factor)

    def _held(self, replayed: bool) -> Bool[Tensor, "N"] | None:
        """Rows that keep position and orientation in a step."""
        hold = self.config.hold
        if hold == "free" or (hold == "repaired" and replayed):
            return None
        return self._learner.parameters.provenance == int(Provenance.RECORDED)

    def _warm_up(self, step: int) -> None:
        """Ramp the step sizes up: Adam's first steps are as long as its later ones but know nothing yet."""
        share = min(1.0, step / self.config.warm_up)
        for kind in KINDS:
            self._learner.parameters.set_rate(kind, share * self._rates[kind])

    def _change_rows(self, step: int) -> None:
        generator = self._generator(step)
        change = self._densify.update(self._learner.parameters, self._statistics, generator)
        if change is not None:
            self.change = compose_changes(self.change, change)
            self._grown = compose_changes(self._grown, change)
            self._frozen = self._frozen_rows()
            self._statistics = self._no_statistics()

    def _generator(self, step: int) -> torch.Generator:
        seed = np.random.SeedSequence([*self._seed, step]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed >> np.uint64(1)))

    def _no_statistics(self) -> DensifyState:
        return initial_state(len(self._learner.parameters), self._learner.device)

    # ------------------------------------------------------------------------------------ results

    def scene(self) -> Scene:
        """The scene as learned so far; its evidence is dropped, having been of other values.

        Recorded Gaussians that were displaced by more than their own size count as repaired.
        """
        scene = self._learner.snapshot()
        background = scene.background
        moved = displaced(self._start, background, self._grown)
        moved &= background.provenance == int(Provenance.RECORDED)
        if bool(moved.any()):
            provenance = background.provenance.masked_fill(moved, int(Provenance.REPAIRED))
            scene = replace(scene, background=replace(background, provenance=provenance))
        return scene

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Adam's moments per parameter kind, for history and resuming."""
        return self._learner.parameters.moments()

    def checkpoint(self) -> tuple[Scene, TrainerCheckpoint]:
        """The scene as it stands, provenance as the optimiser has it, and what is needed to go on."""
        kept = TrainerCheckpoint(
            step=self._first - 1,
            moments=self.optimizer_state(),
            statistics=_copied(self._statistics),
            start=self._start,
            grown=self._grown,
        )
        return self._learner.snapshot(), kept


def _copied(statistics: DensifyState) -> DensifyState:
    """The same numbers in tensors of their own."""
    s = statistics
    return DensifyState(s.gradient.clone(), s.count.clone(), s.radius.clone())


def displaced(
    before: Gaussians, after: Gaussians, change: TopologyChange | None
) -> Bool[Tensor, "N"]:
    """Rows whose centre moved by more than the largest standard deviation they had; new rows are none of them."""
    rows = slice(None) if change is None else change.source
    shift = (after.means - before.means[rows]).norm(dim=-1)
    moved = shift > before.scales[rows].amax(-1)
    return moved if change is None else moved & ~change.is_new


def _extent(scene: Scene) -> float:
    if scene.capture is None:
        means = scene.background.means
        return float((means - means.mean(0)).norm(dim=-1).quantile(0.9)) if len(means) else 1.0
    centres = scene.trajectory.camtoworlds[:, :3, 3]
    return max(1.1 * float((centres - centres.mean(0)).norm(dim=-1).max()), 5.0)
