"""The commands reconstruct and repair. They run the same jobs as the studio."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.cli import arguments as a
from faithfusion_studio.cli.console import Interruption, ProgressLine, duration, interruptible, say
from faithfusion_studio.cli.inputs import (
    CommandLineError,
    finite,
    frame_stems,
    parse_range,
    reserved,
)
from faithfusion_studio.cli.running import (
    Result,
    chosen_device,
    opened,
    run_job,
    with_evidence,
)
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.schedule import ReconstructionConfig, Stage
from faithfusion_studio.scene import Capture, Scene
from faithfusion_studio.session.engines import Engines
from faithfusion_studio.session.jobs import fisher_job, repair_job


def reconstruct(args: a.Reconstruct) -> Result:
    """Train, sum the evidence, save; the first Ctrl+C saves what is trained."""
    from faithfusion_studio.fusion.reconstruction import Reconstruction
    from faithfusion_studio.io import load_capture, save_scene
    from faithfusion_studio.io.annotations import read_box_tracks

    config, device = _reconstruction_config(args), chosen_device(args.device)
    capture = select_frames(load_capture(args.capture), args.cameras, args.every)
    if args.boxes is not None:
        capture = replace(capture, boxes=read_box_tracks(args.boxes))
    for note in capture.notes:
        say(note)
    with reserved(args.out, args.capture), interruptible("saving what is trained") as stop:
        say(f"reconstructing {len(capture)} frames; Ctrl+C saves what is trained.")
        work = Reconstruction(capture, config, device=device)
        line = ProgressLine("step")
        for progress in work.run():
            note = f"loss {progress.loss:.3f}  {progress.num_gaussians:,} Gaussians"
            line.update(progress.step, progress.steps, progress.seconds_left, note)
            if stop.requested:
                break
        line.close()
        scene = work.scene()
        report = None if stop.requested else work.report(scene)
        if not stop.requested:
            job = fisher_job(Engines(), scene)
            try:
                scene = run_job(job, "evidence of frame", stop).scene or scene
            except StudioError:
                if not stop.requested:
                    raise
        save_scene(scene, args.out)
    found = {"steps": 0, "seconds": 0.0} if report is None else asdict(report)
    trained = scene.metadata["reconstruction"]
    values = {
        "steps": trained["steps_done"],
        "seconds": found["seconds"] or trained["seconds"],
        "gaussians": scene.num_gaussians,
        "vehicles": {node.name: len(node.gaussians) for node in scene.nodes},
        "psnr_train": found.get("psnr_train", math.nan),
        "psnr_holdout": found.get("psnr_holdout", math.nan),
        "fisher": scene.fisher is not None,
        "interrupted": stop.requested,
        "out": args.out,
    }
    lines = [
        f"{values['gaussians']:,} Gaussians after {values['steps']} steps in "
        f"{duration(values['seconds'])}; PSNR {values['psnr_train']:.2f} dB on trained frames, "
        f"{values['psnr_holdout']:.2f} dB on held-out frames.",
        *(f"Vehicle {name}: {count:,} Gaussians." for name, count in values["vehicles"].items()),
        f"Saved {args.out}. Open it: ff-studio {args.out}",
    ]
    if stop.requested:
        say(f"stopped after {values['steps']} steps; saved {args.out}.")
        lines = []
    return Result(values, lines, stop.exit_code)


def _reconstruction_config(args: a.Reconstruct) -> ReconstructionConfig:
    limits = {
        "--scale": (args.scale, 0.02, 4.0),
        "--every": (args.every, 1, 10_000),
        "--holdout-every": (args.holdout_every, 0, 10_000),
        "--steps": (1 if args.steps is None else args.steps, 1, 10_000_000),
        "--max-gaussians": (args.max_gaussians or 1000, 100, 50_000_000),
        "--minutes": (1.0 if args.minutes is None else args.minutes, 0.01, 100_000.0),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise CommandLineError(f"{name}: found {value}; expected {low} to {high}.")
    config = ReconstructionConfig(
        minutes=args.minutes,
        scale=args.scale,
        holdout_every=args.holdout_every,
        nodes=args.nodes == "rigid",
        symmetric=args.symmetric,
        seed=args.seed,
    )
    if args.max_gaussians is not None:
        config = replace(config, max_gaussians=args.max_gaussians)
    return config if args.steps is None else replace(config, steps=args.steps)


def select_frames(capture: Capture, cameras: str | None, every: int) -> Capture:
    """Only these cameras of the rig, and of each every n-th frame.

    Raises:
        CommandLineError: The recording has no camera of that name.
    """
    names = capture.camera_names
    wanted = names if cameras is None else [name.strip() for name in cameras.split(",")]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise CommandLineError(
            f"--cameras: this recording has no camera {missing[0]!r}; choose from "
            f"{', '.join(name or '(unnamed)' for name in names)}."
        )
    if wanted == names and every == 1:
        return capture
    own = {n: [i for i, f in enumerate(capture.frames) if f.camera.name == n] for n in wanted}
    return capture.select(sorted(i for indices in own.values() for i in indices[::every]))


def _stage(args: a.Repair, scene: Scene) -> Stage:
    if not 0 <= args.threshold <= 1:
        raise CommandLineError(f"--threshold: found {args.threshold:g}; expected 0 to 1.")
    segment = parse_range(args.segment, len(scene.trajectory))
    return Stage(
        segment=(segment.start, segment.stop),
        lateral_offset=finite("--offset", args.offset),
        engine=args.engine,
        eig_threshold=args.threshold,
    )


def _repaired(scene: Scene, stage: Stage, stop: Interruption) -> list[RepairedFrame]:
    """All repaired frames of a stage."""
    job, frames = repair_job(Engines(), scene, stage, preview=False), ()
    line = ProgressLine("repaired frame")
    word = None
    try:
        while True:
            step = job.send(word)
            frames = step.changes.get("frames", frames)
            line.update(step.done, step.total, step.seconds_left)
            word = "stop" if stop.requested else None
    except StopIteration:
        return list(frames)
    finally:
        line.close()


def repair(args: a.Repair) -> Result:
    """Pictures of a repair, frame by frame."""
    from faithfusion_studio.io.pictures import filled_folder

    scene = opened(args.scene, chosen_device(args.device))
    stage = _stage(args, scene)
    scene = with_evidence(scene)
    stems = frame_stems(scene.capture, len(scene.trajectory))
    started = time.perf_counter()
    with (
        filled_folder(args.out_dir, CommandLineError) as folder,
        interruptible("keeping the frames that are done") as stop,
    ):
        frames = _repaired(scene, stage, stop)
        seconds = time.perf_counter() - started
        for frame in frames:
            _write_repair(frame, folder, stems[frame.frame])
    notes = list(dict.fromkeys(note for frame in frames for note in frame.notes))
    values = {
        "frames": len(frames),
        "seconds": seconds,
        "ucr_share": _mean([float(frame.ucr.float().mean()) for frame in frames]),
        "hpr_changed": sum(frame.hpr_changed for frame in frames),
        "filled_share": _mean([float((f.pixel_provenance > 0).float().mean()) for f in frames]),
        "accepted": sum(frame.accepted for frame in frames),
        "segment": list(stage.segment),
        "offset": args.offset,
        "engine": args.engine,
        "notes": notes,
        "out": args.out_dir,
    }
    lines = [
        f"Repaired {len(frames)} frames at {args.offset:+g} m in {duration(seconds)}: UCR "
        f"{values['ucr_share']:.1%}, HPR pixels changed {values['hpr_changed']}, "
        f"{values['accepted']} accepted. Written to {args.out_dir}.",
        *notes,
    ]
    return Result(values, lines, stop.exit_code)


def _write_repair(frame: RepairedFrame, folder: Path, stem: str) -> None:
    from faithfusion_studio.io.pictures import write_png
    from faithfusion_studio.render.views import to_uint8

    write_png(to_uint8(frame.rendered).numpy(), folder / f"{stem}_rendered.png")
    write_png(to_uint8(frame.repaired).numpy(), folder / f"{stem}_repaired.png")
    write_png(frame.ucr.to(torch.uint8).mul(255).numpy(), folder / f"{stem}_mask.png")
    confidence = frame.confidence.clamp(0, 1).mul(255).round().to(torch.uint8)
    write_png(confidence.numpy(), folder / f"{stem}_confidence.png")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
