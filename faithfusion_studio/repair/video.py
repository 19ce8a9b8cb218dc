"""What the video engines share: a batch as a clip at the model's size, its windows, and frames out of it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.repair.base import (
    FrameRepair,
    PixelProvenance,
    RepairBatch,
    Repairer,
    RepairStep,
)
from faithfusion_studio.repair.clips import Letterbox, Window, crossfade, mapped_eig, plan_windows
from faithfusion_studio.repair.difix import agreement
from faithfusion_studio.repair.reprojection import ReprojectionRepairer


@dataclass(frozen=True, eq=False)
class Clip:
    """A lead-in and the frames to repair, one after the other, at the model's size."""

    renders: Float32[Tensor, "N 3 MH MW"]
    eig: Float32[Tensor, "N MH MW"]
    """Mapped to [0, 1]; 0 on frames that are known."""
    ucr: Bool[Tensor, "N MH MW"]
    cues: Float32[Tensor, "N 3 MH MW"]
    """Per-frame repairs, aligned with the renders."""
    lead: int
    """How many frames only lead in."""
    box: Letterbox


class Cues:
    """Per-frame repairs that show a video model what to aim at.

    Args:
        engine: Makes them, such as Difix; None takes the reprojection.
    """

    def __init__(self, engine: Repairer | None = None) -> None:
        self._engine = engine
        self._reprojection = ReprojectionRepairer()

    def seconds(self, frames: int, height: int, width: int, device: str) -> float:
        """Expected time, s."""
        warping = self._reprojection.estimate_seconds(frames, height, width, device)
        if self._engine is None:
            return warping
        return warping + self._engine.estimate_seconds(frames, height, width, device)

    def frames(self, batch: RepairBatch) -> Iterator[tuple[Tensor, FrameRepair] | RepairStep]:
        """Per frame the cue [H, W, 3] and the reprojection, and the engine's steps between them."""
        cues = None if self._engine is None else self._engine.repair(batch)
        for warped in self._reprojection.repair(batch):
            if cues is None:
                yield warped.rgb, warped
                continue
            for item in cues:
                if isinstance(item, FrameRepair):
                    yield item.rgb, warped
                    break
                yield item


def build_clip(
    batch: RepairBatch, cues: Cues, size: tuple[int, int], eig_cap: float | None
) -> Generator[RepairStep, None, tuple[Clip, list[FrameRepair]]]:
    """The clip of a batch, and the reprojection of each of its frames.

    The first frame becomes the recorded image where there is one; its EIG is 0.

    Args:
        batch: With or without a lead-in.
        cues: What is shown beside the render.
        size: Height and width of the model's pictures.
        eig_cap: Of the released mapping; None takes calibrated EIG.
    """
    box = Letterbox(*batch.renders.shape[1:3], *size)
    lead = 0 if batch.lead_in is None else len(batch.lead_in.cameras)
    parts = [batch] if batch.lead_in is None else [batch.lead_in, batch]
    shown: list[Tensor] = []
    warped: list[FrameRepair] = []
    for part in parts:
        for item in cues.frames(part):
            if isinstance(item, RepairStep):
                yield item
            else:
                shown.append(item[0])
                warped.append(item[1])
    renders = torch.cat([part.renders for part in parts]).permute(0, 3, 1, 2)
    eig = torch.cat([_shown_eig(part, eig_cap) for part in parts])
    ucr = torch.cat([part.ucr for part in parts])
    if batch.anchor is not None and lead:
        # Only a lead-in begins at the recorded pose, so that the recorded image fits its first frame.
        renders = torch.cat([batch.anchor.permute(2, 0, 1)[None], renders[1:]])
        eig = torch.cat([torch.zeros_like(eig[:1]), eig[1:]])
        ucr = torch.cat([torch.zeros_like(ucr[:1]), ucr[1:]])
    clip = Clip(
        renders=box.put(renders),
        eig=box.put(eig[:, None])[:, 0],
        ucr=box.put(ucr[:, None].to(torch.float32))[:, 0] > 0.5,
        cues=box.put(torch.stack(shown).permute(0, 3, 1, 2)),
        lead=lead,
        box=box,
    )
    return clip, warped[lead:]


def _shown_eig(batch: RepairBatch, cap: float | None) -> Tensor:
    if cap is None:
        return torch.where(batch.coverage, batch.calibrated_eig, 1.0)
    return mapped_eig(
        batch.eig if batch.released_eig is None else batch.released_eig, batch.coverage, cap
    )


def windowed(
    clip: Clip, made: Float32[Tensor, "M 3 MH MW"] | None, window: Window, size: int
) -> tuple[Clip, int]:
    """One window of a clip, filled to the model's length by repeating its last frame.

    Frames that the window before has made are shown as known: the made pictures, with EIG 0.

    Args:
        clip: The whole.
        made: Everything made so far.
        window: Which frames.
        size: The model's length.

    Returns:
        The window and how many of its frames are real.
    """
    index = torch.arange(window.start, window.stop)
    count = len(index)
    index = torch.cat([index, index[-1:].expand(max(0, size - count))])
    renders, eig, ucr = (
        clip.renders[index].clone(),
        clip.eig[index].clone(),
        clip.ucr[index].clone(),
    )
    if made is not None and window.overlap:
        renders[: window.overlap] = made[window.start : window.start + window.overlap]
        eig[: window.overlap], ucr[: window.overlap] = 0.0, False
    return Clip(renders, eig, ucr, clip.cues[index], 0, clip.box), count


def joined(
    made: Float32[Tensor, "M 3 MH MW"] | None, new: Float32[Tensor, "K 3 MH MW"], window: Window
) -> Float32[Tensor, "L 3 MH MW"]:
    """Everything made so far with one more window, faded over the frames both hold."""
    if made is None:
        return new
    fade = crossfade(
        made[window.start :].permute(0, 2, 3, 1), new[: window.overlap].permute(0, 2, 3, 1)
    )
    return torch.cat([made[: window.start], fade.permute(0, 3, 1, 2), new[window.overlap :]])


def finished(
    clip: Clip,
    made: Float32[Tensor, "N 3 MH MW"],
    warped: list[FrameRepair],
    notes: tuple[str, ...],
) -> Iterator[FrameRepair]:
    """The frames after the lead-in, at the size of the batch."""
    pictures = clip.box.take(made[clip.lead :]).permute(0, 2, 3, 1)
    for picture, frame in zip(pictures, warped, strict=True):
        assert frame.features is not None
        yield FrameRepair(
            rgb=picture.contiguous(),
            confidence=agreement(picture, frame.features),
            pixel_provenance=torch.full(
                picture.shape[:2], int(PixelProvenance.GENERATED), dtype=torch.uint8
            ),
            depth=frame.depth,
            features=frame.features,
            notes=notes,
        )


def clip_windows(clip: Clip, size: int, overlap: int) -> tuple[Window, ...]:
    """Windows over a clip with its lead-in."""
    return plan_windows(len(clip.renders), size, min(overlap, size - 1))
