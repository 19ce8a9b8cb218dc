"""Ray-trace a street from one camera: exact colours, depth, sky mask, categories.

Each pixel is traced through its centre (depth, category) and at a fixed set of points inside it.
Pixels whose rays all meet the same flat surface are shaded once, with textures filtered over the
pixel; edges are shaded at every point. Nothing is random, so equal cameras give equal images.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float32, Int16, UInt8

from faithfusion_studio.cameras import Camera
from faithfusion_studio.synthetic.geometry import Category, Geometry
from faithfusion_studio.synthetic.rays import RayScene, SyntheticError
from faithfusion_studio.synthetic.shading import Points, radiance, sky_radiance, to_srgb
from faithfusion_studio.synthetic.street import Street

__all__ = ["SyntheticError", "TracedView", "trace_view"]


@dataclass(frozen=True, eq=False)
class TracedView:
    """An exact view of a street."""

    rgb: Float32[np.ndarray, "H W 3"]
    """sRGB in [0, 1]."""
    depth: Float32[np.ndarray, "H W"]
    """Distance along the camera's z at the pixel centre, m; 0 = sky."""
    sky_mask: Bool[np.ndarray, "H W"]
    """True where the pixel centre sees the sky."""
    node_index: Int16[np.ndarray, "H W"]
    """Moving vehicle at the pixel centre; -1 = background or sky."""
    category: UInt8[np.ndarray, "H W"]
    """`Category` value at the pixel centre."""


_SCENES: WeakKeyDictionary[Geometry, RayScene] = WeakKeyDictionary()


def ray_scene(geometry: Geometry) -> RayScene:
    """The embree scene of a geometry, built once for as long as the geometry lives."""
    scene = _SCENES.get(geometry)
    if scene is None:
        scene = _SCENES[geometry] = RayScene(geometry)
    return scene


def trace_view(street: Street, camera: Camera, samples: int = 4) -> TracedView:
    """One exact image of the street at the camera's time.

    Args:
        street: The world.
        camera: Pinhole camera, OpenCV axes, pixel centres at +0.5.
        samples: Points inside each pixel that are averaged; 1 = only the centre (aliased).

    Raises:
        SyntheticError: Fewer than one sample was asked for, or embreex is missing.
    """
    if samples < 1:
        raise SyntheticError(f"{samples} samples per pixel were asked for; at least 1 is needed.")
    geometry = street.geometry(camera.time)
    scene = ray_scene(geometry)
    lens = _Lens(camera)
    centre = scene.first_hits(*lens.rays(0.5, 0.5))
    hit = centre.triangle >= 0
    shape = (camera.height, camera.width)
    first = np.maximum(centre.triangle, 0)
    category = np.where(hit, geometry.category[first], Category.SKY).astype(np.uint8)
    node_index = np.where(hit, geometry.node_index[first], -1).astype(np.int16)
    color = _colors(street, scene, geometry, lens, samples, centre)
    return TracedView(
        rgb=color.reshape(*shape, 3),
        depth=np.where(hit, centre.distance, 0).astype(np.float32).reshape(shape),
        sky_mask=~hit.reshape(shape),
        node_index=node_index.reshape(shape),
        category=category.reshape(shape),
    )


class _Lens:
    """Rays of one camera; directions have length 1 along z, so distances are depths."""

    def __init__(self, camera: Camera) -> None:
        K, pose = camera.K.numpy(), camera.camtoworld.numpy()
        self.fx, self.fy, self.cx, self.cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
        self.rotation, self.position = pose[:3, :3], pose[:3, 3].astype(np.float32)
        self.width, self.height = camera.width, camera.height
        self.step_x = (self.rotation[:, 0] / self.fx).astype(np.float32)
        self.step_y = (self.rotation[:, 1] / self.fy).astype(np.float32)

    def rays(self, dx: float, dy: float) -> tuple[np.ndarray, np.ndarray]:
        """Origins and directions [P, 3] through (column + dx, row + dy) of every pixel."""
        x = (np.arange(self.width) + dx - self.cx) / self.fx
        y = (np.arange(self.height) + dy - self.cy) / self.fy
        plane = x[None, :, None] * self.rotation[:, 0] + y[:, None, None] * self.rotation[:, 1]
        directions = (plane + self.rotation[:, 2]).astype(np.float32).reshape(-1, 3)
        return np.broadcast_to(self.position, directions.shape).copy(), directions


def sample_places(samples: int) -> np.ndarray:
    """Fixed, well spread places [samples, 2] inside the unit pixel."""
    if samples == 1:
        return np.array([[0.5, 0.5]])
    if samples == 4:
        return np.array([[0.375, 0.125], [0.875, 0.375], [0.625, 0.875], [0.125, 0.625]])
    index = np.arange(samples)
    # Roberts' R2 sequence: low discrepancy for any count.
    return np.mod(0.5 + index[:, None] * np.array([0.7548776662, 0.5698402910]), 1.0)


def _colors(
    street: Street, scene: RayScene, geometry: Geometry, lens: _Lens, samples: int, centre
) -> np.ndarray:
    """sRGB [P, 3] averaged over the samples of each pixel."""
    places = sample_places(samples)
    count = lens.width * lens.height
    rays = [lens.rays(*place) for place in places]
    hits = [scene.first_hits(*ray) for ray in rays]
    groups = _surface_groups(geometry)
    surfaces = np.stack([np.where(h.triangle >= 0, groups[h.triangle], -1) for h in hits])
    middle = np.where(centre.triangle >= 0, groups[centre.triangle], -1)
    uniform = (surfaces == middle).all(axis=0)
    total = np.zeros((count, 3), np.float32)
    flat = np.flatnonzero(uniform & (middle >= 0))
    origins, directions = lens.rays(0.5, 0.5)
    # Shadow edges inside a uniform pixel: the sun is tested at every sample.
    sun_rays = [
        rays[i][0][flat] + rays[i][1][flat] * hits[i].distance[flat, None] for i in range(samples)
    ]
    points = Points(geometry, centre, directions, flat, lens)
    total[flat] = to_srgb(radiance(street, scene, points, sun_rays)) * samples
    for ray, hit in zip(rays, hits, strict=True):
        edge = np.flatnonzero(~uniform & (hit.triangle >= 0))
        points = Points(geometry, hit, ray[1], edge, lens)
        total[edge] += to_srgb(radiance(street, scene, points, [points.position]))
        sky = np.flatnonzero(hit.triangle < 0)
        total[sky] += to_srgb(sky_radiance(street.daylight, ray[1][sky]))
    return np.clip(total / samples, 0, 1)


_GROUPS: WeakKeyDictionary[Geometry, np.ndarray] = WeakKeyDictionary()


def _surface_groups(geometry: Geometry) -> np.ndarray:
    """Number [F] shared by coplanar triangles of equal look that follow each other in the list."""
    known = _GROUPS.get(geometry)
    if known is not None:
        return known
    normal = geometry.normals[:, 0]
    same = np.abs(normal[1:] - normal[:-1]).max(-1) < 1e-3
    same &= np.abs(geometry.normals[1:, 1] - normal[1:]).max(-1) < 1e-3
    for values in (geometry.material, geometry.style, geometry.seed):
        same &= values[1:] == values[:-1]
    same &= (geometry.color[1:] == geometry.color[:-1]).all(-1)
    level = np.einsum("fi,fi->f", geometry.triangles[:, 0], normal)
    same &= np.abs(level[1:] - level[:-1]) < 0.02
    groups = np.concatenate([[0], np.cumsum(~same)]).astype(np.int32)
    _GROUPS[geometry] = groups
    return groups
