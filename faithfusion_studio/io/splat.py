"""The `.splat` of antimatter15: 32 bytes per Gaussian and no header, so plausibility is the check.

Record: position 3 float32; linear scale 3 float32; red green blue alpha bytes; quaternion wxyz as
q * 128 + 128 in bytes. Colour is SH degree 0 only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.ply import SplatFileError
from faithfusion_studio.io.quantised import (
    Losses,
    logit_of_bytes,
    numpy_of,
    opacity_bytes,
    read_bytes,
    tensor,
    to_bytes,
    unit_quats,
)
from faithfusion_studio.io.splat_files import MAX_COORDINATE, keep_finite, require_rows
from faithfusion_studio.transforms import SH_C0

RECORD = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("quat", "u1", 4)])
SMALLEST_SCALE = 1e-9
"""m; stands for a scale of zero, whose logarithm is not finite."""
_PROBED = 64


def looks_like_splat(path: Path) -> bool:
    """Whether a file without a header can be a `.splat`: whole records of plausible Gaussians."""
    size = path.stat().st_size
    if size == 0 or size % RECORD.itemsize:
        return False
    with path.open("rb") as file:
        rows = np.frombuffer(file.read(_PROBED * RECORD.itemsize), RECORD)
    with np.errstate(all="ignore"):
        length = np.linalg.norm(rows["quat"].astype(np.float32) - 128, axis=1)
        good = (np.abs(rows["mean"]) < MAX_COORDINATE).all(1)
        good &= ((rows["scale"] >= 0) & (rows["scale"] < 1e4)).all(1)
        good &= np.abs(length - 128) < 4
        # Words that are read as floats are either plausible everywhere or hardly ever.
        good &= (rows["scale"].max(1) > 1e-12) | (rows["mean"] != 0).any(1)
    return bool(good.mean() > 0.9)


def read_splat(path: Path | str) -> tuple[Gaussians, int]:
    """Gaussians of a `.splat`, and how many were dropped because they were not finite or huge.

    Raises:
        SplatFileError: Its size is no multiple of 32, or no Gaussian is usable.
    """
    path = Path(path)
    data = read_bytes(path)
    if not data or len(data) % RECORD.itemsize:
        raise SplatFileError(
            f"{path}: has {len(data):,} bytes; expected a multiple of {RECORD.itemsize} as in "
            "every .splat file, so it is truncated or of another format."
        )
    rows = np.frombuffer(data, RECORD)
    with np.errstate(all="ignore"):
        scales = np.where(rows["scale"] == 0, np.float32(SMALLEST_SCALE), rows["scale"])
        log_scales = np.log(scales)
    gaussians = Gaussians(
        means=tensor(rows["mean"]),
        log_scales=tensor(log_scales),
        quats=tensor((rows["quat"].astype(np.float32) - 128) / 128),
        logit_opacities=tensor(logit_of_bytes(rows["color"][:, 3])),
        sh0=tensor((rows["color"][:, :3].astype(np.float32) / 255 - 0.5) / SH_C0)[:, None],
        shN=torch.zeros(len(rows), 0, 3),
        provenance=torch.zeros(len(rows), dtype=torch.uint8),
    )
    return keep_finite(gaussians, path)


def write_splat(gaussians: Gaussians, path: Path | str) -> list[str]:
    """Write a `.splat`, large and opaque Gaussians first, as viewers expect.

    Returns:
        Sentences about what the format could not hold.

    Raises:
        SplatFileError: There is nothing to write, or the file cannot be written.
    """
    path = Path(path)
    require_rows(gaussians, path)
    losses = Losses()
    rows = np.empty(len(gaussians), RECORD)
    rows["mean"] = numpy_of(gaussians.means)
    rows["scale"] = np.exp(numpy_of(gaussians.log_scales))
    rgb = numpy_of(gaussians.sh0)[:, 0] * SH_C0 + 0.5
    rows["color"][:, :3] = to_bytes(losses.clip("colours", rgb, 0, 1) * 255)
    rows["color"][:, 3] = opacity_bytes(gaussians)
    rows["quat"] = to_bytes(unit_quats(gaussians) * 128 + 128)
    importance = numpy_of(gaussians.log_scales).sum(1) + np.log(
        np.maximum(rows["color"][:, 3], 1) / 255
    )
    ordered = rows[np.argsort(-importance, kind="stable")]
    with write_atomically(path, SplatFileError) as temporary:
        ordered.tofile(temporary)
    return losses.notes(".splat")
