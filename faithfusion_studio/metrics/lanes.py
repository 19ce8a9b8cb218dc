"""NTL-IoU: are the lane lines where they must be, seen from the novel trajectory.

Annotated polylines are drawn into the shifted camera and compared with what a lane network finds in
the render, on a grid of 640x360. The published score is the mean of the IoU of background and lane, so
an empty prediction still scores almost one half; the lane's own IoU stands beside it.

Source: DriveDreamer4D `utils/metrics/NTL-IoU` (read as a protocol).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.metrics.images import MetricError

GRID = (640, 360)
"""Width and height of the grid everything is compared on, pixels."""
FARTHEST, LOWEST = 75.0, 10.0
"""Points farther than this from the camera, or more than this above or below it, are not drawn, m."""
NEAREST = 1e-3
"""Points at or behind this depth are not drawn, m."""
THICKNESS = 20 / 1280
"""Of a line, as a share of the picture's height."""


@dataclass(frozen=True)
class NtlScore:
    """NTL-IoU and the part of it that is about lanes."""

    ntl_iou: float
    """Mean over frames of (IoU of background + IoU of lane) / 2; papers print it times 100."""
    lane_iou: float
    """Mean over frames of the lane's IoU; a frame without any lane counts as 0."""
    frames: int
    lane_frames: int
    """Frames whose truth shows a lane."""


def lane_mask(lanes: Sequence[Float[Tensor, "_ 3"]], camera: Camera) -> Bool[Tensor, "360 640"]:
    """Annotated polylines as the metric draws them, open and without occlusion.

    Args:
        lanes: World, m.
        camera: Of the novel trajectory; drawing happens at its own size.
    """
    import cv2

    canvas = np.zeros((camera.height, camera.width), np.uint8)
    thickness = max(int(THICKNESS * camera.height), 1)
    for lane in lanes:
        for piece in visible_pieces(lane, camera):
            points = np.clip(piece.numpy(), -(2**15), 2**15).astype(np.int32)
            cv2.polylines(canvas, [points[:, None]], False, 255, thickness)
    small = cv2.resize(canvas, GRID, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(small > 1)


def visible_pieces(lane: Float[Tensor, "M 3"], camera: Camera) -> list[Float[Tensor, "_ 2"]]:
    """Pixels of the consecutive points that are near enough, in pieces of at least two."""
    view = camera.viewmat
    local = lane.double() @ view[:3, :3].T + view[:3, 3]
    kept = (local.norm(dim=-1) < FARTHEST) & (local[:, 1].abs() < LOWEST)
    index = kept.nonzero()[:, 0]
    if not len(index):
        return []
    cuts = ((index[1:] - index[:-1]) > 1).nonzero()[:, 0] + 1
    pieces = []
    for run in torch.tensor_split(index, cuts):
        points = local[run]
        if len(points) < 2:
            continue
        points = points[points[:, 2] > NEAREST]
        if len(points) >= 2:
            pixels = points @ camera.K.T
            pieces.append(pixels[:, :2] / pixels[:, 2:])
    return pieces


def ntl_iou(found: Sequence[Bool[Tensor, "H W"]], truth: Sequence[Bool[Tensor, "H W"]]) -> NtlScore:
    """NTL-IoU over the frames of a trajectory.

    Args:
        found: Lane masks of the renders, from a lane network.
        truth: Lane masks of the annotation, from `lane_mask`.

    Raises:
        MetricError: No frame, or different numbers or sizes of masks.
    """
    if len(found) != len(truth) or not truth:
        raise MetricError(
            f"{len(found)} found and {len(truth)} true lane masks; expected as many, at least one."
        )
    pairs = [_two_ious(a, b) for a, b in zip(found, truth, strict=True)]
    return NtlScore(
        ntl_iou=sum((background + lane) / 2 for background, lane in pairs) / len(pairs),
        lane_iou=sum(lane for _, lane in pairs) / len(pairs),
        frames=len(pairs),
        lane_frames=sum(bool(mask.any()) for mask in truth),
    )


def _two_ious(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """IoU of background and of lane; a class that is in neither mask counts as 0, as published."""
    if found.shape != truth.shape:
        raise MetricError(
            f"a lane mask of {tuple(found.shape)} against {tuple(truth.shape)}; expected one size."
        )
    values = []
    for a, b in ((~found, ~truth), (found, truth)):
        union = int((a | b).sum())
        values.append(int((a & b).sum()) / union if union else math.nan)
    background, lane = (0.0 if math.isnan(value) else value for value in values)
    return background, lane


def ntl_protocol(network: str, frames: int) -> str:
    """How it was measured, in words."""
    return (
        f"NTL-IoU as DriveDreamer4D, lanes by {network}, grid {GRID[0]}x{GRID[1]}, lines "
        f"{THICKNESS * 1280:g}/1280 of the height thick, {FARTHEST:g} m, {frames} frames"
    )
