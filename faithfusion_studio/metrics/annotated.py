"""NTA-IoU and NTL-IoU of renders, where the recording has annotated vehicles and lanes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from faithfusion_studio.boxes import box_corners
from faithfusion_studio.cameras import Camera
from faithfusion_studio.metrics.boxes import (
    MIN_LASER_POINTS,
    Detections,
    NtaPreset,
    image_boxes,
    laser_points_inside,
    nta_iou,
    nta_protocol,
    seen_when_recorded,
)
from faithfusion_studio.metrics.detectors import Detector
from faithfusion_studio.metrics.lanes import lane_mask, ntl_iou, ntl_protocol
from faithfusion_studio.metrics.twinlitenet import LaneNet
from faithfusion_studio.scene import Capture


@dataclass
class AnnotatedViews:
    """Collects what detector and lane network find, frame by frame."""

    annotated: Capture | None
    """Whose boxes and lanes are true."""
    detector: Detector | None = None
    """None measures no vehicles."""
    lane_net: LaneNet | None = None
    """None measures no lanes."""
    preset: NtaPreset = "recondreamer"
    strict_compat: bool = False
    boxes: list[Tensor] = field(default_factory=list)
    detections: list[Detections] = field(default_factory=list)
    true_lanes: list[Tensor] = field(default_factory=list)
    found_lanes: list[Tensor] = field(default_factory=list)
    laser_tested: bool = False

    def add(self, rgb: Tensor, camera: Camera) -> None:
        """Look at one render."""
        if self.detector is not None:
            self.boxes.append(self._true_boxes(camera))
            self.detections.append(self.detector.detect(rgb))
        if self.lane_net is not None and self.annotated is not None:
            self.true_lanes.append(lane_mask(self.annotated.lanes, camera))
            self.found_lanes.append(self.lane_net.lanes(rgb))

    def _true_boxes(self, camera: Camera) -> Tensor:
        """The boxes that count at the camera's time, on the metric's grid."""
        assert self.annotated is not None
        tracks = self.annotated.boxes
        nearest = [int((t.timestamps - camera.time).abs().argmin()) for t in tracks]
        poses = torch.stack([t.poses[i] for t, i in zip(tracks, nearest, strict=True)])
        sizes = torch.stack([track.size for track in tracks])
        corners = box_corners(poses, sizes)
        boxes, kept = image_boxes(
            corners, camera, preset=self.preset, strict_compat=self.strict_compat
        )
        recorded = min(
            self.annotated.trajectory.cameras,
            key=lambda c: (abs(c.time - camera.time), c.name != camera.name),
        )
        kept = kept & seen_when_recorded(corners, recorded)
        times = sorted(set(self.annotated.trajectory.timestamps))
        if len(self.annotated.lidar) == len(times):
            self.laser_tested = True
            sweep = self.annotated.lidar[times.index(recorded.time)]
            kept = kept & (laser_points_inside(sweep, poses, sizes) >= MIN_LASER_POINTS)
        return boxes[kept]

    def finish(self, put: Callable[[str, float, str], None]) -> None:
        """Hand over the numbers of all frames together."""
        if self.detector is not None:
            score = nta_iou(
                self.boxes,
                self.detections,
                preset=self.preset,
                strict_compat=self.strict_compat,
            )
            laser = f">= {MIN_LASER_POINTS} laser points" if self.laser_tested else "no laser test"
            mode = ", strict_compat" if self.strict_compat else ""
            frames = len(self.boxes)
            how = f"{nta_protocol(self.detector.name, self.preset, frames)}, {laser}{mode}"
            put("nta_iou", score.nta_iou, how)
            put(
                "nta_boxes",
                float(score.boxes),
                f"boxes that count, {score.empty_frames} frames without",
            )
            put("nta_matched", score.matched_share, "share of the boxes with a detection near")
            put(
                "nta_unmatched",
                float(score.unmatched_detections),
                "detections of no box, not punished",
            )
        if self.lane_net is not None:
            lanes = ntl_iou(self.found_lanes, self.true_lanes)
            how = ntl_protocol(self.lane_net.name, lanes.frames)
            put("ntl_iou", 100 * lanes.ntl_iou, f"times 100, {how}; half of it is background")
            put("lane_iou", 100 * lanes.lane_iou, f"times 100, the lane's own IoU, {how}")
