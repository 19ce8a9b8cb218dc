"""DriveStudio's node classes drawn step by step with NumPy in float64, straight from state dicts.

Written from the format's description alone; shares nothing with the package. `make_checkpoint`
is the independent writer the reader is tested on.
"""

from __future__ import annotations

import math

import numpy as np
import torch

FRAMES, DIM = 5, 4


def make_checkpoint(seed: int = 0, *, fusion: bool = False, step: int = 30_000) -> dict:
    """One checkpoint with every node class, in the exact layout, small enough for tests."""
    g = np.random.default_rng(seed)

    def t(*shape, scale=1.0, shift=0.0):
        return torch.tensor(g.normal(size=shape) * scale + shift, dtype=torch.float32)

    def gaussians(n, degree, spread=1.0, ball=False):
        return {
            "_means": t(n, 3, scale=spread),
            "_scales": t(n, 1 if ball else 3, scale=0.2, shift=-1.5),
            "_quats": t(n, 4),
            "_opacities": t(n, 1),
            "_features_dc": t(n, 3, scale=0.5),
            "_features_rest": t(n, (degree + 1) ** 2 - 1, 3, scale=0.1),
        }

    def poses(count, body=False):
        return {
            "instances_quats": t(FRAMES, count, *([1, 4] if body else [4])),
            "instances_trans": t(FRAMES, count, 3, scale=0.5),
            "instances_size": t(count, 3, scale=0.1, shift=2.0),
            "instances_fv": torch.tensor(g.random((FRAMES, count)) < 0.8),
        }

    def ids(*counts):
        order = np.repeat(np.arange(len(counts)), counts)
        return torch.tensor(order)[:, None]

    joints, verts, people = DIM, 6, 2
    rest = torch.eye(4).repeat(people, joints, 1, 1)
    rest[..., :3, 3] = t(people, joints, 3, scale=0.2)
    weights = torch.softmax(t(people, verts, joints), -1)
    net = {}
    widths = [100] + [16] * 8
    for k in range(8):
        wide = widths[k] + (100 if k == 5 else 0)
        net[f"deform_network.linear.{k}.weight"] = t(16, wide, scale=wide**-0.5)
        net[f"deform_network.linear.{k}.bias"] = t(16, scale=0.1)
    for head, out in (("gaussian_warp", 3), ("gaussian_rotation", 4)):
        net[f"deform_network.{head}.weight"] = t(out, 16, scale=0.1)
        net[f"deform_network.{head}.bias"] = t(out, scale=0.05)
    sky = {"direction_encoding.scales": torch.tensor([2.0**k for k in range(7)])}
    for k, (rows, columns) in enumerate(((64, 45), (64, 109), (3, 64))):
        sky[f"sky_head.layers.{k}.weight"] = t(rows, columns, scale=columns**-0.5)
        sky[f"sky_head.layers.{k}.bias"] = t(rows, scale=0.1)
    content = {
        "models": {
            "Background": gaussians(30, 3, spread=3.0),
            "RigidNodes": gaussians(14, 3) | poses(3) | {"points_ids": ids(6, 0, 8)},
            "SMPLNodes": gaussians(people * verts, 1, ball=True)
            | poses(people, body=True)
            | {
                "points_ids": ids(verts, verts),
                "smpl_qauts": t(FRAMES, people, joints - 1, 4),
                "template.J_canonical": t(people, joints, 3, scale=0.3),
                "template.A0_inv": rest,
                "template.W": weights,
                "template._template_layer.parents": torch.tensor([2**32 - 1, 0, 0, 2]),
                "template.init_beta": t(people, 10),
            },
            "DeformableNodes": gaussians(9, 3)
            | poses(2)
            | {"points_ids": ids(4, 5), "instances_embedding": t(2, 16)}
            | net,
            "Sky": sky,
            "Affine": {
                "embedding.weight": t(6, 4),
                "decoder.0.weight": t(64, 4, scale=0.2),
                "decoder.0.bias": t(64, scale=0.1),
                "decoder.2.weight": t(12, 64, scale=0.01),
                "decoder.2.bias": t(12, scale=0.01),
            },
            "CamPose": {"embeds.weight": t(6, 9), "identity": torch.tensor([1.0, 0, 0, 0, 1, 0])},
        },
        "step": np.int64(step),
        "lpips.net.stray": t(2),
    }
    if fusion:
        content["Background_origin_mask"] = torch.tensor(g.random(30) < 0.5)
    return content


