"""Which object a pixel shows."""

from __future__ import annotations

import torch

from faithfusion_studio.errors import StudioError
from faithfusion_studio.information.explain import pixel_weights
from faithfusion_studio.render.views import RasterizedView
from faithfusion_studio.scene import Scene

LEAST_WEIGHT = 0.1
"""A pixel that Gaussians cover less than this shows the sky."""


class PickError(StudioError):
    """A place outside of the picture."""


def object_at(scene: Scene, view: RasterizedView, x: int, y: int) -> str | None:
    """The object whose Gaussians together contribute most to a pixel.

    Args:
        scene: What was drawn.
        view: As it was rasterised.
        x: Column, from 0.
        y: Row, from 0.

    Returns:
        Its name; None where the background or the sky contributes most.

    Raises:
        PickError: The pixel is outside of the picture.
    """
    height, width = view.alpha.shape
    if not (0 <= x < width and 0 <= y < height):
        raise PickError(f"found pixel {x},{y}; the picture has {width}x{height} pixels.")
    with torch.no_grad():
        index, weights = pixel_weights(view, x, y)
    if float(weights.sum()) < LEAST_WEIGHT:
        return None
    totals = weights.new_zeros(len(scene.nodes) + 1)
    totals.index_add_(0, view.world.node_index[index] + 1, weights)
    most = int(totals.argmax())
    return None if most == 0 else scene.nodes[most - 1].name
