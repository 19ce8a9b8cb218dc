"""The commands that train our own networks: streets, pairs, fitting, and a table of what the weights are worth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from faithfusion_studio.cli import training_arguments as a
from faithfusion_studio.cli.console import Interruption, ProgressLine, duration, interruptible, say
from faithfusion_studio.cli.inputs import CommandLineError, output_folder
from faithfusion_studio.cli.running import Result, chosen_device
from faithfusion_studio.repair import (
    EigentTinyRepairer,
    RefinerRepairer,
    Repairer,
    ReprojectionRepairer,
    load_eigent,
    load_refiner,
    save_eigent,
    save_refiner,
)
from faithfusion_studio.training.eigent_fitting import (
    EIGENT_PRESETS,
    EigentFitting,
    eigent_held_out_gain,
)
from faithfusion_studio.training.fitting import PRESETS, Fitting, held_out_gain
from faithfusion_studio.training.loop import Loop, LoopConfig
from faithfusion_studio.training.pairs import FIRST_TEST_SEED, PairFile, cached_pairs, street_recipe

CHECKPOINT_SECONDS = 120.0
LOG_EVERY = 25
"""Steps between lines of the log."""
VALIDATE_EVERY = 250


@dataclass(frozen=True)
class _Kind:
    """One of our networks, as a command trains it."""

    name: str
    presets: Mapping[Any, LoopConfig]
    fitting: Callable[[list[PairFile], Any], Loop]
    gain: Callable[[Any, PairFile], tuple[float, float]]
    """PSNR of the reprojection and of the network over the render on held-out pairs, dB."""
    load: Callable[[Path], nn.Module]
    save: Callable[[Any, Path, Mapping[str, Any]], None]
    engine: Callable[[Any, ReprojectionRepairer], Repairer]


def train_refiner(args: a.TrainRefiner) -> Result:
    """Train the refiner, save the weights, and measure them if asked."""
    return _train(
        args,
        _Kind(
            "refiner", PRESETS, Fitting, held_out_gain, load_refiner, save_refiner, RefinerRepairer
        ),
    )


def train_eigent(args: a.TrainEigent) -> Result:
    """Train eigent-tiny, save the weights, and measure them if asked."""
    return _train(
        args,
        _Kind(
            "eigent",
            EIGENT_PRESETS,
            EigentFitting,
            eigent_held_out_gain,
            load_eigent,
            save_eigent,
            lambda network, shared: EigentTinyRepairer(network, reprojection=shared),
        ),
    )


def _train(args: a.TrainRefiner | a.TrainEigent, kind: _Kind) -> Result:
    seeds, config = _seeds("--seeds", args.seeds), _config(args, kind)
    tested = [] if args.test is None else _seeds("--test", args.test)
    held_out = [] if args.validate is None else _seeds("--validate", args.validate)
    _check_seeds(seeds, held_out, tested)
    if args.out.suffix != ".safetensors" or not args.out.parent.is_dir():
        raise CommandLineError(
            f"{args.out}: expected a file in an existing folder, ending in .safetensors."
        )
    folder = output_folder(args.cache or Path.home() / ".cache" / "faithfusion-studio" / "refiner")
    start = None if args.start is None else kind.load(args.start)
    with interruptible("saving what is learned") as stop:
        started, files = time.perf_counter(), []
        for count, seed in enumerate([*seeds, *held_out]):
            if stop.requested:
                break
            say(f"street {seed}, {count + 1} of {len(seeds) + len(held_out)}")
            files.append(PairFile(cached_pairs(street_recipe(seed), folder, say)))
        if stop.requested:
            say(f"stopped with {len(files)} of {len(seeds)} streets made; they stay in {folder}.")
            return Result({"streets": len(files), "interrupted": True}, [], stop.exit_code)
        files, watched = files[: len(seeds)], files[len(seeds) :]
        fitting = kind.fitting(files, config)
        if start is not None:
            _begin(fitting, start, args.start)
        decoder = args.decoder if isinstance(args, a.TrainEigent) else None
        if decoder is not None and isinstance(fitting, EigentFitting):
            fitting.start_decoder(load_refiner(decoder))
        run = _Run(fitting, kind, folder, watched, f"{kind.name}-{args.size}-{config.seed}")
        gain = run.fit(stop)
    training = {
        "streets": seeds,
        "pairs": sum(len(file) * file.shape[1] for file in files),
        "steps": fitting.step,
        "fitting_seconds": round(fitting.seconds),
        "seed": config.seed,
        "started_from": None if args.start is None else args.start.name,
        "validation": run.best,
    }
    kind.save(run.network(), args.out, training)
    values = {
        **training,
        "size": args.size,
        "parameters": sum(p.numel() for p in fitting.averaged.parameters()),
        "gain_over_reprojection_on_training_crops_db": gain,
        "seconds": time.perf_counter() - started,
        "interrupted": stop.requested,
        "out": args.out,
    }
    lines = [
        f"Size {args.size}: {fitting.step} steps on {training['pairs']} pairs of {len(seeds)} "
        f"streets in {duration(fitting.seconds)}; saved {args.out}."
    ]
    if tested and not stop.requested:
        values["test"] = _measure(kind, args.out, tested, folder)
        lines += values["test"]
    return Result(values, lines, stop.exit_code)


def _config(args: a.TrainRefiner | a.TrainEigent, kind: _Kind) -> LoopConfig:
    config = replace(kind.presets[args.size], seed=args.seed)
    if args.steps is not None:
        config = replace(config, steps=args.steps)
    if isinstance(args, a.TrainRefiner) and args.temporal_share is not None:
        if not 0 <= args.temporal_share <= 1:
            raise CommandLineError(
                f"--temporal-share: found {args.temporal_share:g}; expected 0 to 1."
            )
        config = replace(config, temporal_share=args.temporal_share)
    if not 1 <= config.steps <= 10_000_000:
        raise CommandLineError(f"--steps: found {config.steps}; expected 1 to 10000000.")
    return replace(config, device=str(chosen_device(args.device)))


def _seeds(name: str, text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        if not (colon and first.isdigit() and last.isdigit()) or int(first) >= int(last):
            raise CommandLineError(
                f"{name}: found {text!r}; expected A:B, for example 110:150, or several with commas."
            )
        seeds += range(int(first), int(last))
    return seeds


def _check_seeds(seeds: list[int], held_out: list[int], tested: list[int]) -> None:
    """Refuse streets that would be learned from and judged by."""
    chosen = [*seeds, *held_out]
    if max(chosen) >= FIRST_TEST_SEED or (tested and min(tested) < FIRST_TEST_SEED):
        raise CommandLineError(
            f"streets with seeds below {FIRST_TEST_SEED} are for training and the others for "
            "tests; choose --seeds, --validate and --test so."
        )
    both = sorted(set(seeds) & set(held_out))
    if both:
        raise CommandLineError(
            f"street {both[0]} is in --seeds and in --validate; choose ranges that do not meet."
        )


def _begin(fitting: Loop, start: nn.Module, path: Path | None) -> None:
    """Put learned weights into a training."""
    found = {name: value.shape for name, value in start.state_dict().items()}
    if found != {name: value.shape for name, value in fitting.network.state_dict().items()}:
        raise CommandLineError(
            f"{path}: weights of another size cannot begin this training; give their --size."
        )
    fitting.start_from(start.state_dict())


class _Run:
    """A training with its log, its checkpoints and the weights that did best on the watched streets."""

    def __init__(
        self, fitting: Loop, kind: _Kind, folder: Path, watched: list[PairFile], name: str
    ) -> None:
        self.fitting, self.kind, self.watched = fitting, kind, watched
        self.checkpoint, self.log = folder / f"{name}.safetensors", folder / f"{name}.jsonl"
        self.kept = folder / f"{name}-best.safetensors"
        self.best: dict[str, Any] | None = None

    def fit(self, stop: Interruption) -> float:
        """Train to the end or until stopped; returns the mean gain of the last steps, dB."""
        fitting = self.fitting
        if self.checkpoint.exists():
            fitting.resume(self.checkpoint)
            say(f"going on after step {fitting.step} of {self.checkpoint}")
            best = self.kept.with_suffix(".json")
            self.best = json.loads(best.read_text()) if best.exists() else None
        line, saved, recent = ProgressLine("step"), time.monotonic(), []
        with self.log.open("a") as written:
            for progress in fitting.run():
                recent = [*recent[1 - LOG_EVERY :], progress.gain]
                gain = sum(recent) / len(recent)
                if progress.step % LOG_EVERY == 0:
                    written.write(json.dumps({**progress._asdict(), "gain": gain}) + "\n")
                    written.flush()
                note = f"loss {progress.loss:.4f}  {gain:+.2f} dB over reprojection"
                line.update(progress.step, fitting.config.steps, note=note)
                due = progress.step % VALIDATE_EVERY == 0 or progress.step == fitting.config.steps
                if self.watched and due and fitting.complete:
                    written.write(json.dumps(self._validate(progress.step)) + "\n")
                if time.monotonic() - saved > CHECKPOINT_SECONDS or stop.requested:
                    fitting.save(self.checkpoint)
                    saved = time.monotonic()
                if stop.requested:
                    break
        line.close()
        fitting.save(self.checkpoint)
        return sum(recent) / max(1, len(recent))

    def _validate(self, step: int) -> dict[str, Any]:
        """What the averaged weights are worth on the watched streets; the best are kept as a file."""
        gains = [self.kind.gain(self.fitting.averaged, file) for file in self.watched]
        reprojection, network = (sum(side) / len(gains) for side in zip(*gains, strict=True))
        entry = {"step": step, "reprojection_db": reprojection, "network_db": network}
        if self.best is None or network > self.best["network_db"]:
            self.best = entry
            self.kind.save(self.fitting.averaged, self.kept, entry)
            self.kept.with_suffix(".json").write_text(json.dumps(entry))
        say(f"step {step}: {network:+.2f} dB over the render, reprojection {reprojection:+.2f} dB")
        return entry

    def network(self) -> nn.Module:
        """The weights to ship: the best on the watched streets, else the last ones."""
        return self.fitting.averaged if self.best is None else self.kind.load(self.kept)


def _measure(kind: _Kind, weights: Path, seeds: list[int], folder: Path) -> list[str]:
    """Tables of render, reprojection and the network on clips of test streets."""
    from faithfusion_studio.training.evaluation import (
        SharedReprojection,
        clip_table,
        compare_on_street,
        confidence_table,
    )

    shared = SharedReprojection()
    engines = [shared, kind.engine(kind.load(weights), shared)]
    rows = [
        row
        for seed in seeds
        for row in compare_on_street(seed, "urban", engines, folder / "test", say=say)
    ]
    return [*clip_table(rows), "", *confidence_table(rows)]
