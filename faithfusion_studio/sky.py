"""What is seen where no Gaussian stops the ray: one colour, a cube map, or a small network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from faithfusion_studio.cameras import Camera


@runtime_checkable
class Sky(Protocol):
    """What is seen where no Gaussian stops the ray."""

    def radiance(self, directions: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
        """Colour in [0, 1] (not clamped) for unit directions in world axes."""
        ...


@dataclass(frozen=True, eq=False)
class ConstantSky:
    """One colour in every direction."""

    color: Float[Tensor, "3"]

    def radiance(self, directions: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
        """The colour, broadcast."""
        return self.color.to(directions).expand_as(directions)


@dataclass(frozen=True, eq=False)
class CubemapSky:
    """A cube map of linear-interpolated texels; faces +x -x +y -y +z -z in world axes."""

    texels: Float[Tensor, "6 R R 3"]
    """Colours; rows follow the second, columns the first of the two other world axes, upwards."""

    def radiance(self, directions: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
        """Bilinear lookup inside the face the direction leaves through."""
        index, weights = cubemap_lookup(directions, self.texels.shape[1])
        flat = self.texels.reshape(-1, 3)
        return (flat[index] * weights[..., None].to(flat)).sum(-2)


@dataclass(frozen=True, eq=False)
class MlpSky:
    """The sky network of Street Gaussians and DriveStudio: frequencies of the direction, three layers.

    The input is [d, sin(2^k d) for all k, cos(2^k d) for all k] and, where given, an appearance
    vector; ReLU after the first two layers, the input again before the second, a sigmoid at the end.
    """

    frequencies: Float[Tensor, "L"]
    """2^k of the encoding."""
    weight0: Float[Tensor, "H I"]
    bias0: Float[Tensor, "H"]
    weight1: Float[Tensor, "H J"]
    """J = H + I."""
    bias1: Float[Tensor, "H"]
    weight2: Float[Tensor, "3 H"]
    bias2: Float[Tensor, "3"]
    appearance: Float[Tensor, "A"]
    """Appended to every input; A = 0 without one."""

    def radiance(self, directions: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
        """The network's colour in (0, 1)."""
        turned = directions[..., None, :] * self.frequencies.to(directions)[:, None]
        parts = [directions, turned.sin().flatten(-2), turned.cos().flatten(-2)]
        parts.append(self.appearance.to(directions).expand(*directions.shape[:-1], -1))
        given = torch.cat(parts, -1)
        linear = torch.nn.functional.linear
        hidden = torch.relu(linear(given, self.weight0, self.bias0))
        hidden = torch.relu(linear(torch.cat([hidden, given], -1), self.weight1, self.bias1))
        return torch.sigmoid(linear(hidden, self.weight2, self.bias2))


def cubemap_lookup(
    directions: Float[Tensor, "*B 3"], resolution: int
) -> tuple[Int[Tensor, "*B 4"], Float[Tensor, "*B 4"]]:
    """The four texels (flat index into [6 R R]) and bilinear weights each direction reads."""
    magnitude = directions.abs()
    axis = magnitude.argmax(-1)
    major = torch.gather(directions, -1, axis[..., None]).squeeze(-1)
    face = axis * 2 + (major < 0)
    first = torch.gather(directions, -1, ((axis + 1) % 3)[..., None]).squeeze(-1)
    second = torch.gather(directions, -1, ((axis + 2) % 3)[..., None]).squeeze(-1)
    scale = 0.5 * resolution / major.abs().clamp(min=1e-12)
    u = (first * scale + 0.5 * resolution - 0.5).clamp(0, resolution - 1)
    v = (second * scale + 0.5 * resolution - 0.5).clamp(0, resolution - 1)
    u0 = u.floor().clamp(max=max(resolution - 2, 0))
    v0 = v.floor().clamp(max=max(resolution - 2, 0))
    fu, fv = u - u0, v - v0
    step = 1 if resolution > 1 else 0
    base = (face * resolution + v0.long()) * resolution + u0.long()
    index = torch.stack(
        [base, base + step, base + step * resolution, base + step * (resolution + 1)], dim=-1
    )
    weights = torch.stack([(1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv], dim=-1)
    return index, weights


def pixel_directions(
    camera: Camera, device: torch.device | str = "cpu"
) -> Float32[Tensor, "H W 3"]:
    """Unit viewing directions through all pixel centres, world axes."""
    K = camera.K
    x = torch.arange(camera.width, dtype=torch.float32, device=device)
    y = torch.arange(camera.height, dtype=torch.float32, device=device)
    x = (x + 0.5 - float(K[0, 2])) / float(K[0, 0])
    y = (y + 0.5 - float(K[1, 2])) / float(K[1, 1])
    rotation = camera.camtoworld[:3, :3].to(device, torch.float32)
    rays = (
        x[None, :, None] * rotation[:, 0]
        + y[:, None, None] * rotation[:, 1]
        + rotation[:, 2].expand(camera.height, camera.width, 3)
    )
    return torch.nn.functional.normalize(rays, dim=-1)
