"""First Gaussians of a reconstruction: recorded points, near road, densified surfaces, sky.

Structure from motion sees little of a road and nothing of a sky, and starts metres ahead of the first
camera. So the points are completed in three ways, each coloured from the frames: the depth of the
projected points is interpolated over the frames between them, the road plane under the drive is sown
with points, and a cube map takes what is infinitely far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.losses import SparseDepth
from faithfusion_studio.gaussians import Gaussians, Provenance
from faithfusion_studio.scene import Capture, PosedImage
from faithfusion_studio.sky import CubemapSky, pixel_directions
from faithfusion_studio.transforms import rgb_to_sh0


class InitializationError(StudioError):
    """A capture that holds too little to start from."""


SKY_COLOR = 0.2
"""Colour difference at which a pixel is sky with 1/e of the belief."""
SKY_ROUGHNESS = 0.03
"""Mean absolute difference between neighbours at which it is."""
SKY_BINS = 17
"""Steps of the sine of the elevation at which the first sky is measured."""


@dataclass(frozen=True, eq=False)
class Seeds:
    """Coloured points to start from."""

    xyz: Float32[Tensor, "M 3"]
    rgb: Float32[Tensor, "M 3"]


def initial_gaussians(
    capture: Capture,
    *,
    seed: int,
    sh_degree: int,
    limit: int,
    moving: Callable[[Camera], Bool[Tensor, "H W"]] | None = None,
) -> tuple[Gaussians, float]:
    """Gaussians to start a reconstruction from, and the scene's extent.

    Args:
        capture: Frames with poses, and points where the recording has them.
        seed: Of the random choices.
        sh_degree: Bands to allocate; the higher ones start at zero.
        limit: At most this many Gaussians.
        moving: Pixels of a camera that show something that moves, whose colours are not the background's.

    Returns:
        The Gaussians (world frame) and the extent in m that position learning rates are scaled by.

    Raises:
        InitializationError: Neither points nor a usable ground plane could be found.
    """
    generator = np.random.default_rng(seed)
    images = [thumbnail(frame) for frame in capture.frames]
    sizes = [(image.shape[1], image.shape[0]) for image in images]
    masks = [
        None if moving is None else moving(frame.camera.resized(*size))
        for frame, size in zip(capture.frames, sizes, strict=True)
    ]
    recorded = _recorded_points(capture)
    surfaces = _interpolated_surfaces(capture, recorded, images, masks, generator, limit // 3)
    road = _road_points(capture, images, masks, generator)
    parts = [p for p in (recorded, surfaces, road) if len(p.xyz)]
    if not parts:
        raise InitializationError(
            "the capture has no 3D points and no ground could be fitted under its path; "
            "give it COLMAP points, a points3d.ply or laser sweeps."
        )
    xyz, rgb = torch.cat([p.xyz for p in parts]), torch.cat([p.rgb for p in parts])
    if len(xyz) > limit:
        keep = torch.from_numpy(generator.choice(len(xyz), limit, replace=False))
        xyz, rgb = xyz[keep], rgb[keep]
    centres = capture.trajectory.camtoworlds[:, :3, 3]
    spread = float((centres - centres.mean(0)).norm(dim=-1).max())
    extent = max(1.1 * spread, 5.0)
    return as_gaussians(xyz, rgb, sh_degree, extent), extent


def as_gaussians(
    xyz: Float32[Tensor, "M 3"], rgb: Float32[Tensor, "M 3"], sh_degree: int, extent: float
) -> Gaussians:
    """Round, half-transparent Gaussians as large as their distance to each other.

    Args:
        xyz: Centres, m.
        rgb: Colours in [0, 1].
        sh_degree: Bands to allocate; the higher ones start at zero.
        extent: None becomes larger than a tenth of this, m.
    """
    count = len(xyz)
    spacing = neighbour_distance(xyz).clamp(0.005, 0.1 * extent)
    return Gaussians(
        means=xyz.contiguous(),
        log_scales=spacing.log()[:, None].repeat(1, 3),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        logit_opacities=torch.full((count,), -1.4),
        sh0=rgb_to_sh0(rgb)[:, None, :].contiguous(),
        shN=torch.zeros(count, (sh_degree + 1) ** 2 - 1, 3),
        provenance=torch.full((count,), int(Provenance.RECORDED), dtype=torch.uint8),
    )


def neighbour_distance(xyz: Float[Tensor, "M 3"]) -> Float32[Tensor, "M"]:
    """Mean distance of each point to its three nearest neighbours, m."""
    from scipy.spatial import cKDTree

    points = xyz.numpy()
    count = min(4, len(points))
    if count < 2:
        return torch.full((len(points),), 0.1)
    distance, _ = cKDTree(points).query(points, k=count, workers=2)
    return torch.from_numpy(distance[:, 1:].mean(1).astype(np.float32))


# ------------------------------------------------------------------------------------- the parts


def thumbnail(frame: PosedImage, width: int = 480) -> Float32[Tensor, "h w 3"]:
    """A frame, small, for colours."""
    camera = frame.camera
    factor = min(1.0, width / camera.width)
    size = (max(1, round(camera.width * factor)), max(1, round(camera.height * factor)))
    return frame.image(size)


def visible_points(points: Float32[Tensor, "M 3"], camera: Camera, cell: int = 6) -> SparseDepth:
    """Recorded points in front of a camera, the nearest of each cell of the image.

    Args:
        points: World, m.
        camera: Where from.
        cell: Side of a cell, pixels; hides most points that something stands before.
    """
    view, K = camera.viewmat.to(torch.float32), camera.K.to(torch.float32)
    local = points @ view[:3, :3].T + view[:3, 3]
    local = local[local[:, 2] > 0.5]
    u = (K[0, 0] * local[:, 0] / local[:, 2] + K[0, 2]).long()
    v = (K[1, 1] * local[:, 1] / local[:, 2] + K[1, 2]).long()
    inside = (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    u, v, z = u[inside], v[inside], local[inside, 2]
    order = z.argsort(descending=True)  # the last write, the nearest, stays
    cells = (v // cell) * (camera.width // cell + 1) + u // cell
    nearest = torch.full((int(cells.max()) + 1 if len(cells) else 0,), -1)
    nearest[cells[order]] = order
    chosen = nearest[nearest >= 0]
    return SparseDepth((v * camera.width + u)[chosen], z[chosen])


def _recorded_points(capture: Capture) -> Seeds:
    if capture.points is None or not len(capture.points.xyz):
        return Seeds(torch.zeros(0, 3), torch.zeros(0, 3))
    xyz = capture.points.xyz
    centres = capture.trajectory.camtoworlds[:, :3, 3].to(torch.float32)
    nearest = torch.cdist(xyz, centres).amin(1)
    keep = torch.isfinite(xyz).all(1) & (nearest < 300.0)
    return Seeds(xyz[keep], capture.points.rgb[keep].to(torch.float32) / 255)


def _project(
    capture: Capture, index: int, xyz: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Pixel positions [M, 2] on a grid of `size` and depths [M] of world points in frame `index`."""
    camera = capture.frames[index].camera.resized(*size)
    view = camera.viewmat.to(torch.float32)
    local = xyz @ view[:3, :3].T + view[:3, 3]
    depth = local[:, 2]
    K = camera.K.to(torch.float32)
    safe = depth.clamp(min=1e-3)
    u = K[0, 0] * local[:, 0] / safe + K[0, 2]
    v = K[1, 1] * local[:, 1] / safe + K[1, 2]
    return torch.stack([u, v], -1), depth


