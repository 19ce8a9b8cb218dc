"""Hopeless repairs are refused before they start; steps of slow engines pass through untouched."""

from dataclasses import replace

import pytest
import torch
from wall_world import wall_batch

from faithfusion_studio.repair import RepairError, create_repairer, repair_frames, repair_steps
from faithfusion_studio.repair.base import RepairBudget, RepairerInfo, RepairStep
from faithfusion_studio.repair.limits import in_words, refuse_hopeless
from faithfusion_studio.repair.listing import engine_facts
from faithfusion_studio.repair.registry import REPAIRERS


class Slow:
    """An engine that would need ten minutes a frame, and tells its steps."""

    name = "slow"
    info = RepairerInfo("Slow engine", "Waits.", "Apache-2.0", minimum_vram_gib=24.0)

    def __init__(self):
        self.closed = False
        self._inner = create_repairer("reprojection")

    def estimate_seconds(self, frames, height, width, device="cpu"):
        return 600.0 * frames

    def repair(self, batch):
        try:
            for frame in self._inner.repair(batch):
                yield RepairStep(0, 2, "first")
                yield RepairStep(1, 2, "second")
                yield frame
        finally:
            self.closed = True


def test_a_hopeless_segment_is_refused_with_an_alternative():
    with pytest.raises(
        RepairError, match=r"Slow engine on this CPU: about 7 h for 40 frames.*use the engine"
    ):
        refuse_hopeless(Slow(), 40, 90, 160)
    refuse_hopeless(Slow(), 2, 90, 160)


def test_who_wants_to_wait_may(monkeypatch):
    monkeypatch.setenv("FF_STUDIO_PATIENCE", "500")
    refuse_hopeless(Slow(), 40, 90, 160)
    monkeypatch.setenv("FF_STUDIO_PATIENCE", "15")
    with pytest.raises(RepairError, match="--patience MINUTES"):
        refuse_hopeless(Slow(), 2, 90, 160)
    monkeypatch.setenv("FF_STUDIO_PATIENCE", "soon")
    with pytest.raises(RepairError, match="found 'soon'; expected minutes"):
        refuse_hopeless(Slow(), 2, 90, 160)


def test_a_batch_is_refused_unless_its_budget_allows_it():
    batch = wall_batch(frames=4)
    with pytest.raises(RepairError, match="about 40 min for 4 frames"):
        list(repair_frames(Slow(), batch))
    allowed = replace(batch, budget=RepairBudget(seconds=1e6))
    assert len(list(repair_frames(Slow(), allowed))) == 4


def test_too_little_gpu_memory_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (6 * 2**30, 8 * 2**30))
    with pytest.raises(RepairError, match="needs 24 GiB of GPU memory and 6.0 GiB are free"):
        refuse_hopeless(Slow(), 1, 90, 160, "cuda")


def test_steps_come_between_frames_and_closing_there_cancels():
    batch, engine = wall_batch(), Slow()
    kinds = [isinstance(item, RepairStep) for item in repair_steps(engine, batch)]
    assert kinds == [True, True, False] * 2
    assert [f.rejected for f in repair_frames(engine, batch)] == [None, None]
    engine.closed = False
    steps = repair_steps(engine, batch)
    next(steps)
    steps.close()
    assert engine.closed


def test_every_engine_is_told_without_loading_large_weights():
    for name in REPAIRERS:
        facts = engine_facts(name)
        assert facts.info.title and facts.info.licence
        assert facts.seconds is not None and facts.seconds(1, 90, 160, "cpu") > 0
        assert (facts.entry is not None) is (facts.problem is not None)
    with pytest.raises(RepairError, match="no repair engine"):
        engine_facts("magic")


def test_times_are_words():
    assert [in_words(s) for s in (0.2, 20.0, 240.0, 32400.0)] == ["1 s", "20 s", "4 min", "9 h"]
