"""Edits of a scene by hand as pure functions: objects, and the Gaussians a person selects."""

from typing import Any

__all__ = [
    "Box",
    "EditError",
    "Edited",
    "Rectangle",
    "Stroke",
    "by_value",
    "combined",
    "delete_rows",
    "duplicate_node",
    "in_box",
    "in_shape",
    "limited_to",
    "mark_node",
    "move_node",
    "object_at",
    "remove_node",
    "replace_node",
]

_HOMES = {
    "Box": "selection",
    "EditError": "rows",
    "Edited": "rows",
    "Rectangle": "selection",
    "Stroke": "selection",
    "by_value": "selection",
    "combined": "selection",
    "delete_rows": "rows",
    "duplicate_node": "objects",
    "in_box": "selection",
    "in_shape": "selection",
    "limited_to": "selection",
    "mark_node": "objects",
    "move_node": "objects",
    "object_at": "picking",
    "remove_node": "objects",
    "replace_node": "objects",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
