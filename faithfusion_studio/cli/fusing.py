"""The command fuse: a plan of repair and distillation, headless, that can be interrupted and gone on with."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from faithfusion_studio.cli import arguments as a
from faithfusion_studio.cli.console import Interruption, ProgressLine, interruptible, say
from faithfusion_studio.cli.inputs import CommandLineError, finite, parse_range, reserved
from faithfusion_studio.cli.running import (
    Result,
    chosen_device,
    in_words,
    opened,
    provenance_counts,
    with_evidence,
)
from faithfusion_studio.fusion.presets import configured, preset, progressive_stages
from faithfusion_studio.fusion.progressive import FusionPlan, FusionState, Progression
from faithfusion_studio.fusion.saved import taken_up, with_progress, without_progress
from faithfusion_studio.scene import Scene
from faithfusion_studio.session.jobs import require_finite

WORDS = {"repair": "repaired frame", "learn": "step", "evidence": "evidence of view"}


def fuse(args: a.Fuse) -> Result:
    """Repair, distil, save; measured on all recorded views before and after."""
    from faithfusion_studio.io import save_scene

    scene = opened(args.scene, chosen_device(args.device))
    scene, plan, state = _plan(args, scene)
    started = time.perf_counter()
    with reserved(args.out, args.scene), interruptible("saving what is distilled") as stop:
        scene = with_evidence(scene)
        before = psnr_recorded(scene)
        work = Progression(scene, plan, state=state)
        stages, finished = _carry_out(work, stop)
        if finished:
            scene = work.scene
        else:
            scene, state = work.checkpoint()
            scene = with_progress(scene, plan, state)
        require_finite(scene)
        save_scene(scene, args.out)
    after, counts = psnr_recorded(scene), provenance_counts(scene.all_gaussians)
    values = {
        "psnr_recorded_before": before,
        "psnr_recorded_after": after,
        "gaussians": counts,
        "gaussians_total": scene.num_gaussians,
        "stages": stages,
        "stages_planned": len(plan.stages),
        "frames": sum(s["accepted"] for s in stages),
        "steps": sum(s["steps"] for s in stages),
        "seconds": time.perf_counter() - started,
        "segment": _whole_segment(plan),
        "offset": plan.config.offset,
        "weighting": plan.config.weighting,
        "preset": args.preset,
        "interrupted": not finished,
        "out": args.out,
    }
    lines = [
        *(f"{s['label']}: {_told(s)}" for s in stages),
        f"Recorded views {before:.2f} -> {after:.2f} dB; {in_words(counts)} Gaussians.",
        f"Saved {args.out}. "
        + (f"Open it: ff-studio {args.out}" if finished else f"Go on: {_go_on(args)}"),
    ]
    return Result(values, lines, stop.exit_code)


def _whole_segment(plan: FusionPlan) -> list[int]:
    segments = [stage.segment for stage in plan.stages]
    return [min(start for start, _ in segments), max(stop for _, stop in segments)]


def _go_on(args: a.Fuse) -> str:
    return f"ff-studio fuse {args.out} NEW.ckpt --resume"


def _told(stage: dict[str, Any]) -> str:
    moved = stage["trusted_moved"]
    trusted = "" if moved is None else f", {moved:.1%} of the trusted pixels look different"
    return (
        f"{stage['accepted']} of {stage['frames']} frames learned in {stage['steps']} steps, recorded views around "
        f"them {stage['psnr_recorded']:.2f} dB{trusted}."
    )


def _plan(args: a.Fuse, scene: Scene) -> tuple[Scene, FusionPlan, FusionState | None]:
    """The plan that was asked for, or the unfinished one in the scene."""
    if args.resume:
        found = taken_up(scene)
        if found is None:
            raise CommandLineError(
                f"{args.scene}: carries no unfinished fusion; leave out --resume to start one."
            )
        return found
    if args.steps is not None and args.steps < 1:
        raise CommandLineError(f"--steps: found {args.steps}; expected at least 1.")
    config = preset(args.preset)
    named = {
        "offset": None if args.offset is None else finite("--offset", args.offset),
        "engine": args.engine,
        "steps": args.steps,
        "weighting": args.weighting,
        "eig_threshold": args.threshold,
    }
    config = replace(config, **{name: v for name, v in named.items() if v is not None})
    config = configured(config, args.set)
    segment = parse_range(args.segment, len(scene.trajectory))
    stages = progressive_stages(config, (segment.start, segment.stop))
    _check_engines({stage.engine for stage in stages})
    return without_progress(scene), FusionPlan(stages, config, args.seed), None


def _check_engines(names: set[str]) -> None:
    """Refuse before any work where an engine is unknown or its weights are missing."""
    from faithfusion_studio.repair import create_repairer

    for name in sorted(names):
        create_repairer(name)


def _carry_out(work: Progression, stop: Interruption) -> tuple[list[dict[str, Any]], bool]:
    """Run a plan with a progress line; what each stage did, and whether all of them are done."""
    stages: list[dict[str, Any]] = []
    plan, line, shown = work.plan, ProgressLine("step"), ("", -1)
    say(f"{len(plan.stages) - work.first} stage(s); Ctrl+C saves what is distilled.")
    try:
        for event in work.run():
            if (event.phase, event.index) != shown and event.phase in WORDS:
                line.close()
                where = f"{event.stage.label}, stage {event.index + 1} of {len(plan.stages)}"
                line, shown = ProgressLine(WORDS[event.phase]), (event.phase, event.index)
                if not stages or stages[-1]["index"] != event.index:
                    say(where)
                    stages.append(_sheet(event.index, event.stage.label))
            if event.phase == "stage done":
                continue
            _note(stages[-1], event)
            left = None if event.progress is None else event.progress.seconds_left
            line.update(event.done, event.total, left)
            if stop.requested:
                return stages, False
    finally:
        line.close()
    return stages, True


def _sheet(index: int, label: str) -> dict[str, Any]:
    return {
        "index": index,
        "label": f"Fusion {label}",
        "frames": 0,
        "accepted": 0,
        "steps": 0,
        "psnr_recorded": math.nan,
        "trusted_moved": None,
    }


def _note(sheet: dict[str, Any], event: Any) -> None:
    """Write down what an event says about its stage."""
    if event.phase == "repair":
        sheet["frames"] = len(event.frames)
        sheet["accepted"] = sum(frame.accepted for frame in event.frames)
    elif event.progress is not None:
        sheet["steps"] = event.done
        if math.isfinite(event.progress.psnr_recorded):
            sheet["psnr_recorded"] = event.progress.psnr_recorded
        if math.isfinite(event.progress.trusted_moved):
            sheet["trusted_moved"] = event.progress.trusted_moved


def psnr_recorded(scene: Scene, at_most: int = 60) -> float:
    """Mean PSNR over the recorded views at the resolution the scene was trained at, dB."""
    from faithfusion_studio.fusion.batches import working_scale
    from faithfusion_studio.metrics import psnr
    from faithfusion_studio.render.views import apply_exposure, render_view

    if scene.capture is None:
        return math.nan
    values = []
    for index in range(0, len(scene.capture), math.ceil(len(scene.capture) / at_most)):
        frame = scene.capture.frames[index]
        camera = frame.camera.scaled(working_scale(scene))
        rgb = render_view(scene, camera).rgb
        if scene.exposures is not None:
            rgb = apply_exposure(rgb, scene.exposures[index]).clamp(0, 1)
        values.append(psnr(rgb.cpu(), frame.image((camera.width, camera.height))))
    return float(np.mean(values)) if values else math.nan
