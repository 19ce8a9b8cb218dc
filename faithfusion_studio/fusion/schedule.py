"""The plans a user can look at and edit, as plain numbers; free of torch so that the CLI stays quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Weighting = Literal["eig", "released", "logdet", "uniform"]
"""How much a repaired pixel is believed; see `losses.eig_weight`."""
Profile = Literal["constant", "ramp", "lane-change"]
"""How the offset develops along a segment; see `cameras.offset_profile`."""
Curve = Literal["constant", "sine"]
"""How the weight of repaired views develops over a plan: even, or GenFusion's 0, 1, 0."""
Hold = Literal["free", "repaired", "always"]
"""When recorded Gaussians keep position and orientation: never, while repaired views are learned, always."""
NovelDepth = Literal["none", "points", "consensus"]
"""Depth repaired views are held to: none, recorded points (LiDAR) in view, or what the repair agreed on."""


@dataclass(frozen=True)
class Stage:
    """One widening of the offset: which frames, how far, repaired by what, learned for how long."""

    segment: tuple[int, int]
    """Half-open range of recorded frames."""
    lateral_offset: float
    """m, + = left."""
    engine: str = "reprojection"
    """Key of `repair.REPAIRERS`."""
    steps: int = 200
    """Optimiser steps."""
    weighting: Weighting = "eig"
    """How much each repaired pixel is believed, times the engine's confidence."""
    eig_threshold: float = 0.4
    """tau on calibrated EIG; pixels at or above it may be repaired."""
    profile: Profile = "constant"
    """How the offset develops along the segment."""
    gated: bool = True
    """False lets the repair replace every pixel, whatever its EIG."""
    repair: bool = True
    """False learns on from the frames of the stage before, without repairing anew."""
    strength: float = 1.0
    """Share of the repair that shows where it may, 0..1; the rest stays the render."""
    seed: int = 0
    """Of engines that draw at random."""
    references: tuple[int, ...] = ()
    """Recorded frames the engine may look at; empty lets each view choose the best ones around it."""

    @property
    def label(self) -> str:
        """For people: "+3 m, frames 10-30" (last frame included)."""
        along = "" if self.profile == "constant" else f" ({self.profile.replace('-', ' ')})"
        first, last = self.segment[0], self.segment[1] - 1
        return f"{self.lateral_offset:+g} m{along}, frames {first}-{last}"


@dataclass(frozen=True)
class LearningRates:
    """Adam step sizes per parameter kind, per optimiser step."""

    means: float = 1.6e-4
    """m per metre of scene extent; decays exponentially to 1 % over a reconstruction."""
    log_scales: float = 5e-3
    quats: float = 1e-3
    logit_opacities: float = 5e-2
    sh0: float = 2.5e-3
    shN: float = 1.25e-4
    sky: float = 1e-2
    exposure: float = 1e-3


@dataclass(frozen=True)
class PoseRates:
    """How the poses of box tracks are refined: in the box's own frame, within bounds."""

    step: float = 0.01
    """Adam's step over the bound; decays to a tenth; 0 leaves the poses as annotated."""
    bounds: tuple[float, float, float, float, float, float] = (0.5, 0.5, 0.15, 0.03, 0.03, 0.12)
    """Largest correction along x, y, z (m) and about them (rad)."""
    laser: bool = True
    """Where there are laser sweeps, first register the points of each vehicle between them, within the same bounds."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of one training view."""

    ssim: float = 0.2
    """Share of 1 - SSIM; the rest is L1."""
    opacity: float = 0.001
    """Mean opacity; raising it removes floaters and thins haze."""
    scale: float = 0.005
    """Mean of the standard deviations in units of the scene's voxel; raising it forbids blobs."""
    shape: float = 0.02
    """Penalty on Gaussians longer than `max_aspect` times their middle axis."""
    max_aspect: float = 4.0
    flat: float = 0.0
    """Mean of the smallest standard deviation in the same unit; raising it makes Gaussians lie on surfaces."""
    sky: float = 0.05
    """Opacity before the sky and transparency elsewhere; raising it keeps splats and sky apart."""
    depth: float = 0.1
    """Relative depth error at recorded points."""
    plane: float = 1.0
    """Relative curvature of inverse depth; raising it flattens walls and rounds what is not flat."""
    ground: float = 1.0
    """Relative distance to the fitted road plane, of pixels close to it."""


@dataclass(frozen=True)
class ReconstructionConfig:
    """How a recording is turned into Gaussians."""

    steps: int = 6000
    """Optimiser steps at most."""
    minutes: float | None = None
    """Wall time at most, min; the schedule is stretched or cut to end in time."""
    scale: float = 0.5
    """Training resolution over recorded resolution."""
    holdout_every: int = 8
    """Every n-th frame is never trained on and only measured; 0 trains on all."""
    seed: int = 0
    sh_degree: int = 1
    """Highest SH band; driving data sees each surface from few directions, so low is safer."""
    max_gaussians: int = 150_000
    """Densification stops here."""
    sky_resolution: int = 64
    """Texels along an edge of the sky cube map."""
    exposure: bool = True
    """Fit an affine colour correction per recorded frame."""
    nodes: bool = True
    """Learn each vehicle whose box track moves as a node; else it is smeared into the background."""
    symmetric: bool = False
    """Complete the sides of nodes that no frame saw by mirroring about their length."""
    rates: LearningRates = field(default_factory=LearningRates)
    weights: LossWeights = field(default_factory=LossWeights)
    poses: PoseRates = field(default_factory=PoseRates)


