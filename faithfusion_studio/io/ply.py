"""The PLY container: header, ascii and binary elements, checked against the file size first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from faithfusion_studio.errors import StudioError

MAX_HEADER_BYTES = 64 * 1024
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1",
    "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip


class SplatFileError(StudioError):
    """A splat or point file that cannot be read or written."""


@dataclass(frozen=True)
class PlyElement:
    """One element of a header: its name, row count and scalar properties in file order."""

    name: str
    count: int
    properties: tuple[tuple[str, str], ...]
    """Property name and NumPy type without byte order."""
    has_list: bool = False
    """True where a property is a list, so that rows have no fixed size."""


@dataclass(frozen=True)
class PlyHeader:
    """What a PLY file says it holds."""

    form: str
    """ascii, binary_little_endian or binary_big_endian."""
    elements: tuple[PlyElement, ...]
    comments: tuple[str, ...]
    size: int
    """Bytes up to and including the line end_header."""


def read_ply_header(path: Path) -> PlyHeader:
    """The header of a PLY file.

    Raises:
        SplatFileError: Missing file, no PLY, or a header that breaks the format's rules.
    """
    try:
        with path.open("rb") as file:
            head = file.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise SplatFileError(
            f"{path}: cannot be read ({error.strerror}); check the path."
        ) from error
    end = re.search(rb"(?:^|\n)end_header\r?\n", head)
    if not head.startswith(b"ply") or end is None:
        raise SplatFileError(
            f"{path}: has no complete PLY header (it starts with {head[:8]!r}); expected a file "
            "that starts with 'ply' and has a line 'end_header'."
        )
    try:
        lines = head[: end.end()].decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise SplatFileError(
            f"{path}: the PLY header is not plain text at byte {error.start}; the file is damaged."
        ) from error
    return _parse_header(path, [line.strip() for line in lines], end.end())


def _parse_header(path: Path, lines: list[str], size: int) -> PlyHeader:
    form = ""
    comments: list[str] = []
    elements: list[PlyElement] = []
    for line in lines[1:]:
        words = line.split()
        match words:
            case [] | ["end_header"] | ["obj_info", *_]:
                continue
            case ["comment", *_]:
                comments.append(line[len("comment") :].strip())
            case ["format", kind, "1.0"] if kind in (
                "ascii",
                "binary_little_endian",
                "binary_big_endian",
            ):
                form = kind
            case ["element", name, count] if re.fullmatch(r"[0-9]{1,18}", count):
                elements.append(PlyElement(name, int(count), ()))
            case ["property", "list", _, _, _] if elements:
                last = elements[-1]
                elements[-1] = PlyElement(last.name, last.count, last.properties, has_list=True)
            case ["property", kind, name] if elements and kind in _TYPES:
                last = elements[-1]
                if name in dict(last.properties):
                    raise SplatFileError(
                        f"{path}: the property {name} of {last.name} is declared twice; the "
                        "header is damaged."
                    )
                properties = (*last.properties, (name, _TYPES[kind]))
                elements[-1] = PlyElement(last.name, last.count, properties, last.has_list)
            case _:
                raise SplatFileError(
                    f"{path}: the PLY header line {line[:60]!r} is not understood; the file is "
                    "damaged or of a newer format."
                )
    if not form:
        raise SplatFileError(f"{path}: the PLY header names no known format; the file is damaged.")
    if len({e.name for e in elements}) != len(elements):
        raise SplatFileError(f"{path}: the PLY header repeats an element; the file is damaged.")
    return PlyHeader(form, tuple(elements), tuple(comments), size)


def read_ply_elements(path: Path, header: PlyHeader, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some elements of a PLY file as structured arrays with little-endian fields.

    Args:
        path: The file.
        header: From `read_ply_header` of the same file.
        names: Elements to return; those the file lacks are left out.

    Raises:
        SplatFileError: The counts do not fit the file size, or a value cannot be parsed.
    """
    last = max((i for i, e in enumerate(header.elements) if e.name in names), default=-1)
    wanted = header.elements[: last + 1]
    for element in wanted:
        if element.has_list:
            raise SplatFileError(
                f"{path}: the element {element.name} has list properties, as meshes do; expected "
                "a splat or point file."
            )
    try:
        with path.open("rb") as file:
            file.seek(header.size)
            data = np.fromfile(file, np.uint8)
    except OSError as error:
        raise SplatFileError(
            f"{path}: cannot be read ({error.strerror}); check the path."
        ) from error
    read = _read_ascii if header.form == "ascii" else _read_binary
    return {name: rows for name, rows in read(path, header, wanted, data) if name in names}


def _size_error(path: Path, header: PlyHeader, found: int, expected: str) -> SplatFileError:
    counts = ", ".join(f"{e.count:,} {e.name}" for e in header.elements)
    return SplatFileError(
        f"{path}: the header promises {counts}, which needs {expected} of data, but {found:,} "
        "bytes follow; the file is truncated or damaged."
    )


def _read_binary(
    path: Path, header: PlyHeader, wanted: Sequence[PlyElement], data: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    order = ">" if header.form == "binary_big_endian" else "<"
    types = [np.dtype([(n, order + t) for n, t in e.properties]) for e in wanted]
    needed = sum(t.itemsize * e.count for t, e in zip(types, wanted, strict=True))
    rest = header.elements[len(wanted) :]
    exact = not any(e.count for e in rest)
    if needed > len(data) or (exact and needed != len(data)):
        raise _size_error(path, header, len(data), f"{needed:,} bytes")
    start = 0
    for element, dtype in zip(wanted, types, strict=True):
        stop = start + dtype.itemsize * element.count
        rows = data[start:stop].view(dtype) if dtype.itemsize else None
        start = stop
        if rows is not None:
            yield element.name, rows if order == "<" else rows.astype(dtype.newbyteorder("<"))


def _read_ascii(
    path: Path, header: PlyHeader, wanted: Sequence[PlyElement], data: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    needed = sum(len(e.properties) * e.count for e in wanted)
    if needed * 2 > len(data) + 1:
        raise _size_error(path, header, len(data), f"{needed:,} numbers")
    tokens = data.tobytes().split()
    exact = not any(e.count for e in header.elements[len(wanted) :])
    if len(tokens) < needed or (exact and len(tokens) != needed):
        raise SplatFileError(
            f"{path}: the header promises {needed:,} numbers but {len(tokens):,} follow; the file "
            "is truncated or damaged."
        )
    start = 0
    for element in wanted:
        width = len(element.properties)
        part = tokens[start : start + width * element.count]
        start += width * element.count
        try:
            table = np.array(part, dtype=np.float64).reshape(element.count, width)
        except ValueError as error:
            raise SplatFileError(
                f"{path}: a value of {element.name} is not a number; the file is damaged."
            ) from error
        rows = np.zeros(element.count, [(n, "<" + t) for n, t in element.properties])
        for column, (name, kind) in enumerate(element.properties):
            rows[name] = _as_type(table[:, column], kind)
        yield element.name, rows


def _as_type(values: np.ndarray, kind: str) -> np.ndarray:
    if kind.startswith("f"):
        with np.errstate(over="ignore"):
            return values.astype(kind)
    limits = np.iinfo(kind)
    clipped = np.clip(np.nan_to_num(values), limits.min, limits.max)
    return clipped.astype(np.int64).astype(kind)
