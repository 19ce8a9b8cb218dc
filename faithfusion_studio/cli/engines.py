"""The command that lists the repair engines: what each needs, what is here, its licence and its cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from faithfusion_studio.cli import arguments as a
from faithfusion_studio.cli.console import say
from faithfusion_studio.cli.inputs import CommandLineError
from faithfusion_studio.cli.running import Result
from faithfusion_studio.repair import REPAIRERS, RepairError
from faithfusion_studio.repair import model_store as store
from faithfusion_studio.repair.limits import PATIENCE, in_words, patience_seconds
from faithfusion_studio.repair.listing import EngineFacts, engine_facts

FRAMES, WIDTH, HEIGHT = 40, 640, 360
"""What the estimate is for."""


def engines(args: a.Engines) -> Result:
    """The table; and with --accept or --remember a decision that is kept."""
    if args.accept is not None:
        _accept(args.accept)
    if args.remember:
        if args.weights is None:
            raise CommandLineError("--remember keeps the folder given by --weights; give both.")
        store.change_settings(weights=str(args.weights.resolve()))
    rows = [_row(engine_facts(name), args.hash) for name in REPAIRERS]
    values = {
        "weights": store.weights_folder(),
        "frames": FRAMES,
        "size": [WIDTH, HEIGHT],
        "layouts": store.CHECKED,
        "engines": rows,
    }
    lines = [line for row in rows for line in _lines(row)]
    lines += [
        f"Weights are looked for in {store.weights_folder()} (--weights DIR, FF_STUDIO_WEIGHTS, or "
        "--remember); nothing is fetched unasked.",
        f"The layouts of weights that are not ours were {store.CHECKED}.",
    ]
    return Result(values, lines)


def _accept(name: str) -> None:
    try:
        licence = store.accept_by_name(name).licence
    except RepairError as error:
        raise CommandLineError(f"--accept: {error}") from error
    say(f"accepted for {name}: {licence.name} ({licence.url}). {licence.terms}")


def _row(facts: EngineFacts, hashing: bool) -> dict[str, Any]:
    device, info = _device(facts), facts.info
    seconds = None if facts.seconds is None else facts.seconds(FRAMES, HEIGHT, WIDTH, device)
    row: dict[str, Any] = {
        "engine": facts.name,
        "title": info.title,
        "summary": info.summary,
        "ready": facts.problem is None,
        "problem": facts.problem,
        "licence": info.licence,
        "video": info.video,
        "device": device,
        "gpu_memory_gib": info.minimum_vram_gib,
        "seconds_40_frames": seconds,
        "hopeless_here": seconds is not None and seconds > patience_seconds(),
        "files": [],
    }
    if facts.entry is not None:
        entry = facts.entry
        accepted = store.accepted_on(entry)
        row |= {
            "source": entry.source,
            "folder": store.model_folder(entry),
            "licence_url": entry.licence.url,
            "licence_terms": entry.licence.terms,
            "licence_accepted": accepted is not None,
            "bytes": entry.size,
            "files": [_file(entry, part, hashing) for part in entry.parts],
        }
    return row


def _device(facts: EngineFacts) -> str:
    import torch

    return "cuda" if facts.info.minimum_vram_gib and torch.cuda.is_available() else "cpu"


def _file(entry: store.ModelEntry, part: store.ModelPart, hashing: bool) -> dict[str, Any]:
    path = store.model_folder(entry) / part.path
    found = path.exists()
    hashes: dict[str, str] = {}
    if hashing and found:
        for file in store.files_below(path):
            say(f"hashing {file}")
            hashes[file.relative_to(store.model_folder(entry)).as_posix()] = store.file_hash(file)
    return {
        "path": path,
        "what": part.what,
        "optional": part.optional,
        "found": found,
        "bytes": store.size_on_disk(path) if found else None,
        "bytes_expected": part.size,
        "sha256": hashes,
    }


def _lines(row: dict[str, Any]) -> list[str]:
    """One engine for people: its state first, then every file."""
    seconds = row["seconds_40_frames"]
    time = "" if seconds is None else f"; {FRAMES} frames about {in_words(seconds)}"
    needs = f", {row['gpu_memory_gib']:.0f} GiB of GPU memory" if row["gpu_memory_gib"] else ""
    hopeless = ", hopeless here" if row["hopeless_here"] else ""
    state = "ready" if row["ready"] else "not ready"
    lines = [
        f"{row['engine']}: {state}; on {row['device']}{needs}{time}{hopeless}",
        f"  {row['summary']}" if row["summary"] else "",
        f"  licence: {row['licence']}" if row["licence"] else "",
    ]
    if row["problem"] and not row["files"]:
        lines.append(f"  {row['problem']}")
    for file in row["files"]:
        found = store.gigabytes(file["bytes"]) if file["found"] else "missing"
        kind = ", optional" if file["optional"] else ""
        expected = store.gigabytes(file["bytes_expected"])
        lines.append(f"  {found}: {file['path']} ({file['what']}, about {expected}{kind})")
        lines += [f"    sha256 {value}  {name}" for name, value in file["sha256"].items()]
    if row["files"] and not row["ready"]:
        lines.append(f"  {row['problem']}")
    return [line for line in lines if line]


def allow_minutes(minutes: float) -> None:
    """Let repairs take as long from now on.

    Raises:
        CommandLineError: It is not above 0.
    """
    import os

    if not minutes > 0:
        raise CommandLineError(f"--patience: found {minutes:g}; expected minutes, more than 0.")
    os.environ[PATIENCE] = str(minutes)


def use_weights(folder: Path | None) -> None:
    """Look for weights in a folder from now on.

    Raises:
        CommandLineError: It is not a folder.
    """
    import os

    if folder is None:
        return
    if not folder.is_dir():
        raise CommandLineError(f"--weights: {folder} is not a folder.")
    os.environ["FF_STUDIO_WEIGHTS"] = str(folder)
