"""Why one pixel is uncertain: the Gaussians behind its EIG, and which kind of parameter leaves it open.

Symbols as in `eig`. With J_i [3, 9] = d colour(p) / d screen record and A_i [9, 13] = d record / d theta_i,
tr G(p) = sum_i tr(J_i A_i (H_i + Lambda)^-1 A_i^T J_i^T) / sigma_0^2 + 3 T^2 void / sigma_0^2 is a sum over
Gaussians and the void, so that each has its share of it. Parameters of one Gaussian are correlated; their
shares are those of the diagonal form, whose trace is a sum over parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import StudioError
from faithfusion_studio.information.eig import (
    _factors,
    half_log_det,
    scene_calibration,
    void_variance,
)
from faithfusion_studio.information.prior import FisherPrior, chain_view, require_fisher
from faithfusion_studio.render.chain import PARAMETERS, chain_matrices, pack
from faithfusion_studio.render.rasterization import RasterizationMeta
from faithfusion_studio.render.views import RasterizedView, rasterize_view
from faithfusion_studio.scene import Scene, StoredFisher
from faithfusion_studio.transforms import eval_sh

GROUPS: Mapping[str, slice] = {
    "position": slice(0, 3),
    "shape": slice(3, 9),
    "opacity": slice(9, 10),
    "colour": slice(10, 13),
}
"""Kinds of parameters, as columns of theta; higher SH bands count as colour."""
VOID = "void"
LEAST_ALPHA, MOST_ALPHA, LEAST_TRANSMITTANCE = 1 / 255, 0.999, 1e-4
"""What the rasterisers skip, clamp at, and stop before."""


class PixelError(StudioError):
    """A pixel outside of the picture."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the EIG of one pixel is made of."""

    nats: float
    """EIG in form "block"."""
    calibrated: float
    """The scene's monotone map of it, [0, 1]."""
    groups: Mapping[str, float]
    """Share of tr G by kind of parameter, and of the void behind everything; they add up to 1."""
    rows: Int[Tensor, "K"]
    """Gaussians of the scene that make up the pixel, the one that leaves most open first."""
    shares: Float32[Tensor, "K"]
    """Their shares of tr G; what is missing to 1 is the void's."""

    def causes(self, share: float = 0.5) -> Int[Tensor, "M"]:
        """The fewest Gaussians that together have this share of what all Gaussians leave open."""
        total = self.shares.sum()
        if len(self.rows) == 0 or float(total) <= 0:
            return self.rows[:0]
        enough = int((self.shares.cumsum(0) < share * total).sum()) + 1
        return self.rows[: min(enough, len(self.rows))]

    def words(self) -> str:
        """One sentence: how many splats, and which kinds of parameter, most first."""
        ranked = sorted(self.groups.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{name} {share:.0%}" for name, share in ranked if share >= 0.005)
        few = len(self.causes())
        if self.groups[VOID] >= 0.5:
            return f"mostly because nothing is known behind it: {parts}"
        splats = "1 splat" if few == 1 else f"{few} splats"
        return f"half of it from {splats} of {len(self.rows)}: {parts}"


def explain_pixel(
    scene: Scene,
    camera: Camera,
    x: int,
    y: int,
    *,
    fisher: StoredFisher | None = None,
    prior: FisherPrior | None = None,
    view: RasterizedView | None = None,
) -> Explanation:
    """Split the EIG of one pixel among Gaussians and kinds of parameter.

    Args:
        scene: The Gaussians, at `camera.time`.
        camera: The view.
        x: Column, from 0.
        y: Row, from 0.
        fisher: Evidence of the recorded views; None uses the scene's.
        prior: What is believed of unseen parameters.
        view: The same view already rasterised, to save that work.

    Raises:
        PixelError: The pixel is outside of the view.
        MissingFisherError: The scene carries no evidence.
        StaleFisherError: The evidence is about other Gaussians.

    Source: the matrices of `eig_map`, at one pixel.
    """
    if not (0 <= x < camera.width and 0 <= y < camera.height):
        raise PixelError(
            f"found pixel {x},{y}; expected a column in 0..{camera.width - 1} and a row in "
            f"0..{camera.height - 1}."
        )
    fisher = require_fisher(scene, fisher)
    prior = prior or FisherPrior()
    with torch.no_grad():
        view = view or rasterize_view(scene, camera)
        part = _blended(view, camera, x, y)
        chain = replace(chain_view(scene, camera, view), visible=part.index)
        A, basis, lit = chain_matrices(chain)
        J, at = part.jacobians @ A, chain.evidence_rows
        G = _gaussian_gains(J, _factors(scene, fisher, prior, False)[at])
        more = _sh_variance(fisher, prior, at, basis, lit) * part.weights[:, None].square()
        G = (G + torch.diag_embed(more)) / fisher.noise_std**2
        void = float(void_variance(scene, camera, view, fisher, prior)[y, x])
        void *= float(1 - view.alpha[y, x]) ** 2 / fisher.noise_std**2
        whole = G.sum(0) + void * torch.eye(3, device=G.device)
        nats = half_log_det(pack(whole))
        total = max(float(whole.trace()), 1e-30)
        each = G.diagonal(dim1=1, dim2=2).sum(1) / total
        variances = _factors(scene, fisher, prior, True)[at, :PARAMETERS]
        parameters = (J.square().sum(1) * variances).sum(0)
        order = each.argsort(descending=True)
        rows = at[order].cpu()
    return Explanation(
        nats=float(nats),
        calibrated=float(scene_calibration(fisher, prior).apply(nats)),
        groups=_groups(parameters, float(more.sum()), min(3 * void / total, 1.0)),
        rows=rows.long(),
        shares=each[order].cpu().float(),
    )


def _gaussian_gains(J: Tensor, factors: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(PARAMETERS, PARAMETERS, device=J.device)
    W = J.new_zeros(len(J), PARAMETERS, PARAMETERS)
    W[:, rows, columns] = factors.to(J)
    X = W @ J.transpose(1, 2)
    return X.transpose(1, 2) @ X


def _sh_variance(
    fisher: StoredFisher, prior: FisherPrior, at: Tensor, basis: Tensor, lit: Tensor
) -> Tensor:
    bands = min(fisher.sh.shape[1], basis.shape[1] - 1)
    if bands == 0:
        return torch.zeros_like(lit)
    variance = 1 / (fisher.sh[at, :bands] + prior.sh_precision)
    return (basis[:, 1 : bands + 1, None].square() * variance).sum(1) * lit


def _groups(parameters: Tensor, sh: float, void: float) -> dict[str, float]:
    found = {name: float(parameters[columns].sum()) for name, columns in GROUPS.items()}
    found["colour"] += sh
    total = sum(found.values())
    if total <= 0:
        return {**dict.fromkeys(found, 0.0), VOID: 1.0}
    return {**{name: value / total * (1 - void) for name, value in found.items()}, VOID: void}


@dataclass(frozen=True, eq=False)
class _Blended:
    """The Gaussians of one pixel, front to back."""

    index: Int[Tensor, "V"]
    """Rows of the rasterised world."""
    weights: Float32[Tensor, "V"]
    jacobians: Float32[Tensor, "V 3 9"]
    """d colour / d screen record."""


def pixel_weights(
    view: RasterizedView, x: int, y: int
) -> tuple[Int[Tensor, "V"], Float32[Tensor, "V"]]:
    """The Gaussians of `view.world` that make up a pixel, front to back, and their blending weights."""
    index, _, _, weights = _blending(view, x, y)
    return index, weights


def _blending(view: RasterizedView, x: int, y: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the rasteriser blended at a pixel, by its own rules: rows, alphas, h (see `_candidates`), weights."""
    index, alphas, h = _candidates(view.meta, view.world.gaussians.opacities, x, y)
    through = torch.cumprod(1 - alphas, 0)
    kept = through > LEAST_TRANSMITTANCE
    index, alphas, h = index[kept], alphas[kept], h[kept]
    weights = alphas * torch.cat([through.new_ones(1), through[kept][:-1]])[: len(alphas)]
    return index, alphas, h, weights


def _blended(view: RasterizedView, camera: Camera, x: int, y: int) -> _Blended:
    """What the rasteriser blended at a pixel and its derivatives."""
    g = view.world.gaussians
    index, alphas, h, weights = _blending(view, x, y)
    offset = g.means[index] - camera.position.to(g.means)
    colors = (eval_sh(g.sh_degree, g.sh[index], offset) + 0.5).clamp(min=0)
    gamma, behind = torch.zeros_like(colors), view.background[y, x].to(colors)
    for i in range(len(index) - 1, -1, -1):
        gamma[i] = colors[i] - behind
        behind = behind + alphas[i] * gamma[i]
    hx, hy = h.unbind(1)
    k = torch.stack([hx, hy, hx * hx / 2, hx * hy, hy * hy / 2, 1 - g.opacities[index]], 1)
    k = k * (alphas < MOST_ALPHA)[:, None]
    J = torch.zeros(len(index), 3, 9, device=colors.device)
    J[:, :, :6] = weights[:, None, None] * gamma[:, :, None] * k[:, None]
    J[:, :, 6:] = torch.diag_embed(weights[:, None].expand(-1, 3))
    return _Blended(index, weights, J)


def _candidates(
    meta: RasterizationMeta, opacities: Tensor, x: int, y: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussians that reach the pixel, by depth; their alpha; and h = conic (p - mean2d)."""
    place = torch.tensor([x + 0.5, y + 0.5], device=opacities.device)
    near = torch.nonzero((meta.radii[0] > 0).all(1))[:, 0]
    d = place - meta.means2d[0, near]
    xx, xy, yy = meta.conics[0, near].unbind(1)
    h = torch.stack([xx * d[:, 0] + xy * d[:, 1], xy * d[:, 0] + yy * d[:, 1]], 1)
    power = 0.5 * (d * h).sum(1)
    alphas = (opacities[near] * torch.exp(-power)).clamp(max=MOST_ALPHA)
    reached = (alphas >= LEAST_ALPHA) & (power >= 0)
    near, alphas, h = near[reached], alphas[reached], h[reached]
    order = torch.sort(meta.depths[0, near], stable=True).indices
    return near[order], alphas[order], h[order]