def voxel_skin(content: dict, seed: int = 1) -> dict:
    """The same checkpoint with its bodies' weights in a grid."""
    g = np.random.default_rng(seed)
    state, people = content["models"]["SMPLNodes"], 2
    prefix = "template.voxel_deformer."
    shape = (people, DIM, 3, 4, 5)
    state[prefix + "lbs_voxel_base"] = torch.tensor(g.random(shape), dtype=torch.float32)
    state[prefix + "voxel_w_correction"] = torch.tensor(
        g.normal(size=shape) * 0.1, dtype=torch.float32
    )
    state[prefix + "offset"] = torch.tensor(g.normal(size=(people, 1, 3)), dtype=torch.float32)
    state[prefix + "scale"] = torch.tensor(g.random((people, 1, 1)) + 1, dtype=torch.float32)
    return content


def _np(value):
    return value.detach().numpy().astype(np.float64)


def _rotation(q):
    w, x, y, z = q / np.linalg.norm(q)
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * K + 2 * K @ K


def _hamilton(a, b):
    w = a[0] * b[0] - a[1:] @ b[1:]
    return np.concatenate([[w], a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])])


def _unit(q):
    return q / np.linalg.norm(q, axis=-1, keepdims=True)


def placed(content: dict, frame: int) -> dict[str, list]:
    """Means, rotation matrices and opacities at a frame, in the order of concatenation."""
    out: dict[str, list] = {"means": [], "rotations": [], "opacities": [], "scales": []}

    def put(mean, rotation, opacity, scale):
        out["means"].append(mean)
        out["rotations"].append(rotation)
        out["opacities"].append(opacity)
        out["scales"].append(np.exp(np.broadcast_to(scale, 3)))

    for name in ("Background", "RigidNodes", "SMPLNodes", "DeformableNodes"):
        state = content["models"][name]
        for row in range(len(state["_means"])):
            mean, quat = _np(state["_means"])[row], _unit(_np(state["_quats"])[row])
            opacity = 1 / (1 + math.exp(-float(state["_opacities"][row])))
            scale = _np(state["_scales"])[row]
            if name == "Background":
                put(mean, _rotation(quat), opacity, scale)
                continue
            owner = int(state["points_ids"][row])
            if not bool(state["instances_fv"][frame, owner]):
                continue
            shift = _np(state["instances_trans"])[frame, owner]
            if name == "SMPLNodes":
                turn, move = _skinned(state, owner, row, mean, frame)
                put(turn @ mean + move + shift, _nearest(turn) @ _rotation(quat), opacity, scale)
                continue
            if name == "DeformableNodes" and int(content["step"]) > 3000:
                warp, turned = _deform(state, owner, mean, frame / (FRAMES - 1))
                mean, quat = mean + warp, quat + turned
            inst = _unit(_np(state["instances_quats"])[frame, owner])
            put(_rotation(inst) @ mean + shift, _rotation(_hamilton(inst, quat)), opacity, scale)
    return out


