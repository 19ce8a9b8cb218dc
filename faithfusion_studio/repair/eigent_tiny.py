"""The learned video engine: reprojected clips walked along a bridge by the small EIGent.

Eight frames at a time; the next window begins with frames that the one before has made, which it may not
change, so a long segment does not drift from window to window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.repair.base import (
    FrameRepair,
    PixelProvenance,
    RepairBatch,
    RepairerInfo,
    RepairStep,
)
from faithfusion_studio.repair.clips import Window, plan_windows
from faithfusion_studio.repair.eigent_network import Bridge
from faithfusion_studio.repair.eigent_weights import load_eigent
from faithfusion_studio.repair.refiner_network import (
    ERROR_SCALE,
    GENERATED_FROM,
    Refined,
    refiner_inputs,
    reprojected,
)
from faithfusion_studio.repair.reprojection import ReprojectionRepairer
from faithfusion_studio.repair.velocity_compensation import (
    Compensation,
    compensated,
    gather_evidence,
)

SECONDS_PER_PIXEL = 2.5e-6
"""Of one step of the tiny network, on two CPU threads."""


@dataclass(frozen=True)
class SamplingConfig:
    """How the bridge is walked."""

    steps: int = 1
    """Evaluations of the network, evenly spaced in t from 1; 1 to 4."""
    noise: float = 0.3
    """Standard deviation of the noise at t = 1, colour unit; that of the training."""
    window: int = 8
    """Frames the network sees at once."""
    overlap: int = 2
    """Frames of a window that the one before has made."""
    reference_weight: float = 0.0
    """beta of the reference attention; 0 is the published code."""
    compensation: Compensation = field(default_factory=lambda: Compensation(alpha=0.0))
    """Bends later steps towards the recordings; needs at least two steps."""


INFO = RepairerInfo(
    title="EIGent (tiny)",
    summary="Reprojected clips, cleaned by a small EIG-gated video transformer trained on procedural streets.",
    licence="Apache-2.0, part of this project",
    needs_weights=True,
    video=True,
    depth=True,
)
COMPENSATED = replace(
    INFO,
    title="EIGent (tiny), compensated",
    summary="EIGent (tiny) in two steps, the second bent towards what the recorded views show.",
)
TWO_STEPS = SamplingConfig(steps=2, compensation=Compensation())
"""What the engine eigent-tiny-rvc walks."""


class EigentTinyRepairer:
    """Clips cleaned by the two-branch network; seeded.

    Args:
        network: None loads the weights that come with the program.
        config: How the bridge is walked.
        reprojection: What it stands on; several engines may share one.

    Raises:
        MissingWeightsError: The weights are not there.
        RepairError: They are damaged.
    """

    name = "eigent-tiny"
    info = INFO

    def __init__(
        self,
        network: Bridge | None = None,
        config: SamplingConfig | None = None,
        reprojection: ReprojectionRepairer | None = None,
    ) -> None:
        self.network = load_eigent() if network is None else network
        self.config = config or SamplingConfig()
        self._reprojection = reprojection or ReprojectionRepairer()
        if self.config.compensation.alpha > 0:
            self.name, self.info = "eigent-tiny-rvc", COMPENSATED

    def estimate_seconds(self, frames: int, height: int, width: int, device: str = "cpu") -> float:
        """Expected time, s: the reprojection's and the network's, linear in pixels and steps."""
        config = self.config
        twice = config.window / (config.window - config.overlap) if frames > config.window else 1
        own = SECONDS_PER_PIXEL * config.steps * frames * twice * height * width
        return self._reprojection.estimate_seconds(frames, height, width, device) + own

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair | RepairStep]:
        """The frames of one window after the other; pixels without evidence stay as rendered."""
        config = self.config
        windows = plan_windows(len(batch.cameras), config.window, config.overlap)
        warping = self._reprojection.repair(batch)
        generator = torch.Generator().manual_seed(batch.seed)
        warped: list[FrameRepair] = []
        made: Tensor | None = None
        for window in windows:
            length = window.stop - window.start
            warped = warped[len(warped) - window.overlap :]
            warped += islice(warping, length - window.overlap)
            known = None if made is None else made[len(made) - window.overlap :]
            walk = self._walk(batch, window, warped, known, generator)
            refined = next(walk)
            for step in range(1, config.steps):
                what = f"step {step} of {config.steps} on {length} frames"
                yield RepairStep(step, config.steps, what, length - window.overlap)
                refined = next(walk)
            made = refined.rgb
            for index in range(window.overlap, length):
                yield _frame(warped[index], refined, index)

    def _walk(
        self,
        batch: RepairBatch,
        window: Window,
        warped: list[FrameRepair],
        known: Float[Tensor, "K 3 H W"] | None,
        generator: torch.Generator,
    ) -> Iterator[Refined]:
        """What the frames of a window are, after each step; frames known already keep their colours."""
        config, device = self.config, torch.device(batch.budget.device)
        network = self.network.to(device)
        maps = [refiner_inputs(batch, window.start + t, frame) for t, frame in enumerate(warped)]
        inputs = torch.stack(maps)
        base, fixed = reprojected(inputs), 0
        state = base + config.noise * torch.randn(base.shape, generator=generator)
        if known is not None:
            fixed = len(known)
            state[:fixed] = known
        evidence = None
        if config.compensation.alpha > 0:
            evidence = gather_evidence(batch, warped, window.start, config.compensation)
        for k in range(config.steps):
            t, later = 1 - k / config.steps, 1 - (k + 1) / config.steps
            times = torch.full((1, len(base)), t)
            times[:, :fixed] = 0
            with torch.no_grad():
                refined = network(
                    state[None].to(device),
                    times.to(device),
                    inputs[None].to(device),
                    reference_weight=config.reference_weight,
                )
            refined = Refined(*(part.cpu() for part in refined))
            velocity = (state - refined.rgb) / t
            if evidence is not None:
                velocity = compensated(state, velocity, t, evidence, config.compensation)
            clean = (state - t * velocity).clamp(0, 1)
            if known is not None:
                clean[:fixed] = known
                velocity[:fixed] = 0
            state = state - (t - later) * velocity
            yield refined._replace(rgb=clean)


def _frame(warped: FrameRepair, refined: Refined, index: int) -> FrameRepair:
    """One frame of a window as the contract wants it."""
    nothing = warped.pixel_provenance == int(PixelProvenance.RENDER)
    if bool(nothing.all()):
        return warped
    generated = nothing | (refined.residual[index] > GENERATED_FROM)
    return FrameRepair(
        rgb=refined.rgb[index].permute(1, 2, 0).contiguous(),
        confidence=1 / (1 + (refined.error[index] / ERROR_SCALE).square()),
        pixel_provenance=torch.where(
            generated, int(PixelProvenance.GENERATED), int(PixelProvenance.REPROJECTED)
        ).to(torch.uint8),
        depth=warped.depth,
        features=warped.features,
    )
