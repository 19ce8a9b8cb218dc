"""The compressed PLY of SuperSplat and PlayCanvas: 16 bytes per Gaussian in chunks of 256.

Layout: `chunk` holds limits (min and max of position, scale and, in newer files, colour),
`vertex` four packed uint32 per Gaussian, `sh` optional bytes. Positions and scales are 11-10-11
bits between the limits of their chunk, rotations 2-10-10-10 ("smallest three"), colour 8-8-8-8.
Source: PlayCanvas engine, `gsplat-compressed-data.js`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.ply import SplatFileError, read_ply_elements, read_ply_header
from faithfusion_studio.io.quantised import (
    Losses,
    from_smallest_three,
    logit_of_bytes,
    numpy_of,
    opacity_bytes,
    smallest_three,
    tensor,
    unit_quats,
)
from faithfusion_studio.io.splat_files import keep_finite, require_rows
from faithfusion_studio.transforms import SH_C0

CHUNK = 256
_LIMITS = [f"{side}_{axis}" for side in ("min", "max") for axis in "xyz"]
_LIMITS += [f"{side}_scale_{axis}" for side in ("min", "max") for axis in "xyz"]
_COLOR_LIMITS = [f"{side}_{channel}" for side in ("min", "max") for channel in "rgb"]
_PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]
_REST = {0: 0, 9: 3, 24: 8, 45: 15}


def read_compressed_ply(path: Path | str) -> tuple[Gaussians, int]:
    """Gaussians of a compressed PLY, and how many were dropped because they were not finite.

    Raises:
        SplatFileError: Damaged, or an element or property is missing.
    """
    path = Path(path)
    parts = read_ply_elements(path, read_ply_header(path), ["chunk", "vertex", "sh"])
    for element, names in (("chunk", _LIMITS), ("vertex", _PACKED)):
        rows = parts.get(element)
        missing = [n for n in names if rows is None or n not in (rows.dtype.names or ())]
        if missing:
            raise SplatFileError(
                f"{path}: {element} lacks {', '.join(missing[:4])}; expected a compressed PLY of "
                "SuperSplat."
            )
    chunks, rows = parts["chunk"], parts["vertex"]
    count = len(rows)
    if len(chunks) * CHUNK < count:
        raise SplatFileError(
            f"{path}: {count:,} Gaussians need {-(-count // CHUNK):,} chunks but the file has "
            f"{len(chunks):,}; it is damaged."
        )
    chunk = np.arange(count) // CHUNK
    means = _between(chunks, chunk, "", _bits_11_10_11(rows["packed_position"]))
    log_scales = _between(chunks, chunk, "scale_", _bits_11_10_11(rows["packed_scale"]))
    color = _bytes(rows["packed_color"])
    rgb = color[:, :3]
    if all(n in (chunks.dtype.names or ()) for n in _COLOR_LIMITS):
        rgb = _between(chunks, chunk, "", rgb, "rgb")
    gaussians = Gaussians(
        means=tensor(means),
        log_scales=tensor(log_scales.clip(-20, 20)),
        quats=tensor(_rotations(rows["packed_rotation"])),
        logit_opacities=tensor(logit_of_bytes(_unsigned(rows["packed_color"]) & 255)),
        sh0=tensor((rgb - 0.5) / SH_C0)[:, None],
        shN=_harmonics(path, parts.get("sh"), count),
        provenance=torch.zeros(count, dtype=torch.uint8),
    )
    return keep_finite(gaussians, path)


def _unsigned(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "ui":
        values = np.nan_to_num(values).clip(0, 2**32 - 1)
    return values.astype(np.int64) & 0xFFFFFFFF


def _bits_11_10_11(values: np.ndarray) -> np.ndarray:
    packed = _unsigned(values)
    fields = ((packed >> 21) / 2047, ((packed >> 11) & 1023) / 1023, (packed & 2047) / 2047)
    return np.stack(fields, axis=1)


def _bytes(values: np.ndarray) -> np.ndarray:
    packed = _unsigned(values)
    return np.stack([(packed >> shift) & 255 for shift in (24, 16, 8, 0)], axis=1) / 255


def _between(
    chunks: np.ndarray, chunk: np.ndarray, prefix: str, fraction: np.ndarray, axes: str = "xyz"
) -> np.ndarray:
    """Fractions of each Gaussian between the limits of its chunk."""
    with np.errstate(all="ignore"):
        low = np.stack([chunks[f"min_{prefix}{a}"] for a in axes], 1).astype(np.float64)[chunk]
        high = np.stack([chunks[f"max_{prefix}{a}"] for a in axes], 1).astype(np.float64)[chunk]
        return np.clip(low + (high - low) * fraction, -1e30, 1e30)


def _rotations(values: np.ndarray) -> np.ndarray:
    packed = _unsigned(values)
    others = np.stack([(packed >> shift) & 1023 for shift in (20, 10, 0)], axis=1)
    small = ((others / 1023 - 0.5) * np.sqrt(2)).astype(np.float32)
    return from_smallest_three(packed >> 30, small)


def _harmonics(path: Path, rows: np.ndarray | None, count: int) -> torch.Tensor:
    if rows is None:
        return torch.zeros(count, 0, 3)
    names = rows.dtype.names or ()
    rest = sum(name.startswith("f_rest_") for name in names)
    if (
        rest not in _REST
        or len(rows) != count
        or any(f"f_rest_{i}" not in names for i in range(rest))
    ):
        raise SplatFileError(
            f"{path}: has {len(rows):,} SH rows of {rest} values for {count:,} Gaussians; expected "
            "as many rows, of 0, 9, 24 or 45 values."
        )
    if rest == 0:
        return torch.zeros(count, 0, 3)
    table = np.stack([rows[f"f_rest_{i}"] for i in range(rest)], axis=1)
    values = table.astype(np.float32) * (8 / 255) - 4
    return torch.from_numpy(values).reshape(count, 3, _REST[rest]).transpose(1, 2).contiguous()


# ----------------------------------------------------------------------------------------- write


def write_compressed_ply(gaussians: Gaussians, path: Path | str) -> list[str]:
    """Write a compressed PLY; rows are put into Morton order, so that chunks are small boxes.

    Returns:
        Sentences about what the format could not hold.

    Raises:
        SplatFileError: There is nothing to write, or the file cannot be written.
    """
    path = Path(path)
    require_rows(gaussians, path)
    losses = Losses()
    g = gaussians.select(torch.from_numpy(morton_order(numpy_of(gaussians.means))))
    log_scales = losses.clip("scales", numpy_of(g.log_scales), -20, 20)
    rgb = numpy_of(g.sh0)[:, 0] * SH_C0 + 0.5
    limits, fractions = zip(*map(_chunked, (numpy_of(g.means), log_scales, rgb)), strict=True)
    alpha = opacity_bytes(g).astype(np.uint32)
    color = np.rint(fractions[2] * 255).astype(np.uint32)
    vertex = np.empty((len(g), 4), "<u4")
    vertex[:, 0] = _packed_11_10_11(fractions[0])
    vertex[:, 1] = _packed_rotations(unit_quats(g))
    vertex[:, 2] = _packed_11_10_11(fractions[1])
    vertex[:, 3] = color[:, 0] << 24 | color[:, 1] << 16 | color[:, 2] << 8 | alpha
    chunk = np.concatenate(limits, axis=1).astype("<f4")
    rest = numpy_of(g.shN).transpose(0, 2, 1).reshape(len(g), -1)
    sh = np.trunc((losses.clip("SH values", rest, -4, 4) / 8 + 0.5) * 256).clip(0, 255)
    lines = ["ply", "format binary_little_endian 1.0", "comment FaithFusion Studio"]
    lines += [f"element chunk {len(chunk)}", *(f"property float {n}" for n in _LIMITS)]
    lines += [*(f"property float {n}" for n in _COLOR_LIMITS), f"element vertex {len(g)}"]
    lines += [f"property uint {name}" for name in _PACKED]
    if rest.shape[1]:
        lines += [f"element sh {len(g)}"]
        lines += [f"property uchar f_rest_{i}" for i in range(rest.shape[1])]
    header = "\n".join([*lines, "end_header", ""]).encode("ascii")
    content = [header, chunk.tobytes(), vertex.tobytes(), sh.astype(np.uint8).tobytes()]
    with write_atomically(path, SplatFileError) as temporary, temporary.open("wb") as file:
        file.writelines(content)
    return losses.notes("compressed PLY")


def morton_order(means: np.ndarray) -> np.ndarray:
    """Row indices along a space-filling curve of 1024 steps a side."""
    low, high = means.min(0), means.max(0)
    cell = ((means - low) / np.maximum(high - low, 1e-20) * 1023).astype(np.uint32)
    code = np.zeros(len(means), np.uint32)
    for bit in range(10):
        for axis in range(3):
            code |= (cell[:, axis] >> bit & 1) << (3 * bit + axis)
    return np.argsort(code, kind="stable")


def _chunked(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per chunk its lowest and highest values, [C, 6]; per row where it lies between, [N, 3]."""
    starts = np.arange(0, len(values), CHUNK)
    low = np.minimum.reduceat(values, starts)
    high = np.maximum.reduceat(values, starts)
    chunk = np.arange(len(values)) // CHUNK
    # A chunk that is flat along an axis has no extent to divide by.
    extent = np.where(high > low, high - low, 1)
    return np.concatenate([low, high], axis=1), (values - low[chunk]) / extent[chunk]


def _packed_11_10_11(fractions: np.ndarray) -> np.ndarray:
    steps = np.rint(fractions * [2047, 1023, 2047]).astype(np.uint32)
    return steps[:, 0] << 21 | steps[:, 1] << 11 | steps[:, 2]


def _packed_rotations(quats: np.ndarray) -> np.ndarray:
    largest, others = smallest_three(quats)
    steps = np.rint((others / np.sqrt(2) + 0.5) * 1023).clip(0, 1023).astype(np.uint32)
    place = largest.astype(np.uint32) << 30
    return place | steps[:, 0] << 20 | steps[:, 1] << 10 | steps[:, 2]
