"""Writing SOG version 2: positions, codebooks and a palette of SH, as lossless WebP in a zip."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faithfusion_studio import __version__
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.compressed_ply import morton_order
from faithfusion_studio.io.ply import SplatFileError
from faithfusion_studio.io.quantised import (
    numpy_of,
    opacity_bytes,
    smallest_three,
    to_bytes,
    unit_quats,
)
from faithfusion_studio.io.sog import META, PALETTE_ROW
from faithfusion_studio.io.splat_files import require_rows
from faithfusion_studio.io.webp import write_webp

CODES = 256
MAX_PALETTE = 65_536
_SAMPLE = 1_000_000
_ROUNDS = 12
_CUTS = 16


def write_sog(gaussians: Gaussians, path: Path | str) -> list[str]:
    """Write a `.sog`: one zip of `meta.json` and lossless WebP pictures.

    Returns:
        Sentences about what the format could not hold.

    Raises:
        SplatFileError: There is nothing to write, or the file cannot be written.
    """
    path = Path(path)
    require_rows(gaussians, path)
    meta, pictures, notes = _encoded(gaussians)
    with (
        write_atomically(path, SplatFileError) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, data in [*pictures.items(), (META, json.dumps(meta).encode())]:
            archive.writestr(zipfile.ZipInfo(name), data)
    return notes


def write_sog_folder(gaussians: Gaussians, folder: Path | str) -> list[str]:
    """Write an unpacked SOG into a folder, which is made if need be; `meta.json` comes last.

    Returns:
        Sentences about what the format could not hold.

    Raises:
        SplatFileError: There is nothing to write, or the files cannot be written.
    """
    folder = Path(folder)
    require_rows(gaussians, folder)
    meta, pictures, notes = _encoded(gaussians)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SplatFileError(
            f"{folder}: cannot be a folder for the SOG ({error.strerror}); choose another one."
        ) from error
    for name, data in [*pictures.items(), (META, json.dumps(meta).encode())]:
        with write_atomically(folder / name, SplatFileError) as temporary:
            temporary.write_bytes(data)
    return notes


def _encoded(gaussians: Gaussians) -> tuple[dict[str, Any], dict[str, bytes], list[str]]:
    g = gaussians.select(torch.from_numpy(morton_order(numpy_of(gaussians.means))))
    count = len(g)
    width = -(-int(np.ceil(np.sqrt(count))) // 4) * 4
    shape = (-(-count // width), width)

    def picture(rgb: np.ndarray, alpha: np.ndarray | int = 255) -> bytes:
        rgba = np.zeros((shape[0] * shape[1], 4), np.uint8)
        rgba[:count, : rgb.shape[1]] = rgb
        rgba[:count, 3] = alpha
        # WebP forgets the colour of pixels without alpha, so the padding has some.
        rgba[count:, 3] = 255
        return write_webp(rgba.reshape(*shape, 4))

    squeezed = np.sign(numpy_of(g.means)) * np.log1p(np.abs(numpy_of(g.means).astype(np.float64)))
    low, high = squeezed.min(0), squeezed.max(0)
    steps = np.rint((squeezed - low) / np.where(high > low, high - low, 1) * 65535).astype(np.int64)
    scale_codes, scale_labels = _codebook(numpy_of(g.log_scales))
    color_codes, color_labels = _codebook(numpy_of(g.sh0)[:, 0])
    largest, others = smallest_three(unit_quats(g))
    pictures = {
        "means_l.webp": picture(steps & 255),
        "means_u.webp": picture(steps >> 8),
        "scales.webp": picture(scale_labels),
        "quats.webp": picture(to_bytes((others * 2**0.5 + 1) * 127.5), 252 + largest),
        # Opacity 0 would lose the colour beside it; 1/255 shows as little.
        "sh0.webp": picture(color_labels, opacity_bytes(g).clip(1)),
    }
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": f"FaithFusion Studio {__version__}"},
        "count": count,
        "means": {
            "mins": low.tolist(),
            "maxs": high.tolist(),
            "files": ["means_l.webp", "means_u.webp"],
        },
        "scales": {"codebook": scale_codes, "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": color_codes, "files": ["sh0.webp"]},
    }
    notes = []
    if g.sh_degree:
        notes = _add_higher(numpy_of(g.shN), picture, pictures, meta, g.sh_degree)
    return meta, pictures, notes


def _add_higher(
    higher: np.ndarray, picture: Any, pictures: dict[str, bytes], meta: dict[str, Any], degree: int
) -> list[str]:
    """Put SH into the pictures and the description: labels, and the palette they point into."""
    count, coefficients = len(higher), higher.shape[1]
    labels, palette = _palette(higher.reshape(count, -1))
    codes, code_labels = _codebook(palette)
    rows = -(-len(palette) // PALETTE_ROW)
    table = np.zeros((rows * PALETTE_ROW * coefficients, 4), np.uint8)
    table[:, 3] = 255
    table[: len(palette) * coefficients, :3] = code_labels.reshape(-1, 3)
    pictures["shN_centroids.webp"] = write_webp(table.reshape(rows, PALETTE_ROW * coefficients, 4))
    pictures["shN_labels.webp"] = picture(np.stack([labels & 255, labels >> 8], axis=1))
    meta["shN"] = {
        "count": len(palette),
        "bands": degree,
        "codebook": codes,
        "files": ["shN_centroids.webp", "shN_labels.webp"],
    }
    if len(palette) == count:
        return []
    return [f"SOG shares view-dependent colours: {len(palette):,} sets stand for {count:,}."]


def _codebook(values: np.ndarray) -> tuple[list[float], np.ndarray]:
    """256 values and, for every number, the index of the nearest: k-means along a line.

    Source: Lloyd's algorithm on sorted numbers, where each cluster is an interval and its mean a
    difference of running sums.
    """
    flat = values.ravel()
    unique = np.unique(flat[:: max(1, len(flat) // _SAMPLE)])
    if len(unique) <= CODES and len(np.unique(flat)) <= CODES:
        codes = np.concatenate([unique, np.full(CODES - len(unique), unique[-1])])
    else:
        ordered = np.sort(flat[:: max(1, len(flat) // _SAMPLE)]).astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(ordered)])
        # Between even steps and quantiles: dense regions get more codes, the tails keep some.
        share = (np.arange(CODES) + 0.5) / CODES
        even = ordered[0] + (ordered[-1] - ordered[0]) * share
        codes = np.sort(0.5 * np.quantile(ordered, share) + 0.5 * even)
        for _ in range(_ROUNDS):
            edges = np.searchsorted(ordered, (codes[1:] + codes[:-1]) / 2)
            edges = np.concatenate([[0], edges, [len(ordered)]])
            number = np.diff(edges)
            means = np.diff(sums[edges]) / np.maximum(number, 1)
            codes = np.where(number > 0, means, codes)
    codes = codes.astype(np.float32)
    labels = np.searchsorted((codes[1:] + codes[:-1]) / 2, flat).astype(np.uint8)
    return [float(code) for code in codes], labels.reshape(values.shape)


def _palette(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] and palette [P, D]: every row itself where there is room, else groups of similar rows.

    Groups are found by cutting the widest spread again and again at its middle (16 times, so 65,536
    groups), each cut along the coordinate in which its group varies most; a group's mean stands for it.
    """
    count = len(rows)
    if count <= MAX_PALETTE:
        return np.arange(count), rows
    labels = np.zeros(count, np.int64)
    order = np.arange(count)
    for _ in range(_CUTS):
        starts = np.flatnonzero(np.r_[True, np.diff(labels[order]) > 0])
        sizes = np.diff(np.r_[starts, count])
        ordered = rows[order]
        mean = np.add.reduceat(ordered, starts) / sizes[:, None]
        spread = np.add.reduceat(ordered**2, starts) / sizes[:, None] - mean**2
        axis = spread.argmax(1)
        group = np.repeat(np.arange(len(starts)), sizes)
        above = ordered[np.arange(count), axis[group]] > mean[group, axis[group]]
        code = 2 * group + above
        order = order[np.argsort(code, kind="stable")]
        code.sort(kind="stable")
        labels[order] = np.unique(code, return_inverse=True)[1]
    number = np.bincount(labels)
    starts = np.concatenate([[0], np.cumsum(number)[:-1]])
    return labels, np.add.reduceat(rows[order], starts) / number[:, None]
