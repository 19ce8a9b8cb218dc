"""The gate: where repairs show, in which colours, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from faithfusion_studio.cameras import Camera
from faithfusion_studio.repair.base import (
    FrameRepair,
    PixelProvenance,
    RepairBatch,
    RepairerInfo,
    RepairError,
)
from faithfusion_studio.repair.gate import GateConfig, blend_gate, drift, match_colors
from faithfusion_studio.repair.gated import repair_batch, repair_frames

SIZE = (48, 80)


class Fixed:
    """An engine that returns prepared frames."""

    name = "fixed"
    info = RepairerInfo(title="Fixed", summary="Returns what it was given.", licence="none")

    def __init__(self, *frames: FrameRepair) -> None:
        self.frames = frames
        self.closed = False

    def estimate_seconds(self, frames: int, height: int, width: int, device: str = "cpu") -> float:
        return 0.0

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair]:
        try:
            yield from self.frames
        finally:
            self.closed = True


def textured(seed: int = 0) -> torch.Tensor:
    """A smooth random image in [0.2, 0.8]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 9, 15, generator=generator)
    image = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic", align_corners=True)
    return (0.2 + 0.6 * image[0].permute(1, 2, 0)).clamp(0.2, 0.8)


def half_ucr() -> RepairBatch:
    """One frame whose right half is under-constrained."""
    calibrated = torch.full((1, *SIZE), 0.1)
    calibrated[..., 40:] = 0.9
    camera = Camera(torch.eye(4).double(), torch.eye(3).double(), SIZE[1], SIZE[0])
    ones = torch.ones(1, *SIZE)
    return RepairBatch(
        renders=textured()[None],
        alphas=ones,
        depths=10 * ones,
        eig=calibrated,
        calibrated_eig=calibrated,
        coverage=ones.bool(),
        ucr=calibrated >= 0.4,
        cameras=(camera,),
        references=(),
    )


def answer(rgb: torch.Tensor, provenance: int = 1, confidence: float = 0.7) -> FrameRepair:
    """A frame with the same confidence and provenance everywhere."""
    plane = torch.full(SIZE, confidence)
    return FrameRepair(rgb, plane, torch.full(SIZE, provenance, dtype=torch.uint8))


def test_the_gate_is_closed_on_hpr_open_where_uncovered_and_rises_between():
    calibrated = torch.linspace(0, 1, 80).expand(*SIZE).contiguous()
    coverage = torch.ones(SIZE, dtype=torch.bool)
    coverage[:4] = False
    ucr = (calibrated >= 0.4) | ~coverage
    gate = blend_gate(calibrated, ucr, coverage, 0.4, GateConfig())
    assert float(gate[~ucr].max()) == 0
    assert float(gate[:4].min()) == 1
    assert bool((gate[20].diff() >= 0).all())
    assert float(gate[20, -1]) == 1


def test_a_change_of_exposure_is_undone():
    render = textured()
    changed = (render * torch.tensor([0.85, 1.1, 0.95]) + 0.04).clamp(0, 1)
    everywhere = torch.ones(SIZE, dtype=torch.bool)
    matched = match_colors(changed, render, everywhere, GateConfig())
    assert float((matched - render).abs().mean()) < 0.2 * float((changed - render).abs().mean())


def test_colors_are_matched_where_only_half_of_the_image_can_be_compared():
    render = textured()
    changed = 0.9 * render + 0.08
    left = torch.zeros(SIZE, dtype=torch.bool)
    left[:, :40] = True
    matched = match_colors(changed, render, left, GateConfig())
    right = (slice(None), slice(40, None))
    before = (changed - render)[right].abs().mean()
    assert float((matched - render)[right].abs().mean()) < 0.5 * float(before)


def test_sharper_texture_alone_is_left_alone():
    render = textured()
    generator = torch.Generator().manual_seed(1)
    grain = 0.1 * (torch.rand(*SIZE, 1, generator=generator) - 0.5)
    matched = match_colors(render + grain, render, torch.ones(SIZE).bool(), GateConfig())
    assert float((matched - (render + grain)).abs().mean()) < 0.01


