"""The Inria PLY, read by property name and written in its order."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.ply import SplatFileError, read_ply_elements, read_ply_header
from faithfusion_studio.io.splat_files import keep_finite, require_rows
from faithfusion_studio.transforms import SH_C0

_REST = {0: 0, 9: 3, 24: 8, 45: 15}


def read_ply(path: Path | str) -> tuple[Gaussians, int]:
    """Gaussians of an Inria PLY, and how many were dropped because they were not finite or huge.

    Properties are found by name, in any order and number type; normals may be missing and other
    properties are passed over; `red green blue` bytes stand in for missing `f_dc_*`.

    Raises:
        SplatFileError: Damaged, not 3D Gaussians, or without a single finite Gaussian.
    """
    path = Path(path)
    header = read_ply_header(path)
    rows = read_ply_elements(path, header, ["vertex"]).get("vertex")
    if rows is None:
        names = ", ".join(e.name for e in header.elements) or "none"
        raise SplatFileError(f"{path}: has the elements {names}; expected vertex.")
    names = rows.dtype.names or ()
    needed = ["x", "y", "z", "opacity", "scale_0", "scale_1", "scale_2"]
    needed += [f"rot_{i}" for i in range(4)]
    missing = [name for name in needed if name not in names]
    if missing:
        raise SplatFileError(
            f"{path}: lacks the properties {', '.join(missing)}; expected 3D Gaussians (means, "
            "opacity, three scales, a rotation), not a mesh or a plain point cloud."
        )

    def columns(*wanted: str) -> Tensor:
        return _columns(rows, wanted)

    rest = sum(name.startswith("f_rest_") for name in names)
    if rest not in _REST or any(f"f_rest_{i}" not in names for i in range(rest)):
        raise SplatFileError(
            f"{path}: has {rest} properties f_rest_*; expected 0, 9, 24 or 45 (SH degree 0 to 3)."
        )
    shN = torch.zeros(len(rows), 0, 3)
    if rest:
        channel_major = columns(*(f"f_rest_{i}" for i in range(rest)))
        shN = channel_major.unflatten(1, (3, _REST[rest])).transpose(1, 2).contiguous()
    provenance = np.zeros(len(rows), np.uint8)
    if "provenance" in names:
        provenance = np.nan_to_num(rows["provenance"]).clip(0, 3).astype(np.uint8)
    gaussians = Gaussians(
        means=columns("x", "y", "z").contiguous(),
        log_scales=columns("scale_0", "scale_1", "scale_2").contiguous(),
        quats=columns("rot_0", "rot_1", "rot_2", "rot_3").contiguous(),
        logit_opacities=columns("opacity")[:, 0].contiguous(),
        sh0=_base_color(path, rows, columns)[:, None].contiguous(),
        shN=shN,
        provenance=torch.from_numpy(provenance),
    )
    return keep_finite(gaussians, path)


def _columns(rows: np.ndarray, names: Sequence[str]) -> Tensor:
    """Some properties as float32, [N, len(names)]; a view where they are neighbours of floats.

    Copying a property at a time would go through the whole file once for each.
    """
    fields: Any = rows.dtype.fields
    kinds, places = zip(*(fields[name][:2] for name in names), strict=True)
    neighbours = all(place == places[0] + 4 * i for i, place in enumerate(places))
    aligned = rows.dtype.itemsize % 4 == 0 and places[0] % 4 == 0 and rows.ctypes.data % 4 == 0
    if neighbours and aligned and set(kinds) == {np.dtype("<f4")} and sys.byteorder == "little":
        table = rows.view(np.float32).reshape(len(rows), -1)
        first = places[0] // 4
        return torch.from_numpy(table)[:, first : first + len(names)]
    with np.errstate(over="ignore"):
        stacked = np.stack([rows[name].astype(np.float32) for name in names], axis=1)
    return torch.from_numpy(stacked)


def _base_color(path: Path, rows: np.ndarray, columns) -> Tensor:
    names = rows.dtype.names or ()
    if all(f"f_dc_{i}" in names for i in range(3)):
        return columns("f_dc_0", "f_dc_1", "f_dc_2")
    if all(name in names for name in ("red", "green", "blue")):
        return (columns("red", "green", "blue") / 255 - 0.5) / SH_C0
    raise SplatFileError(f"{path}: has neither f_dc_0..2 nor red green blue; expected a colour.")


def write_ply(gaussians: Gaussians, path: Path | str) -> None:
    """Write Gaussians as a binary Inria PLY: 62 floats of SH degree 3.

    Where not everything was recorded, a float `provenance` follows; a byte would be enough, but
    Niantic's tools refuse vertices that are not of floats alone.

    Raises:
        SplatFileError: There is nothing to write, or the file cannot be written.
    """
    path = Path(path)
    require_rows(gaussians, path)
    g = gaussians.with_sh_degree(3).to("cpu")
    count = len(g)
    parts = [
        g.means,
        torch.zeros(count, 3),
        g.sh0[:, 0],
        g.shN.transpose(1, 2).reshape(count, 45),
        g.logit_opacities[:, None],
        g.log_scales,
        g.quats,
    ]
    names = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3))]
    names += [f"f_rest_{i}" for i in range(45)]
    names += ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    if bool(g.provenance.any()):
        parts.append(g.provenance[:, None])
        names.append("provenance")
    table = torch.cat([part.detach().to(torch.float32) for part in parts], dim=1).numpy()
    lines = ["ply", "format binary_little_endian 1.0", "comment FaithFusion Studio"]
    lines += [f"element vertex {count}", *(f"property float {name}" for name in names)]
    lines += ["end_header", ""]
    with write_atomically(path, SplatFileError) as temporary, temporary.open("wb") as file:
        file.write("\n".join(lines).encode("ascii"))
        table.astype("<f4", copy=False).tofile(file)
