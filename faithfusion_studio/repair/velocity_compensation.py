"""Rendering-aware velocity compensation: a flow's step bent towards what the recordings show.

Symbols: x_t is the state of a bridge at time t, v its velocity, x_0 = x_t - t v the clean clip it leads to,
L the disagreement of x_0 with the evidence, alpha the share of the velocity that may be bent.

L has two parts, each (1 - SSIM) + L1: x_0 against the fused warps, weighted by how many recorded frames
agree; and x_0 carried back into recorded views through their own depth, against the recorded images. A
recorded view whose loss is above `Compensation.drop` counts for nothing: it shows something else.

Since dL/dv = -t dL/dx_0, going down is v' = v + alpha t dL/dx_0, where the gradient is scaled to the root
mean square of v. ReconViaGen prints the opposite sign; with x_0 = x_t - t v only this one descends.

Source: ReconViaGen, rendering-aware velocity compensation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from faithfusion_studio.cameras import Camera
from faithfusion_studio.repair.base import FrameRepair, Reference, RepairBatch
from faithfusion_studio.repair.warping import Projected, reproject, sample

DEPTH_TOLERANCE = 0.05
"""Relative difference of depths up to which both views see the same surface."""


@dataclass(frozen=True)
class Compensation:
    """How much a step is bent, and when."""

    alpha: float = 0.1
    """Of the velocity's root mean square; 0 switches it off."""
    latest: float = 0.5
    """Only steps that start at t up to this are bent."""
    drop: float = 0.8
    """Loss above which a recorded view has no influence."""
    views: int = 2
    """Recorded views per frame."""


class RecordedView(NamedTuple):
    """Where the pixels of a recorded view are in a novel frame."""

    frame: int
    image: Float[Tensor, "3 h w"]
    points: Projected
    camera: Camera
    visible: Float[Tensor, "h w"]
    """1 where the novel frame sees the same surface."""


class Evidence(NamedTuple):
    """What a clip is held against."""

    fused: Float[Tensor, "T 3 H W"]
    trust: Float[Tensor, "T H W"]
    """0..1, how far the fused warp is believed."""
    views: tuple[RecordedView, ...]


def gather_evidence(
    batch: RepairBatch, frames: Sequence[FrameRepair], first: int, config: Compensation
) -> Evidence:
    """The evidence about some neighbouring frames of a batch.

    Args:
        batch: With its references.
        frames: What the reprojection made of frames first, first + 1, ..., with features.
        first: Index of the first of them.
        config: Number of recorded views.
    """
    fused, trust, views = [], [], []
    for t, frame in enumerate(frames):
        features = frame.features
        assert features is not None
        fused.append(features.fused.permute(2, 0, 1))
        trust.append((features.weight / 0.3).clamp(0, 1) * frame.confidence)
        camera = batch.cameras[first + t]
        nearest = sorted(
            batch.references, key=lambda r: float((r.camera.position - camera.position).norm())
        )
        views += [
            _recorded_view(t, camera, features.depth, reference)
            for reference in nearest[: config.views]
        ]
    return Evidence(torch.stack(fused), torch.stack(trust), tuple(views))


def _recorded_view(
    t: int, camera: Camera, depth: Float32[Tensor, "H W"], reference: Reference
) -> RecordedView:
    """A recorded view with the pixels that frame t sees too."""
    own = reference.depth
    points = reproject(reference.camera, camera, own.clamp(min=1e-2))
    found = 1 / sample(1 / depth.clamp(min=1e-2)[None], points, camera)[0]
    same = (found / points.z.clamp(min=1e-3) - 1).abs() < DEPTH_TOLERANCE
    visible = (own > 0) & points.inside & same
    if reference.dynamic_mask is not None and abs(reference.camera.time - camera.time) > 1e-3:
        visible &= ~reference.dynamic_mask
    image = reference.image.permute(2, 0, 1)[None]
    size = (reference.camera.height, reference.camera.width)
    image = functional.interpolate(image, size, mode="bilinear", antialias=True)[0]
    return RecordedView(t, image, points, reference.camera, visible.to(torch.float32))


def disagreement(
    clean: Float[Tensor, "T 3 H W"], evidence: Evidence, config: Compensation
) -> Tensor:
    """L, a scalar that can be differentiated by the clip."""
    loss = _difference(clean, evidence.fused, evidence.trust).mean()
    losses = torch.stack([clean.new_zeros(()), *view_losses(clean, evidence)])
    kept = (losses.detach() <= config.drop).to(losses)
    return loss + (losses * kept).sum() / max(1, len(evidence.views))


def view_losses(clean: Float[Tensor, "T 3 H W"], evidence: Evidence) -> list[Tensor]:
    """The loss of the clip carried back into each recorded view; 0 for one that sees none of it."""
    losses = []
    for view in evidence.views:
        frame = clean[view.frame]
        height, width = frame.shape[1:]
        grid = torch.stack([view.points.u * (2 / width) - 1, view.points.v * (2 / height) - 1], -1)
        carried = functional.grid_sample(
            frame[None], grid[None], padding_mode="border", align_corners=False
        )
        losses.append(_difference(carried, view.image[None], view.visible[None])[0])
    return losses


def compensated(
    state: Float[Tensor, "T 3 H W"],
    velocity: Float[Tensor, "T 3 H W"],
    t: float,
    evidence: Evidence,
    config: Compensation,
) -> Float[Tensor, "T 3 H W"]:
    """The velocity bent by alpha towards the evidence; unchanged at times later than `config.latest`."""
    if config.alpha == 0 or t > config.latest:
        return velocity
    with torch.enable_grad():
        clean = (state - t * velocity).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(disagreement(clean, evidence, config), clean)
    size = gradient.square().mean().sqrt()
    if float(size) == 0:
        return velocity
    return velocity + config.alpha * velocity.square().mean().sqrt() / size * gradient


def _difference(
    a: Float[Tensor, "B 3 h w"], b: Float[Tensor, "B 3 h w"], weight: Float[Tensor, "B h w"]
) -> Float[Tensor, " B"]:
    """(1 - SSIM) + L1, weighted means over each image; 0 where there is no weight."""
    apart = (a - b).abs().mean(1) + (1 - _ssim(a, b)).mean(1)
    total = weight.sum((1, 2))
    return (apart * weight).sum((1, 2)) / total.clamp(min=1e-6)


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity per pixel, 7 x 7 uniform window."""
    stack = torch.cat([a, b, a * a, b * b, a * b], dim=1)
    padded = functional.pad(stack, (3, 3, 3, 3), mode="reflect")
    ma, mb, aa, bb, ab = functional.avg_pool2d(padded, 7, stride=1).chunk(5, dim=1)
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * ma * mb + c1) * (2 * (ab - ma * mb) + c2)
    return top / ((ma * ma + mb * mb + c1) * (aa - ma * ma + bb - mb * mb + c2))
