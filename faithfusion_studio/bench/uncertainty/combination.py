"""Two maps as one: a logistic with a weight for each, fitted on other scenes than it is judged on.

p = sigmoid(a log EIG + b log gradient + c) is the probability that a pixel is wrong. The order of the pixels,
which is all that is judged, follows from a and b alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

WEIGHTS = (1.8, 0.32)
"""a and b, fitted on the procedural streets 110, 111 and 112 at 320x180, 400 steps, one training each."""
SMALLEST = 1e-4
"""Added before the logarithm: nats, and colour per pixel."""
SAMPLES = 2000
"""Pixels kept per view for the fit."""
ROUNDS = 25


def features(
    eig: Float32[Tensor, "*B"], gradient: Float32[Tensor, "*B"]
) -> Float32[Tensor, "*B 2"]:
    """log EIG in nats, log gradient."""
    return torch.stack([eig, gradient], -1).clamp(min=0).add(SMALLEST).log()


def combined(eig: Float32[Tensor, "*B"], gradient: Float32[Tensor, "*B"]) -> Float32[Tensor, "*B"]:
    """a log EIG + b log gradient."""
    return features(eig, gradient) @ torch.tensor(WEIGHTS)


def fit(known: Float[Tensor, "N 2"], wrong: Bool[Tensor, "N"]) -> tuple[float, float]:
    """a and b of greatest likelihood, by Newton's method; zeros where all pixels are alike."""
    x = torch.cat([known.double(), torch.ones(len(known), 1, dtype=torch.float64)], 1)
    y, w = wrong.double(), torch.zeros(3, dtype=torch.float64)
    if not 0 < float(y.mean()) < 1:
        return 0.0, 0.0
    for _ in range(ROUNDS):
        p = torch.sigmoid(x @ w)
        hessian = x.T @ (x * (p * (1 - p))[:, None]) + 1e-6 * torch.eye(3, dtype=torch.float64)
        w = w + torch.linalg.solve(hessian, x.T @ (y - p) - 1e-6 * w)
    return float(w[0]), float(w[1])
