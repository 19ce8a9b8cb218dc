"""Checkpoints of gsplat's trainer, `ckpt_{step}_rank{r}.pt`: every rank of a step is one part.

Layout (gsplat `examples/simple_trainer.py`): `step`, and `splats` with means (N, 3), quats (N, 4)
wxyz not normalised, scales (N, 3) logs, opacities (N,) logits, sh0 (N, 1, 3), shN (N, K - 1, 3).
With appearance optimisation `features` and `colors` (N, 3) logits stand in for SH.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from faithfusion_studio.gaussians import Gaussians, concatenate
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.checkpoints import CheckpointError, TensorReader, read_torch_file
from faithfusion_studio.io.splat_files import keep_finite, require_rows, splat_scene
from faithfusion_studio.scene import Scene
from faithfusion_studio.transforms import rgb_to_sh0

_RANK = re.compile(r"(ckpt_(\d{1,12}))_rank(\d{1,6})\.pt")
_COEFFICIENTS = (0, 3, 8, 15)
UNTOLD_NOTE = (
    "gsplat moves a scene into its own axes and scale before training and does not store how; "
    "metres and up may be lost."
)


def gsplat_ranks(path: Path) -> list[Path]:
    """The rank files that belong to one checkpoint, in order of rank.

    Args:
        path: One rank file, whose neighbours of the same step are found; any other file stands
            alone. Or a folder with rank files (or with `ckpts/`), of which the last step is taken.
    """
    folder, stem = path.parent, None
    if path.is_dir():
        folder = path / "ckpts" if (path / "ckpts").is_dir() else path
        steps = [m for p in folder.iterdir() if (m := _RANK.fullmatch(p.name))]
        stem = max(steps, key=lambda m: int(m[2]))[1] if steps else None
    elif found := _RANK.fullmatch(path.name):
        stem = found[1]
    if stem is None:
        return [] if path.is_dir() else [path]
    ranks = [
        (int(m[3]), p) for p in folder.iterdir() if (m := _RANK.fullmatch(p.name)) and m[1] == stem
    ]
    return [p for _, p in sorted(ranks)]


def read_gsplat(path: Path | str) -> Scene:
    """The Gaussians of every rank of a gsplat checkpoint, concatenated.

    Args:
        path: A rank file, or the folder of a run.

    Raises:
        CheckpointError: Damaged, missing tensors, or shapes that do not fit.
        SplatFileError: There is no usable Gaussian.
    """
    path, notes = Path(path), []
    parts = []
    for file in gsplat_ranks(path):
        part, note = _read_rank(file)
        parts.append(part)
        notes += note
    if not parts:
        raise CheckpointError(f"{path}: has no ckpt_STEP_rankR.pt; expected a run of gsplat.")
    gaussians, dropped = keep_finite(concatenate(parts), path)
    if len(parts) > 1:
        notes.append(f"{len(parts)} ranks of one step were put together.")
    return splat_scene(gaussians, dropped, path, [*dict.fromkeys(notes), UNTOLD_NOTE])


def _read_rank(path: Path) -> tuple[Gaussians, list[str]]:
    content = read_torch_file(path)
    if "splats" not in content:
        raise CheckpointError(
            f"{path}: has the keys {', '.join(list(content)[:6]) or 'none'}; expected splats, as "
            "gsplat writes."
        )
    table = TensorReader(path, content["splats"], "splats")
    means = table.take("means", None, 3)
    count, notes = len(means), []
    if table.has("sh0"):
        sh0 = table.take("sh0", count, 1, 3)
        shN = table.take("shN", count, None, 3) if table.has("shN") else torch.zeros(count, 0, 3)
    else:
        sh0 = rgb_to_sh0(torch.sigmoid(table.take("colors", count, 3)))[:, None]
        shN = torch.zeros(count, 0, 3)
        notes.append("Colours per view (appearance features) were left out; the base colour stays.")
    if shN.shape[1] not in _COEFFICIENTS:
        if shN.shape[1] < 15:
            raise CheckpointError(
                f"{path}: splats.shN has {shN.shape[1]} coefficients; expected 0, 3, 8 or 15."
            )
        notes.append(f"SH beyond degree 3 ({shN.shape[1]} coefficients) were cut to 15.")
        shN = shN[:, :15].contiguous()
    gaussians = Gaussians(
        means=means,
        log_scales=table.take("scales", count, 3),
        quats=table.take("quats", count, 4),
        logit_opacities=table.take("opacities", count),
        sh0=sh0,
        shN=shN,
        provenance=torch.zeros(count, dtype=torch.uint8),
    )
    return gaussians, notes


def write_gsplat(gaussians: Gaussians, path: Path | str) -> None:
    """Write Gaussians as one rank of a gsplat checkpoint; every stored value stays as it is.

    Raises:
        CheckpointError: There is nothing to write, or the file cannot be written.
    """
    path = Path(path)
    require_rows(gaussians, path)
    g = gaussians.to("cpu")
    splats = {
        "means": g.means,
        "scales": g.log_scales,
        "quats": g.quats,
        "opacities": g.logit_opacities,
        "sh0": g.sh0,
        "shN": g.shN,
    }
    whole = {name: value.detach().to(torch.float32).clone() for name, value in splats.items()}
    with write_atomically(path, CheckpointError) as temporary:
        torch.save({"step": 0, "splats": whole}, temporary)
