"""The `.ksplat` of GaussianSplats3D (mkkellogg), read: sections of buckets, three compression levels.

A header of 4096 bytes, then one of 1024 bytes per section, then the sections: sizes of the buckets
that are not full, bucket centres, Gaussians. Level 0 holds float32; level 1 positions as 16 bits
around their bucket's centre, scales, rotations and SH as float16; level 2 SH as bytes. Scales are
linear, quaternions wxyz, colours bytes; SH runs band by band, in each band channel by channel.
Source: GaussianSplats3D, `SplatBuffer.js`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.gaussians import Gaussians, concatenate, empty_gaussians
from faithfusion_studio.io.ply import SplatFileError
from faithfusion_studio.io.quantised import logit_of_bytes, read_bytes, tensor
from faithfusion_studio.io.splat import SMALLEST_SCALE
from faithfusion_studio.io.splat_files import keep_finite
from faithfusion_studio.transforms import SH_C0

_HEADER, _SECTION = 4096, 1024
_COEFFICIENTS = (0, 3, 8, 15)
_FLOATS = ("<f4", "<f2", "<f2")
_DEFAULT_RANGE = 32767
_SH_LIMIT = 1.5
MAX_SECTIONS = 65_536


@dataclass(frozen=True)
class _File:
    level: int
    sections: int
    count: int
    sh_low: float
    sh_high: float


@dataclass(frozen=True)
class _Section:
    count: int
    capacity: int
    """Gaussians there is room for."""
    bucket_size: int
    buckets: int
    block: float
    """Side of a bucket, m."""
    bucket_bytes: int
    steps: int
    """Half the number of steps along the side of a bucket."""
    full: int
    partial: int
    degree: int


def is_ksplat(path: Path, head: bytes) -> bool:
    """Whether a file can be `.ksplat`: version 0.x with a known level and room for its header."""
    if len(head) < 44 or head[0] != 0 or not 1 <= head[1] <= 9:
        return False
    sections, used = struct.unpack_from("<II", head, 4)
    room = _HEADER + _SECTION * sections
    plausible = 0 < used <= sections and struct.unpack_from("<H", head, 20)[0] <= 2
    return plausible and room <= path.stat().st_size


def read_ksplat(path: Path | str) -> tuple[Gaussians, int]:
    """Gaussians of a `.ksplat`, and how many were dropped because they were not finite or huge.

    Raises:
        SplatFileError: Damaged, of an unknown level, or without a usable Gaussian.
    """
    path = Path(path)
    data = read_bytes(path)
    file = _parse_header(path, data)
    start, parts = _HEADER + _SECTION * file.sections, []
    for index in range(file.sections):
        section = _parse_section(path, data, file, index)
        gaussians, start = _read_section(path, data, file, section, start)
        if section.count:
            parts.append(gaussians)
    found = sum(map(len, parts))
    if found != file.count:
        raise SplatFileError(
            f"{path}: the header promises {file.count:,} Gaussians but its sections hold "
            f"{found:,}; the file is damaged."
        )
    return keep_finite(concatenate(parts), path)


def _parse_header(path: Path, data: bytes) -> _File:
    if len(data) < _HEADER:
        raise SplatFileError(
            f"{path}: has {len(data):,} bytes; expected at least the {_HEADER} of a .ksplat header."
        )
    sections = struct.unpack_from("<I", data, 4)[0]
    count, level = struct.unpack_from("<IH", data, 16)
    low, high = struct.unpack_from("<ff", data, 36)
    if data[0] != 0 or data[1] < 1 or level > 2 or sections > MAX_SECTIONS or count == 0:
        raise SplatFileError(
            f"{path}: states version {data[0]}.{data[1]}, compression level {level}, "
            f"{sections:,} sections and {count:,} Gaussians; expected version 0.1, a level up to 2 "
            "and at least one Gaussian."
        )
    if _HEADER + _SECTION * sections > len(data):
        raise SplatFileError(
            f"{path}: promises {sections:,} sections in {len(data):,} bytes; it is truncated."
        )
    if not (np.isfinite(low) and np.isfinite(high)) or low == high:
        low, high = 0.0, 0.0
    return _File(level, sections, count, low or -_SH_LIMIT, high or _SH_LIMIT)


def _parse_section(path: Path, data: bytes, file: _File, index: int) -> _Section:
    at = _HEADER + _SECTION * index
    count, capacity, bucket_size, buckets, block, bucket_bytes = struct.unpack_from(
        "<IIIIfH", data, at
    )
    steps = struct.unpack_from("<I", data, at + 24)[0]
    full, partial, degree = struct.unpack_from("<IIH", data, at + 32)
    fits = count <= capacity and degree <= 3
    if file.level and count:
        fits = fits and full + partial == buckets and bucket_bytes >= 12 and np.isfinite(block)
    if not fits:
        raise SplatFileError(
            f"{path}: section {index} holds {count:,} of {capacity:,} Gaussians in {buckets:,} "
            f"buckets with SH degree {degree}, which contradicts itself; the file is damaged."
        )
    return _Section(
        count,
        capacity,
        bucket_size,
        buckets,
        block,
        bucket_bytes,
        steps or _DEFAULT_RANGE,
        full,
        partial,
        degree,
    )


def _row_type(level: int, degree: int) -> np.dtype:
    real = _FLOATS[level]
    sh = "u1" if level == 2 else real
    return np.dtype(
        [
            ("mean", "<f4" if level == 0 else "<u2", 3),
            ("scale", real, 3),
            ("quat", real, 4),
            ("color", "u1", 4),
            ("sh", sh, (3 * _COEFFICIENTS[degree],)),
        ]
    )


def _read_section(
    path: Path, data: bytes, file: _File, section: _Section, start: int
) -> tuple[Gaussians, int]:
    """The Gaussians of a section that begins at a byte, and where the next one begins."""
    kind = _row_type(file.level, section.degree)
    rows_at = start + section.partial * 4 + section.bucket_bytes * section.buckets
    end = rows_at + kind.itemsize * section.capacity
    if end > len(data):
        raise SplatFileError(
            f"{path}: a section of {section.capacity:,} Gaussians ends at byte {end:,} of "
            f"{len(data):,}; the file is truncated or damaged."
        )
    if section.count == 0:
        return empty_gaussians(section.degree), end
    rows = np.frombuffer(data, kind, section.count, rows_at)
    with np.errstate(all="ignore"):
        scales = rows["scale"].astype(np.float32)
        log_scales = np.log(np.where(scales == 0, np.float32(SMALLEST_SCALE), scales))
        means = rows["mean"].astype(np.float32)
        if file.level:
            step = np.float32(section.block / 2 / section.steps)
            means = (means - section.steps) * step + _centers(path, data, section, start)
    gaussians = Gaussians(
        means=tensor(means),
        log_scales=tensor(log_scales),
        quats=tensor(rows["quat"]),
        logit_opacities=tensor(logit_of_bytes(rows["color"][:, 3])),
        sh0=tensor((rows["color"][:, :3].astype(np.float32) / 255 - 0.5) / SH_C0)[:, None],
        shN=tensor(_higher(file, section, rows["sh"])),
        provenance=torch.zeros(section.count, dtype=torch.uint8),
    )
    return gaussians, end


def _centers(path: Path, data: bytes, section: _Section, start: int) -> np.ndarray:
    """The centre of the bucket each Gaussian is in, [N, 3] m."""
    sizes = np.frombuffer(data, "<u4", section.partial, start).astype(np.int64)
    in_full = min(section.full * section.bucket_size, section.count)
    rest = section.count - in_full
    if int(sizes.sum()) != rest:
        raise SplatFileError(
            f"{path}: buckets that are not full hold {int(sizes.sum()):,} Gaussians but {rest:,} "
            "are left for them; the file is damaged."
        )
    if section.buckets == 0:
        return np.zeros((section.count, 3), np.float32)
    table = np.frombuffer(
        data, np.uint8, section.buckets * section.bucket_bytes, start + 4 * section.partial
    ).reshape(section.buckets, section.bucket_bytes)
    centers = np.ascontiguousarray(table[:, :12]).view("<f4")
    which = np.concatenate(
        [
            np.arange(in_full) // max(section.bucket_size, 1),
            np.repeat(section.full + np.arange(section.partial), sizes),
        ]
    )
    return centers[which]


def _higher(file: _File, section: _Section, values: np.ndarray) -> np.ndarray:
    """SH of [N, R, 3] from band-major, channel-major values."""
    coefficients = _COEFFICIENTS[section.degree]
    if file.level == 2:
        span = file.sh_high - file.sh_low
        values = file.sh_low + values.astype(np.float32) * np.float32(span / 255)
    higher = np.empty((section.count, coefficients, 3), np.float32)
    for band in range(1, section.degree + 1):
        first, size = band * band - 1, 2 * band + 1
        block = values[:, 3 * first : 3 * (first + size)].reshape(-1, 3, size)
        higher[:, first : first + size] = block.transpose(0, 2, 1)
    return higher
