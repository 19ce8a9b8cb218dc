"""The five calls into gsplat 1.5.3 that colours, depth and gradients on CUDA are made of, and nothing else.

Kept apart so that everything around them runs, in the tests, on a machine without CUDA. Blending goes
through the two operators under `gsplat.rasterize_to_pixels`, because that function drops `last`, the list
entry at which each pixel stopped, which the information kernels start from.
"""

from typing import Any

from torch import Tensor

TILE = 16
"""Pixels per tile side."""
CHANNELS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513)
"""Channel counts gsplat's blending is compiled for."""


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    antialiased: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Radii [C, N, 2] (int32, 0 = culled), means2d, depths, conics, and what the blur leaves of opacity.

    Everything but the radii is undefined where a Gaussian was culled.
    """
    from gsplat import fully_fused_projection

    return fully_fused_projection(
        means,
        None,
        quats,
        scales,
        viewmats,
        Ks,
        width,
        height,
        eps2d=eps2d,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        packed=False,
        calc_compensations=antialiased,
        opacities=opacities,
    )


def shade(degree: int, directions: Tensor, coefficients: Tensor, visible: Tensor) -> Tensor:
    """Spherical harmonics [C, N, 3], without the offset of 0.5; undefined where not visible."""
    from gsplat import spherical_harmonics

    return spherical_harmonics(degree, directions, coefficients, masks=visible)


def list_tiles(
    means2d: Tensor, radii: Tensor, depths: Tensor, columns: int, rows: int
) -> tuple[Tensor, Tensor]:
    """Offsets [C, rows, columns] into, and the concatenation of, every tile's list, front to back.

    An entry is camera * N + Gaussian.
    """
    from gsplat import isect_offset_encode, isect_tiles

    _, keys, entries = isect_tiles(means2d, radii, depths, TILE, columns, rows)
    return isect_offset_encode(keys, len(means2d), columns, rows), entries


def blend(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    backgrounds: Tensor | None,
    width: int,
    height: int,
    offsets: Tensor,
    entries: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Colours [C, H, W, X], alphas [C, H, W, 1], and the last entry blended [C, H, W] (int32)."""
    return _extension().rasterize_to_pixels_3dgs_fwd(
        means2d,
        conics,
        colors,
        opacities,
        backgrounds,
        None,
        width,
        height,
        TILE,
        offsets,
        entries,
    )


def blend_backward(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    backgrounds: Tensor | None,
    width: int,
    height: int,
    offsets: Tensor,
    entries: Tensor,
    alphas: Tensor,
    last: Tensor,
    v_colors: Tensor,
    v_alphas: Tensor,
    absgrad: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """Gradients: absolute means2d (None unless asked for), means2d, conics, colours, opacities."""
    return _extension().rasterize_to_pixels_3dgs_bwd(
        means2d,
        conics,
        colors,
        opacities,
        backgrounds,
        None,
        width,
        height,
        TILE,
        offsets,
        entries,
        alphas,
        last,
        v_colors,
        v_alphas,
        absgrad,
    )


def _extension() -> Any:
    from gsplat.cuda import _backend

    return _backend._C  # type: ignore[attr-defined]  # the compiled module, or None
