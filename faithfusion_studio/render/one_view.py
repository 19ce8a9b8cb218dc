"""Screen information and the chain in one go, so that nothing of size [N, 45] lies between them on the CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.render.chain import (
    PACKED_BLOCK,
    PARAMETERS,
    ChainView,
    _arguments,
    _core,
    _plain,
    add_fisher,
    posterior_covariances,
)
from faithfusion_studio.render.rasterization import (
    RasterizationMeta,
    accumulate_information,
    backend,
    evaluate_information,
)


def add_view(
    view: ChainView,
    meta: RasterizationMeta,
    pixel_weight: Float32[Tensor, "H W"],
    blocks: Float32[Tensor, "G 91"],
    sh_evidence: Float32[Tensor, "G R 3"],
    background: Float32[Tensor, "H W 3"] | None = None,
) -> None:
    """`accumulate_information` and `add_fisher` of one view in one go; on the CPU without [N, 45] in between.

    Args:
        view: The Gaussians and the camera.
        meta: Of the rasterisation of that view.
        pixel_weight: 1 / sigma^2 of each pixel.
        blocks: As in `add_fisher`.
        sh_evidence: As in `add_fisher`.
        background: What lies behind the Gaussians; None is what was blended.
    """
    if blocks.device.type == "cpu":
        from faithfusion_studio.render import cpu

        behind = cpu._background(meta, 0, None if background is None else background[None])
        cpu._load_core().add_view(
            meta.tiles.frames[0],
            _arguments(view),
            behind,
            _plain(pixel_weight),
            blocks.numpy(),
            sh_evidence.numpy(),
            *cpu._work(),
        )
        return
    behind = None if background is None else background[None]
    S = accumulate_information(meta, pixel_weight[None], behind)[0]
    add_fisher(view, S, blocks, sh_evidence)


def posterior_gain(
    view: ChainView,
    meta: RasterizationMeta,
    factors: Float32[Tensor, "G P"],
    *,
    scale: float,
    sh_evidence: Float32[Tensor, "G R 3"] | None = None,
    sh_prior: float = 1.0,
    background: Float32[Tensor, "H W 3"] | None = None,
    trace: bool = False,
) -> Float32[Tensor, "H W *X"]:
    """What the posterior leaves open at every pixel of a rasterised view: G, or only its trace.

    The same as `posterior_covariances` followed by `evaluate_information`, but on the CPU nothing of size
    [N, 45] is ever written, and the trace of the diagonal form has a shorter polynomial of its own.

    Args:
        view: The Gaussians and the camera.
        meta: Of the rasterisation of that view.
        factors: From `factor_blocks` [G, 91]; with `trace` from `parameter_variances` [G, 16].
        scale: Usually 1 / sigma^2 of the novel pixel.
        sh_evidence: As in `posterior_covariances`.
        sh_prior: As in `posterior_covariances`.
        background: What lies behind the Gaussians; None is what was blended.
        trace: tr G of the diagonal form, in place of the six numbers of G.

    Returns:
        G packed as (rr, rg, rb, gg, gb, bb) [H, W, 6], or its trace [H, W].
    """
    if view.means.device.type == "cpu":
        rows = posterior_rows(
            view,
            meta,
            factors,
            scale=scale,
            sh_evidence=sh_evidence,
            sh_prior=sh_prior,
            trace=trace,
        )
        return evaluate_rows(meta, rows, background, trace=trace)
    if trace:
        spread = factors.new_zeros(len(factors), PACKED_BLOCK)
        at = torch.tensor([a * (a + 3) // 2 for a in range(PARAMETERS)], device=factors.device)
        spread[:, at] = factors[:, :PARAMETERS].sqrt()
        factors = spread
    M = posterior_covariances(
        view, factors, scale=scale, sh_evidence=sh_evidence, sh_prior=sh_prior
    )
    behind = None if background is None else background[None]
    if trace:
        return backend(meta.device).evaluate_trace(meta, M[None], behind)[0]
    return evaluate_information(meta, M[None], behind)[0]


def posterior_rows(
    view: ChainView,
    meta: RasterizationMeta,
    factors: Float32[Tensor, "G P"],
    *,
    scale: float,
    sh_evidence: Float32[Tensor, "G R 3"] | None,
    sh_prior: float,
    trace: bool,
) -> Float32[Tensor, "S L"]:
    """The first half of `posterior_gain` on the CPU: each Gaussian's part of G as polynomials in the pixel.

    Returns:
        One row per slot of the frame, set where the Gaussian reached a pixel; opaque to everyone else.
    """
    from faithfusion_studio.render import cpu

    core, threads = _core()
    frame = meta.tiles.frames[0]
    rows = cpu._empty(frame.slots, core.TRACE_ROW if trace else core.BLOCK_ROW)
    evidence = None if sh_evidence is None else _plain(sh_evidence)
    core.posterior_rows(
        frame,
        _arguments(view),
        _plain(factors),
        evidence,
        sh_prior,
        scale,
        trace,
        rows.numpy(),
        threads,
    )
    return rows


def evaluate_rows(
    meta: RasterizationMeta,
    rows: Float32[Tensor, "S L"],
    background: Float32[Tensor, "H W 3"] | None,
    *,
    trace: bool,
) -> Float32[Tensor, "H W *X"]:
    """The second half: the pixel pass over what `posterior_rows` made, with the same `trace`."""
    from faithfusion_studio.render import cpu

    core, threads = _core()
    behind = cpu._background(meta, 0, None if background is None else background[None])
    out = cpu._empty(meta.height, meta.width, *([] if trace else [6]))
    core.evaluate_rows(meta.tiles.frames[0], behind, rows.numpy(), trace, out.numpy(), threads)
    return out
