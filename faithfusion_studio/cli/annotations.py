"""What of NTA-IoU and NTL-IoU the command metrics can measure, and why the rest cannot be."""

from __future__ import annotations

from faithfusion_studio.cli import arguments as a
from faithfusion_studio.cli.truth import Truth
from faithfusion_studio.metrics.annotated import AnnotatedViews
from faithfusion_studio.metrics.detectors import YoloxDetector
from faithfusion_studio.metrics.twinlitenet import LaneNet
from faithfusion_studio.scene import Scene


def annotated_views(
    args: a.Metrics, scene: Scene, truth: Truth, missing: dict[str, str]
) -> AnnotatedViews:
    """What can be measured here; the rest is explained in `missing`.

    Raises:
        WeightsError: A network's file was given but cannot be used.
    """
    captures = [c for c in (truth.capture, scene.capture) if c is not None]
    annotated = next((c for c in captures if c.boxes or c.lanes), None)
    found = AnnotatedViews(annotated, preset=args.preset, strict_compat=args.strict_compat)
    if annotated is None or not annotated.boxes:
        missing["nta_iou"] = "this recording has no annotated vehicles to compare with."
    elif args.detector is None:
        missing["nta_iou"] = "needs a detector: --detector FILE (YOLOX as ONNX)."
    else:
        found.detector = YoloxDetector(args.detector)
    if annotated is None or not annotated.lanes:
        missing["ntl_iou"] = "this recording has no annotated lanes to compare with."
    elif args.lane_net is None:
        missing["ntl_iou"] = "needs a lane network: --lane-net FILE (TwinLiteNet's best.pth)."
    else:
        found.lane_net = LaneNet(args.lane_net)
    return found
