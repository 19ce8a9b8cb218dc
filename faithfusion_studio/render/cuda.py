"""The rasteriser on CUDA: gsplat for colours, depth and gradients; the information passes are next door.

gsplat's operators are in `gsplat_ops`, the Triton loops in `cuda_kernels`; both load when they are first used.
Everything runs on the current stream, without waiting for the device except where gsplat counts its pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from faithfusion_studio.render import gsplat_ops
from faithfusion_studio.render.cuda_information import (
    CudaTiles,
    accumulate_information,
    evaluate_information,
    evaluate_trace,
    plain,
    tile_counts,
)
from faithfusion_studio.render.rasterization import (
    BackendError,
    RasterizationMeta,
    ScreenQuantities,
)

__all__ = [
    "accumulate_information",
    "evaluate_information",
    "evaluate_trace",
    "last_positions",
    "rasterization",
    "visible_gaussians",
]
_EMPTY = 1e-10  # alpha below which expected depth is not divided


class _Blend(torch.autograd.Function):
    """gsplat's blending, which also leaves its lists and screen gradients in the meta."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        colors: Tensor,
        opacities: Tensor,
        backgrounds: Tensor | None,
        meta: RasterizationMeta,
        absgrad: bool,
    ) -> tuple[Tensor, Tensor]:
        tiles: CudaTiles = meta.tiles
        rendered, alphas, last = gsplat_ops.blend(
            means2d,
            conics,
            colors,
            opacities,
            backgrounds,
            meta.width,
            meta.height,
            tiles.offsets,
            tiles.entries,
        )
        tiles.last = torch.where(alphas[..., 0] > 0, last, -1)  # gsplat's 0 may also mean none
        ctx.save_for_backward(means2d, conics, colors, opacities, backgrounds, alphas, last)
        ctx.meta, ctx.absgrad = meta, absgrad
        return rendered, alphas

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_rendered: Tensor, v_alphas: Tensor) -> tuple[Tensor | None, ...]:
        means2d, conics, colors, opacities, backgrounds, alphas, last = ctx.saved_tensors
        meta: RasterizationMeta = ctx.meta
        absolute, v_means2d, v_conics, v_colors, v_opacities = gsplat_ops.blend_backward(
            means2d,
            conics,
            colors,
            opacities,
            backgrounds,
            meta.width,
            meta.height,
            meta.tiles.offsets,
            meta.tiles.entries,
            alphas,
            last,
            v_rendered.contiguous(),
            v_alphas.contiguous(),
            ctx.absgrad,
        )
        meta.grad_means2d, meta.absgrad = v_means2d, absolute if ctx.absgrad else None
        v_backgrounds = None
        if ctx.needs_input_grad[4]:
            v_backgrounds = (v_rendered * (1 - alphas)).sum(dim=(1, 2))
        return v_means2d, v_conics, v_colors, v_opacities, v_backgrounds, None, None


def _shaded(
    means: Tensor, colors: Tensor, viewmats: Tensor, visible: Tensor, sh_degree: int | None
) -> tuple[Tensor, Tensor | None]:
    """Colours [C, N, D], and where a channel was clamped at 0."""
    cameras, n = visible.shape
    if sh_degree is None:
        return colors.expand(cameras, *colors.shape), None
    rotations = torch.linalg.inv_ex(viewmats[:, :3, :3]).inverse  # `inv` would wait for the device
    centres = -(rotations @ viewmats[:, :3, 3:])[..., 0]
    directions = means - centres[:, None]
    used = colors[:, : (sh_degree + 1) ** 2].contiguous()
    coefficients = used.expand(cameras, *used.shape).contiguous()
    raw = gsplat_ops.shade(sh_degree, directions, coefficients, visible) + 0.5
    return raw.clamp(min=0), raw.detach() < 0


