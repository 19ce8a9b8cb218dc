"""FaithFusion Studio: see where a 3D Gaussian driving scene can be trusted, repair it, distil it back."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Scene", "__version__", "load_scene", "render_view", "save_scene"]

_HOMES = {
    "Scene": "faithfusion_studio.scene",
    "load_scene": "faithfusion_studio.io",
    "save_scene": "faithfusion_studio.io",
    "render_view": "faithfusion_studio.render.views",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
