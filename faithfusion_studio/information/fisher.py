"""Sum the Fisher information of the recorded views; one more view is one more addition.

Symbols as in `prior`. H_i = sum over views and pixels of j_ip^T j_ip / sigma^2(p). The noise
sigma^2(p) is a map: the local mean of the squared residual plus (sigma_0 / 2)^2, so that a pixel
which the model does not explain in its own recorded view is weak evidence. sigma_0 is the robust
residual (median absolute deviation) of a few spread recorded views, measured before anything is
summed, because the floor of sigma^2(p) needs it from the first view on.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import TopologyChange
from faithfusion_studio.information.calibration import fit_calibration, void_nats
from faithfusion_studio.information.eig import eig_map
from faithfusion_studio.information.prior import FisherPrior, chain_view, require_fisher
from faithfusion_studio.render.chain import PACKED_BLOCK
from faithfusion_studio.render.one_view import add_view
from faithfusion_studio.render.views import (
    RasterizedView,
    apply_exposure,
    gather_pixels,
    rasterize_view,
)
from faithfusion_studio.rig import by_camera, spread_over_rig
from faithfusion_studio.scene import PosedImage, Scene, StoredFisher
from faithfusion_studio.sky import CubemapSky, cubemap_lookup, pixel_directions

MAX_WIDTH = 640
"""Recorded views are read at this width or their own, whichever is smaller, pixels."""
WINDOW = 1.5 / 320
"""Standard deviation of the local mean of residuals, as a share of the image width.

