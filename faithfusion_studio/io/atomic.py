"""Files appear under their final name complete, or not at all."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from faithfusion_studio.errors import StudioError, reason_of


@contextmanager
def write_atomically(path: Path, error_type: type[StudioError]) -> Iterator[Path]:
    """A temporary file in the same folder that replaces `path` when the block succeeds.

    The content is flushed to disk before the rename, and the rename before the return. On any
    failure the temporary file is removed and a file that was there before stays as it was.

    Args:
        path: The final name; its folder must exist.
        error_type: What to raise when the file cannot be written.

    Raises:
        StudioError: Of the given type, in one sentence, when the disk is full or not writable.
    """
    temporary: Path | None = None
    try:
        _clear_leftovers(path)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name[:100]}.{os.getpid()}.", suffix=".part", dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush(temporary)
        temporary.chmod(_mode(path))
        temporary.replace(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        reason = reason_of(error)
        raise error_type(
            f"{path}: cannot be written ({reason}); nothing was changed, so free some space or "
            "choose another folder and save again."
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _clear_leftovers(path: Path) -> None:
    """Remove temporary files of this target whose process was killed while it wrote."""
    start = f".{path.name[:100]}."
    for leftover in path.parent.glob(f"{glob.escape(start)}*.part"):
        owner = leftover.name.removeprefix(start).partition(".")[0]
        if owner.isdigit() and not _alive(int(owner)):
            with suppress(OSError):
                leftover.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mode(path: Path) -> int:
    """The permissions a plain new file would get, or those of the file being replaced."""
    if path.exists():
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