def _nearest(matrix):
    """The rotation whose quaternion Shepperd's formula gives for a matrix that is not quite one."""
    m, options = matrix, []
    t = np.trace(m)
    options.append([1 + t, m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    d = 1 + 2 * np.diag(m) - t
    options.append([m[2, 1] - m[1, 2], d[0], m[1, 0] + m[0, 1], m[0, 2] + m[2, 0]])
    options.append([m[0, 2] - m[2, 0], m[1, 0] + m[0, 1], d[1], m[2, 1] + m[1, 2]])
    options.append([m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[2, 1] + m[1, 2], d[2]])
    best = int(np.argmax([options[0][0], *d]))
    return _rotation(np.array(options[best]))


def _skinned(state, owner, row, mean, frame):
    rest_joints = _np(state["template.J_canonical"])[owner]
    parents = [-1, *state["template._template_layer.parents"].tolist()[1:]]
    quats = [
        _np(state["instances_quats"])[frame, owner, 0],
        *_np(state["smpl_qauts"])[frame, owner],
    ]
    world = []
    for joint, parent in enumerate(parents):
        local = np.eye(4)
        local[:3, :3] = _rotation(quats[joint])
        local[:3, 3] = rest_joints[joint] - (rest_joints[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    transforms = [w @ a for w, a in zip(world, _np(state["template.A0_inv"])[owner], strict=True)]
    prefix = "template.voxel_deformer."
    if prefix + "lbs_voxel_base" in state:
        grid = _np(state[prefix + "lbs_voxel_base"] + state[prefix + "voxel_w_correction"])[owner]
        at = (mean - _np(state[prefix + "offset"])[owner, 0]) / _np(state[prefix + "scale"])[
            owner, 0
        ]
        weights = _trilinear(grid, at * [1, 1, 4])
    else:
        weights = _np(state["template.W"])[owner, row % len(state["template.W"][owner])]
    blended = sum(w * t for w, t in zip(weights, transforms, strict=True))
    return blended[:3, :3], blended[:3, 3]


def _trilinear(grid, at):
    size = np.array(grid.shape[:0:-1])  # W, H, D
    x = np.clip((at + 1) / 2 * (size - 1), 0, size - 1)
    low = np.minimum(np.floor(x).astype(int), size - 2)
    f, total = x - low, 0
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod([f[k] if corner[k] else 1 - f[k] for k in range(3)])
        i, j, k = low + corner
        total = total + weight * grid[:, k, j, i]
    return total


def _encode(v):
    parts = [v]
    for k in range(10):
        parts += [np.sin(2.0**k * v), np.cos(2.0**k * v)]
    return np.concatenate(parts)


def _deform(state, owner, mean, when):
    height = float(state["instances_size"][owner, 2])
    embedding = _np(state["instances_embedding"])[owner]
    given = np.concatenate([_encode(mean / height * 2), _encode(np.array([when])), embedding])
    hidden = given

    def layer(name, x):
        return _np(state[f"deform_network.{name}.weight"]) @ x + _np(
            state[f"deform_network.{name}.bias"]
        )

    for k in range(8):
        hidden = np.maximum(layer(f"linear.{k}", hidden), 0)
        if k == 4:
            hidden = np.concatenate([given, hidden])
    return layer("gaussian_warp", hidden), layer("gaussian_rotation", hidden)


def sky_color(state: dict, direction) -> np.ndarray:
    """The sky network in one direction."""
    scales = _np(state["direction_encoding.scales"])
    turned = np.concatenate([direction * s for s in scales])
    given = np.concatenate([direction, np.sin(turned), np.cos(turned)])

    def layer(k, x):
        weight, bias = (_np(state[f"sky_head.layers.{k}.{n}"]) for n in ("weight", "bias"))
        return weight @ x + bias

    hidden = np.maximum(layer(0, given), 0)
    hidden = np.maximum(layer(1, np.concatenate([hidden, given])), 0)
    return 1 / (1 + np.exp(-layer(2, hidden)))


def affine(state: dict, embedding) -> np.ndarray:
    """The 3x4 correction of one embedding."""
    hidden = np.maximum(
        _np(state["decoder.0.weight"]) @ embedding + _np(state["decoder.0.bias"]), 0
    )
    rows = _np(state["decoder.2.weight"]) @ hidden + _np(state["decoder.2.bias"])
    return rows.reshape(3, 4) + np.eye(3, 4)
