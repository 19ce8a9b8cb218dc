"""The chains that are compared: repair times distillation, progressive against a jump, plans against each other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from faithfusion_studio.bench.fusion.cases import FusionCase
from faithfusion_studio.bench.fusion.scoring import Scorer
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.presets import PRESETS, preset, progressive_stages
from faithfusion_studio.fusion.progressive import FusionPlan, Progression
from faithfusion_studio.fusion.repairing import RepairedFrame, repair_cameras
from faithfusion_studio.fusion.schedule import FusionConfig, Stage, Weighting

REPAIRS = ("none", "ungated", "gated")
DISTILLATIONS: tuple[Weighting, ...] = ("uniform", "released", "eig")
GRID, FRAMES, PLANS, BUDGET = (
    "repair x distillation",
    "repaired frames",
    "plans",
    "plans, equal steps",
)
"""Groups of rows."""


@dataclass(frozen=True)
class Chain:
    """What made a row of the table."""

    group: str
    engine: str
    repair: str
    """"none", "ungated" or "gated"."""
    distillation: str
    """A weighting; "" for repaired frames that were not distilled."""
    plan: str = "jump"


@dataclass(frozen=True, eq=False)
class ChainScore:
    """One chain on one case."""

    chain: Chain
    case: FusionCase
    values: Mapping[str, float]


class Chains:
    """Runs the chains of one case; frames repaired alike are repaired once.

    Args:
        case: What is fused.
        scorer: Of the same case.
        base: Values of all plans that are not the plan's own.
        say: Told what is being done.
    """

    def __init__(
        self, case: FusionCase, scorer: Scorer, base: FusionConfig, say: Callable[[str], None]
    ) -> None:
        self._case, self._scorer, self._base, self._say = case, scorer, base, say
        self._repaired: dict[tuple[str, bool], tuple[list[RepairedFrame], float]] = {}

    def grid(self, engine: str, repairs: Sequence[str] = REPAIRS) -> Iterator[ChainScore]:
        """Every repair with every distillation, in one stage."""
        for repair in repairs:
            for weighting in DISTILLATIONS:
                yield self._in_one_stage(engine, repair, weighting)

    def best_cell(self, engine: str) -> ChainScore:
        """Gated and weighted by EIG."""
        return self._in_one_stage(engine, "gated", "eig")

    def frames(self, engine: str) -> ChainScore:
        """The repaired pictures themselves at the true views, nothing distilled."""
        from faithfusion_studio.repair import create_repairer

        case, started = self._case, time.perf_counter()
        cameras = [view.camera for view in case.views]
        size = (cameras[0].width, cameras[0].height)
        found = repair_cameras(
            case.scene,
            self._stage(engine, gated=True, weighting="eig"),
            create_repairer(engine),
            cameras,
            range(len(cameras)),
            size=size,
        )
        frames = [frame.repaired for frame in found if isinstance(frame, RepairedFrame)]
        values = self._scorer.score_images(frames)
        chain = Chain(FRAMES, engine, "gated", "")
        return ChainScore(chain, case, {**values, "seconds": time.perf_counter() - started})

    def plans(self, engine: str) -> Iterator[ChainScore]:
        """Every named plan to the case's offset, its steps shortened so that all take as many as the default."""
        pace = self._base.pace
        goal = sum(s.steps for s in self._stages(self._plan_config("default", engine), pace))
        for name in PRESETS:
            config = self._plan_config(name, engine)
            own = sum(s.steps for s in self._stages(config, 1.0))
            yield self._whole_plan(BUDGET, name, config, goal / own)

    def default_plan(self, engine: str) -> ChainScore:
        """The default plan with its own steps."""
        config = self._plan_config("default", engine)
        return self._whole_plan(PLANS, "default", config, self._base.pace)

    # ------------------------------------------------------------------------------------ parts

    def _plan_config(self, name: str, engine: str) -> FusionConfig:
        return replace(preset(name), offset=self._case.offset, engine=engine)

    def _stages(self, config: FusionConfig, pace: float) -> tuple[Stage, ...]:
        return progressive_stages(replace(config, pace=pace), self._case.segment)

    def _stage(self, engine: str, *, gated: bool, weighting: Weighting) -> Stage:
        return Stage(
            segment=self._case.segment,
            lateral_offset=self._case.offset,
            engine=engine,
            steps=max(1, round(self._base.steps * self._base.pace)),
            weighting=weighting,
            eig_threshold=self._base.eig_threshold,
            gated=gated,
        )

    def _in_one_stage(self, engine: str, repair: str, weighting: Weighting) -> ChainScore:
        frames, seconds = self._frames(engine, repair)
        started = time.perf_counter()
        stage = self._stage(engine, gated=repair == "gated", weighting=weighting)
        plan = FusionPlan((stage,), self._base)
        work = Progression(self._case.scene, plan, frames=frames)
        moved = math.nan
        for event in work.run():
            if event.progress is not None and math.isfinite(event.progress.trusted_moved):
                moved = event.progress.trusted_moved
        seconds += time.perf_counter() - started
        shown = "-" if repair == "none" else engine
        self._say(f"{self._case.name}: {shown}, {repair} repair, {weighting}")
        values = self._scorer.score(work.scene)
        values |= {"seconds": seconds, "trusted_moved": moved}
        return ChainScore(Chain(GRID, shown, repair, weighting), self._case, values)

    def _frames(self, engine: str, repair: str) -> tuple[list[RepairedFrame], float]:
        """Frames to distil; without repair the renders themselves, believed everywhere."""
        gated = repair != "ungated"
        if (engine, gated) not in self._repaired:
            from faithfusion_studio.fusion.parts import repair as repair_stage

            started = time.perf_counter()
            stage = self._stage(engine, gated=gated, weighting="eig")
            steps = repair_stage(self._case.scene, stage)
            frames = [frame for frame in steps if isinstance(frame, RepairedFrame)]
            self._repaired[engine, gated] = frames, time.perf_counter() - started
        frames, seconds = self._repaired[engine, gated]
        if repair != "none":
            return frames, seconds
        return [_unrepaired(frame) for frame in frames], 0.0

    def _whole_plan(self, group: str, name: str, config: FusionConfig, pace: float) -> ChainScore:
        started = time.perf_counter()
        stages = self._stages(config, pace)
        work = Progression(self._case.scene, FusionPlan(stages, config))
        moved = math.nan
        for event in work.run():
            if event.progress is not None and math.isfinite(event.progress.trusted_moved):
                moved = event.progress.trusted_moved
        seconds = time.perf_counter() - started
        self._say(f"{self._case.name}: plan {name}, {len(stages)} stages, {seconds:.0f} s")
        values = self._scorer.score(work.scene)
        values |= {"seconds": seconds, "trusted_moved": moved}
        values["steps"] = float(sum(stage.steps for stage in stages))
        repair = "gated" if config.gated else "ungated"
        chain = Chain(group, config.engine, repair, config.weighting, name)
        return ChainScore(chain, self._case, values)


def _unrepaired(frame: RepairedFrame) -> RepairedFrame:
    """The frame as rendered, every pixel of it believed."""
    return replace(
        frame,
        repaired=frame.rendered,
        confidence=torch.ones_like(frame.confidence),
        pixel_provenance=torch.zeros_like(frame.pixel_provenance),
        accepted=True,
    )


def usable_engines(asked: Sequence[str]) -> tuple[list[str], list[str]]:
    """Engines that can run here, and a sentence for each that cannot.

    Args:
        asked: Names; empty for all that are known.

    Raises:
        RepairError: A name that is none was asked for.
    """
    from faithfusion_studio.repair import REPAIRERS, create_repairer

    names, problems = [], []
    for name in asked or REPAIRERS:
        try:
            create_repairer(name)
        except StudioError as error:
            if name not in REPAIRERS:
                raise
            problems.append(f"engine {name} was left out: {error}")
            continue
        names.append(name)
    return names, problems
