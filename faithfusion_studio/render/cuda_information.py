"""The information passes on CUDA: what is prepared and finished around the Triton loops of `cuda_kernels`."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from faithfusion_studio.render.gsplat_ops import TILE
from faithfusion_studio.render.rasterization import BackendError, RasterizationMeta

_RECORD, _MOMENTS, _COEFFICIENTS = 12, 34, 39  # numbers per Gaussian in the kernels' arrays
# Gaussians whose packed matrices are handled at a time, so that temporaries stay in the cache.
_CHUNK = 1 << 17
# Rows of a tile that one program owns: fewer skip more Gaussians, more add to memory less often.
_EVALUATED_ROWS, _ACCUMULATED_ROWS = 8, 16


@dataclass(eq=False)
class CudaTiles:
    """The meta's opaque handle: what gsplat projected, its tile lists, and where each pixel stopped."""

    radii: Tensor  # [C, N, 2] int32, 0 = culled
    means2d: Tensor  # [C, N, 2]
    conics: Tensor  # [C, N, 3]
    depths: Tensor  # [C, N]
    opacities: Tensor  # [C, N]
    colors: Tensor  # [C, N, D] as blended, without depth
    dark: Tensor | None  # [C, N, 3] bool, where a colour was clamped at 0; None for features
    offsets: Tensor  # [C, rows, columns] int32
    entries: Tensor  # [pairs] int32
    last: Tensor | None = None  # [C, H, W] int32, last entry blended, -1 for none; set by the blend

    @property
    def visible(self) -> Tensor:
        """[C, N] bool."""
        return (self.radii > 0).all(-1)


def plain(tensor: Tensor) -> Tensor:
    """What the kernels read: float32, contiguous."""
    return tensor.to(torch.float32).contiguous()


def tile_counts(width: int, height: int) -> tuple[int, int]:
    """Columns and rows of tiles."""
    return math.ceil(width / TILE), math.ceil(height / TILE)


def _kernels() -> ModuleType:
    try:
        from faithfusion_studio.render import cuda_kernels
    except ImportError as error:
        raise BackendError(
            f"Triton is missing ({error}); install the extra `cuda` of this package, or use --device cpu."
        ) from error
    return cuda_kernels


def _rgb_tiles(meta: RasterizationMeta) -> CudaTiles:
    if meta.tiles.colors.shape[-1] != 3:
        raise BackendError(
            "The rasterisation has no three colour channels; render with render_mode RGB and three colours first."
        )
    return meta.tiles


def _behind(meta: RasterizationMeta, images: Tensor | None) -> tuple[Tensor, bool]:
    """Background per camera [C, 3] or per pixel [C, H, W, 3], and whether it is per pixel."""
    cameras = len(meta.tiles.radii)
    if images is None:
        if meta.backgrounds is None:
            return torch.zeros(cameras, 3, device=meta.device), False
        return meta.backgrounds[:, :3].contiguous(), False
    shape = (cameras, meta.height, meta.width, 3)
    if tuple(images.shape) != shape:
        raise BackendError(
            f"Found backgrounds of shape {tuple(images.shape)}; expected {shape}, like the images."
        )
    return plain(images.detach()), True


