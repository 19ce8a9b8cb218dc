"""NTA-IoU: are the vehicles where they must be, seen from the novel trajectory.

Annotated boxes are projected into the shifted camera and each is compared with the nearest detection.
Two public scripts exist and do not agree; both are presets, `recondreamer` is the default. Everything
happens on a grid of 480x320 pixels. Detections without a box are not punished, so their number is
reported beside the score.

Sources: DriveDreamer4D `utils/metrics/NTA-IoU`, ReconDreamer `script/NTAIou` (read as a protocol).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.metrics.images import MetricError

NtaPreset = Literal["recondreamer", "drivedreamer4d"]

GRID = (480, 320)
"""Width and height of the grid everything is compared on, pixels."""
MIN_CONFIDENCE = 0.5
MAX_DISTANCE = 10.0
"""A detection belongs to a box if their centres are nearer than this, pixels of the grid."""
NEAREST = 0.1
"""A box with a corner at or behind this depth is not in the picture, m."""
MIN_LASER_POINTS = 10
CLASSES: dict[NtaPreset, frozenset[int] | None] = {
    "recondreamer": frozenset({2, 5}),
    "drivedreamer4d": None,
}
"""COCO classes that count: car and bus (truck, 7, is not in), or all 80."""


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one picture, on the grid of 480x320."""

    boxes: Float[Tensor, "D 4"]
    """x_min, y_min, x_max, y_max, pixels of the grid."""
    scores: Float[Tensor, "D"]
    """Confidence, 0..1."""
    classes: Int[Tensor, "D"]
    """COCO classes."""


@dataclass(frozen=True)
class NtaScore:
    """NTA-IoU and what is needed to judge it."""

    nta_iou: float
    """Mean IoU over all boxes of all frames; NaN without a box."""
    boxes: int
    matched_share: float
    """Boxes with a detection near enough."""
    unmatched_detections: int
    """Detections that serve no box; not punished."""
    empty_frames: int
    """Frames without a box, which do not count."""


def projected_corners(
    corners: Float[Tensor, "B 8 3"], camera: Camera
) -> tuple[Float[Tensor, "B 8 2"], Float[Tensor, "B 8"]]:
    """Pixels in the camera's own size, and depths in m; behind the camera pixels mean nothing."""
    view = camera.viewmat
    local = corners @ view[:3, :3].T + view[:3, 3]
    depth = local[..., 2]
    safe = torch.where(depth.abs() < 1e-9, torch.full_like(depth, 1e-9), depth)
    pixels = local @ camera.K.T
    return pixels[..., :2] / safe[..., None], depth


def image_boxes(
    corners: Float[Tensor, "B 8 3"],
    camera: Camera,
    *,
    preset: NtaPreset = "recondreamer",
    strict_compat: bool = False,
) -> tuple[Float[Tensor, "B 4"], Bool[Tensor, "B"]]:
    """Boxes on the 480x320 grid and which of them count.

    A box that crosses the border is dropped, never clipped; neither distance nor occlusion matters.

    Args:
        corners: From `box_corners`.
        camera: Of the novel trajectory.
        preset: How corners are rounded: `recondreamer` to whole pixels of the camera, then scaled;
            `drivedreamer4d` scaled, then cut to whole pixels of the grid.
        strict_compat: As the public scripts: corners behind the camera are projected as well, so that
            a box beside or behind it can appear flipped through the centre. Without it a box with any
            corner at a depth of 0.1 m or less is dropped; its picture reaches the border anyway.
    """
    pixels, depth = projected_corners(corners, camera)
    scale = torch.tensor([GRID[0] / camera.width, GRID[1] / camera.height], dtype=torch.float64)
    pixels = pixels.trunc() * scale if preset == "recondreamer" else (pixels * scale).trunc()
    usable = torch.ones_like(depth, dtype=torch.bool)
    if strict_compat and preset == "recondreamer":
        usable = ~(pixels == -scale).all(-1)  # (-1, -1) marks a corner that was not projected
        kept = usable.any(-1)
    else:
        kept = (depth > 0).any(-1) if strict_compat else (depth > NEAREST).all(-1)
    low = pixels.where(usable[..., None], torch.full_like(pixels, torch.inf)).amin(1)
    high = pixels.where(usable[..., None], torch.full_like(pixels, -torch.inf)).amax(1)
    boxes = torch.cat([low, high], -1)
    limits = torch.tensor(GRID, dtype=torch.float64)
    return boxes, kept & (boxes >= 0).all(-1) & (high <= limits).all(-1)