def _padded(colors: Tensor, backgrounds: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both with as many channels, the added ones 0, as gsplat has a kernel for."""
    channels = colors.shape[-1]
    wanted = next((c for c in gsplat_ops.CHANNELS if c >= channels), None)
    if wanted is None:
        raise BackendError(
            f"Found {channels} channels; expected at most {gsplat_ops.CHANNELS[-1]} on CUDA."
        )
    extra = (0, wanted - channels)
    if backgrounds is not None:
        backgrounds = torch.nn.functional.pad(backgrounds, extra).contiguous()
    return torch.nn.functional.pad(colors, extra).contiguous(), backgrounds


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    parts: tuple[Tensor, ...],
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    sh_degree: int | None,
    backgrounds: Tensor | None,
    render_mode: str,
    rasterize_mode: str,
    absgrad: bool,
) -> tuple[Tensor, Tensor, RasterizationMeta]:
    """`render.rasterization.rasterization` for checked CUDA tensors.

    Args:
        parts: The colours as (features or all SH coefficients,) or (first, higher SH coefficients).
    """
    colors = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    color, depth = "RGB" in render_mode, render_mode.endswith("D")
    means, quats, scales, opacities, colors, viewmats = (
        plain(t) for t in (means, quats, scales, opacities, colors, viewmats)
    )
    radii, means2d, depths, conics, kept = gsplat_ops.project(
        means,
        quats,
        scales,
        opacities.detach(),
        viewmats,
        plain(Ks.detach()),
        width,
        height,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        antialiased=rasterize_mode == "antialiased",
    )
    blended = opacities.expand(len(viewmats), -1)
    blended = (blended if kept is None else blended * kept).contiguous()
    dark = None
    if color:
        visible = (radii > 0).all(-1)
        shaded, dark = _shaded(means, colors, viewmats, visible, sh_degree)
    else:
        shaded = depths.new_empty(*depths.shape, 0)
    with torch.no_grad():
        # One Gaussian that is not finite would spoil every pixel it touches.
        finite = means2d.sum(-1) + conics.sum(-1) + depths + blended + shaded.sum(-1)
        radii = torch.where(torch.isfinite(finite)[..., None], radii, 0)
        offsets, entries = gsplat_ops.list_tiles(
            means2d, radii, depths, *tile_counts(width, height)
        )
    tiles = CudaTiles(
        radii,
        means2d.detach(),
        conics.detach(),
        depths.detach(),
        blended.detach(),
        shaded.detach(),
        dark,
        offsets,
        entries,
    )
    behind = plain(backgrounds) if backgrounds is not None and color else None
    if behind is not None and depth:
        behind = torch.nn.functional.pad(behind, (0, 1))
    meta = RasterizationMeta(
        width=width,
        height=height,
        backgrounds=None if behind is None else behind.detach(),
        tiles=tiles,
        device=means.device,
        load_screen=lambda: _screen(tiles),
    )
    channels = torch.cat([shaded, depths[..., None]], -1) if depth else shaded
    padded, behind = _padded(channels, behind)
    rendered, alphas = _Blend.apply(means2d, conics, padded, blended, behind, meta, absgrad)
    rendered = rendered[..., : channels.shape[-1]]
    if render_mode.endswith("ED"):
        expected = rendered[..., -1:] / alphas.clamp(min=_EMPTY)
        rendered = torch.cat([rendered[..., :-1], expected], -1)
    return rendered, alphas, meta


def _screen(tiles: CudaTiles) -> ScreenQuantities:
    """gsplat leaves what it culled undefined; here it is zero."""
    visible = tiles.visible

    def drawn(values: Tensor) -> Tensor:
        mask = visible if values.ndim == 2 else visible[..., None]
        return torch.where(mask, values, 0)

    return ScreenQuantities(
        means2d=drawn(tiles.means2d),
        conics=drawn(tiles.conics),
        radii=tiles.radii,
        depths=drawn(tiles.depths),
        opacities=drawn(tiles.opacities),
        colors=drawn(tiles.colors),
    )


def visible_gaussians(meta: RasterizationMeta) -> Tensor:
    """Which Gaussians the first camera drew."""
    return meta.tiles.visible[0].nonzero()[:, 0]


def last_positions(meta: RasterizationMeta) -> Tensor:
    """List position, from 1, of the last Gaussian the first camera blended into each pixel; 0 for none.

    gsplat's lists hold every Gaussian whose box meets the tile, so positions are larger than the CPU's.
    """
    tiles: CudaTiles = meta.tiles
    assert tiles.last is not None
    y = torch.arange(meta.height, device=meta.device) // gsplat_ops.TILE
    x = torch.arange(meta.width, device=meta.device) // gsplat_ops.TILE
    return (tiles.last[0] - tiles.offsets[0][y[:, None], x] + 1).clamp(min=0).int()
