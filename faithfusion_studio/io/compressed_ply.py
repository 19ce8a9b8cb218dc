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
from faithfusion_studio.io.ply import SplatFileError, read_ply_elements, read_ply_header
from faithfusion_studio.io.splat_files import keep_finite
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
    # 0 and 255 stand for opacities nearer to 0 and 1 than a byte can say.
    alpha = color[:, 3].clip(0.5 / 255, 254.5 / 255)
    gaussians = Gaussians(
        means=_tensor(means),
        log_scales=_tensor(log_scales.clip(-20, 20)),
        quats=_tensor(_rotations(rows["packed_rotation"])),
        logit_opacities=_tensor(np.log(alpha / (1 - alpha))),
        sh0=_tensor((rgb - 0.5) / SH_C0)[:, None],
        shN=_harmonics(path, parts.get("sh"), count),
        provenance=torch.zeros(count, dtype=torch.uint8),
    )
    return keep_finite(gaussians, path)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


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
    small = (others / 1023 - 0.5) * np.sqrt(2)
    largest = np.sqrt(np.clip(1 - (small**2).sum(1), 0, None))
    place = packed >> 30
    quats = np.zeros((len(packed), 4))
    for which in range(4):
        rows = place == which
        quats[rows, which] = largest[rows]
        quats[np.ix_(rows, [i for i in range(4) if i != which])] = small[rows]
    return quats


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
