"""The node classes of a DriveStudio checkpoint as Gaussians, poses and motions, and back.

Tensors per class: `_means` (N, 3), `_scales` (N, 3) logs, (N, 1) for balls or (N, 2) for discs,
`_quats` (N, 4) wxyz, `_opacities` (N, 1) logits, `_features_dc` (N, 3), `_features_rest` (N, K, 3).
Nodes add poses per frame and instance (`instances_quats`, `instances_trans`, `instances_fv`), the
box (`instances_size`) and whose each Gaussian is (`points_ids`); deformable ones a network and an
embedding per instance, bodies the tables of linear blend skinning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn.functional import normalize

from faithfusion_studio.gaussians import Gaussians, concatenate
from faithfusion_studio.io.checkpoints import CheckpointError, TensorReader
from faithfusion_studio.motion import (
    DeformField,
    Motion,
    PeriodicVibration,
    SkinnedBody,
    SkinWeights,
)
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.transforms import quat_to_rotmat, rgb_to_sh0, rotmat_to_quat

FRAME_SECONDS = 0.1
DISC_LOG_SCALE = -20.0
"""Stands for the missing third axis of a disc."""
DEFORM_AFTER = 3000
STEPS_PER_BAND = 1000
MAX_INSTANCES = 100_000


@dataclass(frozen=True)
class Setting:
    """What decides how tensors are read, beside their shapes."""

    step: int
    config: Mapping[str, Any]
    """The run's `config.yaml`; empty without one."""
    frames: int

    @property
    def timestamps(self) -> Float64[Tensor, "F"]:
        """Seconds of the frames."""
        return torch.arange(self.frames, dtype=torch.float64) * FRAME_SECONDS

    def number(self, node: str, key: str, default: float) -> float:
        """A positive number of `model.NODE.ctrl` in the config."""
        value: Any = self.config
        for name in ("model", node, "ctrl", key):
            value = value.get(name) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, (int, float)) and value > 0 else default


