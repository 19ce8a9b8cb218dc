"""Commands that make or move files: synthesize, convert, bench."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from faithfusion_studio.cli import arguments as a
from faithfusion_studio.cli.console import ProgressLine, say
from faithfusion_studio.cli.inputs import (
    CommandLineError,
    finite,
    output_folder,
    parse_numbers,
    parse_size,
    reserved,
    with_capture,
)
from faithfusion_studio.cli.running import Result, scene_notes
from faithfusion_studio.scene import Capture, Scene


def _check_noise(args: a.Synthesize) -> None:
    """Refuse amounts that mean nothing."""
    amounts = {
        "--exposure-drift": args.exposure_drift,
        "--pose-noise": args.pose_noise,
        "--turn-noise": args.turn_noise,
    }
    for name, value in amounts.items():
        if not 0 <= value <= 10:
            raise CommandLineError(f"{name}: found {value:g}; expected 0 to 10.")
    if not 0 <= args.moving <= 50:
        raise CommandLineError(f"--moving: found {args.moving}; expected 0 to 50.")


def synthesize(args: a.Synthesize) -> Result:
    """A procedural drive with its truth from the side."""
    from faithfusion_studio.synthetic import (
        RecordingConfig,
        StreetConfig,
        build_street,
        drive,
        split_of,
        write_recording,
    )

    size, offsets = parse_size(args.size), parse_numbers(args.offsets)
    _check_noise(args)
    if not 1 <= args.frames <= 2000:
        raise CommandLineError(f"--frames: found {args.frames}; expected 1 to 2000.")
    assert size is not None
    for offset in offsets:
        finite("--offsets", offset)
    folder, started = output_folder(args.out_dir), time.perf_counter()
    say(f"building street {args.seed}")
    config = StreetConfig(
        seed=args.seed,
        family=args.family,
        length=0.8 * args.frames + 10,
        num_moving=args.moving,
    )
    recording = RecordingConfig(
        lidar=args.lidar,
        exposure_drift=args.exposure_drift,
        pose_noise=args.pose_noise,
        turn_noise=math.radians(args.turn_noise),
    )
    street = build_street(config)
    rig = tuple(name.strip() for name in args.rig.split(","))
    trajectory = drive(street, frames=args.frames, size=size, rig=rig)
    line = ProgressLine("view")
    for progress in write_recording(folder, street, trajectory, offsets, config=recording):
        line.update(progress.done, progress.total, note=progress.what)
    line.close()
    values = {
        "frames": args.frames,
        "offsets": list(offsets),
        "seed": args.seed,
        "family": args.family,
        "split": split_of(config),
        "size": list(size),
        "length_m": trajectory.length_m,
        "seconds": time.perf_counter() - started,
        "capture": folder / "recorded",
        "truth": folder / "truth",
    }
    return Result(
        values,
        [
            f"Street {args.seed}: {args.frames} frames over {trajectory.length_m:.1f} m in "
            f"{folder / 'recorded'}, truth at {args.offsets} m in {folder / 'truth'}.",
            f"Train it: ff-studio reconstruct {folder / 'recorded'} OUT.ckpt",
        ],
    )


def convert(args: a.Convert) -> Result:
    """A scene to a file of any format we write; a recording to a folder with cameras.json."""
    from faithfusion_studio.io import (
        ExportOptions,
        load_capture,
        load_scene,
        save_scene,
        sniff,
        write_cameras_json,
        write_colmap,
        write_transforms_json,
    )

    if args.out.suffix:
        scene = with_capture(load_scene(args.source), args.capture)
        if not math.isfinite(args.time):
            raise CommandLineError(f"--time: found {args.time}; expected seconds.")
        options = ExportOptions(args.time, args.spz_version, args.flip_yz)
        if args.flip_yz and args.out.suffix == ".ckpt":
            scene = _flipped(scene)
        if args.out.name == "meta.json":
            output_folder(args.out.parent)
        with reserved(args.out, args.source):
            lost = save_scene(scene, args.out, options)
        notes = [*scene_notes(scene), *lost]
        values = {"gaussians": scene.num_gaussians, "frames": _frames(scene.capture)}
    else:
        capture = load_capture(args.source)
        writers = {"transforms.json": write_transforms_json, "colmap": write_colmap}
        writers.get(args.layout, write_cameras_json)(capture, output_folder(args.out))
        notes = list(capture.notes)
        values = {"gaussians": 0, "frames": len(capture)}
    values = {"from": sniff(args.source), "to": sniff(args.out), **values, "notes": notes}
    kept = f", {values['frames']} frames" if args.out.suffix in (".ckpt", "") else ""
    counts = f"{values['gaussians']:,} Gaussians{kept}" if args.out.suffix else kept[2:]
    return Result({**values, "out": args.out}, [f"{args.source} -> {args.out}: {counts}", *notes])


def _flipped(scene: Scene) -> Scene:
    """A scene of splats alone with y and z reversed."""
    from faithfusion_studio.io.spz import flipped_yz

    if scene.nodes or scene.capture is not None or scene.sky is not None:
        raise CommandLineError(
            "--flip-yz into a .ckpt: this scene has a recording, a sky or moving objects, which "
            "would not be turned; only splats alone can be."
        )
    return replace(scene, background=flipped_yz(scene.background), fisher=None)


def _frames(capture: Capture | None) -> int:
    return 0 if capture is None else len(capture)


def bench(args: a.Bench) -> Result:
    """Measure one topic; everything that is compared runs interleaved in one process."""
    from faithfusion_studio.bench import configure, run_bench

    config = configure(
        args.topic,
        quick=args.quick,
        gaussians=args.gaussians,
        size=parse_size(args.size),
        repeats=args.repeats,
        seed=args.seed,
        seconds=args.seconds,
        peer=args.peer,
        steps=args.steps,
        scenes=args.scenes,
        trainings=args.trainings,
        members=args.members,
        family=args.family,
        scale=args.scale,
        formats=args.formats or None,
        mutants=args.mutants,
        capture=None if args.capture is None else str(args.capture),
        views=args.views,
        offset=args.offset,
        engines=None if args.engines is None else tuple(args.engines.split(",")),
        plans=args.plans,
        detector=None if args.detector is None else str(args.detector),
        lane_net=None if args.lane_net is None else str(args.lane_net),
    )
    folder = None if args.out is None else output_folder(args.out)
    report = run_bench(args.topic, config)
    values = report.to_json()
    if folder is not None:
        values["files"] = report.write(folder)
    return Result(values, report.to_markdown().splitlines())
