"""From the words of the command line to values: ranges, sizes, cameras, places to write."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faithfusion_studio.cameras import Camera, Segment, offset_laterally
from faithfusion_studio.cli.arguments import AlongPath
from faithfusion_studio.errors import StudioError
from faithfusion_studio.scene import Capture, Scene


class CommandLineError(StudioError):
    """Arguments that do not fit together or to the data."""


def parse_range(text: str | None, count: int) -> Segment:
    """A half-open range of recorded frames from "A:B"; either side may be left out.

    Args:
        text: As given; None is everything.
        count: Frames there are.

    Raises:
        CommandLineError: Not of that form, empty, or outside the drive.
    """
    if text is None:
        return Segment(0, count)
    start, colon, stop = text.partition(":")
    try:
        found = Segment(int(start or 0), int(stop or count))
    except ValueError:
        found, colon = Segment(0, 0), ""
    if not colon:
        raise CommandLineError(f"{text}: is not a frame range; expected A:B, for example 10:30.")
    if not 0 <= found.start < found.stop <= count:
        raise CommandLineError(
            f"segment {text} is outside the drive, which has frames 0:{count}; choose a non-empty "
            "range inside it."
        )
    return found


def parse_pixel(text: str) -> tuple[int, int]:
    """Column and row from "X,Y".

    Raises:
        CommandLineError: Not of that form.
    """
    x, _, y = text.partition(",")
    if not (x.strip().isdigit() and y.strip().isdigit()):
        raise CommandLineError(f"{text}: is not a pixel; expected X,Y, for example 320,180.")
    return int(x), int(y)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Width and height from "WxH".

    Raises:
        CommandLineError: Not of that form, or not a picture size.
    """
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()) or not (
        2 <= int(width) <= 16384 and 2 <= int(height) <= 16384
    ):
        raise CommandLineError(f"{text}: is not a picture size; expected WxH, for example 640x360.")
    return int(width), int(height)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        CommandLineError: One of them is not a finite number.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        raise CommandLineError(f"{text}: expected numbers separated by commas, like 0,1,3,-2.")
    return numbers


def finite(name: str, value: float) -> float:
    """The value, if it is a number one can move by.

    Raises:
        CommandLineError: NaN, infinite, or farther than any street is wide.
    """
    if not abs(value) <= 1000:
        raise CommandLineError(f"{name}: found {value}; expected metres between -1000 and 1000.")
    return value


def with_capture(scene: Scene, path: Path | None) -> Scene:
    """The scene with the recording at a path; the scene itself without one."""
    if path is None:
        return scene
    from faithfusion_studio.io import attach_capture, load_capture

    return attach_capture(scene, load_capture(path))


def frame_stems(capture: Capture | None, count: int) -> list[str]:
    """A file stem per recorded frame: its recorded name where that is unique, else its index."""
    names = [Path(f.name).stem for f in capture.frames] if capture is not None else []
    if len(names) == count and all(names) and len(set(names)) == count:
        return names
    return [f"{index:06d}" for index in range(count)]


def cameras_of(scene: Scene, path: AlongPath) -> tuple[tuple[Camera, ...], list[str]]:
    """The cameras a command shall look through, and a file stem for each."""
    if path.cameras is not None:
        from faithfusion_studio.io import camera_path_stems, read_camera_path

        trajectory, stems = read_camera_path(path.cameras), camera_path_stems(path.cameras)
    elif scene.capture is None and scene.paths:
        # Splats of other tools that came with cameras but without pictures.
        trajectory = next(iter(scene.paths.values()))
        stems = frame_stems(None, len(trajectory))
    else:
        trajectory = scene.trajectory
        stems = frame_stems(scene.capture, len(trajectory))
    chosen = parse_range(path.frames, len(trajectory))
    moved = offset_laterally(trajectory.segment(chosen), finite("--offset", path.offset))
    return moved.cameras, stems[chosen.start : chosen.stop]


def output_folder(path: Path) -> Path:
    """The folder, made if need be.

    Raises:
        CommandLineError: Something else has that name, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandLineError(
            f"{path}: cannot be a folder for the output ({error.strerror}); choose another one."
        ) from error
    return path


@contextmanager
def reserved(path: Path, opened: Path | None, num_bytes: int = 16 << 20) -> Iterator[Path]:
    """Refuse a scene file that cannot be written before any work is done, and hold it meanwhile.

    Raises:
        CommandLineError: Not .ckpt or .ply, or another running process writes it.
        CommandError: The folder is missing, full or read-only, or this is the file opened.
    """
    from faithfusion_studio.io import is_writable, name_of_writable
    from faithfusion_studio.session.commands import check_target

    if not is_writable(path):
        raise CommandLineError(
            f"{path}: a scene cannot be written as {path.suffix or 'a file without suffix'!r}; "
            f"expected {name_of_writable()}."
        )
    check_target(path, opened, num_bytes)
    lock = path.with_name(f".{path.name}.lock")
    owner = _owner(lock)
    if owner is not None:
        raise CommandLineError(
            f"{path}: process {owner} is writing this file; wait for it or choose another name."
        )
    lock.write_text(str(os.getpid()))
    try:
        yield path
    finally:
        lock.unlink(missing_ok=True)


def _owner(lock: Path) -> int | None:
    """The living process, other than this one, that holds a lock file."""
    try:
        pid = int(lock.read_text())
        if pid == os.getpid():
            return None
        os.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError):
        return None
    return pid
