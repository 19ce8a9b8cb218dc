"""The engine without weights: depth agreed on by recorded views, then their colours, fused.

The novel view's own 3DGS depth is where the scene is wrong, so depth is splatted from the recorded
poses, where the scene was fitted; each novel pixel then looks its colour up in every recorded image
that agrees about its depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.repair.base import (
    FrameRepair,
    PixelProvenance,
    Reference,
    RepairBatch,
    RepairerInfo,
    WarpFeatures,
)
from faithfusion_studio.repair.belief import BeliefConfig, warp_belief
from faithfusion_studio.repair.depth_repair import smooth_planes, window_mean
from faithfusion_studio.repair.far_depth import FarConfig, far_factor
from faithfusion_studio.repair.warping import (
    SKY_DEPTH,
    Projected,
    close_cracks,
    depth_edges,
    fill_gaps,
    reproject,
    sample,
    splat_mean,
)

SPREAD = (-0.7, 0.3, -1.6, 1.0, -3.0, 1.8, -2.2, -1.1, -4.5, 3.0)
"""Wanted places of references along the path, in lateral offsets (at least 1 m); ahead is +."""


@dataclass(frozen=True)
class ReprojectionConfig:
    """The numbers of the warp; chosen on procedural streets."""

    num_references: int = 8
    """Recorded frames per novel frame; more covers more and costs time."""
    splat_stride: int = 1
    """Every how many rows and columns of the recorded depth are splatted."""
    longest_gap: int = 12
    """Gaps of the splat up to this many pixels are interpolated; longer ones take the render."""
    surface_band: float = 0.12
    """Splats this far (relative) behind the nearest one are the same surface and are averaged."""
    reference_window: float = 0.0125
    """Half the window in which recorded depth is smoothed, share of the image width."""
    consensus_window: float = 0.045
    """The same for the consensus depth."""
    depth_noise: float = 0.03
    """Relative ripple of depth that smoothing removes; larger flattens more."""
    edge_tolerance: float = 0.12
    """Relative second difference of inverse depth above which a pixel may mix two surfaces."""
    depth_tolerance: float = 0.06
    """Relative disagreement of depth at which a reference's weight has fallen to 1/e."""
    far: FarConfig = FarConfig()
    """The search for the distance of far things."""
    far_tolerance: float = 0.25
    """`depth_tolerance` where that search changed the depth."""
    refinements: int = 1
    """How often the consensus depth is corrected by the looked-up depths; 0 keeps the splat."""
    distance_power: float = 1.5
    """Preference for references near to the surface; larger prefers more strongly."""
    color_tolerance: float = 0.02
    """Squared colour distance from the first mean at which a weight has fallen to 1/e."""
    covered_weight: float = 0.3
    """Summed weight above which a pixel counts as seen."""
    evidence_radius: int = 4
    """The repair fades where few pixels within this radius were seen, pixels."""
    belief: BeliefConfig = BeliefConfig()
    """How far the fused colours are believed against the render."""
    sharpness: float = 2.0
    """Exponent on the weights; above 1 the best reference dominates and textures stay sharp."""


class Prepared(NamedTuple):
    """A reference ready for lookups."""

    camera: Camera
    colors: Float32[Tensor, "3 hi wi"]
    geometry: Float32[Tensor, "3 h w"]
    """Inverse depth 1/m, usable 0..1, still 0..1."""
    depth: Float32[Tensor, "h w"]
    """Metres along z; sky at `SKY_DEPTH`."""
    still: Tensor
    """[h, w] bool: not on a moving object."""
    solid: Tensor
    """[h, w] bool: not at a depth edge."""


