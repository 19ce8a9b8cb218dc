"""The `.spz` of Niantic: versions 1 to 4 read, 3 and 4 written.

Versions 1-3 are one gzip stream: a header of 16 bytes, then positions, alphas, colours, scales,
rotations and SH, each for all Gaussians. Version 4 has a plain header of 32 bytes, optional
extension records, a table of sizes, and one zstd stream per kind of value.

Values: position 24-bit fixed point (version 1: float16), scale (log + 10) * 16, opacity and colour
bytes, rotation smallest three with sign and 9 bits (before version 3: x y z bytes), SH bytes.
The axes are nominally right-up-back while PLY files are right-down-forward, and most tools convert
nothing: neither does this module; `flipped_yz` turns Gaussians from one to the other.
Source: nianticlabs/spz, `load-spz.cc`.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.ply import SplatFileError
from faithfusion_studio.io.quantised import (
    Losses,
    from_smallest_three,
    logit_of_bytes,
    numpy_of,
    opacity_bytes,
    read_bytes,
    require_count,
    smallest_three,
    tensor,
    to_bytes,
    unit_quats,
)
from faithfusion_studio.io.splat_files import keep_finite, require_rows
from faithfusion_studio.transforms import rotate_sh

MAGIC = b"NGSP"
_HEADER = struct.Struct("<4sIIBBB")
_LEGACY_SIZE, _SIZE = 16, 32
_HAS_EXTENSIONS = 2
_COEFFICIENTS = (0, 3, 8, 15, 24)
COLOR_SCALE = 0.15
BITS = 12
"""Fractional bits of a position: steps of 0.24 mm up to 2048 m from the origin."""
FEWEST_BITS = 9
"""Below this (steps of 2 mm) the origin is moved instead."""
_UNIT = np.float32(0.5**0.5)
SpzVersion = Literal[3, 4]


@dataclass(frozen=True)
class _Header:
    version: int
    count: int
    degree: int
    bits: int
    flags: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of positions, alphas, colours, scales, rotations and SH."""
        position = 6 if self.version == 1 else 9
        rotation = 3 if self.version < 3 else 4
        per_row = (position, 1, 3, 3, rotation, 3 * _COEFFICIENTS[self.degree])
        return tuple(self.count * size for size in per_row)


def is_spz(path: Path, head: bytes) -> bool:
    """Whether a file is `.spz`: version 4 by its first bytes, earlier ones by what the gzip holds."""
    if head.startswith(MAGIC):
        return True
    if not head.startswith(b"\x1f\x8b"):
        return False
    try:
        return zlib.decompressobj(31).decompress(path.read_bytes()[:4096], 4) == MAGIC
    except (OSError, zlib.error):
        return False


# ------------------------------------------------------------------------------------------ read


def read_spz(path: Path | str) -> tuple[Gaussians, int, list[str]]:
    """Gaussians of a `.spz` in the axes of the file, how many were dropped, and what else to say.

    Raises:
        SplatFileError: Damaged, of an unknown version, or without a usable Gaussian.
    """
    path = Path(path)
    data = read_bytes(path)
    header, parts = (_streams if data.startswith(MAGIC) else _gunzipped)(path, data)
    gaussians, notes = _decoded(header, parts), []
    if header.degree > 3:
        notes.append("SH of degree 4 were cut to degree 3.")
    if header.flags & _HAS_EXTENSIONS:
        notes.append("Extension records of the file were passed over.")
    return *keep_finite(gaussians, path), notes


def _parse_header(path: Path, data: bytes, size: int) -> _Header:
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise SplatFileError(
            f"{path}: has no SPZ header (found {data[:4]!r}); expected NGSP, so it is damaged."
        )
    _, version, count, degree, bits, flags = _HEADER.unpack_from(data)
    if not 1 <= version <= 4 or degree > 4 or bits > 23:
        raise SplatFileError(
            f"{path}: states version {version}, SH degree {degree} and {bits} fractional bits; "
            "expected a version 1 to 4, a degree up to 4 and at most 23 bits."
        )
    header = _Header(version, count, degree, bits, flags)
    require_count(path, count, sum(header.sizes), size)
    return header


def _gunzipped(path: Path, data: bytes) -> tuple[_Header, list[bytes]]:
    unpacker = zlib.decompressobj(31)
    try:
        head = unpacker.decompress(data, _LEGACY_SIZE)
        header = _parse_header(path, head, len(data))
        if header.version > 3:
            raise SplatFileError(
                f"{path}: states version {header.version} inside a gzip stream; expected 1 to 3."
            )
        needed = sum(header.sizes)
        body = unpacker.decompress(unpacker.unconsumed_tail, needed + 1)
    except zlib.error as error:
        raise SplatFileError(
            f"{path}: its gzip stream is damaged ({str(error)[:80]}); copy the file again."
        ) from error
    more = len(body) > needed
    if (
        len(body) < needed
        or more != bool(header.flags & _HAS_EXTENSIONS)
        or not (more or unpacker.eof)
    ):
        raise SplatFileError(
            f"{path}: {header.count:,} Gaussians need {needed:,} bytes but the stream holds "
            f"{'more' if more else f'{len(body):,}'}; the file is truncated or damaged."
        )
    ends = np.cumsum(header.sizes)
    view = memoryview(body)
    return header, [bytes(view[end - n : end]) for n, end in zip(header.sizes, ends, strict=True)]


