"""What learning needs beside images: which rows a view shows, Adam on those rows, statistics for densification.

On the CPU each is one call into the core; tensors elsewhere take the same rules in plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float32, Int32, UInt8
from torch import Tensor

from faithfusion_studio.render.cpu import _load_core, _work
from faithfusion_studio.render.rasterization import RasterizationMeta

BETAS = (0.9, 0.999)
"""Decay of Adam's two moments; the core knows no others."""
HUGE = 1e18
"""A gradient of this size or more counts as not finite."""
Activation = Literal["none", "exp", "sigmoid"]


@dataclass(frozen=True, eq=False)
class AdamKind:
    """One kind of parameter with its optimiser state; `adam_step` writes all but the gradient and the rates."""

    value: Float[Tensor, "N *_"]
    mean: Float[Tensor, "N *_"]
    """First moment."""
    square: Float[Tensor, "N *_"]
    """Second moment."""
    gradient: Float[Tensor, "N *_"]
    """With respect to the activated value."""
    rates: Float[Tensor, "W"]
    """Step size of each of a row's W numbers."""
    activated: Float[Tensor, "N *_"] | None = None
    """exp or sigmoid of the value, kept up to date; None where the value is used as it is."""
    activation: Activation = "none"


@dataclass(frozen=True)
class ShapeTerms:
    """Regularisers of the rows moved, applied by the core while it holds the rows; see `fusion.losses.shape_loss`."""

    scales: int
    """Index of the kind whose activated value are standard deviations, m."""
    opacities: int
    """Index of the kind whose activated value are opacities."""
    weights: tuple[float, float, float, float]
    """Of opacity, scale, flat and shape, each already divided by the number of rows."""
    max_aspect: float
    voxel: float
    """Unit of length, m."""


def adam_step(
    kinds: Sequence[AdamKind],
    clocks: Int32[Tensor, "N 2"],
    now: int,
    visible: UInt8[Tensor, "N"] | None,
    *,
    eps: float = 1e-15,
    limits: tuple[float, float] = (0.0, 0.0),
    terms: ShapeTerms | None = None,
) -> tuple[float, int]:
    """One Adam update of the visible rows; all other rows keep value, moments and clocks bit for bit.

    At its u-th update, at step n = `now`, a row whose last update was at step l takes the gradient g as

        mean   = b1 mean + (1 - b1) g
        square = b2^(n - l) square + (1 - b2) g^2
        value -= rate sqrt(1 - b2^n) / (1 - b1^u) mean / (sqrt(square) + eps)

    The second moment is that of dense Adam, which meets a gradient of zero wherever the row is not seen: a row seen
    at every p-th step moves sqrt(p) further per update than one seen always, as its step size was chosen for. The
    first moment rests, so that a gradient's push is spent while the row is seen. A row that is seen at every step
    takes dense Adam's steps exactly. A row with a gradient that is not finite is left alone too.

    Args:
        kinds: Parameters of the same rows; gradients are with respect to the activated values.
        clocks: Updates each row has had, and the step of the last one (0 before the first); written.
        now: This step, counted from 1; larger than any in `clocks`.
        visible: 0 where a row is to be left alone; None moves all.
        eps: Floor of the denominator.
        limits: Values are kept between them where the first is below the second.
        terms: Regularisers of the visible rows, on the CPU only.

    Returns:
        The value of the regularisers before the step, and the number of visible rows that were refused.

    Source: Kingma and Ba 2015. In gsplat's SelectiveAdam and Taming 3DGS (Mallick et al. 2024) both moments rest;
    at their rates rows seen by few views then learn too slowly.
    """
    if clocks.device.type != "cpu":
        return 0.0, _adam_in_torch(kinds, clocks, now, visible, eps, limits)
    items = [
        (
            kind.value.numpy(),
            kind.mean.numpy(),
            kind.square.numpy(),
            kind.gradient.contiguous().numpy(),
            kind.rates.numpy(),
            None if kind.activated is None else kind.activated.numpy(),
            kind.activation,
        )
        for kind in kinds
    ]
    given = terms and (
        terms.scales,
        terms.opacities,
        *terms.weights,
        terms.max_aspect,
        terms.voxel,
    )
    mask = None if visible is None else visible.numpy()
    return _load_core().adam(items, mask, clocks.numpy(), now, eps, *limits, given, _work()[0])


