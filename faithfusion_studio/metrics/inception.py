"""The feature network of FID: Inception v3 of the TensorFlow graph of 2015, given by its file.

It differs from the Inception of image classification libraries: averages over a window leave the
padding out, and the last block takes a maximum in their place. The weights
(`pt_inception-2015-12-05-6726825d.pth`, 1008 outputs, 91 MiB) are never fetched; a file of the same
layout with another hash is measured under its own name and never called FID.

Sources: Szegedy et al., "Rethinking the Inception Architecture", 2016; Heusel et al. 2017. Names of the
modules and the mode (bilinear to 299x299, inputs -1..1) are those the published weights are used with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from faithfusion_studio.io.weights import WeightsError, file_hash, read_weights

SIDE, FEATURES, CLASSES = 299, 2048, 1008
KNOWN_PREFIX = "6726825d"
"""How the SHA-256 of the published file begins, as its name says."""
Kernel = tuple[int, int]


class Conv(NamedTuple):
    """One convolution of a branch."""

    name: str
    channels: int
    kernel: Kernel = (1, 1)
    stride: int = 1


class BasicConv(nn.Module):
    """Convolution, batch normalisation, ReLU; a stride goes without padding."""

    def __init__(self, channels_in: int, spec: Conv, *, padded: bool = True) -> None:
        super().__init__()
        inside = padded and spec.stride == 1
        padding = (spec.kernel[0] // 2, spec.kernel[1] // 2) if inside else (0, 0)
        self.conv = nn.Conv2d(
            channels_in, spec.channels, spec.kernel, spec.stride, padding, bias=False
        )
        self.bn = nn.BatchNorm2d(spec.channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Features after the ReLU."""
        return self.bn(self.conv(x)).relu()


class Mixed(nn.Module):
    """Branches side by side, then a pooled one.

    Args:
        channels_in: Of the input.
        branches: Chains of convolutions; a last element of two convolutions forks the chain.
        pooled: Channels of the convolution after the pool; None keeps the maximum as it is and halves.
        largest: The pool takes the maximum, not the mean.
    """

    def __init__(
        self,
        channels_in: int,
        branches: Sequence[Sequence[Conv | tuple[Conv, Conv]]],
        pooled: int | None,
        *,
        largest: bool = False,
    ) -> None:
        super().__init__()
        self.branches: list[list[list[str]]] = []
        for branch in branches:
            channels, names = channels_in, []
            for step in branch:
                fork = [step] if isinstance(step, Conv) else list(step)
                for spec in fork:
                    self.add_module(spec.name, BasicConv(channels, spec))
                channels = fork[-1].channels
                names.append([spec.name for spec in fork])
            self.branches.append(names)
        self.halves, self.largest = pooled is None, largest
        if pooled is not None:
            self.branch_pool = BasicConv(channels_in, Conv("branch_pool", pooled))

    def forward(self, x: Tensor) -> Tensor:
        """All branches joined along the channels."""
        found = []
        for branch in self.branches:
            values = x
            for names in branch:
                values = torch.cat([self.get_submodule(name)(values) for name in names], 1)
            found.append(values)
        return torch.cat([*found, self._pooled(x)], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.halves:
            return nn.functional.max_pool2d(x, 3, stride=2)
        if self.largest:
            return self.branch_pool(nn.functional.max_pool2d(x, 3, stride=1, padding=1))
        mean = nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return self.branch_pool(mean)


def _block_a(channels: int, pooled: int) -> Mixed:
    dbl = [Conv("branch3x3dbl_1", 64), *(Conv(f"branch3x3dbl_{i}", 96, (3, 3)) for i in (2, 3))]
    five = [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))]
    return Mixed(channels, [[Conv("branch1x1", 64)], five, dbl], pooled)


def _block_b(channels: int) -> Mixed:
    dbl = [
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, (3, 3)),
        Conv("branch3x3dbl_3", 96, (3, 3), 2),
    ]
    return Mixed(channels, [[Conv("branch3x3", 384, (3, 3), 2)], dbl], None)


