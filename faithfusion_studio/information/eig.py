"""Pixel-wise expected information gain of any view, in one of five named forms.

Symbols: j_ip [3, 13] = d colour(p) / d theta_i; H_i, Lambda, sigma_0 as in `prior`;
G(p) = (1 / sigma_0^2) sum_i j_ip (H_i + Lambda)^-1 j_ip^T [3, 3]; T(p) = remaining transmittance.
Behind the Gaussians lies the sky or nothing: its colour is a parameter too, with the variance
1 / (evidence of the direction + 1 / void^2), which adds T^2 variance / sigma_0^2 to G's diagonal.

"block": 1/2 log det(I + G), nats, exact for a posterior that is block-diagonal over Gaussians.
"trace": 1/2 tr G, the paper's bound, never below "block".
"diagonal": 1/2 tr G with only the diagonal of H + Lambda, the paper's Algorithm 1.
"joint": "block" of colour and depth together, with the picture's registration unknown; see `joint`.
"released": the formula of the published code, for comparison only; not in nats.
H is evidence (large = certain); EIG is novelty (large = uncertain).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.information.calibration import (
    Calibration,
    fit_calibration,
    void_nats,
)
from faithfusion_studio.information.prior import FisherPrior, chain_view, require_fisher
from faithfusion_studio.render.chain import factor_blocks, parameter_variances
from faithfusion_studio.render.images import nats_image
from faithfusion_studio.render.one_view import posterior_gain
from faithfusion_studio.render.rasterization import rasterization
from faithfusion_studio.render.views import RasterizedView, ViewOptions, rasterize_view
from faithfusion_studio.scene import Scene, StoredFisher
from faithfusion_studio.sky import cubemap_lookup, pixel_directions

EigForm = Literal["block", "trace", "diagonal", "joint", "released"]
COVERED = 0.1
"""Opacity from which a pixel counts as covered by Gaussians."""
JOINT_VIEWS, JOINT_WIDTH = 6, 320
"""Recorded views the map of joint nats to [0, 1] is fitted on, and their width at most, pixels."""
KNOWN_SKY = 0.5
"""A sky direction is known where its standard deviation is below this share of the void's."""


@dataclass(frozen=True, eq=False)
class EigMap:
    """How much each pixel of a view would tell about the scene: novelty, not evidence."""

    eig: Float32[Tensor, "H W"]
    """Nats, >= 0 (no unit in form "released")."""
    calibrated: Float32[Tensor, "H W"]
    """The scene's monotone map of it: 0 = the middle recorded pixel, 1 = never seen."""
    coverage: Bool[Tensor, "H W"]
    """True where Gaussians, or a sky that was observed in this direction, explain the pixel."""
    form: EigForm
    gain: Float32[Tensor, "H W"] | None = None
    """tr G / 3: predictive variance of a colour channel from the parameters, over sigma_0^2."""


def eig_map(
    scene: Scene,
    camera: Camera,
    *,
    fisher: StoredFisher | None = None,
    prior: FisherPrior | None = None,
    form: EigForm = "block",
    view: RasterizedView | None = None,
) -> EigMap:
    """Expected information gain of every pixel of a view.

    Args:
        scene: The Gaussians, at `camera.time`.
        camera: The novel view.
        fisher: Evidence of the recorded views; None uses the scene's.
        prior: What is believed of unseen parameters.
        form: See the module.
        view: The same view already rasterised, to save that work.

    Raises:
        MissingFisherError: The scene carries no evidence.
        StaleFisherError: The evidence is about other Gaussians.

    Source: FaithFusion section 3.2 for the trace bound; matrix determinant lemma for the block form.
    """
    fisher = require_fisher(scene, fisher)
    prior = prior or FisherPrior()
    with torch.no_grad():
        view = view or rasterize_view(scene, camera)
        if form == "released":
            from faithfusion_studio.information.released import released_gain

            void = void_variance(scene, camera, view, fisher, prior)
            covered = _covered(scene, view, void, prior)
            gain = released_gain(scene, camera, view, fisher)
            calibrated = torch.where(covered, gain.clamp(max=1), torch.ones_like(gain))
            return EigMap(gain, calibrated, covered, form)
        if form == "joint":
            return _joint(scene, camera, view, fisher, prior)
        G = _gain(scene, camera, view, fisher, prior, form == "diagonal")
        if G.device.type == "cpu":
            eig, calibrated, mean, void = nats_image(
                G,
                view.alpha,
                camera,
                log_det=form == "block",
                sky_evidence=fisher.sky,
                void_variance=prior.void**2,
                precision=1 / fisher.noise_std**2,
                knots=scene_calibration(fisher, prior).knots,
            )
        else:
            void = void_variance(scene, camera, view, fisher, prior)
            eig, mean = _nats(G, (1 - view.alpha).square() * void / fisher.noise_std**2, form)
            calibrated = scene_calibration(fisher, prior).apply(eig)
        return EigMap(eig, calibrated, _covered(scene, view, void, prior), form, mean)


