"""Row edits: values, optimiser state and provenance follow the change of topology."""

import gc

import pytest
import torch

from faithfusion_studio.fusion.densify import GradientDensify, initial_state
from faithfusion_studio.fusion.parameters import KINDS, GaussianParameters, bytes_per_gaussian
from faithfusion_studio.fusion.schedule import LearningRates, LossWeights
from faithfusion_studio.fusion.trainer import compose_changes
from faithfusion_studio.gaussians import Gaussians, Provenance, TopologyChange


def make_gaussians(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return Gaussians(
        means=normal(count, 3),
        log_scales=normal(count, 3) * 0.2 - 2,
        quats=normal(count, 4),
        logit_opacities=normal(count),
        sh0=normal(count, 1, 3),
        shN=normal(count, 3, 3) * 0.1,
        provenance=torch.zeros(count, dtype=torch.uint8),
    )


def random_gradients(parameters, seed=3):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(v.shape, generator=g) for name, v in parameters.leaves().items()}


def _stepped(count=12, capacity=0):
    rates = LearningRates()
    parameters = GaussianParameters(
        make_gaussians(count), rates, means_rate=1e-3, capacity=capacity
    )
    parameters.step(random_gradients(parameters))
    return parameters


def test_rows_and_moments_follow_the_source():
    parameters = _stepped()
    before = {kind: parameters[kind].clone() for kind in KINDS}
    moments = parameters.moments()
    source = torch.tensor([3, 0, 7, 3])
    is_new = torch.tensor([False, False, False, True])
    parameters.edit_rows(TopologyChange(source, is_new), {}, int(Provenance.REPAIRED))
    for kind in KINDS:
        assert torch.equal(parameters[kind], before[kind][source])
        now = parameters.moments()[kind]["exp_avg"]
        assert torch.equal(now[:3], moments[kind]["exp_avg"][source[:3]])
        assert torch.equal(now[3], torch.zeros_like(now[3]))
    assert parameters.provenance.tolist() == [0, 0, 0, int(Provenance.REPAIRED)]
    assert parameters.clocks.tolist() == [[1, 1], [1, 1], [1, 1], [0, 0]]
    assert torch.allclose(parameters.scales, parameters["log_scales"].exp())
    assert torch.allclose(parameters.opacities, parameters["logit_opacities"].sigmoid())


def test_a_snapshot_is_not_written_by_later_steps():
    parameters = _stepped()
    snapshot = parameters.snapshot()
    frozen = snapshot.means.clone()
    parameters.step(random_gradients(parameters))
    assert torch.equal(snapshot.means, frozen)
    assert not torch.equal(parameters["means"], frozen)


def test_restored_moments_continue_bit_equal():
    runs = []
    for interrupted in (False, True):
        parameters = _stepped()
        if interrupted:
            again = GaussianParameters(parameters.snapshot(), LearningRates(), means_rate=1e-3)
            again.restore_moments(parameters.moments())
            parameters = again
        parameters.step(random_gradients(parameters, seed=5))
        runs.append(parameters.snapshot())
    assert torch.equal(runs[0].means, runs[1].means)
    assert torch.equal(runs[0].sh0, runs[1].sh0)


def test_appended_rows_keep_their_own_provenance():
    parameters = _stepped(5)
    extra = make_gaussians(3, seed=4)
    change = parameters.append(extra)
    assert len(parameters) == 8
    assert change.is_new.tolist() == [False] * 5 + [True] * 3
    assert torch.equal(parameters["means"][5:], extra.means)


def test_growth_respects_the_limit_and_takes_the_strongest():
    parameters = _stepped(20)
    policy = GradientDensify(extent=100.0, max_gaussians=23, prune_opacity=0.0, prune_scale=10.0)
    state = initial_state(20)
    state.count += 1
    state.gradient = torch.linspace(0, 1, 20)
    change = policy.update(parameters, state, torch.Generator().manual_seed(0))
    assert len(parameters) == 23
    assert set(change.source[change.is_new].tolist()) == {17, 18, 19}


def test_transparent_gaussians_are_dropped_and_splits_shrink():
    parameters = _stepped(6)
    parameters["logit_opacities"][2] = -20.0
    parameters["log_scales"][4] = 1.0
    parameters.refresh()
    before = parameters["log_scales"][4].clone()
    policy = GradientDensify(extent=20.0, max_gaussians=100, prune_scale=0.9)
    state = initial_state(6)
    state.count += 1
    state.gradient[4] = 1.0
    change = policy.update(parameters, state, torch.Generator().manual_seed(0))
    assert 2 not in change.source.tolist()
    assert change.source.tolist().count(4) == 2
    halves = parameters["log_scales"][change.source == 4]
    assert bool((halves < before).all())