class ReprojectionRepairer:
    """Consensus depth from recorded views, warp, fuse; deterministic, CPU, no weights."""

    name = "reprojection"
    info = RepairerInfo(
        title="Reprojection",
        summary="Warps the recorded images into the novel view; invents nothing.",
        licence="Apache-2.0, part of this project",
        depth=True,
    )

    def __init__(self, config: ReprojectionConfig | None = None) -> None:
        self.config = config or ReprojectionConfig()
        self._prepared: WeakKeyDictionary[Reference, Prepared] = WeakKeyDictionary()

    def estimate_seconds(self, frames: int, height: int, width: int, device: str = "cpu") -> float:
        """Expected time, s: linear in pixels and references, measured on two CPU threads."""
        return 2.3e-7 * frames * height * width * self.config.num_references

    def repair(self, batch: RepairBatch) -> Iterator[FrameRepair]:
        """One warped and fused frame after the other."""
        positions = [reference.camera for reference in batch.references]
        for t, camera in enumerate(batch.cameras):
            chosen = select_references(camera, positions, count=self.config.num_references)
            features = warp_references(
                camera,
                [self._prepare(batch.references[index]) for index in chosen],
                batch.depths[t],
                batch.alphas[t],
                self.config,
                moving=None if batch.moving is None else batch.moving[t],
            )
            yield self._frame(batch, t, features)

    def _prepare(self, reference: Reference) -> Prepared:
        """A reference ready for lookups, kept for as long as the caller keeps the reference."""
        prepared = self._prepared.get(reference)
        if prepared is None:
            prepared = self._prepared[reference] = prepare(reference, self.config)
        return prepared

    def _frame(self, batch: RepairBatch, t: int, features: WarpFeatures) -> FrameRepair:
        """Fused colours as far as they are believed against the render, else the render."""
        config, render = self.config, batch.renders[t]
        seen = features.weight > config.covered_weight
        share = window_mean(seen.to(torch.float32)[None], config.evidence_radius)[0]
        seen &= share > 0.5  # single pixels in the middle of nothing look like dust
        belief = warp_belief(
            features, render, batch.depths[t], batch.calibrated_eig[t], config.belief
        )
        confidence = torch.where(seen, belief * share**2, torch.zeros_like(belief))
        rgb = torch.lerp(render, features.fused, confidence[..., None]).clamp(0, 1)
        provenance = seen.to(torch.uint8) * int(PixelProvenance.REPROJECTED)
        depth = torch.where(features.depth < 0.5 * SKY_DEPTH, features.depth, 0.0)
        notes = ()
        if not bool(seen.any()):
            notes = ("No recorded frame sees this view; it was left as rendered.",)
        return FrameRepair(rgb, confidence, provenance, depth, features, notes=notes)


def prepare(reference: Reference, config: ReprojectionConfig) -> Prepared:
    """A reference with sky depth filled in, depth edges and moving pixels marked."""
    solid_depth = reference.depth > 0
    if reference.alpha is not None:
        solid_depth &= reference.alpha > 0.5
    depth = torch.where(solid_depth, reference.depth, torch.full_like(reference.depth, SKY_DEPTH))
    depth = _smoothed(depth.clamp(1e-2, SKY_DEPTH), config.reference_window, config)
    solid = ~depth_edges(depth, config.edge_tolerance)
    usable = torch.where(solid, 1.0, 0.3)
    if reference.trust is not None:
        usable = usable * reference.trust.clamp(0, 1)
    moving = reference.dynamic_mask
    still = torch.ones_like(solid) if moving is None else ~moving
    geometry = torch.stack([1 / depth, usable, still.to(torch.float32)])
    colors = reference.image.permute(2, 0, 1).contiguous()
    return Prepared(reference.camera, colors, geometry, depth, still, solid)


def _smoothed(depth: Tensor, window: float, config: ReprojectionConfig) -> Tensor:
    radius = max(1, round(window * depth.shape[1]))
    return smooth_planes(depth, radius, config.depth_noise).clamp(1e-2, SKY_DEPTH)


def consensus_depth(
    camera: Camera,
    references: Sequence[Prepared],
    render_depth: Float32[Tensor, "H W"],
    render_alpha: Float32[Tensor, "H W"],
    config: ReprojectionConfig,
) -> Float32[Tensor, "H W"]:
    """Depth of a novel view from the references' depths, one z-buffer for all of them.

    Args:
        camera: The novel view.
        references: Recorded views with their depths.
        render_depth: The novel view's own depth, m; used where no reference lands.
        render_alpha: Its opacity; below 0.5 is sky.
        config: Splat stride.

    Returns:
        Metres along z, sky at `SKY_DEPTH`.
    """
    stride = config.splat_stride
    splats = []
    for reference in references:
        points = reproject(reference.camera, camera, reference.depth, stride)
        valid = reference.solid
        if not _same_time(reference, camera):
            valid = valid & reference.still
        splats.append((points, valid[::stride, ::stride]))
    buffer = splat_mean(splats, camera.height, camera.width, config.surface_band)
    buffer = fill_gaps(close_cracks(buffer), config.longest_gap)
    own = torch.where(
        (render_depth > 0) & (render_alpha > 0.5), render_depth, torch.tensor(SKY_DEPTH)
    )
    return torch.where(torch.isfinite(buffer), buffer, own).clamp(1e-2, SKY_DEPTH)


def _same_time(reference: Prepared, camera: Camera) -> bool:
    return abs(reference.camera.time - camera.time) < 1e-3


def _weigh(
    camera: Camera,
    depth: Tensor,
    reference: Prepared,
    config: ReprojectionConfig,
    factor: Tensor | None = None,
) -> tuple[Projected, Tensor, Tensor]:
    """Where novel pixels fall in a reference, their weights [H, W], sampled / projected depth [H, W].

    `factor` is what `far_factor` found: the reference's own depth is wrong there by the same factor.
    """
    points = reproject(camera, reference.camera, depth)
    inverse, usable, still = sample(reference.geometry, points, reference.camera)
    tolerance: float | Tensor = config.depth_tolerance
    if factor is not None:
        inverse = inverse * factor
        tolerance = torch.where(factor < 0.99, config.far_tolerance, config.depth_tolerance)
    disagreement = points.z * inverse - 1
    nearness = (depth / points.z.clamp(min=1e-3)).clamp(0.2, 5)
    weight = torch.exp(-((disagreement / tolerance) ** 2))
    weight = weight * (0.05 + nearness**config.distance_power) * usable * points.inside
    if not _same_time(reference, camera):
        weight = weight * (still > 0.999)
    return points, weight, 1 / (1 + disagreement).clamp(min=1e-3)


