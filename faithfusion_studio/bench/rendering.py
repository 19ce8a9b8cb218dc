"""Speed of the CPU rasteriser: whole frames, training steps, threads, and against tiled torch."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.bench.report import BenchConfig, Report, interleave
from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import Gaussians, Provenance
from faithfusion_studio.render.cpu import thread_limit
from faithfusion_studio.render.rasterization import RasterizationMeta
from faithfusion_studio.render.views import rasterize_view
from faithfusion_studio.scene import ConstantSky, Scene
from faithfusion_studio.transforms import look_at, rgb_to_sh0

TILE = 16
SHARES = {"ground": 0.3, "facades": 0.35, "boxes": 0.1, "clutter": 0.15, "dome": 0.1}


def run_raster(config: BenchConfig) -> Report:
    """Frames, training steps and a blend in torch, on one generated street."""
    scene, camera = bench_scene(config), bench_camera(config)
    leaf = scene.background.means.clone().requires_grad_()
    learned = Scene(_with_means(scene.background, leaf), sky=scene.sky)
    with torch.no_grad():
        meta = rasterize_view(scene, camera).meta

    def frame(threads: int) -> None:
        with torch.no_grad(), thread_limit(threads):
            rasterize_view(scene, camera)

    def step(threads: int) -> None:
        with thread_limit(threads):
            rasterize_view(learned, camera).rgb.square().mean().backward()

    timings, ratio = interleave(
        {
            "frame, 1 thread": lambda: frame(1),
            "frame, 2 threads": lambda: frame(2),
            "forward and backward, 1 thread": lambda: step(1),
            "forward and backward, 2 threads": lambda: step(2),
            "blend alone in tiled torch, 1 thread": lambda: torch_blend(meta),
        },
        config.repeats,
    )
    ratios = {
        "tiled torch blend : whole frame, 1 thread": ratio(
            "blend alone in tiled torch, 1 thread", "frame, 1 thread"
        ),
        "1 : 2 threads, frame": ratio("frame, 1 thread", "frame, 2 threads"),
        "1 : 2 threads, forward and backward": ratio(
            "forward and backward, 1 thread", "forward and backward, 2 threads"
        ),
        "forward and backward : frame, 2 threads": ratio(
            "forward and backward, 2 threads", "frame, 2 threads"
        ),
    }
    visible = float((meta.radii > 0).all(-1).sum())
    return Report("raster", config, timings, ratios, {"visible Gaussians": visible})


def _with_means(gaussians: Gaussians, means: Tensor) -> Gaussians:
    return replace(gaussians, means=means)


def bench_camera(config: BenchConfig) -> Camera:
    """1.6 m above the road, looking along it, 70 degrees wide."""
    width, height = config.size
    focal = 0.5 * width / math.tan(math.radians(35))
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    pose = look_at(*torch.tensor([[0.0, 0, 1.6], [10, 0, 1.4], [0, 0, 1]]))
    return Camera(pose.double(), K.double(), width, height)


def bench_scene(config: BenchConfig) -> Scene:
    """Ground, two facades, boxes, clutter and a dome of flat Gaussians with bimodal opacity; seeded."""
    generator = torch.Generator().manual_seed(config.seed)

    def uniform(n: int, *ranges: tuple[float | int, float | int]) -> Tensor:
        low = torch.tensor([r[0] for r in ranges])
        high = torch.tensor([r[1] for r in ranges])
        return low + (high - low) * torch.rand(n, len(ranges), generator=generator)

    counts = [int(config.gaussians * share) for share in SHARES.values()]
    counts[0] += config.gaussians - sum(counts)
    ground, facades, boxes, clutter, dome = counts
    walls = uniform(facades, (-5, 100), (0, 1), (0, 12))
    walls[:, 1] = torch.where(walls[:, 1] < 0.5, -9.0, 9.0)
    corner = uniform(24, (5, 80), (-7, 7), (0, 0))[torch.arange(boxes) % 24]
    sphere = torch.nn.functional.normalize(torch.randn(dome, 3, generator=generator), dim=-1)
    sphere[:, 2] = sphere[:, 2].abs()
    means = torch.cat(
        [
            uniform(ground, (-5, 100), (-12, 12), (-0.02, 0.02)),
            walls,
            corner + uniform(boxes, (0, 4), (0, 1.8), (0, 1.5)),
            uniform(clutter, (2, 90), (-12, 12), (0, 6)),
            sphere * torch.tensor([150.0, 150, 80]),
        ]
    )
    n = config.gaussians
    density = (100_000 / n) ** 0.5  # the same street in finer pieces
    log_scales = math.log(0.12 * density) + 0.6 * torch.randn(n, 3, generator=generator)
    log_scales[:, 2] -= 1.8
    log_scales[n - dome :] += math.log(12.0)
    clear = torch.rand(n, generator=generator) < 0.35
    logits = torch.where(clear, -2.0, 3.0) + 0.8 * torch.randn(n, generator=generator)
    gaussians = Gaussians(
        means=means,
        log_scales=log_scales,
        quats=torch.randn(n, 4, generator=generator),
        logit_opacities=logits,
        sh0=rgb_to_sh0(torch.rand(n, 1, 3, generator=generator)),
        shN=0.05 * torch.randn(n, 3, 3, generator=generator),
        provenance=torch.full((n,), int(Provenance.RECORDED), dtype=torch.uint8),
    )
    return Scene(gaussians, sky=ConstantSky(torch.tensor([0.5, 0.6, 0.8])))


def torch_blend(meta: RasterizationMeta) -> Float[Tensor, "H W 3"]:
    """The blend of a rasterised view once more, tile by tile in plain torch; black background.

    Args:
        meta: Of a rasterisation with at least three colour channels.
    """
    screen = meta.screen
    order = screen.depths[0].argsort(stable=True)
    order = order[(screen.radii[0, order] > 0).all(-1)]
    centre, radius = screen.means2d[0, order], screen.radii[0, order]
    conic, opacity = screen.conics[0, order], screen.opacities[0, order]
    color = screen.colors[0, order, :3]
    low, high = centre - radius, centre + radius
    out = torch.zeros(meta.height, meta.width, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for y in range(0, meta.height, TILE):
            rows = (high[:, 1] > y) & (low[:, 1] < y + TILE)
            band = rows.nonzero()[:, 0]
            for x in range(0, meta.width, TILE):
                here = band[(high[band, 0] > x) & (low[band, 0] < x + TILE)]
                if len(here):
                    tile = out[y : y + TILE, x : x + TILE]
                    tile += _blend_tile(
                        (x, y), tile, centre[here], conic[here], opacity[here], color[here]
                    )
    finally:
        torch.set_num_threads(threads)
    return out


def _blend_tile(
    corner: tuple[int, int],
    tile: Tensor,
    centre: Tensor,
    conic: Tensor,
    opacity: Tensor,
    color: Tensor,
) -> Tensor:
    """One tile, with gsplat's three rules: alpha below 1/255, alpha at most 0.999, T down to 1e-4."""
    height, width = tile.shape[:2]
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
    return torch.einsum("nhw,nc->hwc", before * alpha, color)