def _block_c(channels: int, narrow: int) -> Mixed:
    wide, tall = (1, 7), (7, 1)
    seven = [
        Conv("branch7x7_1", narrow),
        Conv("branch7x7_2", narrow, wide),
        Conv("branch7x7_3", 192, tall),
    ]
    dbl = [Conv("branch7x7dbl_1", narrow)]
    for i, kernel in enumerate((tall, wide, tall, wide), start=2):
        dbl.append(Conv(f"branch7x7dbl_{i}", 192 if i == 5 else narrow, kernel))
    return Mixed(channels, [[Conv("branch1x1", 192)], seven, dbl], 192)


def _block_d(channels: int) -> Mixed:
    three = [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)]
    seven = [
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, (3, 3), 2),
    ]
    return Mixed(channels, [three, seven], None)


def _block_e(channels: int, *, largest: bool) -> Mixed:
    def fork(name: str) -> tuple[Conv, Conv]:
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    three = [Conv("branch3x3_1", 384), fork("branch3x3_2")]
    dbl = [
        Conv("branch3x3dbl_1", 448),
        Conv("branch3x3dbl_2", 384, (3, 3)),
        fork("branch3x3dbl_3"),
    ]
    return Mixed(channels, [[Conv("branch1x1", 320)], three, dbl], 192, largest=largest)


class Inception(nn.Module):
    """The network up to its last mean over the picture; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv(3, Conv("", 32, (3, 3), 2))
        self.Conv2d_2a_3x3 = BasicConv(32, Conv("", 32, (3, 3)), padded=False)
        self.Conv2d_2b_3x3 = BasicConv(32, Conv("", 64, (3, 3)))
        self.Conv2d_3b_1x1 = BasicConv(64, Conv("", 80))
        self.Conv2d_4a_3x3 = BasicConv(80, Conv("", 192, (3, 3)), padded=False)
        self.Mixed_5b, self.Mixed_5c = _block_a(192, 32), _block_a(256, 64)
        self.Mixed_5d, self.Mixed_6a = _block_a(288, 64), _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, largest=False)
        self.Mixed_7c = _block_e(2048, largest=True)
        self.fc = nn.Linear(FEATURES, CLASSES)  # part of the file; not of the features

    def forward(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 2048"]:
        """Features of pictures in [-1, 1]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = nn.functional.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = nn.functional.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


class InceptionFeatures:
    """Features of pictures from a weights file.

    Args:
        path: A state dictionary of this layout.

    Raises:
        WeightsError: Missing, or of another network.
    """

    def __init__(self, path: Path | str) -> None:
        digest = file_hash(path)
        self.is_fid = digest.startswith(KNOWN_PREFIX)
        self.name = f"{'inception-2015-12-05' if self.is_fid else Path(path).stem} {digest[:12]}"
        self._net = Inception().eval()
        try:
            self._net.load_state_dict(read_weights(path))
        except RuntimeError as error:
            raise WeightsError(
                f"{path}: these are not the weights of FID's Inception ({len(str(error))} characters "
                "of names or shapes that do not fit); give pt_inception-2015-12-05-6726825d.pth."
            ) from error

    def pooled(self, images: Sequence[Float[Tensor, "H W 3"]]) -> Float[Tensor, "B 2048"]:
        """Features of images in [0, 1], rounded to 8 bits, resized bilinearly without antialias."""
        rows = []
        with torch.no_grad():
            for image in images:
                pixels = (image.clamp(0, 1) * 255).round().permute(2, 0, 1)[None].float() / 255
                square = nn.functional.interpolate(
                    pixels, (SIDE, SIDE), mode="bilinear", align_corners=False
                )
                rows.append(self._net(square * 2 - 1))
        return torch.cat(rows)

    @property
    def protocol(self) -> str:
        """Network, hash and mode in words."""
        return f"{self.name}, 8-bit, torch bilinear to {SIDE}x{SIDE} (the mode of pytorch-fid)"
