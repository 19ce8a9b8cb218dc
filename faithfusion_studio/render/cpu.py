"""The rasteriser and the information kernels on the CPU, over the compiled core.

The core owns its threads: each call gets an explicit count from `thread_limit`, torch's own pool is never touched,
and the interpreter lock is free while it works.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from faithfusion_studio.render.priority import give_way
from faithfusion_studio.render.rasterization import (
    BackendError,
    RasterizationMeta,
    ScreenQuantities,
)

_local = threading.local()
_EMPTY = 1e-10  # alpha below which expected depth is not divided


def _available_threads() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cpus, int(asked))) if asked.isdigit() else cpus


@contextlib.contextmanager
def thread_limit(n: int) -> Iterator[None]:
    """Let the core use at most `n` threads for calls made by this Python thread inside the block.

    Without it a call may use every CPU of the process (or OMP_NUM_THREADS if that is fewer).
    """
    before = getattr(_local, "threads", None)
    _local.threads = max(1, n)
    try:
        yield
    finally:
        _local.threads = before


@contextlib.contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    """Make sums bit-equal for every thread count inside the block; costs memory and some speed.

    The environment variable FAITHFUSION_DETERMINISTIC=1 does the same for the whole process.
    """
    before = getattr(_local, "deterministic", None)
    _local.deterministic = enabled
    try:
        yield
    finally:
        _local.deterministic = before


def _work() -> tuple[int, bool]:
    give_way()
    threads = getattr(_local, "threads", None)
    fixed = getattr(_local, "deterministic", None)
    if fixed is None:
        fixed = os.environ.get("FAITHFUSION_DETERMINISTIC") == "1"
    return (_available_threads() if threads is None else threads), fixed


def _load_core() -> Any:
    try:
        from faithfusion_studio.render import _core
    except ImportError as error:
        raise BackendError(
            f"The compiled core is missing ({error}); install the package with a C++17 compiler, e.g. `pip install .`."
        ) from error
    return _core


def _empty(*shape: int) -> Tensor:
    """An uninitialised float32 tensor in memory that the core uses again and again."""
    return torch.from_numpy(_load_core().empty(shape))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32).contiguous()


@dataclass(frozen=True)
class _Request:
    """Everything of a rasterisation that is not differentiated."""

    Ks: Tensor
    width: int
    height: int
    near_plane: float
    far_plane: float
    radius_clip: float
    eps2d: float
    antialiased: bool
    sh_degree: int | None
    color: bool
    depth: bool
    expected_depth: bool
    absgrad: bool
    threads: int
    deterministic: bool


@dataclass(frozen=True)
class _Tiles:
    """The meta's opaque handle: one compiled frame per camera and what made it."""

    frames: list[Any]
    count: int
    features: Tensor | None
    has_rgb: bool


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gaussians: tuple[Tensor | None, ...],
        request: _Request,
        meta: RasterizationMeta,
        *differentiable: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        core = _load_core()
        viewmats, backgrounds = gaussians[6], meta.backgrounds
        cameras, height, width = len(viewmats), request.height, request.width
        features = (3 if request.sh_degree is not None else gaussians[4].shape[1]) * request.color
        colors = _empty(cameras, height, width, features + request.depth)
        alphas = _empty(cameras, height, width, 1)
        for c in range(cameras):
            frame = core.project(
                *map(_array, gaussians[:6]),
                viewmats[c].numpy(),
                request.Ks[c].numpy(),
                width,
                height,
                request.near_plane,
                request.far_plane,
                request.radius_clip,
                request.eps2d,
                request.antialiased,
                -1 if request.sh_degree is None else request.sh_degree,
                request.depth,
                request.color,
                request.threads,
            )
            background = None if backgrounds is None else backgrounds[c].numpy()
            core.blend(
                frame,
                gaussians[4].numpy(),
                background,
                colors[c].numpy(),
                alphas[c].numpy(),
                request.threads,
            )
            meta.tiles.frames.append(frame)
        if request.expected_depth:
            colors[..., -1:] /= alphas.clamp(min=_EMPTY)
        ctx.request, ctx.meta, ctx.gaussians = request, meta, gaussians
        ctx.save_for_backward(colors if request.expected_depth else None, alphas)
        return colors, alphas

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v_colors: Tensor, v_alphas: Tensor) -> tuple[Tensor | None, ...]:
        core = _load_core()
        give_way()
        request, meta, gaussians = ctx.request, ctx.meta, ctx.gaussians
        colors, alphas = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        v_colors, v_alphas = _plain(v_colors), _plain(v_alphas)
        if request.expected_depth:
            divisor = alphas.clamp(min=_EMPTY)
            v_depth = v_colors[..., -1:] / divisor
            v_alphas = v_alphas - torch.where(alphas > _EMPTY, v_depth * colors[..., -1:], 0.0)
            v_colors = torch.cat([v_colors[..., :-1], v_depth], dim=-1)
        grads = [_empty(*t.shape) for t in gaussians[:4]]
        grad_colors = _gradient_of_colors(gaussians, wanted) if request.color else (None, None)
        grad_viewmats = torch.zeros_like(gaussians[6]) if wanted[6] else None
        cameras, n = len(gaussians[6]), meta.tiles.count
        means2d = _empty(cameras, n, 2)
        absgrad = _empty(cameras, n, 2) if request.absgrad else None
        for c, frame in enumerate(meta.tiles.frames):
            core.backward(
                frame,
                *map(_array, gaussians[:6]),
                None if meta.backgrounds is None else meta.backgrounds[c].numpy(),
                v_colors[c].numpy(),
                v_alphas[c].numpy(),
                *map(_array, (*grads, *grad_colors)),
                None if grad_viewmats is None else grad_viewmats[c].numpy(),
                means2d[c].numpy(),
                None if absgrad is None else absgrad[c].numpy(),
                c == 0,
                request.threads,
                request.deterministic,
            )
        meta.grad_means2d, meta.absgrad = means2d, absgrad
        grad_background = None
        if wanted[7] and meta.backgrounds is not None:
            grad_background = (v_colors * (1 - alphas)).sum(dim=(1, 2))[
                :, : colors_of(gaussians[4], request)
            ]
        results = [*grads, *grad_colors, grad_viewmats, grad_background]
        return None, None, None, *(g if w else None for g, w in zip(results, wanted, strict=True))


