"""The studio in a browser: one window per client over one shared session.

Public names are resolved on first use, because viser takes seconds to import.
"""

from typing import Any

__all__ = ["Studio", "launch"]

_HOMES = {
    "Studio": "faithfusion_studio.studio.app",
    "launch": "faithfusion_studio.studio.app",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
