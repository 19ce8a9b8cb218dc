"""What formats of few bits share: counting what they clip, bytes to numbers, rotations in three parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.ply import SplatFileError

MAX_RATIO = 200
"""How many times larger than its file the unpacked content may be; more is an archive bomb."""
MAX_GAUSSIANS = 2**31 - 1


class Losses:
    """Counts the values a format cannot hold, so that an export can say what it clipped."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def clip(
        self, what: str, values: np.ndarray, low: int | float, high: int | float
    ) -> np.ndarray:
        """The values inside [low, high]; those outside are counted under a name."""
        outside = int(np.count_nonzero((values < low) | (values > high)))
        if outside:
            self.counts[what] = self.counts.get(what, 0) + outside
        return np.clip(values, low, high)

    def notes(self, format_name: str) -> list[str]:
        """One sentence, or none where nothing was clipped."""
        if not self.counts:
            return []
        parts = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        return [f"{format_name} cannot hold every value: clipped {parts}."]


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Whole numbers 0..255, rounded and clamped, as bytes."""
    return np.rint(values).clip(0, 255).astype(np.uint8)


def tensor(values: np.ndarray) -> torch.Tensor:
    """A float32 tensor of an array."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def numpy_of(values: torch.Tensor) -> np.ndarray:
    """A float32 array of a tensor from any device."""
    return values.detach().to("cpu", torch.float32).numpy()


def logit_of_bytes(alpha: np.ndarray) -> np.ndarray:
    """Opacity logits of opacities in bytes.

    0 and 255 stand for opacities nearer to 0 and 1 than a byte can say; half a step is assumed.
    """
    opacity = np.clip(np.arange(256), 0.5, 254.5) / 255
    return np.log(opacity / (1 - opacity)).astype(np.float32)[alpha]


def opacity_bytes(gaussians: Gaussians) -> np.ndarray:
    """Opacities as bytes."""
    return to_bytes(numpy_of(torch.sigmoid(gaussians.logit_opacities.float())) * 255)


def unit_quats(gaussians: Gaussians) -> np.ndarray:
    """Quaternions of length one, wxyz."""
    quats = numpy_of(gaussians.quats)
    return quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-20)


def smallest_three(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest component's index, and the three others in order, of unit quaternions.

    The sign is chosen so that the largest component, which is left out, is positive.
    """
    largest = np.abs(quats).argmax(1)
    rows = np.arange(len(quats))
    sign = np.where(quats[rows, largest] < 0, -1.0, 1.0).astype(quats.dtype)
    places = (largest[:, None] + np.arange(1, 4)) % 4
    return largest, quats[rows[:, None], np.sort(places, axis=1)] * sign[:, None]


def from_smallest_three(largest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Unit quaternions of what `smallest_three` gives."""
    quats = np.empty((len(others), 4), np.float32)
    left_out = np.sqrt(np.clip(1 - (others**2).sum(1), 0, None))
    for which in range(4):
        rows = largest == which
        part = others[rows]
        columns = [place for place in range(4) if place != which]
        block = np.empty((len(part), 4), np.float32)
        block[:, columns], block[:, which] = part, left_out[rows]
        quats[rows] = block
    return quats


def require_count(path: Path, count: int, needed: int, size: int) -> None:
    """Refuse a number of Gaussians that a file of this size cannot hold, before anything is allocated.

    Args:
        path: The file, for messages.
        count: Gaussians its header promises.
        needed: Bytes they need when unpacked.
        size: Bytes of the file.
    """
    if count <= 0 or count > MAX_GAUSSIANS or needed > MAX_RATIO * size:
        raise SplatFileError(
            f"{path}: the header promises {count:,} Gaussians in {size:,} bytes; expected at least "
            "one and no more than fit, so the file is damaged."
        )


def read_bytes(path: Path) -> bytes:
    """A whole file.

    Raises:
        SplatFileError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SplatFileError(
            f"{path}: cannot be read ({error.strerror}); check the path."
        ) from error
