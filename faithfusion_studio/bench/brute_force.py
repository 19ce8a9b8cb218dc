"""EIG by brute force: per-pixel Jacobians by float64 autograd on tiny scenes, the oracle of the fast passes.

Nothing here is shared with the fast code except the spherical-harmonic basis. Symbols as in
`information/`: theta = 13 parameters of one Gaussian (mean 3, rotation tangent 3, log-scale 3,
opacity logit 1, sh0 3), record = 9 screen values (mean2d 2, cov2d 3 as xx xy yy, logit 1, colour 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faithfusion_studio.transforms import eval_sh, quat_multiply, quat_to_rotmat

ALPHA_MIN, ALPHA_MAX, STOP = 1 / 255, 0.999, 1e-4
EPS2D, NEAR = 0.3, 0.01


@dataclass(frozen=True)
class SlowView:
    """A pinhole view: world -> camera, intrinsics, size, colour behind everything."""

    viewmat: Tensor  # [4, 4]
    K: Tensor  # [3, 3]
    width: int
    height: int
    background: Tensor  # [3] or [H, W, 3]


@dataclass(frozen=True)
class SlowScene:
    """Gaussians with activated scales and opacities, float64."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    sh: Tensor  # [N, K, 3]
    sh_degree: int

    def __len__(self) -> int:
        return len(self.means)


def screen_records(
    scene: SlowScene, view: SlowView, theta: Tensor, shN: Tensor
) -> tuple[Tensor, Tensor]:
    """Screen records [N, 9] and depths [N] of a scene displaced by `theta` [N, 13]."""
    means = scene.means + theta[:, :3]
    one = torch.ones_like(theta[:, :1])
    quats = torch.nn.functional.normalize(scene.quats, dim=-1)
    quats = quat_multiply(quats, torch.cat([one, theta[:, 3:6] / 2], -1))
    scales = scene.scales * torch.exp(theta[:, 6:9])
    logits = torch.logit(scene.opacities) + theta[:, 9]
    sh = torch.cat([scene.sh[:, :1] + theta[:, None, 10:13], shN], 1)

    R, K = view.viewmat[:3, :3], view.K
    x, y, z = (means @ R.T + view.viewmat[:3, 3]).unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    mean2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    mx, my = 0.15 * view.width / fx, 0.15 * view.height / fy
    tx = z * torch.clamp(x / z, -cx / fx - mx, (view.width - cx) / fx + mx)
    ty = z * torch.clamp(y / z, -cy / fy - my, (view.height - cy) / fy + my)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2], -1)
    half = J.reshape(-1, 2, 3) @ R @ quat_to_rotmat(quats) * scales[:, None]
    cov = half @ half.transpose(1, 2)
    cov2d = torch.stack([cov[:, 0, 0] + EPS2D, cov[:, 0, 1], cov[:, 1, 1] + EPS2D], -1)
    centre = -R.T @ view.viewmat[:3, 3]
    color = torch.clamp(eval_sh(scene.sh_degree, sh, means - centre) + 0.5, min=0)
    return torch.cat([mean2d, cov2d, logits[:, None], color], -1), z


def composite(records: Tensor, depths: Tensor, view: SlowView) -> tuple[Tensor, Tensor]:
    """Colours [H, W, 3] and remaining transmittance [H, W], one Gaussian after the other."""
    ys, xs = torch.meshgrid(
        torch.arange(view.height, dtype=torch.float64) + 0.5,
        torch.arange(view.width, dtype=torch.float64) + 0.5,
        indexing="ij",
    )
    T = torch.ones(view.height, view.width, dtype=torch.float64)
    rgb = torch.zeros(view.height, view.width, 3, dtype=torch.float64)
    running = torch.ones_like(T, dtype=torch.bool)
    for i in torch.argsort(depths.detach(), stable=True).tolist():
        opacity = torch.sigmoid(records[i, 5])
        if float(depths[i].detach()) < NEAR or float(opacity.detach()) < ALPHA_MIN:
            continue
        sxx, sxy, syy = records[i, 2:5]
        dx, dy = xs - records[i, 0], ys - records[i, 1]
        s = 0.5 * (syy * dx * dx - 2 * sxy * dx * dy + sxx * dy * dy) / (sxx * syy - sxy * sxy)
        alpha = torch.clamp(opacity * torch.exp(-s), max=ALPHA_MAX)
        seen = running & (alpha >= ALPHA_MIN)
        stops = seen & (T * (1 - alpha) <= STOP)
        running = running & ~stops
        alpha = torch.where(seen & ~stops, alpha, torch.zeros_like(alpha))
        rgb = rgb + (T * alpha)[..., None] * records[i, 6:9]
        T = T * (1 - alpha)
    return rgb + T[..., None] * view.background, T