def _joint(
    scene: Scene, camera: Camera, view: RasterizedView, fisher: StoredFisher, prior: FisherPrior
) -> EigMap:
    eig, mean, void = _joint_nats(scene, camera, view, fisher, prior)
    calibrated = _joint_calibration(scene, fisher, prior).apply(eig)
    return EigMap(eig, calibrated, _covered(scene, view, void, prior), "joint", mean)


def _joint_nats(
    scene: Scene, camera: Camera, view: RasterizedView, fisher: StoredFisher, prior: FisherPrior
) -> tuple[Tensor, Tensor, Tensor]:
    """Nats, mean gain of a channel, and the variance of what lies behind."""
    from faithfusion_studio.information.joint import depth_nats, depth_variance, registration_gain

    G = _gain(scene, camera, view, fisher, prior, trace=False)
    G = G + registration_gain(view.rgb.clamp(0, 1), fisher.noise_std)
    void = void_variance(scene, camera, view, fisher, prior)
    eig, mean = _nats(G, (1 - view.alpha).square() * void / fisher.noise_std**2, "block")
    return eig + depth_nats(depth_variance(view, camera, fisher, prior)), mean, void


def _joint_calibration(scene: Scene, fisher: StoredFisher, prior: FisherPrior) -> Calibration:
    """Of joint nats, fitted on a few recorded views when it is first asked for; the scene's own without any."""
    from faithfusion_studio.information.joint import KNOTS

    if scene.capture is None or not scene.capture.trajectory.cameras:
        return scene_calibration(fisher, prior)
    knots = KNOTS.get(fisher)
    if knots is None:
        cameras = scene.capture.trajectory.cameras
        chosen = cameras[:: max(1, len(cameras) // JOINT_VIEWS)]
        maps = []
        for camera in (c.scaled(min(1.0, JOINT_WIDTH / c.width)) for c in chosen):
            view = rasterize_view(scene, camera)
            maps.append(_joint_nats(scene, camera, view, fisher, prior)[0].cpu())
        knots = fit_calibration(maps, void_nats(prior.void, fisher.noise_std)).knots
        KNOTS[fisher] = knots
    return Calibration(knots)


def _covered(scene: Scene, view: RasterizedView, void: Tensor, prior: FisherPrior) -> Tensor:
    covered = view.alpha > COVERED
    return covered if scene.sky is None else covered | (void.sqrt() < KNOWN_SKY * prior.void)


def _nats(G: Tensor, unseen: Tensor, form: EigForm) -> tuple[Tensor, Tensor]:
    """EIG and tr G / 3 of what the Gaussians leave open and what lies unseen behind them."""
    if form == "diagonal":
        trace = G + 3 * unseen
        return 0.5 * trace, trace / 3
    G = G.clone()
    for channel in (0, 3, 5):
        G[..., channel] += unseen
    trace = G[..., 0] + G[..., 3] + G[..., 5]
    return half_log_det(G) if form == "block" else 0.5 * trace, trace / 3


def half_log_det(G: Float32[Tensor, "*B 6"]) -> Float32[Tensor, "*B"]:
    """1/2 log det(I + G) of packed 3x3 covariances, without cancellation where G is small."""
    rr, rg, rb, gg, gb, bb = G.unbind(-1)
    m_rg, m_rb, m_gb = rr * gg - rg * rg, rr * bb - rb * rb, gg * bb - gb * gb
    det = rr * m_gb - rg * (rg * bb - gb * rb) + rb * (rg * gb - gg * rb)
    minors = m_rg.clamp(min=0) + m_rb.clamp(min=0) + m_gb.clamp(min=0)
    return 0.5 * torch.log1p((rr + gg + bb).clamp(min=0) + minors + det.clamp(min=0))


def scene_calibration(fisher: StoredFisher, prior: FisherPrior) -> Calibration:
    """The stored map of the scene; a straight line up to the void where none was fitted."""
    if fisher.calibration is not None:
        return Calibration(fisher.calibration)
    return Calibration(torch.tensor([[0.0, 0.0], [void_nats(prior.void, fisher.noise_std), 1.0]]))


def void_variance(
    scene: Scene, camera: Camera, view: RasterizedView, fisher: StoredFisher, prior: FisherPrior
) -> Float32[Tensor, "H W"]:
    """Posterior variance of the colour behind everything, per pixel, colour unit squared."""
    out = torch.full_like(view.alpha, prior.void**2)
    if fisher.sky is None:
        return out
    open_ = 1 - view.alpha > 1e-3
    directions = pixel_directions(camera, view.alpha.device)[open_]
    index, weights = cubemap_lookup(directions, fisher.sky.shape[1])
    evidence = (fisher.sky.reshape(-1).to(out)[index] * weights).sum(-1)
    out[open_] = 1 / (evidence + 1 / prior.void**2)
    return out


def predicted_std(
    view: RasterizedView, camera: Camera, fisher: StoredFisher, eig: EigMap
) -> Float32[Tensor, "H W"]:
    """Predicted error of a colour channel: parameter variance plus what the recorded views never explained.

    Args:
        view: The rasterised view `eig` was computed from.
        camera: Its camera.
        fisher: The evidence `eig` was computed from.
        eig: A map in one of the forms in nats.
    """
    variance = torch.zeros_like(eig.eig)
    if eig.gain is not None:
        variance = eig.gain * fisher.noise_std**2
    if fisher.residual_variance is None:
        return variance.add(fisher.noise_std**2).sqrt()
    g, rows = view.world.gaussians, view.world.rows
    residual = fisher.residual_variance if rows is None else fisher.residual_variance[rows]
    device = g.means.device
    with torch.no_grad():
        splat, alphas, _ = rasterization(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            residual.to(device)[:, None],
            camera.viewmat.to(device, torch.float32)[None],
            camera.K.to(device, torch.float32)[None],
            camera.width,
            camera.height,
            near_plane=ViewOptions().near_plane,
        )
    behind = (1 - alphas[0, :, :, 0]) * fisher.noise_std**2
    return (variance + splat[0, :, :, 0] + behind).sqrt()


def _gain(
    scene: Scene,
    camera: Camera,
    view: RasterizedView,
    fisher: StoredFisher,
    prior: FisherPrior,
    trace: bool,
) -> Tensor:
    return posterior_gain(
        chain_view(scene, camera, view),
        view.meta,
        _factors(scene, fisher, prior, trace),
        scale=1 / fisher.noise_std**2,
        sh_evidence=fisher.sh if fisher.sh.shape[1] else None,
        sh_prior=prior.sh_precision,
        background=view.background,
        trace=trace,
    )


# What is made of H + Lambda does not depend on the view; a viewer asks for many views of one scene.
_FACTORS: weakref.WeakKeyDictionary[StoredFisher, dict[bool, tuple[tuple, Tensor]]] = (
    weakref.WeakKeyDictionary()
)


def _factors(scene: Scene, fisher: StoredFisher, prior: FisherPrior, trace: bool) -> Tensor:
    sizes = (scene.background.log_scales, *(node.gaussians.log_scales for node in scene.nodes))
    key = (prior, *map(id, sizes))
    kept = _FACTORS.setdefault(fisher, {})
    if trace in kept and kept[trace][0] == key:
        return kept[trace][1]
    precision = prior.precision(torch.exp(torch.cat(sizes)))
    factors = (parameter_variances if trace else factor_blocks)(fisher.blocks, precision)
    kept[trace] = (key, factors)
    return factors
