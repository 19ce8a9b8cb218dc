"""From what a view tells about screen records to what it tells about Gaussians, and back.

Symbols: theta = the 13 parameters of one Gaussian (mean 3 in its own frame, m; rotation tangent 3
in body axes, rad: q * [1, t / 2]; log-scale 3; opacity logit 1; sh0 3). record = its 9 screen
values (mean2d 2; cov2d xx xy yy; opacity logit; colour 3). A = d record / d theta [9, 13] once per
Gaussian and view, S = sum over pixels of J^T J [9, 9], J = d colour / d record [3, 9].
Fisher block H += A^T S A; posterior covariance of the record M = A (H + prior)^-1 A^T.
Symmetric matrices are packed upper triangles, row by row: 91 of 13x13, 45 of 9x9.

The compiled core does this on the CPU; the torch formulas below do it on other devices and are the
readable statement of both. With P = Jp W the 2x3 map from world to screen at the mean, u and v its
rows times the body rotation, and s the scales: cov2d = (sum s_k^2 u_k^2, sum s_k^2 u_k v_k, ...).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from faithfusion_studio.render.rasterization import RasterizationMeta, backend
from faithfusion_studio.transforms import SH_C0, eval_sh, quat_to_rotmat, sh_basis

PARAMETERS, RECORD = 13, 9
PACKED_BLOCK, PACKED_RECORD = 91, 45
CHUNK = 1 << 17
"""Gaussians the torch formulas take at a time; their temporaries need about 4 KB each."""


@dataclass(frozen=True, eq=False)
class ChainView:
    """Gaussians in world axes as one camera sees them, and where their evidence is kept."""

    means: Float[Tensor, "N 3"]
    """World, m."""
    quats: Float[Tensor, "N 4"]
    """Body -> world, wxyz."""
    scales: Float[Tensor, "N 3"]
    """Standard deviations, m."""
    sh0: Float[Tensor, "N 1 3"]
    """Degree-0 SH coefficient."""
    shN: Float[Tensor, "N R 3"]
    """Higher SH coefficients, R >= (sh_degree + 1)^2 - 1."""
    sh_degree: int
    viewmat: Float[Tensor, "4 4"]
    """World -> camera."""
    K: Float[Tensor, "3 3"]
    """Intrinsics, pixels."""
    width: int
    height: int
    visible: Int[Tensor, "V"]
    """Which Gaussians to handle: those the rasteriser did not cull."""
    rows: Int[Tensor, "N"] | None = None
    """Row of each Gaussian in the evidence tensors; None when the same."""
    nodes: Int[Tensor, "N"] | None = None
    """Moving object of each Gaussian, -1 for none; None when nothing moves."""
    node_rotations: Float[Tensor, "M 3 3"] | None = None
    """Rotation object -> world per object: means of objects are parameters in the object's frame."""
    color_rotations: Float[Tensor, "M 3 3"] | None = None
    """The same for objects whose view-dependent colour turns with them, the identity for the others: the higher SH
    coefficients are parameters in these axes, though `shN` is in those of the world. None where nothing turns."""

    @property
    def evidence_rows(self) -> Int[Tensor, "V"]:
        """Rows of the visible Gaussians in the evidence tensors."""
        return self.visible if self.rows is None else self.rows[self.visible]


def visible_gaussians(meta: RasterizationMeta) -> Int[Tensor, "V"]:
    """Which Gaussians the first camera of a rasterisation drew."""
    return backend(meta.device).visible_gaussians(meta)


def last_positions(meta: RasterizationMeta) -> Int[Tensor, "H W"]:
    """List position, from 1, of the last Gaussian the first camera blended into each pixel; 0 for none."""
    return backend(meta.device).last_positions(meta)


def pack(matrices: Float[Tensor, "*B D D"]) -> Float[Tensor, "*B T"]:
    """Upper triangles of symmetric matrices, row by row."""
    rows, columns = torch.triu_indices(*matrices.shape[-2:], device=matrices.device)
    return matrices[..., rows, columns]


def unpack(packed: Float[Tensor, "*B T"], size: int) -> Float[Tensor, "*B D D"]:
    """Symmetric matrices [size, size] from their packed upper triangles."""
    rows, columns = torch.triu_indices(size, size, device=packed.device)
    out = packed.new_zeros(*packed.shape[:-1], size, size)
    out[..., rows, columns] = packed
    out[..., columns, rows] = packed
    return out


