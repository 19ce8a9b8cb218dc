"""What all readers of recordings share: checked JSON, paths kept inside the folder, frames.

A reader turns its own files into a list of `Shot`; `build_capture` does the rest in one place, so
that missing images, escaping paths and broken poses end in the same sentences for every format.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.errors import StudioError, reason_of
from faithfusion_studio.lens import Lens
from faithfusion_studio.scene import Capture, PointCloud, PosedImage

MAX_JSON_BYTES = 256 * 1024 * 1024
MAX_IMAGE_SIDE = 65_535
MAX_IMAGE_PIXELS = 200_000_000
DEFAULT_FPS = 10.0


class CaptureError(StudioError):
    """A folder or camera file that is not a usable recording."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One frame as a capture file describes it, before its image has been looked at."""

    file: str
    """Path of the image, relative to the folder of images."""
    camera: Camera
    ego_to_world: torch.Tensor | None = None
    dynamic_mask: str | None = None
    """Path of a PNG that is non-zero where something moves."""
    mask_keeps: bool = False
    """Whether the mask marks what to keep instead (nerfstudio's are black where to ignore)."""
    lens: Lens | None = None
    """How the photo is bent; None for a pinhole photo."""


# ----------------------------------------------------------------------------------- JSON values


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CaptureError: The file is missing, too large, not JSON, or not an object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CaptureError(
                f"{path}: {size:,} bytes is too much for a camera file; expected at most "
                f"{MAX_JSON_BYTES:,}."
            )
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CaptureError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    except CaptureError:
        raise
    except (ValueError, RecursionError) as error:
        reason = reason_of(error, 120)
        raise CaptureError(f"{path}: not valid JSON ({reason}); write the file again.") from error
    if not isinstance(value, dict):
        raise CaptureError(
            f"{path}: holds a JSON {type(value).__name__} where an object with cameras and frames "
            "was expected; give a cameras.json, transforms.json or nerfview path."
        )
    return value


def finite_number(value: Any, what: str) -> float:
    """A finite float from a JSON value; `what` names it in the error."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise CaptureError(f"{what} is {_shown(value)}; expected a finite number.")


def positive_number(value: Any, what: str) -> float:
    """A finite float above zero from a JSON value."""
    number = finite_number(value, what)
    if number <= 0:
        raise CaptureError(f"{what} is {number:g}; expected a number above 0.")
    return number


def image_side(value: Any, what: str) -> int:
    """A width or height in whole pixels from a JSON value."""
    number = positive_number(value, what)
    if number != int(number) or number > MAX_IMAGE_SIDE:
        raise CaptureError(f"{what} is {number:g}; expected whole pixels up to {MAX_IMAGE_SIDE}.")
    return int(number)


def text(value: Any, what: str) -> str:
    """A string from a JSON value."""
    if not isinstance(value, str):
        raise CaptureError(f"{what} is {_shown(value)}; expected text.")
    return value


def matrix4(value: Any, what: str) -> np.ndarray:
    """A rigid 4x4 (or the upper 3x4) from nested or flat JSON lists, float64.

    Raises:
        CaptureError: Wrong shape, not finite, or not a rotation with a translation.
    """
    flat: list[Any] = []
    for row in value if isinstance(value, list) else []:
        flat.extend(row if isinstance(row, list) else [row])
    if len(flat) not in (12, 16):
        raise CaptureError(f"{what} has {len(flat)} numbers; expected a 4x4 pose.")
    pose = np.eye(4)
    numbers = [finite_number(v, what) for v in flat]
    pose[:3] = np.array(numbers[:12]).reshape(3, 4)
    require_rigid(pose, what)
    return pose


def require_rigid(pose: np.ndarray, what: str) -> None:
    """Raise a CaptureError unless a pose is finite, orthonormal within 1e-3 and right-handed."""
    rotation = pose[:3, :3]
    with np.errstate(all="ignore"):
        error = np.abs(rotation @ rotation.T - np.eye(3)).max()
        good = np.isfinite(pose).all() and error < 1e-3 and np.linalg.det(rotation) > 0
    if not good:
        raise CaptureError(
            f"{what} is not an invertible rigid pose (a rotation and a translation in metres); "
            "correct or remove this frame."
        )


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


# ------------------------------------------------------------------------------------ image files


def inside(root: Path, name: str) -> Path:
    """The file a recording names, which must lie inside its folder after following links.

    Raises:
        CaptureError: The path is empty, absolute, or leads out of the folder.
    """
    refusal = CaptureError(
        f"{root}: the recording names the file {_shown(name)}, which is outside its folder; "
        "move the file into the folder and use a relative path."
    )
    if not name or "\0" in name:
        raise refusal
    try:
        base = root.resolve()
        path = (base / name.replace("\\", "/")).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise refusal from error
    if base not in path.parents:
        raise refusal
    return path


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height from the header of a JPEG or PNG file; None where it is neither."""
    try:
        with path.open("rb") as file:
            head = file.read(32)
            if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
                return struct.unpack(">II", head[16:24])
            if not head.startswith(b"\xff\xd8"):
                return None
            file.seek(2)
            return _jpeg_size(file)
    except OSError:
        return None


