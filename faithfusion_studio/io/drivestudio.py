"""Checkpoints of DriveStudio, OmniRe and FaithFusion: every node class drawn as they draw it.

`models` holds a state dict per node class; `step` says how far training was, which decides the SH
degree in use (step // 1000) and whether deformation has started (step > 3000). Frame f of F is
drawn at f / 10 s, since neither file nor config stores times. Layout: ziyc/drivestudio, classes
named in `drivestudio_nodes` and `drivestudio_looks`; settings that shapes do not tell come from
`config.yaml` beside the file, read as plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faithfusion_studio.gaussians import Gaussians, Provenance, empty_gaussians
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.checkpoints import CheckpointError, TensorReader, read_torch_file
from faithfusion_studio.io.drivestudio_looks import read_look, sky_tensors, tone_tensors
from faithfusion_studio.io.drivestudio_nodes import (
    Setting,
    gaussian_state,
    read_gaussians,
    read_nodes,
    rigid_state,
    vibrating_node,
)
from faithfusion_studio.io.splat_files import dropped_note, require_rows, usable_rows
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import Scene

KEPT = "drivestudio/"
"""Prefix of tensors kept as they came (appearance and camera tables of the recorded frames)."""
TIMES_NOTE = "The checkpoint stores no times; its frames were placed 0.1 s apart."
MAX_CONFIG_BYTES = 4 * 1024 * 1024


def read_drivestudio(path: Path | str) -> Scene:
    """The scene of a DriveStudio, OmniRe or FaithFusion checkpoint.

    Args:
        path: `checkpoint_*.pth`; `config.yaml` beside it is used where present.

    Raises:
        CheckpointError: Damaged, no node with Gaussians, or tensors that do not fit together.
    """
    path = Path(path)
    content = read_torch_file(path)
    models, config = _models(path, content), _config(path.parent / "config.yaml")
    step = _step(path, content)
    setting = Setting(step=step, config=config, frames=_frame_count(models))
    tables = {
        name: TensorReader(path, state, f"models.{name}")
        for name, state in models.items()
        if isinstance(state, Mapping) and name != "Sky"
    }
    background, nodes, notes = _background(tables, setting, content)
    nodes += read_nodes(tables, setting)
    scene = Scene(background, nodes=tuple(nodes))
    look = read_look(path, models, fusion="Background_origin_mask" in content)
    notes += _left_out(tables, scene.num_gaussians)
    if nodes:
        notes.append(TIMES_NOTE)
    notes += look.notes
    kept = {f"{KEPT}{name}": tensor for name, tensor in look.kept.items()}
    scene = replace(scene, sky=look.sky, tone=look.tone, extra_tensors=kept)
    scene = _without_broken(scene, path, notes)
    return replace(
        scene,
        metadata={"source": path.name, "notes": notes, "drivestudio": {"step": step}},
    )


_NODE_CLASSES = ("RigidNodes", "SMPLNodes", "DeformableNodes")


def _left_out(tables: Mapping[str, TensorReader], known: int) -> list[str]:
    """A sentence per node whose Gaussians nobody here can draw, with their number, since a picture without them
    looks whole."""
    unknown = {
        name: len(table.table["_means"])
        for name, table in tables.items()
        if name not in {"Background", *_NODE_CLASSES} and _has_rows(table.table.get("_means"))
    }
    total = known + sum(unknown.values())
    return [
        f"{count:,} of {total:,} Gaussians were left out because their node class {name[:40]!r} is not known."
        for name, count in unknown.items()
    ]


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _models(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any]:
    models = content.get("models")
    if not isinstance(models, Mapping) or not all(isinstance(k, str) for k in models):
        raise CheckpointError(
            f"{path}: models is a {type(models).__name__}; expected a state dict per node, such as "
            "Background and RigidNodes."
        )
    if not any(isinstance(m, Mapping) and "_means" in m for m in models.values()):
        found = ", ".join(list(models)[:8]) or "nothing"
        raise CheckpointError(
            f"{path}: models holds {found} and none has Gaussians; expected Background or RigidNodes."
        )
    for name, state in models.items():
        if isinstance(state, Mapping) and "_opacities" in state and "_means" not in state:
            raise CheckpointError(
                f"{path}: models.{name[:40]!r} has opacities but lacks _means; the file is damaged, so copy "
                "it again."
            )
    return models


def _step(path: Path, content: Mapping[str, Any]) -> int:
    step = content.get("step", 30_000)
    if not isinstance(step, (int, float)) or isinstance(step, bool) or not 0 <= step < 1e9:
        raise CheckpointError(
            f"{path}: step is {str(step)[:40]}; expected the number of training steps."
        )
    return int(step)


def _config(path: Path) -> Mapping[str, Any]:
    """The run's settings as plain data; empty where there are none, or no safe YAML."""
    import yaml

    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            return {}
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _frame_count(models: Mapping[str, Any]) -> int:
    """Frames of the recording: the first size of any pose table; 1 where nothing moves."""
    for state in models.values():
        table = state.get("instances_trans") if isinstance(state, Mapping) else None
        if isinstance(table, Tensor) and table.dim() == 3:
            return len(table)
    return 1