def add_fisher(
    view: ChainView,
    information: Float32[Tensor, "N 45"],
    blocks: Float32[Tensor, "G 91"],
    sh_evidence: Float32[Tensor, "G R 3"],
) -> None:
    """Add one view's evidence: blocks += A^T S A, sh_evidence += basis^2 S_colour, in place.

    Args:
        view: The Gaussians and the camera.
        information: S of each Gaussian, from `accumulate_information`, already over sigma^2.
        blocks: Sums of Fisher blocks, packed.
        sh_evidence: Sums of the diagonal Fisher of the higher SH coefficients; R may be 0.
    """
    if blocks.device.type == "cpu":
        core, threads = _core()
        core.fisher_chain(
            _arguments(view), _plain(information), blocks.numpy(), sh_evidence.numpy(), threads
        )
        return
    for part in _chunks(view):
        A, basis, lit = chain_matrices(part)
        S = unpack(information[part.visible], RECORD)
        rows = part.evidence_rows
        blocks.index_add_(0, rows, pack(A.transpose(1, 2) @ S @ A))
        if basis.shape[1] > 1:
            colour = torch.diagonal(S, dim1=1, dim2=2)[:, 6:] * lit
            gain = basis[:, 1:, None] ** 2 * colour[:, None]
            sh_evidence[:, : gain.shape[1]].index_add_(0, rows, gain)


def factor_blocks(
    blocks: Float32[Tensor, "G 91"], prior: Float32[Tensor, "G 13"], *, diagonal: bool = False
) -> Float32[Tensor, "G 91"]:
    """Inverse Cholesky factors W of H + prior, so that (H + prior)^-1 = W^T W.

    Args:
        blocks: H, packed.
        prior: Diagonal prior precision, positive.
        diagonal: Use only the diagonal of H.

    Returns:
        Packed lower triangles, row by row; they do not depend on a view and may be kept.
    """
    if blocks.device.type == "cpu":
        core, threads = _core()
        out = torch.empty_like(blocks)
        core.factor_blocks(_plain(blocks), _plain(prior), diagonal, out.numpy(), threads)
        return out
    rows, columns = torch.tril_indices(PARAMETERS, PARAMETERS, device=blocks.device)
    factors = [blocks.new_empty(0, PACKED_BLOCK)]
    for some, precision in zip(blocks.split(CHUNK), prior.split(CHUNK), strict=True):
        H = unpack(some.double(), PARAMETERS) + torch.diag_embed(precision.double())
        if diagonal:
            W = torch.diag_embed(torch.diagonal(H, dim1=1, dim2=2).rsqrt())
        else:
            eye = torch.eye(PARAMETERS, dtype=H.dtype, device=H.device).expand_as(H)
            W = torch.linalg.solve_triangular(torch.linalg.cholesky(H), eye, upper=False)
        factors.append(W[:, rows, columns].to(blocks.dtype))
    return torch.cat(factors)


def posterior_covariances(
    view: ChainView,
    factors: Float32[Tensor, "G 91"],
    *,
    scale: float,
    sh_evidence: Float32[Tensor, "G R 3"] | None = None,
    sh_prior: float = 1.0,
) -> Float32[Tensor, "N 45"]:
    """Covariance of each visible Gaussian's screen record under its posterior, times `scale`.

    Args:
        view: The Gaussians and the camera.
        factors: From `factor_blocks`, by evidence row.
        scale: Usually 1 / sigma^2 of the novel pixel.
        sh_evidence: Diagonal Fisher of the higher SH coefficients; None leaves their term out.
        sh_prior: Prior precision of each of these coefficients.

    Returns:
        Packed 9x9 matrices; zero for Gaussians that are not visible.
    """
    out = torch.zeros(len(view.means), PACKED_RECORD, device=view.means.device)
    if out.device.type == "cpu":
        core, threads = _core()
        evidence = None if sh_evidence is None else _plain(sh_evidence)
        core.posterior_covariances(
            _arguments(view), _plain(factors), evidence, sh_prior, scale, out.numpy(), threads
        )
        return out
    rows, columns = torch.tril_indices(PARAMETERS, PARAMETERS, device=out.device)
    for part in _chunks(view):
        A, basis, lit = chain_matrices(part)
        W = factors.new_zeros(len(A), PARAMETERS, PARAMETERS)
        W[:, rows, columns] = factors[part.evidence_rows]
        X = W @ A.transpose(1, 2)
        M = X.transpose(1, 2) @ X
        if sh_evidence is not None and basis.shape[1] > 1:
            variance = 1 / (sh_evidence[part.evidence_rows, : basis.shape[1] - 1] + sh_prior)
            colour = (basis[:, 1:, None] ** 2 * variance).sum(1) * lit
            M.diagonal(dim1=1, dim2=2)[:, 6:] += colour
        out[part.visible] = pack(M * scale)
    return out


