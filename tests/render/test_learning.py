"""Adam of the core: against float64 torch, for any thread count and instruction set, and what it must not touch."""

import os
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from faithfusion_studio.fusion.losses import shape_loss
from faithfusion_studio.fusion.schedule import LossWeights
from faithfusion_studio.render.cpu import thread_limit
from faithfusion_studio.render.learning import (
    AdamKind,
    ShapeTerms,
    activate,
    adam_step,
    observe_rows,
    reached_rows,
)
from faithfusion_studio.render.learning import _adam_in_torch as adam_in_torch
from faithfusion_studio.render.rasterization import rasterization

WIDTHS = {"means": (3,), "log_scales": (3,), "quats": (4,), "logits": (), "sh": (4, 3)}
ACTIVATIONS = {"log_scales": "exp", "logits": "sigmoid"}
WEIGHTS = LossWeights(opacity=0.3, scale=0.2, flat=0.1, shape=0.4, max_aspect=2.0)
VOXEL = 0.05
NOW = 1000


def make_kinds(rows, seed=0):
    g = torch.Generator().manual_seed(seed)
    kinds = []
    for name, tail in WIDTHS.items():
        shape = (rows, *tail)
        value = torch.randn(shape, generator=g)
        activation = ACTIVATIONS.get(name, "none")
        activated = None if activation == "none" else torch.empty_like(value)
        if activated is not None:
            activate(value, activation, activated)
        kinds.append(
            AdamKind(
                value=value,
                mean=0.1 * torch.randn(shape, generator=g),
                square=0.01 * torch.rand(shape, generator=g),
                gradient=torch.randn(shape, generator=g),
                rates=0.01 + torch.rand(max(1, value[:1].numel()), generator=g),
                activated=activated,
                activation=activation,
            )
        )
    updates = torch.randint(0, 40, (rows,), generator=g, dtype=torch.int32)
    last = updates + torch.randint(0, 900, (rows,), generator=g, dtype=torch.int32)
    clocks = torch.stack([updates, last], dim=1)
    visible = (torch.rand(rows, generator=g) < 0.5).to(torch.uint8)
    return kinds, clocks, visible


def in_float64(kinds):
    return [
        AdamKind(
            **{
                f.name: v.double() if isinstance(v := getattr(kind, f.name), torch.Tensor) else v
                for f in fields(kind)
            }
        )
        for kind in kinds
    ]


def copied(kinds):
    return [
        replace(
            kind,
            value=kind.value.clone(),
            mean=kind.mean.clone(),
            square=kind.square.clone(),
            activated=None if kind.activated is None else kind.activated.clone(),
        )
        for kind in kinds
    ]


def written(kinds):
    return [t for k in kinds for t in (k.value, k.mean, k.square, k.activated) if t is not None]


def shape_terms(count):
    shares = (WEIGHTS.opacity, WEIGHTS.scale, WEIGHTS.flat, WEIGHTS.shape)
    return ShapeTerms(1, 3, tuple(s / count for s in shares), WEIGHTS.max_aspect, VOXEL)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 1023, 3000])
@pytest.mark.parametrize("regularised", [False, True])
def test_a_step_equals_float64_torch(rows, regularised):
    kinds, clocks, visible = make_kinds(rows)
    visible[0] = 1
    twins, counts = in_float64(kinds), clocks.clone()
    count, terms, expected = int(visible.sum()), None, 0.0
    if regularised:
        terms = shape_terms(count)
        seen = visible.bool()
        leaves = [twins[i].activated[seen].clone().requires_grad_() for i in (1, 3)]
        loss = shape_loss(*leaves, WEIGHTS, VOXEL)
        for i, more in zip((1, 3), torch.autograd.grad(loss, leaves), strict=True):
            twins[i].gradient[seen] += more
        expected = float(loss.detach())
    adam_in_torch(twins, counts, NOW, visible, 1e-15, (0.0, 0.0))
    value, refused = adam_step(kinds, clocks, NOW, visible, terms=terms)
    assert value == pytest.approx(expected, rel=1e-5) and refused == 0
    assert torch.equal(clocks, counts)
    for kind, twin in zip(kinds, twins, strict=True):
        assert torch.allclose(kind.value.double(), twin.value, rtol=1e-5, atol=1e-5)
        assert torch.allclose(kind.mean.double(), twin.mean, rtol=1e-5, atol=1e-6)
        assert torch.allclose(kind.square.double(), twin.square, rtol=1e-5, atol=1e-6)
        if kind.activated is not None:
            assert torch.allclose(kind.activated.double(), twin.activated, rtol=2e-5)


