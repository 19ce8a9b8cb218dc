"""The learned engine: reprojection, then one pass of a small network trained by this project.

One step, no noise, frame by frame: what steadies it in time is that the same recorded pixels are warped
into neighbouring frames. Its weights come from procedural streets only.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from faithfusion_studio.repair.base import FrameRepair, PixelProvenance, RepairBatch, RepairerInfo
from faithfusion_studio.repair.refiner_network import (
    ERROR_SCALE,
    GENERATED_FROM,
    Refiner,
    refiner_inputs,
)
from faithfusion_studio.repair.refiner_weights import load_refiner
from faithfusion_studio.repair.reprojection import ReprojectionRepairer

SECONDS_PER_PIXEL = {"S": 5e-7, "M": 7e-6}
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
        depth=True,
    )

    def __init__(
        self, network: Refiner | None = None, reprojection: ReprojectionRepairer | None = None
    ) -> None:
        self.network = load_refiner() if network is None else network
        self._reprojection = reprojection or ReprojectionRepairer()

    def estimate_seconds(self, frames: int, height: int, width: int, device: str = "cpu") -> float:
        """Expected time, s: the reprojection's and the network's, linear in pixels."""
        own = SECONDS_PER_PIXEL[self.network.size] * frames * height * width
        return self._reprojection.estimate_seconds(frames, height, width, device) + own

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair]:
        """One refined frame after the other; a frame that no recording sees stays as rendered."""
        device = torch.device(batch.budget.device)
        network = self.network.to(device)
        for t, frame in enumerate(self._reprojection.repair(batch)):
            if bool((frame.pixel_provenance == int(PixelProvenance.RENDER)).all()):
                yield frame
                continue
            with torch.no_grad():
                refined = network(refiner_inputs(batch, t, frame)[None].to(device))
            error, residual = refined.error[0].cpu(), refined.residual[0].cpu()
            generated = (frame.pixel_provenance == int(PixelProvenance.RENDER)) | (
                residual > GENERATED_FROM
            )
            yield FrameRepair(
                rgb=refined.rgb[0].cpu().permute(1, 2, 0).contiguous(),
                confidence=1 / (1 + (error / ERROR_SCALE).square()),
                pixel_provenance=torch.where(
                    generated, int(PixelProvenance.GENERATED), int(PixelProvenance.REPROJECTED)
                ).to(torch.uint8),
                depth=frame.depth,
                features=frame.features,
            )
