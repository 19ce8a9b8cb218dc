"""The CPU backend: same numbers for every instruction set and thread count, calm at the edges, clear errors."""

import concurrent.futures
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faithfusion_studio.render import (
    BackendError,
    accumulate_information,
    deterministic,
    evaluate_information,
    thread_limit,
)
from faithfusion_studio.render.rasterization import rasterization

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))
import slow_raster  # noqa: E402


def street(n: int = 3000, seed: int = 0, **changes: Tensor) -> dict[str, Tensor]:
    """Random splats in front of one camera that looks along +z."""
    g = torch.Generator().manual_seed(seed)
    scene = {
        "means": torch.randn(n, 3, generator=g) * torch.tensor([4.0, 2.0, 3.0])
        + torch.tensor([0.0, 0.0, 9.0]),
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.exp(torch.randn(n, 3, generator=g) * 0.5 - 2.5),
        "opacities": 0.05 + 0.9 * torch.rand(n, generator=g),
        "colors": torch.randn(n, 4, 3, generator=g) * 0.3,
    }
    return {**scene, **changes}


def camera(width: int, height: int) -> dict:
    f = 0.8 * max(width, height)
    K = torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]])
    return {"viewmats": torch.eye(4)[None], "Ks": K[None], "width": width, "height": height}


def gradients(scene: dict[str, Tensor], view: dict, **options) -> list[Tensor]:
    """Image and all gradients of a fixed weighting of it."""
    tensors = {k: v.clone().requires_grad_() for k, v in scene.items()}
    colors, alphas, meta = rasterization(
        **tensors, **view, sh_degree=1, render_mode="RGB+ED", absgrad=True, **options
    )
    weight = torch.randn(colors.shape, generator=torch.Generator().manual_seed(1))
    (colors * weight).sum().backward()
    grads = [t.grad for t in tensors.values()]
    return [colors.detach(), alphas.detach(), meta.grad_means2d, meta.absgrad, *grads]


def test_images_do_not_depend_on_the_thread_count() -> None:
    scene, view = street(), camera(157, 91)
    images = []
    for threads in (1, 2, 3, 7):
        with thread_limit(threads):
            images.append(rasterization(**scene, **view, sh_degree=1, render_mode="RGB+D")[0])
    assert all(torch.equal(images[0], image) for image in images[1:])


def test_deterministic_sums_are_bit_equal_for_every_thread_count() -> None:
    scene, view = street(), camera(157, 91)
    results = []
    for threads in (1, 2, 5):
        with thread_limit(threads), deterministic():
            found = gradients(scene, view)
            _, _, meta = rasterization(**scene, **view, sh_degree=1)
            found.append(accumulate_information(meta, torch.ones(1, 91, 157)))
        results.append(found)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_fast_sums_equal_deterministic_sums_up_to_rounding() -> None:
    scene, view = street(), camera(157, 91)
    with deterministic():
        expected = gradients(scene, view)
    with thread_limit(2):
        found = gradients(scene, view)
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).abs().max()) <= 2e-5 * float(b.abs().max())


def test_thread_limit_belongs_to_the_python_thread_and_is_restored() -> None:
    from faithfusion_studio.render.cpu import _work

    with thread_limit(1):
        with concurrent.futures.ThreadPoolExecutor(1) as pool, thread_limit(9):
            assert _work()[0] == 9
            assert pool.submit(lambda: _work()[0]).result() != 9
        assert _work()[0] == 1


def test_many_python_threads_may_render_at_once() -> None:
    scene, view = street(), camera(157, 91)
    expected = rasterization(**scene, **view, sh_degree=1)[0]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(rasterization, **scene, **view, sh_degree=1) for _ in range(24)]
        assert all(torch.equal(job.result()[0], expected) for job in jobs)


RENDER_ELSEWHERE = """
import json, sys
{first}
{second}
import torch
from faithfusion_studio.render import _core
from faithfusion_studio.render.rasterization import rasterization
g = torch.Generator().manual_seed(0)
n = 2000
means = torch.randn(n, 3, generator=g) + torch.tensor([0.0, 0.0, 5.0])
tensors = [means, torch.randn(n, 4, generator=g), torch.rand(n, 3, generator=g) * 0.1 + 0.02]
tensors += [torch.rand(n, generator=g), torch.randn(n, 9, 3, generator=g) * 0.3]
tensors = [t.requires_grad_() for t in tensors]
K = torch.tensor([[80.0, 0, 50], [0, 80.0, 30], [0, 0, 1]])
torch.set_num_threads(2)
a = torch.randn(400, 400, generator=g)
for _ in range(3):
    product = a @ a
    colors, alphas, _ = rasterization(*tensors, torch.eye(4)[None], K[None], 101, 61, sh_degree=2)
    (colors.square().sum() + (a @ a).sum() * 0).backward()
numbers = [float(colors.double().sum()), float(alphas.double().sum())]
numbers += [float(t.grad.double().abs().sum()) for t in tensors]
print(json.dumps([_core.instruction_set(), numbers]))
"""