def _lift(capture: Capture, index: int, uv: Tensor, depth: Tensor, size: tuple[int, int]) -> Tensor:
    camera = capture.frames[index].camera.resized(*size)
    K, pose = camera.K.to(torch.float32), camera.camtoworld.to(torch.float32)
    x = (uv[:, 0] - K[0, 2]) / K[0, 0] * depth
    y = (uv[:, 1] - K[1, 2]) / K[1, 1] * depth
    return torch.stack([x, y, depth], -1) @ pose[:3, :3].T + pose[:3, 3]


def _colors(image: Tensor, uv: Tensor) -> Tensor:
    u = uv[:, 0].long().clamp(0, image.shape[1] - 1)
    v = uv[:, 1].long().clamp(0, image.shape[0] - 1)
    return image[v, u]


def _interpolated_surfaces(
    capture: Capture,
    points: Seeds,
    images: list[Tensor],
    masks: list[Tensor | None],
    generator: np.random.Generator,
    limit: int,
) -> Seeds:
    """Random pixels lifted to the depth interpolated (in 1/z) from the recorded points around them."""
    from scipy.spatial import cKDTree

    chosen = range(0, len(capture), max(1, len(capture) // 24))
    per_frame = limit // max(1, len(chosen))
    xyz, rgb = [], []
    for index in chosen if len(points.xyz) >= 50 else ():
        image = images[index]
        height, width = image.shape[:2]
        uv, depth = _project(capture, index, points.xyz, (width, height))
        inside = (
            (depth > 1)
            & (uv[:, 0] >= 0)
            & (uv[:, 0] < width)
            & (uv[:, 1] >= 0)
            & (uv[:, 1] < height)
        )
        if int(inside.sum()) < 20:
            continue
        tree = cKDTree(uv[inside].numpy())
        query = generator.uniform((0, 0), (width, height), (per_frame, 2)).astype(np.float32)
        distance, near = tree.query(query, k=4, distance_upper_bound=0.06 * width)
        found = np.isfinite(distance).all(1)
        inverse = 1 / depth[inside].numpy()[near[found]]
        weight = 1 / (distance[found] + 1.0) ** 2
        mean = (inverse * weight).sum(1) / weight.sum(1)
        agree = np.abs(inverse - mean[:, None]).max(1) < 0.25 * mean
        agree &= _still(masks[index], torch.from_numpy(query[found])).numpy()
        pixels = torch.from_numpy(query[found][agree])
        z = torch.from_numpy((1 / mean[agree]).astype(np.float32))
        xyz.append(_lift(capture, index, pixels, z, (width, height)))
        rgb.append(_colors(image, pixels))
    if not xyz:
        return Seeds(torch.zeros(0, 3), torch.zeros(0, 3))
    return Seeds(torch.cat(xyz), torch.cat(rgb))


def camera_height(capture: Capture) -> float | None:
    """Height of the cameras above the road, m; None where the points show no ground.

    The mode of how far points near the path lie below the camera that passes them.
    """
    if capture.points is None or not len(capture.points.xyz):
        return None
    xyz = capture.points.xyz
    egos = capture.trajectory.ego_to_worlds.to(torch.float32)
    inverse = torch.linalg.inv(egos)
    heights = []
    for index in range(0, len(egos), max(1, len(egos) // 30)):
        local = xyz @ inverse[index, :3, :3].T + inverse[index, :3, 3]
        near = (local[:, 0] > 2) & (local[:, 0] < 18) & (local[:, 1].abs() < 4)
        heights.append(-local[near, 2])
    below = torch.cat(heights)
    below = below[(below > 0.8) & (below < 3.5)]
    if len(below) < 100:
        return None
    counts = torch.histc(below, bins=54, min=0.8, max=3.5)
    centre = 0.8 + (int(counts.argmax()) + 0.5) * 0.05
    return float(below[(below - centre).abs() < 0.1].median())


def _still(mask: Tensor | None, uv: Tensor) -> Bool[Tensor, "M"]:
    """Pixel positions off the mask; those outside of the picture count too."""
    if mask is None:
        return torch.ones(len(uv), dtype=torch.bool)
    u = uv[:, 0].long().clamp(0, mask.shape[1] - 1)
    v = uv[:, 1].long().clamp(0, mask.shape[0] - 1)
    return ~mask[v, u]


def _road_points(
    capture: Capture,
    images: list[Tensor],
    masks: list[Tensor | None],
    generator: np.random.Generator,
) -> Seeds:
    """Points on the road plane under the drive, coloured by the frame that sees them best."""
    height = camera_height(capture)
    if height is None:
        return Seeds(torch.zeros(0, 3), torch.zeros(0, 3))
    egos = capture.trajectory.ego_to_worlds.to(torch.float32)
    xyz, rgb = [], []
    travelled, last = 3.0, egos[0, :3, 3]
    for index in range(len(egos)):
        travelled += float((egos[index, :3, 3] - last).norm())
        last = egos[index, :3, 3]
        final = index == len(egos) - 1
        if travelled < 2.0 and not final:
            continue
        reach = 40.0 if final else 9.0
        count = int((600 if final else 60) * max(travelled, 1.0))
        local = np.stack(
            [
                generator.uniform(3.0, 3.0 + reach, count),
                generator.uniform(-9, 9, count),
                np.full(count, -height),
            ],
            -1,
        )
        world = (
            torch.from_numpy(local.astype(np.float32)) @ egos[index, :3, :3].T + egos[index, :3, 3]
        )
        size = (images[index].shape[1], images[index].shape[0])
        uv, depth = _project(capture, index, world, size)
        seen = (depth > 1) & (uv >= 0).all(1) & (uv[:, 0] < size[0]) & (uv[:, 1] < size[1])
        seen &= _still(masks[index], uv)
        xyz.append(world[seen])
        rgb.append(_colors(images[index], uv[seen]))
        travelled = 0.0
    return Seeds(torch.cat(xyz), torch.cat(rgb))


def initial_sky(capture: Capture, resolution: int) -> CubemapSky:
    """A sky that depends on the elevation only: the brightest quarter of what was recorded there.

    Training then moves the directions that are really seen; those only seen from another lane, behind the
    edge of a roof, keep a plausible colour.
    """
    up = capture.trajectory.ego_to_worlds[:, :3, 2].mean(0).to(torch.float32)
    heights, colors = [], []
    for index in range(0, len(capture), max(1, len(capture) // 16)):
        camera = capture.frames[index].camera
        camera = camera.scaled(min(1.0, 160 / camera.width))
        image = capture.frames[index].image((camera.width, camera.height)).reshape(-1, 3)
        height = pixel_directions(camera).reshape(-1, 3) @ up
        heights.append(height[height > 0])
        colors.append(image[height > 0])
    by_height = _bright_by_height(torch.cat(heights), torch.cat(colors))
    position = (texel_directions(resolution) @ up).clamp(0, 1) * (SKY_BINS - 1)
    low = position.long().clamp(max=SKY_BINS - 2)
    share = (position - low)[..., None]
    return CubemapSky(torch.lerp(by_height[low], by_height[low + 1], share).contiguous())


def sky_share(
    camera: Camera, image: Float32[Tensor, "H W 3"], sky: CubemapSky, up: Float32[Tensor, "3"]
) -> Float32[Tensor, "H W"]:
    """How much each pixel looks like sky, 0..1: above the horizon, smooth, and of the first sky's colour.

    Args:
        camera: Where from.
        image: What was recorded.
        sky: From `initial_sky`, not a learned one, which would excuse itself.
        up: Unit vector, world.
    """
    from faithfusion_studio.render.images import cubemap_image

    difference = (image - cubemap_image(sky.texels, camera)).square().mean(-1)
    grey = image.mean(-1)
    rough = torch.zeros_like(grey)
    rough[1:] += (grey[1:] - grey[:-1]).abs()
    rough[:, 1:] += (grey[:, 1:] - grey[:, :-1]).abs()
    rough = torch.nn.functional.avg_pool2d(rough[None, None], 7, 1, 3, count_include_pad=False)[
        0, 0
    ]
    above = pixel_directions(camera) @ up > 0
    return above * torch.exp(-difference / SKY_COLOR**2 - (rough / SKY_ROUGHNESS) ** 2)


def _bright_by_height(heights: Tensor, colors: Tensor) -> Float32[Tensor, "B 3"]:
    """Mean colour of the brightest quarter at each height (sine of the elevation); gaps take a neighbour's."""
    result = torch.full((SKY_BINS, 3), torch.nan)
    bins = (heights * (SKY_BINS - 1)).round().long()
    for index in range(SKY_BINS):
        found = colors[bins == index]
        if len(found) >= 50:
            brightest = found.sum(1).topk(len(found) // 4).indices
            result[index] = found[brightest].mean(0)
    known = torch.isfinite(result[:, 0]).nonzero().squeeze(1)
    if not len(known):
        return torch.tensor([0.6, 0.7, 0.8]).repeat(SKY_BINS, 1)
    nearest = (torch.arange(SKY_BINS)[:, None] - known).abs().argmin(1)
    return result[known[nearest]]


def texel_directions(resolution: int) -> Float32[Tensor, "6 R R 3"]:
    """Unit world directions of the texel centres of a `CubemapSky`."""
    at = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    second, first = torch.meshgrid(at, at, indexing="ij")
    result = torch.empty(6, resolution, resolution, 3)
    for face in range(6):
        axis = face // 2
        result[face, ..., axis] = 1.0 if face % 2 == 0 else -1.0
        result[face, ..., (axis + 1) % 3] = first
        result[face, ..., (axis + 2) % 3] = second
    return torch.nn.functional.normalize(result, dim=-1)