def parameter_variances(
    blocks: Float32[Tensor, "G 91"], prior: Float32[Tensor, "G 13"]
) -> Float32[Tensor, "G 16"]:
    """1 / (diagonal of H + prior), what the diagonal form keeps; padded by three zeros to a whole vector.

    Args:
        blocks: H, packed.
        prior: Diagonal prior precision, positive.
    """
    out = blocks.new_zeros(len(blocks), 16)
    at = torch.tensor(diagonal_of(PARAMETERS), device=blocks.device)
    torch.reciprocal(blocks[:, at] + prior, out=out[:, :PARAMETERS])
    return out


def diagonal_of(size: int) -> list[int]:
    """Where the diagonal lies in the packed upper triangle of a [size, size] matrix."""
    return [a * size - a * (a - 1) // 2 for a in range(size)]


# --------------------------------------------------------------------------- formulas in torch


def _chunks(view: ChainView) -> Iterator[ChainView]:
    """The view, some visible Gaussians at a time."""
    for index in view.visible.split(CHUNK):
        yield replace(view, visible=index)


def chain_matrices(
    view: ChainView,
) -> tuple[Float[Tensor, "V 9 13"], Float[Tensor, "V K"], Float[Tensor, "V 3"]]:
    """A of every visible Gaussian, the SH basis at its direction, and 1 where a colour is not clamped.

    The basis is in the axes in which the higher SH coefficients are parameters.
    """
    index = view.visible
    m, scales, sh = view.means[index], view.scales[index], torch.cat([view.sh0, view.shN], 1)[index]
    W = view.viewmat[:3, :3].to(m)
    t = m @ W.T + view.viewmat[:3, 3].to(m)
    body = W @ quat_to_rotmat(view.quats[index])
    A = m.new_zeros(len(m), RECORD, PARAMETERS)
    A[:, :5, :3] = _mean_rows(view, t, body, scales) @ W
    A[:, 2:5, 3:9] = _shape_rows(view, t, body, scales)
    A[:, 5, 9] = 1
    colour, basis, lit = _colour_rows(view, m, sh)
    A[:, 6:, :3] = colour
    A[:, 6:, 10:] = torch.diag_embed(SH_C0 * lit)
    if view.nodes is not None and view.node_rotations is not None:
        A[:, :, :3] = A[:, :, :3] @ _rotations(view.nodes[index], view.node_rotations.to(m))
        if view.color_rotations is not None:
            turn = _rotations(view.nodes[index], view.color_rotations.to(m))
            seen = torch.nn.functional.normalize(m - _centre(view, m), dim=-1)
            basis = sh_basis(view.sh_degree, (seen[:, None] @ turn)[:, 0])
    return A, basis, lit


def _rotations(node: Tensor, rotations: Tensor) -> Tensor:
    """Of each Gaussian's object to the world [V, 3, 3]; the identity for the background."""
    eye = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    moving = (node >= 0)[:, None, None]
    return torch.where(moving, rotations[node.long().clamp(min=0)], eye)


def _centre(view: ChainView, m: Tensor) -> Tensor:
    """Where the camera is, world."""
    return -view.viewmat[:3, :3].to(m).T @ view.viewmat[:3, 3].to(m)


def _clamped(view: ChainView, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    K = view.K
    fx, fy, cx, cy = (float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    mx, my = 0.15 * view.width / fx, 0.15 * view.height / fy
    xn, yn = t[:, 0] / t[:, 2], t[:, 1] / t[:, 2]
    cx_n = xn.clamp(-cx / fx - mx, (view.width - cx) / fx + mx)
    cy_n = yn.clamp(-cy / fy - my, (view.height - cy) / fy + my)
    return t[:, 2] * cx_n, t[:, 2] * cy_n, cx_n != xn, cy_n != yn


def _pinhole(view: ChainView, t: Tensor) -> Tensor:
    fx, fy = float(view.K[0, 0]), float(view.K[1, 1])
    tx, ty, _, _ = _clamped(view, t)
    z, zero = t[:, 2], torch.zeros_like(tx)
    rows = [fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2]
    return torch.stack(rows, -1).reshape(-1, 2, 3)


def _shape_rows(view: ChainView, t: Tensor, body: Tensor, scales: Tensor) -> Tensor:
    u, v = (_pinhole(view, t) @ body).unbind(1)
    s2 = scales**2
    columns = []
    for k in range(3):
        b, c = (k + 1) % 3, (k + 2) % 3
        turned = [2 * u[:, b] * u[:, c], u[:, b] * v[:, c] + u[:, c] * v[:, b]]
        turned.append(2 * v[:, b] * v[:, c])
        columns.append((s2[:, b] - s2[:, c])[:, None] * torch.stack(turned, -1))
    for k in range(3):
        grown = torch.stack([u[:, k] ** 2, u[:, k] * v[:, k], v[:, k] ** 2], -1)
        columns.append(2 * s2[:, k, None] * grown)
    return torch.stack(columns, -1)


def _mean_rows(view: ChainView, t: Tensor, body: Tensor, scales: Tensor) -> Tensor:
    fx, fy = float(view.K[0, 0]), float(view.K[1, 1])
    x, y, z = t.unbind(-1)
    tx, ty, beyond_x, beyond_y = _clamped(view, t)
    covariance = body * scales[:, None] ** 2 @ body.transpose(1, 2)
    Y0, Y1 = (_pinhole(view, t) @ covariance).unbind(1)
    e0, e1, zero = -fx / z**2, -fy / z**2, torch.zeros_like(z)
    a, b = torch.where(beyond_x, zero, e0), torch.where(beyond_y, zero, e1)
    c, d = fx * tx / z**3, fy * ty / z**3
    c, d = torch.where(beyond_x, c, 2 * c), torch.where(beyond_y, d, 2 * d)
    mixed = e0 * Y1[:, 0] + c * Y1[:, 2] + e1 * Y0[:, 1] + d * Y0[:, 2]
    rows = [
        [fx / z, zero, -fx * x / z**2],
        [zero, fy / z, -fy * y / z**2],
        [2 * a * Y0[:, 2], zero, 2 * (e0 * Y0[:, 0] + c * Y0[:, 2])],
        [a * Y1[:, 2], b * Y0[:, 2], mixed],
        [zero, 2 * b * Y1[:, 2], 2 * (e1 * Y1[:, 1] + d * Y1[:, 2])],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], 1)


def _colour_rows(view: ChainView, m: Tensor, sh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    centre = _centre(view, m)
    with torch.enable_grad():
        at = m.detach().clone().requires_grad_(True)
        colour = eval_sh(view.sh_degree, sh.detach(), at - centre) + 0.5 + 0 * at
        rows = [
            torch.autograd.grad(colour[:, ch].sum(), at, retain_graph=True)[0] for ch in range(3)
        ]
    lit = (colour.detach() >= 0).to(m)
    basis = sh_basis(view.sh_degree, torch.nn.functional.normalize(m - centre, dim=-1))
    return torch.stack(rows, 1) * lit[:, :, None], basis, lit


# ------------------------------------------------------------------------------- compiled core


def _core() -> tuple:
    from faithfusion_studio.render import cpu

    return cpu._load_core(), cpu._work()[0]


def _plain(tensor: Tensor):
    return tensor.detach().to(torch.float32).contiguous().numpy()


def _indices(tensor: Tensor | None):
    return None if tensor is None else tensor.to(torch.int32).contiguous().numpy()


def _arguments(view: ChainView) -> tuple:
    rotations = None if view.node_rotations is None else _plain(view.node_rotations)
    return (
        _plain(view.means),
        _plain(view.quats),
        _plain(view.scales),
        _plain(view.sh0),
        _plain(view.shN),
        view.sh_degree,
        _indices(view.visible),
        _indices(view.rows),
        None if rotations is None else _indices(view.nodes),
        rotations,
        _plain(view.viewmat),
        _plain(view.K),
        view.width,
        view.height,
        None if view.color_rotations is None else _plain(view.color_rotations),
    )
