"""Speed of the CPU rasteriser: whole frames, the blend pass, gradients, threads, and tiled torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from faithfusion_studio.bench.measuring import interleave
from faithfusion_studio.bench.report import BenchConfig, Report
from faithfusion_studio.bench.street import bench_camera, bench_scene
from faithfusion_studio.bench.tiled_torch import torch_blend
from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.render.cpu import _load_core, thread_limit
from faithfusion_studio.render.images import weighted_image_loss
from faithfusion_studio.render.rasterization import RasterizationMeta, rasterization
from faithfusion_studio.render.views import rasterize_view, render_view
from faithfusion_studio.scene import Scene

SLOW_RUNS = 2
"""Runs of the blend in torch, which takes seconds."""


def run_raster(config: BenchConfig) -> Report:
    """Frames, their blend pass, gradients, and the same blend in torch, on one generated street."""
    scene, camera = bench_scene(config.gaussians, config.seed), bench_camera(config.size)
    frame = frame_call(scene.background, camera)
    meta = frame(config.threads)
    _, pairs = torch_blend(meta)
    gradient = gradient_call(scene, camera)
    n = config.threads
    names = (f"{n} threads", "1 thread")

    def view() -> None:
        with thread_limit(n):
            render_view(scene, camera)

    t = interleave(
        {
            # The frame of all threads comes right before their blend pass, as in life: threads that slept start late.
            f"frame, {names[1]}": lambda: frame(1),
            f"frame, {names[0]}": lambda: frame(n),
            f"blend pass, {names[0]}": blend_call(meta, scene.background.sh, n),
            f"blend pass, {names[1]}": blend_call(meta, scene.background.sh, 1),
            f"finished view, {names[0]}": view,
            f"view, loss gradient and backward, {names[0]}": lambda: gradient(n),
            "blend in tiled torch, 1 thread": lambda: torch_blend(meta),
        },
        config.repeats,
        fewer={"blend in tiled torch, 1 thread": SLOW_RUNS},
    )
    figures = {
        "frame_ms": t[f"frame, {names[0]}"].median,
        "view_ms": t[f"finished view, {names[0]}"].median,
        "blend_ms": t[f"blend pass, {names[0]}"].median,
        "torch_blend_ratio": t.cpu_ratio(
            "blend in tiled torch, 1 thread", f"blend pass, {names[1]}"
        ),
        "threads_speedup": t.ratio(f"blend pass, {names[1]}", f"blend pass, {names[0]}"),
        "frame_threads_speedup": t.ratio(f"frame, {names[1]}", f"frame, {names[0]}"),
        "gradient_step_ms": t[f"view, loss gradient and backward, {names[0]}"].median,
    }
    return Report("raster", config, figures, t.rows, scene_counts(meta, pairs))


def scene_counts(meta: RasterizationMeta, blended: int | None = None) -> dict[str, float]:
    """Gaussians seen, entries of the tile lists, and pairs blended per pixel where they were counted."""
    tiles = meta.tiles.frames[0]
    counts = {"visible_gaussians": float(tiles.visible), "tile_entries": float(tiles.pairs)}
    if blended is not None:
        counts["blended_per_pixel"] = blended / (meta.width * meta.height)
    return counts


def frame_call(gaussians: Gaussians, camera: Camera) -> Callable[[int], RasterizationMeta]:
    """A call, by number of threads, that rasterises activated parameters without gradients."""
    parameters = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
    sh, degree = gaussians.sh, gaussians.sh_degree
    lens = (camera.viewmat.float()[None], camera.K.float()[None], camera.width, camera.height)

    def frame(threads: int) -> RasterizationMeta:
        with torch.no_grad(), thread_limit(threads):
            return rasterization(
                *parameters, sh, *lens, near_plane=0.05, sh_degree=degree, render_mode="RGB+ED"
            )[2]

    return frame


def blend_call(meta: RasterizationMeta, sh: Tensor, threads: int) -> Callable[[], None]:
    """A call that blends the tile lists of a frame once more, colour and depth, as rendering does.

    Args:
        meta: Of a frame rendered with RGB+ED.
        sh: The colours it was rendered with.
        threads: Of the core.
    """
    core, tiles = _load_core(), meta.tiles.frames[0]
    color = torch.empty(meta.height, meta.width, 4).numpy()
    alpha = torch.empty(meta.height, meta.width, 1).numpy()

    def blend() -> None:
        core.blend(tiles, sh.numpy(), None, color, alpha, threads)

    return blend


def gradient_call(scene: Scene, camera: Camera) -> Callable[[int], None]:
    """A call, by number of threads, of one training step without an optimiser: view, loss, backward."""
    names = ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN")
    leaves = {name: getattr(scene.background, name).clone().requires_grad_() for name in names}
    learned = Scene(replace(scene.background, **leaves), sky=scene.sky)
    target = render_view(bench_like(scene), camera).rgb

    def gradient(threads: int) -> None:
        with thread_limit(threads):
            view = rasterize_view(learned, camera)
            weighted_image_loss(view.rgb, target, None, 0.2).backward()
        for leaf in leaves.values():
            leaf.grad = None

    return gradient


def bench_like(scene: Scene) -> Scene:
    """The same street in other colours: something to learn."""
    generator = torch.Generator().manual_seed(1)
    sh0 = scene.background.sh0
    changed = sh0 + 0.3 * torch.randn(sh0.shape, generator=generator)
    return replace(scene, background=replace(scene.background, sh0=changed))
