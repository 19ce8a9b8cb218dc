"""The files of a COLMAP model byte by byte and line by line, with every length checked."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.io.capture_files import CaptureError, require_rigid
from faithfusion_studio.transforms import quat_to_rotmat


class ColmapReader:
    """Bounds-checked little-endian reading from bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_bytes(path)
        self.at = 0

    def take(self, layout: str) -> tuple:
        """The next values of a `struct` layout."""
        size = struct.calcsize("<" + layout)
        if self.at + size > len(self.data):
            raise self.truncated()
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += size
        return values

    def count(self, least: int) -> int:
        """A u64 count of records that take at least so many bytes each."""
        (count,) = self.take("Q")
        if count * least > len(self.data) - self.at:
            raise self.truncated(f" (it promises {count:,} records)")
        return count

    def skip(self, size: int) -> None:
        """Pass over some bytes."""
        if size > len(self.data) - self.at:
            raise self.truncated()
        self.at += size

    def name(self) -> str:
        """A text that ends in a zero."""
        end = self.data.find(b"\0", self.at, self.at + 4096)
        if end < 0:
            raise self.truncated(" (an image name has no end)")
        raw = self.data[self.at : end]
        self.at = end + 1
        return raw.decode("utf-8", errors="replace")

    def finish(self) -> None:
        """Raise unless every byte was read: a count that is too small would lose records."""
        rest = len(self.data) - self.at
        if rest:
            raise CaptureError(
                f"{self.path}: has {rest:,} bytes after its last record; its count is wrong or the "
                "file is damaged."
            )

    def truncated(self, detail: str = "") -> CaptureError:
        """That the file ends too early."""
        return CaptureError(
            f"{self.path}: ends in the middle of a record at byte {self.at:,}{detail}; the file "
            "is truncated or damaged."
        )


def read_bytes(path: Path) -> bytes:
    """The whole file.

    Raises:
        CaptureError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read ({error.strerror}); check the path.") from error


def lines_of(path: Path) -> list[str]:
    """Lines of a text file, without their ends."""
    content = read_bytes(path).decode("utf-8", errors="replace")
    return [line.rstrip("\r") for line in content.split("\n")]


def table_of(path: Path) -> list[list[str]]:
    """Words of the lines that are neither empty nor comments."""
    return [line.split() for line in lines_of(path) if line.strip() and not line.startswith("#")]


def line_error(path: Path, words: list[str], expected: str) -> CaptureError:
    """That a line is not what it should be."""
    return CaptureError(
        f"{path}: the line {' '.join(words)[:60]!r} is not understood; expected {expected}."
    )


def pose_of(values: Sequence[float], what: str) -> np.ndarray:
    """[4, 4] float64 from a quaternion wxyz and a translation, as COLMAP stores poses.

    Raises:
        CaptureError: It is no rigid pose; `what` names it.
    """
    numbers = torch.tensor(list(values), dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = quat_to_rotmat(numbers[:4])
    pose[:3, 3] = numbers[4:]
    require_rigid(pose.numpy(), what)
    return pose.numpy()
