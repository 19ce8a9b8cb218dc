"""Pictures into H.264 videos that appear complete or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from faithfusion_studio.io.pictures import flush_folder


def write_videos(
    targets: Sequence[Path], frames: Iterable[Sequence[np.ndarray]], *, fps: float, crf: int
) -> Iterator[int]:
    """Videos that are made together: all of them appear at the end, or none.

    Args:
        targets: The files.
        frames: One picture per file for each frame; all of a file are of one size.
        fps: Frames per second.
        crf: Constant rate factor of H.264; smaller is larger and better.

    Yields:
        Frames done.
    """
    writers: list[Encoder] = []
    try:
        for target in targets:
            writers.append(Encoder(target, fps, crf))
        for done, pictures in enumerate(frames, start=1):
            for writer, picture in zip(writers, pictures, strict=True):
                writer.add(picture)
            yield done
        for writer in writers:
            writer.finish()
        for writer in writers:
            writer.part.replace(writer.target)
        flush_folder(targets[0].absolute().parent)
    finally:
        for writer in writers:
            writer.discard()


class Encoder:
    """H.264 in MP4 through PyAV, into `.part` until it is complete.

    The encoder writes into a Python file, so that a full disk is an `OSError` here instead of a
    message inside the encoder.
    """

    def __init__(self, target: Path, fps: float, crf: int) -> None:
        import av

        self.target = target
        self.part = target.with_name(f".{target.name}.part")
        self._rate, self._crf = Fraction(fps).limit_denominator(1001), crf
        self._file = self.part.open("wb")
        self._container = av.open(self._file, "w", format="mp4")
        self._stream: Any = None

    def add(self, picture: np.ndarray) -> None:
        """Encode one picture; an odd size gets its last row or column twice."""
        import av

        height, width = picture.shape[:2]
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        if self._stream is None:
            self._stream = self._open_stream(picture.shape[1], picture.shape[0])
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        self._container.mux(self._stream.encode(frame))

    def _open_stream(self, width: int, height: int) -> Any:
        stream: Any = self._container.add_stream("libx264", rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": str(self._crf)}
        context = stream.codec_context
        context.thread_count = 2
        context.color_primaries = context.color_trc = context.colorspace = 1  # ITU-R BT.709
        context.color_range = 1  # limited, as players expect
        return stream

    def finish(self) -> None:
        """Write what the encoder still holds, and flush it to disk."""
        from av.error import FFmpegError

        try:
            self._container.mux(self._stream.encode())
            self._container.close()
        except FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise OSError(errno.EIO, "the encoder could not finish the file") from error
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Release everything; a `.part` that was not renamed disappears."""
        from av.error import FFmpegError

        with suppress(OSError, ValueError, FFmpegError):
            self._container.close()
        with suppress(OSError, ValueError):
            self._file.close()
        self.part.unlink(missing_ok=True)
