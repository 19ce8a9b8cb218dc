"""A small street with two cars that drive, one of them with a motion of its own."""

import math
from dataclasses import replace

import torch

from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.motion import PeriodicVibration
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import Scene, StoredFisher


def cloud(n, seed, size=(1.0, 1.0, 1.0), degree=1):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    return Gaussians(
        means=(torch.rand(n, 3, generator=g) - 0.5) * torch.tensor(size),
        log_scales=0.4 * normal(n, 3) + math.log(0.08),
        quats=normal(n, 4),
        logit_opacities=1.5 * normal(n) + 1,
        sh0=normal(n, 1, 3),
        shN=0.1 * normal(n, (degree + 1) ** 2 - 1, 3),
        provenance=torch.randint(0, 2, (n,), generator=g).to(torch.uint8),
    )


def car(name, seed, at, n=30, **more):
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[:, :3, 3] = torch.tensor(at, dtype=torch.float64)
    poses[:, 0, 3] += torch.tensor([0.0, 1.0, 2.0])
    return RigidNode(
        name,
        cloud(n, seed, (4.0, 1.8, 1.4)),
        poses,
        torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64),
        torch.ones(3, dtype=torch.bool),
        torch.tensor([4.2, 1.9, 1.5]),
        **more,
    )


def world(n=200, seed=0):
    """Background before a camera at the origin that looks along +x, and two cars."""
    background = cloud(n, seed, (14.0, 12.0, 5.0))
    background = replace(background, means=background.means + torch.tensor([9.0, 0.0, 1.0]))
    vibration = PeriodicVibration(
        torch.full((30, 1), 0.02), torch.full((30, 1), 3.0), 0.1 * cloud(30, 9).means
    )
    nodes = (car("car", 1, (6.0, 1.5, 0.7)), car("van", 2, (9.0, -1.5, 0.8), motion=vibration))
    scene = Scene(background, nodes=nodes)
    total = scene.num_gaussians
    g = torch.Generator().manual_seed(5)
    half = torch.randn(total, 13, 13, generator=g)
    H = (half @ half.transpose(1, 2)) * torch.rand(total, 1, 1, generator=g)
    rows, columns = torch.triu_indices(13, 13)
    fisher = StoredFisher(
        H[:, rows, columns].contiguous(),
        torch.rand(total, 3, 3, generator=g),
        noise_std=0.02,
        num_views=4,
        residual_variance=torch.rand(total, generator=g),
    )
    return replace(scene, fisher=fisher)


def camera(time=0.0):
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    pose[2, 3] = 1.0
    K = torch.tensor([[60.0, 0, 48], [0, 60, 32], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, 96, 64, time=time)


def tensors_of(value, path="scene"):
    """Every tensor in a value, by where it is."""
    from dataclasses import fields, is_dataclass

    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for i, inner in enumerate(value):
            yield from tensors_of(inner, f"{path}[{i}]")
    elif is_dataclass(value):
        for f in fields(value):
            yield from tensors_of(getattr(value, f.name), f"{path}.{f.name}")


def assert_same(a, b):
    """Bit for bit, and the same tensors everywhere."""
    left, right = dict(tensors_of(a)), dict(tensors_of(b))
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value.dtype == right[key].dtype and torch.equal(value, right[key]), key
    marks = [(n.name, n.hidden, n.locked, n.color, n.category) for n in a.nodes]
    assert marks == [(n.name, n.hidden, n.locked, n.color, n.category) for n in b.nodes]
