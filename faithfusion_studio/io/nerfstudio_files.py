"""Splatfacto checkpoints of nerfstudio, brought back from its axes and scale where these are told.

Layout: `pipeline` holds `_model.gauss_params.{means, scales, quats, features_dc, features_rest,
opacities}`; older files leave out `gauss_params`, several GPUs add `module`. Scales are logs,
opacities (N, 1) logits. `dataparser_transforms.json` beside the run says x_model = s (T x_original).
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.capture_files import CaptureError, matrix4, positive_number, read_json
from faithfusion_studio.io.checkpoints import CheckpointError, TensorReader, read_torch_file
from faithfusion_studio.io.splat_files import keep_finite, splat_scene
from faithfusion_studio.scene import Scene
from faithfusion_studio.transforms import quat_multiply, rgb_to_sh0, rotate_sh, rotmat_to_quat

TRANSFORMS_FILE = "dataparser_transforms.json"
_STEP = re.compile(r"step-(\d{1,12})\.ckpt")
_MEANS = re.compile(r"(_model\.(?:module\.)?(?:gauss_params\.)?)means")


def nerfstudio_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder or of its `nerfstudio_models/`; None where there is none."""
    inner = folder / "nerfstudio_models"
    place = inner if inner.is_dir() else folder
    steps = [(int(m[1]), p) for p in place.iterdir() if (m := _STEP.fullmatch(p.name))]
    return max(steps)[1] if steps else None


def read_nerfstudio(path: Path | str) -> Scene:
    """The Gaussians of a splatfacto checkpoint, in the axes and scale of the data where known.

    Args:
        path: A `step-*.ckpt`, or the folder of a run.

    Raises:
        CheckpointError: Damaged, no splatfacto model, or shapes that do not fit.
        SplatFileError: There is no usable Gaussian.
    """
    path = Path(path)
    file = nerfstudio_checkpoint(path) if path.is_dir() else path
    if file is None:
        raise CheckpointError(f"{path}: has no step-*.ckpt; expected a run of nerfstudio.")
    content = read_torch_file(file)
    table = TensorReader(file, content.get("pipeline"), "pipeline")
    prefix = next((m[1] for key in table.table if (m := _MEANS.fullmatch(str(key)))), None)
    if prefix is None:
        found = ", ".join(map(str, list(table.table)[:4])) or "nothing"
        raise CheckpointError(
            f"{file}: pipeline holds {found}; expected _model.gauss_params.means, so a model "
            "trained with splatfacto."
        )
    gaussians, dropped = keep_finite(_gaussians(table, prefix), file)
    folders = (file.parent, file.parent.parent)
    transforms = next(
        (f / TRANSFORMS_FILE for f in folders if (f / TRANSFORMS_FILE).is_file()), None
    )
    if transforms is None:
        note = (
            f"{TRANSFORMS_FILE} was not found beside the checkpoint, so the scene stays in "
            "nerfstudio's axes and scale; metres and up are unknown."
        )
    else:
        gaussians = _in_data_axes(gaussians, transforms)
        note = f"Axes and scale of the data were restored from {TRANSFORMS_FILE}."
    return splat_scene(gaussians, dropped, file, [note])


def _gaussians(table: TensorReader, prefix: str) -> Gaussians:
    means = table.take(f"{prefix}means", None, 3)
    count = len(means)
    dc = table.take(f"{prefix}features_dc", count, 3)
    rest = table.take(f"{prefix}features_rest", count, None, 3)
    if rest.shape[1] not in (0, 3, 8, 15):
        raise CheckpointError(
            f"{table.path}: features_rest has {rest.shape[1]} coefficients; expected 0, 3, 8 or 15."
        )
    return Gaussians(
        means=means,
        log_scales=table.take(f"{prefix}scales", count, 3),
        quats=table.take(f"{prefix}quats", count, 4),
        logit_opacities=table.take(f"{prefix}opacities", count, 1)[:, 0],
        # Without SH nerfstudio stores colours before a sigmoid.
        sh0=(dc if rest.shape[1] else rgb_to_sh0(torch.sigmoid(dc)))[:, None],
        shN=rest,
        provenance=torch.zeros(count, dtype=torch.uint8),
    )


def _in_data_axes(gaussians: Gaussians, path: Path) -> Gaussians:
    """Undo x_model = s (R x + t): turn back, with the colours, and divide by s."""
    try:
        content = read_json(path)
        pose = matrix4(content.get("transform"), f"{path}: transform")
        scale = positive_number(content.get("scale"), f"{path}: scale")
    except CaptureError as error:
        raise CheckpointError(str(error)) from error
    back = np.linalg.inv(pose)
    rotation = torch.from_numpy(back[:3, :3].copy())
    means = gaussians.means.double() / scale @ rotation.T + torch.from_numpy(back[:3, 3].copy())
    turn = rotmat_to_quat(rotation).to(gaussians.quats)
    return replace(
        gaussians,
        means=means.float(),
        log_scales=gaussians.log_scales - math.log(scale),
        quats=quat_multiply(turn.expand_as(gaussians.quats), gaussians.quats),
        shN=rotate_sh(gaussians.shN, rotation),
    )
