"""What each topic reports under which key, and what is aimed at: the stable names, goals and floors.

Every key below is present at the top level of the JSON of its topic; a figure that was not measured
is null there. Nothing heavy is imported, so that `--help` can list the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Value = float | str | None
Verdict = Literal["meets goal", "meets floor", "MISSES FLOOR", "n/a at this size", "not measured"]


@dataclass(frozen=True)
class Figure:
    """One key of a report."""

    unit: str
    """"ms", "x" for a ratio, "1/s", ...; empty for text and pure numbers."""
    meaning: str
    better: Literal["lower", "higher"] = "lower"


@dataclass(frozen=True)
class Target:
    """What a figure should reach, and must reach at least, on a quiet machine."""

    topic: str
    figure: str
    goal: float
    floor: float
    gaussians: int
    size: tuple[int, int]
    """Width and height, pixels."""
    threads: int = 2

    def holds_for(self, gaussians: int, size: tuple[int, int], threads: int) -> bool:
        """Whether a run has the protocol this target was set for."""
        return (gaussians, size, threads) == (self.gaussians, self.size, self.threads)

    @property
    def protocol(self) -> str:
        """For people."""
        return f"{self.gaussians:,} at {self.size[0]}x{self.size[1]}, {self.threads} threads"


FIGURES: dict[str, dict[str, Figure]] = {
    "raster": {
        "frame_ms": Figure(
            "ms",
            "one call of `rasterization` on activated parameters, from projection to colour, expected "
            "depth and opacity; without sky and activation",
        ),
        "view_ms": Figure("ms", "one finished view: activation, frame, sky, clamp (`render_view`)"),
        "blend_ms": Figure("ms", "the blend pass alone over the tile lists of that frame"),
        "torch_blend_ratio": Figure(
            "x", "tiled pure-torch blend : our blend pass, 1 thread each, processor time", "higher"
        ),
        "threads_speedup": Figure("x", "blend pass, 1 thread : `threads` threads", "higher"),
        "frame_threads_speedup": Figure("x", "frame, 1 thread : `threads` threads", "higher"),
        "gradient_step_ms": Figure(
            "ms", "training step without optimiser: view, gradient of the image loss, backward"
        ),
    },
    "eig": {
        "eig_ms": Figure("ms", "whole EIG map of a view, diagonal, its frame included"),
        "eig_block_ms": Figure("ms", "whole EIG map of a view, block log-det, its frame included"),
        "diag_over_blend": Figure("x", "(blend + diagonal pixel pass) : blend"),
        "block_over_blend": Figure("x", "(blend + block pixel pass) : blend"),
        "fisher_ms": Figure("ms", "block Fisher of one view, with its frame and the chain"),
        "max_rel_error_vs_bruteforce": Figure(
            "",
            "largest relative error of Fisher blocks and maps against float64 per-pixel Jacobians of "
            "tiny scenes: blocks over sqrt(H_aa H_bb), maps over their maximum",
        ),
    },
    "train": {
        "step_ms": Figure("ms", "one training step, everything included"),
        "steps_per_s": Figure(
            "1/s", "steps a second: on the peer's views if there is a peer", "higher"
        ),
        "peer": Figure("", "the peer program; null without --peer"),
        "peer_steps_per_s": Figure("1/s", "the peer's steps a second; null without --peer"),
        "ratio": Figure("x", "our steps a second : the peer's; null without --peer", "higher"),
    },
    "view": {
        "p50_ms": Figure(
            "ms", "camera sent -> picture drawn from it received, median, nothing else running"
        ),
        "p95_ms": Figure("ms", "the same, 95th percentile"),
        "p95_wait_ms": Figure(
            "ms",
            "from any camera sent, also a superseded one, to the first picture as new as it, 95th percentile",
        ),
        "fps_moving": Figure("1/s", "pictures a second while the camera moves", "higher"),
        "p50_during_fusion_ms": Figure("ms", "p50_ms while fusion runs"),
        "p95_during_fusion_ms": Figure("ms", "p95_ms while fusion runs"),
        "p95_wait_during_fusion_ms": Figure("ms", "p95_wait_ms while fusion runs"),
        "fps_during_fusion": Figure("1/s", "fps_moving while fusion runs", "higher"),
    },
    "scale": {
        "frame_exponent_n": Figure("", "slope of log ms over log N, frames"),
        "step_exponent_n": Figure("", "slope of log ms over log N, training steps"),
        "frame_exponent_pixels": Figure("", "slope of log ms over log pixels, frames"),
        "step_exponent_pixels": Figure("", "slope of log ms over log pixels, training steps"),
        "n_log_n_exponent": Figure("", "slope that N log N would have over the same range of N"),
        "growth": Figure("", '"no worse than N log N", or which of the four slopes are too steep'),
        "frame_bytes_per_gaussian": Figure("bytes", "growth of peak memory per Gaussian, frames"),
        "step_bytes_per_gaussian": Figure("bytes", "growth of peak memory per Gaussian, training"),
        "open_and_render_4m_bytes": Figure(
            "bytes", "peak memory of a process that opens and renders 4,000,000 Gaussians"
        ),
    },
    "robustness": {
        "mutants": Figure("", "damaged files opened, all formats together", "higher"),
        "crashes": Figure("", "child processes that died"),
        "hangs": Figure("", "mutants that took more than 2 s of processor time"),
        "memory_excesses": Figure("", "mutants that took more than 4 times their size + 256 MiB"),
        "tracebacks": Figure("", "errors that were not one sentence of ours"),
        "wrong_counts": Figure("", "mutants that opened with a number of Gaussians nobody wrote"),
        "pickles_executed": Figure("", "malicious pickles, of 30, that ran"),
        "paths_read_outside": Figure("", "paths out of the folder, of 60, that were read"),
        "nonfinite_miscounted": Figure(
            "", "files whose broken Gaussians were not all dropped and counted"
        ),
        "corrupt_after_kill": Figure("", "files not whole after a SIGKILL during a save"),
    },
    "uncertainty": {
        "best_ause_l1_3m": Figure("", "single-model method of lowest AUSE-L1, 3 m aside"),
        "best_ause_depth_3m": Figure("", "single-model method of lowest AUSE-depth, 3 m aside"),
        "best_ause_l1_6m": Figure("", "single-model method of lowest AUSE-L1, 6 m aside"),
        "best_ause_depth_6m": Figure("", "single-model method of lowest AUSE-depth, 6 m aside"),
        "block_ause_l1_3m": Figure("", "AUSE-L1 of block EIG, 3 m aside"),
        "block_spearman_3m": Figure(
            "", "Spearman of block EIG and L1 over 8x8 blocks, 3 m aside", "higher"
        ),
        "block_capture10_3m": Figure(
            "",
            "share of the worst tenth of the pixels that block EIG puts in its own, 3 m",
            "higher",
        ),
        "deviation_cov90": Figure(
            "",
            "errors inside the raw 90 % interval of the predicted deviation, held-out frames",
            "higher",
        ),
        "deviation_cov90_calibrated_3m": Figure(
            "", "the same 3 m aside, widened as the other scenes need it", "higher"
        ),
    },
    "fusion": {
        "bad_half_db": Figure(
            "dB",
            "PSNR change of the splats, default plan, where the render was bad before (upper half of the error)",
            "higher",
        ),
        "good_half_db": Figure("dB", "the same where it was good before", "higher"),
        "recorded_db": Figure("dB", "PSNR change of recorded views of the segment", "higher"),
        "refiner_over_reprojection_ucr_db": Figure(
            "dB",
            "PSNR in UCR after the default plan, with the refiner over with reprojection alone",
            "higher",
        ),
        "refiner_over_reprojection_frames_ucr_db": Figure(
            "dB", "the same of the repaired frames before any distillation", "higher"
        ),
        "ucr_db": Figure("dB", "PSNR change in UCR, default plan", "higher"),
        "hpr_db": Figure("dB", "PSNR change in HPR, default plan", "higher"),
        "best_cell": Figure(
            "", "repair and distillation of the cell that gains most in both halves together"
        ),
        "seconds": Figure("s", "repair and distillation with the default plan, per scene"),
    },
}

_PROTOCOL = (500_000, (640, 360))
TARGETS: tuple[Target, ...] = (
    Target("raster", "frame_ms", 36.0, 50.0, *_PROTOCOL),
    Target("raster", "frame_ms", 13.0, 17.0, 100_000, (640, 360)),
    Target("raster", "frame_ms", 75.0, 100.0, 1_000_000, (640, 360)),
    Target("raster", "frame_ms", 62.0, 80.0, 500_000, (1280, 720)),
    Target("raster", "torch_blend_ratio", 300.0, 150.0, *_PROTOCOL),
    Target("raster", "threads_speedup", 1.9, 1.6, *_PROTOCOL),
    Target("raster", "gradient_step_ms", 70.0, 100.0, *_PROTOCOL),
    Target("eig", "eig_ms", 60.0, 80.0, *_PROTOCOL),
    Target("eig", "diag_over_blend", 1.9, 2.3, *_PROTOCOL),
    Target("eig", "block_over_blend", 3.0, 4.0, *_PROTOCOL),
    Target("eig", "fisher_ms", 110.0, 150.0, *_PROTOCOL),
    Target("train", "step_ms", 60.0, 60.0, 200_000, (621, 188)),
    Target("view", "p95_during_fusion_ms", 80.0, 80.0, 200_000, (1280, 720)),
    Target("view", "fps_moving", 8.0, 8.0, 200_000, (1280, 720)),
    Target("view", "fps_during_fusion", 4.0, 4.0, 200_000, (1280, 720)),
)
ANYWHERE: Mapping[str, tuple[float, float]] = {
    "max_rel_error_vs_bruteforce": (1e-4, 1e-4),
    "ratio": (50.0, 25.0),
    "open_and_render_4m_bytes": (6e9, 6e9),
    "bad_half_db": (3.0, 3.0),
    "good_half_db": (0.0, -0.1),
    "recorded_db": (0.0, -0.2),
    "refiner_over_reprojection_ucr_db": (1.0, 1.0),
    **dict.fromkeys(
        (
            "crashes",
            "hangs",
            "memory_excesses",
            "tracebacks",
            "wrong_counts",
            "pickles_executed",
            "paths_read_outside",
            "nonfinite_miscounted",
            "corrupt_after_kill",
        ),
        (0.0, 0.0),
    ),
}
"""Goal and floor of figures that do not depend on the size of the generated street."""


@dataclass(frozen=True)
class Judgement:
    """A figure beside what it should reach."""

    figure: str
    value: Value
    goal: float | None
    floor: float | None
    verdict: Verdict | None
    """None for a figure without a target."""
    protocol: str
    """What the target holds for; empty where it holds anywhere or there is none."""


def judge(
    topic: str,
    figures: Mapping[str, Value],
    gaussians: int,
    size: tuple[int, int],
    threads: int,
) -> list[Judgement]:
    """Every figure of a topic beside its target.

    Args:
        topic: Of `FIGURES`.
        figures: Values by key.
        gaussians: Of the street measured.
        size: Width and height measured, pixels.
        threads: Threads measured.
    """
    out = []
    for key, kind in FIGURES[topic].items():
        value = figures[key]
        if key in ANYWHERE:
            goal, floor = ANYWHERE[key]
            out.append(Judgement(key, value, goal, floor, verdict(value, goal, floor, kind), ""))
            continue
        known = [t for t in TARGETS if (t.topic, t.figure) == (topic, key)]
        fitting = [t for t in known if t.holds_for(gaussians, size, threads)]
        if not known:
            out.append(Judgement(key, value, None, None, None, ""))
            continue
        target = (fitting or known)[0]
        found = verdict(value, target.goal, target.floor, kind) if fitting else "n/a at this size"
        out.append(Judgement(key, value, target.goal, target.floor, found, target.protocol))
    return out


def verdict(value: Value, goal: float, floor: float, kind: Figure) -> Verdict:
    """Where a value stands between goal and floor."""
    if not isinstance(value, (int, float)):
        return "not measured"
    sign = 1 if kind.better == "lower" else -1
    if sign * value <= sign * goal:
        return "meets goal"
    return "meets floor" if sign * value <= sign * floor else "MISSES FLOOR"


def describe_keys() -> str:
    """The keys of every topic, one line each, for --help."""
    lines = []
    for topic, figures in FIGURES.items():
        lines.append(
            f"{topic}: " + "; ".join(f"{k} = {f.meaning}" for k, f in figures.items()) + "."
        )
    return "\n\n".join(lines)
