"""Annotated vehicles and lane lines inside our cameras.json, both ways.

`boxes[]` = name, category, `size` (length, width, height, m), `timestamps` [T] (s, ascending) and
`world_from_box` [T, 4, 4] (origin at the centre, x forward, y left, z up), and where known `by_hand` [T] (which
poses a person set, 0 or 1); `lanes[]` = world points [M, 3] of each polyline, m.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.io.capture_files import CaptureError, require_rigid
from faithfusion_studio.scene import BoxTrack, Capture


def annotations_json(capture: Capture) -> dict[str, Any]:
    """The keys `boxes` and `lanes` of a recording; only those it has."""
    boxes = boxes_json(capture.boxes)
    lanes = [lane.tolist() for lane in capture.lanes]
    return {key: value for key, value in (("boxes", boxes), ("lanes", lanes)) if value}


def boxes_json(tracks: Iterable[BoxTrack]) -> list[dict[str, Any]]:
    """Annotated vehicles as plain values."""
    return [
        {
            "name": box.name,
            "category": box.category,
            "size": box.size.tolist(),
            "timestamps": box.timestamps.tolist(),
            "world_from_box": box.poses.tolist(),
            **({} if box.by_hand is None else {"by_hand": box.by_hand.int().tolist()}),
        }
        for box in tracks
    ]


def write_box_tracks(tracks: Iterable[BoxTrack], path: Path) -> None:
    """A JSON file with the key `boxes`, which `read_box_tracks` reads.

    Raises:
        CaptureError: The file cannot be written.
    """
    with write_atomically(path, CaptureError) as temporary:
        temporary.write_text(json.dumps({"boxes": boxes_json(tracks)}))


def read_box_tracks(path: Path) -> tuple[BoxTrack, ...]:
    """The box tracks of a JSON file: an object with the key `boxes`, such as a cameras.json.

    Raises:
        CaptureError: It cannot be read, or holds no such boxes.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CaptureError(
            f"{path}: cannot be read as box tracks ({type(error).__name__}); expected a JSON object with boxes."
        ) from error
    if not isinstance(content, dict):
        raise CaptureError(
            f"{path}: holds a {type(content).__name__}; expected an object with boxes."
        )
    return boxes_of(content, path)


def boxes_of(content: dict[str, Any], path: Path) -> tuple[BoxTrack, ...]:
    """The annotated vehicles of a cameras.json.

    Raises:
        CaptureError: A box without a usable size, times or poses.
    """
    tracks = []
    for i, box in enumerate(_entries(content, "boxes", path)):
        what = f"{path}: box {i}"
        if not isinstance(box, dict):
            raise CaptureError(f"{what} is a {type(box).__name__}; expected an object.")
        size = _numbers(box.get("size"), (3,), f"{what}: size")
        times = _numbers(box.get("timestamps"), (None,), f"{what}: timestamps")
        poses = _numbers(box.get("world_from_box"), (len(times), 4, 4), f"{what}: world_from_box")
        if not (size > 0).all() or len(times) == 0 or not (np.diff(times) > 0).all():
            raise CaptureError(
                f"{what} has the size {size.tolist()} and {len(times)} times; expected positive "
                "lengths and at least one time, ascending."
            )
        for pose in poses:
            require_rigid(pose, f"{what}: world_from_box")
        tracks.append(
            BoxTrack(
                name=str(box.get("name", i))[:200],
                category=str(box.get("category", "vehicle"))[:200],
                size=torch.from_numpy(size.astype(np.float32)),
                poses=torch.from_numpy(poses),
                timestamps=torch.from_numpy(times),
                by_hand=_marks(box.get("by_hand"), len(times), f"{what}: by_hand"),
            )
        )
    return tuple(tracks)


def lanes_of(content: dict[str, Any], path: Path) -> tuple[Float32[Tensor, "_ 3"], ...]:
    """The annotated lane lines of a cameras.json.

    Raises:
        CaptureError: A line that is not a list of points.
    """
    return tuple(
        torch.from_numpy(_numbers(lane, (None, 3), f"{path}: lane {i}").astype(np.float32))
        for i, lane in enumerate(_entries(content, "lanes", path))
    )


def _marks(value: Any, count: int, what: str) -> Bool[Tensor, "T"] | None:
    return None if value is None else torch.from_numpy(_numbers(value, (count,), what) > 0)


def _entries(content: dict[str, Any], key: str, path: Path) -> Iterable[Any]:
    value = content.get(key, [])
    if not isinstance(value, list):
        raise CaptureError(f"{path}: {key} is a {type(value).__name__}; expected a list.")
    return value


def _numbers(value: Any, shape: tuple[int | None, ...], what: str) -> np.ndarray:
    """A finite float64 array of a shape, None being any length."""
    expected = " x ".join("N" if n is None else str(n) for n in shape)
    try:
        found = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0)
    fits = found.ndim == len(shape) and all(
        n is None or n == m for n, m in zip(shape, found.shape, strict=True)
    )
    if not fits or not np.isfinite(found).all():
        raise CaptureError(f"{what} is not {expected} finite numbers; write the file again.")
    return found