def _adam_in_torch(
    kinds: Sequence[AdamKind],
    clocks: Tensor,
    now: int,
    visible: Tensor | None,
    eps: float,
    limits: tuple[float, float],
) -> int:
    count = len(clocks)
    moved = clocks.new_ones(count, dtype=torch.bool) if visible is None else visible.bool()
    finite = torch.stack(
        [(kind.gradient.abs() < HUGE).reshape(count, -1).all(1) for kind in kinds]
    ).all(0)
    refused = int((moved & ~finite).sum())
    moved = moved & finite
    decay = BETAS[1] ** (now - clocks[:, 1]).to(kinds[0].value.dtype)
    clocks[:, 0] += moved
    clocks[:, 1].masked_fill_(moved, now)
    updates = clocks[:, 0].clamp(min=1).to(decay.dtype)
    factor = math.sqrt(1 - BETAS[1] ** now) / (1 - BETAS[0] ** updates)
    for kind in kinds:
        rows = (-1, *[1] * (kind.value.ndim - 1))
        here, gradient = moved.reshape(rows), kind.gradient
        if kind.activated is not None:
            slope = kind.activated
            gradient = gradient * (slope if kind.activation == "exp" else slope * (1 - slope))
        gradient = torch.where(here, gradient, 0)
        mean = BETAS[0] * kind.mean + (1 - BETAS[0]) * gradient
        square = decay.reshape(rows) * kind.square + (1 - BETAS[1]) * gradient * gradient
        rates = kind.rates.reshape(1, *kind.value.shape[1:]) if kind.value.ndim > 1 else kind.rates
        value = kind.value - rates * factor.reshape(rows) * mean / (square.sqrt() + eps)
        if limits[0] < limits[1]:
            value = value.clamp(*limits)
        kind.value.copy_(torch.where(here, value, kind.value))
        kind.mean.copy_(torch.where(here, mean, kind.mean))
        kind.square.copy_(torch.where(here, square, kind.square))
        if kind.activated is not None:
            activated = kind.value.exp() if kind.activation == "exp" else torch.sigmoid(kind.value)
            kind.activated.copy_(torch.where(here, activated, kind.activated))
    return refused


def activate(value: Float[Tensor, "*s"], activation: Activation, out: Float[Tensor, "*s"]) -> None:
    """Write exp or sigmoid of `value` to `out`; both contiguous."""
    if value.device.type != "cpu":
        out.copy_(value.exp() if activation == "exp" else torch.sigmoid(value))
        return
    _load_core().activate(activation, value.numpy(), out.numpy(), _work()[0])


def reached_rows(
    meta: RasterizationMeta, opacity_gradient: Float[Tensor, "N"], out: UInt8[Tensor, "N"]
) -> int:
    """Mark the Gaussians that were blended into a pixel of the first camera: all others have a gradient of zero.

    Args:
        meta: Of a rasterisation whose first N Gaussians are meant.
        opacity_gradient: Elsewhere than on the CPU it tells which those are; a Gaussian that only pixels of weight
            zero show then counts as not reached.
        out: 1 where reached, else 0; written.

    Returns:
        How many were reached.
    """
    if meta.device.type != "cpu":
        out.copy_(opacity_gradient != 0)
        return int(out.sum())
    return _load_core().mark_reached(meta.tiles.frames[0], out.numpy(), _work()[0])


def observe_rows(
    meta: RasterizationMeta,
    gradient: Float32[Tensor, "N"],
    count: Int32[Tensor, "N"],
    radius: Float32[Tensor, "N"],
) -> None:
    """Add one backward pass to the statistics of the first N Gaussians that its first camera saw.

    Args:
        meta: Of a rasterisation with `absgrad`, after its backward pass.
        gradient: Sum of the length of the absolute image-plane gradient, per half image size.
        count: Views the row was seen in.
        radius: Largest radius on screen so far, over the longer side of the image.
    """
    assert meta.absgrad is not None, "observe after a backward pass with absgrad"
    side = max(meta.width, meta.height)
    if meta.device.type == "cpu":
        arrays = (gradient.numpy(), count.numpy(), radius.numpy())
        absolute = meta.absgrad[0].numpy()
        _load_core().observe(meta.tiles.frames[0], absolute, *arrays, 0.5 * side, _work()[0])
        return
    radii = meta.radii[0, : len(count)]
    seen = (radii > 0).all(-1)
    gradient += torch.where(seen, meta.absgrad[0, : len(count)].norm(dim=-1) * (0.5 * side), 0)
    count += seen
    radius.copy_(torch.where(seen, torch.maximum(radius, radii.amax(-1) / side), radius))


def corrected_eps(eps: float, steps_done: int) -> float:
    """The `eps` of `adam_step` that acts as torch's Adam would at its next step, whose floor is bias-corrected."""
    return eps * math.sqrt(1 - BETAS[1] ** (steps_done + 1))
