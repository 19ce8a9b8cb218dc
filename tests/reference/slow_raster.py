"""The slow, readable twin of the rasteriser: float64 torch, every Gaussian at every pixel, any device.

Symbols: t = mean in the camera; J = pinhole Jacobian at the clamped t; Sigma2 = J W Sigma W^T J^T + eps2d I;
alpha = min(0.999, o exp(-d.Sigma2^-1.d / 2)). Nothing here is shared with the code under test.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

ALPHA_MIN, ALPHA_MAX, STOP = 1 / 255, 0.999, 1e-4


@dataclass(frozen=True)
class Record:
    """Screen record of N Gaussians in one camera, and which of them are drawn."""

    mean2d: Tensor  # [N, 2]
    cov2d: Tensor  # [N, 3] xx, xy, yy
    opacity: Tensor  # [N]
    color: Tensor  # [N, D]
    depth: Tensor  # [N]
    visible: Tensor  # [N] bool


def rotations(quats: Tensor) -> Tensor:
    """[N, 3, 3] of wxyz quaternions."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    i, j, k = torch.zeros(3, 3, 3, dtype=quats.dtype, device=quats.device)
    i[1, 2], i[2, 1], j[0, 2], j[2, 0], k[0, 1], k[1, 0] = -1, 1, 1, -1, -1, 1
    skew = x[:, None, None] * i + y[:, None, None] * j + z[:, None, None] * k
    return (
        torch.eye(3, dtype=quats.dtype, device=quats.device)
        + 2 * w[:, None, None] * skew
        + 2 * skew @ skew
    )


