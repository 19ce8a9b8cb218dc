"""Which tensors of a native file hold Gaussians, moving objects with their motions, and the sky."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.tensor_table import FLOATS, LayoutError, TensorTable, json_value
from faithfusion_studio.motion import (
    DeformField,
    Motion,
    PeriodicVibration,
    SkinnedBody,
    SkinWeights,
)
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.sky import ConstantSky, CubemapSky, MlpSky, Sky

_DOUBLE = (torch.float64,)


def gaussian_tensors(prefix: str, gaussians: Gaussians) -> dict[str, Tensor]:
    """All tensors of a set, named below `prefix`."""
    return {f"{prefix}/{f.name}": getattr(gaussians, f.name) for f in fields(Gaussians)}


def take_gaussians(source: TensorTable, prefix: str) -> Gaussians:
    """The set that `gaussian_tensors` named.

    Raises:
        LayoutError: Missing tensors, or shapes that do not fit.
    """
    means = source.take(f"{prefix}/means", (None, 3), FLOATS)
    n = len(means)
    shN = source.take(f"{prefix}/shN", (n, None, 3), FLOATS)
    if shN.shape[1] not in (0, 3, 8, 15):
        raise LayoutError(f"{prefix}/shN has {shN.shape[1]} coefficients, not 0, 3, 8 or 15")
    return Gaussians(
        means=means,
        log_scales=source.take(f"{prefix}/log_scales", (n, 3), FLOATS),
        quats=source.take(f"{prefix}/quats", (n, 4), FLOATS),
        logit_opacities=source.take(f"{prefix}/logit_opacities", (n,), FLOATS),
        sh0=source.take(f"{prefix}/sh0", (n, 1, 3), FLOATS),
        shN=shN,
        provenance=source.take(f"{prefix}/provenance", (n,), (torch.uint8,)),
    )


# ------------------------------------------------------------------------------------------ nodes


def put_node(tensors: dict[str, Tensor], prefix: str, node: RigidNode) -> dict[str, Any]:
    """Adds a node's tensors and gives its JSON description."""
    tensors |= gaussian_tensors(prefix, node.gaussians)
    for key in ("poses", "timestamps", "visible", "size"):
        tensors[f"{prefix}/{key}"] = getattr(node, key)
    entry: dict[str, Any] = {"name": node.name, "category": node.category}
    if node.turns_colors:
        entry["turns_colors"] = True
    for mark in ("hidden", "locked"):
        if getattr(node, mark):
            entry[mark] = True
    if node.color is not None:
        entry["color"] = list(node.color)
    if node.motion is not None:
        entry["motion"] = _put_motion(tensors, f"{prefix}/motion", node.motion)
    return entry


def take_node(source: TensorTable, prefix: str, entry: Any) -> RigidNode:
    """The node that `put_node` described.

    Raises:
        LayoutError: Missing tensors, or shapes that do not fit.
    """
    gaussians = take_gaussians(source, prefix)
    poses = source.take(f"{prefix}/poses", (None, 4, 4), _DOUBLE)
    motion = None
    if isinstance(entry, dict) and entry.get("motion") is not None:
        motion = _take_motion(source, f"{prefix}/motion", entry["motion"], len(gaussians))
    return RigidNode(
        name=json_value(entry, "name", str),
        gaussians=gaussians,
        poses=poses,
        timestamps=source.take(f"{prefix}/timestamps", (len(poses),), _DOUBLE),
        visible=source.take(f"{prefix}/visible", (len(poses),), (torch.bool,)),
        size=source.take(f"{prefix}/size", (3,), FLOATS),
        category=json_value(entry, "category", str),
        motion=motion,
        turns_colors=entry.get("turns_colors") is True,
        hidden=entry.get("hidden") is True,
        locked=entry.get("locked") is True,
        color=_take_color(entry.get("color")),
    )


def _take_color(value: Any) -> tuple[float, float, float] | None:
    if value is None:
        return None
    numbers = isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)
    if not numbers or len(value) != 3 or not all(0 <= v <= 1 for v in value):
        raise LayoutError("the colour of an object is not three numbers in 0..1")
    return (float(value[0]), float(value[1]), float(value[2]))


def _put_motion(tensors: dict[str, Tensor], prefix: str, motion: Motion) -> dict[str, Any]:
    if isinstance(motion, PeriodicVibration):
        for key in ("taus", "log_betas", "velocity"):
            tensors[f"{prefix}/{key}"] = getattr(motion, key)
        numbers = {k: getattr(motion, k) for k in ("cycle_length", "time_per_second")}
        return {"kind": "periodic", **numbers}
    if isinstance(motion, DeformField):
        for i, (weight, bias) in enumerate(zip(motion.weights, motion.biases, strict=True)):
            tensors[f"{prefix}/{i}/weight"], tensors[f"{prefix}/{i}/bias"] = weight, bias
        tensors[f"{prefix}/embedding"] = motion.embedding
        return {
            "kind": "deform",
            "layers": len(motion.weights),
            "height": motion.height,
            "duration": motion.duration,
        }
    if isinstance(motion, SkinnedBody):
        for key in ("joint_quats", "timestamps", "joints", "parents", "rest_inverse"):
            tensors[f"{prefix}/{key}"] = getattr(motion, key)
        if motion.skin is None:
            assert motion.weights is not None
            tensors[f"{prefix}/weights"] = motion.weights
            return {"kind": "skinned"}
        for key in ("grid", "offset", "scale"):
            tensors[f"{prefix}/skin/{key}"] = getattr(motion.skin, key)
        return {"kind": "skinned", "ratio": motion.skin.ratio}
    raise LayoutError(f"the motion is a {type(motion).__name__}, which the file does not know")


