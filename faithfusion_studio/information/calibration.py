"""One monotone map per scene from nats to [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

RECORDED_SHARE, RECORDED_VALUE = 0.6, 0.4
"""This share of the recorded pixels is more certain than what is mapped to this value.

Chosen on the procedural streets 101, 102 and 103 alone (480x270, true views at +3 m): repair at the
threshold 0.4 gains +2.28, +2.47, +2.53, +2.60, +2.66 dB on average with a share of 0.8, 0.7, 0.65, 0.6,
0.55, of which the last would repair more than half of the pixels of a street (31 to 48 % on average). The
order of pixels, and with it AUSE, does not depend on the share.
"""
KNOTS = 17
"""Knots per branch of the map, which is linear in the logarithm of the nats."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A monotone, piecewise linear map: 0 = as certain as the middle recorded pixel, 1 = never seen.

    Fixed when the evidence is computed, so that a threshold means the same on every view of a scene.
    """

    knots: Float32[Tensor, "Q 2"]
    """Nats, calibrated value in [0, 1]; both ascending."""

    def apply(self, nats: Float32[Tensor, "*B"]) -> Float32[Tensor, "*B"]:
        """Calibrated values of nats; flat outside the knots."""
        x, y = self.knots.to(nats.device).unbind(1)
        x = x.contiguous()
        high = torch.searchsorted(x, nats.contiguous()).clamp(1, len(x) - 1)
        low = high - 1
        fraction = (nats - x[low]) / (x[high] - x[low]).clamp(min=1e-12)
        return y[low] + fraction.clamp(0, 1) * (y[high] - y[low])


def void_nats(void_std: float, noise_std: float) -> float:
    """Nats of a pixel behind which nothing was ever seen."""
    return 1.5 * math.log1p((void_std / noise_std) ** 2)


def fit_calibration(recorded: Sequence[Float32[Tensor, "*_"]], void: float) -> Calibration:
    """The map of a scene from the EIG of its recorded views, linear in log nats between three anchors.

    0 is the median recorded pixel, 0.4 the recorded pixel than which 60 % are more certain, 1 the void: so
    the threshold 0.4 asks on every scene for what is known worse than three fifths of the recording.

    Args:
        recorded: EIG maps of recorded views, nats; may be empty.
        void: Nats of a pixel behind which nothing was ever seen.
    """
    if not recorded:
        return Calibration(torch.tensor([[0.0, 0.0], [void, 1.0]]))
    values = torch.cat([m.reshape(-1)[:: max(1, m.numel() // 20000)] for m in recorded])
    median, outer = torch.quantile(values, torch.tensor([0.5, RECORDED_SHARE])).tolist()
    outer = min(max(outer, 1.1 * median, 1e-6), 0.5 * void)
    median = min(max(median, 1e-7), outer / 1.1)
    inner = torch.linspace(math.log(median), math.log(outer), KNOTS)
    rest = torch.linspace(math.log(outer), math.log(void), KNOTS)[1:]
    low = torch.linspace(0, RECORDED_VALUE, KNOTS)
    high = torch.linspace(RECORDED_VALUE, 1, KNOTS)[1:]
    return Calibration(torch.stack([torch.cat([inner, rest]).exp(), torch.cat([low, high])], dim=1))
