"""What several commands share: their result, driving the session's jobs, and counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from faithfusion_studio.cli.console import Interruption, ProgressLine, say
from faithfusion_studio.cli.inputs import CommandLineError
from faithfusion_studio.gaussians import Gaussians, Provenance
from faithfusion_studio.render.device import Device, choose_device
from faithfusion_studio.scene import Scene
from faithfusion_studio.session.engines import Engines
from faithfusion_studio.session.jobs import Job, JobResult, fisher_job


@dataclass(frozen=True)
class Result:
    """What a command found: the same numbers for scripts and for people."""

    values: dict[str, Any]
    lines: Sequence[str] = field(default_factory=list)
    exit_code: int = 0


def run_job(job: Job, what: str, stop: Interruption | None = None) -> JobResult:
    """Drive one of the session's jobs to its end; a signal lets it finish early and keep its work."""
    line, word = ProgressLine(what), None
    try:
        while True:
            step = job.send(word)
            line.update(step.done, step.total, step.seconds_left)
            word = "stop" if stop is not None and stop.requested else None
    except StopIteration as end:
        return end.value
    finally:
        line.close()


def chosen_device(asked: Device) -> torch.device:
    """Where to draw and learn, after saying why it is not CUDA where that is worth saying."""
    choice = choose_device(asked, say)
    if choice.problem is not None:
        say(choice.problem)
    return choice.device


def opened(path: Path, device: torch.device) -> Scene:
    """The scene in a file, on a device, after saying what was left out on reading."""
    from faithfusion_studio.io import load_scene

    scene = load_scene(path)
    for note in scene_notes(scene):
        say(note)
    return scene.to(device)


def with_evidence(scene: Scene) -> Scene:
    """The scene with the evidence EIG needs; computed from its recording where it is not stored."""
    if scene.fisher is not None and len(scene.fisher.blocks) == scene.num_gaussians:
        return scene
    if scene.capture is None:
        raise CommandLineError(
            "this scene has neither stored evidence nor a recording to compute it from; EIG needs "
            "a scene with its recording, so reconstruct one from a capture."
        )
    say("this scene has no evidence stored; computing it from its recorded frames first.")
    result = run_job(fisher_job(Engines(), scene), "evidence of frame")
    assert result.scene is not None
    return result.scene


def provenance_counts(gaussians: Gaussians) -> dict[str, int]:
    """Gaussians by where they came from."""
    counts = torch.bincount(gaussians.provenance.long(), minlength=len(Provenance)).tolist()
    return {kind.name.lower(): counts[kind] for kind in Provenance}


def scene_notes(scene: Scene | None) -> list[str]:
    """Sentences about what was left out on reading."""
    return [] if scene is None else [str(note) for note in scene.metadata.get("notes", [])]


def in_words(value: Any) -> str:
    """A value for people."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {count:,}" for name, count in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value) or "-"
