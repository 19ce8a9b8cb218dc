"""EIG of colour and depth together, with the registration of the picture as one more unknown.

Symbols as in `eig`. A recorded pixel would tell its colour C and its depth z, and is known to lie only
within delta pixels of where the camera model puts it (poses, rolling shutter, interpolation).

Colour. With a registration error of variance delta^2 in each direction, to first order
Cov C = sigma_0^2 (I + G) + delta^2 (C_x C_x^T + C_y C_y^T), where C_x and C_y are the derivatives of the
rendered picture: texture is uncertain in proportion to its contrast, however well its Gaussians are known.

Depth. The Gaussian that a pixel shows is drawn by its blending weight. By the law of total variance
Var z = E[Var(z | i)] + Var(E[z | i]), with Var(z | i) the extent of the Gaussian and the posterior variance
of its centre (diagonal of H + Lambda), both along the camera's axis: wrong geometry that all views agree on is
smeared along the ray, and no term of G says so. Against a depth of noise sigma_z it is 1/2 log(1 + Var z / sigma_z^2).

Colour and depth of a pixel are taken as independent given the scene, so that their nats add up:
"joint" = 1/2 log det(I + G + delta^2 (C_x C_x^T + C_y C_y^T) / sigma_0^2) + 1/2 log(1 + Var z / sigma_z^2).

delta and sigma_z were chosen on the procedural streets 110, 111 and 112 alone, at 320x180.
"""

from __future__ import annotations

import weakref

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.information.prior import FisherPrior
from faithfusion_studio.render.chain import parameter_variances
from faithfusion_studio.render.views import RasterizedView, render_features
from faithfusion_studio.scene import StoredFisher
from faithfusion_studio.transforms import quat_to_rotmat

REGISTRATION = 0.1 / 320
"""delta: standard deviation of where a pixel lies, as a share of the image width."""
DEPTH_NOISE = 10.0
"""sigma_z: a smaller one lets wrong depths outrank wrong colours, m."""
_SOBEL = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8


def image_derivatives(
    image: Float32[Tensor, "H W 3"],
) -> tuple[Float32[Tensor, "H W 3"], Float32[Tensor, "H W 3"]]:
    """Derivatives of a picture to the right and downwards, per pixel, by Sobel's kernel; edges are replicated."""
    planes = image.permute(2, 0, 1)[:, None]
    kernel = _SOBEL.to(image)
    both = torch.stack([kernel, kernel.T])[:, None]
    padded = torch.nn.functional.pad(planes, (1, 1, 1, 1), mode="replicate")
    x, y = torch.nn.functional.conv2d(padded, both).unbind(1)
    return x.permute(1, 2, 0), y.permute(1, 2, 0)


def registration_gain(
    image: Float32[Tensor, "H W 3"], noise_std: float
) -> Float32[Tensor, "H W 6"]:
    """delta^2 (C_x C_x^T + C_y C_y^T) / sigma_0^2, packed as G is."""
    scale = (REGISTRATION * image.shape[1] / noise_std) ** 2
    x, y = image_derivatives(image)
    pairs = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    return torch.stack(
        [scale * (x[..., a] * x[..., b] + y[..., a] * y[..., b]) for a, b in pairs], -1
    )


def depth_variance(
    view: RasterizedView, camera: Camera, fisher: StoredFisher, prior: FisherPrior
) -> Float32[Tensor, "H W"]:
    """Var z of every pixel by the law of total variance, m^2; 0 where nothing is."""
    g = view.world.gaussians
    viewmat = camera.viewmat.to(g.means)
    axis = viewmat[2, :3]
    blocks = fisher.blocks if view.world.rows is None else fisher.blocks[view.world.rows]
    # A mean is kept in its node's axes: within a node that turns, its variance is that of the node's axes.
    centre = parameter_variances(blocks.to(g.means), prior.precision(g.scales))[:, :3]
    extent = ((quat_to_rotmat(g.quats).transpose(1, 2) @ axis) * g.scales).square().sum(1)
    z = g.means @ axis + viewmat[2, 3]
    features = torch.stack([z, z * z, extent + centre @ axis.square()], 1)
    sums, alpha, _ = render_features(view, camera, features)
    mean = sums / alpha.clamp(min=1e-3)[..., None]
    return (mean[..., 1] - mean[..., 0].square()).clamp(min=0) + mean[..., 2]


def depth_nats(variance: Float32[Tensor, "*B"]) -> Float32[Tensor, "*B"]:
    """1/2 log(1 + Var z / sigma_z^2)."""
    return 0.5 * torch.log1p(variance / DEPTH_NOISE**2)


# The map of a scene from joint nats to [0, 1] is fitted when it is first asked for.
KNOTS: weakref.WeakKeyDictionary[StoredFisher, Float32[Tensor, "Q 2"]] = weakref.WeakKeyDictionary()