def _take_motion(source: TensorTable, prefix: str, entry: Any, rows: int) -> Motion:
    kind = json_value(entry, "kind", str)
    takers: dict[str, Callable[[TensorTable, str, Any, int], Motion]] = {
        "periodic": _take_periodic,
        "deform": _take_deform,
        "skinned": _take_skinned,
    }
    if kind not in takers:
        raise LayoutError(f"a motion is of the unknown kind {kind[:40]!r}")
    return takers[kind](source, prefix, entry, rows)


def _take_periodic(source: TensorTable, prefix: str, entry: Any, rows: int) -> Motion:
    return PeriodicVibration(
        taus=source.take(f"{prefix}/taus", (rows, 1), FLOATS),
        log_betas=source.take(f"{prefix}/log_betas", (rows, 1), FLOATS),
        velocity=source.take(f"{prefix}/velocity", (rows, 3), FLOATS),
        cycle_length=float(json_value(entry, "cycle_length", (int, float))),
        time_per_second=float(json_value(entry, "time_per_second", (int, float))),
    )


def _take_deform(source: TensorTable, prefix: str, entry: Any, _rows: int) -> Motion:
    count = json_value(entry, "layers", int)
    if count not in (DeformField.LAYERS + 2, DeformField.LAYERS + 3):
        raise LayoutError(f"a deformation has {count} layers, not 10 or 11")
    weights = [source.take(f"{prefix}/{i}/weight", (None, None), FLOATS) for i in range(count)]
    return DeformField(
        weights=tuple(weights),
        biases=tuple(
            source.take(f"{prefix}/{i}/bias", (len(weight),), FLOATS)
            for i, weight in enumerate(weights)
        ),
        embedding=source.take(f"{prefix}/embedding", (None,), FLOATS),
        height=float(json_value(entry, "height", (int, float))),
        duration=float(json_value(entry, "duration", (int, float))),
    )


def _take_skinned(source: TensorTable, prefix: str, entry: Any, rows: int) -> Motion:
    joints = source.take(f"{prefix}/joints", (None, 3), FLOATS)
    count, weights, skin = len(joints), None, None
    if "ratio" in entry:
        skin = SkinWeights(
            grid=source.take(f"{prefix}/skin/grid", (count, None, None, None), FLOATS),
            offset=source.take(f"{prefix}/skin/offset", (3,), FLOATS),
            scale=source.take(f"{prefix}/skin/scale", (None,), FLOATS),
            ratio=float(json_value(entry, "ratio", (int, float))),
        )
    else:
        weights = source.take(f"{prefix}/weights", (rows, count), FLOATS)
    times = source.take(f"{prefix}/timestamps", (None,), _DOUBLE)
    parents = source.take(f"{prefix}/parents", (count,), (torch.int64, torch.int32))
    if not all(parent < joint for joint, parent in enumerate(parents.tolist())):
        raise LayoutError(f"{prefix}/parents names a parent that comes after its child")
    return SkinnedBody(
        joint_quats=source.take(f"{prefix}/joint_quats", (len(times), count, 4), FLOATS),
        timestamps=times,
        joints=joints,
        parents=parents,
        rest_inverse=source.take(f"{prefix}/rest_inverse", (count, 4, 4), FLOATS),
        weights=weights,
        skin=skin,
    )


# -------------------------------------------------------------------------------------------- sky


def put_sky(tensors: dict[str, Tensor], sky: Sky | None) -> dict[str, str] | None:
    """Adds the sky's tensors and gives its JSON description; None without a sky.

    Raises:
        LayoutError: A sky of a kind the file does not know.
    """
    if sky is None:
        return None
    kinds = {ConstantSky: "constant", CubemapSky: "cubemap", MlpSky: "mlp"}
    kind = kinds.get(type(sky))
    if kind is None:
        raise LayoutError(
            f"the sky is a {type(sky).__name__}; expected ConstantSky, CubemapSky or MlpSky"
        )
    for one in fields(sky):  # type: ignore[arg-type]
        tensors[f"sky/{one.name}"] = getattr(sky, one.name)
    return {"kind": kind}


def take_sky(source: TensorTable, entry: Any) -> Sky | None:
    """The sky that `put_sky` described.

    Raises:
        LayoutError: An unknown kind, missing tensors, or shapes that do not fit.
    """
    if entry is None:
        return None
    kind = json_value(entry, "kind", str)
    if kind == "constant":
        return ConstantSky(source.take("sky/color", (3,), FLOATS))
    if kind == "cubemap":
        texels = source.take("sky/texels", (6, None, None, 3), FLOATS)
        if texels.shape[1] != texels.shape[2] or texels.shape[1] == 0:
            raise LayoutError(f"sky/texels has faces of shape {tuple(texels.shape[1:3])}")
        return CubemapSky(texels)
    if kind == "mlp":
        return _take_mlp_sky(source)
    raise LayoutError(f"the sky is of the unknown kind {kind[:40]!r}")


def _take_mlp_sky(source: TensorTable) -> MlpSky:
    frequencies = source.take("sky/frequencies", (None,), FLOATS)
    appearance = source.take("sky/appearance", (None,), FLOATS)
    given = 3 + 6 * len(frequencies) + len(appearance)
    weight0 = source.take("sky/weight0", (None, given), FLOATS)
    hidden = len(weight0)
    return MlpSky(
        frequencies=frequencies,
        weight0=weight0,
        bias0=source.take("sky/bias0", (hidden,), FLOATS),
        weight1=source.take("sky/weight1", (hidden, hidden + given), FLOATS),
        bias1=source.take("sky/bias1", (hidden,), FLOATS),
        weight2=source.take("sky/weight2", (3, hidden), FLOATS),
        bias2=source.take("sky/bias2", (3,), FLOATS),
        appearance=appearance,
    )
