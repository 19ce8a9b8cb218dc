"""The EIG formula of the published FaithFusion code, replayed for comparison; it is not in nats.

One number per Gaussian: squared gradients of all pixels and all activated parameters are simply
added (V for the view itself, colour channels summed before squaring; H for the recorded views), and
V / (H + 1e-6) is splatted, divided by the list position of the last blended Gaussian and by 1000.
Differences kept small and known: H comes from our evidence, which squares each channel, weights
pixels by 1 / sigma^2(p) instead of 1 / n^2, and is multiplied by sigma_0^2 here; tile lists are
culled by exact ellipses; pixels of little opacity are told by `EigMap.coverage`, not by a value of 100.

Source: FaithFusion `models/video_utils.py`, `models/trainers/base.py`; FisherRF's squared gradients.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.information.prior import chain_view
from faithfusion_studio.render.chain import (
    PACKED_BLOCK,
    PARAMETERS,
    add_fisher,
    diagonal_of,
    last_positions,
)
from faithfusion_studio.render.rasterization import accumulate_information
from faithfusion_studio.render.views import RasterizedView, render_features
from faithfusion_studio.scene import Scene, StoredFisher
from faithfusion_studio.transforms import SH_C0, eval_sh

RELEASED_DEGREE = 1
DAMPING, DIVISOR, LEAST_DEPTH = 1e-6, 1000.0, 0.1


def released_gain(
    scene: Scene, camera: Camera, view: RasterizedView, fisher: StoredFisher
) -> Float32[Tensor, "H W"]:
    """`gain` of the published code, ln(1 + raw) + 1e-9.

    Args:
        scene: The scene.
        camera: The novel view.
        view: The same view, rasterised.
        fisher: Evidence of the recorded views.
    """
    g = view.world.gaussians
    rows = slice(None) if view.world.rows is None else view.world.rows
    bands = (RELEASED_DEGREE + 1) ** 2 - 1
    colours = _diagonal(fisher.blocks)[:, 10:].sum(1) + fisher.sh[:, :bands].sum((1, 2))
    seen = (fisher.noise_std**2 * colours)[rows]
    seen = seen + fisher.noise_std**2 * _activated(_diagonal(fisher.blocks)[rows], g)
    novel = _novel_squares(scene, camera, view)
    gain = (novel / (seen + DAMPING))[:, None]
    splat, _, _ = render_features(view, camera, gain)
    raw = splat[:, :, 0] * (view.depth * view.alpha > LEAST_DEPTH)
    raw = raw / last_positions(view.meta).clamp(min=1e-6) / DIVISOR
    return torch.log1p(raw) + 1e-9


def _novel_squares(scene: Scene, camera: Camera, view: RasterizedView) -> Tensor:
    """Sum over pixels and parameters of squared gradients of one view, [N]."""
    g = view.world.gaussians
    degree = min(RELEASED_DEGREE, g.sh_degree)
    coefficients = g.sh[:, : (degree + 1) ** 2]
    colors = eval_sh(degree, coefficients, g.means - camera.position.to(g.means)) + 0.5
    lit = (colors >= 0).to(g.means).sum(1)
    # The sum of the channels is rendered as one channel, so that squares are taken after summing.
    total = colors.clamp(min=0).sum(1, keepdim=True)
    zeros = torch.zeros_like(total)
    _, _, meta = render_features(view, camera, torch.cat([total, zeros, zeros], 1))
    S = accumulate_information(meta, torch.ones_like(view.alpha)[None])[0]
    summed = coefficients.sum(-1)
    summed[:, 0] += 1 / SH_C0  # keeps the summed colour positive; only its slope matters
    sh = torch.zeros(*summed.shape, 3, device=summed.device)
    sh[..., 0] = summed
    chain = replace(
        chain_view(scene, camera, view),
        sh0=sh[:, :1],
        shN=sh[:, 1:],
        sh_degree=degree,
        rows=None,
        nodes=None,
    )
    blocks = torch.zeros(len(g), PACKED_BLOCK, device=summed.device)
    evidence = torch.zeros(len(g), summed.shape[1] - 1, 3, device=summed.device)
    add_fisher(chain, S, blocks, evidence)
    diagonal = _diagonal(blocks)
    return _activated(diagonal, g) + lit * (diagonal[:, 10] + evidence[..., 0].sum(1))


def _activated(diagonal: Float[Tensor, "N 13"], g: Gaussians) -> Tensor:
    """Squares of geometry and opacity gradients, from our parameters to the activated ones."""
    opacities = g.opacities
    scales = (diagonal[:, 6:9] / g.scales.square()).sum(1)
    logit = diagonal[:, 9] / (opacities * (1 - opacities)).square().clamp(min=1e-12)
    return diagonal[:, :3].sum(1) + 4 * diagonal[:, 3:6].sum(1) + scales + logit


def _diagonal(blocks: Tensor) -> Tensor:
    return blocks[:, torch.tensor(diagonal_of(PARAMETERS), device=blocks.device)]
