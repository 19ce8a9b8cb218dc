"""Speed and exactness of EIG: whole maps, their pixel passes against the blend, Fisher of one view."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from faithfusion_studio.bench.measuring import interleave
from faithfusion_studio.bench.rendering import blend_call, frame_call, scene_counts
from faithfusion_studio.bench.report import BenchConfig, Report
from faithfusion_studio.bench.street import bench_camera, bench_scene
from faithfusion_studio.bench.tiny_scenes import largest_relative_error, tiny_world
from faithfusion_studio.cameras import Camera, offset_laterally, trajectory_from_cameras
from faithfusion_studio.information import FisherAccumulator, eig_map
from faithfusion_studio.information.prior import FisherPrior, chain_view, require_fisher
from faithfusion_studio.render.chain import factor_blocks, parameter_variances
from faithfusion_studio.render.cpu import thread_limit
from faithfusion_studio.render.one_view import evaluate_rows, posterior_rows
from faithfusion_studio.render.rasterization import RasterizationMeta
from faithfusion_studio.render.views import rasterize_view
from faithfusion_studio.scene import Scene

CHECKED_SEEDS = range(3)
"""Tiny scenes that are also done by brute force."""


def run_eig(config: BenchConfig) -> Report:
    """EIG maps and their parts, 1 m beside the views that gave the evidence."""
    camera, n = bench_camera(config.size), config.threads
    scene = with_two_views(bench_scene(config.gaussians, config.seed), camera)
    beside = offset_laterally(trajectory_from_cameras([camera]), 1.0).cameras[0]
    frame = frame_call(scene.background, beside)
    meta = frame(n)
    rows = {trace: _rows(scene, beside, meta, trace) for trace in (False, True)}

    def whole_map(form: str) -> None:
        with thread_limit(n):
            eig_map(scene, beside, form=form)  # type: ignore[arg-type]

    def pixel_pass(trace: bool) -> None:
        with thread_limit(n):
            evaluate_rows(meta, rows[trace], None, trace=trace)

    def evidence() -> None:
        with thread_limit(n):
            accumulator.add(camera, None)

    accumulator = FisherAccumulator(scene)
    t = interleave(
        {
            "frame": lambda: frame(n),
            "blend pass": blend_call(meta, scene.background.sh, n),
            "EIG map diagonal": lambda: whole_map("diagonal"),
            "EIG map block": lambda: whole_map("block"),
            "pixel pass diagonal": lambda: pixel_pass(True),
            "pixel pass block": lambda: pixel_pass(False),
            "Fisher of one view, block": evidence,
        },
        config.repeats,
    )
    errors = [largest_relative_error(*tiny_world(seed)) for seed in CHECKED_SEEDS]
    figures = {
        "eig_ms": t["EIG map diagonal"].median,
        "eig_block_ms": t["EIG map block"].median,
        "diag_over_blend": 1 + t.ratio("pixel pass diagonal", "blend pass"),
        "block_over_blend": 1 + t.ratio("pixel pass block", "blend pass"),
        "fisher_ms": t["Fisher of one view, block"].median,
        "max_rel_error_vs_bruteforce": max(errors),
    }
    return Report("eig", config, figures, t.rows, scene_counts(meta))


def _rows(scene: Scene, camera: Camera, meta: RasterizationMeta, trace: bool) -> Tensor:
    """What the pixel pass reads; its cost does not depend on the values, so that any evidence will do."""
    fisher, prior = require_fisher(scene, None), FisherPrior()
    precision = prior.precision(scene.background.scales)
    return posterior_rows(
        chain_view(scene, camera, rasterize_view(scene, camera)),
        meta,
        (parameter_variances if trace else factor_blocks)(fisher.blocks, precision),
        scale=1 / fisher.noise_std**2,
        sh_evidence=fisher.sh,
        sh_prior=prior.sh_precision,
        trace=trace,
    )


def with_two_views(scene: Scene, camera: Camera) -> Scene:
    """The scene with the evidence of a view and of one 2 m ahead, as if both had been recorded."""
    accumulator = FisherAccumulator(scene)
    ahead = camera.camtoworld.clone()
    ahead[0, 3] += 2.0
    for seen in (camera, camera.moved(ahead)):
        accumulator.add(seen, None)
    return replace(scene, fisher=accumulator.finish())
