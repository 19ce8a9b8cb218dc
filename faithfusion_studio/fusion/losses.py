"""Losses of one training view; the weight of each pixel was decided when the view was made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn.functional import conv2d

from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.schedule import LossWeights, Weighting

if TYPE_CHECKING:
    from faithfusion_studio.render.images import ViewTerms


class FusionError(StudioError):
    """A distillation that cannot start."""


@dataclass(frozen=True, eq=False)
class SparseDepth:
    """Depths known at some pixels of one view."""

    pixels: Int[Tensor, "M"]
    """Flat index into [H W]."""
    depths: Float[Tensor, "M"]
    """m along z."""


@dataclass(frozen=True, eq=False)
class TrainingView:
    """An image to learn from, and how much each of its pixels is believed."""

    camera: Camera
    image: Float[Tensor, "H W 3"]
    weight: Float[Tensor, "H W"] | None = None
    """0..1 per pixel; None means 1 everywhere."""
    exposure_index: int = -1
    """Row of the exposure table, -1 for a view rendered without correction."""
    depth: SparseDepth | None = None
    """Recorded points seen in the view."""
    ground: Float[Tensor, "H W"] | None = None
    """Depth of the road plane along each pixel, m along z; 0 off the road."""
    sky_share: Float[Tensor, "H W"] | None = None
    """0..1, how much each pixel looks like sky."""
    source: str = "recorded"
    """"recorded" or "repaired"."""

    def to(self, device: torch.device) -> TrainingView:
        """The same view with its pixels where they are learned from; returns self where they are."""
        if self.image.device == device:
            return self
        names = ("image", "weight", "ground", "sky_share")
        given = {name: getattr(self, name) for name in names}
        depth = self.depth
        if depth is not None:
            depth = SparseDepth(depth.pixels.to(device), depth.depths.to(device))
        moved = {name: t if t is None else t.to(device) for name, t in given.items()}
        return replace(self, depth=depth, **moved)


def eig_weight(
    calibrated_eig: Float32[Tensor, "H W"],
    confidence: Float32[Tensor, "H W"],
    weighting: Weighting = "eig",
    *,
    eig: Float32[Tensor, "H W"] | None = None,
    eig_cap: float = 2.0,
) -> Float32[Tensor, "H W"]:
    """How much a repaired pixel is believed, in [0, 1].

    Args:
        calibrated_eig: [H, W] in [0, 1]; what there is to learn at the pixel.
        confidence: [H, W] in [0, 1]; how sure the repairer is.
        weighting: "eig" is proportional to the calibrated EIG (the paper's lambda_EIG); "released" are the
            four steps 0.1/0.3/0.7/1 of the released code, placed at 1/4, 1/2 and 3/4 of the calibrated
            range because its own edges are scene-dependent; "logdet" is proportional to the EIG in nats up
            to a cap; "uniform" believes every pixel alike.
        eig: [H, W] nats; only "logdet" needs it.
        eig_cap: Nats from which on a pixel counts fully in "logdet".
    """
    if weighting == "uniform":
        trust = torch.ones_like(calibrated_eig)
    elif weighting == "released":
        edges = torch.tensor([0.25, 0.5, 0.75], device=calibrated_eig.device)
        levels = torch.tensor([0.1, 0.3, 0.7, 1.0], device=calibrated_eig.device)
        trust = levels[torch.bucketize(calibrated_eig, edges, right=True)]
    elif weighting == "logdet":
        if eig is None:
            raise FusionError('the weighting "logdet" needs EIG in nats, and none was given.')
        trust = (eig / eig_cap).clamp(0, 1)
    else:
        trust = calibrated_eig.clamp(0, 1)
    return trust * confidence.clamp(0, 1)


def _window(channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.arange(11, dtype=like.dtype, device=like.device) - 5
    g = torch.exp(-(x**2) / (2 * 1.5**2))
    g = (g / g.sum()).expand(channels, 1, 11)
    return g[:, :, None, :].contiguous(), g[:, :, :, None].contiguous()


def ssim_map(a: Float[Tensor, "H W 3"], b: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W"]:
    """SSIM per pixel, 11x11 Gaussian window of sigma 1.5, zero padding, data range 1.

    Source: Wang et al. 2004, with the window of the 3DGS training code.
    """
    x, y = a.permute(2, 0, 1), b.permute(2, 0, 1)
    stacked = torch.cat([x, y, x * x, y * y, x * y])[None]
    row, column = _window(15, a)
    blurred = conv2d(
        conv2d(stacked, row, padding=(0, 5), groups=15), column, padding=(5, 0), groups=15
    )
    mx, my, xx, yy, xy = blurred[0].split(3)
    vx, vy, vxy = xx - mx * mx, yy - my * my, xy - mx * my
    c1, c2 = 0.01**2, 0.03**2
    value = ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return value.mean(0)


def image_loss(
    rendered: Float[Tensor, "H W 3"],
    image: Float[Tensor, "H W 3"],
    weight: Float[Tensor, "H W"] | None,
    weights: LossWeights,
) -> Float[Tensor, ""]:
    """(1 - s) L1 + s (1 - SSIM), each pixel weighted; a weight of zero gives exactly zero gradient."""
    if rendered.device.type == "cpu" and rendered.dtype == torch.float32:
        from faithfusion_studio.render.images import weighted_image_loss

        return weighted_image_loss(rendered, image, weight, weights.ssim)
    if weight is not None:
        # Pixels that do not count must not reach their neighbours through the SSIM window either.
        rendered = torch.where(weight[..., None] > 0, rendered, image)
    error = (rendered - image).abs().mean(-1)
    dissimilarity = 1 - ssim_map(rendered, image)
    total = (1 - weights.ssim) * error + weights.ssim * dissimilarity
    return total.mean() if weight is None else (total * weight).mean()


def depth_loss(
    depth: Float[Tensor, "H W"], alpha: Float[Tensor, "H W"], known: SparseDepth
) -> Float[Tensor, ""]:
    """Mean relative depth error at the known pixels; larger errors than a fifth are taken for occlusions.

    Args:
        depth: Expected depth, m along z.
        alpha: Opacity; pixels below one half say nothing about depth.
        known: The recorded points of the view.
    """
    found = depth.reshape(-1)[known.pixels]
    error = (found - known.depths).abs() / known.depths
    counts = (alpha.detach().reshape(-1)[known.pixels] > 0.5) & (error.detach() < 0.2)
    return (error * counts).sum() / counts.sum().clamp(min=1)


ROAD_BAND = 0.06
"""Relative depth within which a pixel is taken to show the road; a kerb is twice as far off."""


def ground_loss(
    depth: Float[Tensor, "H W"], alpha: Float[Tensor, "H W"], ground: Float[Tensor, "H W"]
) -> Float[Tensor, ""]:
    """Mean over the image of the relative distance to the road plane, for pixels that lie close to it.

    Args:
        depth: Expected depth, m along z.
        alpha: Opacity; pixels below one half say nothing about depth.
        ground: Depth of the plane; 0 off the road.
    """
    error = (depth - ground).abs() / ground.clamp(min=1e-3)
    counts = (ground > 0) & (alpha.detach() > 0.5) & (error.detach() < ROAD_BAND)
    return (error * counts).mean()


def plane_loss(
    depth: Float[Tensor, "H W"], alpha: Float[Tensor, "H W"], image: Float[Tensor, "H W 3"]
) -> Float[Tensor, ""]:
    """Mean relative curvature of inverse depth along rows and columns, less where the image has an edge.

    The inverse depth of a plane is linear in the image, whatever its slant, so planes cost nothing; the
    absolute value leaves depth edges alone.

    Args:
        depth: Expected depth, m along z.
        alpha: Opacity; pixels below one half say nothing about depth.
        image: What was recorded, for its edges.
    """
    solid = alpha.detach() > 0.5
    inverse = 1 / torch.where(solid, depth, 1.0).clamp(min=0.1)
    total = depth.new_zeros(())
    for along in (0, 1):
        size = depth.shape[along]
        if size < 3:
            continue
        before, middle, after = (inverse.narrow(along, i, size - 2) for i in range(3))
        curvature = (before + after - 2 * middle).abs() / middle.detach()
        colors = [image.narrow(along, i, size - 2) for i in range(3)]
        edge = (colors[0] - colors[1]).abs().mean(-1) + (colors[2] - colors[1]).abs().mean(-1)
        counts = solid.narrow(along, 0, size - 2) & solid.narrow(along, 2, size - 2)
        total = total + (curvature.clamp(max=0.05) * torch.exp(-EDGE * edge) * counts).mean()
    return total


EDGE = 10.0
"""Per unit of colour difference, how fast an image edge frees the depth from being planar."""


def sky_loss(alpha: Float[Tensor, "H W"], sky_share: Float[Tensor, "H W"]) -> Float[Tensor, ""]:
    """Mean opacity before the sky plus mean transparency of everything else.

    Without it a learned sky explains roads and walls at infinity, where no parallax contradicts it on a
    straight drive, and splats paint clouds a few metres away.

    Args:
        alpha: Opacity of the Gaussians.
        sky_share: 0..1, how much a pixel looks like sky.
    """
    return (alpha * sky_share + (1 - alpha) * (1 - sky_share)).mean()


def shape_loss(
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, "N"],
    weights: LossWeights,
    voxel: float,
) -> Float[Tensor, ""]:
    """Regularisers on the Gaussians of one view: opacity, size in units of `voxel` (m), aspect ratio.

    Means over the Gaussians that the view sees: over many views each Gaussian is pulled as hard as by a mean
    over all of them at every step. On the CPU the optimiser applies them itself.
    """
    thinnest, longest = scales.aminmax(dim=-1)
    middle = scales.sum(-1) - thinnest - longest
    too_long = torch.relu(longest / middle.clamp(min=1e-9) - weights.max_aspect)
    return (
        weights.opacity * opacities.mean()
        + weights.scale * (scales / voxel).clamp(max=100).mean()
        + weights.flat * (thinnest / voxel).clamp(max=100).mean()
        + weights.shape * too_long.clamp(max=100).mean()
    )


def view_loss(
    rendered: Float[Tensor, "1 H W 4"],
    alphas: Float[Tensor, "1 H W 1"],
    behind: Float[Tensor, "H W 3"],
    exposure: Float[Tensor, "3 4"] | None,
    view: TrainingView,
    weights: LossWeights,
) -> Float[Tensor, ""]:
    """All terms that compare one rendered view with what is known of it.

    Args:
        rendered: Colour without what is behind, and accumulated depth ("RGB+D").
        alphas: Opacity.
        behind: Radiance behind the Gaussians.
        exposure: Affine colour correction of the recorded frame; None is the identity.
        view: What is known.
        weights: Of the terms.
    """
    if rendered.device.type == "cpu" and rendered.dtype == torch.float32:
        from faithfusion_studio.render.images import fused_view_loss

        return fused_view_loss(rendered, alphas, behind, exposure, _terms(view, weights))
    alpha = alphas[0, :, :, 0]
    depth = rendered[0, :, :, 3] / alpha.clamp(min=1e-10)
    rgb = rendered[0, :, :, :3] + (1 - alpha)[..., None] * behind
    if exposure is not None:
        rgb = rgb @ exposure[:, :3].T + exposure[:, 3]
    loss = image_loss(rgb, view.image, view.weight, weights)
    if view.depth is not None and weights.depth > 0:
        loss = loss + weights.depth * depth_loss(depth, alpha, view.depth)
    if view.ground is not None and weights.ground > 0:
        loss = loss + weights.ground * ground_loss(depth, alpha, view.ground)
    if weights.plane > 0 and view.source == "recorded":
        loss = loss + weights.plane * plane_loss(depth, alpha, view.image)
    if view.sky_share is not None and weights.sky > 0:
        loss = loss + weights.sky * sky_loss(alpha, view.sky_share)
    return loss


def _terms(view: TrainingView, weights: LossWeights) -> ViewTerms:
    from faithfusion_studio.render.images import ViewTerms

    known = view.depth if weights.depth > 0 else None
    plane = weights.plane if view.source == "recorded" else 0.0
    return ViewTerms(
        image=view.image,
        weight=view.weight,
        pixels=None if known is None else known.pixels,
        depths=None if known is None else known.depths,
        ground=view.ground if weights.ground > 0 else None,
        sky_share=view.sky_share if weights.sky > 0 else None,
        weights=(weights.ssim, weights.depth, weights.ground, plane, weights.sky),
    )
