"""The small EIGent learns in two stages, with the trunk frozen in the second, and goes on where it stopped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from clip_files import save_clips

from faithfusion_studio import cli
from faithfusion_studio.repair import eigent_network, load_eigent, load_refiner
from faithfusion_studio.repair.eigent_network import EigentConfig
from faithfusion_studio.repair.refiner_network import (
    BELIEF,
    CHANNELS,
    EIG,
    FUSED,
    GATE,
    RENDER,
    SEEN,
    Refiner,
)
from faithfusion_studio.repair.refiner_weights import packaged_weights
from faithfusion_studio.training import eigent_fitting
from faithfusion_studio.training.eigent_fitting import (
    EigentFitting,
    EigentFittingConfig,
    eigent_held_out_gain,
)
from faithfusion_studio.training.pairs import LAYOUT, PairFile, TrainingError

TINY = EigentFittingConfig(
    steps=30, batch=2, crop=(16, 24), frames=3, rate=5e-3, warm_up=3, average=0.8, continued=0.5
)
SMALL = EigentConfig(width=24, heads=2, layers=2, every=2, patch=4, reach=4)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(eigent_fitting.SIZES, "tiny", SMALL)
    assert eigent_network.SIZES["tiny"] is SMALL


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Clips whose truth lies beyond what is believed of the warp."""
    generator = torch.Generator().manual_seed(1)
    degraded = torch.rand(3, 4, CHANNELS, 32, 40, generator=generator)
    degraded[:, :, GATE], degraded[:, :, BELIEF], degraded[:, :, SEEN] = 1.0, 0.3, 1.0
    degraded[:, :, EIG] *= 0.9
    truth = 0.1 * degraded[:, :, RENDER] + 0.9 * degraded[:, :, FUSED]
    path = tmp_path_factory.mktemp("clips") / f"{LAYOUT}-111.safetensors"
    return PairFile(save_clips(degraded, truth, path)), path


def weights(network, part):
    return {k: v.clone() for k, v in network.state_dict().items() if k.startswith(part)}


def test_the_trunk_learns_first_and_stays_while_the_branch_learns(made_up):
    fitting = EigentFitting([made_up[0]], TINY)
    assert fitting.trunk_steps == 18
    run, fresh = fitting.run(), weights(fitting.network, "branch.")
    gains = [next(run).gain for _ in range(18)]
    assert gains[0] == pytest.approx(0, abs=0.01) and np.mean(gains[-4:]) > 0.3
    trunk = weights(fitting.network, "trunk.")
    for name, value in weights(fitting.network, "branch.").items():
        assert torch.equal(value, fresh[name]), name
    for _ in run:
        pass
    for name, value in weights(fitting.network, "trunk.").items():
        assert torch.equal(value, trunk[name]), name
    moved = weights(fitting.network, "branch.inject.0.weight")
    assert float(moved["branch.inject.0.weight"].abs().max()) > 0
    reprojection, network = eigent_held_out_gain(fitting.averaged, made_up[0])
    assert network > reprojection + 0.2


def test_states_lie_on_the_bridge_and_known_frames_are_the_truth(made_up):
    fitting = EigentFitting([made_up[0]], replace(TINY, batch=40, noise=0.0, start=0.3))
    inputs, gate, truth = fitting._clips(np.random.default_rng(0))
    state, times = fitting._bridge(inputs, truth, np.random.default_rng(1))
    assert gate.shape == (40, 3, 1, 16, 24)
    known = times[:, 0] == 0
    assert 0.2 < float(known.float().mean()) < 0.8
    assert torch.equal(state[known][:, :2], truth[known][:, :2])
    full = times[:, -1] == 1
    believed = 0.3 * inputs[:, :, FUSED] + 0.7 * inputs[:, :, RENDER]
    assert torch.allclose(state[full][:, -1], believed[full][:, -1], atol=1e-3)
    middle = ~full
    assert torch.allclose(
        state[middle][:, -1],
        torch.lerp(truth, believed, times[..., None, None, None])[middle][:, -1],
        atol=1e-3,
    )


@pytest.mark.parametrize("stop", [2, 6])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(made_up, tmp_path, stop):
    """Whether it stopped in the first stage or in the second."""
    config = replace(TINY, steps=8, trunk_share=0.5)
    whole, first = (EigentFitting([made_up[0]], config) for _ in range(2))
    for _ in whole.run():
        pass
    run = first.run()
    for _ in range(stop):
        next(run)
    first.save(tmp_path / "c.safetensors")
    second = EigentFitting([made_up[0]], config)
    second.resume(tmp_path / "c.safetensors")
    for _ in second.run():
        pass
    for name, value in whole.averaged.state_dict().items():
        assert torch.equal(second.averaged.state_dict()[name], value), name


def test_the_command_trains_keeps_the_best_and_goes_on(made_up, monkeypatch, capsys):
    from faithfusion_studio.cli import train

    monkeypatch.setattr(train, "EIGENT_PRESETS", {"tiny": replace(TINY, steps=6)})
    monkeypatch.setattr(train, "VALIDATE_EVERY", 3)
    folder = made_up[1].parent
    (folder / f"{LAYOUT}-112.safetensors").write_bytes(made_up[1].read_bytes())
    out = folder / "w.safetensors"
    words = ["train-eigent", str(out), "--seeds", "111:112", "--cache", str(folder)]
    assert cli.main([*words, "--validate", "111:113"]) == 2
    assert "ranges that do not meet" in capsys.readouterr().err
    assert cli.main([*words, "--validate", "112:113"]) == 0
    shown = capsys.readouterr()
    assert "6 steps on 12 pairs of 1 streets" in shown.out
    assert "step 6:" in shown.err and "step 3:" not in shown.err, "no weights without a branch"
    best = load_eigent(folder / "eigent-tiny-0-best.safetensors").state_dict()
    assert all(torch.equal(v, best[k]) for k, v in load_eigent(out).state_dict().items())
    assert cli.main([*words, "--validate", "112:113"]) == 0
    assert "going on after step 6" in capsys.readouterr().err
    given = [*words, "--decoder", str(packaged_weights()), "--seed", "1"]
    assert cli.main(given) == 0
    shipped = load_refiner().state_dict()
    for name, value in load_eigent(out).trunk.decoder.state_dict().items():
        assert torch.equal(value, shipped[name])


def test_a_refiner_may_begin_the_decoder(made_up):
    """Then the whole network is that refiner, whatever the state of the bridge."""
    torch.manual_seed(1)
    refiner = Refiner()
    torch.nn.init.normal_(refiner.head.weight, std=0.1)
    fitting = EigentFitting([made_up[0]], TINY)
    fitting.start_decoder(refiner)
    maps = made_up[0].whole(0).degraded.float()
    state, times = torch.rand(1, 4, 3, 32, 40), torch.ones(1, 4)
    with torch.no_grad():
        same = fitting.averaged(state, times, maps[None]).rgb, refiner(maps).rgb
    assert torch.allclose(*same, atol=1e-5)
    with pytest.raises(TrainingError, match="of size S before the first step"):
        fitting.start_decoder(Refiner("M"))
    next(fitting.run())
    for name, value in fitting.network.trunk.decoder.state_dict().items():
        assert torch.equal(value, refiner.state_dict()[name]), "a given decoder stays"
    assert float(fitting.network.trunk.bridge.weight.detach().abs().max()) > 0
    with pytest.raises(TrainingError, match="at step 1"):
        fitting.start_decoder(refiner)
