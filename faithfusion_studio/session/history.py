"""The line of scenes one can go back to, bounded in memory: the oldest spill to files."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from faithfusion_studio.scene import Scene, StoredFisher


@dataclass(frozen=True, eq=False)
class Entry:
    """One value of the scene, and how the optimiser stood when it was reached."""

    number: int
    """Unique within a history; tells a saved entry from a later one at the same place."""
    label: str
    scene: Scene
    """While spilled, only what is not in the file (the recording)."""
    optimizer_state: object = None
    """While spilled, this and the evidence, with places where their tensors were."""
    file: Path | None = None
    """Where it was spilled to."""


class History:
    """Labelled scenes and a cursor; the first entry is the scene as opened and never spills.

    Args:
        scene: The scene as opened.
        max_bytes: Memory for distinct tensors of all entries; beyond it the oldest go to files.
        save: Writes a native scene file.
        load: Reads it back, bit by bit the same.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        max_bytes: int,
        save: Callable[[Scene, Path], object],
        load: Callable[[Path], Scene],
    ) -> None:
        self._entries = [Entry(0, "Opened", scene)]
        self._cursor = 0
        self._numbers = 1
        self._max_bytes = max_bytes
        self._save, self._load = save, load
        self._folder: Path | None = None
        self._cleanup: Callable[[], object] | None = None

    @property
    def cursor(self) -> int:
        """Index of the entry that is shown."""
        return self._cursor

    @property
    def labels(self) -> tuple[str, ...]:
        """All entries, oldest first."""
        return tuple(entry.label for entry in self._entries)

    @property
    def current(self) -> Entry:
        """The entry at the cursor, which is always in memory."""
        return self._entries[self._cursor]

    @property
    def opened(self) -> Scene:
        """The scene as opened."""
        return self._entries[0].scene

    def push(self, label: str, scene: Scene, optimizer_state: object = None) -> None:
        """Add an entry behind the cursor and drop what could have been redone."""
        for entry in self._entries[self._cursor + 1 :]:
            _forget(entry)
        entry = Entry(self._numbers, label, scene, optimizer_state)
        self._entries = [*self._entries[: self._cursor + 1], entry]
        self._numbers += 1
        self._cursor += 1
        self._spill()

    def amend(self, scene: Scene) -> None:
        """Replace the scene of the current entry, e.g. by the same with its evidence."""
        number, self._numbers = self._numbers, self._numbers + 1
        self._entries[self._cursor] = replace(self.current, number=number, scene=scene)
        self._spill()

    def go_to(self, index: int) -> Entry:
        """Move the cursor; it stays where it was when the entry cannot be read back.

        Raises:
            IndexError: There is no such entry.
        """
        if not 0 <= index < len(self._entries):
            raise IndexError(index)
        entry = self._entries[index]
        if entry.file is not None:
            scene = self._load(entry.file)
            kept = _put_back(entry.optimizer_state, scene.extra_tensors)
            moments, fisher = kept["optimizer"], kept["fisher"]
            evidence = None if fisher is None else StoredFisher(**fisher)
            scene = replace(
                replace(scene, fisher=evidence).to(entry.scene.device),
                capture=entry.scene.capture,
                extra_tensors=entry.scene.extra_tensors,
            )
            _forget(entry)
            entry = replace(entry, scene=scene, optimizer_state=moments, file=None)
            self._entries[index] = entry
        self._cursor = index
        self._spill()
        return entry

    def num_bytes(self) -> int:
        """Memory of the distinct tensors of all entries that are in memory."""
        return _distinct_bytes(e for e in self._entries if e.file is None)

    def close(self) -> None:
        """Remove the spilled files."""
        if self._cleanup is not None:
            self._cleanup()

    def _spill(self) -> None:
        candidates = [i for i in range(1, len(self._entries)) if i != self._cursor]
        for index in candidates:
            if self.num_bytes() <= self._max_bytes:
                return
            entry = self._entries[index]
            if entry.file is None:
                self._entries[index] = self._spilled(entry)

    def _spilled(self, entry: Entry) -> Entry:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="ff-studio-history-"))
            self._cleanup = weakref.finalize(self, shutil.rmtree, self._folder, True)
        file = self._folder / f"{entry.number}.ckpt"
        # A scene file rounds the evidence, which a history may not.
        fisher, tensors = entry.scene.fisher, {}
        evidence = (
            None if fisher is None else {f.name: getattr(fisher, f.name) for f in _init(fisher)}
        )
        skeleton = _take_out({"optimizer": entry.optimizer_state, "fisher": evidence}, tensors)
        self._save(replace(entry.scene, capture=None, fisher=None, extra_tensors=tensors), file)
        rest = Scene(
            background=entry.scene.background.select(_no_rows(entry.scene)),
            capture=entry.scene.capture,
            extra_tensors=entry.scene.extra_tensors,
        )
        return replace(entry, scene=rest, optimizer_state=skeleton, file=file)


def _no_rows(scene: Scene) -> Tensor:
    """An index that selects no row of the background."""
    return scene.background.provenance.new_zeros(0).long()


def _forget(entry: Entry) -> None:
    if entry.file is not None:
        with contextlib.suppress(OSError):
            entry.file.unlink()


# ------------------------------------------------------------------------- tensors inside values


@dataclass(frozen=True)
class _Place:
    """Stands where a tensor was while it is in a file."""

    key: str


def _take_out(value: Any, into: dict[str, Tensor]) -> Any:
    """The value with every tensor moved to `into` and a `_Place` left behind."""
    if isinstance(value, Tensor):
        key = f"optimizer/{len(into)}"
        into[key] = value.detach().clone().contiguous()
        return _Place(key)
    return _mapped(value, lambda inner: _take_out(inner, into))


def _put_back(value: Any, tensors: Any) -> Any:
    if isinstance(value, _Place):
        return tensors[value.key]
    return _mapped(value, lambda inner: _put_back(inner, tensors))


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: function(inner) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(function(inner) for inner in value))
    if isinstance(value, (list, tuple)):
        return type(value)(function(inner) for inner in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: function(getattr(value, f.name)) for f in _init(value)})
    return value


def _init(value: Any) -> list[Any]:
    return [f for f in fields(value) if f.init]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from _tensors(getattr(value, f.name))


def _distinct_bytes(entries: Iterable[Entry]) -> int:
    storages = {}
    for entry in entries:
        scene = replace(entry.scene, capture=None)
        for tensor in (*_tensors(scene), *_tensors(entry.optimizer_state)):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
