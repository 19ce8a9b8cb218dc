"""Compact storage of the Fisher evidence, always positive semi-definite when read back.

A block H = D C D is split into its diagonal (D^2) and its correlation matrix C. D^2 is stored as a
16-bit logarithm (relative error 7e-4, zero stays zero). C is stored as the 78 partial correlations
z_ij of its Cholesky factor, as 12-bit angles arcsin(z): any such numbers are a correlation matrix,
and directions in which a block is weak, which decide the EIG, keep their relative accuracy.
Codes are laid out column by column as a plane of low and a plane of high bytes, and deflated.

Symbols: z [78, n] partial correlations, row-major over the lower triangle; L = Cholesky factor of
C with unit rows, L_ij = z_ij sqrt(prod_{k<j} (1 - z_ik^2)).
Source: Joe 2006, "Generating random correlation matrices based on partial correlations".
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from faithfusion_studio.io.tensor_table import LayoutError, TensorTable, json_value
from faithfusion_studio.scene import StoredFisher

FISHER_ENCODING = "log16 diagonal, 12-bit partial correlations, byte planes, deflate"
SIZE = 13
LOG_RANGE = (-64.0, 64.0)
"""Smallest and largest storable power of two; values outside are clamped, zero has its own code."""
_LOG_STEPS = 65_534
_ANGLE_STEPS = 2047
_PIVOT_FLOOR = 1e-6
_CHUNK = 1 << 16
_LOWER = [(i, j) for i in range(SIZE) for j in range(i)]
_UPPER = {pair: n for n, pair in enumerate((i, j) for i in range(SIZE) for j in range(i, SIZE))}
_DIAGONAL = [_UPPER[i, i] for i in range(SIZE)]


def pack_logs(values: Float32[Tensor, "*B"]) -> UInt8[Tensor, "_"]:
    """Non-negative values as deflated 16-bit logarithms; not finite counts as no evidence."""
    flat = values.detach().cpu().reshape(-1).numpy()
    codes = np.zeros(flat.shape, np.uint16)
    good = np.isfinite(flat) & (flat > 0)
    low, high = LOG_RANGE
    unit = (np.log2(flat[good].astype(np.float64)) - low) / (high - low)
    codes[good] = 1 + np.rint(unit.clip(0, 1) * _LOG_STEPS).astype(np.uint16)
    return _deflate(codes)


def unpack_logs(packed: UInt8[Tensor, "_"], shape: tuple[int, ...]) -> Float32[Tensor, "..."]:
    """What `pack_logs` stored, in the shape it had.

    Raises:
        ValueError: The bytes are damaged or hold another number of values.
    """
    codes = _inflate(packed, int(np.prod(shape, dtype=np.int64)))
    low, high = LOG_RANGE
    values = np.exp2(low + (codes - np.float32(1)) * np.float32((high - low) / _LOG_STEPS))
    values[codes == 0] = 0
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def pack_correlations(blocks: Float32[Tensor, "N 91"]) -> UInt8[Tensor, "_"]:
    """Partial correlations of packed Fisher blocks as deflated 12-bit angles."""
    rows = blocks.detach().cpu().numpy()
    codes = np.empty((len(_LOWER), len(rows)), np.uint16)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK].astype(np.float64).T
        part = np.where(np.isfinite(part).all(0), part, 0)
        angles = np.arcsin(_partial_correlations(part)) * (2 / np.pi)
        limit = _ANGLE_STEPS - 1
        steps = np.rint(angles * _ANGLE_STEPS).clip(-limit, limit)
        codes[:, start : start + _CHUNK] = (steps + _ANGLE_STEPS).astype(np.uint16)
    return _deflate(codes)


def unpack_blocks(
    packed: UInt8[Tensor, "_"], diagonal: Float32[Tensor, "N 13"]
) -> Float32[Tensor, "N 91"]:
    """Packed Fisher blocks from their partial correlations and their diagonals.

    Raises:
        ValueError: The bytes are damaged or belong to another number of rows.
    """
    count = len(diagonal)
    codes = _inflate(packed, len(_LOWER) * count).reshape(len(_LOWER), count)
    table = np.sin((np.arange(4096) - _ANGLE_STEPS) / _ANGLE_STEPS * (np.pi / 2)).astype(np.float32)
    blocks = np.empty((count, len(_UPPER)), np.float32)
    for start in range(0, count, _CHUNK):
        z = table[np.minimum(codes[:, start : start + _CHUNK], 4095)]
        scale = np.sqrt(diagonal[start : start + _CHUNK].numpy().T)
        blocks[start : start + _CHUNK] = _blocks(z, scale).T
    return torch.from_numpy(blocks)


def diagonal_of(blocks: Float32[Tensor, "N 91"]) -> Float32[Tensor, "N 13"]:
    """The diagonals of packed 13x13 blocks."""
    return blocks[:, _DIAGONAL].contiguous()


def _partial_correlations(part: np.ndarray) -> np.ndarray:
    """z [78, n] of packed blocks [91, n] float64; pivots are kept above a floor."""
    diagonal = part[_DIAGONAL].clip(0)
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1)), 0)
    z = np.zeros((len(_LOWER), part.shape[1]))
    index = {pair: n for n, pair in enumerate(_LOWER)}
    L = np.zeros((SIZE, SIZE, part.shape[1]))
    for j in range(SIZE):
        pivot = np.sqrt((1 - (L[j, :j] ** 2).sum(0)).clip(_PIVOT_FLOOR))
        for i in range(j + 1, SIZE):
            correlation = part[_UPPER[j, i]] * scale[i] * scale[j]
            remaining = (1 - (L[i, :j] ** 2).sum(0)).clip(_PIVOT_FLOOR)
            value = (correlation - (L[i, :j] * L[j, :j]).sum(0)) / pivot
            z[index[i, j]] = (value / np.sqrt(remaining)).clip(-1, 1)
            L[i, j] = z[index[i, j]] * np.sqrt(remaining)
    return z


def _blocks(z: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Packed blocks [91, n] from partial correlations [78, n] and square roots of diagonals."""
    rows: list[list[np.ndarray]] = []
    n = 0
    for i in range(SIZE):
        remaining = scale[i].copy()  # the row of D L, so that no second pass scales it
        row = []
        for _ in range(i):
            row.append(z[n] * remaining)
            remaining *= np.sqrt(1 - z[n] * z[n])
            n += 1
        rows.append([*row, remaining])
    blocks = np.empty((len(_UPPER), z.shape[1]), np.float32)
    for (i, j), target in _UPPER.items():
        total = rows[i][0] * rows[j][0]
        for k in range(1, i + 1):
            total += rows[i][k] * rows[j][k]
        blocks[target] = total
    return blocks


