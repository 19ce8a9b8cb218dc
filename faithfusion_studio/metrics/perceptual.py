"""LPIPS: distance of images in the features of a classification network, with its protocol.

The number means nothing without (network, mapping, resolution). `alex` is fed [-1, 1] as the metric's
authors do; the preset `inria` feeds `vgg` with [0, 1], as 3D Gaussian Splatting and its descendants
print it.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.io.weights import content_hash
from faithfusion_studio.metrics.images import MetricError
from faithfusion_studio.metrics.lpips_weights import LpipsNet, load_lpips_weights

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What the networks subtract and divide by, per channel of an image in [-1, 1]."""
SMALLEST = 32
"""Shorter sides do not reach the last layer of AlexNet, pixels."""


@dataclass(frozen=True)
class Layer:
    """One convolution with ReLU, and what happens around it."""

    stride: int = 1
    padding: int = 1
    pool_before: tuple[int, int] | None = None
    """Window and stride of a maximum over the input."""
    compared: bool = True
    """Whether its features are compared."""


_VGG_BLOCKS = (2, 2, 3, 3, 3)
BACKBONES: dict[LpipsNet, tuple[Layer, ...]] = {
    "alex": (
        Layer(stride=4, padding=2),
        Layer(padding=2, pool_before=(3, 2)),
        Layer(pool_before=(3, 2)),
        Layer(),
        Layer(),
    ),
    "vgg": tuple(
        Layer(pool_before=(2, 2) if block and not i else None, compared=i == count - 1)
        for block, count in enumerate(_VGG_BLOCKS)
        for i in range(count)
    ),
}


@dataclass(frozen=True, eq=False)
class Lpips:
    """LPIPS with one network; call it with two images."""

    layers: tuple[Layer, ...]
    tensors: Mapping[str, Tensor]
    """`conv.I.weight` [out, in, h, w], `conv.I.bias` [out], `head.I` [channels] >= 0."""
    name: str = "alex"
    mapped: bool = True
    """Whether [0, 1] is mapped to [-1, 1] first; the preset `inria` does not."""

    def __call__(self, rendered: Float[Tensor, "H W 3"], truth: Float[Tensor, "H W 3"]) -> float:
        """The distance of two images, 0 for equal ones.

        Args:
            rendered: Image to judge, [0, 1].
            truth: What it should be, [0, 1].

        Raises:
            MetricError: The images differ in size or have a side of less than 32 pixels.
        """
        if rendered.shape != truth.shape or min(truth.shape[:2]) < SMALLEST:
            raise MetricError(
                f"LPIPS of {tuple(rendered.shape)} against {tuple(truth.shape)} is not defined; "
                f"expected two images of one size with at least {SMALLEST} pixels a side."
            )
        with torch.no_grad():
            pair = torch.stack([rendered, truth]).permute(0, 3, 1, 2).float()
            total = 0.0
            for index, features in enumerate(self.features(pair)):
                unit = features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
                distance = (unit[0] - unit[1]).square().mean((1, 2))
                total += float(distance @ self.tensors[f"head.{index}"])
            return total

    def features(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Features [B, C, h, w] of every compared layer, of images in [0, 1]."""
        values = images * 2 - 1 if self.mapped else images
        shift, scale = (values.new_tensor(v)[:, None, None] for v in (SHIFT, SCALE))
        values, found = (values - shift) / scale, []
        for index, layer in enumerate(self.layers):
            if layer.pool_before is not None:
                values = torch.nn.functional.max_pool2d(values, *layer.pool_before)
            values = torch.nn.functional.conv2d(
                values,
                self.tensors[f"conv.{index}.weight"],
                self.tensors[f"conv.{index}.bias"],
                stride=layer.stride,
                padding=layer.padding,
            ).relu()
            if layer.compared:
                found.append(values)
        return found

    def pooled(self, images: Sequence[Float[Tensor, "H W 3"]]) -> Float[Tensor, "B C"]:
        """The last layer's features averaged over each image: what the proxy of FID compares."""
        with torch.no_grad():
            rows = [
                self.features(i.permute(2, 0, 1)[None].float())[-1].mean((2, 3)) for i in images
            ]
            return torch.cat(rows)

    @property
    def protocol(self) -> str:
        """Network, hash and mapping in words."""
        mapping = "inputs mapped to [-1, 1]" if self.mapped else "inputs in [0, 1], not mapped"
        return f"LPIPS v0.1 {self.name} {content_hash(self.tensors)[:12]}, {mapping}"


def load_lpips(net: LpipsNet = "alex", path: Path | str | None = None) -> Lpips:
    """LPIPS with its published weights.

    Args:
        net: `alex`, mapped to [-1, 1]; or `vgg`, not mapped (the preset `inria`).
        path: Converted weights or the package's archive; None takes the cache.

    Raises:
        WeightsError: They are missing (says how to fetch them) or not the published ones.
    """
    return Lpips(BACKBONES[net], load_lpips_weights(net, path), name=net, mapped=net == "alex")
