"""The methods: from what is known of a scene and a novel view to a map that is larger where less is certain.

Maps of per-Gaussian values are blended as colours are. Unless a method says otherwise, what it cannot see (the
remaining transmittance) counts as its most uncertain Gaussian in view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.bench.uncertainty.combination import combined
from faithfusion_studio.bench.uncertainty.knowledge import Knowledge, Sight
from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.information.eig import (
    EigForm,
    EigMap,
    _gain,
    _nats,
    eig_map,
    void_variance,
)
from faithfusion_studio.information.fisher import FisherAccumulator
from faithfusion_studio.information.joint import (
    depth_nats,
    depth_variance,
    image_derivatives,
    registration_gain,
)
from faithfusion_studio.information.prior import FisherPrior
from faithfusion_studio.metrics.uncertainty import ranks
from faithfusion_studio.render.chain import PARAMETERS, diagonal_of, unpack
from faithfusion_studio.render.views import rasterize_view, render_features
from faithfusion_studio.scene import Scene
from faithfusion_studio.transforms import eval_sh

SHARPNESS = 8
"""A recorded view counts by cos(angle)^this in the angle-aware view count."""
DROPPED, DROPOUTS = 0.1, 8
"""Share of the Gaussians that dropout leaves out, and how often."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a method says of one view."""

    rank: Float32[Tensor, "H W"]
    """Larger where the colour is less certain; any unit."""
    depth_rank: Float32[Tensor, "H W"] | None = None
    """The same of the depth, where the method has another map for it."""
    variance: Float32[Tensor, "H W"] | None = None
    """Predictive variance of each colour channel, where the method is a distribution."""


@dataclass(frozen=True)
class Method:
    """One row of the benchmark."""

    predict: Callable[[Knowledge, Sight], Prediction]
    needs: tuple[str, ...] = ()
    """Set-up products of `Knowledge`, whose cost is the method's set-up."""
    source: str = ""
    """Where the formula comes from, or what it is."""


def _eig(form: EigForm, flat: bool) -> Callable[[Knowledge, Sight], Prediction]:
    def predict(known: Knowledge, sight: Sight) -> Prediction:
        found = _eig_map(known, sight, form, flat)
        variance = None if found.gain is None else _noise(known) * (1 + found.gain)
        return Prediction(found.eig, variance=variance)

    return predict


def _eig_map(known: Knowledge, sight: Sight, form: EigForm, flat: bool = False) -> EigMap:
    fisher = known.flat_fisher if flat else known.fisher
    return eig_map(known.scene, sight.camera, fisher=fisher, form=form, view=sight.view)


def _noise(known: Knowledge) -> float:
    return known.fisher.noise_std**2


def splat(
    sight: Sight, values: Float32[Tensor, "N"], behind: float = 1.0
) -> Float32[Tensor, "H W"]:
    """Blended values; the remaining transmittance counts as that quantile of the values in the view."""
    blended, alpha, _ = render_features(sight.view, sight.camera, values[:, None])
    image = blended[..., 0]
    solid = (image / alpha.clamp(min=1e-3))[alpha > 0.5]
    known = solid if solid.numel() else values
    return image + (1 - alpha) * known.kthvalue(max(1, round(behind * known.numel()))).values


def deviation(known: Knowledge, sight: Sight) -> Prediction:
    """Standard deviation from the parameters and from training residuals, of which the sky counts as the median."""
    gain = _eig_map(known, sight, "block").gain
    residual = known.fisher.residual_variance
    assert gain is not None and residual is not None
    variance = _noise(known) * gain + splat(sight, residual, behind=0.5)
    return Prediction(variance.sqrt(), variance=variance)


def total_variance(known: Knowledge, sight: Sight) -> Prediction:
    """Block EIG for colour; for depth the law of total variance over the Gaussians that make up a pixel."""
    spread = depth_variance(sight.view, sight.camera, known.fisher, FisherPrior())
    return Prediction(_eig_map(known, sight, "block").eig, depth_rank=spread)


