"""Choose the reader by looking at the content, the writer by the suffix; never by a flag."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from faithfusion_studio.errors import StudioError
from faithfusion_studio.io.camera_files import is_cameras_json, is_path_json
from faithfusion_studio.io.capture_files import CaptureError, read_json
from faithfusion_studio.io.captures import capture_root, read_capture
from faithfusion_studio.io.compressed_ply import read_compressed_ply
from faithfusion_studio.io.native import NativeFileError, read_native, write_native
from faithfusion_studio.io.ply import read_ply_header
from faithfusion_studio.io.splat_files import read_ply, usable_rows, write_ply
from faithfusion_studio.scene import Capture, Scene

Format = Literal["native", "ply", "compressed_ply", "capture", "camera_path", "checkpoint"]

FORMATS: dict[str, str] = {
    "native": "FaithFusion Studio scene (.ckpt), read and written",
    "ply": "3D Gaussian splats as Inria PLY (.ply), read and written",
    "compressed_ply": "SuperSplat compressed PLY (.compressed.ply), read",
    "capture": "recording: folder with cameras.json, transforms.json or COLMAP sparse/0, read",
    "camera_path": "camera path: cameras.json or nerfview path (.json), read and written",
    "checkpoint": "foreign checkpoint (.pth, .pt, .ckpt of torch), recognised and refused",
}
_SPLATS = "a scene (.ckpt) or a splat file (.ply)"


class FormatError(StudioError):
    """A file whose content is none of the formats we know."""


class CheckpointError(StudioError):
    """A trained model of another project."""


def sniff(path: Path | str) -> Format:
    """Which format a file or folder has, by its content alone.

    Raises:
        StudioError: The path does not exist, is empty, or holds nothing we know.
    """
    path = Path(path)
    if path.is_dir():
        if capture_root(path) is not None:
            return "capture"
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


def _kind_of(path: Path, head: bytes) -> Format | None:
    if len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "native"
    if head.startswith((b"ply\n", b"ply\r")):
        names = {element.name for element in read_ply_header(path).elements}
        return "compressed_ply" if "chunk" in names else "ply"
    if head.startswith((b"PK\x03\x04", b"\x80")):
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
    """A scene from a native file, an Inria PLY or a compressed PLY.

    Raises:
        StudioError: The file is missing, damaged, or not a scene (a capture must be reconstructed
            first; foreign checkpoints are never unpickled).
    """
    path = Path(path)
    kind = sniff(path)
    if kind == "native":
        return _without_broken(read_native(path), path)
    if kind in ("ply", "compressed_ply"):
        gaussians, dropped = (read_ply if kind == "ply" else read_compressed_ply)(path)
        notes = [_dropped_note(dropped, dropped + len(gaussians))] if dropped else []
        return Scene(gaussians, metadata={"source": path.name, "notes": notes})
    if kind == "capture":
        raise CaptureError(
            f"{path}: this is a capture; reconstruct it first (ff-studio reconstruct)."
        )
    if kind == "camera_path":
        raise CaptureError(f"{path}: this is a camera path, not a scene; give it with --cameras.")
    raise CheckpointError(
        f"{path}: foreign checkpoints cannot be opened by this version; export a PLY."
    )


def _dropped_note(dropped: int, total: int) -> str:
    return f"{dropped:,} of {total:,} Gaussians were left out because they were not finite."


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
    notes = [*scene.metadata.get("notes", []), _dropped_note(int((~good).sum()), len(good))]
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
    """Write a scene: `.ckpt` keeps everything, `.ply` keeps the Gaussians at time 0.

    Raises:
        StudioError: Another suffix, or the file cannot be written; an old file then stays.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".ckpt":
        write_native(scene, path)
    elif suffix == ".ply":
        write_ply(scene.at(0.0).gaussians, path)
    else:
        raise FormatError(
            f"{path}: cannot write a scene as {suffix or 'a file without suffix'!r}; expected "
            ".ckpt (everything) or .ply (Gaussians only)."
        )