Chosen on the procedural streets 110, 111 and 112 (320x180): AUSE-L1 of block at held-out views / 1 / 3 / 6 m is
.262/.253/.225/.227 with 6, .244/.236/.213/.219 with 3, .231/.223/.206/.215 with 1.5, .227/.219/.205/.216 with 0.75
pixels; below that a single noisy pixel decides about its own weight.
"""
LEAST_NOISE = 1 / 255
"""sigma_0 is not taken below one step of an 8-bit image."""
UNKNOWN_NOISE = 0.05
"""sigma_0 where there is no recorded image to measure it on."""
MAX_WEIGHT = 4.0
"""A pixel is never more than this many times the evidence of an ordinary one."""
CALIBRATION_VIEWS = 8
NOISE_VIEWS = 6
SKY_RESOLUTION = 64


class FisherAccumulator:
    """Collects evidence view by view.

    Args:
        scene: What the evidence is about.
        prior: Used for the scene's calibration only.
        noise_std: sigma_0, colour unit; None measures it on the scene's recording.
    """

    def __init__(
        self, scene: Scene, prior: FisherPrior | None = None, *, noise_std: float | None = None
    ) -> None:
        self.scene = scene
        self.prior = prior or FisherPrior()
        self.noise_std = measure_noise(scene) if noise_std is None else noise_std
        n, device = scene.num_gaussians, scene.background.means.device
        bands = scene.all_gaussians.shN.shape[1]
        self._blocks = torch.zeros(n, PACKED_BLOCK, device=device)
        self._sh = torch.zeros(n, bands, 3, device=device)
        self._residual = torch.zeros(n, 2, device=device)  # sums of w r^2 and of w
        self._sky = torch.zeros(6 * sky_resolution(scene) ** 2, device=device)
        self._cameras: list[Camera] = []

    def add(
        self,
        camera: Camera,
        image: Float32[Tensor, "H W 3"] | None,
        *,
        exposure: Float32[Tensor, "3 4"] | None = None,
        weight: float | Float32[Tensor, "H W"] = 1.0,
    ) -> None:
        """Add one view.

        Args:
            camera: Where from, with the size of the image.
            image: What was recorded; None trusts the model, sigma^2(p) = sigma_0^2.
            exposure: Colour correction of the recorded frame against the scene.
            weight: Share of the evidence to count, [0, 1] or per pixel; 0 where something moves.
        """
        with torch.no_grad():
            view = rasterize_view(self.scene, camera)
            weights = torch.as_tensor(weight).to(view.alpha).expand_as(view.alpha)
            precision = weights / self.noise_std**2
            if image is not None:
                rendered = apply_exposure(view.rgb.clamp(0, 1), exposure)
                squared = (rendered - image.to(rendered)).square().mean(-1)
                variance = local_mean(squared, weights) + (self.noise_std / 2) ** 2
                precision = precision * (self.noise_std**2 / variance).clamp(max=MAX_WEIGHT)
            self._add(camera, view, precision)
        if image is not None:
            self._residual += _splatted(self.scene, camera, view, squared * weights, weights)
        self._cameras.append(camera)

    def _add(self, camera: Camera, view: RasterizedView, precision: Tensor) -> None:
        chain = chain_view(self.scene, camera, view)
        add_view(chain, view.meta, precision, self._blocks, self._sh, view.background)
        open_ = 1 - view.alpha > 1e-3
        directions = pixel_directions(camera, view.alpha.device)[open_]
        index, share = cubemap_lookup(directions, sky_resolution(self.scene))
        seen = ((1 - view.alpha).square() * precision)[open_]
        self._sky.index_add_(0, index.reshape(-1), (share * seen[:, None]).reshape(-1))

    def finish(self) -> StoredFisher:
        """The evidence of all views added so far, with noise, residuals and the scene's calibration."""
        noise2 = self.noise_std**2
        explained = self._residual[:, 1] > 1e-3
        mean = self._residual[:, 0] / self._residual[:, 1].clamp(min=1e-3)
        resolution = sky_resolution(self.scene)
        fisher = StoredFisher(
            blocks=self._blocks.clone(),
            sh=self._sh.clone(),
            noise_std=self.noise_std,
            num_views=len(self._cameras),
            sky=self._sky.reshape(6, resolution, resolution).clone(),
            residual_variance=torch.where(explained, mean, torch.full_like(mean, noise2)),
        )
        step = max(1, len(self._cameras) // CALIBRATION_VIEWS)
        order = by_camera([camera.name for camera in self._cameras])
        maps = [
            eig_map(self.scene, self._cameras[i], fisher=fisher, prior=self.prior).eig.cpu()
            for i in order[step // 2 :: step]
        ]
        calibration = fit_calibration(maps, void_nats(self.prior.void, self.noise_std))
        return replace(fisher, calibration=calibration.knots)


def accumulate_fisher(
    scene: Scene, *, max_views: int | None = None, prior: FisherPrior | None = None
) -> Generator[tuple[int, int], None, StoredFisher]:
    """Evidence of a scene's recording, one view per step.

    Args:
        scene: With its recording; hidden objects count, since the recorded frames show them.
        max_views: Use at most this many frames, spread evenly; None uses all.
        prior: Used for the calibration.

    Yields:
        Views done and views in all; the generator returns the evidence.
    """
    scene = scene.as_recorded()
    accumulator = FisherAccumulator(scene, prior)
    indices = _spread(scene, max_views)
    for done, index in enumerate(indices, start=1):
        camera, image, exposure, weight = recorded_view(scene, index)
        accumulator.add(camera, image, exposure=exposure, weight=weight)
        yield done, len(indices)
    return accumulator.finish()


def recorded_fisher(
    scene: Scene, *, max_views: int | None = None, prior: FisherPrior | None = None
) -> StoredFisher:
    """`accumulate_fisher` in one go."""
    steps = accumulate_fisher(scene, max_views=max_views, prior=prior)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def add_views(
    fisher: StoredFisher,
    scene: Scene,
    cameras: Sequence[Camera],
    weights: Sequence[Float32[Tensor, "H W"]],
) -> StoredFisher:
    """Evidence with more views in it, such as accepted repairs; EIG falls where they look.

    Args:
        fisher: Evidence of the same scene so far; its calibration is kept.
        scene: The scene the views belong to.
        cameras: The added views.
        weights: How much of an ordinary recorded pixel each of their pixels counts, [0, 1].

    Raises:
        StaleFisherError: The evidence is about other Gaussians.
    """
    fisher = require_fisher(scene, fisher)
    sum_ = FisherAccumulator(scene, noise_std=fisher.noise_std)
    for camera, weight in zip(cameras, weights, strict=True):
        sum_.add(camera, None, weight=weight)
    sky = sum_._sky.reshape(6, *[sky_resolution(scene)] * 2)
    if fisher.sky is not None:
        sky = sky + fisher.sky if fisher.sky.shape == sky.shape else fisher.sky
    return replace(
        fisher,
        blocks=fisher.blocks + sum_._blocks,
        sh=fisher.sh + sum_._sh,
        num_views=fisher.num_views + len(cameras),
        sky=sky,
    )


def follow_topology(fisher: StoredFisher, change: TopologyChange) -> StoredFisher:
    """Evidence after rows grew or were pruned: kept rows carry theirs along, new ones start unseen.

    Args:
        fisher: Evidence of the rows before.
        change: Old row of each new row, over all Gaussians of the scene.
    """
    source = change.source.to(fisher.blocks.device)
    fresh = change.is_new.to(fisher.blocks.device)
    residual = fisher.residual_variance
    return replace(
        fisher,
        blocks=fisher.blocks[source].masked_fill(fresh[:, None], 0),
        sh=fisher.sh[source].masked_fill(fresh[:, None, None], 0),
        residual_variance=None if residual is None else residual[source],
    )


def recorded_view(scene: Scene, index: int) -> tuple[Camera, Tensor, Tensor | None, Tensor]:
    """Camera, image, exposure and weight of a recorded frame, at the size evidence is read at."""
    assert scene.capture is not None
    frame: PosedImage = scene.capture.frames[index]
    camera = frame.camera.scaled(min(1.0, MAX_WIDTH / frame.camera.width))
    size = (camera.width, camera.height)
    exposure = None if scene.exposures is None else scene.exposures[index]
    moving = None if scene.nodes else frame.mask(size)
    weight = torch.ones(size[::-1]) if moving is None else (~moving).to(torch.float32)
    return camera, frame.image(size), exposure, weight


def measure_noise(scene: Scene) -> float:
    """sigma_0: the robust standard deviation of residuals over a few spread recorded views, colour unit."""
    parts = []
    for index in _spread(scene, NOISE_VIEWS):
        camera, image, exposure, weight = recorded_view(scene, index)
        with torch.no_grad():
            rendered = rasterize_view(scene, camera).rgb.clamp(0, 1)
        residual = apply_exposure(rendered, exposure) - image.to(rendered)
        parts.append(residual[weight.to(residual.device) > 0].reshape(-1))
    if not parts:
        return UNKNOWN_NOISE
    residuals = torch.cat(parts)
    spread = (residuals - residuals.median()).abs().median()
    return max(LEAST_NOISE, 1.4826 * float(spread))


def local_mean(
    values: Float32[Tensor, "H W"], weights: Float32[Tensor, "H W"]
) -> Float32[Tensor, "H W"]:
    """Gaussian-weighted mean over neighbours of non-zero weight; the global mean where there are none."""
    std = WINDOW * values.shape[1]
    reach = max(1, round(3 * std))
    at = torch.arange(-reach, reach + 1, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-0.5 * (at / max(std, 0.3)) ** 2)
    kernel = kernel / kernel.sum()
    pair = torch.stack([values * weights, weights])[:, None]
    pair = torch.nn.functional.conv2d(pair, kernel[None, None, :, None], padding=(reach, 0))
    pair = torch.nn.functional.conv2d(pair, kernel[None, None, None], padding=(0, reach))
    total, share = pair[0, 0], pair[1, 0]
    overall = (values * weights).sum() / weights.sum().clamp(min=1e-6)
    return torch.where(share > 1e-4, total / share.clamp(min=1e-4), overall)


def sky_resolution(scene: Scene) -> int:
    """Texels per side of the sky's evidence."""
    if isinstance(scene.sky, CubemapSky):
        return min(SKY_RESOLUTION, scene.sky.texels.shape[1])
    return SKY_RESOLUTION // 2


def _spread(scene: Scene, count: int | None) -> list[int]:
    """Recorded frames, spread over the drive and the cameras of the rig."""
    if scene.capture is None:
        return []
    return spread_over_rig([frame.camera.name for frame in scene.capture.frames], count)


def _splatted(
    scene: Scene, camera: Camera, view: RasterizedView, squared: Tensor, weights: Tensor
) -> Tensor:
    """Sums over pixels of w_ip r^2(p) and w_ip, by rows of the scene."""
    sums = gather_pixels(view, camera, torch.stack([squared, weights.to(squared)], -1))
    out = torch.zeros(scene.num_gaussians, 2, device=sums.device)
    rows = view.world.rows
    if rows is None:
        return sums
    return out.index_add_(0, rows.to(sums.device), sums)
