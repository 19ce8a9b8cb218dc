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
from faithfusion_studio.io.gsplat_files import gsplat_ranks, read_gsplat, write_gsplat
from faithfusion_studio.io.inria_ply import read_ply, write_ply
from faithfusion_studio.io.native import NativeFileError, read_native, write_native
from faithfusion_studio.io.nerfstudio_files import nerfstudio_checkpoint, read_nerfstudio
from faithfusion_studio.io.ply import read_ply_header
from faithfusion_studio.io.splat_files import dropped_note, splat_scene, usable_rows
from faithfusion_studio.scene import Capture, Scene

Format = Literal[
    "native",
    "ply",
    "compressed_ply",
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
    "compressed_ply": "SuperSplat compressed PLY (.compressed.ply), read",
    "gsplat": "gsplat checkpoint (.pt of one or several ranks, or a run folder), read and written",
    "nerfstudio": "nerfstudio splatfacto checkpoint (.ckpt, or a run folder), read",
    "drivestudio": "DriveStudio checkpoint (.pth), recognised and refused",
    "checkpoint": "checkpoint of an unknown project (.pth, .pt, .ckpt of torch), refused",
    "capture": "recording: folder with cameras.json, transforms.json or COLMAP sparse/0, read",
    "camera_path": "camera path: cameras.json or nerfview path (.json), read and written",
}
_SPLATS = "a scene (.ckpt) or a splat file (.ply)"


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
    if nerfstudio_checkpoint(path) is not None:
        return "nerfstudio"
    return "gsplat" if gsplat_ranks(path) else None


def _kind_of(path: Path, head: bytes) -> Format | None:
    if len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "native"
    if head.startswith((b"ply\n", b"ply\r")):
        names = {element.name for element in read_ply_header(path).elements}
        return "compressed_ply" if "chunk" in names else "ply"
    if head.startswith(b"PK\x03\x04"):
        return checkpoint_kind(path) if is_torch_archive(path) else None
    if head.startswith(b"\x80"):
        return "checkpoint"
    if head.lstrip()[:1] == b"{" and path.suffix.lower() == ".json":
        return _kind_of_json(path)
    return None


def _kind_of_json(path: Path) -> Format | None:
    content = read_json(path)
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
    if kind == "drivestudio":
        raise CheckpointError(
            f"{path}: DriveStudio checkpoints cannot be opened by this version; export a PLY."
        )
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


READERS: dict[str, Callable[[Path], Scene]] = {
    "native": _read_native,
    "ply": _read_ply,
    "compressed_ply": _read_compressed_ply,
    "gsplat": read_gsplat,
    "nerfstudio": read_nerfstudio,
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
        nodes=tuple(
            replace(node, gaussians=node.gaussians.select(mask))
            for node, mask in zip(scene.nodes, masks[1:], strict=True)
        ),
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


def save_scene(scene: Scene, path: Path | str) -> None:
    """Write a scene: `.ckpt` keeps everything, other suffixes keep the Gaussians at time 0.

    Raises:
        StudioError: Another suffix, or the file cannot be written; an old file then stays.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".ckpt":
        write_native(scene, path)
    elif suffix == ".ply":
        write_ply(scene.at(0.0).gaussians, path)
    elif suffix == ".pt":
        write_gsplat(scene.at(0.0).gaussians, path)
    else:
        raise FormatError(
            f"{path}: cannot write a scene as {suffix or 'a file without suffix'!r}; expected "
            ".ckpt (everything), .ply or .pt (Gaussians only)."
        )
