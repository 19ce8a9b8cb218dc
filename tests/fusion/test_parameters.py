"""Row edits: values, optimiser state and provenance follow the change of topology."""

import torch

from faithfusion_studio.fusion.densify import GradientDensify, initial_state
from faithfusion_studio.fusion.parameters import KINDS, GaussianParameters
from faithfusion_studio.fusion.schedule import LearningRates
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


def _stepped(count=12):
    torch.manual_seed(3)
    parameters = GaussianParameters(make_gaussians(count), LearningRates(), means_rate=1e-3)
    for kind in KINDS:
        parameters[kind].grad = torch.randn_like(parameters[kind])
    parameters.step()
    return parameters


def test_rows_and_moments_follow_the_source():
    parameters = _stepped()
    before = {kind: parameters[kind].detach().clone() for kind in KINDS}
    moments = parameters.moments()
    source = torch.tensor([3, 0, 7, 3])
    is_new = torch.tensor([False, False, False, True])
    parameters.edit_rows(TopologyChange(source, is_new), {}, int(Provenance.REPAIRED))
    for kind in KINDS:
        assert torch.equal(parameters[kind].detach(), before[kind][source])
        now = parameters.moments()[kind]["exp_avg"]
        assert torch.equal(now[:3], moments[kind]["exp_avg"][source[:3]])
        assert torch.equal(now[3], torch.zeros_like(now[3]))
    assert parameters.provenance.tolist() == [0, 0, 0, int(Provenance.REPAIRED)]


def test_a_snapshot_is_not_written_by_later_steps():
    parameters = _stepped()
    snapshot = parameters.snapshot()
    frozen = snapshot.means.clone()
    parameters["means"].grad = torch.ones_like(parameters["means"])
    parameters.step()
    assert torch.equal(snapshot.means, frozen)
    assert not torch.equal(parameters["means"].detach(), frozen)


def test_restored_moments_continue_bit_equal():
    runs = []
    for interrupted in (False, True):
        parameters = _stepped()
        if interrupted:
            again = GaussianParameters(parameters.snapshot(), LearningRates(), means_rate=1e-3)
            again.restore_moments(parameters.moments())
            parameters = again
        for kind in KINDS:
            parameters[kind].grad = torch.full_like(parameters[kind], 0.3)
        parameters.step()
        runs.append(parameters.snapshot())
    assert torch.equal(runs[0].means, runs[1].means)
    assert torch.equal(runs[0].sh0, runs[1].sh0)


def test_appended_rows_keep_their_own_provenance():
    parameters = _stepped(5)
    extra = make_gaussians(3, seed=4)
    change = parameters.append(extra)
    assert len(parameters) == 8
    assert change.is_new.tolist() == [False] * 5 + [True] * 3
    assert torch.equal(parameters["means"].detach()[5:], extra.means)


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
    with torch.no_grad():
        parameters["logit_opacities"][2] = -20.0
        parameters["log_scales"][4] = 1.0
    before = parameters["log_scales"].detach()[4].clone()
    policy = GradientDensify(extent=20.0, max_gaussians=100, prune_scale=0.9)
    state = initial_state(6)
    state.count += 1
    state.gradient[4] = 1.0
    change = policy.update(parameters, state, torch.Generator().manual_seed(0))
    assert 2 not in change.source.tolist()
    assert change.source.tolist().count(4) == 2
    halves = parameters["log_scales"].detach()[change.source == 4]
    assert bool((halves < before).all())


def test_composed_changes_equal_one_after_the_other():
    old = torch.arange(6)
    first = TopologyChange(torch.tensor([5, 1, 1]), torch.tensor([False, False, True]))
    second = TopologyChange(torch.tensor([2, 0, 0]), torch.tensor([False, False, True]))
    both = compose_changes(first, second)
    assert torch.equal(old[both.source], old[first.source][second.source])
    assert both.is_new.tolist() == [True, False, True]
