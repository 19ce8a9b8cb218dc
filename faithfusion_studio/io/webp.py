"""Lossless WebP pictures of bytes: their size is read from the header before anything is decoded."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from faithfusion_studio.io.ply import SplatFileError

MAX_PIXELS = 64 * 1024 * 1024


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height a WebP file states; None where it is none."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def read_webp(path: Path, name: str, data: bytes, least: int) -> np.ndarray:
    """Red, green, blue, alpha of every pixel, [H, W, 4] bytes.

    Args:
        path: The file the picture is part of, for messages.
        name: The picture's name in it.
        data: Its bytes.
        least: Pixels it must have; it may have a few rows more, but not many times as many.

    Raises:
        SplatFileError: Not a WebP picture, or of another size.
    """
    import cv2

    size = webp_size(data)
    if size is None or not least <= size[0] * size[1] <= min(MAX_PIXELS, 4 * least + 2**22):
        found = "no WebP picture" if size is None else f"{size[0]}x{size[1]} pixels"
        raise SplatFileError(
            f"{path}: {name[:60]!r} is {found}; expected {least:,} pixels or more."
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None or image.dtype != np.uint8 or image.shape[1::-1] != size or image.ndim != 3:
        raise SplatFileError(f"{path}: the picture {name[:60]!r} is damaged; copy the file again.")
    rgba = np.full((*image.shape[:2], 4), 255, np.uint8)
    rgba[..., 2::-1] = image[..., :3]
    if image.shape[2] == 4:
        rgba[..., 3] = image[..., 3]
    return rgba


def write_webp(rgba: np.ndarray) -> bytes:
    """A picture of [H, W, 4] bytes as lossless WebP."""
    import cv2

    bgra = np.ascontiguousarray(rgba[..., [2, 1, 0, 3]])
    good, data = cv2.imencode(".webp", bgra, [cv2.IMWRITE_WEBP_QUALITY, 101])
    assert good
    return data.tobytes()