def seen_when_recorded(corners: Float[Tensor, "B 8 3"], recorded: Camera) -> Bool[Tensor, "B"]:
    """Whether at least one corner lies in the original picture, as both scripts ask."""
    pixels, depth = projected_corners(corners, recorded)
    limits = torch.tensor([recorded.width, recorded.height], dtype=torch.float64)
    inside = ((pixels >= 0) & (pixels < limits)).all(-1)
    return (inside & (depth > NEAREST)).any(-1)


def laser_points_inside(
    points: Float[Tensor, "M 3"], poses: Float[Tensor, "B 4 4"], sizes: Float[Tensor, "B 3"]
) -> Int[Tensor, "B"]:
    """Laser points (world, m) in each box; both scripts drop boxes with fewer than 10."""
    rotation, centre = poses[:, :3, :3].double(), poses[:, :3, 3].double()
    local = torch.einsum("mbi,bij->mbj", points.double()[:, None] - centre, rotation)
    return (local.abs() <= sizes.double() / 2).all(-1).sum(0)


def box_iou(a: Float[Tensor, "A 4"], b: Float[Tensor, "B 4"]) -> Float[Tensor, "A B"]:
    """Intersection over union of every pair; 0 for boxes without area."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - common
    return torch.where(union > 0, common / union.clamp(min=1e-12), torch.zeros_like(union))


def nta_iou(
    boxes: Sequence[Float[Tensor, "_ 4"]],
    detections: Sequence[Detections],
    *,
    preset: NtaPreset = "recondreamer",
    strict_compat: bool = False,
) -> NtaScore:
    """NTA-IoU over the frames of a trajectory.

    Args:
        boxes: Per frame the boxes that count, from `image_boxes`.
        detections: Per frame what the detector found, on the same grid.
        preset: Which COCO classes count.
        strict_compat: Without any box the score is what the script says (0 for `recondreamer`)
            instead of NaN.

    Raises:
        MetricError: The numbers of frames differ.
    """
    if len(boxes) != len(detections):
        raise MetricError(
            f"{len(boxes)} frames with boxes but {len(detections)} with detections; expected as many."
        )
    ious: list[float] = []
    matched = unmatched = 0
    for truth, found in zip(boxes, detections, strict=True):
        candidates = counted_detections(found, preset)
        iou, serves = _best_in_frame(truth.double(), candidates)
        ious += iou.tolist()
        matched += int((serves >= 0).sum())
        unmatched += len(candidates) - len(set(serves[serves >= 0].tolist()))
    nothing = 0.0 if strict_compat and preset == "recondreamer" else math.nan
    return NtaScore(
        nta_iou=sum(ious) / len(ious) if ious else nothing,
        boxes=len(ious),
        matched_share=matched / len(ious) if ious else math.nan,
        unmatched_detections=unmatched,
        empty_frames=sum(len(truth) == 0 for truth in boxes),
    )


def counted_detections(found: Detections, preset: NtaPreset) -> Float[Tensor, "D 4"]:
    """Boxes above the confidence and of the preset's classes, cut to whole pixels."""
    keep, classes = found.scores > MIN_CONFIDENCE, CLASSES[preset]
    if classes is not None:
        keep = keep & torch.isin(found.classes, torch.tensor(sorted(classes)))
    return found.boxes[keep].double().trunc()


def _best_in_frame(truth: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Per box its IoU with the detection of the nearest centre, and that detection or -1."""
    if not len(truth) or not len(found):
        return torch.zeros(len(truth)), torch.full((len(truth),), -1)
    centre, other = ((x[:, :2] + x[:, 2:]) / 2 for x in (truth, found))
    distance, nearest = torch.cdist(centre, other).min(1)
    near = distance < MAX_DISTANCE
    iou = box_iou(truth, found).gather(1, nearest[:, None])[:, 0]
    return torch.where(near, iou, torch.zeros_like(iou)), torch.where(near, nearest, -1)


def nta_protocol(detector: str, preset: NtaPreset, frames: int) -> str:
    """How it was measured, in words."""
    classes = CLASSES[preset]
    which = "all classes" if classes is None else f"COCO {', '.join(map(str, sorted(classes)))}"
    return (
        f"NTA-IoU, preset {preset}, detector {detector}, {which}, confidence > {MIN_CONFIDENCE:g}, "
        f"grid {GRID[0]}x{GRID[1]}, centres < {MAX_DISTANCE:g} px, {frames} frames"
    )
