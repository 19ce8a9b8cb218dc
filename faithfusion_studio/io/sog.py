"""SOG of PlayCanvas: a `meta.json` beside lossless WebP pictures, or both in one zip (`.sog`).

Each picture has one pixel per Gaussian, row by row. Version 2: `means_l`, `means_u` low and high
bytes of 16-bit positions after x -> sign(x) ln(1 + |x|), between mins and maxs; `scales` and `sh0`
bytes into codebooks of 256 values, with opacity as the alpha of `sh0`; `quats` smallest three, the
alpha 252 + index of the largest of w x y z; `shN_labels` 16-bit rows of a palette whose entries
are runs of pixels in `shN_centroids`, 64 entries a row. Version 1 has no `version`, and linear
ranges where version 2 has codebooks; its opacity is a logit.
Source: PlayCanvas, developer.playcanvas.com, "The SOG format".
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faithfusion_studio.errors import reason_of
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.capture_files import CaptureError, inside
from faithfusion_studio.io.ply import SplatFileError
from faithfusion_studio.io.quantised import (
    MAX_RATIO,
    from_smallest_three,
    logit_of_bytes,
    require_count,
    tensor,
)
from faithfusion_studio.io.splat_files import keep_finite
from faithfusion_studio.io.webp import read_webp

META = "meta.json"
MAX_META_BYTES = 4 * 1024 * 1024
PALETTE_ROW = 64
_COEFFICIENTS = (0, 3, 8, 15)
Load = Callable[[str], bytes]


def is_sog_folder(folder: Path) -> bool:
    """Whether a folder is an unpacked SOG."""
    try:
        meta = json.loads((folder / META).read_bytes()[:MAX_META_BYTES])
    except (OSError, ValueError, RecursionError):
        return False
    return is_sog_meta(meta)


def is_sog_meta(meta: Any) -> bool:
    """Whether a JSON value describes a SOG."""
    return isinstance(meta, dict) and {"means", "quats", "scales", "sh0"} <= set(meta)


def is_sog_archive(path: Path) -> bool:
    """Whether a zip file holds a SOG."""
    try:
        with zipfile.ZipFile(path) as archive:
            return META in archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def read_sog(path: Path | str) -> tuple[Gaussians, int]:
    """Gaussians of a `.sog`, of its unpacked folder or of the `meta.json` in it, and how many were dropped.

    Raises:
        SplatFileError: Damaged, of an unknown version, or without a usable Gaussian.
    """
    path = Path(path)
    if path.is_file() and zipfile.is_zipfile(path):
        return _read_archive(path)
    folder = path if path.is_dir() else path.parent

    def load(name: str) -> bytes:
        try:
            return inside(folder, name).read_bytes()
        except CaptureError as error:
            raise SplatFileError(str(error)) from error
        except OSError as error:
            raise SplatFileError(
                f"{folder / name}: cannot be read ({error.strerror}); the SOG is not complete."
            ) from error

    meta = folder / (META if path.is_dir() else path.name)
    return _read(path, load(meta.name), load, sum(p.stat().st_size for p in folder.iterdir()))


def _read_archive(path: Path) -> tuple[Gaussians, int]:
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = {m.filename: m for m in archive.infolist()}
            if sum(m.file_size for m in members.values()) > MAX_RATIO * size:
                raise SplatFileError(
                    f"{path}: unpacks to more than {MAX_RATIO} times its size; it is no SOG."
                )

            def load(name: str) -> bytes:
                if name not in members:
                    found = ", ".join(list(members)[:6]) or "nothing"
                    raise SplatFileError(f"{path}: lacks {name!r} (found {found}); it is damaged.")
                return archive.read(members[name])

            return _read(path, load(META), load, size)
    except SplatFileError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
    ) as error:
        reason = reason_of(error, 80)
        raise SplatFileError(
            f"{path}: is not a whole archive ({reason}); copy it again."
        ) from error


# ------------------------------------------------------------------------------------------ read


class _Meta:
    """The description, taken out value by value with its kind checked."""

    def __init__(self, path: Path, text: bytes) -> None:
        self.path = path
        try:
            value = json.loads(text[:MAX_META_BYTES])
        except (ValueError, RecursionError) as error:
            raise self.wrong(f"is not valid JSON ({str(error)[:60]})") from error
        if not is_sog_meta(value):
            raise self.wrong("does not describe means, quats, scales and sh0")
        self.value: dict[str, Any] = value
        self.version = value.get("version", 1)
        if self.version not in (1, 2):
            raise self.wrong(f"is of version {str(self.version)[:20]}; this program reads 1 and 2")
        shape = self.get("means", "shape") if self.version == 1 else [value.get("count")]
        count = shape[0] if isinstance(shape, list) and shape else None
        if not isinstance(count, int) or isinstance(count, bool):
            raise self.wrong("states no whole number of Gaussians")
        self.count = count

    def wrong(self, what: str) -> SplatFileError:
        return SplatFileError(f"{self.path}: its {META} {what}; the file is damaged or too new.")

    def get(self, part: str, key: str) -> Any:
        table = self.value.get(part)
        return table.get(key) if isinstance(table, dict) else None

    def files(self, part: str, number: int) -> list[str]:
        names = self.get(part, "files")
        if (
            not isinstance(names, list)
            or len(names) != number
            or not all(isinstance(n, str) for n in names)
        ):
            raise self.wrong(f"names no {number} files for {part}")
        return names

    def numbers(self, part: str, key: str, length: int) -> np.ndarray:
        values = self.get(part, key)
        values = values if isinstance(values, list) else [values]
        good = len(values) == length and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
        )
        if not good:
            raise self.wrong(f"has no {length} numbers as {part}.{key}")
        with np.errstate(all="ignore"):
            return np.array([min(max(v, -1e30), 1e30) for v in values], np.float64)


def _read(path: Path, text: bytes, load: Load, size: int) -> tuple[Gaussians, int]:
    meta = _Meta(path, text)
    require_count(path, meta.count, 20 * meta.count, size)

    def pixels(name: str) -> np.ndarray:
        """[count, 4] bytes of a picture."""
        image = read_webp(path, name, load(name), least=meta.count)
        return image.reshape(-1, 4)[: meta.count]

    low, high = (pixels(name)[:, :3].astype(np.int32) for name in meta.files("means", 2))
    squeezed = _between(meta, "means", (low | high << 8) / 65535)
    color = pixels(meta.files("sh0", 1)[0])
    sh0, logits = _colors(meta, color)
    gaussians = Gaussians(
        means=tensor(np.sign(squeezed) * np.expm1(np.abs(squeezed).clip(max=80))),
        log_scales=tensor(_looked_up(meta, "scales", pixels(meta.files("scales", 1)[0])[:, :3])),
        quats=tensor(_quats(pixels(meta.files("quats", 1)[0]))),
        logit_opacities=tensor(logits),
        sh0=tensor(sh0)[:, None],
        shN=tensor(_higher(meta, load, pixels)),
        provenance=torch.zeros(meta.count, dtype=torch.uint8),
    )
    return keep_finite(gaussians, path)


def _between(meta: _Meta, part: str, fraction: np.ndarray) -> np.ndarray:
    width = fraction.shape[1]
    low, high = meta.numbers(part, "mins", width), meta.numbers(part, "maxs", width)
    return low + (high - low) * fraction


def _looked_up(meta: _Meta, part: str, values: np.ndarray) -> np.ndarray:
    if meta.version == 1:
        return _between(meta, part, values / 255)
    return meta.numbers(part, "codebook", 256)[values]


def _colors(meta: _Meta, color: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if meta.version == 1:
        values = _between(meta, "sh0", color / 255)
        return values[:, :3], values[:, 3]
    return _looked_up(meta, "sh0", color[:, :3]), logit_of_bytes(color[:, 3])


def _quats(pixel: np.ndarray) -> np.ndarray:
    others = (pixel[:, :3].astype(np.float32) / 255 * 2 - 1) * np.float32(0.5**0.5)
    quats = from_smallest_three(pixel[:, 3].astype(np.int64).clip(252, 255) - 252, others)
    quats[pixel[:, 3] < 252] = (1, 0, 0, 0)
    return quats


def _higher(meta: _Meta, load: Load, pixels: Callable[[str], np.ndarray]) -> np.ndarray:
    if not isinstance(meta.value.get("shN"), dict):
        return np.zeros((meta.count, 0, 3))
    centroids, labels = meta.files("shN", 2)
    image = read_webp(meta.path, centroids, load(centroids), least=1)
    coefficients = image.shape[1] // PALETTE_ROW
    if coefficients not in _COEFFICIENTS[1:] or image.shape[1] % PALETTE_ROW:
        raise meta.wrong(f"goes with a palette {image.shape[1]} pixels wide")
    if meta.version == 2 and meta.get("shN", "bands") != _COEFFICIENTS.index(coefficients):
        raise meta.wrong(f"states bands that are not those of {coefficients} coefficients")
    palette = image[..., :3].reshape(-1, coefficients, 3)
    pixel = pixels(labels)
    label = pixel[:, 0].astype(np.int32) | pixel[:, 1].astype(np.int32) << 8
    if int(label.max(initial=0)) >= len(palette):
        raise meta.wrong(
            f"goes with labels up to {int(label.max()):,} for {len(palette):,} entries"
        )
    if meta.version == 1:
        low, high = meta.numbers("shN", "mins", 1)[0], meta.numbers("shN", "maxs", 1)[0]
        values = low + (high - low) * np.arange(256) / 255
    else:
        values = meta.numbers("shN", "codebook", 256)
    return values.astype(np.float32)[palette][label]
