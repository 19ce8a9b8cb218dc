"""TwinLiteNet: where one may drive, and where the lane lines are.

The network is an ESPNet-C encoder with position and channel attention side by side, and two decoders
of three transposed convolutions. The names of the modules are those of the published weights, so a
state dictionary loads as it is. Input [B, 3, 360, 640], RGB in [0, 1], neither mean nor deviation
taken out; output two maps of logits [B, 2, 360, 640], drivable area and lane line.

Source: Che et al., "TwinLiteNet: An Efficient and Lightweight Model for Driveable Area and Lane
Segmentation in Self-Driving Cars", 2023; ESP block: Mehta et al., "ESPNet", 2018; attention: Fu et
al., "Dual Attention Network", 2019. Written from the papers and the layout of the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from faithfusion_studio.io.weights import WeightsError, file_hash, read_weights

SIZE = (640, 360)
"""Width and height of the network's input, pixels."""
KNOWN_FILE = "98ffc6c8abc98fda72052117249ce4e2dbc85e58cfcfc6ee2d42f5398c772463"
"""SHA-256 of the published `best.pth` (BDD100K, MIT)."""
EPS = 1e-3
DILATIONS = (1, 2, 4, 8, 16)


class Normalized(nn.Module):
    """Batch normalisation and a parametric ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=EPS)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The same size."""
        return self.act(self.bn(x))


class Convolved(Normalized):
    """A convolution before the normalisation."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Stride 2 halves the size, rounded up."""
        return super().forward(self.conv(x))


class Doubled(Normalized):
    """A transposed convolution of 2x2 before the normalisation: twice the size."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels)
        self.deconv = nn.ConvTranspose2d(channels_in, channels, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Twice the height and width."""
        return super().forward(self.deconv(x))


class _Bare(nn.Module):
    """A convolution without normalisation, under the name the weights give it."""

    def __init__(self, channels_in: int, channels: int, kernel: int, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, bias=False, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Pyramid(nn.Module):
    """ESP: reduce, five dilated convolutions, and their running sums side by side.

    With `halved` the reduction strides by 2 and nothing is added; otherwise the input is added back.
    """

    def __init__(self, channels_in: int, channels: int, *, halved: bool) -> None:
        super().__init__()
        part = channels // 5
        first = channels - 4 * part
        self.halved = halved
        self.c1 = (
            _Bare(channels_in, part, 3, stride=2, padding=1)
            if halved
            else _Bare(channels_in, part, 1)
        )
        for dilation in DILATIONS:
            width = first if dilation == 1 else part
            conv = _Bare(part, width, 3, padding=dilation, dilation=dilation)
            self.add_module(f"d{dilation}", conv)
        if halved:
            self.bn, self.act = nn.BatchNorm2d(channels, eps=EPS), nn.PReLU(channels)
        else:
            self.bn = Normalized(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Half the size where `halved`."""
        reduced = self.c1(x)
        parts = [self.get_submodule(f"d{dilation}")(reduced) for dilation in DILATIONS]
        for index in range(2, len(parts)):
            parts[index] = parts[index] + parts[index - 1]
        joined = torch.cat(parts, 1)
        return self.act(self.bn(joined)) if self.halved else self.bn(x + joined)


class PositionAttention(nn.Module):
    """Every pixel looks at every other one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, channels // 8, 1)
        self.key_conv = nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """The same size."""
        query, key, value = (
            conv(x).flatten(2) for conv in (self.query_conv, self.key_conv, self.value_conv)
        )
        attention = (query.transpose(1, 2) @ key).softmax(-1)
        return self.gamma * (value @ attention.transpose(1, 2)).view_as(x) + x


class ChannelAttention(nn.Module):
    """Every channel looks at those least like it."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """The same size."""
        flat = x.flatten(2)
        likeness = flat @ flat.transpose(1, 2)
        attention = (likeness.amax(-1, keepdim=True) - likeness).softmax(-1)
        return self.gamma * (attention @ flat).view_as(x) + x


class Encoder(nn.Module):
    """ESPNet-C with 2 and 3 blocks, then both attentions: [B, 3, H, W] to [B, 32, H/8, W/8]."""

    def __init__(self) -> None:
        super().__init__()
        self.level1 = Convolved(3, 16, 3, stride=2)
        self.b1 = Convolved(19, 19, 3)
        self.level2_0 = Pyramid(19, 64, halved=True)
        self.level2 = nn.ModuleList(Pyramid(64, 64, halved=False) for _ in range(2))
        self.b2 = Convolved(131, 131, 3)
        self.level3_0 = Pyramid(131, 128, halved=True)
        self.level3 = nn.ModuleList(Pyramid(128, 128, halved=False) for _ in range(3))
        self.b3 = Convolved(256, 32, 3)
        self.sa, self.sc = PositionAttention(32), ChannelAttention()
        self.conv_sa, self.conv_sc = Convolved(32, 32, 3), Convolved(32, 32, 3)
        self.classifier = Convolved(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Eighth of the size."""
        half = nn.functional.avg_pool2d(x, 3, stride=2, padding=1)
        quarter = nn.functional.avg_pool2d(half, 3, stride=2, padding=1)
        first = self.level2_0(self.b1(torch.cat([self.level1(x), half], 1)))
        values = first
        for block in self.level2:
            values = block(values)
        second = self.level3_0(self.b2(torch.cat([values, first, quarter], 1)))
        values = second
        for block in self.level3:
            values = block(values)
        joined = self.b3(torch.cat([second, values], 1))
        return self.classifier(self.conv_sa(self.sa(joined)) + self.conv_sc(self.sc(joined)))


class TwinLiteNet(nn.Module):
    """The network; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.up_1_1, self.up_2_1 = Doubled(32, 16), Doubled(16, 8)
        self.up_1_2, self.up_2_2 = Doubled(32, 16), Doubled(16, 8)
        self.classifier_1, self.classifier_2 = Doubled(8, 2), Doubled(8, 2)

    def forward(
        self, x: Float[Tensor, "B 3 H W"]
    ) -> tuple[Float[Tensor, "B 2 H W"], Float[Tensor, "B 2 H W"]]:
        """Logits of drivable area and of lane line; H and W are multiples of 8."""
        shared = self.encoder(x)
        drivable = self.classifier_1(self.up_2_1(self.up_1_1(shared)))
        lane = self.classifier_2(self.up_2_2(self.up_1_2(shared)))
        return drivable, lane


class LaneNet:
    """Lane masks of pictures with TwinLiteNet.

    Args:
        path: Weights as published (`best.pth`), or a safetensors file with the same names.

    Raises:
        WeightsError: Missing, or of another network.
    """

    def __init__(self, path: Path | str) -> None:
        digest = file_hash(path)
        self.name = f"{'twinlitenet' if digest == KNOWN_FILE else Path(path).stem} {digest[:12]}"
        self._net = TwinLiteNet().eval()
        try:
            self._net.load_state_dict(read_weights(path))
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise WeightsError(
                f"{path}: these are not the weights of TwinLiteNet ({reason[:160]}); give its "
                "best.pth."
            ) from error

    def lanes(self, image: Float[Tensor, "H W 3"]) -> Bool[Tensor, "360 640"]:
        """Lane lines of an image in [0, 1], on the network's grid of 640x360."""
        import cv2

        pixels = (image.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()
        small = cv2.resize(pixels, SIZE, interpolation=cv2.INTER_LINEAR)
        x = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            return self._net(x)[1][0].argmax(0) == 1
