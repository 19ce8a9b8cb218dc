"""Choose the reader by looking at the content, the writer by the suffix; never by a flag."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from faithfusion_studio.errors import StudioError
from faithfusion_studio.io.camera_files import is_cameras_json, is_path_json
from faithfusion_studio.io.capture_files import CaptureError, read_json
from faithfusion_studio.io.captures import capture_root, read_capture
from faithfusion_studio.io.checkpoints import (
    CheckpointError,
    checkpoint_kind,
    is_torch_archive,
)
from faithfusion_studio.io.compressed_ply import read_compressed_ply
from faithfusion_studio.io.drivestudio import read_drivestudio, write_drivestudio
from faithfusion_studio.io.export import SPLAT_FORMATS, ExportOptions, splat_format, write_splats
from faithfusion_studio.io.gsplat_files import gsplat_ranks, read_gsplat
from faithfusion_studio.io.inria_ply import read_ply
from faithfusion_studio.io.inria_run import inria_point_cloud, read_inria_run
from faithfusion_studio.io.ksplat import is_ksplat, read_ksplat
from faithfusion_studio.io.native import NativeFileError, read_native, write_native
from faithfusion_studio.io.nerfstudio_files import nerfstudio_checkpoint, read_nerfstudio
from faithfusion_studio.io.ply import read_ply_header
from faithfusion_studio.io.point_scenes import is_npz, read_point_scene
from faithfusion_studio.io.sog import is_sog_archive, is_sog_folder, is_sog_meta, read_sog
from faithfusion_studio.io.splat import looks_like_splat, read_splat
from faithfusion_studio.io.splat_files import dropped_note, splat_scene, usable_rows
from faithfusion_studio.io.spz import is_spz, read_spz
from faithfusion_studio.scene import Capture, Scene

Format = Literal[
    "native",
    "ply",
    "compressed_ply",
    "splat",
    "spz",
    "ksplat",
    "sog",
    "inria_run",
    "points",
    "gsplat",
    "nerfstudio",
    "drivestudio",
    "checkpoint",
    "capture",
    "camera_path",
]

FORMATS: dict[str, str] = {
    "native": "FaithFusion Studio scene (.ckpt), read and written",
    "ply": "3D Gaussian splats as Inria PLY (.ply), read and written",
    "compressed_ply": "SuperSplat compressed PLY (.compressed.ply), read and written",
    "splat": "antimatter15 splat (.splat), read and written",
    "spz": "Niantic SPZ of version 1 to 4 (.spz), read and written",
    "ksplat": "GaussianSplats3D splats (.ksplat), read",
    "sog": "PlayCanvas SOG (.sog, or a folder with meta.json), read and written",
    "inria_run": "run folder of Inria's 3DGS (point_cloud/iteration_*), read",
    "points": "coloured points with cameras (.npz), read as small balls",
    "gsplat": "gsplat checkpoint (.pt of one or several ranks, or a run folder), read and written",
    "nerfstudio": "nerfstudio splatfacto checkpoint (.ckpt, or a run folder), read",
    "drivestudio": "DriveStudio, OmniRe or FaithFusion checkpoint (.pth), read and written",
    "checkpoint": "checkpoint of an unknown project (.pth, .pt, .ckpt of torch), refused",
    "capture": "recording: folder with cameras.json, transforms.json, COLMAP sparse/0 or DriveStudio's layout, read",
    "camera_path": "camera path: cameras.json or nerfview path (.json), read and written",
}
_SPLATS = "a scene (.ckpt), a splat file (.ply, .splat, .spz, .ksplat, .sog) or a checkpoint"
_CONVERTIBLE = (".lcc", ".lcc2", ".glb", ".gltf", ".usdz")


class FormatError(StudioError):
    """A file whose content is none of the formats we know."""


def sniff(path: Path | str) -> Format:
    """Which format a file or folder has, by its content alone.

    Raises:
        StudioError: The path does not exist, is empty, or holds nothing we know.
    """
    path = Path(path)
    if path.is_dir():
        kind = _kind_of_folder(path)
        if kind is not None:
            return kind
        found = ", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing"
        raise CaptureError(
            f"{path}: is a folder without a recording (found {found}); expected cameras.json, "
            "transforms.json, or images/ with sparse/0."
        )
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    kind = _kind_of(path, head)
    if kind is None and path.suffix.lower() in _CONVERTIBLE:
        raise FormatError(
            f"{path}: {path.suffix} files are not read; convert it with splat-transform (npm) to "
            ".ply or .sog first."
        )
    if kind is None:
        raise FormatError(
            f"{path}: starts with {head[:8]!r}, which is no format we know; expected {_SPLATS}, "
            "or a capture folder."
            if head
            else f"{path}: is empty; expected {_SPLATS}, or a capture folder."
        )
    return kind


def _kind_of_folder(path: Path) -> Format | None:
    if capture_root(path) is not None:
        return "capture"
    if is_sog_folder(path):
        return "sog"
    if inria_point_cloud(path) is not None:
        return "inria_run"
    if nerfstudio_checkpoint(path) is not None:
        return "nerfstudio"
    return "gsplat" if gsplat_ranks(path) else None


def _kind_of(path: Path, head: bytes) -> Format | None:
    for probe in _PROBES:
        kind = probe(path, head)
        if kind is not None:
            return kind
    return None


def _kind_of_container(path: Path, head: bytes) -> Format | None:
    if len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "native"
    if head.startswith((b"ply\n", b"ply\r")):
        names = {element.name for element in read_ply_header(path).elements}
        return "compressed_ply" if "chunk" in names else "ply"
    return "spz" if is_spz(path, head) else None


def _kind_of_pickle(path: Path, head: bytes) -> Format | None:
    if head.startswith(b"PK\x03\x04"):
        if is_torch_archive(path):
            return checkpoint_kind(path)
        if is_sog_archive(path):
            return "sog"
        return "points" if is_npz(path) else None
    return "checkpoint" if head.startswith(b"\x80") else None


def _kind_of_text(path: Path, head: bytes) -> Format | None:
    if head.lstrip()[:1] == b"{" and path.suffix.lower() == ".json":
        return _kind_of_json(path)
    return None


def _kind_without_magic(path: Path, head: bytes) -> Format | None:
    """Of a file without a header only the values, or else the name, can tell."""
    if is_ksplat(path, head):
        return "ksplat"
    if looks_like_splat(path) or (head and path.suffix.lower() == ".splat"):
        return "splat"
    return None


_PROBES: tuple[Callable[[Path, bytes], Format | None], ...] = (
    _kind_of_container,
    _kind_of_pickle,
    _kind_of_text,
    _kind_without_magic,
)


def _kind_of_json(path: Path) -> Format | None:
    content = read_json(path)
    if is_sog_meta(content):
        return "sog"
    if is_cameras_json(content):
        images = any((path.parent / name).is_dir() for name in ("images", "sparse"))
        return "capture" if images else "camera_path"
    if is_path_json(content):
        return "camera_path"
    return "capture" if isinstance(content.get("frames"), list) else None


def load_scene(path: Path | str) -> Scene:
    """A scene from a native file, a splat file, a checkpoint of another project, or its run folder.

    Raises:
        StudioError: The file is missing, damaged, or not a scene (a capture must be reconstructed
            first; nothing in a checkpoint is ever executed).
    """
    path = Path(path)
    kind = sniff(path)
    reader = READERS.get(kind)
    if reader is not None:
        return reader(path)
    if kind == "capture":
        raise CaptureError(
            f"{path}: this is a capture; reconstruct it first (ff-studio reconstruct)."
        )
    if kind == "camera_path":
        raise CaptureError(f"{path}: this is a camera path, not a scene; give it with --cameras.")
    raise CheckpointError(
        f"{path}: is no checkpoint we know; expected a zip archive of torch.save with splats "
        "(gsplat), pipeline (nerfstudio) or models (DriveStudio), so export a PLY."
    )


def _read_native(path: Path) -> Scene:
    return _without_broken(read_native(path), path)


def _read_ply(path: Path) -> Scene:
    return splat_scene(*read_ply(path), path)


def _read_compressed_ply(path: Path) -> Scene:
    return splat_scene(*read_compressed_ply(path), path)


def _read_splat(path: Path) -> Scene:
    return splat_scene(*read_splat(path), path)


def _read_spz(path: Path) -> Scene:
    gaussians, dropped, notes = read_spz(path)
    return splat_scene(gaussians, dropped, path, [*notes, AXES_NOTE])


def _read_ksplat(path: Path) -> Scene:
    return splat_scene(*read_ksplat(path), path)


def _read_sog(path: Path) -> Scene:
    return splat_scene(*read_sog(path), path)


AXES_NOTE = (
    "SPZ does not say which axes it uses; if the scene lies on its head, convert it with --flip-yz."
)
READERS: dict[str, Callable[[Path], Scene]] = {
    "native": _read_native,
    "ply": _read_ply,
    "compressed_ply": _read_compressed_ply,
    "splat": _read_splat,
    "spz": _read_spz,
    "ksplat": _read_ksplat,
    "sog": _read_sog,
    "inria_run": read_inria_run,
    "points": read_point_scene,
    "gsplat": read_gsplat,
    "nerfstudio": read_nerfstudio,
    "drivestudio": read_drivestudio,
}
"""How each format that is a scene is read; a new format is a line here, in FORMATS and in `sniff`."""


def _without_broken(scene: Scene, path: Path) -> Scene:
    """The scene without Gaussians that are not finite, and their evidence; itself where all are."""
    parts = [scene.background, *(node.gaussians for node in scene.nodes)]
    masks = [usable_rows(part) for part in parts]
    good = torch.cat(masks)
    if bool(good.all()):
        return scene
    if not bool(good.any()):
        raise NativeFileError(
            f"{path}: has {len(good):,} Gaussians and none with finite values; open another copy."
        )
    fisher = scene.fisher
    if fisher is not None and len(fisher.blocks) == len(good):
        residual = fisher.residual_variance
        fisher = replace(
            fisher,
            blocks=fisher.blocks[good],
            sh=fisher.sh[good],
            residual_variance=None if residual is None else residual[good],
        )
    notes = [*scene.metadata.get("notes", []), dropped_note(int((~good).sum()), len(good))]
    return replace(
        scene,
        background=parts[0].select(masks[0]),
        nodes=tuple(node.select(mask) for node, mask in zip(scene.nodes, masks[1:], strict=True)),
        fisher=fisher,
        metadata={**scene.metadata, "notes": notes},
    )


def load_capture(path: Path | str) -> Capture:
    """A recording from a folder, or the frames stored in a native scene file.

    Raises:
        StudioError: There is no recording, or it cannot be used.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "capture":
        return read_capture(path)
    if kind != "native":
        raise CaptureError(
            f"{path}: is a {FORMATS[kind].split(',')[0]}; expected a capture folder or a scene "
            "(.ckpt) with its recorded frames."
        )
    scene = read_native(path)
    if scene.capture is None or not scene.capture.frames:
        raise CaptureError(
            f"{path}: this scene was saved without recorded frames; expected a scene that keeps "
            "its recording, or a capture folder."
        )
    return replace(scene.capture, source=scene.capture.source or path.name)


