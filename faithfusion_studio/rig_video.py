"""Videos of several cameras of a rig: one file per camera, or one file with all of them in a grid.

All files of an export have the same number of frames, one per moment of the drive: where a camera took
no picture it looks from where it was last. Each picture says which camera it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.io.mp4 import write_videos
from faithfusion_studio.io.pictures import filled_folder, write_png
from faithfusion_studio.rig import rig_of
from faithfusion_studio.scene import Scene
from faithfusion_studio.video import (
    VideoError,
    VideoOptions,
    check_export,
    export_files,
    export_video,
    fit_camera,
    in_words,
    panels,
)

Arrange = Literal["files", "grid"]
"""How several cameras are put down: a file for each, or all in one picture."""


def choose_cameras(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The cameras of a rig that were asked for, in the rig's order.

    Args:
        names: Those of the rig.
        wanted: Some of them; "all" is every one.

    Raises:
        VideoError: One of them is not on the rig.
    """
    titles = [name or "camera" for name in names]
    unknown = [name for name in wanted if name not in (*titles, "all")]
    if unknown:
        raise VideoError(
            f"camera {unknown[0]!r} is not on this rig; choose from {', '.join(titles)}."
        )
    everything = "all" in wanted
    return [n for n, title in zip(names, titles, strict=True) if everything or title in wanted]


def rig_files(
    cameras: Sequence[Camera], path: Path | str, options: VideoOptions, arrange: Arrange
) -> list[Path]:
    """The final names that `export_rig` writes."""
    path, names = Path(path), _names(cameras)
    if _is_one_by_one(cameras, path, arrange) or arrange == "grid":
        return export_files(path, options)
    targets = [path.with_stem(f"{path.stem}_{_safe(name, i)}") for i, name in enumerate(names)]
    return [file for target in targets for file in export_files(target, options)]


def export_steps(cameras: Sequence[Camera], path: Path | str, arrange: Arrange) -> int:
    """How far `export_rig` counts: frames of one camera or of a folder, else moments."""
    if _is_one_by_one(cameras, Path(path), arrange):
        return len(cameras)
    return len(rig_of(trajectory_from_cameras(cameras)))


def export_rig(
    scene: Scene,
    cameras: Sequence[Camera],
    path: Path | str,
    options: VideoOptions | None = None,
    *,
    arrange: Arrange = "files",
) -> Iterator[int]:
    """Write what several cameras of a rig see along a path; yields the moments done so far.

    Args:
        scene: What to render.
        cameras: Of all the rig's cameras that are wanted, in order of time; told apart by their names.
        path: An .mp4, which with "files" becomes NAME_CAMERA.mp4 for each camera, or a folder: it gets all
            pictures one by one with "files", and one STEM_grid.png per moment with "grid".
        options: See `VideoOptions`; truth goes with one camera only.
        arrange: A file for each camera, or all of them in one picture, each of the first one's size.

    Raises:
        VideoError: As `export_video` does, or truth was given for several cameras.
        MissingFisherError: The layer "eig" of a scene without evidence.
    """
    options, path = options or VideoOptions(), Path(path)
    if _is_one_by_one(cameras, path, arrange):
        return export_video(scene, cameras, path, options)
    check_export(cameras, path, replace(options, stems=()))
    if options.truth:
        raise VideoError("truth: goes with one camera; choose one, or leave the truth out.")
    frames = _pictures(scene, _moments(cameras, options, arrange), options, arrange)
    if path.suffix.lower() == ".mp4":
        work = write_videos(
            rig_files(cameras, path, options, arrange), frames, fps=options.fps, crf=options.crf
        )
    else:
        work = _write_folder(frames, path, options)
    return in_words(work, path)


def _is_one_by_one(cameras: Sequence[Camera], path: Path, arrange: Arrange) -> bool:
    """Whether the pictures are written as those of a single camera."""
    return len(_names(cameras)) < 2 or (arrange == "files" and path.suffix.lower() != ".mp4")


def _names(cameras: Sequence[Camera]) -> list[str]:
    return list(dict.fromkeys(camera.name for camera in cameras))


def _safe(name: str, index: int) -> str:
    """A part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name) or f"camera{index}"


def _moments(
    cameras: Sequence[Camera], options: VideoOptions, arrange: Arrange
) -> list[list[Camera]]:
    """A camera of every name for each moment, all pictures of a file of one size."""
    rig = rig_of(trajectory_from_cameras(cameras))
    first = [cameras[rig.track(column)[0]] for column in range(len(rig.names))]
    sizes = [options.size or (camera.width, camera.height) for camera in first]
    if arrange == "grid":
        sizes = [sizes[0]] * len(sizes)
    rows, last = [], first
    for row in rig.table:
        last = [last[c] if i is None else cameras[i] for c, i in enumerate(row)]
        rows.append([fit_camera(c, *size) for c, size in zip(last, sizes, strict=True)])
    return rows


def _pictures(
    scene: Scene, rows: list[list[Camera]], options: VideoOptions, arrange: Arrange
) -> Iterator[list[np.ndarray]]:
    """The pictures of each moment: those of every camera one after the other, or tiled."""
    for index, row in enumerate(rows):
        told = [panels(scene, camera, _captioned(options, camera), index) for camera in row]
        if arrange == "grid":
            yield [tiled([of[layer] for of in told]) for layer in range(len(told[0]))]
        else:
            yield [picture for of in told for picture in of]


def _captioned(options: VideoOptions, camera: Camera) -> VideoOptions:
    return replace(options, caption="  ".join(filter(None, (camera.name, options.caption))))


def tiled(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size in rows, as square as may be; what is left over stays black.

    Args:
        pictures: [H, W, 3] bytes each, at least one.
    """
    columns = math.ceil(math.sqrt(len(pictures))) if len(pictures) > 3 else len(pictures)
    empty = np.zeros_like(pictures[0])
    padded = [*pictures, *[empty] * (-len(pictures) % columns)]
    rows = [np.concatenate(padded[i : i + columns], 1) for i in range(0, len(padded), columns)]
    return np.concatenate(rows, 0)


def _write_folder(
    frames: Iterator[list[np.ndarray]], path: Path, options: VideoOptions
) -> Iterator[int]:
    with filled_folder(path, VideoError) as part:
        for index, pictures in enumerate(frames):
            names = options.layers if len(pictures) == len(options.layers) else ("",)
            for name, picture in zip(names, pictures, strict=True):
                end = f"_{name}" if len(names) > 1 else ""
                write_png(picture, part / f"{index:06d}_grid{end}.png")
            yield index + 1