def read_gaussians(table: TensorReader, setting: Setting) -> Gaussians:
    """The Gaussians of one class, in its own frame, with the SH bands that training had reached.

    Raises:
        CheckpointError: Missing tensors, or shapes that do not fit.
    """
    means = table.take("_means", None, 3)
    count = len(means)
    scales = table.take("_scales", count, None)
    if scales.shape[1] not in (1, 2, 3):
        raise CheckpointError(
            f"{table.path}: {table.where}._scales has {scales.shape[1]} columns; expected 1, 2 or 3."
        )
    if scales.shape[1] == 1:
        scales = scales.expand(count, 3).contiguous()
    elif scales.shape[1] == 2:
        scales = torch.cat([scales, torch.full((count, 1), DISC_LOG_SCALE)], 1)
    dc = table.take("_features_dc", count, 3)
    rest = table.take("_features_rest", count, None, 3)
    if rest.shape[1] not in (0, 3, 8, 15):
        raise CheckpointError(
            f"{table.path}: {table.where}._features_rest has {rest.shape[1]} coefficients; expected "
            "0, 3, 8 or 15."
        )
    read = Gaussians(
        means=means,
        log_scales=scales,
        quats=table.take("_quats", count, 4),
        logit_opacities=table.take("_opacities", count, 1)[:, 0],
        # Without SH the colour is stored before a sigmoid.
        sh0=(dc if rest.shape[1] else rgb_to_sh0(torch.sigmoid(dc)))[:, None],
        shN=rest,
        provenance=torch.zeros(count, dtype=torch.uint8),
    )
    return read.with_sh_degree(min(setting.step // STEPS_PER_BAND, read.sh_degree))


def vibrating_node(table: TensorReader, gaussians: Gaussians, setting: Setting) -> RigidNode:
    """A periodic-vibration background as a node that stays where the world is."""
    count = len(gaussians)
    interval = setting.number("Background", "time_interval", 0.02)
    motion = PeriodicVibration(
        taus=table.take("_taus", count, 1),
        log_betas=table.take("_betas", count, 1),
        velocity=table.take("_velocity", count, 3),
        cycle_length=setting.number("Background", "cycle_length", 0.2),
        time_per_second=interval / FRAME_SECONDS,
    )
    return RigidNode(
        name="background",
        gaussians=gaussians,
        poses=torch.eye(4, dtype=torch.float64)[None],
        timestamps=torch.zeros(1, dtype=torch.float64),
        visible=torch.ones(1, dtype=torch.bool),
        size=torch.zeros(3),
        category="background",
        motion=motion,
    )


def read_nodes(tables: Mapping[str, TensorReader], setting: Setting) -> list[RigidNode]:
    """One node per instance with Gaussians, in the order in which DriveStudio draws the classes.

    Raises:
        CheckpointError: Missing tensors, or shapes that do not fit.
    """
    found: list[RigidNode] = []
    for name, category in (
        ("RigidNodes", "vehicle"),
        ("SMPLNodes", "pedestrian"),
        ("DeformableNodes", "cyclist"),
    ):
        table = tables.get(name)
        if table is not None and table.has("_means"):
            found += _instances(table, category, setting)
    return found


def _instances(table: TensorReader, category: str, setting: Setting) -> list[RigidNode]:
    gaussians = read_gaussians(table, setting)
    sizes = table.take("instances_size", None, 3)
    count = len(sizes)
    shift = table.take("instances_trans", None, count, 3)
    frames = len(shift)
    seen, owner = _flags(table, frames, count), _owners(table, len(gaussians), count)
    body = category == "pedestrian"
    turn = table.take("instances_quats", frames, count, *([1, 4] if body else [4]))
    times = torch.arange(frames, dtype=torch.float64) * FRAME_SECONDS
    nodes = []
    for i in range(count):
        rows = (owner == i).nonzero()[:, 0]
        if not len(rows):
            continue
        motion: Motion | None = None
        if body:
            motion = _body(table, i, rows, turn[:, i, 0], times)
            poses = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
        else:
            poses = _poses(turn[:, i])
            if category == "cyclist" and setting.step > DEFORM_AFTER:
                motion = _deformation(table, i, float(sizes[i, 2]), float(times[-1]))
        poses[:, :3, 3] = shift[:, i].double()
        nodes.append(
            RigidNode(
                name=f"{category} {i}",
                gaussians=gaussians.select(rows),
                poses=poses,
                timestamps=times,
                visible=seen[:, i],
                size=sizes[i].clone(),
                category=category,
                motion=motion,
            )
        )
    return nodes


def _poses(quats: Float[Tensor, "F 4"]) -> Float64[Tensor, "F 4 4"]:
    """Rotations of stored quaternions, from values that writing and reading do not change again."""
    for _ in range(8):
        rounded = normalize(quats.double(), dim=-1).float()
        if torch.equal(rounded, quats):
            break
        quats = rounded
    poses = torch.eye(4, dtype=torch.float64).repeat(len(quats), 1, 1)
    poses[:, :3, :3] = quat_to_rotmat(quats.double())
    return poses


def _flags(table: TensorReader, frames: int, count: int) -> Bool[Tensor, "F I"]:
    flags = table.table.get("instances_fv")
    if not isinstance(flags, Tensor) or flags.shape != (frames, count):
        raise CheckpointError(
            f"{table.path}: {table.where}.instances_fv does not say for {frames} frames and {count} "
            "instances who is visible; expected a table of that size."
        )
    return flags.bool()


def _owners(table: TensorReader, rows: int, count: int) -> Int[Tensor, "N"]:
    names = ("points_ids", "point_ids")
    owner = next((table.table[n] for n in names if isinstance(table.table.get(n), Tensor)), None)
    fits = owner is not None and owner.numel() == rows and not owner.is_floating_point()
    if not fits or (rows and not 0 <= int(owner.min()) <= int(owner.max()) < count):
        raise CheckpointError(
            f"{table.path}: {table.where}.points_ids does not name one of {count} instances for each "
            f"of {rows:,} Gaussians; expected integers of that range."
        )
    assert owner is not None
    return owner.reshape(-1).long()


def _deformation(table: TensorReader, instance: int, height: float, duration: float) -> DeformField:
    heads = ["gaussian_warp", "gaussian_rotation"]
    if table.has("deform_network.gaussian_scaling.weight"):
        heads.append("gaussian_scaling")
    names = [*(f"linear.{k}" for k in range(DeformField.LAYERS)), *heads]
    weights = [table.take(f"deform_network.{name}.weight", None, None) for name in names]
    embeddings = table.take("instances_embedding", None, None)
    return DeformField(
        weights=tuple(weights),
        biases=tuple(
            table.take(f"deform_network.{name}.bias", len(weight))
            for name, weight in zip(names, weights, strict=True)
        ),
        embedding=embeddings[instance].clone(),
        height=height if height > 0 else 1.0,
        duration=duration,
    )


def _body(
    table: TensorReader, instance: int, rows: Tensor, root: Tensor, times: Float64[Tensor, "F"]
) -> SkinnedBody:
    joints = table.take("template.J_canonical", None, None, 3)
    people, count = joints.shape[:2]
    rest = table.take("template.A0_inv", people, count, 4, 4)
    turns = table.take("smpl_qauts", len(times), people, count - 1, 4)
    parents = table.table.get("template._template_layer.parents")
    if not isinstance(parents, Tensor) or parents.shape != (count,):
        raise CheckpointError(
            f"{table.path}: {table.where} lacks the parents of its {count} joints; expected "
            "template._template_layer.parents."
        )
    order = parents.long().clone()
    order[0] = -1  # SMPL stores a large number for the root
    if not all(int(parent) < joint for joint, parent in enumerate(order)):
        raise CheckpointError(
            f"{table.path}: {table.where} names a joint whose parent comes after it; expected the "
            "order of SMPL."
        )
    weights, skin = None, None
    if table.has("template.voxel_deformer.lbs_voxel_base"):
        skin = _skin(table, instance, people, count)
    else:
        weights = _skin_rows(table, instance, rows, people, count)
    return SkinnedBody(
        joint_quats=normalize(torch.cat([root[:, None], turns[:, instance]], 1), dim=-1),
        timestamps=times,
        joints=joints[instance].clone(),
        parents=order,
        rest_inverse=rest[instance].clone(),
        weights=weights,
        skin=skin,
    )


def _skin_rows(
    table: TensorReader, instance: int, rows: Tensor, people: int, joints: int
) -> Float[Tensor, "N J"]:
    weights = table.take("template.W", people, None, joints)[instance]
    if len(weights) != len(rows):
        raise CheckpointError(
            f"{table.path}: {table.where} has weights for {len(weights)} points of a body of "
            f"{len(rows)} Gaussians; expected one row for each."
        )
    return weights.clone()


def _skin(table: TensorReader, instance: int, people: int, joints: int) -> SkinWeights:
    prefix = "template.voxel_deformer."
    grid = table.take(f"{prefix}lbs_voxel_base", people, joints, None, None, None)[instance]
    if table.has(f"{prefix}voxel_w_correction"):
        more = table.take(f"{prefix}voxel_w_correction", people, joints, *grid.shape[1:])
        grid = grid + more[instance]
    # Stored as (I, 1, 3) and (I, 1, 1) in some versions, so only the count of numbers matters.
    found = {name: table.table.get(f"{prefix}{name}") for name in ("offset", "scale")}
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.numel() not in (people, 3 * people):
            raise CheckpointError(
                f"{table.path}: {table.where} lacks the {name} of its skin grid; expected "
                f"{prefix}{name} with a row for each of {people} bodies."
            )
    offset, scale = (value.float().reshape(people, -1)[instance] for value in found.values())
    return SkinWeights(grid.contiguous(), offset.expand(3).contiguous(), scale.clone())


# ---------------------------------------------------------------------------------------- writing


def gaussian_state(gaussians: Gaussians) -> dict[str, Tensor]:
    """The tensors of one class, with the values as stored; colours without SH before a sigmoid."""
    dc = gaussians.sh0[:, 0]
    if gaussians.sh_degree == 0:
        from faithfusion_studio.transforms import sh0_to_rgb

        dc = torch.logit(sh0_to_rgb(dc).clamp(1e-6, 1 - 1e-6))
    return {
        "_means": gaussians.means,
        "_scales": gaussians.log_scales,
        "_quats": gaussians.quats,
        "_opacities": gaussians.logit_opacities[:, None],
        "_features_dc": dc,
        "_features_rest": gaussians.shN,
    }


def rigid_state(nodes: Sequence[RigidNode]) -> dict[str, Tensor]:
    """Rigid nodes as one class: poses at the times of all nodes together, Gaussians with their owner."""
    times = sorted({float(t) for node in nodes for t in node.timestamps})
    frames, count = len(times), len(nodes)
    shift, turn = torch.zeros(frames, count, 3), torch.zeros(frames, count, 4)
    turn[..., 0] = 1
    seen = torch.zeros(frames, count, dtype=torch.bool)
    for i, node in enumerate(nodes):
        low, high = float(node.timestamps[0]), float(node.timestamps[-1])
        for f, time in enumerate(times):
            shown = low <= time <= high and not node.hidden
            pose = node.pose_at(time) if shown else None
            if pose is not None:
                seen[f, i] = True
                shift[f, i] = pose[:3, 3].float()
                turn[f, i] = rotmat_to_quat(pose[:3, :3]).float()
    owner = [torch.full((len(node.gaussians), 1), i) for i, node in enumerate(nodes)]
    return {
        **gaussian_state(concatenate(node.gaussians for node in nodes)),
        "instances_quats": turn,
        "instances_trans": shift,
        "instances_size": torch.stack([node.size.float() for node in nodes]),
        "instances_fv": seen,
        "points_ids": torch.cat(owner),
    }