WRITABLE = (".ckpt", ".pth", *SPLAT_FORMATS)
"""Ends of file names a scene can be written under."""


def is_writable(path: Path | str) -> bool:
    """Whether the name of a file says how a scene shall be written into it."""
    path = Path(path)
    return path.suffix.lower() in (".ckpt", ".pth") or splat_format(path) is not None


def save_scene(scene: Scene, path: Path | str, options: ExportOptions | None = None) -> list[str]:
    """Write a scene: `.ckpt` keeps everything, `.pth` what DriveStudio knows, others Gaussians at one time.

    Args:
        scene: What to write.
        path: The final name; its end chooses the format (`WRITABLE`).
        options: How the Gaussians are taken out of the scene; not for `.ckpt`.

    Returns:
        Sentences about what the format lost; none for `.ckpt`.

    Raises:
        StudioError: Another suffix, or the file cannot be written; an old file then stays.
    """
    path = Path(path)
    if path.suffix.lower() == ".ckpt":
        write_native(scene, path)
        return []
    if path.suffix.lower() == ".pth":
        return write_drivestudio(scene, path)
    form = splat_format(path)
    if form is None:
        raise FormatError(
            f"{path}: cannot write a scene as {path.suffix or 'a file without suffix'!r}; expected "
            f"{name_of_writable()}."
        )
    return write_splats(scene, path, form, options or ExportOptions())


def name_of_writable() -> str:
    """The names a scene can be written under, for messages."""
    splats = ", ".join(end for end in SPLAT_FORMATS if end != ".compressed.ply")
    return f".ckpt (everything), .pth (DriveStudio), or {splats}, .compressed.ply (Gaussians only)"
