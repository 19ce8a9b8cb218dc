"""Differentiable passes over whole images on the CPU core: the training loss and the cube-map sky."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from faithfusion_studio.cameras import Camera
from faithfusion_studio.render.cpu import _empty, _load_core, _work

TRANSPARENT = 1 / 255
"""Remaining transmittance below which a pixel's sky cannot change a byte of its colour."""


class _ImageLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rendered: Tensor, image: Tensor, weight: Tensor | None, ssim_share: float):
        gradient = torch.empty_like(rendered)
        value = _load_core().image_loss(rendered, image, weight, ssim_share, gradient, _work()[0])
        ctx.save_for_backward(gradient)
        return rendered.new_tensor(value)

    @staticmethod
    @once_differentiable
    def backward(ctx, v_loss: Tensor):
        (gradient,) = ctx.saved_tensors
        return v_loss * gradient, None, None, None


def weighted_image_loss(
    rendered: Float32[Tensor, "H W 3"],
    image: Float32[Tensor, "H W 3"],
    weight: Float32[Tensor, "H W"] | None,
    ssim_share: float,
) -> Float32[Tensor, ""]:
    """Mean over pixels and channels of weight ((1 - s) |x - y| + s (1 - SSIM)), with its gradient.

    SSIM uses an 11x11 Gaussian window of sigma 1.5, zero padding and data range 1. Where the weight is 0 the
    rendered pixel is replaced by the image's, so that it reaches no neighbour and gets exactly no gradient.
    """
    contiguous = None if weight is None else weight.contiguous()
    return _ImageLoss.apply(rendered.contiguous(), image.contiguous(), contiguous, ssim_share)


@dataclass(frozen=True, eq=False)
class ViewTerms:
    """What one view is compared with; see `fusion.losses` for the terms. None leaves a term out."""

    image: Float32[Tensor, "H W 3"]
    weight: Float32[Tensor, "H W"] | None
    pixels: Int64[Tensor, "M"] | None
    """Flat indices of pixels whose depth is known."""
    depths: Float32[Tensor, "M"] | None
    """m along z."""
    ground: Float32[Tensor, "H W"] | None
    """Depth of the road, m along z; 0 off the road."""
    sky_share: Float32[Tensor, "H W"] | None
    weights: tuple[float, float, float, float, float]
    """Of 1 - SSIM (its share), known depths, road, plane, sky."""


class _ViewLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rendered, alphas, behind, exposure, terms: ViewTerms):
        wanted = ctx.needs_input_grad
        gradients = [
            _empty(*rendered.shape),
            _empty(*alphas.shape),
            _empty(*behind.shape) if wanted[2] else None,
            _empty(*exposure.shape) if exposure is not None and wanted[3] else None,
        ]
        inputs = [rendered[0], alphas[0, :, :, 0], behind, exposure, terms.image, terms.weight]
        inputs += [terms.pixels, terms.depths, terms.ground, terms.sky_share]
        plain = [None if t is None else t.detach().contiguous() for t in inputs]
        value = _load_core().view_loss(
            *(None if t is None else t.numpy() for t in plain),
            terms.weights,
            *(None if g is None else g.numpy() for g in gradients),
            _work()[0],
        )
        ctx.gradients = gradients
        return torch.tensor(value, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx, v_loss: Tensor):
        scale = float(v_loss)
        gradients = ctx.gradients
        if scale != 1:
            gradients = [None if g is None else scale * g for g in gradients]
        return *gradients, None


def fused_view_loss(
    rendered: Float32[Tensor, "1 H W 4"],
    alphas: Float32[Tensor, "1 H W 1"],
    behind: Float32[Tensor, "H W 3"],
    exposure: Float32[Tensor, "3 4"] | None,
    terms: ViewTerms,
) -> Float32[Tensor, ""]:
    """All terms of a training view in one call into the core, with their gradients.

    Args:
        rendered: Colour without what is behind, and accumulated depth, as `rasterization` gives in mode "RGB+D".
        alphas: Opacity.
        behind: Radiance behind the Gaussians.
        exposure: Affine colour correction of the frame; None is the identity.
        terms: What to compare with.
    """
    return _ViewLoss.apply(rendered, alphas, behind, exposure, terms)


class _Sky(torch.autograd.Function):
    @staticmethod
    def forward(ctx, texels: Tensor, rotation: Tensor, K: Tensor, alpha: Tensor | None, size):
        image = _empty(*size, 3)
        _load_core().sky(texels.detach(), rotation, K, alpha, TRANSPARENT, image, _work()[0])
        ctx.save_for_backward(rotation, K, alpha)
        ctx.shape = texels.shape
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx, v_image: Tensor):
        rotation, K, alpha = ctx.saved_tensors
        gradient = _empty(*ctx.shape)
        _load_core().sky_backward(
            rotation, K, alpha, TRANSPARENT, v_image.contiguous(), gradient, _work()[0]
        )
        return gradient, None, None, None, None


def cubemap_image(
    texels: Float32[Tensor, "6 R R 3"], camera: Camera, alpha: Float32[Tensor, "H W"] | None = None
) -> Float32[Tensor, "H W 3"]:
    """A cube-map sky through every pixel of a camera, differentiable in the texels.

    Args:
        texels: As in `scene.CubemapSky`.
        camera: Where from.
        alpha: Opacity of what stands before the sky; pixels it hides are left at zero. None shows all.
    """
    hidden = None if alpha is None else alpha.detach().contiguous()
    rotation = camera.camtoworld[:3, :3].to(torch.float32).contiguous()
    K = camera.K.to(torch.float32).contiguous()
    return _Sky.apply(texels.contiguous(), rotation, K, hidden, (camera.height, camera.width))


def nats_image(
    gain: Float32[Tensor, "H W *X"],
    alpha: Float32[Tensor, "H W"],
    camera: Camera,
    *,
    log_det: bool,
    sky_evidence: Float32[Tensor, "6 R R"] | None,
    void_variance: float,
    precision: float,
    knots: Float32[Tensor, "Q 2"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The last step of an EIG map in one pass: add what lies unseen behind the Gaussians, then take nats.

    Args:
        gain: G packed as (rr, rg, rb, gg, gb, bb) [H, W, 6], or its trace [H, W].
        alpha: Opacity of the Gaussians.
        camera: Where from.
        log_det: 1/2 log det(I + G); otherwise 1/2 tr G.
        sky_evidence: Evidence of each direction of the sky, on a cube map as in `scene.CubemapSky`.
        void_variance: Of the colour behind everything where no view has looked, colour unit squared.
        precision: 1 / sigma_0^2.
        knots: Of the scene's calibration: nats and value, both ascending.

    Returns:
        Nats, calibrated values, tr G / 3, and the variance of the colour behind everything; all [H, W].
    """
    images = tuple(torch.empty_like(alpha, memory_format=torch.contiguous_format) for _ in range(4))
    _load_core().nats_image(
        gain.contiguous(),
        log_det,
        alpha.contiguous(),
        None if sky_evidence is None else sky_evidence.to(torch.float32).contiguous(),
        camera.camtoworld[:3, :3].to(torch.float32).contiguous(),
        camera.K.to(torch.float32).contiguous(),
        void_variance,
        precision,
        knots.to(torch.float32).contiguous(),
        *images,
        _work()[0],
    )
    nats, calibrated, mean_gain, behind = images
    return nats, calibrated, mean_gain, behind