def joint(*, registration: bool = True, depth: bool = True, two: bool = False):
    """The map "joint", whole or without one of its terms; `two` gives depth its own marginal, Var z."""

    def predict(known: Knowledge, sight: Sight) -> Prediction:
        fisher, prior = known.fisher, FisherPrior()
        G = _gain(known.scene, sight.camera, sight.view, fisher, prior, False)
        if registration:
            G = G + registration_gain(sight.rgb, fisher.noise_std)
        void = void_variance(known.scene, sight.camera, sight.view, fisher, prior)
        nats, gain = _nats(G, (1 - sight.view.alpha).square() * void / _noise(known), "block")
        spread = depth_variance(sight.view, sight.camera, fisher, prior)
        nats = nats + depth_nats(spread) if depth else nats
        variance = _noise(known) * (1 + gain)
        return Prediction(nats, depth_rank=spread if two else None, variance=variance)

    return predict


def fisher_rf(known: Knowledge, sight: Sight) -> Prediction:
    """Sum over colour coefficients of V / (H + lambda), blended; for depth weighted with the Gaussian's depth."""
    novel = FisherAccumulator(known.scene, noise_std=known.fisher.noise_std)
    novel.add(sight.camera, None)
    prior = FisherPrior()
    at = torch.tensor(diagonal_of(PARAMETERS)[10:])
    flat = prior.precision(torch.ones(1, 3))[0, 10:]
    gain = (novel._blocks[:, at] / (known.flat_fisher.blocks[:, at] + flat)).sum(1)
    gain = gain + (novel._sh / (known.flat_fisher.sh + prior.sh_precision)).sum((1, 2))
    depth = _camera_depth(sight.view.world.gaussians, sight.camera).clamp(min=0)
    return Prediction(splat(sight, gain), depth_rank=splat(sight, gain * depth))


def _camera_depth(g: Gaussians, camera: Camera) -> Float32[Tensor, "N"]:
    viewmat = camera.viewmat.to(torch.float32)
    return g.means @ viewmat[2, :3] + viewmat[2, 3]


def freefix(gamma: float) -> Callable[[Knowledge, Sight], Prediction]:
    """exp(-gamma H), blended, with H the sum of a Gaussian's colour evidence in 8-bit units."""

    def predict(known: Knowledge, sight: Sight) -> Prediction:
        at = torch.tensor(diagonal_of(PARAMETERS)[10:])
        evidence = known.flat_fisher.blocks[:, at].sum(1) * known.fisher.noise_std**2
        return Prediction(splat(sight, torch.exp(-gamma * evidence)))

    return predict


def transparency(known: Knowledge, sight: Sight) -> Prediction:
    """1 - alpha."""
    return Prediction(1 - sight.view.alpha)


def ray_variance(known: Knowledge, sight: Sight) -> Prediction:
    """Variance of colour, and of depth, among the Gaussians that make up a pixel, by their weights."""
    g = sight.view.world.gaussians
    colors = eval_sh(g.sh_degree, g.sh, g.means - sight.camera.position.to(g.means)) + 0.5
    depth = _camera_depth(g, sight.camera)[:, None]
    features = torch.cat([colors, colors.square(), depth, depth.square()], 1)
    sums, alpha, _ = render_features(sight.view, sight.camera, features)
    mean = sums / alpha.clamp(min=1e-3)[..., None]
    color = (mean[..., 3:6] - mean[..., :3].square()).clamp(min=0).mean(-1)
    return Prediction(color, depth_rank=(mean[..., 7] - mean[..., 6].square()).clamp(min=0))


def view_count(known: Knowledge, sight: Sight) -> Prediction:
    """Recorded views that blended a Gaussian: 1 / (1 + count), blended."""
    return Prediction(splat(sight, 1 / (1 + known.seen.sum(0).float())))


def angle_view_count(known: Knowledge, sight: Sight) -> Prediction:
    """The same, each recorded view by how close its direction to the Gaussian is to the novel one."""
    means = sight.view.world.gaussians.means
    here = torch.nn.functional.normalize(means - sight.camera.position.to(means), dim=1)
    count = torch.zeros(len(means))
    for seen, camera in zip(known.seen, known.cameras, strict=True):
        there = torch.nn.functional.normalize(means - camera.position.to(means), dim=1)
        count += seen * (here * there).sum(1).clamp(min=0) ** SHARPNESS
    return Prediction(splat(sight, 1 / (1 + count)))