@dataclass(frozen=True)
class _Inputs:
    """What both kernels read of a rasterisation."""

    records: Tensor  # [C * N, 12]
    entries: Tensor  # [pairs] int32
    starts: Tensor  # [C * tiles + 1] int32
    last: Tensor  # [C, H, W] int32
    columns: int
    rows: int

    def programs(self, rows_each: int) -> tuple[int]:
        """Programs of a kernel whose programs own so many rows of pixels."""
        return ((len(self.starts) - 1) * (TILE // rows_each),)


def _inputs(meta: RasterizationMeta, tiles: CudaTiles) -> _Inputs:
    assert tiles.last is not None
    parts = [tiles.means2d, tiles.conics, tiles.opacities[..., None], tiles.colors]
    records = torch.nn.functional.pad(torch.cat(parts, -1), (0, _RECORD - 9))
    end = torch.full((1,), len(tiles.entries), dtype=torch.int32, device=meta.device)
    return _Inputs(
        records.reshape(-1, _RECORD),
        tiles.entries,
        torch.cat([tiles.offsets.reshape(-1), end]),
        tiles.last,
        *tile_counts(meta.width, meta.height),
    )


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Packed covariances -> coefficients [45, 39], and moments -> packed information [34, 45].

    k(h) = [x, y, x^2 / 2, xy, y^2 / 2, 1] is the gradient of the exponent's logarithm; its last entry, times
    1 - opacity, and clamped colours are dealt with by `_scales`.
    """
    powers = [(1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (0, 0)]
    factors = [1.0, 1.0, 0.5, 1.0, 0.5, 1.0]

    def monomial(a: int, b: int) -> int:
        return (a + b) * (a + b + 1) // 2 + b

    evaluated, accumulated = torch.zeros(45, _COEFFICIENTS), torch.zeros(_MOMENTS, 45)
    constants = 33
    for at, (i, j) in enumerate(combinations_with_replacement(range(9), 2)):
        if j < 6:
            k = monomial(powers[i][0] + powers[j][0], powers[i][1] + powers[j][1])
            accumulated[k, at] = factors[i] * factors[j]
            evaluated[at, k] = factors[i] * factors[j] * (1 if i == j else 2)
        elif i < 6:
            k = 15 + 6 * (j - 6) + monomial(*powers[i])
            accumulated[k, at] = evaluated[at, k] = factors[i]
        else:
            accumulated[33, at] = float(i == j)
            evaluated[at, constants] = 1
            constants += 1
    return evaluated.to(device), accumulated.to(device)


def _scales(tiles: CudaTiles) -> Tensor:
    """[C * N, 9]: by what each entry of k, and each colour, is multiplied; undefined where culled."""
    rest = (1 - tiles.opacities).reshape(-1, 1)
    lit = torch.ones_like(tiles.colors) if tiles.dark is None else ~tiles.dark
    return torch.cat([torch.ones_like(rest).expand(-1, 5), rest, lit.reshape(-1, 3)], 1)


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, count, _CHUNK)]


def _outer(scales: Tensor) -> Tensor:
    """[n, 45]: products of pairs, packed like the matrices they scale."""
    i, j = torch.triu_indices(9, 9, device=scales.device)
    return scales[:, i] * scales[:, j]


def accumulate_information(
    meta: RasterizationMeta, pixel_weight: Tensor, backgrounds: Tensor | None = None
) -> Tensor:
    """`render.rasterization.accumulate_information` on CUDA; sums by atomics, so rounding varies."""
    tiles, kernels = _rgb_tiles(meta), _kernels()
    cameras, n = tiles.depths.shape
    shape = (cameras, meta.height, meta.width)
    if tuple(pixel_weight.shape) != shape:
        raise BackendError(
            f"Found pixel_weight of shape {tuple(pixel_weight.shape)}; expected {shape}, like the rendered images."
        )
    inputs = _inputs(meta, tiles)
    behind, per_pixel = _behind(meta, backgrounds)
    moments = torch.zeros(cameras * n, _MOMENTS, device=meta.device)
    kernels.accumulate_block[inputs.programs(_ACCUMULATED_ROWS)](
        inputs.records,
        inputs.entries,
        inputs.starts,
        inputs.last,
        behind,
        plain(pixel_weight.detach()),
        moments,
        meta.width,
        meta.height,
        inputs.columns,
        inputs.rows,
        PER_PIXEL=per_pixel,
        TILE=TILE,
        ROWS=_ACCUMULATED_ROWS,
        num_warps=1,
        enable_fp_fusion=True,
    )
    _, table = _tables(meta.device)
    visible, scales = tiles.visible.reshape(-1, 1), _scales(tiles)
    out = torch.empty(cameras * n, 45, device=meta.device)
    for part in _chunks(cameras * n):
        packed = moments[part] @ table * _outer(scales[part])
        out[part] = torch.where(visible[part], packed, 0)
    return out.reshape(cameras, n, 45)


def evaluate_information(
    meta: RasterizationMeta, covariances: Tensor, backgrounds: Tensor | None = None
) -> Tensor:
    """`render.rasterization.evaluate_information` on CUDA."""
    table, _ = _tables(meta.device)
    out = torch.empty(*_image_shape(meta), 6, device=meta.device)
    _evaluate(meta, covariances, backgrounds, _kernels().evaluate_block, table, out)
    return out


def evaluate_trace(
    meta: RasterizationMeta, covariances: Tensor, backgrounds: Tensor | None = None
) -> Tensor:
    """The trace [C, H, W] of `evaluate_information` in a shorter pass; what the diagonal form needs.

    The trace is linear in the same 34 moments that accumulating sums, with the transposed coefficients.
    """
    _, table = _tables(meta.device)
    i, j = torch.triu_indices(9, 9, device=meta.device)
    both = torch.where(
        i == j, 1.0, 2.0
    )  # a packed entry stands for two of the matrix off its diagonal
    out = torch.empty(_image_shape(meta), device=meta.device)
    _evaluate(
        meta, covariances, backgrounds, _kernels().evaluate_trace, table.T * both[:, None], out
    )
    return out


def _image_shape(meta: RasterizationMeta) -> tuple[int, int, int]:
    return len(_rgb_tiles(meta).radii), meta.height, meta.width


def _evaluate(
    meta: RasterizationMeta,
    covariances: Tensor,
    backgrounds: Tensor | None,
    kernel: Any,
    table: Tensor,
    out: Tensor,
) -> None:
    tiles = _rgb_tiles(meta)
    cameras, n = tiles.depths.shape
    if tuple(covariances.shape) != (cameras, n, 45):
        raise BackendError(
            f"Found covariances of shape {tuple(covariances.shape)}; expected {(cameras, n, 45)}, one block per Gaussian."
        )
    inputs = _inputs(meta, tiles)
    behind, per_pixel = _behind(meta, backgrounds)
    scales, packed = _scales(tiles), plain(covariances.detach()).reshape(-1, 45)
    coefficients = torch.empty(cameras * n, table.shape[1], device=meta.device)
    for part in _chunks(cameras * n):
        coefficients[part] = packed[part] * _outer(scales[part]) @ table
    kernel[inputs.programs(_EVALUATED_ROWS)](
        inputs.records,
        coefficients,
        inputs.entries,
        inputs.starts,
        inputs.last,
        behind,
        out,
        meta.width,
        meta.height,
        inputs.columns,
        inputs.rows,
        PER_PIXEL=per_pixel,
        TILE=TILE,
        ROWS=_EVALUATED_ROWS,
        num_warps=1,
        enable_fp_fusion=True,
    )
