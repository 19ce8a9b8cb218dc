"""The commands that write repair data of a scene, and train adapters of the large engines on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from faithfusion_studio.cli import training_arguments as a
from faithfusion_studio.cli.console import ProgressLine, duration, interruptible, say
from faithfusion_studio.cli.inputs import CommandLineError, parse_range, parse_size
from faithfusion_studio.cli.learn import select_frames
from faithfusion_studio.cli.running import Result, chosen_device, opened, with_evidence
from faithfusion_studio.scene import PosedImage, Scene


def pairs(args: a.Pairs) -> Result:
    """Render, EIG, truth and reference at poses the scene was not trained on."""
    from faithfusion_studio.io.pictures import filled_folder
    from faithfusion_studio.metrics import psnr
    from faithfusion_studio.training.repair_data import repair_pairs, write_index, write_pair

    scene, frames, kind = _truth(args, opened(args.scene, chosen_device(args.device)))
    entries: list[dict[str, Any]] = []
    values: list[float] = []
    line = ProgressLine("pair")
    with (
        filled_folder(args.out, CommandLineError) as folder,
        interruptible("keeping the pairs that are done") as stop,
    ):
        for pair in repair_pairs(scene, frames, parse_size(args.size)):
            entries.append(write_pair(pair, folder))
            values.append(psnr(pair.render, pair.truth))
            line.update(len(entries), len(frames))
            if stop.requested:
                break
        line.close()
        write_index(entries, folder, {"scene": str(args.scene), "poses": kind})
    mean = sum(values) / len(values)
    found = {
        "pairs": len(entries),
        "poses": kind,
        "psnr_render": mean,
        "interrupted": stop.requested,
        "out": args.out,
    }
    lines = [
        f"{len(entries)} pairs at {kind}; the renders are {mean:.2f} dB from the truth. "
        f"Written to {args.out}; train on them with `ff-studio train-adapter {args.out} OUT`."
    ]
    return Result(found, lines, stop.exit_code)


def _truth(args: a.Pairs, scene: Scene) -> tuple[Scene, list[PosedImage], str]:
    """The scene as it may be looked at, the true frames, and which these are, in words."""
    from faithfusion_studio.io import load_capture
    from faithfusion_studio.training.repair_data import without_held_out

    if args.against is not None:
        capture = select_frames(load_capture(args.against), args.cameras, 1)
        kind = f"poses of {args.against}"
        scene, frames = with_evidence(scene), list(capture.frames)
    else:
        say("summing the evidence again, without the frames held out.")
        scene, frames = without_held_out(scene)
        kind = "held-out poses"
        if args.cameras is not None:
            names = [name.strip() for name in args.cameras.split(",")]
            frames = [frame for frame in frames if frame.camera.name in names]
    chosen = parse_range(args.frames, len(frames))
    frames = frames[chosen.start : chosen.stop]
    if not frames:
        raise CommandLineError("no true frame is left; choose other --cameras or --frames.")
    return scene, frames, kind


def train_adapter(args: a.TrainAdapter) -> Result:
    """Train, and save in the official layout; the first Ctrl+C saves what is learned."""
    from faithfusion_studio.repair import model_store as store
    from faithfusion_studio.repair import prompts
    from faithfusion_studio.repair.difix import PROMPT as DIFIX_PROMPT
    from faithfusion_studio.repair.eigent_cogvideox import PROMPT as CLIP_PROMPT
    from faithfusion_studio.training import adapters
    from faithfusion_studio.training.repair_data import RepairData

    _check(args)
    data = RepairData(args.pairs)
    config = adapters.AdapterConfig(
        steps=args.steps,
        rate=args.rate,
        layers=args.layers,
        seed=args.seed,
        device=str(chosen_device(args.device)),
    )
    entry = store.CATALOG[args.engine]
    folder = store.required_folder(entry, without=("branch",))
    if args.engine == "difix":
        prompt = prompts.prompt_embedding(folder, DIFIX_PROMPT, "CLIPTextModel", length=77)
        task: adapters.AdapterTask = adapters.DifixTask(folder, prompt, data, config)
    else:
        text = prompts.engine_prompt(folder, CLIP_PROMPT)
        prompt = prompts.prompt_embedding(folder, text, "T5EncoderModel", length=226)
        task = adapters.EigentTask(folder, prompt, data, config)
    losses: list[float] = []
    line, seconds = ProgressLine("step"), 0.0
    with interruptible("saving what is learned") as stop:
        for progress in adapters.train_adapter(task, config):
            losses, seconds = [*losses[-49:], progress.loss], progress.seconds
            mean = sum(losses) / len(losses)
            line.update(progress.step, config.steps, note=f"loss {mean:.4f}")
            if stop.requested:
                break
        line.close()
        about = {"pairs": len(data), "steps": progress.step, "seed": config.seed}
        task.save(args.out, about)
    values = {
        **about,
        "engine": args.engine,
        "loss": mean,
        "parameters": sum(parameter.numel() for parameter in task.parameters),
        "seconds": seconds,
        "interrupted": stop.requested,
        "out": args.out,
    }
    place = store.model_folder(entry) / ("model_last.pkl" if args.engine == "difix" else "branch")
    lines = [
        f"{about['steps']} steps on {len(data)} pairs in {duration(seconds)}, loss {mean:.4f}; saved "
        f"{args.out}. Put it at {place} and the engine {args.engine} uses it."
    ]
    return Result(values, lines, stop.exit_code)


def _check(args: a.TrainAdapter) -> None:
    limits: dict[str, tuple[float, float, float]] = {
        "--steps": (args.steps, 1, 10_000_000),
        "--rate": (args.rate, 1e-8, 1.0),
        "--layers": (args.layers, 1, 42),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise CommandLineError(f"{name}: found {value:g}; expected {low:g} to {high:g}.")
    if not args.out.parent.is_dir():
        raise CommandLineError(f"{args.out.parent}: is not a folder; make it first.")
    suffix = args.out.suffix
    if args.engine == "difix" and suffix != ".pkl":
        raise CommandLineError(f"{args.out}: expected a file ending in .pkl for Difix.")
    if args.engine != "difix" and (suffix or Path(args.out).is_file()):
        raise CommandLineError(f"{args.out}: expected the name of a folder for a branch.")
