"""What the methods know of a scene before they look: evidence, counts, residuals, other trainings; and its cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.information.fisher import (
    FisherAccumulator,
    recorded_fisher,
    recorded_view,
)
from faithfusion_studio.render.chain import visible_gaussians
from faithfusion_studio.render.views import (
    RasterizedView,
    apply_exposure,
    rasterize_view,
    render_features,
)
from faithfusion_studio.scene import Scene, StoredFisher

SOLVER_STEPS = 6
"""Passes over the recording in which the residual field is fitted."""


@dataclass(frozen=True, eq=False)
class Sight:
    """One novel view, rendered once for all methods."""

    camera: Camera
    view: RasterizedView

    @property
    def rgb(self) -> Float32[Tensor, "H W 3"]:
        """What the scene shows, [0, 1]."""
        return self.view.rgb.clamp(0, 1)


@dataclass(eq=False)
class Knowledge:
    """Set-up products of one scene, made when a method first asks; how long each took is kept.

    Args:
        scene: With its recording and its evidence.
        train_members: Trains the other scenes of the ensemble.
        seed: Of everything random.
    """

    scene: Scene
    train_members: Callable[[], Sequence[Scene]]
    seed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def _timed(self, name: str, make: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        with torch.enable_grad():  # some of them train
            made = make()
        self.seconds[name] = time.perf_counter() - started
        return made

    @cached_property
    def fisher(self) -> StoredFisher:
        """Evidence with sigma^2(p), as the studio uses it; computed again, so that its cost is known."""
        return self._timed("fisher", lambda: recorded_fisher(self.scene))

    @cached_property
    def flat_fisher(self) -> StoredFisher:
        """Evidence with one sigma for every pixel."""

        def make() -> StoredFisher:
            sum_ = FisherAccumulator(self.scene, noise_std=self.fisher.noise_std)
            for index in range(self.num_views):
                camera, _, _, weight = recorded_view(self.scene, index)
                sum_.add(camera, None, weight=weight)
            return sum_.finish()

        return self._timed("flat_fisher", make)

    @property
    def num_views(self) -> int:
        """Recorded frames the scene was trained on."""
        return 0 if self.scene.capture is None else len(self.scene.capture)

    @cached_property
    def cameras(self) -> list[Camera]:
        """The recorded cameras, at the size evidence is read at."""
        return [recorded_view(self.scene, index)[0] for index in range(self.num_views)]

    @cached_property
    def seen(self) -> Bool[Tensor, "V N"]:
        """Which Gaussians each recorded view blended."""

        def make() -> Tensor:
            table = torch.zeros(self.num_views, self.scene.num_gaussians, dtype=torch.bool)
            with torch.no_grad():
                for row, camera in zip(table, self.cameras, strict=True):
                    row[visible_gaussians(rasterize_view(self.scene, camera).meta)] = True
            return table

        return self._timed("seen", make)

    @cached_property
    def residuals(self) -> Float32[Tensor, "N"]:
        """Squared error of each Gaussian, in least squares over all recorded pixels; colour unit squared."""
        return self._timed("residuals", lambda: _least_squares(self))

    @cached_property
    def members(self) -> list[Scene]:
        """The scene itself and the other trainings of the ensemble."""
        return self._timed("members", lambda: [self.scene, *self.train_members()])


def _least_squares(known: Knowledge) -> Float32[Tensor, "N"]:
    """r >= 0 that minimises sum_p (sum_i w_ip r_i - alpha_p r^2(p))^2, by simultaneous steps.

    The Gaussians answer for their share alpha of a pixel's squared residual r^2(p), the sky for the rest.

    Source: SIRT (Gilbert 1972): r <- r + C A^T R (b - A r), with the inverse sums of rows R and of columns C.
    """
    scene, n = known.scene, known.scene.num_gaussians
    views = []
    for index in range(known.num_views):
        camera, image, exposure, weight = recorded_view(scene, index)
        with torch.no_grad():
            view = rasterize_view(scene, camera)
            rendered = apply_exposure(view.rgb.clamp(0, 1), exposure)
        views.append((camera, (rendered - image).square().mean(-1), weight))
    r = torch.zeros(n)
    for _ in range(SOLVER_STEPS):
        change, share = torch.zeros(n), torch.full((n,), 1e-3)
        for camera, squared, weight in views:
            with torch.no_grad():
                view = rasterize_view(scene, camera)
            feature = torch.stack([r, torch.ones(n)], 1).requires_grad_()
            with torch.enable_grad():
                rendered, alpha, _ = render_features(view, camera, feature)
            missing = squared - rendered.detach()[..., 0] / alpha.detach().clamp(min=1e-3)
            sides = torch.stack([missing * weight, weight], -1)
            (sums,) = torch.autograd.grad(rendered, feature, sides)
            change += sums[:, 0]
            share += sums[:, 1]
        r = (r + change / share).clamp(min=0)
    return r