def nearest_camera(known: Knowledge, sight: Sight) -> Prediction:
    """Per pixel at its depth: the angle, rad, plus |log distance ratio|, to the recorded camera nearest in both."""
    points = _points(sight)
    offset = points - sight.camera.position.to(points)
    distance = offset.norm(dim=-1).clamp(min=1e-3)
    best = torch.full(distance.shape, math.pi)
    for camera in known.cameras:
        local = points @ camera.viewmat[:3, :3].to(points).T + camera.viewmat[:3, 3].to(points)
        z = local[..., 2].clamp(min=1e-3)
        u = camera.K[0, 0].float() * local[..., 0] / z + camera.K[0, 2].float()
        v = camera.K[1, 1].float() * local[..., 1] / z + camera.K[1, 2].float()
        inside = (local[..., 2] > 0.05) & (u > 0) & (u < camera.width) & (v > 0)
        inside &= v < camera.height
        there = points - camera.position.to(points)
        far = there.norm(dim=-1).clamp(min=1e-3)
        angle = torch.acos(((there * offset).sum(-1) / (far * distance)).clamp(-1, 1))
        value = angle + (far / distance).log().abs()
        best = torch.where(inside, torch.minimum(best, value), best)
    return Prediction(best)


def _points(sight: Sight) -> Float32[Tensor, "H W 3"]:
    """World point of every pixel at its rendered depth; 200 m where nothing is."""
    camera = sight.camera
    depth = torch.where(
        sight.view.alpha > 0.1, sight.view.depth, torch.full_like(sight.view.depth, 200.0)
    )
    y, x = torch.meshgrid(
        torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij"
    )
    K = camera.K.float()
    local = torch.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], torch.ones_like(x)], -1)
    pose = camera.camtoworld.float()
    return (local * depth[..., None]) @ pose[:3, :3].T + pose[:3, 3]


def pup(known: Knowledge, sight: Sight) -> Prediction:
    """Minus the log determinant of a Gaussian's 6x6 evidence of mean and scale, blended."""
    blocks = unpack(known.flat_fisher.blocks, PARAMETERS)
    chosen = torch.tensor([0, 1, 2, 6, 7, 8])
    six = blocks[:, chosen][:, :, chosen].double()
    scales = known.scene.all_gaussians.scales.double()
    unit = torch.cat([torch.ones_like(scales), 1 / scales.clamp(min=1e-6)], 1)  # d log s = ds / s
    six = six * unit[:, :, None] * unit[:, None, :] * known.fisher.noise_std**2
    six = six + 1e-6 * torch.eye(6, dtype=torch.float64)
    value = -torch.linalg.slogdet(six).logabsdet.float()
    return Prediction(splat(sight, value - value.min()))


def residual(known: Knowledge, sight: Sight) -> Prediction:
    """Squared training residual of the Gaussians, least squares, blended; the sky counts as the median."""
    variance = splat(sight, known.residuals, behind=0.5).clamp(min=1e-8)
    return Prediction(variance, variance=variance)


def ensemble(known: Knowledge, sight: Sight) -> Prediction:
    """Variance among independent trainings, of colour and of depth."""
    views = [rasterize_view(member, sight.camera) for member in known.members]
    colors = torch.stack([view.rgb.clamp(0, 1) for view in views])
    depths = torch.stack([view.depth for view in views])
    spread = colors.var(0).mean(-1)
    return Prediction(spread, depth_rank=depths.var(0), variance=spread + _noise(known))


def dropout(known: Knowledge, sight: Sight) -> Prediction:
    """Variance of colour and depth when a tenth of the Gaussians is left out at random, again and again."""
    generator = torch.Generator().manual_seed(known.seed)
    colors, depths = [], []
    for _ in range(DROPOUTS):
        kept = torch.rand(len(known.scene.background), generator=generator) >= DROPPED
        view = rasterize_view(_with_rows(known.scene, kept), sight.camera)
        colors.append(view.rgb.clamp(0, 1))
        depths.append(view.depth)
    spread = torch.stack(colors).var(0).mean(-1)
    depth_rank = torch.stack(depths).var(0)
    return Prediction(spread, depth_rank=depth_rank, variance=spread + _noise(known))