@dataclass(frozen=True)
class FusionConfig:
    """How repaired frames are distilled into an existing scene: the plan of stages, and each step.

    Named sets of values are `presets.PRESETS`; `presets.progressive_stages` makes the stages of a plan.
    """

    offset: float = 3.0
    """Lateral offset to reach, m, + = left."""
    offset_step: float = 3.0
    """m from stage to stage; 0 goes to the offset at once."""
    both_sides: bool = False
    """Also go to the other side, one stage after the other at each distance."""
    profile: Profile = "constant"
    """How the offset develops along each segment."""
    window: int = 60
    """Frames of one stage at most; longer segments are several stages at each offset. Bounds memory."""
    steps: int = 500
    """Optimiser steps of a stage."""
    refresh_steps: tuple[int, ...] = ()
    """Further stages at the offset reached, each repaired anew, with so many steps."""
    pace: float = 1.0
    """Factor on the steps of all stages."""
    engine: str = "reprojection"
    """Key of `repair.REPAIRERS`."""
    late_engine: str = ""
    """Engine of the refreshes; empty for the same (FaithFusion: video early, per frame late)."""
    weighting: Weighting = "eig"
    """How much each repaired pixel is believed, times the engine's confidence."""
    late_weighting: Weighting | None = None
    """The weighting after `late_from` steps; None keeps the first."""
    late_from: int = 0
    """Steps of the plan before the late weighting."""
    eig_threshold: float = 0.4
    """tau on calibrated EIG; pixels at or above it may be repaired."""
    gated: bool = True
    """False lets repairs replace every pixel, whatever its EIG."""
    eig_cap: float = 2.0
    """Nats that count fully in the weighting "logdet"; raising it believes middling pixels less."""
    keep_stages: bool = True
    """Repaired frames of earlier stages are replayed with the newest; False learns the newest only."""
    novel_weight: float = 2.0
    """Factor on the loss of repaired views, whose EIG weights are about one half where they were repaired.

    Chosen as `rate_scale`: 2 instead of 1 gains 0.13 dB on 102 and costs recorded views 0.13.
    """
    novel_curve: Curve = "constant"
    """How that factor develops over the plan."""
    hold: Hold = "free"
    """When recorded Gaussians keep position and orientation."""
    novel_depth: NovelDepth = "none"
    """Depth that repaired views are held to."""
    novel_depth_weight: float = 0.1
    """Factor on the depth loss there, relative to recorded views."""
    evidence: float = 0.5
    """Share of the evidence of a recorded pixel that an accepted repaired one counts, times its confidence."""
    replay: float = 0.5
    """Share of steps that train on recorded frames instead of repaired ones."""
    scale: float = 0.5
    """Resolution of the recorded views replayed, over the recorded resolution."""
    rate_scale: float = 0.5
    """Factor on all learning rates but that of positions, relative to reconstruction.

    Chosen with `means_scale`, `novel_weight` and `steps` on the procedural streets 101 and 102, well trained (480x270, 1800
    steps of reconstruction), true views at +3 m, 500 steps: novel views gain 2.64 and 2.41 dB and recorded ones change
    by +0.08 and -0.19. At 1 and 0.3 they gain 2.79 and 2.52 and cost recorded views -0.37 on 102; a badly trained scene
    (400 steps) hides that, since anything mends it. With 200 steps instead of 500 the bad half of 102 gains 0.9 dB less.
    """
    means_scale: float = 0.1
    """The same for positions: a trained scene's sit at the low end of their decay."""
    warm_up: int = 20
    """Steps over which the learning rates rise to their value."""
    densify: bool = False
    """Split and clone where repaired views pull hardest."""
    generated_confidence: float = 0.5
    """Extra factor on pixels that were generated rather than reprojected."""
    spawn: int = 20_000
    """At most this many Gaussians are added where repaired pixels have no splats behind them."""
    psnr_every: int = 25
    """Measure recorded views every so many steps."""
    rates: LearningRates = field(default_factory=LearningRates)
    weights: LossWeights = field(default_factory=LossWeights)


@dataclass(frozen=True)
class Progress:
    """Where a long job stands after one step."""

    step: int
    steps: int
    loss: float
    psnr_recorded: float
    """PSNR of recorded training views, dB; NaN where it was not measured at this step."""
    num_gaussians: int
    num_generated: int
    seconds_left: float
    trusted_moved: float = float("nan")
    """Share of the pixels that needed no repair and look different now, 0..1; NaN where not measured."""