def test_the_twin_is_torch_adam_where_every_row_is_seen_at_every_step():
    kinds, clocks, _ = make_kinds(50)
    kinds = [replace(k, activated=None, activation="none") for k in in_float64(kinds)]
    for kind in kinds:
        kind.mean.zero_(), kind.square.zero_()
    clocks.zero_()
    theirs = [torch.nn.Parameter(k.value.clone()) for k in kinds]
    kinds = [replace(k, rates=torch.full_like(k.rates, 0.01)) for k in kinds]
    optimizer = torch.optim.Adam(theirs, lr=0.01, eps=1e-15)
    for step in range(1, 8):
        adam_in_torch(kinds, clocks, step, None, 1e-15, (0.0, 0.0))
        for parameter, kind in zip(theirs, kinds, strict=True):
            parameter.grad = kind.gradient.clone()
        optimizer.step()
    for parameter, kind in zip(theirs, kinds, strict=True):
        assert torch.allclose(parameter.detach(), kind.value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_rows_not_visible_keep_every_bit(seed):
    kinds, clocks, visible = make_kinds(2100, seed)
    before, counts = [t.clone() for t in written(kinds)], clocks.clone()
    adam_step(kinds, clocks, NOW, visible, terms=shape_terms(int(visible.sum())))
    hidden = visible == 0
    for old, new in zip(before, written(kinds), strict=True):
        assert torch.equal(old[hidden], new[hidden])
        assert not torch.equal(old[~hidden], new[~hidden])
    assert torch.equal(clocks[hidden], counts[hidden])
    assert torch.equal(clocks[~hidden, 0], counts[~hidden, 0] + 1)
    assert bool((clocks[~hidden, 1] == NOW).all())


def test_one_thread_and_two_give_the_same_bits():
    results = []
    for threads in (1, 2, 3):
        kinds, clocks, visible = make_kinds(5000)
        with thread_limit(threads):
            value = adam_step(kinds, clocks, NOW, visible, terms=shape_terms(2500))
        results.append((value, written(kinds)))
    for value, tensors in results[1:]:
        assert value == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(tensors, results[0][1], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_row_with_a_gradient_that_is_not_finite_is_left_alone(bad):
    kinds, clocks, visible = make_kinds(100)
    visible.fill_(1)
    clean, counts = copied(kinds), clocks.clone()
    kinds[4].gradient[37, 2, 1] = bad
    kinds[0].gradient[99, 0] = bad
    before = [t.clone() for t in written(kinds)]
    _, refused = adam_step(kinds, clocks, NOW, visible)
    adam_step(clean, counts, NOW, visible)
    assert refused == 2
    others = torch.ones(100, dtype=torch.bool)
    others[[37, 99]] = False
    for old, new, fine in zip(before, written(kinds), written(clean), strict=True):
        assert torch.equal(new[~others], old[~others])
        assert torch.equal(new[others], fine[others])


def test_a_hidden_row_may_have_any_gradient():
    kinds, clocks, visible = make_kinds(64)
    visible[5] = 0
    kinds[0].gradient[5] = float("nan")
    _, refused = adam_step(kinds, clocks, NOW, visible)
    assert refused == 0
    assert all(bool(torch.isfinite(t).all()) for t in written(kinds))


def test_values_stay_between_their_limits():
    kinds, clocks, _ = make_kinds(40)
    kind = replace(kinds[0], value=torch.rand(40, 3), rates=torch.full((3,), 10.0))
    adam_step([kind], clocks, NOW, None, limits=(0.0, 1.0))
    assert float(kind.value.min()) == 0.0 and float(kind.value.max()) == 1.0


@pytest.mark.parametrize("every", [1, 5, 40])
def test_the_second_moment_is_dense_adams_however_seldom_a_row_is_seen(every):
    kinds, clocks, _ = make_kinds(20)
    kind = kinds[0]
    kind.mean.zero_(), kind.square.zero_(), clocks.zero_()
    dense = torch.nn.Parameter(kind.value.clone())
    optimizer = torch.optim.Adam([dense], lr=0.01)
    g = torch.Generator().manual_seed(7)
    for step in range(1, 201):
        gradient = torch.randn(20, 3, generator=g)
        seen = step % every == 0
        if seen:
            adam_step([replace(kind, gradient=gradient)], clocks, step, None)
        dense.grad = gradient if seen else torch.zeros(20, 3)
        optimizer.step()
    assert torch.allclose(kind.square, optimizer.state[dense]["exp_avg_sq"], rtol=1e-4)


def test_a_gradient_seldom_seen_moves_a_row_as_far_as_dense_adam_lets_it_drift():
    kinds, clocks, _ = make_kinds(20)
    kind = replace(kinds[0], rates=torch.full((3,), 0.01), gradient=torch.ones(20, 3))
    kind.value.zero_(), kind.mean.zero_(), kind.square.zero_(), clocks.zero_()
    dense = torch.nn.Parameter(torch.zeros(20, 3))
    optimizer = torch.optim.Adam([dense], lr=0.01, eps=1e-15)
    for step in range(1, 3001):
        seen = step % 60 == 0
        if seen:
            adam_step([kind], clocks, step, None)
        dense.grad = torch.full((20, 3), float(seen))
        optimizer.step()
    assert torch.allclose(kind.value, dense.detach(), rtol=0.1)


@pytest.mark.parametrize("name", ["exp", "sigmoid"])
def test_activations_follow_torch(name):
    value = torch.linspace(-30, 30, 1001)
    out = torch.empty_like(value)
    activate(value, name, out)
    expected = value.double().exp() if name == "exp" else torch.sigmoid(value.double())
    assert torch.allclose(out.double(), expected, rtol=1e-5)


def _frame(absgrad=True):
    g = torch.Generator().manual_seed(1)
    n = 1500
    means = torch.randn(n, 3, generator=g) * torch.tensor([4.0, 3.0, 6.0])
    means.requires_grad_()
    K = torch.tensor([[[40.0, 0, 32], [0, 40, 24], [0, 0, 1]]])
    colors, _, meta = rasterization(
        means,
        torch.randn(n, 4, generator=g),
        torch.rand(n, 3, generator=g) * 0.2 + 0.02,
        torch.rand(n, generator=g),
        torch.rand(n, 3, generator=g),
        torch.eye(4)[None],
        K,
        64,
        48,
        absgrad=absgrad,
    )
    (colors * torch.rand(colors.shape, generator=g)).sum().backward()
    return meta


@pytest.mark.parametrize("rows", [1500, 1400])
def test_rows_that_reached_a_pixel_are_those_with_a_gradient(rows):
    meta = _frame()
    moved = (meta.absgrad[0, :rows] != 0).any(-1)
    mask = torch.full((rows,), 7, dtype=torch.uint8)
    assert reached_rows(meta, torch.zeros(rows), mask) == int(moved.sum()) > 100
    assert torch.equal(mask.bool(), moved)
    assert int((meta.radii[0, :rows] > 0).all(-1).sum()) > int(moved.sum())


def test_statistics_equal_the_screen_quantities():
    meta = _frame()
    seen = (meta.radii[0] > 0).all(-1)
    rows = 1400  # the last hundred belong to something else
    gradient, count, radius = (
        torch.ones(rows),
        torch.ones(rows, dtype=torch.int32),
        torch.zeros(rows),
    )
    observe_rows(meta, gradient, count, radius)
    seen = seen[:rows]
    length = meta.absgrad[0, :rows].norm(dim=-1) * 32
    assert torch.allclose(gradient, 1 + torch.where(seen, length, 0), rtol=1e-5)
    assert torch.equal(count, 1 + seen.to(torch.int32))
    share = meta.radii[0, :rows].amax(-1) / 64
    assert torch.allclose(radius, torch.where(seen, share, 0))


_CHILD = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from render.test_learning import NOW, make_kinds, shape_terms, written
from faithfusion_studio.render.learning import adam_step
kinds, clocks, visible = make_kinds(700)
adam_step(kinds, clocks, NOW, visible, terms=shape_terms(350))
np.savez(sys.argv[2], *[t.numpy() for t in written(kinds)])
"""


def test_lower_instruction_sets_agree_within_rounding(tmp_path, request):
    results = []
    for name in ("", "avx2", "baseline"):
        out = tmp_path / f"{name or 'best'}.npz"
        environment = os.environ | ({"FAITHFUSION_SIMD": name} if name else {})
        tests = str(request.config.rootpath / "tests")
        subprocess.run([sys.executable, "-c", _CHILD, tests, str(out)], check=True, env=environment)
        with np.load(out) as arrays:
            results.append([arrays[key] for key in arrays.files])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
