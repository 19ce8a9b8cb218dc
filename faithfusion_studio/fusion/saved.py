"""A plan and how far it is, as tensors and plain values, so that a scene file can carry them to another day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.densify import DensifyState
from faithfusion_studio.fusion.losses import FusionError, SparseDepth
from faithfusion_studio.fusion.progressive import FusionPlan, FusionState
from faithfusion_studio.fusion.replay import RepairedView
from faithfusion_studio.fusion.schedule import FusionConfig, LearningRates, LossWeights, Stage
from faithfusion_studio.fusion.trainer import TrainerCheckpoint
from faithfusion_studio.gaussians import Gaussians, TopologyChange
from faithfusion_studio.scene import Scene, StoredFisher

KEY = "fusion"
"""Of the scene's metadata, and the first part of the names of its tensors."""
KINDS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        Camera, DensifyState, FusionConfig, FusionPlan, FusionState, Gaussians, LearningRates, LossWeights,
        RepairedView, SparseDepth, Stage, StoredFisher, TopologyChange, TrainerCheckpoint,
    )
}  # fmt: skip
"""What may stand in a file; nothing else is ever made from one."""


def with_progress(scene: Scene, plan: FusionPlan, state: FusionState) -> Scene:
    """The scene with an unfinished plan in it, and its evidence bit for bit, which files else keep compactly."""
    tensors = dict(without_progress(scene).extra_tensors)
    parts = {"plan": plan, "state": state, "fisher": scene.fisher}
    described = {name: _taken_out(part, tensors) for name, part in parts.items()}
    return replace(scene, metadata={**scene.metadata, KEY: described}, extra_tensors=tensors)


def without_progress(scene: Scene) -> Scene:
    """The scene without a plan."""
    metadata = {key: value for key, value in scene.metadata.items() if key != KEY}
    tensors = {k: t for k, t in scene.extra_tensors.items() if not k.startswith(f"{KEY}/")}
    return replace(scene, metadata=metadata, extra_tensors=tensors)


def taken_up(scene: Scene) -> tuple[Scene, FusionPlan, FusionState] | None:
    """What `with_progress` put together; None where the scene carries no unfinished plan.

    Raises:
        FusionError: What stands there cannot be read.
    """
    described = scene.metadata.get(KEY)
    if described is None:
        return None
    try:
        plan, state, fisher = (
            _put_back(described[name], scene.extra_tensors) for name in ("plan", "state", "fisher")
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FusionError(
            f"the unfinished fusion in this scene cannot be read ({error}); start a new one."
        ) from error
    known = isinstance(plan, FusionPlan) and isinstance(state, FusionState)
    if not known or not isinstance(fisher, StoredFisher):
        raise FusionError("the unfinished fusion in this scene is no plan; start a new one.")
    return replace(without_progress(scene), fisher=fisher).to(scene.device), plan, state


def _taken_out(value: Any, into: dict[str, Tensor]) -> Any:
    """Plain values, every tensor moved to `into` under a name."""
    if isinstance(value, Tensor):
        name = f"{KEY}/{len(into)}"
        into[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if is_dataclass(value) and not isinstance(value, type):
        inner = {f.name: _taken_out(getattr(value, f.name), into) for f in fields(value) if f.init}
        return {"kind": type(value).__name__, "fields": inner}
    if isinstance(value, Mapping):
        return {"entries": {key: _taken_out(item, into) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_taken_out(item, into) for item in value]
    return value


def _put_back(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_taken_out`; sequences come back as tuples."""
    if isinstance(value, Mapping):
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "kind" in value:
            inner = {k: _put_back(v, tensors) for k, v in value["fields"].items()}
            return KINDS[value["kind"]](**inner)
        return {key: _put_back(item, tensors) for key, item in value["entries"].items()}
    if isinstance(value, (list, tuple)):
        return tuple(_put_back(item, tensors) for item in value)
    return value
