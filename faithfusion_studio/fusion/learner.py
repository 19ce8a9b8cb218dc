"""One optimisation step on one view: render, compare, back-propagate, move.

Shared by reconstruction and distillation; knows neither where a view came from nor what happens next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.losses import (
    TrainingView,
    depth_loss,
    ground_loss,
    image_loss,
    plane_loss,
    shape_loss,
    sky_loss,
)
from faithfusion_studio.fusion.parameters import GaussianParameters
from faithfusion_studio.fusion.schedule import LearningRates, LossWeights
from faithfusion_studio.gaussians import concatenate
from faithfusion_studio.render.images import cubemap_image
from faithfusion_studio.render.views import apply_exposure, sky_image
from faithfusion_studio.scene import CubemapSky, Scene

if TYPE_CHECKING:
    from faithfusion_studio.render.rasterization import RasterizationMeta


class Learner:
    """The parameters of a scene in training and one step on them.

    Args:
        scene: Start values. The background, a cube-map sky and the exposure table are learned; rigid nodes
            are drawn as they are.
        rates: Adam step sizes.
        weights: Loss weights.
        extent: Scene extent, m; scales the position rate.
        learn_sky: Whether sky and exposure are moved too.
    """

    def __init__(
        self,
        scene: Scene,
        rates: LearningRates,
        weights: LossWeights,
        *,
        extent: float,
        learn_sky: bool = True,
    ) -> None:
        self._scene = scene
        self.weights = weights
        self.extent = extent
        self.parameters = GaussianParameters(
            scene.background, rates, means_rate=rates.means * extent
        )
        self._sky: torch.nn.Parameter | None = None
        self._exposures: torch.nn.Parameter | None = None
        groups = []
        if learn_sky and isinstance(scene.sky, CubemapSky):
            self._sky = torch.nn.Parameter(scene.sky.texels.detach().clone())
            # A texel that only leaks through opaque splats has gradients far below this eps and stays put.
            groups.append({"params": [self._sky], "lr": rates.sky, "eps": 1e-4})
        if learn_sky and scene.exposures is not None:
            self._exposures = torch.nn.Parameter(scene.exposures.detach().clone())
            groups.append({"params": [self._exposures], "lr": rates.exposure})
        self._others = torch.optim.Adam(groups, eps=1e-15, fused=True) if groups else None

    def snapshot(self) -> Scene:
        """A frozen copy of the scene as it is now; its stored evidence is dropped, being of older rows."""
        sky, exposures = self._scene.sky, self._scene.exposures
        if self._sky is not None:
            sky = CubemapSky(self._sky.detach().clone())
        if self._exposures is not None:
            exposures = self._exposures.detach().clone()
        return replace(
            self._scene,
            background=self.parameters.snapshot(),
            sky=sky,
            exposures=exposures,
            fisher=None,
        )

    def render(
        self, camera: Camera, sh_degree: int, *, absgrad: bool = False
    ) -> tuple[
        Float32[Tensor, "H W 3"], Float32[Tensor, "H W"], Float32[Tensor, "H W"], RasterizationMeta
    ]:
        """Differentiable colour (sky included, not clamped), expected depth, opacity, and the lists."""
        from faithfusion_studio.render.rasterization import rasterization

        p = self.parameters
        means, quats = p["means"], p["quats"]
        scales, opacities = p["log_scales"].exp(), torch.sigmoid(p["logit_opacities"])
        bands = (sh_degree + 1) ** 2 - 1
        colors = torch.cat([p["sh0"], p["shN"][:, :bands]], dim=1)
        placed = self._placed_nodes(camera.time, sh_degree)
        if placed is not None:
            means, quats = torch.cat([means, placed.means]), torch.cat([quats, placed.quats])
            scales = torch.cat([scales, placed.scales])
            opacities = torch.cat([opacities, placed.opacities])
            colors = torch.cat([colors, placed.sh])
        rendered, alphas, meta = rasterization(
            means,
            quats,
            scales,
            opacities,
            colors,
            camera.viewmat.to(torch.float32)[None],
            camera.K.to(torch.float32)[None],
            camera.width,
            camera.height,
            near_plane=0.05,
            sh_degree=sh_degree,
            render_mode="RGB+ED",
            absgrad=absgrad,
        )
        alpha = alphas[0, :, :, 0]
        rgb = rendered[0, :, :, :3] + (1 - alpha)[..., None] * self._sky_behind(camera, alpha)
        return rgb, rendered[0, :, :, 3], alpha, meta

    def _placed_nodes(self, time: float, sh_degree: int):
        poses = [(node, node.pose_at(time)) for node in self._scene.nodes]
        parts = [node.gaussians.transformed(pose) for node, pose in poses if pose is not None]
        return concatenate(parts).with_sh_degree(sh_degree) if parts else None

    def _sky_behind(self, camera: Camera, alpha: Tensor) -> Float[Tensor, "H W 3"]:
        """Sky radiance where the pixel is not opaque; zero elsewhere."""
        if self._sky is not None:
            return cubemap_image(self._sky, camera, alpha)
        return sky_image(self._scene, camera)

    def step(self, view: TrainingView, sh_degree: int) -> tuple[float, RasterizationMeta]:
        """One step; a non-finite loss or gradient moves nothing.

        Returns:
            The loss (NaN when the step was skipped) and the rasteriser's lists with gradients.
        """
        rgb, depth, alpha, meta = self.render(view.camera, sh_degree, absgrad=True)
        exposures = self._scene.exposures if self._exposures is None else self._exposures
        if view.exposure_index >= 0 and exposures is not None:
            rgb = apply_exposure(rgb, exposures[view.exposure_index])
        loss = image_loss(rgb, view.image, view.weight, self.weights)
        if view.depth is not None and self.weights.depth > 0:
            loss = loss + self.weights.depth * depth_loss(depth, alpha, view.depth)
        if view.ground is not None and self.weights.ground > 0:
            loss = loss + self.weights.ground * ground_loss(depth, alpha, view.ground)
        if self.weights.plane > 0 and view.source == "recorded":
            loss = loss + self.weights.plane * plane_loss(depth, alpha, view.image)
        if view.sky_share is not None and self.weights.sky > 0:
            loss = loss + self.weights.sky * sky_loss(alpha, view.sky_share)
        loss = loss + shape_loss(
            self.parameters["log_scales"],
            self.parameters["logit_opacities"],
            self.weights,
            0.01 * self.extent,
        )
        loss.backward()
        gradients = [self.parameters[k].grad for k in ("means", "log_scales", "sh0")]
        if not all(torch.isfinite(g.sum()) for g in [loss.detach(), *gradients] if g is not None):
            self._drop_gradients()
            return float("nan"), meta
        self.parameters.step()
        if self._others is not None:
            self._others.step()
            self._others.zero_grad(set_to_none=True)
            self._keep_in_range()
        return float(loss.detach()), meta

    @torch.no_grad()
    def _keep_in_range(self) -> None:
        """Sky colours in [0, 1]; the mean correction of the frames seen so far at identity."""
        if self._sky is not None:
            self._sky.clamp_(0, 1)
        if self._exposures is not None:
            deviation = self._exposures - torch.eye(3, 4)
            seen = (deviation != 0).flatten(1).any(1)
            self._exposures[seen] -= deviation[seen].sum(0) / seen.sum().clamp(min=1)

    def _drop_gradients(self) -> None:
        self.parameters.optimizer.zero_grad(set_to_none=True)
        if self._others is not None:
            self._others.zero_grad(set_to_none=True)
