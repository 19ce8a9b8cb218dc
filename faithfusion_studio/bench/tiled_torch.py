"""The blend once more in plain torch, tile by tile: the yardstick of the compiled pass, and a counter."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.bench.measuring import torch_threads
from faithfusion_studio.render.rasterization import RasterizationMeta

TILE = 16


def torch_blend(meta: RasterizationMeta) -> tuple[Float[Tensor, "H W 3"], int]:
    """Blend a rasterised view on one thread of torch; black background.

    Args:
        meta: Of a rasterisation with at least three colour channels.

    Returns:
        The picture, and how many (Gaussian, pixel) pairs were blended into it.
    """
    screen = meta.screen
    order = screen.depths[0].argsort(stable=True)
    order = order[(screen.radii[0, order] > 0).all(-1)]
    centre, radius = screen.means2d[0, order], screen.radii[0, order]
    conic, opacity = screen.conics[0, order], screen.opacities[0, order]
    color = screen.colors[0, order, :3]
    low, high = centre - radius, centre + radius
    out, pairs = torch.zeros(meta.height, meta.width, 3), 0
    with torch_threads(1):
        for y in range(0, meta.height, TILE):
            rows = (high[:, 1] > y) & (low[:, 1] < y + TILE)
            band = rows.nonzero()[:, 0]
            for x in range(0, meta.width, TILE):
                here = band[(high[band, 0] > x) & (low[band, 0] < x + TILE)]
                if len(here):
                    tile = out[y : y + TILE, x : x + TILE]
                    alpha, weight = _weights(
                        (x, y), tile.shape[:2], centre[here], conic[here], opacity[here]
                    )
                    tile += torch.einsum("nhw,nc->hwc", weight, color[here])
                    pairs += int(alpha.count_nonzero())
    return out, pairs


def _weights(
    corner: tuple[int, int],
    shape: torch.Size,
    centre: Tensor,
    conic: Tensor,
    opacity: Tensor,
) -> tuple[Tensor, Tensor]:
    """Opacities and weights of one tile [n, h, w] by gsplat's three rules: alpha at least 1/255 and at
    most 0.999, a pixel stops before its transmittance would fall to 1e-4."""
    height, width = shape
    y = torch.arange(height)[:, None] + corner[1] + 0.5
    x = torch.arange(width)[None] + corner[0] + 0.5
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    a, b, c = (conic[:, i, None, None] for i in range(3))
    power = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacity[:, None, None] * torch.exp(-power)).clamp(max=0.999)
    alpha = torch.where((power >= 0) & (alpha >= 1 / 255), alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=0)
    stopped = torch.cummax((after <= 1e-4).to(torch.int8), dim=0).values.bool()
    alpha = torch.where(stopped, torch.zeros_like(alpha), alpha)
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    return alpha, before * alpha
