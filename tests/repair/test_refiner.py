"""The refiner starts as the reprojection, stays near the evidence, and its file is checked before use."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wall_world import wall_batch

from faithfusion_studio.repair import refiner_weights
from faithfusion_studio.repair.base import MissingWeightsError, PixelProvenance, RepairError
from faithfusion_studio.repair.gated import repair_batch
from faithfusion_studio.repair.refiner import RefinerRepairer
from faithfusion_studio.repair.refiner_network import (
    CHANNELS,
    FUSED,
    MAX_RESIDUAL,
    RENDER,
    SEEN,
    WIDTHS,
    Refiner,
    refiner_inputs,
)
from faithfusion_studio.repair.refiner_weights import (
    FORMAT,
    load_refiner,
    packaged_weights,
    save_refiner,
)
from faithfusion_studio.repair.registry import create_repairer
from faithfusion_studio.repair.reprojection import ReprojectionRepairer


def shaken(size="S", amount=0.05) -> Refiner:
    """A network whose every weight was moved, so that nothing is zero by construction."""
    network, generator = Refiner(size), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=amount)
    return network.requires_grad_(False)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_refiner(shaken(), path, {"steps": 1})
    return path


def change(path, edit, **header):
    """The file again with other tensors or another header."""
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": FORMAT, "size": "S", **header})


@pytest.mark.parametrize("shape", [(64, 36), (53, 31)])
def test_before_training_it_is_the_reprojection(shape):
    batch = wall_batch(shape)
    refined = repair_batch(RefinerRepairer(Refiner()), batch)
    reprojected = repair_batch(ReprojectionRepairer(), batch)
    seen = reprojected.pixel_provenance == int(PixelProvenance.REPROJECTED)
    assert float(seen[batch.ucr].float().mean()) > 0.9
    assert torch.allclose(refined.rgb[seen], reprojected.rgb[seen], atol=1e-3)


@pytest.mark.parametrize("size", sorted(WIDTHS))
def test_colours_stay_within_reach_of_what_is_known(size):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(1, CHANNELS, 37, 50, generator=generator)
    network = shaken(size, 0.3)
    refined = network(inputs)
    assert refined.rgb.shape == (1, 3, 37, 50) and refined.error.shape == (1, 37, 50)
    assert float(refined.rgb.min()) >= 0 and float(refined.rgb.max()) <= 1
    assert float(refined.error.min()) > 0
    unseen = inputs.clone()
    unseen[:, SEEN], unseen[:, 10] = 0.0, 0.0
    away = (network(unseen).rgb - unseen[:, RENDER]).abs()
    assert 0.01 < float(away.max()) <= MAX_RESIDUAL + 1e-5
    assert torch.equal(network(inputs).rgb, refined.rgb)


def test_what_the_warps_hold_where_nothing_was_seen_is_no_evidence():
    inputs = torch.rand(1, CHANNELS, 32, 48, generator=torch.Generator().manual_seed(1))
    inputs[:, SEEN, :, 24:] = 0.0
    other, network = inputs.clone(), shaken()
    other[:, FUSED, :, 24:], other[:, 6:9, :, 24:] = 0.9, 0.1
    assert torch.equal(network(inputs).rgb[..., :24], network(other).rgb[..., :24])
    other[:, FUSED, :, :24] = 0.9
    assert not torch.equal(network(inputs).rgb[..., :24], network(other).rgb[..., :24])


def test_a_frame_is_refined_alone():
    first, second = torch.rand(2, 1, CHANNELS, 32, 48).unbind(0)
    network = shaken()
    together = network(torch.cat([first, second])).rgb
    assert torch.allclose(together[1:], network(second).rgb, atol=1e-5)


def test_the_network_sees_what_the_reprojection_saw():
    batch = wall_batch()
    frame = next(iter(ReprojectionRepairer().repair(batch)))
    inputs = refiner_inputs(batch, 0, frame)
    assert inputs.shape == (CHANNELS, *batch.ucr.shape[1:])
    assert torch.equal(inputs[RENDER], batch.renders[0].permute(2, 0, 1))
    assert torch.equal(inputs[FUSED], frame.features.fused.permute(2, 0, 1))
    assert float(inputs.abs().max()) < 4
    assert float(inputs[-1][~batch.ucr[0]].max()) == 0


def test_pixels_no_recording_saw_count_as_generated():
    batch = wall_batch()
    half = [
        replace(r, dynamic_mask=torch.arange(r.depth.shape[1]).expand(r.depth.shape) >= 32)
        for r in batch.references
    ]
    later = tuple(replace(c, time=c.time + 0.5) for c in batch.cameras)
    batch = replace(batch, references=tuple(half), cameras=later)
    seen = repair_batch(ReprojectionRepairer(), batch).pixel_provenance > 0
    result = repair_batch(RefinerRepairer(shaken()), batch)
    generated = result.pixel_provenance == int(PixelProvenance.GENERATED)
    hidden = batch.ucr & ~seen & (result.rgb != batch.renders).any(-1)
    assert int(hidden.sum()) > 50 and bool(generated[hidden].all())


@pytest.mark.parametrize("size", sorted(WIDTHS))
def test_weights_come_back_as_half_precision(tmp_path, size):
    network, path = shaken(size), tmp_path / "w.safetensors"
    save_refiner(network, path, {"streets": [1]})
    again = load_refiner(path)
    assert again.size == size and path.stat().st_size < 20e6
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float())


def test_missing_weights_say_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setattr(
        refiner_weights, "packaged_weights", lambda: tmp_path / "refiner.safetensors"
    )
    with pytest.raises(MissingWeightsError, match=r"refiner\.safetensors.*train-refiner") as found:
        create_repairer("refiner")
    assert "\n" not in str(found.value) and str(tmp_path) in str(found.value)


def test_a_file_cut_short_is_refused(weights):
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RepairError, match="cannot be read as weights") as found:
        load_refiner(weights)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "edit, sentence",
    [
        (lambda t: t.update({"stem.bias": torch.zeros(7)}), "stem.bias has shape"),
        (lambda t: t.pop("head.bias"), "lacks the tensor head.bias"),
        (lambda t: t.update({"extra": torch.zeros(1)}), "holds the tensor extra"),
        (lambda t: t["stem.bias"].fill_(torch.nan), "finite"),
    ],
    ids=["shape", "missing", "extra", "nan"],
)
def test_tensors_that_do_not_fit_are_named(weights, edit, sentence):
    change(weights, edit)
    with pytest.raises(RepairError, match=sentence) as found:
        load_refiner(weights)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("header", [{"format": "other"}, {"size": "XL"}, {"size": "M"}])
def test_other_weights_are_not_taken_for_ours(weights, header):
    change(weights, lambda tensors: None, **header)
    with pytest.raises(RepairError, match=str(weights)):
        load_refiner(weights)


def test_the_shipped_weights_load_and_are_small():
    path = packaged_weights()
    assert path.stat().st_size < 20e6
    network = load_refiner()
    assert network.size in WIDTHS and not any(p.requires_grad for p in network.parameters())
    assert float(network.head.weight.abs().max()) > 0
