"""The learned engine: reprojection, then one pass of a small network trained by this project.

One step, no noise. Two things steady it in time: the same recorded pixels are warped into neighbouring
frames, and the network's attention over eight frames, in a window that slides with the frames, so that a
segment of any length has no seams and takes the memory of a window. Its weights come from procedural
streets only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from faithfusion_studio.repair.base import FrameRepair, PixelProvenance, RepairBatch, RepairerInfo
from faithfusion_studio.repair.refiner_network import (
    ERROR_SCALE,
    GENERATED_FROM,
    Look,
    Refiner,
    refiner_inputs,
)
from faithfusion_studio.repair.refiner_weights import load_refiner
from faithfusion_studio.repair.reprojection import ReprojectionRepairer
from faithfusion_studio.repair.temporal_attention import AHEAD, BEHIND, View

SECONDS_PER_PIXEL = {"S": 1e-6, "M": 8e-6}
"""Of the network alone, on two CPU threads."""


class RefinerRepairer:
    """Reprojection corrected by the network; deterministic.

    Args:
        network: None loads the weights that come with the program.
        reprojection: What it stands on; several engines may share one.

    Raises:
        MissingWeightsError: They are not there.
        RepairError: They are damaged.
    """

    name = "refiner"
    info = RepairerInfo(
        title="Refiner",
        summary="Reprojection, corrected by a small network trained on procedural streets.",
        licence="Apache-2.0, part of this project",
        needs_weights=True,
        video=True,
        window=24,
        context=(BEHIND, AHEAD),
        depth=True,
    )

    def __init__(
        self, network: Refiner | None = None, reprojection: ReprojectionRepairer | None = None
    ) -> None:
        self.network = load_refiner() if network is None else network
        self._reprojection = reprojection or ReprojectionRepairer()

    def estimate_seconds(self, frames: int, height: int, width: int, device: str = "cpu") -> float:
        """Expected time, s: the reprojection's and the network's, linear in pixels.

        Neighbours that windows share are seen in both.
        """
        seen = frames + (BEHIND + AHEAD) * ((frames - 1) // self.info.window)
        own = SECONDS_PER_PIXEL[self.network.size] * seen * height * width
        return self._reprojection.estimate_seconds(seen, height, width, device) + own

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair]:
        """One refined frame after the other; a frame that no recording sees stays as rendered."""
        network = self.network.to(batch.budget.device)
        warped = enumerate(self._reprojection.repair(batch))
        window: dict[int, _Seen] = {}
        for t in range(len(batch.cameras)):
            window.pop(t - BEHIND - 1, None)
            while max(window, default=-1) < min(t + AHEAD, len(batch.cameras) - 1):
                index, frame = next(warped)
                window[index] = _Seen(frame, _look(network, batch, index, frame))
            yield _steadied(network, t, window)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A frame of the window."""

    warped: FrameRepair
    look: Look | None
    """None where no recording sees it."""


def _look(network: Refiner, batch: RepairBatch, t: int, warped: FrameRepair) -> Look | None:
    """What the network makes of a frame alone."""
    if bool((warped.pixel_provenance == int(PixelProvenance.RENDER)).all()):
        return None
    camera, device = batch.cameras[t], batch.budget.device
    moving = None if batch.moving is None else batch.moving[t : t + 1].to(device)
    with torch.no_grad():
        return network.look(
            refiner_inputs(batch, t, warped)[None].to(device),
            View(camera.K[None].double(), camera.camtoworld[None].double()),
            moving,
        )


def _steadied(network: Refiner, t: int, window: dict[int, _Seen]) -> FrameRepair:
    """A frame of the window as its neighbours steady it."""
    own = window[t]
    frame = own.warped
    if own.look is None:
        return frame
    others = [(s - t, seen.look) for s, seen in window.items() if s != t and seen.look is not None]
    with torch.no_grad():
        refined = network.steady(own.look, others)
    error, residual = refined.error[0].cpu(), refined.residual[0].cpu()
    nothing = frame.pixel_provenance == int(PixelProvenance.RENDER)
    return FrameRepair(
        rgb=refined.rgb[0].cpu().permute(1, 2, 0).contiguous(),
        confidence=1 / (1 + (error / ERROR_SCALE).square()),
        pixel_provenance=torch.where(
            nothing | (residual > GENERATED_FROM),
            int(PixelProvenance.GENERATED),
            int(PixelProvenance.REPROJECTED),
        ).to(torch.uint8),
        depth=frame.depth,
        features=frame.features,
    )
