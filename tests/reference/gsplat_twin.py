"""A torch stand-in for the gsplat operators and the Triton kernels, so that the CUDA backend runs without CUDA.

Lists are gsplat's: every Gaussian whose box meets a tile, by depth, ties by index. What gsplat leaves
undefined is NaN here. The kernels are the real ones, in Triton's interpreter.
"""

import numpy as np
import slow_raster as slow
import torch
from torch import Tensor

TILE, ALPHA_MIN = 16, 1 / 255


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
    """`gsplat_ops.project`."""
    outputs = []
    for viewmat, K in zip(viewmats, Ks, strict=True):
        ones = torch.ones_like(opacities)
        r = slow.project(
            means, quats, scales, ones, ones[:, None], viewmat, K, width, height,
            eps2d=eps2d, near=near_plane, antialiased=antialiased,
        )  # fmt: skip
        kept = r.opacity
        xx, xy, yy = r.cov2d.unbind(-1)
        det = xx * yy - xy * xy
        opacity = opacities * kept
        extent = (2 * torch.log((opacity / ALPHA_MIN).clamp(min=1))).sqrt().clamp(max=3.33)
        radii = torch.ceil(extent[:, None] * torch.stack([xx, yy], -1).sqrt())
        size = torch.tensor([width, height]).to(means)
        drawn = (det > 0) & (opacity >= ALPHA_MIN) & (r.depth <= far_plane)
        drawn &= r.visible & (radii > radius_clip).any(-1)
        drawn &= ((r.mean2d + radii > 0) & (r.mean2d - radii < size)).all(-1)
        undefined = torch.full_like(r.depth, float("nan"))
        conics = torch.stack([yy / det, -xy / det, xx / det], -1)
        outputs.append(
            (
                torch.where(drawn[:, None], radii, 0).detach().int(),
                torch.where(drawn[:, None], r.mean2d, undefined[:, None]),
                torch.where(drawn, r.depth, undefined),
                torch.where(drawn[:, None], conics, undefined[:, None]),
                torch.where(drawn, kept, 0),
            )
        )
    radii, means2d, depths, conics, kept = (torch.stack(t) for t in zip(*outputs, strict=True))
    return radii, means2d, depths, conics, kept if antialiased else None


def shade(degree: int, directions: Tensor, coefficients: Tensor, visible: Tensor) -> Tensor:
    """`gsplat_ops.shade`."""
    unit = torch.nn.functional.normalize(directions, dim=-1)
    colors = [slow.harmonics(degree, c, d) for c, d in zip(coefficients, unit, strict=True)]
    return torch.where(visible[..., None], torch.stack(colors), float("nan"))


def list_tiles(
    means2d: Tensor, radii: Tensor, depths: Tensor, columns: int, rows: int
) -> tuple[Tensor, Tensor]:
    """`gsplat_ops.list_tiles`."""
    cameras, n = depths.shape
    lists: list[list[int]] = [[] for _ in range(cameras * rows * columns)]
    limit = np.array([columns, rows])
    for c in range(cameras):
        for i in torch.argsort(depths[c], stable=True).tolist():
            if not bool((radii[c, i] > 0).all()):
                continue
            centre, reach = means2d[c, i].double().numpy(), radii[c, i].numpy()
            low = np.clip(np.floor((centre - reach) / TILE), 0, limit).astype(int)
            high = np.clip(np.ceil((centre + reach) / TILE), 0, limit).astype(int)
            for y in range(low[1], high[1]):
                for x in range(low[0], high[0]):
                    lists[(c * rows + y) * columns + x].append(c * n + i)
    starts = np.concatenate([[0], np.cumsum([len(part) for part in lists])[:-1]])
    entries = torch.tensor([slot for part in lists for slot in part], dtype=torch.int32)
    return torch.from_numpy(starts).int().reshape(cameras, rows, columns), entries


