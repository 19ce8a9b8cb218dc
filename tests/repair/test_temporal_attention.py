"""Attention over time: nothing before it has learned, nothing without neighbours, no seams, the same surface."""

from dataclasses import replace

import pytest
import torch
from clip_files import wall_views
from safetensors.torch import load_file, save_file
from wall_world import wall_batch

from faithfusion_studio.repair import load_refiner
from faithfusion_studio.repair.base import RepairError
from faithfusion_studio.repair.gated import repair_batch
from faithfusion_studio.repair.refiner import RefinerRepairer
from faithfusion_studio.repair.refiner_network import (
    CHANNELS,
    FUSED,
    INVERSE_DEPTH,
    SEEN,
    Look,
    Refiner,
)
from faithfusion_studio.repair.refiner_weights import FORMAT, packaged_weights
from faithfusion_studio.repair.reprojection import ReprojectionRepairer
from faithfusion_studio.repair.temporal_attention import AHEAD, BEHIND, Paths, View, fetch

SIZE = (32, 24)


def learned(seed=3) -> Refiner:
    """A network whose every weight was moved, its attention over time more than the rest."""
    torch.manual_seed(seed)
    network = Refiner()
    assert network.temporal is not None
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.add_(torch.randn(value.shape), alpha=0.3 if name.startswith("temporal") else 0.05)
    return network.requires_grad_(False)


def wall_inputs(frames: int, size=SIZE) -> tuple[torch.Tensor, View]:
    """What the network sees of a clip in which only the renders and the EIG differ from the truth."""
    view, colors, depth = wall_views(frames, size)
    inputs = torch.rand(
        frames, CHANNELS, *depth.shape[1:], generator=torch.Generator().manual_seed(0)
    )
    inputs[:, FUSED], inputs[:, 6:9], inputs[:, SEEN] = colors, colors, 1.0
    inputs[:, INVERSE_DEPTH] = 2 / depth
    return inputs, view


def looks(network: Refiner, frames: int, moving=None, size=SIZE) -> list[Look]:
    inputs, view = wall_inputs(frames, size)
    return [
        network.look(
            inputs[t : t + 1],
            View(view.intrinsics[t : t + 1], view.camtoworld[t : t + 1]),
            None if moving is None else moving[t : t + 1],
        )
        for t in range(frames)
    ]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_file_without_the_block_gives_what_it_always_gave(tmp_path):
    tensors = {k: v for k, v in load_file(packaged_weights()).items() if "temporal" not in k}
    path = tmp_path / "old.safetensors"
    save_file(tensors, path, {"format": FORMAT, "size": "S"})
    network = load_refiner(path)
    seen = looks(network, 4)
    for look, steadied in zip(seen, network.clip(seen), strict=True):
        assert same(steadied, look.refined)
    batch = wall_batch(frames=4)
    together = repair_batch(RefinerRepairer(network), batch)
    for t in range(4):
        alone = repair_batch(RefinerRepairer(network), cut(batch, t, t + 1))
        assert torch.equal(together.rgb[t], alone.rgb[0])
        assert torch.equal(together.confidence[t], alone.confidence[0])


def cut(batch, start, stop):
    """Some frames of a batch, with all its references."""
    maps = ["renders", "alphas", "depths", "eig", "calibrated_eig", "coverage", "ucr"]
    parts = {name: getattr(batch, name)[start:stop] for name in maps}
    return replace(batch, cameras=batch.cameras[start:stop], **parts)


def test_a_file_with_half_of_the_block_is_refused(tmp_path):
    tensors = load_file(packaged_weights())
    tensors["temporal.when"] = torch.zeros(2, 8).half()
    tensors.pop("temporal.unlike", None)
    path = tmp_path / "half.safetensors"
    save_file(tensors, path, {"format": FORMAT, "size": "S"})
    with pytest.raises(RepairError, match=r"lacks the tensor temporal\.") as found:
        load_refiner(path)
    assert "\n" not in str(found.value)


def test_one_frame_is_refined_alone_whatever_was_learned():
    network = learned()
    (look,) = looks(network, 1)
    assert same(network.clip([look])[0], look.refined)
    steadied = network.clip(looks(network, 3))
    assert not torch.equal(steadied[1].rgb, looks(network, 3)[1].refined.rgb)


def test_a_frame_depends_on_its_window_and_on_nothing_else():
    """So where a long clip is cut, or when it began, does not matter beyond the window."""
    network = learned()
    seen = looks(network, 12)
    whole = network.clip(seen)
    t = 6
    part = network.clip(seen[t - BEHIND : t + AHEAD + 1])
    assert same(whole[t], part[BEHIND])
    for end in (slice(t - BEHIND + 1, None), slice(None, t + AHEAD)):
        cut = network.clip(seen[end])
        assert not torch.equal(cut[t - (end.start or 0)].rgb, whole[t].rgb)