def _array(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.numpy()


def _gradient_of_colors(
    gaussians: tuple[Tensor | None, ...], wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Room for the gradients of the colours and of the higher SH coefficients, where either is wanted."""
    if not (wanted[4] or wanted[5]):
        return None, None
    colors, bands = gaussians[4], gaussians[5]
    assert colors is not None
    return _empty(*colors.shape), None if bands is None else _empty(*bands.shape)


def colors_of(colors: Tensor, request: _Request) -> int:
    """Number of colour channels (without depth) that belong to these colours."""
    return 3 if request.sh_degree is not None else colors.shape[1]


def _blended_backgrounds(backgrounds: Tensor | None, color: bool, depth: bool) -> Tensor | None:
    """[C, X] with zero behind depth, detached, or None where everything is black."""
    if backgrounds is None or not color:
        return None
    plain = _plain(backgrounds)
    return torch.cat([plain, torch.zeros(len(plain), 1)], dim=-1) if depth else plain


def _screen(tiles: _Tiles) -> ScreenQuantities:
    core = _load_core()
    cameras, n = len(tiles.frames), tiles.count
    means2d, conics = _empty(cameras, n, 2), _empty(cameras, n, 3)
    radii = torch.empty(cameras, n, 2, dtype=torch.int32)
    depths, opacities = _empty(cameras, n), _empty(cameras, n)
    given = tiles.features
    colors = _empty(cameras, n, 3) if given is None else given.expand(cameras, *given.shape)
    for c, frame in enumerate(tiles.frames):
        core.screen(
            frame,
            means2d[c].numpy(),
            conics[c].numpy(),
            radii[c].numpy(),
            depths[c].numpy(),
            opacities[c].numpy(),
            colors[c].numpy() if given is None else None,
            _work()[0],
        )
    return ScreenQuantities(means2d, conics, radii, depths, opacities, colors)


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
    """`render.rasterization.rasterization` for checked CPU tensors.

    Args:
        parts: The colours as (features or all SH coefficients,) or (first, higher SH coefficients).
    """
    colors, bands = parts[0], parts[1] if len(parts) > 1 else None
    threads, fixed = _work()
    color, depth = "RGB" in render_mode, render_mode.endswith("D")
    request = _Request(
        Ks=_plain(Ks),
        width=width,
        height=height,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        antialiased=rasterize_mode == "antialiased",
        sh_degree=sh_degree if color else None,
        color=color,
        depth=depth,
        expected_depth=render_mode.endswith("ED"),
        absgrad=absgrad,
        threads=threads,
        deterministic=fixed,
    )
    if absgrad and color and colors_of(colors, request) + depth > 4:
        raise BackendError(
            f"absgrad was asked for {colors.shape[1]} feature channels; expected at most 4 channels with depth."
        )
    differentiable = (means, quats, scales, opacities, colors, bands, viewmats)
    gaussians = tuple(None if t is None else _plain(t) for t in differentiable)
    tiles = _Tiles(
        frames=[],
        count=len(means),
        features=gaussians[4] if request.sh_degree is None else None,
        has_rgb=color and colors_of(colors, request) == 3,
    )
    meta = RasterizationMeta(
        width=width,
        height=height,
        backgrounds=_blended_backgrounds(backgrounds, color, depth),
        tiles=tiles,
        device=means.device,
        load_screen=lambda: _screen(tiles),
    )
    rendered, alphas = _Rasterize.apply(gaussians, request, meta, *differentiable, backgrounds)
    return rendered, alphas, meta


def visible_gaussians(meta: RasterizationMeta) -> Tensor:
    """Indices of the Gaussians the first camera drew."""
    frame = meta.tiles.frames[0]
    out = torch.empty(frame.visible, dtype=torch.int32)
    _load_core().visible_gaussians(frame, out.numpy())
    return out


def last_positions(meta: RasterizationMeta) -> Tensor:
    """List position, from 1, of the last Gaussian the first camera blended into each pixel; 0 for none."""
    out = torch.zeros(meta.height, meta.width, dtype=torch.int32)
    _load_core().last_positions(meta.tiles.frames[0], out.numpy(), _work()[0])
    return out


def _rgb_tiles(meta: RasterizationMeta) -> _Tiles:
    if not meta.tiles.has_rgb:
        raise BackendError(
            "The rasterisation has no three colour channels; render with render_mode RGB and three colours first."
        )
    return meta.tiles


def _background(meta: RasterizationMeta, camera: int, images: Tensor | None) -> Any:
    if images is None:
        return None if meta.backgrounds is None else meta.backgrounds[camera].numpy()
    shape = (len(meta.tiles.frames), meta.height, meta.width, 3)
    if tuple(images.shape) != shape:
        raise BackendError(
            f"Found backgrounds of shape {tuple(images.shape)}; expected {shape}, like the images."
        )
    return _plain(images[camera]).numpy()


def accumulate_information(
    meta: RasterizationMeta, pixel_weight: Tensor, backgrounds: Tensor | None = None
) -> Tensor:
    """`render.rasterization.accumulate_information` on the CPU."""
    tiles, (threads, fixed) = _rgb_tiles(meta), _work()
    shape = (len(tiles.frames), meta.height, meta.width)
    if tuple(pixel_weight.shape) != shape:
        raise BackendError(
            f"Found pixel_weight of shape {tuple(pixel_weight.shape)}; expected {shape}, like the rendered images."
        )
    weight = _plain(pixel_weight)
    out = _empty(len(tiles.frames), tiles.count, 45)
    for c, frame in enumerate(tiles.frames):
        _load_core().accumulate(
            frame,
            _background(meta, c, backgrounds),
            weight[c].numpy(),
            out[c].numpy(),
            threads,
            fixed,
        )
    return out


def evaluate_information(
    meta: RasterizationMeta, covariances: Tensor, backgrounds: Tensor | None = None
) -> Tensor:
    """`render.rasterization.evaluate_information` on the CPU."""
    tiles, (threads, _) = _rgb_tiles(meta), _work()
    shape = (len(tiles.frames), tiles.count, 45)
    if tuple(covariances.shape) != shape:
        raise BackendError(
            f"Found covariances of shape {tuple(covariances.shape)}; expected {shape}, one block per Gaussian."
        )
    plain = _plain(covariances)
    out = _empty(len(tiles.frames), meta.height, meta.width, 6)
    for c, frame in enumerate(tiles.frames):
        _load_core().evaluate(
            frame, _background(meta, c, backgrounds), plain[c].numpy(), out[c].numpy(), threads
        )
    return out
