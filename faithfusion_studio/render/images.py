"""Differentiable passes over whole images on the CPU core: the training loss and the cube-map sky."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.autograd.function import once_differentiable

from faithfusion_studio.cameras import Camera
from faithfusion_studio.render.cpu import _load_core, _work

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


class _Sky(torch.autograd.Function):
    @staticmethod
    def forward(ctx, texels: Tensor, rotation: Tensor, K: Tensor, alpha: Tensor | None, size):
        image = torch.empty(*size, 3)
        _load_core().sky(texels.detach(), rotation, K, alpha, TRANSPARENT, image, _work()[0])
        ctx.save_for_backward(rotation, K, alpha)
        ctx.shape = texels.shape
        return image

    @staticmethod
    @once_differentiable
    def backward(ctx, v_image: Tensor):
        rotation, K, alpha = ctx.saved_tensors
        gradient = torch.zeros(ctx.shape)
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