@pytest.mark.parametrize("seed", range(6))
def test_growth_and_pruning_leave_every_other_row_where_it_is(seed):
    g = torch.Generator().manual_seed(seed)
    parameters = _stepped(60, capacity=100)
    parameters["logit_opacities"][torch.rand(60, generator=g) < (0.05, 0.4)[seed % 2]] = -20.0
    parameters.refresh()
    state = initial_state(60)
    state.count += 1
    state.gradient = torch.rand(60, generator=g)
    before, dropped = parameters.snapshot(), parameters.opacities < 0.01
    storage = parameters["means"].data_ptr()
    policy = GradientDensify(
        extent=20.0, max_gaussians=70, gradient_threshold=0.6, prune_scale=9.0, split_scale=0.01
    )
    change = policy.update(parameters, state, g)
    after, source = parameters.snapshot(), change.source
    assert parameters["means"].data_ptr() == storage
    assert len(after) == len(source) == len(change.is_new) <= 70
    kept = ~change.is_new
    for kind in KINDS:
        assert torch.equal(getattr(after, kind)[kept], getattr(before, kind)[source[kept]])
    # Each surviving row that did not split is there once; what moved only filled the gap of a dropped row.
    survivors = source[kept].tolist()
    split = set(source[change.is_new].tolist()) - set(survivors)
    expected = set((~dropped).nonzero().squeeze(-1).tolist()) - split
    assert set(survivors) == expected and len(survivors) == len(expected)
    moved = (source != torch.arange(len(source))) & kept
    assert int(moved.sum()) <= int(dropped.sum())
    assert bool(dropped[torch.arange(len(source))[moved]].all())
    assert all(source.tolist().count(row) == 2 for row in split)


def test_growth_beyond_the_room_keeps_everything():
    parameters = _stepped(5)
    before, clocks = parameters.snapshot(), parameters.clocks.clone()
    parameters.append(make_gaussians(40, seed=9))
    assert torch.equal(parameters.snapshot().select(torch.arange(5)).sh, before.sh)
    assert torch.equal(parameters.clocks[:5], clocks) and not bool(parameters.clocks[5:].any())


def test_rows_that_are_not_visible_stay_bit_equal():
    parameters = _stepped(40)
    before, moments = parameters.snapshot(), parameters.moments()
    parameters.visible.copy_(torch.arange(40) % 3 == 0)
    parameters.step(random_gradients(parameters), LossWeights(), 0.1, num_visible=14)
    after, hidden = parameters.snapshot(), torch.arange(40) % 3 != 0
    for kind in KINDS:
        assert torch.equal(getattr(after, kind)[hidden], getattr(before, kind)[hidden])
        now = parameters.moments()[kind]
        for name in now.keys() - {"steps"}:
            assert torch.equal(now[name][hidden], moments[kind][name][hidden])
        assert not torch.equal(getattr(after, kind)[~hidden], getattr(before, kind)[~hidden])


@pytest.mark.parametrize("sh_degree", [0, 1, 3])
def test_memory_per_gaussian_is_what_the_formula_says(sh_degree):
    def storages():
        gc.collect()
        found = {}
        for thing in gc.get_objects():
            if type(thing) is torch.Tensor:
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
        return sum(found.values())

    count = 4000
    gaussians = make_gaussians(count).with_sh_degree(sh_degree)
    before = storages()
    parameters = GaussianParameters(gaussians, LearningRates(), means_rate=1e-3)
    parameters.step(random_gradients(parameters))
    held = storages() - before
    assert held == pytest.approx(count * bytes_per_gaussian(sh_degree), rel=0.01)


def test_composed_changes_equal_one_after_the_other():
    old = torch.arange(6)
    first = TopologyChange(torch.tensor([5, 1, 1]), torch.tensor([False, False, True]))
    second = TopologyChange(torch.tensor([2, 0, 0]), torch.tensor([False, False, True]))
    both = compose_changes(first, second)
    assert torch.equal(old[both.source], old[first.source][second.source])
    assert both.is_new.tolist() == [True, False, True]