def _blend(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    backgrounds: Tensor | None,
    width: int,
    height: int,
    offsets: Tensor,
    entries: Tensor,
    shifts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`gsplat_ops.blend`, differentiable; shifts [pairs, 256, 2] move each entry at each pixel of its tile."""
    cameras, rows, columns = offsets.shape
    channels = colors.shape[-1]
    flat = [
        t.reshape(-1, *t.shape[2:])
        for t in (means2d, conics, colors, opacities)
    ]  # fmt: skip
    starts = [*offsets.reshape(-1).tolist(), len(entries)]
    lane = torch.arange(TILE * TILE)
    at = torch.stack([lane % TILE, lane // TILE], -1) + 0.5
    images, opaque, lasts = [], [], []
    for tile in range(cameras * rows * columns):
        row, column = tile // columns % rows, tile % columns
        pixels = at + TILE * torch.tensor([column, row])
        T = torch.ones(TILE * TILE)
        image = torch.zeros(TILE * TILE, channels)
        last = torch.zeros(TILE * TILE, dtype=torch.int32)
        done = (pixels[:, 0] > width) | (pixels[:, 1] > height)
        for entry in range(starts[tile], starts[tile + 1]):
            mean, conic, color, opacity = (t[int(entries[entry])] for t in flat)
            d = pixels - mean
            if shifts is not None:
                d = d - shifts[entry]
            s = 0.5 * (conic[0] * d[:, 0] ** 2 + conic[2] * d[:, 1] ** 2) + conic[1] * d.prod(-1)
            alpha = (opacity * torch.exp(-s)).clamp(max=0.999)
            hit = ~done & (s >= 0) & (alpha >= ALPHA_MIN)
            stops = hit & (T * (1 - alpha) <= 1e-4)
            done = done | stops
            hit = hit & ~stops
            alpha = torch.where(hit, alpha, 0)
            image = image + (T * alpha)[:, None] * color
            T = T * (1 - alpha)
            last = torch.where(hit, entry, last)
        if backgrounds is not None:
            image = image + T[:, None] * backgrounds[tile // (rows * columns)]
        images.append(image)
        opaque.append(1 - T[:, None])
        lasts.append(last[:, None])

    def assemble(parts: list[Tensor]) -> Tensor:
        grid = torch.stack(parts).reshape(cameras, rows, columns, TILE, TILE, -1)
        grid = grid.transpose(2, 3).reshape(cameras, rows * TILE, columns * TILE, -1)
        return grid[:, :height, :width]

    return assemble(images), assemble(opaque), assemble(lasts)[..., 0].int().contiguous()


def blend(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    """`gsplat_ops.blend`."""
    with torch.no_grad():
        return _blend(*arguments)


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
    """`gsplat_ops.blend_backward`."""
    with torch.enable_grad():
        shifts = torch.zeros(len(entries), TILE * TILE, 2, requires_grad=True)
        leaves = [t.detach().clone().requires_grad_() for t in (conics, colors, opacities)]
        image, opaque, _ = _blend(
            means2d, *leaves, backgrounds, width, height, offsets, entries, shifts
        )
        value = (image * v_colors).sum() + (opaque * v_alphas).sum()
        per_pixel, *grads = torch.autograd.grad(value, [shifts, *leaves])
    flat = torch.zeros(means2d.shape[0] * means2d.shape[1], 2)
    signed = flat.index_add(0, entries, per_pixel.sum(1)).reshape(means2d.shape)
    absolute = flat.index_add(0, entries, per_pixel.abs().sum(1)).reshape(means2d.shape)
    return absolute if absgrad else None, signed, *grads


def install(monkeypatch) -> None:
    """Let `render.rasterization` use the CUDA backend, over this module, for tensors on the CPU."""
    from faithfusion_studio.render import chain, cuda, gsplat_ops, rasterization

    for twin in (project, shade, list_tiles, blend, blend_backward):
        monkeypatch.setattr(gsplat_ops, twin.__name__, twin)
    for module in (rasterization, chain):
        monkeypatch.setattr(module, "backend", lambda device: cuda)


def install_elsewhere(monkeypatch):
    """The same for the device of tests/elsewhere.py; returns the backend to give it."""
    from elsewhere import Elsewhere, to_host
    from torch.utils._pytree import tree_map

    from faithfusion_studio.render import cuda, cuda_information, gsplat_ops

    def fetched(operator):
        """On the CPU and back, as an operator of a device does behind its interface."""

        def call(*arguments):
            results = operator(*tree_map(to_host, arguments))
            return tree_map(lambda v: Elsewhere(v) if isinstance(v, Tensor) else v, results)

        return call

    class Kernels:
        def __getattr__(self, name: str):
            kernel = getattr(module, name)

            class Launcher:
                def __getitem__(self, grid):
                    return lambda *a, **options: kernel[grid](*map(to_host, a), **options)

            return Launcher()

    for twin in (project, shade):
        monkeypatch.setattr(gsplat_ops, twin.__name__, twin)
    for twin in (list_tiles, blend, blend_backward):
        monkeypatch.setattr(gsplat_ops, twin.__name__, fetched(twin))
    module = cuda_information._kernels()
    monkeypatch.setattr(cuda_information, "_kernels", Kernels)
    return cuda
