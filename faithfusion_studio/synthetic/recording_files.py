"""Write a drive through a street with its truth from the side, in the layout of `data/street`.

recorded/cameras.json, images/, points3d.ply, depth/NNNNNN_depth.npz, category/NNNNNN_category.png
truth/cameras_{offset}.json, truth/{offset}/NNNNNN.jpg, NNNNNN_depth.npz, NNNNNN_category.png
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from faithfusion_studio.cameras import Trajectory, offset_laterally
from faithfusion_studio.io import write_camera_path, write_cameras_json
from faithfusion_studio.synthetic.rays import SyntheticError
from faithfusion_studio.synthetic.raytrace import TracedView, trace_view
from faithfusion_studio.synthetic.recording import (
    RecordingConfig,
    capture_of,
    encode_jpeg,
    frame_name,
)
from faithfusion_studio.synthetic.street import Street

PALETTE = (
    (135, 180, 235),
    (110, 110, 115),
    (190, 120, 80),
    (220, 40, 40),
    (60, 150, 50),
    (235, 200, 60),
)
"""sRGB colour of each `Category` in category images."""


@dataclass(frozen=True)
class RecordingProgress:
    """How far writing is."""

    done: int
    """Views traced so far."""
    total: int
    """Views to trace in all."""
    what: str
    """What was just written, for people."""


def offset_name(lateral_offset: float | int) -> str:
    """Folder name of an offset in m: signed, one decimal where that is exact (+3.0, -2.0, +0.53)."""
    value = float(lateral_offset) + 0.0
    return f"{value:+.1f}" if round(value, 1) == value else f"{value:+g}"


def write_recording(
    out_dir: Path | str,
    street: Street,
    trajectory: Trajectory,
    offsets: Sequence[float | int] = (0.0, 1.0, 3.0, 6.0),
    *,
    config: RecordingConfig | None = None,
    truth_every: int = 1,
) -> Iterator[RecordingProgress]:
    """Record a drive and write it with its truth, one view per step.

    Args:
        out_dir: Folder to fill; made if need be.
        street: The world.
        trajectory: The drive.
        offsets: Lateral offsets of the truth, m, positive = left; 0 repeats the recorded views.
        config: What is recorded.
        truth_every: Every how many frames the truth is written.

    Yields:
        Progress after each traced view; `recorded/cameras.json` is complete before the truth starts.

    Raises:
        SyntheticError: The folder cannot be written, or `truth_every` is below 1.
    """
    if truth_every < 1:
        raise SyntheticError(
            f"truth every {truth_every} frames was asked for; at least 1 is needed."
        )
    config = config or RecordingConfig()
    out_dir, chosen = Path(out_dir), range(0, len(trajectory), truth_every)
    moved = [offset for offset in offsets if offset != 0]
    total, done = len(trajectory) + len(moved) * len(chosen), 0
    try:
        recorded = out_dir / "recorded"
        for folder in ("depth", "category"):
            (recorded / folder).mkdir(parents=True, exist_ok=True)
        views: list[TracedView] = []
        for index, camera in enumerate(trajectory.cameras):
            view = trace_view(street, camera, config.samples)
            name = frame_name(trajectory, index)
            _write_depth(recorded / "depth" / f"{name}_depth.npz", view)
            _write_category(recorded / "category" / f"{name}_category.png", view)
            views.append(view)
            done += 1
            yield RecordingProgress(done, total, f"recorded frame {name}")
        write_cameras_json(capture_of(street, trajectory, views, config), recorded)
        for offset in offsets:
            path = offset_laterally(trajectory, float(offset)).select(chosen)
            label = offset_name(offset)
            folder = out_dir / "truth" / label
            folder.mkdir(parents=True, exist_ok=True)
            names = [frame_name(trajectory, index) for index in chosen]
            for index, camera, name in zip(chosen, path.cameras, names, strict=True):
                view = views[index] if offset == 0 else trace_view(street, camera, config.samples)
                image = encode_jpeg(view.rgb, config.jpeg_quality)
                (folder / f"{name}.jpg").write_bytes(image)
                _write_depth(folder / f"{name}_depth.npz", view)
                _write_category(folder / f"{name}_category.png", view)
                if offset != 0:
                    done += 1
                    yield RecordingProgress(done, total, f"truth {label} m, frame {name}")
            files = [f"{label}/{name}.jpg" for name in names]
            write_camera_path(path, out_dir / "truth" / f"cameras_{label}.json", files=files)
    except OSError as error:
        raise SyntheticError(
            f"{out_dir}: the recording cannot be written ({error.strerror}); "
            "choose a folder with room that can be written."
        ) from error


def _write_depth(path: Path, view: TracedView) -> None:
    np.savez_compressed(path, depth=view.depth.astype(np.float16))


def _write_category(path: Path, view: TracedView) -> None:
    """Palette PNG whose pixel values are `Category` numbers."""
    height, width = view.category.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), view.category], axis=1).tobytes()
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(value for color in PALETTE for value in color)),
        (b"IDAT", zlib.compress(rows, 6)),
        (b"IEND", b""),
    )
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)