def test_without_comparable_pixels_nothing_is_matched_and_nothing_drifts():
    render = textured()
    nowhere = torch.zeros(SIZE, dtype=torch.bool)
    assert torch.equal(match_colors(1 - render, render, nowhere, GateConfig()), 1 - render)
    assert drift(1 - render, render, nowhere, GateConfig()) == 0


def test_a_frame_that_drifts_is_rejected_with_a_sentence_and_stays_the_render():
    batch = half_ucr()
    other = torch.zeros(*SIZE, 3)
    other[::2, :20] = 1.0
    other[24:, 20:] = 1.0
    result = repair_batch(Fixed(answer(other)), batch)
    assert torch.equal(result.rgb, batch.renders)
    assert result.rejected[0] is not None and result.rejected[0].startswith("frame 0 was rejected")
    assert float(result.confidence[batch.ucr].max()) == 0
    assert int(result.pixel_provenance.max()) == int(PixelProvenance.RENDER)


def test_a_frame_that_agrees_is_shown_in_the_ucr_only():
    batch = half_ucr()
    better = (batch.renders[0] + 0.05 * torch.sin(torch.arange(80.0))[None, :, None]).clamp(0, 1)
    result = repair_batch(Fixed(answer(better, provenance=2)), batch)
    assert result.rejected == (None,)
    assert torch.equal(result.rgb[..., :40, :], batch.renders[..., :40, :])
    assert float((result.rgb[0, :, 44:] - better[:, 44:]).abs().mean()) < 0.01
    assert result.pixel_provenance[0, :, 44:].unique().tolist() == [2]
    assert float(result.confidence[0, 0, 79]) == pytest.approx(0.7)
    assert float(result.confidence[0, 0, 0]) == pytest.approx(0.9)


def test_pixels_without_evidence_keep_the_render_and_are_not_believed():
    batch = half_ucr()
    frame = answer(batch.renders[0] * 0.9)
    frame.pixel_provenance[:24] = int(PixelProvenance.RENDER)
    result = repair_batch(Fixed(frame), batch)
    assert torch.equal(result.rgb[0, :24], batch.renders[0, :24])
    assert float(result.confidence[0, :24, 40:].max()) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": torch.full((*SIZE, 3), torch.nan)}, "NaN or infinity in rgb of frame 0"),
        ({"rgb": torch.full((*SIZE, 3), 1.5)}, r"rgb outside \[0, 1\] for frame 0"),
        ({"confidence": torch.full(SIZE, -0.5)}, r"confidence outside \[0, 1\]"),
    ],
)
def test_what_an_engine_returns_is_checked(change, message):
    batch = half_ucr()
    with pytest.raises(RepairError, match=message):
        repair_batch(Fixed(replace(answer(batch.renders[0]), **change)), batch)


def test_frames_of_another_size_are_refused():
    small = FrameRepair(torch.zeros(4, 5, 3), torch.zeros(4, 5), torch.zeros(4, 5).to(torch.uint8))
    with pytest.raises(RepairError, match=r"rgb of shape \(4, 5, 3\)"):
        repair_batch(Fixed(small), half_ucr())


@pytest.mark.parametrize(("count", "message"), [(0, "0 frames instead of 1"), (2, "more than")])
def test_an_engine_must_return_as_many_frames_as_it_got(count, message):
    batch = half_ucr()
    with pytest.raises(RepairError, match=message):
        repair_batch(Fixed(*[answer(batch.renders[0])] * count), batch)


def test_stopping_early_closes_the_engine():
    batch = half_ucr()
    engine = Fixed(answer(batch.renders[0]), answer(batch.renders[0]))
    frames = repair_frames(engine, batch)
    next(frames)
    frames.close()
    assert engine.closed


def test_a_batch_whose_parts_disagree_is_refused():
    batch = half_ucr()
    engine = Fixed(answer(batch.renders[0]))
    with pytest.raises(RepairError, match="1 renders and 2 cameras"):
        repair_batch(engine, replace(batch, cameras=batch.cameras * 2))
    wrong = replace(batch.cameras[0], width=10)
    with pytest.raises(RepairError, match="resize the camera"):
        repair_batch(engine, replace(batch, cameras=(wrong,)))
    with pytest.raises(RepairError, match="renders contains NaN"):
        repair_batch(engine, replace(batch, renders=batch.renders * torch.nan))
