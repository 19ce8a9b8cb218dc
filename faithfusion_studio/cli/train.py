"""The command that trains the refiner's weights: streets, pairs, fitting, and a table of what it is worth."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from faithfusion_studio.cli import arguments as a
from faithfusion_studio.cli.console import Interruption, ProgressLine, duration, interruptible, say
from faithfusion_studio.cli.inputs import CommandLineError, output_folder
from faithfusion_studio.cli.running import Result, chosen_device
from faithfusion_studio.training.fitting import PRESETS, Fitting, FittingConfig
from faithfusion_studio.training.pairs import FIRST_TEST_SEED, PairFile, cached_pairs, street_recipe

CHECKPOINT_SECONDS = 120.0
LOG_EVERY = 25
"""Steps between lines of the log."""


def train_refiner(args: a.TrainRefiner) -> Result:
    """Train, save the weights, and measure them if asked."""
    from faithfusion_studio.repair import load_refiner, save_refiner

    seeds, config = _seeds("--seeds", args.seeds), _config(args)
    tested = [] if args.test is None else _seeds("--test", args.test)
    if max(seeds) >= FIRST_TEST_SEED or (tested and min(tested) < FIRST_TEST_SEED):
        raise CommandLineError(
            f"streets with seeds below {FIRST_TEST_SEED} are for training and the others for "
            "tests; choose --seeds and --test so."
        )
    if args.out.suffix != ".safetensors" or not args.out.parent.is_dir():
        raise CommandLineError(
            f"{args.out}: expected a file in an existing folder, ending in .safetensors."
        )
    folder = output_folder(args.cache or Path.home() / ".cache" / "faithfusion-studio" / "refiner")
    start = None if args.start is None else load_refiner(args.start)
    if start is not None and start.size != args.size:
        raise CommandLineError(
            f"{args.start}: weights of size {start.size} cannot begin a training of size "
            f"{args.size}; give --size {start.size}."
        )
    with interruptible("saving what is learned") as stop:
        started, files = time.perf_counter(), []
        for count, seed in enumerate(seeds):
            if stop.requested:
                break
            say(f"street {seed}, {count + 1} of {len(seeds)}")
            files.append(PairFile(cached_pairs(street_recipe(seed), folder, say)))
        if stop.requested:
            say(f"stopped with {len(files)} of {len(seeds)} streets made; they stay in {folder}.")
            return Result({"streets": len(files), "interrupted": True}, [], stop.exit_code)
        fitting = Fitting(files, config)
        if start is not None:
            fitting.start_from(start.state_dict())
        gain = _fit(fitting, folder, stop)
    training = {
        "streets": seeds,
        "pairs": sum(len(file) for file in files),
        "steps": fitting.step,
        "fitting_seconds": round(fitting.seconds),
        "seed": config.seed,
        "started_from": None if args.start is None else args.start.name,
    }
    save_refiner(fitting.averaged, args.out, training)
    values = {
        **training,
        "size": config.size,
        "parameters": sum(p.numel() for p in fitting.averaged.parameters()),
        "gain_over_reprojection_on_training_crops_db": gain,
        "seconds": time.perf_counter() - started,
        "interrupted": stop.requested,
        "out": args.out,
    }
    lines = [
        f"Size {config.size}: {fitting.step} steps on {training['pairs']} pairs of {len(seeds)} "
        f"streets in {duration(fitting.seconds)}; saved {args.out}."
    ]
    if tested and not stop.requested:
        values["test"] = _measure(args.out, tested, folder)
        lines += values["test"]
    return Result(values, lines, stop.exit_code)


def _config(args: a.TrainRefiner) -> FittingConfig:
    config = replace(PRESETS[args.size], seed=args.seed)
    if args.steps is not None:
        config = replace(config, steps=args.steps)
    if not 1 <= config.steps <= 10_000_000:
        raise CommandLineError(f"--steps: found {config.steps}; expected 1 to 10000000.")
    return replace(config, device=str(chosen_device(args.device)))


def _seeds(name: str, text: str) -> list[int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit()) or int(first) >= int(last):
        raise CommandLineError(f"{name}: found {text!r}; expected A:B, for example 110:150.")
    return list(range(int(first), int(last)))


def _fit(fitting: Fitting, folder: Path, stop: Interruption) -> float:
    """Train with a log and checkpoints; returns the mean gain of the last steps, dB."""
    name = f"refiner-{fitting.config.size}-{fitting.config.seed}"
    checkpoint, log = folder / f"{name}.safetensors", folder / f"{name}.jsonl"
    if checkpoint.exists():
        fitting.resume(checkpoint)
        say(f"going on after step {fitting.step} of {checkpoint}")
    line, saved, recent = ProgressLine("step"), time.monotonic(), []
    with log.open("a") as written:
        for progress in fitting.run():
            recent = [*recent[1 - LOG_EVERY :], progress.gain]
            gain = sum(recent) / len(recent)
            if progress.step % LOG_EVERY == 0:
                entry = {**progress._asdict(), "gain": gain}
                written.write(json.dumps(entry) + "\n")
            note = f"loss {progress.loss:.4f}  {gain:+.2f} dB over reprojection"
            line.update(progress.step, fitting.config.steps, note=note)
            if time.monotonic() - saved > CHECKPOINT_SECONDS or stop.requested:
                fitting.save(checkpoint)
                written.flush()
                saved = time.monotonic()
            if stop.requested:
                break
    line.close()
    fitting.save(checkpoint)
    return sum(recent) / max(1, len(recent))


def _measure(weights: Path, seeds: list[int], folder: Path) -> list[str]:
    """The table of render, reprojection and refiner on test streets."""
    from faithfusion_studio.repair import RefinerRepairer, create_repairer, load_refiner
    from faithfusion_studio.training.evaluation import compare_on_street, table

    engines = [create_repairer("reprojection"), RefinerRepairer(load_refiner(weights))]
    rows = [
        row
        for seed in seeds
        for row in compare_on_street(seed, "urban", engines, folder / "test", say=say)
    ]
    return table(rows)
