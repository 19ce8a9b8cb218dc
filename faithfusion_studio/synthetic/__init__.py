"""Procedural streets, exact views of them, and recordings with truth from the side."""

from typing import Any

_HOMES = {
    "Street": "street",
    "StreetConfig": "street",
    "build_street": "street",
    "split_of": "street",
    "SyntheticError": "rays",
    "TracedView": "raytrace",
    "trace_view": "raytrace",
    "Category": "geometry",
    "RecordingConfig": "recording",
    "box_tracks": "recording",
    "drive": "recording",
    "record": "recording",
    "truth": "recording",
    "RecordingProgress": "recording_files",
    "offset_name": "recording_files",
    "write_recording": "recording_files",
}
__all__ = [
    "Category",
    "RecordingConfig",
    "RecordingProgress",
    "Street",
    "StreetConfig",
    "SyntheticError",
    "TracedView",
    "box_tracks",
    "build_street",
    "drive",
    "offset_name",
    "record",
    "split_of",
    "trace_view",
    "truth",
    "write_recording",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
