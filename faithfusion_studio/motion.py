"""How the Gaussians of one object move inside its frame over time, beyond a rigid pose.

Each motion is a pure function of the stored Gaussians and a time, read from the checkpoints of
DriveStudio and its relatives; nothing in here is learned by us. Layouts and formulas: the classes'
docstrings name the model they come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor
from torch.nn.functional import grid_sample, linear, normalize

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.transforms import quat_multiply, quat_to_rotmat, rotmat_to_quat, slerp


@runtime_checkable
class Motion(Protocol):
    """A change of an object's Gaussians over time, inside the object's frame."""

    def at(self, gaussians: Gaussians, time: float) -> Gaussians:
        """The Gaussians at a time (s); rows may be hidden through their opacity, never removed."""
        ...


@dataclass(frozen=True, eq=False)
class PeriodicVibration:
    """Periodic vibration Gaussians: each swings about its centre and fades away from its own moment.

    mean' = mean + velocity sin(a (t - tau)) / a with a = 2 pi / cycle, opacity' = opacity
    exp(-(t - tau)^2 / (2 beta^2)), not drawn where that factor is at most 0.05.
    Source: Chen et al., "Periodic Vibration Gaussian", and DriveStudio's node of that name.
    """

    taus: Float[Tensor, "N 1"]
    """Moment of the greatest opacity, model time."""
    log_betas: Float[Tensor, "N 1"]
    """Logarithm of the life span, model time."""
    velocity: Float[Tensor, "N 3"]
    """m per unit of model time."""
    cycle_length: float = 0.2
    time_per_second: float = 0.2
    """Units of model time per second."""

    def at(self, gaussians: Gaussians, time: float) -> Gaussians:
        """Moved centres and faded opacities."""
        a = 2 * math.pi / self.cycle_length
        late = time * self.time_per_second - self.taus
        fading = torch.exp(-0.5 * late**2 / torch.exp(self.log_betas) ** 2)[:, 0]
        opacities = torch.where(fading > 0.05, gaussians.opacities * fading, 0.0)
        return replace(
            gaussians,
            means=gaussians.means + self.velocity * torch.sin(late * a) / a,
            logit_opacities=torch.logit(opacities),
        )


@dataclass(frozen=True, eq=False)
class DeformField:
    """A network that shifts and turns Gaussians by where they are and when (DriveStudio's deformable nodes).

    Input [PE10(2 x / height) | PE10(t) | embedding] with PE10(v) = [v, sin(2^k v), cos(2^k v) for
    k = 0..9]; eight layers with ReLU, the input again after the fifth; then three heads.
    """

    weights: tuple[Tensor, ...]
    """[out, in] of the eight layers, then of the heads: shift, turn and, where there is one, scale."""
    biases: tuple[Tensor, ...]
    embedding: Float[Tensor, "E"]
    """Of this object; E = 0 where the field has none."""
    height: float
    """Of the object's box, m."""
    duration: float
    """s of the recording; model time runs from 0 to 1 over it."""

    LAYERS = 8
    SKIP = 4

    def at(self, gaussians: Gaussians, time: float) -> Gaussians:
        """Shifted, turned and scaled Gaussians."""
        means = gaussians.means
        when = means.new_full((len(means), 1), time / self.duration if self.duration > 0 else 0.0)
        who = self.embedding.to(means).expand(len(means), -1)
        given = torch.cat([_encoded(means / self.height * 2), _encoded(when), who], -1)
        hidden = given
        for layer in range(self.LAYERS):
            hidden = torch.relu(linear(hidden, self.weights[layer], self.biases[layer]))
            if layer == self.SKIP:
                hidden = torch.cat([given, hidden], -1)
        heads = zip(self.weights[self.LAYERS :], self.biases[self.LAYERS :], strict=True)
        shift, turn, *stretch = (linear(hidden, weight, bias) for weight, bias in heads)
        return replace(
            gaussians,
            means=means + shift,
            quats=normalize(gaussians.quats, dim=-1) + turn,
            log_scales=gaussians.log_scales
            if not stretch
            else torch.log((gaussians.scales + stretch[0]).clamp(min=1e-8)),
        )


def _encoded(values: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
    parts = [values]
    for k in range(10):
        parts += [torch.sin(values * 2.0**k), torch.cos(values * 2.0**k)]
    return torch.cat(parts, -1)


@dataclass(frozen=True, eq=False)
class SkinWeights:
    """Blend weights of joints as a grid around the body, looked up where a Gaussian is.

    x = (mean - offset) / scale, its z times `ratio`; trilinear, corners aligned, held at the border.
    """

    grid: Float[Tensor, "J D H W"]
    offset: Float[Tensor, "3"]
    scale: Float[Tensor, "S"]
    """One number, or one per axis."""
    ratio: float = 4.0

    def at(self, means: Float[Tensor, "N 3"]) -> Float[Tensor, "N J"]:
        """Weights of the joints at points in the body's frame."""
        x = (means - self.offset.to(means)) / self.scale.to(means)
        x = x * x.new_tensor([1.0, 1.0, self.ratio])
        found = grid_sample(
            self.grid.to(means)[None],
            x[None, :, None, None],
            padding_mode="border",
            align_corners=True,
        )
        return found[0, :, :, 0, 0].T


@dataclass(frozen=True, eq=False)
class SkinnedBody:
    """A body of linear blend skinning (SMPL): joints turn, Gaussians follow their blend of them.

    T = sum_j w_j A_j with A = chain(theta, joints) A0^-1; mean' = T_R mean + T_t and the Gaussian is
    turned by the rotation nearest T_R's quaternion. The root's turn is the body's in the world.
    """

    joint_quats: Float32[Tensor, "F J 4"]
    """Turn of every joint against its parent per frame, wxyz; the first is the root's."""
    timestamps: Float64[Tensor, "F"]
    """s, ascending."""
    joints: Float[Tensor, "J 3"]
    """Joint centres of the rest pose, m."""
    parents: Int[Tensor, "J"]
    """Parent of each joint, -1 for the root; parents come before children."""
    rest_inverse: Float[Tensor, "J 4 4"]
    """A0^-1: from the canonical pose to the joints' rest frames."""
    weights: Float[Tensor, "N J"] | None = None
    skin: SkinWeights | None = None
    """Where the weights come from a grid instead."""

    def at(self, gaussians: Gaussians, time: float) -> Gaussians:
        """The body in its pose of that moment."""
        blend = self.skin.at(gaussians.means) if self.skin is not None else self.weights
        assert blend is not None, "a body has weights or a grid of them"
        joints = self._joint_transforms(time).to(gaussians.means)
        placed = (blend @ joints.reshape(len(joints), 16)).reshape(-1, 4, 4)
        turn = placed[:, :3, :3]
        return replace(
            gaussians,
            means=(turn @ gaussians.means[..., None])[..., 0] + placed[:, :3, 3],
            quats=quat_multiply(rotmat_to_quat(turn), normalize(gaussians.quats, dim=-1)),
        )

    def _joint_transforms(self, time: float) -> Float[Tensor, "J 4 4"]:
        rotations = quat_to_rotmat(self._pose_at(time))
        local = torch.eye(4).repeat(len(rotations), 1, 1).to(rotations)
        local[:, :3, :3] = rotations
        local[:, :3, 3] = self.joints
        chain: list[Tensor] = []
        for joint, parent in enumerate(self.parents.tolist()):
            if parent < 0:
                chain.append(local[joint])
                continue
            step = local[joint].clone()
            step[:3, 3] = self.joints[joint] - self.joints[parent]
            chain.append(chain[parent] @ step)
        return torch.stack(chain) @ self.rest_inverse

    def _pose_at(self, time: float) -> Float[Tensor, "J 4"]:
        t = self.timestamps
        high = int(torch.searchsorted(t, torch.tensor(time, dtype=t.dtype)))
        if high <= 0 or high >= len(t) or float(t[high]) == time:
            return self.joint_quats[min(high, len(t) - 1)]
        low = high - 1
        fraction = ((time - t[low]) / (t[high] - t[low])).to(self.joint_quats)
        fraction = fraction.expand(len(self.joints))
        return slerp(self.joint_quats[low], self.joint_quats[high], fraction)


def moved_to(motion: Motion, device: torch.device | str) -> Motion:
    """The same motion with its tensors on a device; times stay on the CPU."""
    changed = {}
    for one in fields(motion):  # type: ignore[arg-type]
        value = getattr(motion, one.name)
        if isinstance(value, SkinWeights):
            changed[one.name] = moved_to(value, device)  # type: ignore[arg-type]
        elif isinstance(value, Tensor) and one.name != "timestamps":
            changed[one.name] = value.to(device)
        elif isinstance(value, tuple):
            changed[one.name] = tuple(tensor.to(device) for tensor in value)
    return replace(motion, **changed)  # type: ignore[type-var]


def rows_of(motion: Motion | None, index: Tensor) -> Motion | None:
    """The motion of some of an object's Gaussians (index or mask over the rows)."""
    if isinstance(motion, PeriodicVibration):
        return replace(
            motion,
            taus=motion.taus[index],
            log_betas=motion.log_betas[index],
            velocity=motion.velocity[index],
        )
    if isinstance(motion, SkinnedBody) and motion.weights is not None:
        return replace(motion, weights=motion.weights[index])
    return motion
