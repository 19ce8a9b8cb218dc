"""The small EIGent starts as the reprojection; its branch is gated by EIG; its windows and seeds hold."""

import math
from dataclasses import replace

import pytest
import torch
from wall_world import wall_batch

from faithfusion_studio.repair.base import FrameRepair, RepairError, RepairStep
from faithfusion_studio.repair.cascade import CascadeRepairer
from faithfusion_studio.repair.eigent_network import Bridge, EigentConfig, _Windows
from faithfusion_studio.repair.eigent_tiny import EigentTinyRepairer, SamplingConfig
from faithfusion_studio.repair.eigent_weights import load_eigent, packaged_weights, save_eigent
from faithfusion_studio.repair.gated import repair_batch
from faithfusion_studio.repair.refiner import RefinerRepairer
from faithfusion_studio.repair.refiner_network import CHANNELS, EIG, SEEN, Refiner, reprojected
from faithfusion_studio.repair.reprojection import ReprojectionRepairer

SMALL = EigentConfig(width=24, heads=2, layers=3, every=2, patch=4, reach=4)


def clips(frames=3, height=21, width=34, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(2, frames, CHANNELS, height, width, generator=generator)
    inputs[:, :, EIG] *= 0.9
    inputs[:, :, SEEN].clamp_(min=0.01)
    state = torch.rand(2, frames, 3, height, width, generator=generator)
    return state, torch.ones(2, frames), inputs


def shaken(config=SMALL, amount=0.1, branch=True) -> Bridge:
    """A network whose every weight was moved, the branch's injections only when asked."""
    network, generator = Bridge(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if branch or not name.startswith("branch.inject"):
                value.add_(torch.randn(value.shape, generator=generator), alpha=amount)
    return network.requires_grad_(False)


def test_before_training_a_clip_is_the_reprojected_clip():
    state, times, inputs = clips()
    refined = Bridge(SMALL)(state, times, inputs)
    assert torch.equal(refined.rgb, reprojected(inputs.flatten(0, 1)))


def test_a_branch_that_has_learned_nothing_leaves_the_trunk_alone():
    state, times, inputs = clips()
    network = shaken(branch=False)
    alone = network(state, times, inputs, branch=False)
    assert torch.equal(network(state, times, inputs).rgb, alone.rgb)
    changed = shaken()(state, times, inputs).rgb - shaken()(state, times, inputs, branch=False).rgb
    assert float(changed.abs().max()) > 1e-3


def test_tokens_of_extreme_eig_take_nothing_from_the_branch():
    """The polarity of M: the branch carries what is to be kept, the extreme is left to the trunk."""
    state, times, inputs = clips(height=16, width=32)
    network = shaken()
    maps = inputs.clone()
    maps[:, :, EIG, 4:8, 8:12] = 1.0
    tokens, moment = network.trunk.embed(state, maps, times)
    hints = network.branch(tokens, maps, moment, 0.0)
    assert hints[1] is None
    for hint in (hints[0], hints[2]):
        assert hint.shape == (2, 3, 4, 8, SMALL.width)
        silent = (hint == 0).all(-1)
        assert bool(silent[:, :, 1, 2].all()) and int(silent.sum()) == 2 * 3
    everywhere = inputs.clone()
    everywhere[:, :, EIG] = 1.0
    assert torch.equal(
        network(state, times, everywhere).rgb, network(state, times, everywhere, branch=False).rgb
    )


def test_without_regulation_the_reference_counts_as_published():
    state, times, inputs = clips()
    network, middle = shaken(), inputs.clone()
    plain = network(state, times, inputs).rgb
    assert torch.equal(network(state, times, inputs, reference_weight=0.0).rgb, plain)
    regulated = network(state, times, inputs, reference_weight=1.0).rgb
    assert float((regulated - plain).abs().max()) > 1e-4
    middle[:, :, EIG] = 0.5
    unmoved = network(state, times, middle, reference_weight=1.0).rgb
    assert torch.allclose(unmoved, network(state, times, middle).rgb, atol=1e-5)


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_cut_and_join_without_loss_and_hide_what_is_outside(shift):
    x = torch.randn(2, 3, 5, 7, 6)
    windows = _Windows(x, 4, shift)
    cut = windows.cut(x)
    assert cut.shape[1:] == (3 * 4 * 4, 6)
    assert torch.equal(windows.join(cut), x)
    assert windows.valid is not None and int(windows.valid.sum()) == 2 * 3 * 5 * 7
    assert bool((cut[~windows.valid[:, 0, 0]] == 0).all())


def test_attention_reaches_all_frames_and_neighbouring_windows():
    network = shaken()
    state, times, inputs = clips(height=32, width=32)
    state.requires_grad_()
    network(state, times, inputs, branch=False).error[0, 3, 3].backward()
    reached = state.grad[0].abs().amax(1) > 0
    assert all(bool(frame.any()) for frame in reached)
    assert bool(reached[:, :, 16:].any()), (
        "the second block's windows lie across those of the first"
    )
    assert float(state.grad[1].abs().max()) == 0


def test_clips_of_a_batch_do_not_meet():
    state, times, inputs = clips()
    network = shaken(amount=0.03)
    both = network(state, times, inputs).rgb.unflatten(0, (2, 3))
    alone = network(state[1:], times[1:], inputs[1:]).rgb
    assert torch.allclose(both[1], alone, atol=1e-5)


def engine(**config) -> EigentTinyRepairer:
    return EigentTinyRepairer(shaken(amount=0.02), SamplingConfig(**config))


def test_an_untrained_engine_returns_the_reprojection():
    batch = wall_batch((53, 31), frames=3)
    result = repair_batch(EigentTinyRepairer(Bridge(SMALL)), batch)
    expected = repair_batch(ReprojectionRepairer(), batch)
    seen = expected.pixel_provenance > 0
    assert torch.allclose(result.rgb[seen], expected.rgb[seen], atol=1e-3)


def test_windows_begin_with_frames_that_stay_as_they_were_made():
    """Frames of the first window do not know of the second, and the second goes on from them."""
    batch = wall_batch((40, 24), frames=5)
    few = replace(
        batch,
        **{
            name: getattr(batch, name)[:3]
            for name in ("renders", "alphas", "depths", "eig", "calibrated_eig", "coverage", "ucr")
        },
        cameras=batch.cameras[:3],
    )
    made = engine(window=3, overlap=1)
    long, short = repair_batch(made, batch), repair_batch(made, few)
    assert torch.allclose(long.rgb[:3], short.rgb, atol=1e-6) and len(long.rgb) == 5
    apart = engine(window=8, overlap=1)
    assert not torch.equal(repair_batch(apart, batch).rgb[:3], short.rgb)


def test_seed_and_steps_count_and_steps_are_told():
    batch = wall_batch((40, 24), frames=2)
    two = engine(steps=2)
    first = repair_batch(two, batch).rgb
    assert torch.equal(first, repair_batch(two, batch).rgb)
    assert not torch.equal(first, repair_batch(two, replace(batch, seed=7)).rgb)
    items = list(engine(steps=3).repair(batch))
    assert [type(item) for item in items] == [RepairStep, RepairStep, FrameRepair, FrameRepair]
    assert items[0].done == 1 and items[0].total == 3


def test_the_cascade_refines_the_clip_and_keeps_the_sure_pixels():
    batch = wall_batch((40, 24), frames=2)
    video = engine()
    both = CascadeRepairer(video, RefinerRepairer(Refiner()))
    result, alone = repair_batch(both, batch), repair_batch(video, batch)
    assert torch.equal(result.rgb[~batch.ucr], batch.renders[~batch.ucr])
    assert not torch.equal(result.rgb, alone.rgb)
    assert bool((result.pixel_provenance >= alone.pixel_provenance).all())
    assert both.info.video and both.estimate_seconds(8, 90, 160) > video.estimate_seconds(
        8, 90, 160
    )


def test_weights_come_back_as_half_precision(tmp_path):
    network, path = Bridge(), tmp_path / "w.safetensors"
    save_eigent(network, path, {"streets": [1]})
    again = load_eigent(path)
    assert path.stat().st_size < 45e6 and again.config == network.config
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RepairError, match="train-eigent"):
        load_eigent(path)


def test_other_weights_are_not_taken_for_these():
    with pytest.raises(RepairError, match="not weights of this network"):
        load_eigent(packaged_weights().with_name("refiner.safetensors"))


def test_the_shipped_weights_load_and_have_learned():
    network = load_eigent()
    assert packaged_weights().stat().st_size < 45e6
    assert not any(p.requires_grad for p in network.parameters())
    injected = [float(layer.weight.abs().max()) for layer in network.branch.inject]
    assert min(injected) > 0 and math.isfinite(max(injected))


def test_everything_follows_the_network_to_its_device():
    """On the meta device a tensor left behind on the CPU raises."""
    state, times, inputs = (part.to("meta") for part in clips())
    refined = Bridge(SMALL).to("meta")(state, times, inputs, reference_weight=0.5)
    assert refined.rgb.shape == (6, 3, 21, 34) and refined.rgb.device.type == "meta"