def _streams(path: Path, data: bytes) -> tuple[_Header, list[bytes]]:
    import zstandard

    header = _parse_header(path, data, len(data))
    damaged = SplatFileError(
        f"{path}: its table of streams does not fit {header.count:,} Gaussians of SH degree "
        f"{header.degree} in {len(data):,} bytes; the file is truncated or damaged."
    )
    if header.version != 4 or len(data) < _SIZE:
        raise damaged
    number, start = struct.unpack_from("<BI", data, 15)
    wanted = [size for size in header.sizes if size]
    at = start + 16 * number
    if number != len(wanted) or start < _SIZE or at > len(data):
        raise damaged
    table = struct.unpack_from(f"<{2 * number}Q", data, start)
    if list(table[1::2]) != wanted or at + sum(table[0::2]) != len(data):
        raise damaged
    parts = []
    for packed, size in zip(table[0::2], wanted, strict=True):
        frame = data[at : at + packed]
        at += packed
        try:
            if zstandard.frame_content_size(frame) not in (size, -1):
                raise damaged
            part = zstandard.ZstdDecompressor().decompress(
                frame, max_output_size=size, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise SplatFileError(
                f"{path}: a stream is damaged ({str(error)[:80]}); copy the file again."
            ) from error
        if len(part) != size:
            raise damaged
        parts.append(part)
    return header, [parts.pop(0) if size else b"" for size in header.sizes]


def _decoded(header: _Header, parts: list[bytes]) -> Gaussians:
    position, alpha, color, scale, rotation, sh = (np.frombuffer(p, np.uint8) for p in parts)
    count, table = header.count, np.arange(256, dtype=np.float32)
    coefficients = _COEFFICIENTS[header.degree]
    kept = min(coefficients, 15)
    higher = ((table - 128) / 128)[sh.reshape(count, coefficients, 3)[:, :kept]]
    return Gaussians(
        means=tensor(_positions(header, position)),
        log_scales=tensor((table / 16 - 10)[scale].reshape(count, 3)),
        quats=tensor(_quats(header, rotation)),
        logit_opacities=tensor(logit_of_bytes(alpha)),
        sh0=tensor(((table / 255 - 0.5) / COLOR_SCALE)[color].reshape(count, 1, 3)),
        shN=tensor(higher),
        provenance=torch.zeros(count, dtype=torch.uint8),
    )


def _positions(header: _Header, raw: np.ndarray) -> np.ndarray:
    if header.version == 1:
        return raw.view("<f2").astype(np.float32).reshape(-1, 3)
    wide = raw.reshape(-1, 3).astype(np.int32)
    value = wide[:, 0] | wide[:, 1] << 8 | wide[:, 2] << 16
    signed = (value ^ 0x800000) - 0x800000
    return (signed * (0.5**header.bits)).astype(np.float32).reshape(-1, 3)


def _quats(header: _Header, raw: np.ndarray) -> np.ndarray:
    """wxyz of the file's xyzw."""
    if header.version < 3:
        xyz = raw.reshape(-1, 3).astype(np.float32) / np.float32(127.5) - 1
        w = np.sqrt(np.clip(1 - (xyz**2).sum(1), 0, None))
        return np.concatenate([w[:, None], xyz], axis=1)
    packed = raw.view("<u4")
    fields = np.stack([packed >> 20, packed >> 10, packed], axis=1)
    magnitude = (fields & 511).astype(np.float32) * (_UNIT / 511)
    others = np.where(fields & 512, -magnitude, magnitude)
    return from_smallest_three((packed >> 30).astype(np.int64), others)[:, [3, 0, 1, 2]]


# ----------------------------------------------------------------------------------------- write


def write_spz(
    gaussians: Gaussians,
    path: Path | str,
    version: SpzVersion = 3,
    sh_bits: tuple[int, int] = (5, 4),
) -> list[str]:
    """Write a `.spz` in the axes of the Gaussians.

    Scenes that reach beyond 2048 m get coarser steps; where these would exceed 2 mm, the origin is
    moved by whole metres. Both are said in the returned sentences.

    Args:
        gaussians: What to write.
        path: The final name.
        version: 3 (gzip, read by every tool) or 4 (zstd).
        sh_bits: Bits kept of SH degree 1, and of higher degrees; 8 is as fine as the format goes.

    Returns:
        Sentences about what was moved, coarsened or clipped.

    Raises:
        SplatFileError: There is nothing to write, or the file cannot be written.
    """
    path = Path(path)
    require_rows(gaussians, path)
    losses = Losses()
    bits, fixed, notes = _fixed_point(numpy_of(gaussians.means).astype(np.float64))
    fixed = losses.clip("positions", fixed, -(2**23), 2**23 - 1)
    little = fixed.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3]
    scales = (numpy_of(gaussians.log_scales) + 10) * 16
    colors = numpy_of(gaussians.sh0)[:, 0] * (COLOR_SCALE * 255) + 127.5
    parts = [
        little.tobytes(),
        opacity_bytes(gaussians).tobytes(),
        to_bytes(losses.clip("colours", colors, -0.5, 255.5)).tobytes(),
        to_bytes(losses.clip("scales", scales, -0.5, 255.5)).tobytes(),
        _packed_quats(unit_quats(gaussians)).tobytes(),
        _packed_sh(numpy_of(gaussians.shN), losses, sh_bits).tobytes(),
    ]
    header = _HEADER.pack(MAGIC, version, len(gaussians), gaussians.sh_degree, bits, 0)
    content = (_gzipped if version == 3 else _zipped)(header, parts)
    with write_atomically(path, SplatFileError) as temporary, temporary.open("wb") as file:
        file.writelines(content)
    return [*notes, *losses.notes("SPZ")]


