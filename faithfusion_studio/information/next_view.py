"""Where to drive next: how much a recording from elsewhere would teach about the whole scene.

Symbols as in `prior`. A view that is recorded adds V_i to the evidence H_i of every Gaussian, and the entropy
of the posterior falls by 1/2 sum_i log det(H_i + V_i + Lambda) - log det(H_i + Lambda): exact for a posterior
that is block-diagonal over Gaussians. Unlike the sum of a map of EIG over its pixels, it counts what many
pixels would say alike only once. Higher SH coefficients and texels of the sky are diagonal terms of the same
kind. Only shown Gaussians can be learned about: what stands where nothing was reconstructed is not counted.

Source: Lindley 1956; FisherRF (Jiang et al. 2024) ranks views by the trace of the same quantity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from faithfusion_studio.cameras import Camera, Segment, Trajectory, offset_laterally
from faithfusion_studio.information.fisher import FisherAccumulator
from faithfusion_studio.information.prior import FisherPrior, require_fisher
from faithfusion_studio.render.chain import diagonal_of, factor_blocks
from faithfusion_studio.rig import by_camera
from faithfusion_studio.scene import Scene, StoredFisher

GAIN_WIDTH = 320
"""Views are judged at this width or their own, whichever is smaller, pixels."""
SKY_CHANNELS = 3
OFFSETS = (-6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Lateral offsets that are compared, m; 0 is driving the recorded path once more."""
JUDGED_FRAMES = 4
"""Views of an offset that are judged."""


@dataclass(frozen=True)
class ViewGain:
    """What recording a drive at one lateral offset would teach."""

    offset: float
    """m, positive is left."""
    nats: float
    """Fall of the entropy per recorded view of the segment, in mean over the views asked for."""


def expected_gains(
    scene: Scene,
    trajectory: Trajectory,
    offsets: Sequence[float],
    *,
    frames: Sequence[int],
    fisher: StoredFisher | None = None,
    prior: FisherPrior | None = None,
) -> Iterator[ViewGain]:
    """The gain of each lateral offset, one after the other, so that somebody can watch.

    Args:
        scene: With evidence.
        trajectory: The recorded path that is moved sideways.
        offsets: m, positive is left.
        frames: Indices into the path whose views are judged; the gain of an offset is of all of them together.
        fisher: Evidence of the recorded views; None uses the scene's.
        prior: What is believed of unseen parameters.

    Raises:
        MissingFisherError: The scene carries no evidence.
        StaleFisherError: The evidence is about other Gaussians.
    """
    fisher = require_fisher(scene, fisher)
    prior = prior or FisherPrior()
    precision = prior.precision(torch.exp(scene.all_gaussians.log_scales))
    before = _log_precision(fisher.blocks, fisher.sh, fisher.sky, precision, prior)
    for offset in offsets:
        moved = offset_laterally(trajectory, offset).cameras
        after = _log_precision(
            *_with_views(scene, fisher, [_small(moved[i]) for i in frames]), precision, prior
        )
        yield ViewGain(float(offset), (after - before) / max(len(frames), 1))


def spread_frames(path: Trajectory, segment: Segment) -> list[int]:
    """At most `JUDGED_FRAMES` frames of a segment of a path, spread evenly over it and the rig's cameras."""
    order = by_camera([camera.name for camera in path.cameras[segment.start : segment.stop]])
    step = len(order) / min(JUDGED_FRAMES, len(order))
    chosen = [order[int((i + 0.5) * step)] for i in range(min(JUDGED_FRAMES, len(order)))]
    return [segment.start + i for i in sorted(chosen)]


def _with_views(
    scene: Scene, fisher: StoredFisher, cameras: Sequence[Camera]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Evidence with views in it whose pictures nobody has seen: the noise is sigma_0 everywhere."""
    sum_ = FisherAccumulator(scene, noise_std=fisher.noise_std)
    for camera in cameras:
        sum_.add(camera, None)
    sky = fisher.sky
    if sky is not None and sky.numel() == sum_._sky.numel():
        sky = sky + sum_._sky.view_as(sky)
    return fisher.blocks + sum_._blocks, fisher.sh + sum_._sh, sky


def _log_precision(
    blocks: Tensor, sh: Tensor, sky: Tensor | None, precision: Tensor, prior: FisherPrior
) -> float:
    """Half the log determinant of the whole posterior precision; only differences mean anything."""
    # The inverse Cholesky factor has 1 / L_aa on its diagonal: log det = -2 sum log W_aa.
    at = torch.tensor([a * (a + 3) // 2 for a in range(len(diagonal_of(13)))])
    half = -factor_blocks(blocks, precision)[:, at.to(blocks.device)].double().log().sum()
    half = half + 0.5 * (sh.double() + prior.sh_precision).log().sum()
    if sky is not None:
        half = half + 0.5 * SKY_CHANNELS * (sky.double() + 1 / prior.void**2).log().sum()
    return float(half)


def _small(camera: Camera) -> Camera:
    return camera.scaled(min(1.0, GAIN_WIDTH / camera.width))
