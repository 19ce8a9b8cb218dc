"""What a DriveStudio checkpoint holds beside Gaussians: sky models, affine colours, camera corrections.

`SkyModel` is a network, `EnvLight` a cube map looked up at (x, z, -y) in OpenGL's order of faces;
`Affine` turns an embedding per image into a 3x4 colour correction; `CamPose` moves recorded cameras.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from faithfusion_studio.io.checkpoints import CheckpointError, TensorReader
from faithfusion_studio.sky import ConstantSky, CubemapSky, MlpSky, Sky

_HIDDEN, _EMBEDDING = 64, 4


@dataclass(frozen=True)
class Look:
    """The appearance part of a checkpoint."""

    sky: Sky | None
    tone: Float32[Tensor, "3 4"] | None
    """What the mean image (in fusion checkpoints: every image) is corrected by."""
    kept: Mapping[str, Tensor]
    """Tables of the recorded images as stored, by class and name."""
    notes: tuple[str, ...]


def read_look(path: Path, models: Mapping[str, Any], *, fusion: bool) -> Look:
    """Sky, colour correction and the tables that are kept as they are.

    Args:
        path: The file, for messages.
        models: State dict per class.
        fusion: Whether FaithFusion wrote the file; its images all use the first affine row.

    Raises:
        CheckpointError: Missing tensors, or shapes that do not fit.
    """
    kept: dict[str, Tensor] = {}
    tone, notes = None, []
    state = models.get("Affine")
    if isinstance(state, Mapping) and state:
        table = TensorReader(path, state, "models.Affine")
        rows = table.take("embedding.weight", None, None)
        tone = _tone(table, rows[:1] if fusion else rows.mean(0, keepdim=True))
        kept |= {f"Affine/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
        which = "the first row, as FaithFusion does" if fusion else "its mean appearance"
        notes.append(f"The affine colour correction is that of {which}.")
    for name in ("CamPose", "CamPosePerturb"):
        state = models.get(name)
        if isinstance(state, Mapping):
            kept |= {f"{name}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    return Look(_read_sky(path, models.get("Sky")), tone, kept, tuple(notes))


def _tone(table: TensorReader, embedding: Float32[Tensor, "1 E"]) -> Float32[Tensor, "3 4"]:
    first = table.take("decoder.0.weight", None, embedding.shape[1])
    hidden = torch.relu(embedding @ first.T + table.take("decoder.0.bias", len(first)))
    flat = hidden @ table.take("decoder.2.weight", 12, len(first)).T
    rows = (flat + table.take("decoder.2.bias", 12)).reshape(3, 4)
    return rows + torch.eye(3, 4)


def affine_rows(state: Mapping[str, Tensor]) -> Float32[Tensor, "n 3 4"]:
    """The correction of every image of a kept Affine table."""
    table = TensorReader(Path("Affine"), dict(state), "models.Affine")
    rows = table.take("embedding.weight", None, None)
    return torch.stack([_tone(table, row[None]) for row in rows])


def _read_sky(path: Path, state: Any) -> Sky | None:
    if not isinstance(state, Mapping) or not state:
        return None
    table = TensorReader(path, state, "models.Sky")
    if table.has("base"):
        base = table.take("base", 6, None, None, 3)
        if base.shape[1] != base.shape[2] or not 1 <= base.shape[1] <= 16_384:
            raise CheckpointError(
                f"{path}: models.Sky.base has faces of {tuple(base.shape[1:3])}; expected squares."
            )
        index = _cube_index(base.shape[1])
        return CubemapSky(base.reshape(-1, 3)[index].reshape(base.shape))
    frequencies = table.take("direction_encoding.scales", None)
    appearance = torch.zeros(0)
    if table.has("appearance_embedding.weight"):
        appearance = table.take("appearance_embedding.weight", None, None).mean(0)
    given = 3 + 6 * len(frequencies) + len(appearance)
    first = table.take("sky_head.layers.0.weight", None, given)
    hidden = len(first)
    return MlpSky(
        frequencies=frequencies,
        weight0=first,
        bias0=table.take("sky_head.layers.0.bias", hidden),
        weight1=table.take("sky_head.layers.1.weight", hidden, hidden + given),
        bias1=table.take("sky_head.layers.1.bias", hidden),
        weight2=table.take("sky_head.layers.2.weight", 3, hidden),
        bias2=table.take("sky_head.layers.2.bias", 3),
        appearance=appearance,
    )


def _cube_index(resolution: int) -> Int[Tensor, "T"]:
    """For each texel of a `CubemapSky`, the texel of OpenGL's cube map that shows the same direction.

    A permutation: texel centres fall on texel centres. Along the edges of faces the two differ in how
    they filter: OpenGL's map reads across an edge, ours holds the face's last texel.
    """
    at = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution * 2 - 1
    v, u = torch.meshgrid(at, at, indexing="ij")
    faces = []
    for face in range(6):
        axis, sign = face // 2, 1.0 if face % 2 == 0 else -1.0
        direction = torch.empty(resolution, resolution, 3, dtype=torch.float64)
        direction[..., axis] = sign
        direction[..., (axis + 1) % 3], direction[..., (axis + 2) % 3] = u, v
        faces.append(direction)
    x, y, z = torch.stack(faces).unbind(-1)
    return _opengl_texel(torch.stack([x, z, -y], -1), resolution).reshape(-1)


def _opengl_texel(direction: Tensor, resolution: int) -> Int[Tensor, "*B"]:
    """Flat index of the texel a direction reads. Source: OpenGL 4.6, table 8.19."""
    x, y, z = direction.unbind(-1)
    axis = direction.abs().argmax(-1)
    major = torch.gather(direction, -1, axis[..., None])[..., 0]
    positive = major > 0
    s = torch.stack([torch.where(positive, -z, z), x, torch.where(positive, x, -x)], -1)
    t = torch.stack([-y, torch.where(positive, z, -z), -y], -1)
    column, row = (
        ((torch.gather(c, -1, axis[..., None])[..., 0] / major.abs() + 1) / 2 * resolution)
        .floor()
        .long()
        .clamp(0, resolution - 1)
        for c in (s, t)
    )
    return ((axis * 2 + (~positive).long()) * resolution + row) * resolution + column


# ---------------------------------------------------------------------------------------- writing


def sky_tensors(sky: Sky) -> dict[str, Tensor]:
    """The state dict of the sky class that shows the same sky.

    Raises:
        CheckpointError: A sky of a kind the layout does not know.
    """
    if isinstance(sky, ConstantSky):
        return {"base": sky.color.float().expand(6, 4, 4, 3)}
    if isinstance(sky, CubemapSky):
        base = torch.empty_like(sky.texels).reshape(-1, 3)
        base[_cube_index(sky.texels.shape[1])] = sky.texels.reshape(-1, 3)
        return {"base": base.reshape(sky.texels.shape)}
    if isinstance(sky, MlpSky):
        state = {"direction_encoding.scales": sky.frequencies}
        for layer in range(3):
            state[f"sky_head.layers.{layer}.weight"] = getattr(sky, f"weight{layer}")
            state[f"sky_head.layers.{layer}.bias"] = getattr(sky, f"bias{layer}")
        if len(sky.appearance):
            state["appearance_embedding.weight"] = sky.appearance[None]
        return state
    raise CheckpointError(f"a sky of the kind {type(sky).__name__} cannot be written.")


def tone_tensors(
    tone: Float32[Tensor, "3 4"] | None, kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The Affine class: the table that was read, or a network whose bias is the one correction."""
    stored = {k.removeprefix("Affine/"): v for k, v in kept.items() if k.startswith("Affine/")}
    if stored or tone is None:
        return stored
    return {
        "embedding.weight": torch.zeros(1, _EMBEDDING),
        "decoder.0.weight": torch.zeros(_HIDDEN, _EMBEDDING),
        "decoder.0.bias": torch.zeros(_HIDDEN),
        "decoder.2.weight": torch.zeros(12, _HIDDEN),
        "decoder.2.bias": (tone.float() - torch.eye(3, 4)).reshape(12),
    }
