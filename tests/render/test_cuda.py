"""The CUDA backend where there is no CUDA: its glue, its kernels in Triton's interpreter, its operators' twin."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from faithfusion_studio.render import cuda_information
from faithfusion_studio.render.chain import last_positions, visible_gaussians
from faithfusion_studio.render.rasterization import (
    BackendError,
    accumulate_information,
    evaluate_information,
    rasterization,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))
import gsplat_twin as twin  # noqa: E402

without_cuda = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels themselves run on this machine"
)
WIDTH, HEIGHT = 32, 13


def scene(n: int, seed: int = 0, opacity: float | None = None) -> dict[str, Tensor]:
    """Random Gaussians before one camera, float32."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(n, 3, generator=g) * torch.tensor([1.2, 0.7, 0.5])
    return {
        "means": means + torch.tensor([0.0, 0.0, 4.0]),
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.exp(-1.6 + 0.5 * torch.randn(n, 3, generator=g)),
        "opacities": torch.rand(n, generator=g) if opacity is None else torch.full((n,), opacity),
        "colors": 0.9 * torch.randn(n, 4, 3, generator=g),
    }


CAMERA = {
    "viewmats": torch.eye(4)[None],
    "Ks": torch.tensor([[[30.0, 0, WIDTH / 2], [0, 30.0, HEIGHT / 2], [0, 0, 1]]]),
}


def render(parameters: dict[str, Tensor], **options) -> tuple:
    options = {"sh_degree": 1, "render_mode": "RGB+ED", **options}
    return rasterization(*parameters.values(), *CAMERA.values(), WIDTH, HEIGHT, **options)


