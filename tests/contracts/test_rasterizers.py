"""One contract for every rasteriser: the same images, gradients and information as the float64 twin."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from faithfusion_studio.render.rasterization import (
    accumulate_information,
    evaluate_information,
    rasterization,
)

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
sys.path.insert(0, str(REFERENCE))
import gsplat_twin  # noqa: E402
import slow_raster as slow  # noqa: E402

GOLDEN = ["plain_sh0", "plain_sh3", "hard_sh1", "crowd_sh2"]
HAS_CUDA = torch.cuda.is_available()
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")],
)
TWIN = pytest.param(
    "twin", marks=pytest.mark.skipif(HAS_CUDA, reason="the kernels themselves run on this machine")
)
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
BACKENDS = ["cpu", CUDA, TWIN]
"""The CPU core; CUDA; the CUDA backend on CPU tensors, over a torch twin of gsplat's operators."""
PARAMETERS = ("means", "quats", "scales", "opacities", "sh")
UPPER9, UPPER3 = torch.triu_indices(9, 9), torch.triu_indices(3, 3)


@pytest.fixture(params=BACKENDS)
def device(request, monkeypatch) -> str:
    """Where the tensors of the backend under test live."""
    if request.param != "twin":
        return request.param
    gsplat_twin.install(monkeypatch)
    return "cpu"


def bar(device: str, tight: float, cuda: float) -> float:
    """The largest relative error allowed; gsplat's fast arithmetic is given gsplat's own tolerances."""
    return cuda if device == "cuda" else tight


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    difference = (found.detach().double().cpu() - expected.detach().double()).abs().max()
    return float(difference / expected.detach().abs().max().clamp(min=1e-12))


def golden(name: str) -> dict:
    with np.load(REFERENCE / "golden" / f"{name}.npz") as data:
        arrays = {key: torch.from_numpy(value) for key, value in data.items()}
    for key in ("W", "H", "sh_degree"):
        arrays[key] = int(arrays[key])
    return arrays