_seen: dict = {}
"""Results by import order and environment: a fresh interpreter with torch takes seconds."""


def _render_elsewhere(run_python, first: str, second: str, simd: str = "") -> list:
    if (first, simd) not in _seen:
        code = RENDER_ELSEWHERE.format(first=first, second=second)
        done = run_python("-c", code, env={"FAITHFUSION_SIMD": simd})
        assert done.returncode == 0, done.stderr
        _seen[first, simd] = json.loads(done.stdout)
    return _seen[first, simd]


CORE, TORCH = "from faithfusion_studio.render import _core", "import torch"


def test_core_and_torch_live_together_in_both_import_orders(run_python) -> None:
    _, first = _render_elsewhere(run_python, CORE, TORCH)
    _, second = _render_elsewhere(run_python, TORCH, CORE)
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize("asked", ["baseline", "avx2"])
def test_every_instruction_set_gives_the_same_numbers(run_python, asked: str) -> None:
    best, expected = _render_elsewhere(run_python, TORCH, CORE)
    name, found = _render_elsewhere(run_python, TORCH, CORE, asked)
    if asked != name:
        pytest.skip(f"this machine has no {asked}")
    assert name == asked or best == "baseline"
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (16, 16), (17, 15), (5, 40), (50, 1)])
def test_odd_image_sizes_equal_the_float64_twin(size: tuple[int, int]) -> None:
    scene, view = street(60), camera(*size)
    found, alphas, _ = rasterization(**scene, **view, sh_degree=1)
    double = {k: v.double() for k, v in {**scene, **view}.items() if isinstance(v, Tensor)}
    expected, covered = slow_raster.rasterization(
        **double, width=size[0], height=size[1], sh_degree=1
    )
    assert float((found - expected).abs().max()) < 1e-4
    assert float((alphas - covered).abs().max()) < 1e-4


def test_a_scene_without_gaussians_shows_the_background() -> None:
    scene = {k: v[:0] for k, v in street().items()}
    background = torch.tensor([[0.2, 0.4, 0.6]])
    found = gradients(scene, camera(40, 30), backgrounds=background)
    assert torch.equal(found[0][0, ..., :3], background.expand(30, 40, 3))
    assert float(found[1].abs().max()) == 0
    _, _, meta = rasterization(**scene, **camera(40, 30), sh_degree=1)
    assert accumulate_information(meta, torch.ones(1, 30, 40)).shape == (1, 0, 45)
    assert float(evaluate_information(meta, torch.zeros(1, 0, 45)).abs().max()) == 0


def test_gaussians_behind_the_camera_have_no_image_and_no_gradient() -> None:
    scene = street(means=-street()["means"].abs() - 1)
    found = gradients(scene, camera(40, 30))
    assert all(float(t.abs().max()) == 0 for t in found)


def test_broken_gaussians_leave_no_trace_in_the_image() -> None:
    scene, view = street(400), camera(60, 40)
    broken = {k: v.clone() for k, v in scene.items()}
    for row, name in enumerate(("means", "quats", "scales", "opacities")):
        broken[name][row] = float("nan")
        broken[name][row + 4] = float("inf")
    broken["quats"][8] = 0
    broken["scales"][9] = 1e30
    broken["colors"][10] = float("nan")
    broken["colors"][11] = float("inf")
    found = gradients(broken, view)
    assert all(torch.isfinite(t).all() for t in found)
    expected = gradients({k: v[12:] for k, v in scene.items()}, view)
    assert torch.equal(found[0], expected[0])
    features = {**broken, "colors": broken["colors"][:, 0]}
    image = rasterization(**features, **view)[0]
    assert torch.isfinite(image).all()
    assert float(image.abs().max()) > 0.1


def test_huge_and_needle_like_gaussians_stay_finite() -> None:
    scene = street(400)
    scene["scales"][:100] = torch.tensor([1e3, 1e-4, 1e-6])
    scene["scales"][100:200] = 1e4
    scene["scales"][200:300] = 1e-9
    scene["means"][300:, 2] = 0.0101
    assert all(torch.isfinite(t).all() for t in gradients(scene, camera(97, 55)))


