"""Writing a scene as a splat file of another tool, and saying in one line what that loses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.compressed_ply import write_compressed_ply
from faithfusion_studio.io.gsplat_files import write_gsplat
from faithfusion_studio.io.inria_ply import write_ply
from faithfusion_studio.io.sog_writer import write_sog, write_sog_folder
from faithfusion_studio.io.splat import write_splat
from faithfusion_studio.io.splat_files import dropped_note, usable_rows
from faithfusion_studio.io.spz import SpzVersion, flipped_yz, write_spz
from faithfusion_studio.scene import Scene


@dataclass(frozen=True)
class ExportOptions:
    """How a scene becomes a set of Gaussians in a foreign file."""

    time: float = 0.0
    """Seconds; moving objects are placed where they are then."""
    spz_version: SpzVersion = 3
    """3 is read by every tool; 4 is smaller and newer."""
    flip_yz: bool = False
    """Reverse y and z: from right-down-forward to the right-up-back of glTF and nominal SPZ, and back."""


@dataclass(frozen=True)
class SplatFormat:
    """A foreign format a scene can be written in."""

    title: str
    write: Callable[[Gaussians, Path, ExportOptions], list[str]]
    keeps_sh: bool = True


def _plain(write: Callable[[Gaussians, Path], list[str]]):
    return lambda gaussians, path, _options: write(gaussians, path)


def _silent(write: Callable[[Gaussians, Path], None]):
    def written(gaussians: Gaussians, path: Path, _options: ExportOptions) -> list[str]:
        write(gaussians, path)
        return []

    return written


SPLAT_FORMATS: dict[str, SplatFormat] = {
    ".compressed.ply": SplatFormat("SuperSplat compressed PLY", _plain(write_compressed_ply)),
    ".ply": SplatFormat("Inria PLY", _silent(write_ply)),
    ".splat": SplatFormat("antimatter15 splat", _plain(write_splat), keeps_sh=False),
    ".spz": SplatFormat("Niantic SPZ", lambda g, p, o: write_spz(g, p, o.spz_version)),
    ".sog": SplatFormat("PlayCanvas SOG", _plain(write_sog)),
    "meta.json": SplatFormat("unpacked SOG", lambda g, p, _: write_sog_folder(g, p.parent)),
    ".pt": SplatFormat("gsplat checkpoint", _silent(write_gsplat)),
}
"""By the end of the file's name; the first that fits counts."""


def splat_format(path: Path) -> SplatFormat | None:
    """The foreign format a file name asks for; None where it asks for none."""
    name = path.name.lower()
    return next((form for end, form in SPLAT_FORMATS.items() if name.endswith(end)), None)


def write_splats(scene: Scene, path: Path, form: SplatFormat, options: ExportOptions) -> list[str]:
    """Write the Gaussians of a scene at one time; returns what was lost, a sentence each.

    Raises:
        StudioError: There is nothing to write, or the file cannot be written.
    """
    gaussians = scene.at(options.time).gaussians.to("cpu")
    good = usable_rows(gaussians)
    notes = []
    if len(gaussians) and not bool(good.all()):
        notes.append(dropped_note(int((~good).sum()), len(gaussians)))
        gaussians = gaussians.select(good)
    left_out = []
    if gaussians.sh_degree and not form.keeps_sh:
        left_out.append(f"SH of degree {gaussians.sh_degree}")
    if scene.nodes:
        left_out.append(
            f"the motion of {len(scene.nodes)} objects (placed as at {options.time:g} s)"
        )
    if scene.sky is not None:
        left_out.append("the sky")
    if scene.capture is not None:
        left_out.append("the recording")
    if left_out:
        notes.append(f"{form.title} cannot hold {', '.join(left_out)}.")
    if options.flip_yz:
        gaussians = flipped_yz(gaussians)
    return [*notes, *form.write(gaussians, path, options)]
