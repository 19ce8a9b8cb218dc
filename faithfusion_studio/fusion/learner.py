"""One optimisation step on one view: render, compare, back-propagate, move.

Shared by reconstruction and distillation; knows neither where a view came from nor what happens next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.learned_nodes import LearnedNodes
from faithfusion_studio.fusion.losses import TrainingView, view_loss
from faithfusion_studio.fusion.parameters import GaussianParameters
from faithfusion_studio.fusion.schedule import LearningRates, LossWeights, PoseRates
from faithfusion_studio.gaussians import Gaussians, concatenate
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.render.images import cubemap_image
from faithfusion_studio.render.learning import AdamKind, adam_step, corrected_eps, reached_rows
from faithfusion_studio.render.views import sky_image
from faithfusion_studio.scene import Scene, after_tone
from faithfusion_studio.sky import CubemapSky, pixel_directions

if TYPE_CHECKING:
    from faithfusion_studio.render.rasterization import RasterizationMeta


class Learner:
    """The parameters of a scene in training and one step on them.

    Args:
        scene: Start values. The background, a cube-map sky and the exposure table are learned.
        rates: Adam step sizes.
        weights: Loss weights.
        extent: Scene extent, m; scales the position rate.
        learn_sky: Whether sky and exposure are moved too.
        capacity: Rows to make room for.
        poses: How the poses of rigid nodes are refined, their Gaussians being learned too; None draws the nodes as
            they are.
        times: Recorded times that are learned from, s; each has a correction of its own.
    """

    def __init__(
        self,
        scene: Scene,
        rates: LearningRates,
        weights: LossWeights,
        *,
        extent: float,
        learn_sky: bool = True,
        capacity: int = 0,
        poses: PoseRates | None = None,
        times: Sequence[float] = (),
    ) -> None:
        self._scene = scene
        self.weights = weights
        self.extent = extent
        self.nodes: LearnedNodes | None = None
        if poses is not None and scene.nodes:
            count = len(scene.background)
            self.nodes = LearnedNodes(scene.nodes, count, times, poses, scene.device)
        table = scene.background if self.nodes is None else scene.all_gaussians
        self.parameters = GaussianParameters(
            table, rates, means_rate=rates.means * extent, capacity=capacity
        )
        self._sky: _LearnedSky | None = None
        self._exposures: torch.nn.Parameter | None = None
        if learn_sky and isinstance(scene.sky, CubemapSky):
            self._sky = _LearnedSky(scene.sky.texels, rates.sky)
        if learn_sky and scene.exposures is not None and scene.tone is None:
            self._exposures = torch.nn.Parameter(scene.exposures.detach().clone())
            self._exposure_optimizer = torch.optim.Adam(
                [self._exposures], lr=rates.exposure, eps=1e-15
            )

    @property
    def device(self) -> torch.device:
        """Where everything is drawn and learned; views are moved there."""
        return self._scene.device

    def snapshot(self) -> Scene:
        """A frozen copy of the scene as it is now; its stored evidence is dropped, being of older rows."""
        sky, exposures = self._scene.sky, self._scene.exposures
        if self._sky is not None:
            sky = CubemapSky(self._sky.value.clone())
        if self._exposures is not None:
            exposures = self._exposures.detach().clone()
        background, nodes = self.parameters.snapshot(), self._scene.nodes
        if self.nodes is not None:
            background, nodes = self.nodes.split(background)
        return replace(
            self._scene,
            background=background,
            nodes=nodes,
            sky=sky,
            exposures=exposures,
            fisher=None,
        )

    def step(
        self,
        view: TrainingView,
        sh_degree: int,
        *,
        absgrad: bool = True,
        held: Bool[Tensor, "N"] | None = None,
        frozen: Bool[Tensor, "N"] | None = None,
        depth_factor: float = 1.0,
    ) -> tuple[float, RasterizationMeta]:
        """One step; a loss that is not finite moves nothing, nor a row whose gradient is not.

        Args:
            view: What to learn from.
            sh_degree: Highest SH band to use.
            absgrad: Whether `meta.absgrad` is wanted, for densification.
            held: Rows whose position and orientation the view does not pull at.
            frozen: Rows that stay as they are, bit for bit.
            depth_factor: On the weight of known depths.

        Returns:
            The loss (NaN when the step was skipped) and the rasteriser's lists with gradients.
        """
        view = view.to(self.device)
        leaves, placements, placed = self.parameters.leaves(), [], None
        if self.nodes is not None:
            leaves, placements = self.nodes.place(leaves, view.camera.time)
        else:
            recorded = view.source == "recorded"
            nodes = (self._scene.as_recorded() if recorded else self._scene).nodes
            placed = self._placed(nodes, view.camera.time)
        rendered, alphas, meta = self._rasterize(
            leaves, placed, view.camera, sh_degree, absgrad=absgrad
        )
        texels = None if self._sky is None else self._sky.value.detach().requires_grad_()
        behind = self._behind(texels, view.camera, alphas)
        exposure = self._exposure(view)
        weights = replace(self.weights, depth=depth_factor * self.weights.depth)
        loss = view_loss(rendered, alphas, behind, exposure, view, weights)
        value = float(loss.detach())
        if not math.isfinite(value):
            return float("nan"), meta
        wanted = dict(leaves)
        if texels is not None:
            wanted["texels"] = texels
        if exposure is not None and exposure.requires_grad:
            wanted["exposure"] = exposure
        gradients = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))
        if self.nodes is not None:
            self.nodes.pull_back(placements, gradients)
        if held is not None:
            for kind in ("means", "quats"):
                gradients[kind] = gradients[kind].masked_fill(held[:, None], 0)
        shown = reached_rows(meta, gradients["opacities"], self.parameters.visible)
        if frozen is not None:
            self.parameters.visible[frozen] = 0
            shown = int(self.parameters.visible.sum())
        voxel = 0.01 * self.extent
        value += self.parameters.step(gradients, self.weights, voxel, num_visible=shown)
        if self.nodes is not None:
            self.nodes.confine(self.parameters)
        if self._sky is not None:
            self._sky.step(gradients["texels"])
        if "exposure" in gradients:
            self._move_exposure(view.exposure_index, gradients["exposure"])
        return value, meta

    def _rasterize(
        self,
        leaves: dict[str, Tensor],
        placed: Gaussians | None,
        camera: Camera,
        sh_degree: int,
        *,
        absgrad: bool,
    ) -> tuple[Float32[Tensor, "1 H W 4"], Float32[Tensor, "1 H W 1"], RasterizationMeta]:
        """Colour and accumulated depth, opacity, and the lists."""
        from faithfusion_studio.render.rasterization import rasterization

        given = list(leaves.values())
        if placed is not None:
            nodes = (placed.means, placed.quats, placed.scales, placed.opacities, placed.sh)
            given = [torch.cat(pair) for pair in zip(given, nodes, strict=True)]
        means, quats, scales, opacities, sh = given
        device = means.device
        return rasterization(
            means,
            quats,
            scales,
            opacities,
            sh,
            camera.viewmat.to(device, torch.float32)[None],
            camera.K.to(device, torch.float32)[None],
            camera.width,
            camera.height,
            near_plane=0.05,
            sh_degree=sh_degree,
            render_mode="RGB+D",
            absgrad=absgrad,
        )

    def _placed(self, nodes: Sequence[RigidNode], time: float) -> Gaussians | None:
        placed = (node.placed_at(time) for node in nodes)
        parts = [part for part in placed if part is not None]
        degree = self.parameters.sh_degree
        return concatenate(parts).with_sh_degree(degree) if parts else None

    def _behind(
        self, texels: Tensor | None, camera: Camera, alphas: Tensor
    ) -> Float[Tensor, "H W 3"]:
        """Sky radiance; a cube map may leave out pixels that the Gaussians hide."""
        device, sky = alphas.device, self._scene.sky
        if texels is None and isinstance(sky, CubemapSky):
            texels = sky.texels
        if texels is None:
            return sky_image(self._scene, camera, device)
        if device.type == "cpu":
            return cubemap_image(texels, camera, alphas.detach()[0, :, :, 0])
        return CubemapSky(texels).radiance(pixel_directions(camera, device))

    def _exposure(self, view: TrainingView) -> Float32[Tensor, "3 4"] | None:
        """The frame's correction after the scene's tone, to differentiate by where it is learned."""
        tone = self._scene.tone
        if view.exposure_index < 0:
            return tone
        if self._exposures is not None:
            return self._exposures[view.exposure_index].detach().clone().requires_grad_()
        given = self._scene.exposures
        return tone if given is None else after_tone(given[view.exposure_index], tone)

    @torch.no_grad()
    def _move_exposure(self, index: int, gradient: Float32[Tensor, "3 4"]) -> None:
        """One Adam step; then the mean correction of the frames seen so far is the identity again."""
        assert self._exposures is not None and self._exposure_optimizer is not None
        self._exposures.grad = torch.zeros_like(self._exposures)
        self._exposures.grad[index] = gradient
        self._exposure_optimizer.step()
        identity = torch.eye(3, 4, device=self._exposures.device)
        deviation = self._exposures - identity
        seen = (deviation != 0).flatten(1).any(1)
        self._exposures[seen] -= deviation[seen].sum(0) / seen.sum().clamp(min=1)


class _LearnedSky:
    """Texels of a cube map and their Adam state; colours stay in [0, 1]."""

    def __init__(self, texels: Float32[Tensor, "6 R R 3"], rate: float) -> None:
        self.value = texels.detach().clone().contiguous()
        rows = self.value.view(-1, 3)
        self._mean, self._square = torch.zeros_like(rows), torch.zeros_like(rows)
        self._rates = torch.full((3,), rate, device=rows.device)
        self._clocks = torch.zeros(len(rows), 2, dtype=torch.int32, device=rows.device)
        self._done = 0

    def step(self, gradient: Float32[Tensor, "6 R R 3"]) -> None:
        """Move every texel."""
        rows = self.value.view(-1, 3)
        kind = AdamKind(rows, self._mean, self._square, gradient.reshape(-1, 3), self._rates)
        # A texel that only leaks through opaque splats has gradients far below this eps and stays put.
        eps = corrected_eps(1e-4, self._done)
        self._done += 1
        adam_step([kind], self._clocks, self._done, None, eps=eps, limits=(0.0, 1.0))