def test_nothing_depends_on_the_storage_order_of_the_gaussians() -> None:
    scene, view = street(), camera(97, 55)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(3))
    first = rasterization(**scene, **view, sh_degree=1)[0]
    second = rasterization(**{k: v[order] for k, v in scene.items()}, **view, sh_degree=1)[0]
    assert torch.equal(first, second)


def test_strided_and_double_precision_inputs_are_converted() -> None:
    scene, view = street(300), camera(60, 40)
    strided = {k: torch.stack([v, v], 1)[:, 0].double() for k, v in scene.items()}
    expected = rasterization(**scene, **view, sh_degree=1)[0]
    leaf = strided["means"].clone().requires_grad_()
    colors, _, _ = rasterization(**{**strided, "means": leaf}, **view, sh_degree=1)
    assert torch.equal(colors, expected)
    colors.sum().backward()
    assert leaf.grad.dtype == torch.float64


def test_backward_may_run_twice_over_one_forward() -> None:
    scene, view = street(300), camera(60, 40)
    means = scene["means"].clone().requires_grad_()
    colors, _, _ = rasterization(**{**scene, "means": means}, **view, sh_degree=1)
    with deterministic():
        (first,) = torch.autograd.grad(colors.sum(), means, retain_graph=True)
        (second,) = torch.autograd.grad(colors.sum(), means)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quats": torch.zeros(3000, 3)}, r"quats of shape \(3000, 3\)"),
        ({"opacities": torch.zeros(3000, 1)}, "opacities of shape"),
        ({"colors": torch.zeros(3000, 3, 3)}, "colors of shape"),
        ({"means": torch.zeros(3000, 3, dtype=torch.int32)}, "means of torch.int32"),
        ({"viewmats": torch.eye(4)}, "viewmats of shape"),
        ({"viewmats": torch.zeros(0, 4, 4), "Ks": torch.zeros(0, 3, 3)}, "no camera"),
        ({"backgrounds": torch.zeros(1, 4)}, "backgrounds of shape"),
        ({"width": 0}, "0x30"),
        ({"height": 40000}, "40x40000"),
        ({"sh_degree": 4}, "sh_degree 4"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_one_sentence(changes: dict, words: str) -> None:
    arguments = {**street(), **camera(40, 30), "sh_degree": 1, **changes}
    with pytest.raises(BackendError, match=words) as caught:
        rasterization(**arguments)
    assert "\n" not in str(caught.value)


def test_tensors_on_a_device_without_backend_are_refused() -> None:
    arguments = {k: v.to("meta") for k, v in street(3).items()}
    view = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in camera(40, 30).items()}
    with pytest.raises(BackendError, match="tensors are on meta"):
        rasterization(**arguments, **view, sh_degree=1)


def test_the_information_kernels_refuse_what_does_not_fit() -> None:
    scene, view = street(50), camera(40, 30)
    _, _, depth_only = rasterization(**scene, **view, sh_degree=1, render_mode="D")
    with pytest.raises(BackendError, match="no three colour channels"):
        accumulate_information(depth_only, torch.ones(1, 30, 40))
    _, _, meta = rasterization(**scene, **view, sh_degree=1)
    with pytest.raises(BackendError, match=r"pixel_weight of shape \(1, 40, 30\)"):
        accumulate_information(meta, torch.ones(1, 40, 30))
    with pytest.raises(BackendError, match=r"covariances of shape \(1, 49, 45\)"):
        evaluate_information(meta, torch.ones(1, 49, 45))


def test_a_forked_child_can_still_render(run_python) -> None:
    code = (
        RENDER_ELSEWHERE.format(first="", second="").split("for _")[0]
        + """
import os
from faithfusion_studio.render import thread_limit
def render():
    with torch.no_grad(), thread_limit(2):
        return rasterization(*tensors, torch.eye(4)[None], K[None], 101, 61, sh_degree=2)[0]
expected = render()
pid = os.fork()
if pid == 0:
    os._exit(0 if torch.equal(render(), expected) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    )
    done = run_python("-W", "ignore", "-c", code, timeout=60)
    assert done.returncode == 0, done.stderr


def test_an_unknown_mode_is_refused_with_the_known_ones(run_python) -> None:
    code = f"{RENDER_ELSEWHERE.format(first='', second='').split('for _')[0]}" + (
        "rasterization(*tensors, torch.eye(4)[None], K[None], 9, 9, sh_degree=2, render_mode='RGBD')"
    )
    done = run_python("-c", code)
    last = done.stderr.strip().splitlines()[-1]
    assert "BackendError" in last and "'RGBD'" in last and "RGB+ED" in last