def refine_depth(
    camera: Camera,
    depth: Float32[Tensor, "H W"],
    references: Sequence[Prepared],
    config: ReprojectionConfig,
) -> Float32[Tensor, "H W"]:
    """Depth corrected to what the references that nearly agree see at the projected positions.

    Removes the rounding of the splat and averages noise among the references.
    """
    total = torch.full_like(depth, 1e-3)
    moved = depth * 1e-3
    for reference in references:
        _, weight, ratio = _weigh(camera, depth, reference, config)
        total += weight
        moved += weight * depth * ratio
    return (moved / total).clamp(1e-2, SKY_DEPTH)


def warp_references(
    camera: Camera,
    references: Sequence[Prepared],
    render_depth: Float32[Tensor, "H W"],
    render_alpha: Float32[Tensor, "H W"],
    config: ReprojectionConfig,
    *,
    moving: Bool[Tensor, "H W"] | None = None,
) -> WarpFeatures:
    """What the references say about a novel view: fused and best colours, weights, variance.

    Where the view shows something that moves it keeps its own depth, which a moving object brings along,
    and only references of its time count.

    Source: the project's repair recipe; weights as in its table of measurements.
    """
    depth = consensus_depth(camera, references, render_depth, render_alpha, config)
    for _ in range(config.refinements):
        depth = refine_depth(camera, depth, references, config)
    depth = _smoothed(depth, config.consensus_window, config)
    views = [(reference.camera, reference.colors) for reference in references]
    factor = far_factor(camera, depth, views, config.far)
    if moving is not None:
        depth = torch.where(moving, render_depth.clamp(1e-2, SKY_DEPTH), depth)
        factor = torch.where(moving, 1.0, factor)
    depth = (depth / factor).clamp(max=SKY_DEPTH)
    shape = (camera.height, camera.width)
    if not references:
        empty, black = torch.zeros(shape), torch.zeros(*shape, 3)
        return WarpFeatures(black, empty, empty, black, empty, depth)
    colors, weights = [], []
    for reference in references:
        points, weight, _ = _weigh(camera, depth, reference, config, factor)
        if moving is not None and not _same_time(reference, camera):
            weight = weight * ~moving
        colors.append(sample(reference.colors, points, reference.camera))
        weights.append(weight)
    return _fuse(torch.stack(colors), torch.stack(weights), depth, config)


def _fuse(
    colors: Tensor, weights: Tensor, depth: Tensor, config: ReprojectionConfig
) -> WarpFeatures:
    """Weighted mean, then once more with weights that fall with the distance from it."""
    total = weights.sum(0)
    mean = (colors * weights[:, None]).sum(0) / total.clamp(min=1e-6)
    distance = ((colors - mean) ** 2).mean(1)
    variance = (distance * weights).sum(0) / total.clamp(min=1e-6)
    robust = weights * torch.exp(-distance / config.color_tolerance)
    sharp = robust**config.sharpness + 1e-9 * weights
    fused = (colors * sharp[:, None]).sum(0) / sharp.sum(0).clamp(min=1e-9)
    best_weight, best = robust.max(0)
    index = best[None, None].expand(1, 3, *best.shape)
    return WarpFeatures(
        fused=fused.permute(1, 2, 0).contiguous(),
        weight=total,
        variance=variance,
        best=colors.gather(0, index)[0].permute(1, 2, 0).contiguous(),
        best_weight=best_weight,
        depth=depth,
    )


def select_references(camera: Camera, candidates: Sequence[Camera], count: int = 8) -> list[int]:
    """Indices of the recorded cameras that see most of what a novel view sees, best first.

    Args:
        camera: The novel view.
        candidates: Recorded cameras.
        count: At most this many.

    Returns:
        Indices into `candidates`, spread behind and ahead of the novel view along its own forward
        direction; cameras that look elsewhere (more than 60 degrees away) come last.
    """
    if not candidates:
        return []
    forward = camera.camtoworld[:3, 2]
    offsets = torch.stack([c.position - camera.position for c in candidates])
    along = offsets @ forward
    aside = (offsets - along[:, None] * forward).norm(dim=1)
    facing = torch.stack([c.camtoworld[:3, 2] @ forward for c in candidates])
    base = aside + 100.0 * (facing < 0.5) + 10.0 * (1 - facing)
    lateral = max(1.0, float(aside.min()))
    chosen: list[int] = []
    for wanted in SPREAD:
        cost = base + (along - wanted * lateral).abs()
        cost[chosen] = torch.inf
        best = int(cost.argmin())
        if len(chosen) == min(count, len(candidates)):
            break
        chosen.append(best)
    return chosen
