"""Quaternion, SE(3) and spherical-harmonic mathematics on torch tensors.

Symbols: `quats` [..., 4] are wxyz (Hamilton, active); `R` [..., 3, 3] rotates column vectors;
a rigid `pose` [..., 4, 4] maps the frame it is named after into its parent. SH coefficients are
[..., K, 3] with K = (degree + 1)^2 in the order and sign used by 3DGS; colour = SH + 0.5.
"""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

SH_C0 = 0.28209479177387814
SH_C1 = 0.4886025119029199
SH_C2 = (
    1.0925484305920792,
    -1.0925484305920792,
    0.31539156525252005,
    -1.0925484305920792,
    0.5462742152960396,
)
SH_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)


def quat_multiply(a: Float[Tensor, "*B 4"], b: Float[Tensor, "*#B 4"]) -> Float[Tensor, "*B 4"]:
    """Hamilton product a * b of wxyz quaternions: first b rotates, then a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )


def quat_to_rotmat(quats: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 3 3"]:
    """Rotation matrices of wxyz quaternions, which are normalised first."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    ]
    return torch.stack(rows, dim=-1).reshape(*quats.shape[:-1], 3, 3)


def rotmat_to_quat(rotmats: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 4"]:
    """Unit wxyz quaternions (w >= 0) of rotation matrices, stable for every angle.

    Source: Shepperd's method, choosing the largest of the four candidate pivots.
    """
    m = rotmats
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    squares = torch.stack(
        [
            trace,
            2 * m[..., 0, 0] - trace,
            2 * m[..., 1, 1] - trace,
            2 * m[..., 2, 2] - trace,
        ],
        dim=-1,
    )
    q = torch.sqrt(torch.clamp(1 + squares, min=1e-12)) * 2  # four times each |component|
    wx, wy, wz = (
        m[..., 2, 1] - m[..., 1, 2],
        m[..., 0, 2] - m[..., 2, 0],
        m[..., 1, 0] - m[..., 0, 1],
    )
    xy, xz, yz = (
        m[..., 1, 0] + m[..., 0, 1],
        m[..., 0, 2] + m[..., 2, 0],
        m[..., 2, 1] + m[..., 1, 2],
    )
    quarter = q / 4
    candidates = torch.stack(
        [
            torch.stack([quarter[..., 0], wx / q[..., 0], wy / q[..., 0], wz / q[..., 0]], -1),
            torch.stack([wx / q[..., 1], quarter[..., 1], xy / q[..., 1], xz / q[..., 1]], -1),
            torch.stack([wy / q[..., 2], xy / q[..., 2], quarter[..., 2], yz / q[..., 2]], -1),
            torch.stack([wz / q[..., 3], xz / q[..., 3], yz / q[..., 3], quarter[..., 3]], -1),
        ],
        dim=-2,
    )
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    quats = torch.gather(candidates, -2, best).squeeze(-2)
    quats = torch.nn.functional.normalize(quats, dim=-1)
    return torch.where(quats[..., :1] < 0, -quats, quats)


def slerp(
    a: Float[Tensor, "*B 4"], b: Float[Tensor, "*B 4"], fraction: Float[Tensor, "*B"]
) -> Float[Tensor, "*B 4"]:
    """Spherical interpolation along the shorter arc; fraction 0 gives a, 1 gives b."""
    a = torch.nn.functional.normalize(a, dim=-1)
    b = torch.nn.functional.normalize(b, dim=-1)
    dot = (a * b).sum(-1, keepdim=True)
    b = torch.where(dot < 0, -b, b)
    angle = torch.acos(dot.abs().clamp(max=1.0))
    t = fraction[..., None]
    near = angle < 1e-4
    safe = torch.where(near, torch.ones_like(angle), angle)
    wa = torch.where(near, 1 - t, torch.sin((1 - t) * safe) / torch.sin(safe))
    wb = torch.where(near, t, torch.sin(t * safe) / torch.sin(safe))
    return torch.nn.functional.normalize(wa * a + wb * b, dim=-1)


def pose_between(
    poses: Float64[Tensor, "T 4 4"], timestamps: Float64[Tensor, "T"], time: float
) -> Float64[Tensor, "4 4"]:
    """Pose at a time: linear position and slerped rotation between the poses around it; ends are held.

    Args:
        poses: Frame -> parent at each time.
        timestamps: s, ascending.
        time: s.
    """
    t = timestamps
    high = int(torch.searchsorted(t, torch.tensor(time, dtype=t.dtype)))
    if high <= 0 or high >= len(t) or float(t[high]) == time:
        return poses[min(high, len(t) - 1)]
    low = high - 1
    fraction = (time - t[low]) / (t[high] - t[low])
    quats = rotmat_to_quat(poses[[low, high], :3, :3])
    pose = poses[low].clone()
    pose[:3, :3] = quat_to_rotmat(slerp(quats[0], quats[1], fraction))
    pose[:3, 3] = torch.lerp(poses[low, :3, 3], poses[high, :3, 3], fraction)
    return pose


def invert_rigid(poses: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 4 4"]:
    """Inverse of rigid transforms, exact up to rounding: [R t] -> [R^T, -R^T t]."""
    rotation = poses[..., :3, :3].transpose(-1, -2)
    inverse = torch.zeros_like(poses)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -(rotation @ poses[..., :3, 3:]).squeeze(-1)
    inverse[..., 3, 3] = 1
    return inverse


def translation(offset: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 4 4"]:
    """Rigid transforms that only translate."""
    pose = torch.eye(4, dtype=offset.dtype, device=offset.device).repeat(*offset.shape[:-1], 1, 1)
    pose[..., :3, 3] = offset
    return pose


def look_at(
    position: Float[Tensor, "3"], target: Float[Tensor, "3"], up: Float[Tensor, "3"]
) -> Float[Tensor, "4 4"]:
    """Camera-to-world of an OpenCV camera at `position` that looks at `target`, image top towards `up`."""
    z = torch.nn.functional.normalize(target - position, dim=0)
    x = torch.nn.functional.normalize(torch.linalg.cross(z, up), dim=0)
    pose = torch.eye(4, dtype=position.dtype, device=position.device)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = x, torch.linalg.cross(z, x), z, position
    return pose


def sh_basis(degree: int, directions: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B K"]:
    """Values of the (degree + 1)^2 real SH basis functions at unit directions, degree 0..3."""
    x, y, z = directions.unbind(-1)
    terms = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        terms += [-SH_C1 * y, SH_C1 * z, -SH_C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        terms += [
            SH_C2[0] * x * y,
            SH_C2[1] * y * z,
            SH_C2[2] * (2 * zz - xx - yy),
            SH_C2[3] * x * z,
            SH_C2[4] * (xx - yy),
        ]
        if degree >= 3:
            terms += [
                SH_C3[0] * y * (3 * xx - yy),
                SH_C3[1] * x * y * z,
                SH_C3[2] * y * (4 * zz - xx - yy),
                SH_C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
                SH_C3[4] * x * (4 * zz - xx - yy),
                SH_C3[5] * z * (xx - yy),
                SH_C3[6] * x * (xx - 3 * yy),
            ]
    return torch.stack(terms, dim=-1)


def eval_sh(
    degree: int, coefficients: Float[Tensor, "*B K 3"], directions: Float[Tensor, "*B 3"]
) -> Float[Tensor, "*B 3"]:
    """SH value (without the +0.5) at directions that need not be normalised; extra bands are ignored."""
    unit = torch.nn.functional.normalize(directions, dim=-1)
    basis = sh_basis(degree, unit)
    return (basis[..., None] * coefficients[..., : basis.shape[-1], :]).sum(-2)


def rotate_sh(
    higher: Float[Tensor, "*B R 3"], rotation: Float[Tensor, "3 3"]
) -> Float[Tensor, "*B R 3"]:
    """Higher SH coefficients (bands 1 and up) of a colour that is turned with its object.

    Args:
        higher: Coefficients without degree 0; R = (degree + 1)^2 - 1, degree 0..3.
        rotation: Old axes -> new axes, so that the colour seen along `rotation @ d` afterwards is the
            one seen along `d` before.

    Source: each band is a representation of the rotation group; its matrix is solved for exactly
    from values of `sh_basis` in more directions than the band has coefficients.
    """
    degree = {0: 0, 3: 1, 8: 2, 15: 3}[higher.shape[-2]]
    if degree == 0:
        return higher
    # Points on a Fibonacci sphere: well spread, so the small system is well conditioned.
    steps = torch.arange(48, dtype=torch.float64, device=higher.device) + 0.5
    z, angle = 1 - steps / 24, steps * (math.pi * (3 - math.sqrt(5)))
    radius = torch.sqrt(1 - z * z)
    directions = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), z], dim=-1)
    here = sh_basis(degree, directions)
    there = sh_basis(degree, directions @ rotation.to(directions))
    bands = [slice(band * band, (band + 1) ** 2) for band in range(1, degree + 1)]
    turned = [
        torch.linalg.lstsq(here[:, b], there[:, b]).solution.to(higher)
        @ higher[..., b.start - 1 : b.stop - 1, :]
        for b in bands
    ]
    return torch.cat(turned, dim=-2)


def rgb_to_sh0(rgb: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    """Degree-0 coefficient that shows `rgb` (in [0, 1])."""
    return (rgb - 0.5) / SH_C0


def sh0_to_rgb(sh0: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    """Colour of a degree-0 coefficient; not clamped."""
    return sh0 * SH_C0 + 0.5
