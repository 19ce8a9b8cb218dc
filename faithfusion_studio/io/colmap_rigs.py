"""Rigs and frames of COLMAP 3.12 and later: which cameras sit together, and when they looked together.

`rigs` holds where each sensor sits (sensor_from_rig; the reference sensor is the rig's own frame),
`frames` where the rig was (rig_from_world) and which images were taken there. An image's pose is
sensor_from_rig rig_from_world. Layout: https://colmap.github.io/format.html, checked against files of
pycolmap 4.2.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.io.capture_files import CaptureError
from faithfusion_studio.io.colmap_files import ColmapReader, line_error, pose_of, table_of
from faithfusion_studio.transforms import rotmat_to_quat

CAMERA = 0
"""COLMAP's number of the sensor type; others, such as an IMU, take no pictures."""
_TYPES = {"CAMERA": CAMERA, "IMU": 1}

Sensor = tuple[int, int]
"""Type and id."""


@dataclass(frozen=True, eq=False)
class OnRig:
    """An image that a camera of a rig took."""

    frame: int
    """Id of the rig's frame it belongs to."""
    sensor: tuple[int, int]
    """Ids of the rig and of the camera on it."""
    camtoworld: np.ndarray
    """[4, 4] float64, OpenCV axes, from the poses of rig and frame."""


def read_colmap_rigs(model: Path) -> dict[int, OnRig]:
    """Images by id, of rigs with several cameras; empty where the model has none.

    Raises:
        CaptureError: A damaged file, or a frame of a rig that is not there.
    """
    files = [model / f"{name}{end}" for end in (".bin", ".txt") for name in ("rigs", "frames")]
    pairs = [pair for pair in (files[:2], files[2:]) if all(file.is_file() for file in pair)]
    if not pairs:
        return {}
    rigs_file, frames_file = pairs[0]
    rigs, placed = dict(_rigs(rigs_file)), {}
    for frame, rig, rig_from_world, data in _frames(frames_file):
        if rig not in rigs:
            raise CaptureError(
                f"{frames_file}: frame {frame} is of rig {rig}, which {rigs_file.name} lacks; export "
                "the model again."
            )
        if len(rigs[rig]) < 2:
            continue  # a camera of its own is no rig
        for (kind, sensor), image in data:
            sensor_from_rig = rigs[rig].get(sensor)
            if kind == CAMERA and sensor_from_rig is not None:
                pose = np.linalg.inv(sensor_from_rig @ rig_from_world)
                placed[image] = OnRig(frame, (rig, sensor), pose)
    return placed


def _rigs(path: Path) -> Iterator[tuple[int, dict[int, np.ndarray | None]]]:
    """Id of each rig, and sensor_from_rig by camera; None where it is not known."""
    rows = _rigs_of_text(path) if path.suffix == ".txt" else _rigs_of_bytes(path)
    for rig, reference, others in rows:
        found: dict[int, np.ndarray | None] = {}
        if reference is not None and reference[0] == CAMERA:
            found[reference[1]] = np.eye(4)
        for (kind, sensor), pose in others:
            if kind == CAMERA:
                what = f"{path}: the pose of camera {sensor} on rig {rig}"
                found[sensor] = None if pose is None else pose_of(pose, what)
        yield rig, found


_Row = tuple[int, Sensor | None, list[tuple[Sensor, tuple[float, ...] | None]]]


def _rigs_of_bytes(path: Path) -> Iterator[_Row]:
    reader = ColmapReader(path)
    for _ in range(reader.count(8)):
        rig, sensors = reader.take("II")
        reference = reader.take("iI") if sensors else None
        others: list[tuple[Sensor, tuple[float, ...] | None]] = []
        for _ in range(sensors - 1):
            kind, sensor, known = reader.take("iIB")
            others.append(((kind, sensor), reader.take("7d") if known else None))
        yield rig, reference, others
    reader.finish()