def _fixed_point(means: np.ndarray) -> tuple[int, np.ndarray, list[str]]:
    """Fractional bits, positions as whole numbers of 24 bits, and what had to be done for it."""

    def bits_for(values: np.ndarray) -> int:
        reach = max(float(np.abs(values).max()), 1e-9)
        return min(BITS, max(0, int(np.floor(np.log2((2**23 - 1) / reach)))))

    bits, notes = bits_for(means), []
    if bits < FEWEST_BITS:
        origin = np.rint((means.min(0) + means.max(0)) / 2)
        if bits_for(means - origin) > bits:
            means = means - origin
            bits = bits_for(means)
            shown = ", ".join(f"{value:g}" for value in origin)
            notes.append(
                f"SPZ reaches only 2 km: the origin was moved to ({shown}) m of the scene."
            )
    if bits < BITS:
        notes.append(
            f"The scene reaches beyond 2 km, so positions are in steps of {1000 * 0.5**bits:.2g} mm."
        )
    return bits, np.rint(means * 2.0**bits), notes


def _packed_quats(quats: np.ndarray) -> np.ndarray:
    largest, others = smallest_three(quats[:, [1, 2, 3, 0]])
    magnitude = np.rint(np.abs(others) * (511 / _UNIT)).clip(0, 511).astype(np.uint32)
    field = magnitude | (others < 0).astype(np.uint32) << 9
    packed = largest.astype(np.uint32) << 30
    return (packed | field[:, 0] << 20 | field[:, 1] << 10 | field[:, 2]).astype("<u4")


def _packed_sh(higher: np.ndarray, losses: Losses, sh_bits: tuple[int, int]) -> np.ndarray:
    """SH bytes, colour innermost, rounded to the middle of buckets so that they compress well."""
    values = losses.clip("SH values", np.rint(higher * 128) + 128, 0, 255.5).astype(np.int32)
    for bands, bits in ((slice(0, 3), sh_bits[0]), (slice(3, None), sh_bits[1])):
        bucket = 1 << (8 - bits)
        values[:, bands] = (values[:, bands] + bucket // 2) // bucket * bucket
    return values.clip(0, 255).astype(np.uint8)


def _gzipped(header: bytes, parts: list[bytes]) -> list[bytes]:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    start = packer.compress(header.ljust(_LEGACY_SIZE, b"\0"))
    return [start, *(packer.compress(part) for part in parts), packer.flush()]


def _zipped(header: bytes, parts: list[bytes]) -> list[bytes]:
    import zstandard

    packer = zstandard.ZstdCompressor(level=9, write_checksum=True)
    kept = [part for part in parts if part]
    frames = [packer.compress(part) for part in kept]
    start = header + struct.pack("<BI", len(frames), _SIZE)
    sizes = [size for f, p in zip(frames, kept, strict=True) for size in (len(f), len(p))]
    return [start.ljust(_SIZE, b"\0"), struct.pack(f"<{len(sizes)}Q", *sizes), *frames]


def flipped_yz(gaussians: Gaussians) -> Gaussians:
    """The same Gaussians with y and z reversed (half a turn about x), colours included.

    This leads from right-up-back, in which `.spz` and glTF files nominally are, to
    right-down-forward, in which PLY files usually are; and back.
    """
    # Half a turn before and after the rotation: the first leaves an ellipsoid as it is.
    turned = torch.tensor([1.0, 1.0, -1.0, -1.0]).to(gaussians.quats)
    signs = torch.tensor([1.0, -1.0, -1.0]).to(gaussians.means)
    return replace(
        gaussians,
        means=gaussians.means * signs,
        quats=gaussians.quats * turned,
        shN=rotate_sh(gaussians.shN, torch.diag(signs)),
    )