def _deflate(codes: np.ndarray) -> Tensor:
    flat = np.ascontiguousarray(codes).reshape(-1).astype("<u2")
    planes = flat.view(np.uint8).reshape(-1, 2).T
    data = zlib.compress(np.ascontiguousarray(planes).tobytes(), 5)
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _inflate(packed: Tensor, count: int) -> np.ndarray:
    worker = zlib.decompressobj()
    try:
        data = worker.decompress(packed.numpy().tobytes(), 2 * count + 1)
    except zlib.error as error:
        raise ValueError(f"packed evidence is damaged ({error})") from error
    if len(data) != 2 * count:
        raise ValueError(f"packed evidence holds {len(data) // 2} values instead of {count}")
    planes = np.frombuffer(data, np.uint8).reshape(2, count)
    return planes[0].astype(np.uint16) | (planes[1].astype(np.uint16) << 8)


def _noise(entry: Any) -> float:
    """The noise level; a value that was not finite is written as null."""
    value = json_value(entry, "noise_std", (int, float, type(None)))
    return math.nan if value is None else float(value)


def put_fisher(tensors: dict[str, Tensor], fisher: StoredFisher) -> dict[str, Any]:
    """Add the packed evidence to the tensors of a file; returns its JSON description."""
    tensors["fisher/diagonal"] = pack_logs(diagonal_of(fisher.blocks))
    tensors["fisher/correlations"] = pack_correlations(fisher.blocks)
    tensors["fisher/sh"] = pack_logs(fisher.sh)
    entry: dict[str, Any] = {
        "encoding": FISHER_ENCODING,
        "rows": len(fisher.blocks),
        "sh_coefficients": fisher.sh.shape[1],
        "noise_std": fisher.noise_std,
        "num_views": fisher.num_views,
        "sky_side": None,
    }
    if fisher.sky is not None:
        entry["sky_side"] = list(fisher.sky.shape[1:])
        tensors["fisher/sky"] = pack_logs(fisher.sky)
    if fisher.residual_variance is not None:
        tensors["fisher/residual_variance"] = pack_logs(fisher.residual_variance)
    if fisher.calibration is not None:
        tensors["fisher/calibration"] = fisher.calibration
    return entry


def take_fisher(source: TensorTable, entry: Any) -> StoredFisher | None:
    """The evidence that `put_fisher` described; None where the file has none.

    Raises:
        LayoutError: A tensor is missing, damaged, or of another size.
    """
    if entry is None:
        return None
    if json_value(entry, "encoding", str) != FISHER_ENCODING:
        raise LayoutError(f"the Fisher encoding {entry['encoding'][:80]!r} is unknown")
    n = json_value(entry, "rows", int)
    coefficients = json_value(entry, "sh_coefficients", int)
    if not (0 <= n <= 10**9 and 0 <= coefficients <= 24):
        raise LayoutError(f"the Fisher evidence has {n} rows of {coefficients} coefficients")

    def logs(key: str, shape: tuple[int, ...]) -> Tensor:
        packed = source.take(f"fisher/{key}", (None,), (torch.uint8,))
        try:
            return unpack_logs(packed, shape)
        except ValueError as error:
            raise LayoutError(f"fisher/{key}: {error}") from error

    diagonal = logs("diagonal", (n, 13))
    try:
        blocks = unpack_blocks(
            source.take("fisher/correlations", (None,), (torch.uint8,)), diagonal
        )
    except ValueError as error:
        raise LayoutError(f"fisher/correlations: {error}") from error
    sky = None
    if entry.get("sky_side") is not None:
        side = json_value(entry, "sky_side", list)
        if len(side) != 2 or not all(type(s) is int and 0 < s <= 8192 for s in side):
            raise LayoutError("the sky evidence has an impossible size")
        sky = logs("sky", (6, side[0], side[1]))
    calibration = None
    if "fisher/calibration" in source.left:
        calibration = source.take("fisher/calibration", (None, 2), (torch.float32,))
    residual = "fisher/residual_variance" in source.left
    return StoredFisher(
        blocks=blocks,
        sh=logs("sh", (n, coefficients, 3)),
        noise_std=_noise(entry),
        num_views=json_value(entry, "num_views", int),
        sky=sky,
        residual_variance=logs("residual_variance", (n,)) if residual else None,
        calibration=calibration,
    )