def _background(
    tables: Mapping[str, TensorReader], setting: Setting, content: Mapping[str, Any]
) -> tuple[Gaussians, list[RigidNode], list[str]]:
    """What does not move as a whole; Gaussians that vibrate become a node of their own."""
    table = tables.get("Background")
    if table is None or not table.has("_means"):
        return empty_gaussians(), [], []
    gaussians = read_gaussians(table, setting)
    origin = content.get("Background_origin_mask")
    if isinstance(origin, Tensor) and origin.shape == (len(gaussians),):
        source = torch.full((len(gaussians),), int(Provenance.REPAIRED), dtype=torch.uint8)
        source[origin.bool()] = int(Provenance.RECORDED)
        gaussians = replace(gaussians, provenance=source)
    if table.has("_taus"):
        node = vibrating_node(table, gaussians, setting)
        return empty_gaussians(gaussians.sh_degree), [node], []
    note = (
        "The background's deformation needs the scene box of its data set, which is not in the file; "
        "it is drawn undeformed."
    )
    deformed = any(str(key).startswith("deform_network.") for key in table.table)
    return gaussians, [], [note] if deformed else []


def _without_broken(scene: Scene, path: Path, notes: list[str]) -> Scene:
    """Only usable Gaussians, with a note of how many were not.

    Raises:
        CheckpointError: There is none.
    """
    parts = [scene.background, *(node.gaussians for node in scene.nodes)]
    masks = [usable_rows(part) for part in parts]
    total, kept = sum(map(len, parts)), sum(int(mask.sum()) for mask in masks)
    if kept == 0:
        raise CheckpointError(
            f"{path}: has {total:,} Gaussians and none with finite values; expected at least one."
        )
    if kept == total:
        return scene
    notes.insert(0, dropped_note(total - kept, total))
    nodes = (node.select(mask) for node, mask in zip(scene.nodes, masks[1:], strict=True))
    return replace(scene, background=parts[0].select(masks[0]), nodes=tuple(nodes))


# ---------------------------------------------------------------------------------------- writing


def write_drivestudio(scene: Scene, path: Path | str) -> list[str]:
    """Write Background, rigid nodes, sky and colour correction in DriveStudio's layout.

    The frames are those of the nodes' times, 0.1 s apart. The affine table of a scene that came
    from DriveStudio goes back as it was; any other scene's tone is one row that every image shares.

    Returns:
        Sentences about what the layout cannot hold.

    Raises:
        CheckpointError: There is nothing to write, or the file cannot be written.
    """
    path, scene = Path(path), scene.to("cpu")
    require_rows(scene.all_gaussians, path)
    models: dict[str, dict[str, Tensor]] = {"Background": gaussian_state(scene.background)}
    rigid = [node for node in scene.nodes if node.motion is None and len(node.gaussians)]
    lost = [f"{n.name}: its motion inside the box" for n in scene.nodes if n.motion is not None]
    if rigid:
        models["RigidNodes"] = rigid_state(rigid)
    if scene.sky is not None:
        models["Sky"] = sky_tensors(scene.sky)
    kept = {k.removeprefix(KEPT): v for k, v in scene.extra_tensors.items() if k.startswith(KEPT)}
    tone = tone_tensors(scene.tone, kept)
    if tone:
        models["Affine"] = tone
    if camera := {k.removeprefix("CamPose/"): v for k, v in kept.items() if "CamPose/" in k}:
        models["CamPose"] = camera
    told = scene.metadata.get("drivestudio")
    step = told.get("step") if isinstance(told, Mapping) else None
    whole = {
        name: {key: value.detach().contiguous().clone() for key, value in state.items()}
        for name, state in models.items()
    }
    content: dict[str, Any] = {"models": whole, "step": step if isinstance(step, int) else 30_000}
    made = scene.background.provenance != int(Provenance.RECORDED)
    if bool(made.any()):
        content["Background_origin_mask"] = ~made
    with write_atomically(path, CheckpointError) as temporary:
        torch.save(content, temporary)
    if scene.exposures is not None and not any(k.startswith("Affine/") for k in kept):
        lost.append("the colour corrections of the single frames")
    if scene.capture is not None:
        lost.append("the recorded frames and their cameras")
    return [f"Left out, since the layout cannot hold it: {', '.join(lost)}."] if lost else []
