"""Damage to a file, from a seed: cut, flipped, lengthened, shortened, false counts, random bytes.

Half of the mutants of a packed file are damaged inside and packed again, so that checksums hold and
the parser behind them is reached.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib

import numpy as np

from faithfusion_studio.bench.robustness.samples import Container

COUNTS = (0, 1, -1, 2**31, 10**18, 2**64 - 1, 2**63)


def mutant(data: bytes, container: Container, rng: np.random.Generator) -> bytes:
    """Damaged bytes of a good file.

    Args:
        data: The good file.
        container: What it is packed in.
        rng: Decides; the same generator gives the same mutant.
    """
    if container == "plain" or rng.random() < 0.5:
        return _damaged(data, rng)
    inside = {"gzip": _inside_gzip, "zip": _inside_zip, "zstd": _inside_zstd}[container]
    return inside(data, rng)


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    if not data:
        return rng.bytes(8)
    return DAMAGES[int(rng.integers(len(DAMAGES)))](data, rng)


def _place(data: bytes, rng: np.random.Generator, within: int | None = None) -> int:
    return int(rng.integers(0, min(len(data), within or len(data))))


def _false_count(rng: np.random.Generator) -> int:
    return COUNTS[int(rng.integers(len(COUNTS)))]


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng)]


def _flip_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    flipped = bytearray(data)
    for place in rng.integers(0, len(data), int(rng.integers(1, 6))):
        flipped[place] = int(rng.integers(256))
    return bytes(flipped)


def _flip_bit_of_head(data: bytes, rng: np.random.Generator) -> bytes:
    head = bytearray(data)
    head[_place(data, rng, 400)] ^= 1 << int(rng.integers(8))
    return bytes(head)


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 40))) + data[at:]


def _delete(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 40)) :]


def _false_long(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng, 64)
    return data[:at] + struct.pack("<Q", _false_count(rng) % 2**64) + data[at + 8 :]


def _false_int(data: bytes, rng: np.random.Generator) -> bytes:
    at = _place(data, rng, 64)
    return data[:at] + struct.pack("<I", _false_count(rng) % 2**32) + data[at + 4 :]


def _false_number(data: bytes, rng: np.random.Generator) -> bytes:
    digits = [i for i in range(min(len(data), 4000)) if 48 <= data[i] <= 57] or [0]
    digit = digits[int(rng.integers(len(digits)))]
    return data[:digit] + str(_false_count(rng)).encode() + data[digit + 1 :]


def _random_tail(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng, 64)] + rng.bytes(1 + _place(data, rng, 4096))


DAMAGES = (
    _cut,
    _flip_bytes,
    _flip_bit_of_head,
    _insert,
    _delete,
    _false_long,
    _false_int,
    _false_number,
    _random_tail,
)


def _inside_gzip(data: bytes, rng: np.random.Generator) -> bytes:
    return gzip.compress(_damaged(gzip.decompress(data), rng), 1, mtime=0)


def _inside_zip(data: bytes, rng: np.random.Generator) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    # The small members hold the structure: the pickle, the description.
    names = sorted(parts, key=lambda name: not name.endswith((".pkl", ".json")))
    name = names[0] if rng.random() < 0.5 else names[int(rng.integers(len(names)))]
    parts[name] = _damaged(parts[name], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for part, content in parts.items():
            archive.writestr(zipfile.ZipInfo(part), content)
    return buffer.getvalue()


def _inside_zstd(data: bytes, rng: np.random.Generator) -> bytes:
    import zstandard

    number, start = struct.unpack_from("<BI", data, 15)
    table = list(struct.unpack_from(f"<{2 * number}Q", data, start))
    at, frames = start + 16 * number, []
    for packed in table[::2]:
        frames.append(data[at : at + packed])
        at += packed
    which = int(rng.integers(number))
    content = _damaged(zstandard.ZstdDecompressor().decompress(frames[which]), rng)
    frames[which] = zstandard.ZstdCompressor().compress(content)
    table[2 * which] = len(frames[which])
    if rng.random() < 0.5:
        table[2 * which + 1] = len(content)
    return data[:start] + struct.pack(f"<{2 * number}Q", *table) + b"".join(frames)


def seeded(seed: int, name: str, index: int) -> np.random.Generator:
    """The generator of one mutant, whatever process makes it."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])