def random_scene(seed: int, n: int = 12, degree: int = 2, cameras: int = 2) -> dict:
    """A float64 scene in front of `cameras` random rigid cameras, 37x21 pixels."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    viewmats = torch.eye(4, dtype=torch.float64).repeat(cameras, 1, 1)
    quats = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64) + 0.1 * normal(cameras, 4)
    viewmats[:, :3, :3] = slow.rotations(quats)
    viewmats[:, :3, 3] = 0.3 * normal(cameras, 3)
    K = torch.tensor([[28.0, 0, 17.2], [0, 31.0, 11.1], [0, 0, 1]], dtype=torch.float64)
    return {
        "means": torch.cat([1.5 * normal(n, 2), 3 + 3 * uniform(n, 1)], -1),
        "quats": normal(n, 4),
        "scales": torch.exp(-1.2 + 0.6 * normal(n, 3)),
        "opacities": 0.05 + 0.9 * uniform(n),
        "sh": 0.4 * normal(n, (degree + 1) ** 2, 3),
        "sh_degree": degree,
        "viewmats": viewmats,
        "Ks": K.repeat(cameras, 1, 1),
        "W": 37,
        "H": 21,
        "backgrounds": uniform(cameras, 3),
    }


def leaves(scene: dict, device: str, dtype: torch.dtype) -> list[Tensor]:
    names = (*PARAMETERS, "viewmats", "backgrounds")
    return [scene[k].to(device, dtype, copy=True).requires_grad_() for k in names]


def both(scene: dict, device: str, **options: str) -> tuple[list, list, list, list]:
    """Outputs and gradients of the same random scalar: the backend under test, then the twin."""
    results = []
    for dtype, where, renderer in (
        (torch.float32, device, rasterization),
        (torch.float64, "cpu", slow.rasterization),
    ):
        means, quats, scales, opacities, sh, viewmats, backgrounds = tensors = leaves(
            scene, where, dtype
        )
        outputs = renderer(
            means,
            quats,
            scales,
            opacities,
            sh,
            viewmats,
            scene["Ks"].to(where, dtype),
            scene["W"],
            scene["H"],
            sh_degree=scene["sh_degree"],
            backgrounds=backgrounds,
            **options,
        )[:2]
        g = torch.Generator().manual_seed(5)
        loss = sum(
            (o * torch.randn(o.shape, generator=g, dtype=torch.float64).to(o)).sum()
            for o in outputs
        )
        gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
        results += [list(outputs), list(gradients)]
    return tuple(results)


@pytest.mark.parametrize("name", GOLDEN)
def test_images_equal_the_golden_files(name: str, device: str) -> None:
    d = golden(name)
    views = torch.cat([d["train_viewmats"], d["novel_viewmat"][None]])
    Ks = torch.cat([d["train_Ks"], d["novel_K"][None]])
    colors, alphas, _ = rasterization(
        *(d[k].float().to(device) for k in PARAMETERS),
        views.float().to(device),
        Ks.float().to(device),
        d["W"],
        d["H"],
        sh_degree=d["sh_degree"],
        backgrounds=d["background"].float().to(device).expand(len(views), 3),
        render_mode="RGB+ED",
    )
    for kind, found in (
        ("rgb", colors[..., :3]),
        ("depth", colors[..., 3]),
        ("alpha", alphas[..., 0]),
    ):
        assert relative(found[:3], d[f"train_{kind}"]) < bar(device, 1e-4, 2e-4)
        assert relative(found[3], d[f"novel_{kind}"]) < bar(device, 1e-4, 2e-4)


@pytest.mark.parametrize("name", GOLDEN)
def test_gradients_equal_the_golden_files(name: str, device: str) -> None:
    d = golden(name)
    tensors = [d[k].float().to(device).requires_grad_() for k in PARAMETERS]
    colors, alphas, _ = rasterization(
        *tensors,
        d["novel_viewmat"][None].float().to(device),
        d["novel_K"][None].float().to(device),
        d["W"],
        d["H"],
        sh_degree=d["sh_degree"],
        backgrounds=d["background"][None].float().to(device),
        render_mode="RGB+ED",
    )
    v = torch.cat([d["v_rgb"], d["v_depth"][..., None]], -1).to(colors)
    loss = (colors[0] * v).sum() + (alphas[0, ..., 0] * d["v_alpha"].to(alphas)).sum()
    loss.backward()
    for name_, tensor in zip(PARAMETERS, tensors, strict=True):
        assert relative(tensor.grad, d[f"grad_{name_}"]) < bar(device, 1e-4, 5e-3), name_


@pytest.mark.parametrize("name", GOLDEN)
def test_the_slow_twin_reproduces_the_golden_images(name: str) -> None:
    d = golden(name)
    colors, alphas = slow.rasterization(
        *(d[k] for k in PARAMETERS),
        d["novel_viewmat"][None],
        d["novel_K"][None],
        d["W"],
        d["H"],
        sh_degree=d["sh_degree"],
        backgrounds=d["background"][None],
        render_mode="RGB+ED",
    )
    assert relative(colors[0, ..., :3], d["novel_rgb"]) < 1e-9
    assert relative(colors[0, ..., 3], d["novel_depth"]) < 1e-9
    assert relative(alphas[0, ..., 0], d["novel_alpha"]) < 1e-9


def test_the_slow_twin_has_the_gradients_of_its_own_finite_differences() -> None:
    scene = random_scene(3, n=3, degree=1, cameras=1)
    scene["W"], scene["H"] = 6, 5
    scene["Ks"] = scene["Ks"] / torch.tensor([6.0, 6.0, 1.0], dtype=torch.float64)[:, None]
    tensors = leaves(scene, "cpu", torch.float64)

    def render(means, quats, scales, opacities, sh, viewmats, backgrounds):
        return slow.rasterization(
            means,
            quats,
            scales,
            opacities,
            sh,
            viewmats,
            scene["Ks"],
            6,
            5,
            sh_degree=1,
            backgrounds=backgrounds,
            render_mode="RGB+ED",
            rasterize_mode="antialiased",
        )

    assert torch.autograd.gradcheck(render, tensors, eps=1e-7, atol=1e-5, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
@pytest.mark.parametrize("filtering", ["classic", "antialiased"])
def test_every_mode_equals_the_twin_in_images_and_gradients(
    device: str, mode: str, filtering: str
) -> None:
    scene = random_scene(seed=11)
    found, gradients, expected, expected_gradients = both(
        scene, device, render_mode=mode, rasterize_mode=filtering
    )
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert relative(a, b) < bar(device, 1e-4, 2e-4)
    for a, b in zip(gradients, expected_gradients, strict=True):
        if b is None or float(b.abs().max()) == 0:
            assert a is None or float(a.abs().max()) == 0
        else:
            assert relative(a, b) < bar(device, 2e-4, 5e-3)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
def test_features_of_any_width_equal_the_twin(device: str, channels: int) -> None:
    scene = random_scene(seed=channels, cameras=2)
    g = torch.Generator().manual_seed(1)
    scene["sh"] = torch.randn(12, channels, generator=g, dtype=torch.float64)
    scene["backgrounds"] = torch.randn(2, channels, generator=g, dtype=torch.float64)
    scene["sh_degree"] = None
    found, gradients, expected, expected_gradients = both(scene, device, render_mode="RGB+D")
    for a, b in zip(found + gradients, expected + expected_gradients, strict=True):
        assert relative(a, b) < bar(device, 2e-4, 5e-3)


def test_screen_gradients_belong_to_the_projected_means(device: str) -> None:
    scene = random_scene(seed=4, cameras=1)
    tensors = leaves(scene, device, torch.float32)
    colors, _, meta = rasterization(
        *tensors[:6],
        scene["Ks"].float().to(device),
        scene["W"],
        scene["H"],
        sh_degree=2,
        backgrounds=tensors[6],
        absgrad=True,
    )
    weight = torch.randn(colors.shape, generator=torch.Generator().manual_seed(2))
    (colors * weight.to(device)).sum().backward()
    parameters = [scene[k] for k in PARAMETERS]
    record = slow.project(
        *parameters, scene["viewmats"][0], scene["Ks"][0], scene["W"], scene["H"], 2
    )
    J = slow.screen_jacobians(record, scene["W"], scene["H"], scene["backgrounds"][0])
    per_pixel = torch.einsum("nhwcm,hwc->nhwm", J[..., :2], weight[0].double())
    assert relative(meta.grad_means2d[0], per_pixel.sum((1, 2))) < bar(device, 1e-4, 5e-3)
    assert relative(meta.absgrad[0], per_pixel.abs().sum((1, 2))) < bar(device, 1e-4, 5e-3)
    drawn = meta.radii[0, :, 0].cpu() > 0
    assert 0 < drawn.sum() < len(drawn)
    assert relative(meta.means2d[0][drawn], record.mean2d[drawn]) < 1e-5
    xx, xy, yy = record.cov2d[drawn].unbind(-1)
    conics = torch.stack([yy, -xy, xx], -1) / (xx * yy - xy * xy)[:, None]
    assert relative(meta.conics[0][drawn], conics) < 1e-4
    assert relative(meta.colors[0][drawn], record.color[drawn]) < 1e-5
    assert float(meta.grad_means2d[0][~drawn].abs().max()) == 0


def brute_force(scene: dict, camera: int) -> tuple[Tensor, slow.Record]:
    """Jacobians [N, H, W, 3, 9] with the rows of clamped colours masked, and their record."""
    record = slow.project(
        *(scene[k] for k in PARAMETERS),
        scene["viewmats"][camera],
        scene["Ks"][camera],
        scene["W"],
        scene["H"],
        scene["sh_degree"],
    )
    inside = replace(record, opacity=record.opacity.clamp(1e-9, 1 - 1e-9))
    J = slow.screen_jacobians(inside, scene["W"], scene["H"], scene["backgrounds"][camera])
    mask = torch.ones(len(J), 9, dtype=J.dtype)
    mask[:, 6:] = (record.color > 0).to(J)
    return J * mask[:, None, None, None], record


@pytest.mark.parametrize(
    ("device", "seed"),
    [
        *(("cpu", seed) for seed in [*range(20), *GOLDEN]),
        *(pytest.param("cuda", seed, marks=CUDA.marks) for seed in [*range(20), *GOLDEN]),
        # Triton's interpreter takes tens of milliseconds for each Gaussian in a tile.
        *(
            pytest.param("twin", seed, marks=[*TWIN.marks, needs_triton])
            for seed in [*range(4), *GOLDEN]
        ),
    ],
    indirect=["device"],
)
def test_information_equals_brute_force_jacobians_of_every_pixel(
    seed: int | str, device: str
) -> None:
    if isinstance(seed, int):
        scene = random_scene(seed, n=5, degree=seed % 4, cameras=1)
        scene["W"], scene["H"] = 22, 13
        scene["Ks"] = scene["Ks"] * torch.tensor([0.6, 0.6, 1.0], dtype=torch.float64)[:, None]
    else:
        scene = golden(seed)
        scene["viewmats"], scene["Ks"] = scene["novel_viewmat"][None], scene["novel_K"][None]
        scene["backgrounds"] = scene["background"][None]
    J, _ = brute_force(scene, 0)
    g = torch.Generator().manual_seed(9)
    weight = torch.rand(1, scene["H"], scene["W"], generator=g, dtype=torch.float64)
    root = torch.randn(len(J), 9, 9, generator=g, dtype=torch.float64)
    M = root @ root.mT
    S = torch.einsum("nhwca,nhwcb,hw->nab", J, J, weight[0])
    G = torch.einsum("nhwca,nab,nhwdb->hwcd", J, M, J)
    _, _, meta = rasterization(
        *(scene[k].float().to(device) for k in PARAMETERS),
        scene["viewmats"].float().to(device),
        scene["Ks"].float().to(device),
        scene["W"],
        scene["H"],
        sh_degree=scene["sh_degree"],
        backgrounds=scene["backgrounds"].float().to(device),
    )
    packed = M[None, :, UPPER9[0], UPPER9[1]].float().to(device)
    found_S = accumulate_information(meta, weight.float().to(device))[0]
    found_G = evaluate_information(meta, packed)[0]
    assert relative(found_S, S[:, UPPER9[0], UPPER9[1]]) < bar(device, 1e-4, 1e-3)
    assert relative(found_G, G[..., UPPER3[0], UPPER3[1]]) < bar(device, 1e-4, 1e-3)


def test_the_projection_equals_the_torch_reference_of_gsplat() -> None:
    pytest.importorskip("gsplat", reason="gsplat is not installed")
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    scene = random_scene(seed=21, n=40)
    tensors = {k: scene[k].float() for k in (*PARAMETERS, "viewmats", "Ks")}
    covars, _ = _quat_scale_to_covar_preci(tensors["quats"], tensors["scales"], True, False, False)
    radii, means2d, depths, conics, _ = _fully_fused_projection(
        tensors["means"], covars, tensors["viewmats"], tensors["Ks"], scene["W"], scene["H"]
    )
    _, _, meta = rasterization(
        *tensors.values(), scene["W"], scene["H"], sh_degree=scene["sh_degree"]
    )
    both_drawn = (radii > 0).all(-1) & (meta.radii > 0).all(-1)
    assert both_drawn.sum() > 20
    assert relative(meta.means2d[both_drawn], means2d[both_drawn].double()) < 1e-4
    assert relative(meta.depths[both_drawn], depths[both_drawn].double()) < 1e-4
    assert relative(meta.conics[both_drawn], conics[both_drawn].double()) < 1e-4
