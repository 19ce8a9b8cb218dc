"""Our trainer and another program, OpenSplat, on the same frames: a separate process, never linked."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.bench.report import BenchConfig, BenchError
from faithfusion_studio.fusion.reconstruction import Reconstruction
from faithfusion_studio.fusion.schedule import ReconstructionConfig
from faithfusion_studio.io import load_capture, load_scene, write_colmap
from faithfusion_studio.metrics import psnr
from faithfusion_studio.render.views import render_view
from faithfusion_studio.scene import Capture, Scene
from faithfusion_studio.sky import ConstantSky, Sky

PROTOCOL = (
    "one after the other, on the same frames at the same scale without the held-out ones, from as many "
    "Gaussians as the recording has points; steps a second at full training resolution. Held-out PSNR is "
    "measured alike: our renderer draws what each had learned by then, without exposure, what the peer "
    "learned before black and before its own background, of which the better counts. Wall time begins "
    "with each program, so it includes reading the recording."
)
SCALE = 0.5
"""Training resolution over recorded resolution."""
HOLDOUT_EVERY = 8
STEP_LINE = re.compile(r"Step (\d+):")
PEER_BACKGROUND = (0.6130, 0.0101, 0.3984)
"""What OpenSplat trains its Gaussians before."""
MARKS = 6
"""Times at which PSNR is measured."""
FIRST_STEPS = 0.25
"""Share of the race used first to learn how many steps the peer can do in it."""


@dataclass(frozen=True)
class Mark:
    """Where a trainer stood at one time of the race."""

    who: str
    """"ours" or "peer"."""
    seconds: float
    """Wall time since the program started."""
    steps: int
    gaussians: int
    psnr_holdout: float
    """dB, mean over the frames nobody trained on."""


@dataclass(frozen=True)
class Race:
    """What came out."""

    steps_per_s: float
    peer_steps_per_s: float
    marks: tuple[Mark, ...]
    frames: int
    points: int

    def table(self) -> tuple[Mapping[str, float | int | str], ...]:
        """The marks as rows."""
        return tuple(asdict(mark) for mark in self.marks)


def race(config: BenchConfig) -> Race:
    """Run both trainers, one after the other, `config.seconds` each.

    Raises:
        BenchError: The peer is no program, fails, or does no step; the recording has no points.
        CaptureError: The recording cannot be read.
    """
    assert config.peer is not None
    program = shutil.which(config.peer)
    if program is None:
        raise BenchError(f"{config.peer}: is not a program that can be run; build the peer first.")
    capture = load_capture(config.capture) if config.capture else _generated(config.seed)
    if capture.points is None:
        raise BenchError("bench: this recording has no 3D points, which the peer starts from.")
    points = len(capture.points.xyz)
    training = [i for i in range(len(capture)) if i not in set(_holdout(capture))]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "recording"
        write_colmap(capture.select(training), data)
        first = _run_peer(program, data, 10**6, 10**6, FIRST_STEPS * config.seconds)
        ours, rate = _run_ours(capture, points, config.seconds)
        steps = max(2 * MARKS, round(first.steps_per_s * config.seconds))
        found = _run_peer(program, data, steps, max(1, steps // MARKS), 2 * config.seconds)
        theirs = [_peer_mark(capture, found, path) for path in found.saved]
    marks = (*ours, *sorted(theirs, key=lambda mark: mark.seconds))
    return Race(rate, found.steps_per_s, marks, len(training), points)


def _generated(seed: int) -> Capture:
    from faithfusion_studio.synthetic import StreetConfig, build_street, drive, record

    street = build_street(StreetConfig(seed=seed, length=30.0))
    return record(street, drive(street, frames=16, size=(640, 360)))


def _holdout(capture: Capture) -> list[int]:
    return [i for i in range(len(capture)) if i % HOLDOUT_EVERY == HOLDOUT_EVERY // 2]


def _run_ours(capture: Capture, points: int, seconds: float) -> tuple[list[Mark], float]:
    """Marks, and steps a second in the part of the schedule that trains at full resolution."""
    started = time.monotonic()
    trainer = Reconstruction(
        capture,
        ReconstructionConfig(
            steps=10**6,
            minutes=seconds / 60,
            scale=SCALE,
            holdout_every=HOLDOUT_EVERY,
            max_gaussians=round(points / 0.7),  # it starts with 70 % of them
        ),
    )
    away, marks, fine = 0.0, [], []
    due = [seconds * (k + 1) / MARKS for k in range(MARKS)]
    for progress in trainer.run():
        now = time.monotonic() - started - away
        if progress.seconds_left < 0.7 * seconds:  # the first quarter is at half resolution
            fine.append((now, progress.step))
        if due and now >= due[0]:
            due = [t for t in due if t > now]
            paused = time.monotonic()
            scene = trainer.scene()
            value = _holdout_psnr(scene, capture, [scene.sky])
            marks.append(Mark("ours", now, progress.step, scene.num_gaussians, value))
            away += time.monotonic() - paused
    if len(fine) < 2:
        raise BenchError("bench: the race was too short for our trainer; give it more --seconds.")
    scene, now = trainer.scene(), time.monotonic() - started - away
    value = _holdout_psnr(scene, capture, [scene.sky])
    marks.append(Mark("ours", now, fine[-1][1], scene.num_gaussians, value))
    return marks, (fine[-1][1] - fine[0][1]) / (fine[-1][0] - fine[0][0])


def _holdout_psnr(scene: Scene, capture: Capture, skies: Sequence[Sky | None]) -> float:
    """Mean over the held-out frames, dB, with the sky that suits best."""
    means = []
    for sky in skies:
        shown = Scene(scene.background, sky=sky)
        values = []
        for index in _holdout(capture):
            frame = capture.frames[index]
            camera = frame.camera.scaled(SCALE)
            image = frame.image((camera.width, camera.height))
            values.append(psnr(render_view(shown, camera).rgb, image))
        means.append(float(np.mean(values)))
    return max(means)


@dataclass(frozen=True)
class _PeerRun:
    """Steps said by the peer, with the time of each, and the files it left."""

    times: tuple[float, ...]
    """Since its start, s."""
    steps: tuple[int, ...]
    saved: tuple[Path, ...]

    @property
    def steps_per_s(self) -> float:
        """Between the first and the last step it spoke of."""
        return (self.steps[-1] - self.steps[0]) / (self.times[-1] - self.times[0])

    def time_of(self, step: int) -> float:
        """Since its start, s."""
        return float(np.interp(step, self.steps, self.times))


def _run_peer(program: str, data: Path, steps: int, save_every: int, seconds: float) -> _PeerRun:
    """Run the peer until it ends, or for `seconds` of stepping."""
    out = data.parent / f"peer_{steps}"
    out.mkdir()
    words = [program, str(data), "-n", str(steps), "--downscale-factor", str(round(1 / SCALE))]
    words += ["--num-downscales", "0", "--sh-degree", "1", "--keep-crs", "--cpu"]
    words += ["--save-every", str(save_every), "-o", str(out / "splat.ply")]
    times: list[float] = []
    found: list[int] = []
    said = ""
    started = time.monotonic()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=out
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said = line.strip() or said
                match = STEP_LINE.search(line)
                if match:
                    times.append(time.monotonic() - started)
                    found.append(int(match[1]))
                if len(found) > 1 and times[-1] - times[0] > seconds:
                    break
        finally:
            process.kill()
    if len(found) < 2:
        raise BenchError(f"{program}: did no steps that could be timed; it said: {said}")
    return _PeerRun(tuple(times), tuple(found), tuple(out.glob("splat_*.ply")))


def _peer_mark(capture: Capture, run: _PeerRun, path: Path) -> Mark:
    step = int(path.stem.rpartition("_")[2])
    scene = load_scene(path)
    skies = [None, ConstantSky(torch.tensor(PEER_BACKGROUND))]
    value = _holdout_psnr(scene, capture, skies)
    return Mark("peer", run.time_of(step), step, scene.num_gaussians, value)