def pixel_jacobians(scene: SlowScene, view: SlowView) -> tuple[Tensor, Tensor, Tensor]:
    """d colour / d theta [H, W, 3, N, 13], d colour / d shN [H, W, 3, N, R, 3], transmittance."""
    theta = torch.zeros(len(scene), 13, dtype=torch.float64, requires_grad=True)
    shN = scene.sh[:, 1:].clone().requires_grad_(True)
    rgb, T = composite(*screen_records(scene, view, theta, shN), view)
    J, Jsh = _jacobian(rgb, [theta, shN])
    return J, Jsh, T.detach()


def record_jacobians(scene: SlowScene, view: SlowView) -> Tensor:
    """d colour / d screen record [H, W, 3, N, 9]."""
    theta = torch.zeros(len(scene), 13, dtype=torch.float64)
    records, depths = screen_records(scene, view, theta, scene.sh[:, 1:])
    records = records.detach().requires_grad_(True)
    return _jacobian(composite(records, depths, view)[0], [records])[0]


def _jacobian(rgb: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    eye = torch.eye(rgb.numel(), dtype=torch.float64).reshape(-1, *rgb.shape)
    grads = torch.autograd.grad(rgb, inputs, eye, is_grads_batched=True, materialize_grads=True)
    return [g.reshape(*rgb.shape, *g.shape[1:]) for g in grads]


def chain(scene: SlowScene, view: SlowView) -> Tensor:
    """A_i = d record / d theta, [N, 9, 13]."""
    theta = torch.zeros(len(scene), 13, dtype=torch.float64, requires_grad=True)
    records, _ = screen_records(scene, view, theta, scene.sh[:, 1:])
    rows = [
        torch.autograd.grad(records[:, r].sum(), theta, retain_graph=True, materialize_grads=True)[
            0
        ]
        for r in range(9)
    ]
    return torch.stack(rows, 1)


def fisher(
    scene: SlowScene, views: list[SlowView], weights: list[Tensor] | float
) -> tuple[Tensor, Tensor]:
    """Blocks [N, 13, 13] and diagonal SH evidence [N, R, 3]; weight = 1 / sigma^2 per pixel."""
    H = torch.zeros(len(scene), 13, 13, dtype=torch.float64)
    sh = torch.zeros(len(scene), scene.sh.shape[1] - 1, 3, dtype=torch.float64)
    for index, view in enumerate(views):
        J, Jsh, T = pixel_jacobians(scene, view)
        w = torch.full_like(T, weights) if isinstance(weights, float) else weights[index]
        H += torch.einsum("hwcia,hwcib,hw->iab", J, J, w)
        sh += torch.einsum("hwcikd,hw->ikd", Jsh**2, w)
    return H, sh


def information_gain(
    scene: SlowScene, view: SlowView, H: Tensor, sh: Tensor, prior: Tensor, lambda_sh: float
) -> dict[str, Tensor]:
    """G [H, W, 3, 3] (times sigma^2) in block and diagonal form, SH term, squared transmittance."""
    J, Jsh, T = pixel_jacobians(scene, view)
    P = torch.linalg.inv(H + torch.diag_embed(prior))
    diagonal = 1 / (torch.diagonal(H, dim1=1, dim2=2) + prior)
    return {
        "block": torch.einsum("hwcia,iab,hwdib->hwcd", J, P, J),
        "diagonal": torch.einsum("hwcia,ia,hwdia->hwcd", J, diagonal, J),
        "sh": torch.einsum("hwcikd,ikd->hwc", Jsh**2, 1 / (sh + lambda_sh)),
        "transmittance2": T**2,
    }


def nats(G: Tensor) -> Tensor:
    """1/2 log det(I + G) of [..., 3, 3]."""
    return 0.5 * torch.logdet(torch.eye(3, dtype=G.dtype) + G)
