"""True views beside a recorded path, as `ff-studio synthesize` writes them."""

from __future__ import annotations

import re
from pathlib import Path

from faithfusion_studio.io.captures import CaptureError, read_capture
from faithfusion_studio.scene import Capture


def true_views(folder: Path, offset: float) -> Capture:
    """What is really seen at a lateral offset.

    Args:
        folder: The one that was written, its recorded/ or its truth/.
        offset: m, positive is left.

    Raises:
        CaptureError: There are none at this offset; says which there are.
    """
    return read_capture(camera_file(folder, offset))


def camera_file(folder: Path, offset: float) -> Path:
    """The camera file of the true views at an offset, in FOLDER/truth, FOLDER or beside FOLDER.

    Raises:
        CaptureError: There are none at this offset; says which there are.
    """
    found: dict[float, Path] = {}
    for place in (folder / "truth", folder, folder.parent / "truth"):
        for path in sorted(place.glob("cameras_*.json")):
            name = re.fullmatch(r"cameras_([+-]\d+(?:\.\d+)?)\.json", path.name)
            if name is not None:
                found.setdefault(float(name[1]), path)
    for value, path in found.items():
        if abs(value - offset) < 1e-6:
            return path
    there = ", ".join(f"{value:+g}" for value in sorted(found)) or "none"
    raise CaptureError(
        f"{folder}: has no true frames at {offset:+g} m (offsets there: {there}); expected "
        f"truth/cameras_{offset:+.1f}.json, as `ff-studio synthesize` writes it."
    )
