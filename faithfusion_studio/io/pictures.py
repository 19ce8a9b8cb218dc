"""Folders of pictures and values that appear complete, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from faithfusion_studio.errors import StudioError


@contextmanager
def filled_folder(path: Path, error_type: type[StudioError]) -> Iterator[Path]:
    """A hidden folder beside `path` whose files move to `path` when the block succeeds.

    Files of other names that are already in `path` stay. On any failure nothing of this block stays.

    Args:
        path: The final folder; made if need be, its parents too.
        error_type: What to raise when it cannot be written.

    Raises:
        StudioError: Of the given type, in one sentence: a file has that name, the disk is full.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        if path.exists() and not path.is_dir():
            raise error_type(f"{path}: is a file; expected a folder, so choose another name.")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if path.is_dir():
            for file in sorted(part.iterdir()):
                file.replace(path / file.name)
        else:
            part.replace(path)
        flush_folder(path)
    except OSError as error:
        raise error_type(
            f"{path}: cannot be written ({error.strerror or error}); nothing was left behind, so "
            "free some space or choose another folder and try again."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_png(picture: np.ndarray, path: Path) -> None:
    """Write one picture.

    Args:
        picture: [H, W, 3] RGB or [H, W] grey, uint8.
        path: Target, ending in .png.
    """
    import cv2

    bgr = picture if picture.ndim == 2 else picture[:, :, ::-1]
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(bgr))[1].tobytes())


def write_npy(values: np.ndarray, path: Path) -> None:
    """Write one array as .npy."""
    with path.open("wb") as file:
        np.save(file, values)


def flush_folder(folder: Path) -> None:
    """Make renames durable; file systems that cannot do it are left alone."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
