"""Gaussians to pixels: rasterisation, the two information kernels, and finished views.

The function `rasterization` lives in the module of the same name and is imported from there.
"""

from typing import Any

_HOMES = {
    "BackendError": "rasterization",
    "RasterizationMeta": "rasterization",
    "RenderMode": "rasterization",
    "accumulate_information": "rasterization",
    "evaluate_information": "rasterization",
    "deterministic": "cpu",
    "thread_limit": "cpu",
    "RenderedView": "views",
    "ViewOptions": "views",
    "colorize": "views",
    "render_view": "views",
    "render_views": "views",
}
__all__ = [
    "BackendError",
    "RasterizationMeta",
    "RenderMode",
    "RenderedView",
    "ViewOptions",
    "accumulate_information",
    "colorize",
    "deterministic",
    "evaluate_information",
    "render_view",
    "render_views",
    "thread_limit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
