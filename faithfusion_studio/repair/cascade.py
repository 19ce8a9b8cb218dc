"""Two engines one after the other: a clip as a whole first, then each of its frames alone.

The per-frame pass sees the clip's frames where the renders were, so what the video engine agreed on is
what it starts from; its own gate keeps what the first pass may not touch.

Source: FaithFusion, video pass early and per-frame pass late.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from faithfusion_studio.repair.base import (
    FrameRepair,
    PixelProvenance,
    RepairBatch,
    Repairer,
    RepairerInfo,
    RepairStep,
)
from faithfusion_studio.repair.gated import repair_steps
from faithfusion_studio.repair.registry import create_repairer


class CascadeRepairer:
    """A video engine, then a per-frame engine on its gated frames.

    Args:
        video: The first; None takes eigent-tiny.
        frames: The second; None takes the refiner.

    Raises:
        MissingWeightsError: One of them has no weights here.
    """

    name = "cascade"

    def __init__(self, video: Repairer | None = None, frames: Repairer | None = None) -> None:
        self.video = create_repairer("eigent-tiny") if video is None else video
        self.frames = create_repairer("refiner") if frames is None else frames
        first, second = self.video.info, self.frames.info
        self.info = RepairerInfo(
            title=f"{first.title}, then {second.title}",
            summary=f"The whole clip by {first.title}, then each frame by {second.title}.",
            licence="; ".join(dict.fromkeys((first.licence, second.licence))),
            needs_weights=first.needs_weights or second.needs_weights,
            references=first.references or second.references,
            video=True,
            depth=second.depth,
            minimum_vram_gib=max(first.minimum_vram_gib, second.minimum_vram_gib),
        )

    def estimate_seconds(self, frames: int, height: int, width: int, device: str = "cpu") -> float:
        """Expected time, s: of both."""
        return sum(
            engine.estimate_seconds(frames, height, width, device)
            for engine in (self.video, self.frames)
        )

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair | RepairStep]:
        """The frames of the second pass; a step for each of the first."""
        first = replace(batch, budget=replace(batch.budget, seconds=None))
        made: list[FrameRepair] = []
        for item in repair_steps(self.video, first):
            if isinstance(item, FrameRepair):
                made.append(item)
            else:
                yield item
        second = replace(first, renders=torch.stack([frame.rgb for frame in made]), lead_in=None)
        count = 0
        for item in self.frames.repair(second):
            if isinstance(item, RepairStep):
                yield item
                continue
            yield _both(made[count], item)
            count += 1


def _both(first: FrameRepair, second: FrameRepair) -> FrameRepair:
    """The second pass's frame; a pixel is as generated, and as well believed, as the two passes say."""
    nothing = second.pixel_provenance == int(PixelProvenance.RENDER)
    return replace(
        second,
        confidence=torch.where(nothing, first.confidence, second.confidence),
        pixel_provenance=torch.maximum(first.pixel_provenance, second.pixel_provenance),
        notes=(*first.notes, *second.notes),
    )
