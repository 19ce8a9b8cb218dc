"""Speed of EIG: a whole map in block and diagonal form, and its pixel pass, against a frame."""

from __future__ import annotations

from dataclasses import replace

import torch

from faithfusion_studio.bench.rendering import bench_camera, bench_scene
from faithfusion_studio.bench.report import BenchConfig, Report, interleave
from faithfusion_studio.cameras import Camera, offset_laterally, trajectory_from_cameras
from faithfusion_studio.information import FisherAccumulator, eig_map
from faithfusion_studio.render.cpu import thread_limit
from faithfusion_studio.render.rasterization import accumulate_information, evaluate_information
from faithfusion_studio.render.views import rasterize_view
from faithfusion_studio.scene import Scene


def run_eig(config: BenchConfig) -> Report:
    """EIG maps beside frames of the same view, 1 m beside the views that gave the evidence."""
    camera = bench_camera(config)
    scene = with_two_views(bench_scene(config), camera)
    beside = offset_laterally(trajectory_from_cameras([camera]), 1.0).cameras[0]
    with torch.no_grad():
        view = rasterize_view(scene, beside)
    weight = torch.ones(1, beside.height, beside.width)
    covariances = accumulate_information(view.meta, weight)  # any positive matrices cost the same

    def frame(threads: int) -> None:
        with torch.no_grad(), thread_limit(threads):
            rasterize_view(scene, beside)

    def whole_map(form: str, threads: int) -> None:
        with thread_limit(threads):
            eig_map(scene, beside, form=form)  # type: ignore[arg-type]

    def pixel_pass() -> None:
        with thread_limit(2):
            evaluate_information(view.meta, covariances)

    def evidence() -> None:
        with thread_limit(2):
            FisherAccumulator(scene).add(camera, None)

    timings, ratio = interleave(
        {
            "frame, 1 thread": lambda: frame(1),
            "frame, 2 threads": lambda: frame(2),
            "EIG map block, 1 thread": lambda: whole_map("block", 1),
            "EIG map block, 2 threads": lambda: whole_map("block", 2),
            "EIG map diagonal, 2 threads": lambda: whole_map("diagonal", 2),
            "EIG pixel pass alone, 2 threads": pixel_pass,
            "evidence of one view, 2 threads": evidence,
        },
        config.repeats,
    )
    base = "frame, 2 threads"
    ratios = {
        "EIG map block (with its frame) : frame": ratio("EIG map block, 2 threads", base),
        "EIG map diagonal (with its frame) : frame": ratio("EIG map diagonal, 2 threads", base),
        "EIG pixel pass : frame": ratio("EIG pixel pass alone, 2 threads", base),
        "evidence of one view : frame": ratio("evidence of one view, 2 threads", base),
        "1 : 2 threads, EIG map block": ratio(
            "EIG map block, 1 thread", "EIG map block, 2 threads"
        ),
    }
    counts = {"visible Gaussians": float((view.meta.radii > 0).all(-1).sum())}
    return Report("eig", config, timings, ratios, counts)


def with_two_views(scene: Scene, camera: Camera) -> Scene:
    """The scene with the evidence of a view and of one 2 m ahead, as if both had been recorded."""
    accumulator = FisherAccumulator(scene)
    ahead = camera.camtoworld.clone()
    ahead[0, 3] += 2.0
    for seen in (camera, camera.moved(ahead)):
        accumulator.add(seen, None)
    return replace(scene, fisher=accumulator.finish())