def _rigs_of_text(path: Path) -> Iterator[_Row]:
    for words in table_of(path):
        try:
            rig, sensors, rest = int(words[0]), int(words[1]), iter(words[2:])
            reference = (_TYPES[next(rest)], int(next(rest))) if sensors else None
            others: list[tuple[Sensor, tuple[float, ...] | None]] = []
            for _ in range(min(sensors - 1, len(words))):
                sensor = (_TYPES[next(rest)], int(next(rest)))
                pose = tuple(float(next(rest)) for _ in range(7)) if int(next(rest)) else None
                others.append((sensor, pose))
        except (ValueError, IndexError, KeyError, StopIteration, RuntimeError) as error:
            raise line_error(
                path, words, "RIG SENSORS TYPE ID [TYPE ID HAS_POSE QW .. TZ]"
            ) from error
        if next(rest, None) is not None or len(others) != max(sensors - 1, 0):
            raise line_error(path, words, f"{sensors} sensors")
        yield rig, reference, others


def _frames(path: Path) -> Iterator[tuple[int, int, np.ndarray, list[tuple[Sensor, int]]]]:
    """Id of each frame, of its rig, rig_from_world, and the images: sensor and id."""
    rows = _frames_of_text(path) if path.suffix == ".txt" else _frames_of_bytes(path)
    for frame, rig, pose, data in rows:
        yield frame, rig, pose_of(pose, f"{path}: the pose of frame {frame}"), data


_FrameRow = tuple[int, int, tuple[float, ...], list[tuple[Sensor, int]]]


def _frames_of_bytes(path: Path) -> Iterator[_FrameRow]:
    reader = ColmapReader(path)
    for _ in range(reader.count(68)):
        frame, rig, *pose, number = reader.take("II7dI")
        data = []
        for _ in range(number):
            kind, sensor, image = reader.take("iIQ")
            data.append(((kind, sensor), image))
        yield frame, rig, tuple(pose), data
    reader.finish()


def _frames_of_text(path: Path) -> Iterator[_FrameRow]:
    for words in table_of(path):
        expected = "FRAME RIG QW QX QY QZ TX TY TZ N [TYPE SENSOR IMAGE]"
        try:
            pose = tuple(float(word) for word in words[2:9])
            number, rest = int(words[9]), words[10:]
            data = [
                ((_TYPES[kind], int(sensor)), int(image))
                for kind, sensor, image in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
            ]
            row = int(words[0]), int(words[1]), pose, data
        except (ValueError, IndexError, KeyError) as error:
            raise line_error(path, words, expected) from error
        if number != len(data):
            raise line_error(path, words, f"{number} images")
        yield row


# ------------------------------------------------------------------------------------------ write


def rigs_bytes(reference: int, mounts: Mapping[int, np.ndarray]) -> bytes:
    """`rigs.bin` of one rig, with id 1.

    Args:
        reference: Id of the camera whose frame is the rig's.
        mounts: [4, 4] camera -> reference camera, by camera id, the reference included.
    """
    data = struct.pack("<QIIiI", 1, 1, len(mounts), CAMERA, reference)
    for camera, mount in mounts.items():
        if camera != reference:
            data += struct.pack("<iIB7d", CAMERA, camera, 1, *_stored(np.linalg.inv(mount)))
    return data


def frames_bytes(frames: list[tuple[np.ndarray, list[tuple[int, int]]]]) -> bytes:
    """`frames.bin` of the rig with id 1.

    Args:
        frames: Rig -> world, [4, 4], and camera and image ids of what was taken there; ids count from 1.
    """
    data = struct.pack("<Q", len(frames))
    for number, (rig_to_world, images) in enumerate(frames, start=1):
        pose = _stored(np.linalg.inv(rig_to_world))
        data += struct.pack("<II7dI", number, 1, *pose, len(images))
        for camera, image in images:
            data += struct.pack("<iIQ", CAMERA, camera, image)
    return data


def _stored(pose: np.ndarray) -> tuple[float, ...]:
    quat = rotmat_to_quat(torch.from_numpy(pose[:3, :3]))
    return (*quat.tolist(), *pose[:3, 3].tolist())