def _jpeg_size(file: Any) -> tuple[int, int] | None:
    for _ in range(1000):
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF:
            return None
        if marker[1] == 0xFF:
            file.seek(-1, 1)
            continue
        length = file.read(2)
        if len(length) < 2:
            return None
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            frame = file.read(5)
            if len(frame) < 5:
                return None
            height, width = struct.unpack(">xHH", frame)
            return width, height
        file.seek(max(struct.unpack(">H", length)[0] - 2, 0), 1)
    return None


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which frame_2 comes before frame_10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdigit() and p.isascii() else (1, 0, p) for p in parts]


# --------------------------------------------------------------------------------------- assembly


def index_times(names: Sequence[str], fps: float) -> Iterator[float]:
    """Seconds of each frame: its index among the frames of the same camera, over fps."""
    seen: dict[str, int] = {}
    for name in names:
        index = seen.get(name, 0)
        seen[name] = index + 1
        yield index / fps


def build_capture(
    root: Path,
    images: Path,
    shots: Sequence[Shot],
    *,
    points: PointCloud | None,
    source: str,
    licence: str = "",
    notes: Sequence[str] = (),
) -> Capture:
    """A capture from described frames: images are found, measured and paired with their cameras.

    Args:
        root: Folder that no path may leave.
        images: Folder the shots' files are relative to.
        shots: In order of time.
        points: Points for initialisation, world, m.
        source: Where the recording came from, for people.
        licence: As the recording states it.
        notes: Sentences for the user about what was left out.

    Raises:
        CaptureError: No frame, fewer than two usable images, or a size that does not fit.
    """
    if not shots:
        raise CaptureError(f"{root}: the recording has 0 frames; at least 2 are needed.")
    kept: list[tuple[Shot, PosedImage]] = []
    missing: list[str] = []
    prefix = images.relative_to(root).as_posix()
    for shot in shots:
        path = inside(root, shot.file if prefix == "." else f"{prefix}/{shot.file}")
        size = image_size(path)
        if size is None:
            missing.append(shot.file)
            continue
        camera = _fitted(shot, size, path)
        name = Path(shot.file.replace("\\", "/")).with_suffix("").as_posix()
        name = name.removeprefix("images/")
        kept.append((shot, PosedImage(camera, path, name, _mask(root, shot), shot.lens)))
    if len(kept) < min(2, len(shots)):
        raise CaptureError(
            f"{root}: {len(missing)} of {len(shots)} images are missing or unreadable (the first "
            f"is {missing[0]}), and at least 2 are needed; restore the images."
        )
    notes = list(notes)
    if missing:
        notes.append(
            f"{len(missing)} of {len(shots)} frames were left out because their images are "
            f"missing or unreadable (the first is {missing[0]})."
        )
    if bent := len({shot.lens for shot, _ in kept if shot.lens is not None}):
        notes.append(
            f"{bent} lens{'es are' if bent > 1 else ' is'} straightened as photos are read."
        )
    egos = [shot.ego_to_world for shot, _ in kept if shot.ego_to_world is not None]
    if len(egos) not in (0, len(kept)):
        raise CaptureError(
            f"{root}: {len(egos)} of {len(kept)} frames have an ego pose; give it for all or for none."
        )
    ego_to_worlds = torch.stack(egos) if egos else None
    frames = tuple(frame for _, frame in kept)
    return Capture(
        frames=frames,
        trajectory=trajectory_from_cameras([f.camera for f in frames], ego_to_worlds),
        points=points,
        source=source,
        licence=licence,
        notes=tuple(notes),
    )


def _mask(root: Path, shot: Shot) -> bytes | None:
    """The encoded dynamic mask of a frame; None where there is none or its file is not an image."""
    if shot.dynamic_mask is None:
        return None
    path = inside(root, shot.dynamic_mask)
    if image_size(path) is None:
        return None
    if not shot.mask_keeps:
        return path.read_bytes()
    import cv2

    kept = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if kept is None:
        return None
    return cv2.imencode(".png", (kept == 0).astype(np.uint8) * 255)[1].tobytes()


def _fitted(shot: Shot, size: tuple[int, int], path: Path) -> Camera:
    """The camera at the image's real size; a uniformly resized image keeps its field of view."""
    camera = shot.camera
    width, height = size
    if (camera.width, camera.height) == size:
        return camera
    factor = width / camera.width
    if width * height > MAX_IMAGE_PIXELS or min(size) < 1:
        raise CaptureError(
            f"{path}: the image is {width}x{height}; expected 1 to {MAX_IMAGE_PIXELS:,} pixels."
        )
    if abs(camera.height * factor - height) > 1.5:
        raise CaptureError(
            f"{path}: the image is {width}x{height} but its camera says {camera.width}x"
            f"{camera.height}; give the intrinsics of this image size."
        )
    return camera.resized(width, height)


def make_camera(
    pose: np.ndarray,
    intrinsics: tuple[float, float, float, float],
    size: tuple[int, int],
    *,
    time: float,
    name: str,
) -> Camera:
    """A camera from a camera-to-world pose and fx, fy, cx, cy in pixels."""
    fx, fy, cx, cy = intrinsics
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    return Camera(torch.from_numpy(pose.copy()), K, size[0], size[1], time=time, name=name)


def point_cloud(xyz: np.ndarray, rgb: np.ndarray) -> PointCloud | None:
    """The finite points, float32 metres and bytes; None where there are none."""
    good = np.isfinite(xyz).all(1) & (np.abs(xyz) < 1e6).all(1)
    if not good.any():
        return None
    return PointCloud(
        torch.from_numpy(np.ascontiguousarray(xyz[good], dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(rgb[good], dtype=np.uint8)),
    )