def _with_rows(scene: Scene, kept: Tensor) -> Scene:
    return replace(scene, background=scene.background.select(kept), fisher=None)


def image_gradient(known: Knowledge, sight: Sight) -> Prediction:
    """Magnitude of the gradient of the rendered image: a small shift of texture is a large colour error."""
    x, y = image_derivatives(sight.rgb)
    return Prediction((x.square() + y.square()).sum(-1).sqrt())


def random(known: Knowledge, sight: Sight) -> Prediction:
    """Nothing but noise."""
    generator = torch.Generator().manual_seed(known.seed)
    return Prediction(torch.rand(sight.view.alpha.shape, generator=generator))


def rank_average(known: Knowledge, sight: Sight) -> Prediction:
    """Mean of the ranks of block EIG and of the image gradient."""
    maps = (_eig_map(known, sight, "block").eig, image_gradient(known, sight).rank)
    return Prediction(sum(ranks(m.flatten()).view(m.shape).float() for m in maps))  # type: ignore[arg-type]


def logistic(known: Knowledge, sight: Sight) -> Prediction:
    """Log-odds of an error from block EIG and image gradient, weights from other scenes."""
    return Prediction(
        combined(_eig_map(known, sight, "block").eig, image_gradient(known, sight).rank)
    )


FORMS: tuple[EigForm, ...] = ("block", "trace", "diagonal")
ORACLE = "oracle"
"""The error itself; only what every method is measured against."""
METHODS: Mapping[str, Method] = {
    **{form: Method(_eig(form, False), ("fisher",), "eig.py, sigma^2(p)") for form in FORMS},
    **{
        f"{form}_one_sigma": Method(_eig(form, True), ("flat_fisher",), "eig.py, one sigma")
        for form in FORMS
    },
    "released": Method(_eig("released", False), ("fisher",), "published code of FaithFusion"),
    "deviation": Method(deviation, ("fisher",), "predicted standard deviation"),
    "total_variance": Method(total_variance, ("fisher",), "block; depth by total variance"),
    "joint": Method(joint(), ("fisher",), "joint.py: colour with registration, and depth"),
    "joint_two": Method(joint(two=True), ("fisher",), "joint; depth by its own marginal Var z"),
    "joint_no_depth": Method(joint(depth=False), ("fisher",), "ablation: registration alone"),
    "joint_no_shift": Method(joint(registration=False), ("fisher",), "ablation: depth alone"),
    "fisher_rf": Method(fisher_rf, ("flat_fisher",), "FisherRF (Jiang et al. 2024), colour and SH"),
    **{
        f"freefix_{gamma:g}": Method(freefix(gamma), ("flat_fisher",), "FreeFix certainty")
        for gamma in (0.001, 0.01, 0.1)
    },
    "transparency": Method(transparency, (), "1 - alpha"),
    "ray_variance": Method(ray_variance, (), "spread along the ray"),
    "view_count": Method(view_count, ("seen",), "number of views"),
    "angle_view_count": Method(angle_view_count, ("seen",), "number of views by angle"),
    "nearest_camera": Method(nearest_camera, (), "angle and distance"),
    "pup": Method(pup, ("flat_fisher",), "PUP-3DGS (Hanson et al. 2025), 6x6 log det"),
    "residual": Method(residual, ("residuals",), "training residual, least squares"),
    "ensemble": Method(ensemble, ("members",), "other seeds and frames"),
    "dropout": Method(dropout, (), "Gaussians left out"),
    "image_gradient": Method(image_gradient, (), "gradient of the render"),
    "rank_average": Method(rank_average, ("fisher",), "block with image_gradient"),
    "logistic": Method(logistic, ("fisher",), "the same two, weights from other scenes"),
    "random": Method(random, (), "chance"),
}