def test_what_counts_is_time_between_frames_and_not_their_order():
    network = learned()
    seen = looks(network, 5)
    others = [(s - 2, seen[s]) for s in (0, 1, 3, 4)]
    first = network.steady(seen[2], others)
    for a, b in zip(first, network.steady(seen[2], others[::-1]), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    exchanged = [(-dt, look) for dt, look in others]
    assert not torch.allclose(first.rgb, network.steady(seen[2], exchanged).rgb, atol=1e-4)


def test_turning_the_world_changes_nothing():
    network = learned()
    inputs, view = wall_inputs(3)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    turn[:3, 3] = torch.tensor([4e5, -5e6, 100.0])
    results = []
    for poses in (view.camtoworld, turn @ view.camtoworld):
        frames = [
            network.look(inputs[t : t + 1], View(view.intrinsics[t : t + 1], poses[t : t + 1]))
            for t in range(3)
        ]
        results.append(network.clip(frames)[1].rgb)
    assert torch.allclose(*results, atol=1e-4)


@pytest.mark.parametrize("mirrored", [False, True])
def test_paths_lead_to_the_same_surface(mirrored):
    view, colors, depth = wall_views(2, (64, 36))
    if mirrored:
        flip = torch.tensor([[-1, 0, 64], [0, 1, 0], [0, 0, 1]]).double()
        view, colors = View(flip @ view.intrinsics, view.camtoworld), colors.flip(-1)
    here, there = (View(*(part[t : t + 1] for part in view)) for t in (1, 0))
    pixels, nearness = Paths.between(here, [there]).follow(1 / depth[1:, None], step=1)
    fetched = fetch(colors[:1], pixels, step=1)
    assert float((fetched - colors[1:]).abs().max()) < 0.02
    assert float((colors[0] - colors[1]).abs().max()) > 0.04
    assert torch.allclose(nearness, torch.full_like(nearness, 20 / 19), atol=1e-4)


def test_neighbours_that_agree_leave_a_frame_where_it_is():
    """A steady world has nothing to drift to; a frame that differs is drawn to the others."""
    network = learned()
    assert network.temporal is not None
    seen = looks(network, 3, size=(64, 48))
    _, colors, _ = wall_views(3, (64, 48))
    told = [
        look.told.state._replace(
            colors=torch.cat([colors[t : t + 1], torch.zeros(1, 1, 48, 64)], 1)
        )
        for t, look in enumerate(seen)
    ]
    told[1] = told[1]._replace(colors=told[1].colors + 0.03)
    telling = [network.temporal.tell(state) for state in told]
    drift = network.temporal(telling[1], [(-1, telling[0]), (1, telling[2])]).drift[0, :3]
    inner = drift[:, 8:-8, 8:-8]
    assert float(inner.mean()) < -0.003
    assert float(inner.max()) < 0.02 and float(inner.min()) > -0.04


def test_what_moves_or_is_hidden_asks_nobody_and_answers_nobody():
    network = learned()
    moving = torch.zeros(3, 24, 32, dtype=torch.bool)
    moving[1, :, :16] = True
    steadied = network.clip(looks(network, 3, moving))[1].rgb
    alone = looks(network, 3)[1].refined.rgb
    assert torch.equal(steadied[..., :12], alone[..., :12])
    assert not torch.equal(steadied[..., 20:], alone[..., 20:])
    moving = torch.ones(3, 24, 32, dtype=torch.bool)
    moving[1] = False
    assert torch.equal(network.clip(looks(network, 3, moving))[1].rgb, alone)


def test_gradients_reach_every_weight_of_the_block():
    """First those that start at zero, then through them the attention."""
    torch.manual_seed(0)
    network = Refiner()
    torch.nn.init.normal_(network.head.weight, std=0.1)
    inputs, view = wall_inputs(3)
    optimizer = torch.optim.SGD(network.temporal.parameters(), lr=1.0)
    for step in range(2):
        frames = [
            network.look(inputs[t : t + 1], View(*(part[t : t + 1] for part in view)))
            for t in range(3)
        ]
        optimizer.zero_grad()
        steadied = network.clip(frames)
        sum(r.rgb.square().mean() + r.error.mean() for r in steadied).backward()
        flowing = {
            name
            for name, value in network.temporal.named_parameters()
            if value.grad is not None and float(value.grad.abs().max()) > 0
        }
        if step == 0:
            assert {"leave.weight", "amount.weight", "amount.bias"} <= flowing
        optimizer.step()
    assert flowing == {name for name, _ in network.temporal.named_parameters()}


class Counted(ReprojectionRepairer):
    """Tells how many frames were asked for."""

    def __init__(self):
        super().__init__()
        self.made = 0

    def repair(self, batch):
        for frame in super().repair(batch):
            self.made += 1
            yield frame


def test_the_engine_looks_ahead_by_its_window_and_keeps_no_more():
    below = Counted()
    frames = RefinerRepairer(learned(), below).repair(wall_batch(frames=9))
    for t in range(3):
        next(frames)
        assert below.made == t + 1 + AHEAD
    window = frames.gi_frame.f_locals["window"]
    assert len(window) <= BEHIND + 1 + AHEAD
    frames.close()
    assert below.made == 3 + AHEAD


def test_the_engine_makes_of_a_segment_what_the_network_makes_of_a_clip():
    network, batch = learned(), wall_batch(frames=6)
    whole = list(RefinerRepairer(network).repair(batch))
    part = list(RefinerRepairer(network).repair(cut(batch, 1, 6)))
    assert len(whole) == 6 and not torch.equal(whole[2].rgb, part[1].rgb)
    longer = wall_batch(frames=10)
    expected = list(RefinerRepairer(network).repair(longer))[5]
    assert torch.equal(
        list(RefinerRepairer(network).repair(cut(longer, 1, 9)))[4].rgb, expected.rgb
    )