def harmonics(degree: int, sh: Tensor, directions: Tensor) -> Tensor:
    """[N, 3] colours before the offset of 0.5, from [N, K, 3]."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, 0.28209479177387814)]
    if degree > 0:
        c = 0.4886025119029199
        basis += [-c * y, c * z, -c * x]
    if degree > 1:
        a, b, c = 1.0925484305920792, 0.31539156525252005, 0.5462742152960396
        basis += [a * x * y, -a * y * z, b * (3 * z * z - 1), -a * x * z, c * (x * x - y * y)]
    if degree > 2:
        a, b, c = 0.5900435899266435, 2.890611442640554, 0.4570457994644658
        d, e = 0.3731763325901154, 1.445305721320277
        basis += [-a * y * (3 * x * x - y * y), b * x * y * z, -c * y * (5 * z * z - 1)]
        basis += [d * z * (5 * z * z - 3), -c * x * (5 * z * z - 1), e * z * (x * x - y * y)]
        basis += [-a * x * (x * x - 3 * y * y)]
    return (torch.stack(basis, -1)[..., None] * sh[:, : len(basis)]).sum(1)


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
    sh_degree: int | None = None,
    eps2d: float = 0.3,
    near: float = 0.01,
    antialiased: bool = False,
) -> Record:
    """Screen record of every Gaussian in one camera."""
    W, tau = viewmat[:3, :3], viewmat[:3, 3]
    x, y, z = (means @ W.T + tau).unbind(-1)
    drawn = z >= near
    z = torch.where(drawn, z, torch.ones_like(z))
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    tx = z * torch.clamp(x / z, -(cx / fx + margin_x), (width - cx) / fx + margin_x)
    ty = z * torch.clamp(y / z, -(cy / fy + margin_y), (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2], -1)
    half = J.reshape(-1, 2, 3) @ W @ rotations(quats) @ torch.diag_embed(scales)
    cov = half @ half.mT
    det0 = torch.linalg.det(cov)
    cov = cov + eps2d * torch.eye(2, dtype=cov.dtype, device=cov.device)
    det = torch.linalg.det(cov)
    if antialiased:
        opacities = opacities * torch.sqrt(torch.clamp(det0 / det, min=0))
    mean2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    drawn = drawn & (det > 0) & (opacities >= ALPHA_MIN)
    if sh_degree is not None:
        offset = means + torch.linalg.inv(W) @ tau
        directions = offset / offset.norm(dim=-1, keepdim=True)
        colors = torch.clamp(harmonics(sh_degree, colors, directions) + 0.5, min=0)
    cov2d = torch.stack([cov[:, 0, 0], cov[:, 0, 1], cov[:, 1, 1]], -1)
    return Record(mean2d, cov2d, opacities, colors, z, drawn)


def blend(
    record: Record, width: int, height: int, background: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Colours [H, W, D] and alphas [H, W] of one camera, front to back, pixel stop included."""
    like = record.mean2d
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([xs, ys], -1).to(like) + 0.5
    T = torch.ones(height, width).to(like)
    open_ = torch.ones(height, width, dtype=torch.bool, device=like.device)
    image = torch.zeros(height, width, record.color.shape[-1]).to(like)
    for i in torch.argsort(record.depth, stable=True).tolist():
        if not record.visible[i]:
            continue
        a, b, c = record.cov2d[i].unbind(-1)
        dx, dy = (pixels - record.mean2d[i]).unbind(-1)
        s = 0.5 * (c * dx * dx - 2 * b * dx * dy + a * dy * dy) / (a * c - b * b)
        alpha = torch.clamp(record.opacity[i] * torch.exp(-s), max=ALPHA_MAX)
        hit = open_ & (s >= 0) & (alpha >= ALPHA_MIN)
        stops = hit & (T * (1 - alpha) <= STOP)
        open_ = open_ & ~stops
        alpha = torch.where(hit & ~stops, alpha, torch.zeros_like(alpha))
        image = image + (T * alpha)[..., None] * record.color[i]
        T = T * (1 - alpha)
    if background is not None:
        image = image + T[..., None] * background
    return image, 1 - T


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    rasterize_mode: str = "classic",
) -> tuple[Tensor, Tensor]:
    """The signature under test, for every camera: colours [C, H, W, X] and alphas [C, H, W, 1]."""
    images, alphas = [], []
    for c in range(len(viewmats)):
        r = project(
            means,
            quats,
            scales,
            opacities,
            colors,
            viewmats[c],
            Ks[c],
            width,
            height,
            sh_degree,
            antialiased=rasterize_mode == "antialiased",
        )
        parts = [r.color] if "RGB" in render_mode else []
        behind = (
            [backgrounds[c] if backgrounds is not None else torch.zeros_like(r.color[0])]
            if parts
            else []
        )
        if render_mode.endswith("D"):
            parts.append(r.depth[:, None])
            behind.append(torch.zeros_like(r.depth[:1]))
        r = Record(r.mean2d, r.cov2d, r.opacity, torch.cat(parts, -1), r.depth, r.visible)
        image, alpha = blend(r, width, height, torch.cat(behind))
        if render_mode.endswith("ED"):
            image = torch.cat(
                [image[..., :-1], image[..., -1:] / alpha[..., None].clamp(min=1e-10)], -1
            )
        images.append(image)
        alphas.append(alpha[..., None])
    return torch.stack(images), torch.stack(alphas)


def screen_jacobians(record: Record, width: int, height: int, background: Tensor) -> Tensor:
    """J [N, H, W, 3, 9] = d colour(p) / d (mean2d, cov2d, logit opacity, colour), by forward differentiation."""
    packed = torch.cat(
        [record.mean2d, record.cov2d, torch.logit(record.opacity)[:, None], record.color], dim=-1
    )

    def image(rows: Tensor) -> Tensor:
        fields = rows[:, :2], rows[:, 2:5], torch.sigmoid(rows[:, 5]), rows[:, 6:]
        return blend(Record(*fields, record.depth, record.visible), width, height, background)[0]

    with warnings.catch_warnings():  # torch's forward mode still scripts its decompositions
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.func.jacfwd(image)(packed).permute(3, 0, 1, 2, 4)