def close(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@without_cuda
@pytest.mark.parametrize("opacity", [None, 1.0])
def test_information_equals_the_cpu_core_on_crowded_pixels(monkeypatch, opacity) -> None:
    """Two dozen layers: many pixels stop early, and alpha reaches its limit."""
    pytest.importorskip("triton", reason="triton is not installed")
    parameters = scene(24, 3, opacity)
    g = torch.Generator().manual_seed(1)
    weight = torch.rand(1, HEIGHT, WIDTH, generator=g) * (
        torch.rand(1, HEIGHT, WIDTH, generator=g) > 0.3
    )
    sky = torch.rand(1, HEIGHT, WIDTH, 3, generator=g)
    root = torch.randn(1, 24, 9, 9, generator=g)
    i, j = torch.triu_indices(9, 9)
    covariances = (root @ root.mT)[..., i, j]

    def passes() -> tuple[Tensor, ...]:
        rgb, _, meta = render(parameters)
        S, G = (
            accumulate_information(meta, weight, sky),
            evaluate_information(meta, covariances, sky),
        )
        return rgb, S, G, visible_gaussians(meta), last_positions(meta)

    rgb, S, G, visible, last = passes()
    twin.install(monkeypatch)
    found_rgb, found_S, found_G, found_visible, found_last = passes()
    assert close(found_rgb, rgb) < 1e-4
    assert close(found_S, S) < 1e-5
    assert close(found_G, G) < 3e-5
    _, _, meta = render(parameters)
    trace = cuda_information.evaluate_trace(meta, covariances, sky)
    assert close(trace, G[..., torch.tensor([0, 3, 5])].sum(-1)) < 3e-5
    assert found_visible.tolist() == sorted(visible.tolist())
    # gsplat's lists are longer than the CPU's, which are culled by exact ellipses.
    assert bool((found_last >= last).all())
    assert ((found_last > 0) == (last > 0)).all()


def test_a_gaussian_that_is_not_finite_spoils_nothing(monkeypatch) -> None:
    good = scene(6)
    bad = {k: torch.cat([v, v[:3]]) for k, v in good.items()}
    bad["means"][6] = torch.nan
    bad["scales"][7] = torch.inf
    bad["colors"][8] = torch.nan
    twin.install(monkeypatch)
    expected, _, _ = render(good)
    found, _, meta = render(bad)
    torch.testing.assert_close(found, expected)
    assert (meta.radii[0, 6:] == 0).all()
    assert bool(torch.isfinite(meta.colors).all())


def test_nothing_to_draw_is_the_background(monkeypatch) -> None:
    behind = {k: v.clone() for k, v in scene(4).items()}
    behind["means"][:, 2] = -5
    backgrounds = torch.tensor([[0.2, 0.4, 0.6]])
    twin.install(monkeypatch)
    rgb, alphas, meta = render(behind, backgrounds=backgrounds)
    assert float(alphas.abs().max()) == 0
    torch.testing.assert_close(rgb[0, 3, 5, :3], backgrounds[0])
    assert len(visible_gaussians(meta)) == 0


def test_tensors_that_do_not_fit_are_refused_in_words(monkeypatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    twin.install(monkeypatch)
    _, _, meta = render(scene(3))
    with pytest.raises(BackendError, match="pixel_weight of shape"):
        accumulate_information(meta, torch.ones(1, 3, 3))
    with pytest.raises(BackendError, match="one block per Gaussian"):
        evaluate_information(meta, torch.zeros(1, 2, 45))
    with pytest.raises(BackendError, match="like the images"):
        evaluate_information(meta, torch.zeros(1, 3, 45), torch.zeros(1, 3, 3, 3))
    _, _, depth_only = render(scene(3), render_mode="ED")
    with pytest.raises(BackendError, match="no three colour channels"):
        evaluate_information(depth_only, torch.zeros(1, 3, 45))


def test_evaluating_a_matrix_is_the_transpose_of_accumulating_it() -> None:
    """<S, M> computed from 34 moments equals tr G computed from 39 coefficients, entry by entry."""
    evaluated, accumulated = cuda_information._tables(torch.device("cpu"))
    i, j = torch.triu_indices(9, 9)
    multiplicity = torch.where(i == j, 1.0, 2.0)[:, None]
    trace = evaluated.clone()
    trace[:, 15:33] *= 2  # tr G holds 2 gamma_c L_c for each channel
    constants = trace[:, 33:] @ torch.tensor([1.0, 0, 0, 1, 0, 1])
    as_moments = torch.cat([trace[:, :33], constants[:, None]], 1)
    torch.testing.assert_close(accumulated.T * multiplicity, as_moments)


@pytest.mark.parametrize("antialiased", [False, True])
def test_the_twin_projects_and_lists_like_gsplat_s_torch_reference(antialiased: bool) -> None:
    pytest.importorskip("gsplat", reason="gsplat is not installed")
    from gsplat.cuda import _torch_impl as reference

    p = scene(40, 5)
    covariances, _ = reference._quat_scale_to_covar_preci(p["quats"], p["scales"], True, False)
    expected = reference._fully_fused_projection(
        p["means"], covariances, *CAMERA.values(), WIDTH, HEIGHT, calc_compensations=antialiased
    )
    found = twin.project(
        *(p[k] for k in ("means", "quats", "scales", "opacities")),
        *CAMERA.values(),
        WIDTH,
        HEIGHT,
        near_plane=0.01,
        far_plane=1e10,
        radius_clip=0.0,
        eps2d=0.3,
        antialiased=antialiased,
    )
    visible = (found[0] > 0).all(-1)
    assert visible.sum() > 30
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        if theirs is not None:
            assert close(ours[visible], theirs[visible]) < 1e-4
    radii, means2d, depths = found[0], found[1].nan_to_num(0), found[2].nan_to_num(0)
    _, keys, entries = reference._isect_tiles(means2d, radii, depths, twin.TILE, 2, 1)
    offsets = reference._isect_offset_encode(keys, 1, 2, 1)
    ours = twin.list_tiles(means2d, radii, depths, 2, 1)
    assert torch.equal(ours[0], offsets.int())
    assert torch.equal(ours[1], entries.int())
    directions = p["means"][None] - torch.zeros(1, 1, 3)
    harmonics = reference._spherical_harmonics(1, directions, p["colors"][None])
    drawn = torch.ones(1, 40, dtype=torch.bool)
    torch.testing.assert_close(twin.shade(1, directions, p["colors"][None], drawn), harmonics)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from faithfusion_studio.render import cuda_kernels
for name, rows in (("evaluate_block", 8), ("evaluate_trace", 8), ("accumulate_block", 16)):
    kernel = getattr(cuda_kernels, name)
    constants = {"PER_PIXEL": True, "TILE": 16, "ROWS": rows}
    whole = dict.fromkeys(("width", "height", "columns", "rows"), "i32")
    whole |= dict.fromkeys(("entries", "starts", "last"), "*i32") | dict.fromkeys(constants, "constexpr")
    signature = {n: whole.get(n, "*fp32") for n in kernel.arg_names}
    at = {(kernel.arg_names.index(n),): v for n, v in constants.items()}
    source = ASTSource(kernel, signature=signature, constexprs=at)
    options = {"num_warps": 1, "enable_fp_fusion": True}
    ptx = compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    print(name, ptx.count("atom.") + ptx.count("red."), ptx.count(".local"))
"""


def test_the_kernels_compile_for_a_gpu_and_the_map_needs_no_atomics(run_python, tmp_path) -> None:
    """Ahead of time, to PTX of compute capability 9.0; needs no GPU."""
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    result = run_python("-c", COMPILE, env={**os.environ, **environment})
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert set(lines) == {"evaluate_block", "evaluate_trace", "accumulate_block"}, result.stderr
    assert lines["evaluate_block"] == lines["evaluate_trace"] == "0 0"
    atomics, spilled = map(int, lines["accumulate_block"].split())
    assert atomics >= 34
    assert spilled == 0
