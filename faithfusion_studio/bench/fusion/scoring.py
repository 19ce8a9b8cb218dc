"""What became better and worse: renders of the splats before and after, against what is really seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.bench.fusion.cases import FusionCase
from faithfusion_studio.bench.report import BenchConfig
from faithfusion_studio.bench.uncertainty.truth import TrueView
from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.batches import working_scale
from faithfusion_studio.information import eig_map, split_regions
from faithfusion_studio.io.weights import WeightsError
from faithfusion_studio.metrics import psnr, ssim_map
from faithfusion_studio.metrics.annotated import AnnotatedViews
from faithfusion_studio.metrics.detectors import Detector, YoloxDetector
from faithfusion_studio.metrics.perceptual import SMALLEST, Lpips, load_lpips
from faithfusion_studio.metrics.regions import bad_half, blur_control, region_psnr
from faithfusion_studio.metrics.temporal import Flow, flow_from_depth, warp_error
from faithfusion_studio.metrics.twinlitenet import LaneNet
from faithfusion_studio.render.views import apply_exposure, render_view
from faithfusion_studio.scene import Scene

RECORDED_VIEWS = 8
"""Recorded views on which the drift is measured."""
EDGE = 5
"""Pixels at each border where the window of SSIM does not fit."""


@dataclass(eq=False)
class Judges:
    """Networks that some numbers need, and why some are missing."""

    lpips: Lpips | None = None
    detector: Detector | None = None
    lane_net: LaneNet | None = None
    missing: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: BenchConfig) -> Judges:
        """Those that the configuration names and the cache holds.

        Raises:
            WeightsError: A file that was named cannot be used.
        """
        found = cls()
        try:
            found.lpips = load_lpips("alex")
        except WeightsError as error:
            found.missing.append(f"lpips: {error}")
        if config.detector is None:
            found.missing.append("vehicle_iou: needs --detector FILE (YOLOX as ONNX).")
        else:
            found.detector = YoloxDetector(config.detector)
        if config.lane_net is None:
            found.missing.append("lane_iou: needs --lane-net FILE (TwinLiteNet's best.pth).")
        else:
            found.lane_net = LaneNet(config.lane_net)
        return found


@dataclass(frozen=True, eq=False)
class _Look:
    """One true view and what the scene showed there before."""

    truth: Float32[Tensor, "H W 3"]
    before: Float32[Tensor, "H W 3"]
    bad: Bool[Tensor, "H W"]
    ucr: Bool[Tensor, "H W"]
    flow: Flow | None


class Scorer:
    """All numbers of a case, for any scene that came out of it.

    Args:
        case: Scene before, true views.
        judges: Networks.
        eig_threshold: tau on calibrated EIG, for UCR and HPR.
    """

    def __init__(self, case: FusionCase, judges: Judges, eig_threshold: float) -> None:
        self.case, self._judges = case, judges
        self._looks = [
            _look(case.scene, view, following, eig_threshold)
            for view, following in zip(case.views, case.next_cameras, strict=True)
        ]
        self._recorded = _recorded_psnr(case.scene, case.segment)

    @property
    def ucr_share(self) -> float:
        """Share of the pixels that are under-constrained before."""
        return _mean([float(look.ucr.float().mean()) for look in self._looks])

    def score(self, scene: Scene) -> dict[str, float]:
        """The splats of a scene, rendered at the true views."""
        with torch.no_grad():
            images = [render_view(scene, view.camera).rgb.cpu() for view in self.case.views]
            following = [render_view(scene, c).rgb.cpu() for c in self.case.next_cameras]
        values = self.score_images(images)
        values |= self._annotated(images)
        values["warp_error"] = self._warp_error(images, following)
        after = _recorded_psnr(scene, self.case.segment)
        changes = [b - a for a, b in zip(self._recorded, after, strict=True)]
        values["recorded_db"] = _mean(changes)
        return values

    def score_images(self, images: Sequence[Float32[Tensor, "H W 3"]]) -> dict[str, float]:
        """Pictures at the true views; a change is over the render before."""
        rows = [self._one(look, rgb) for look, rgb in zip(self._looks, images, strict=True)]
        return {name: _mean([row[name] for row in rows]) for name in rows[0]}

    def _one(self, look: _Look, rgb: Tensor) -> dict[str, float]:
        truth, before, bad, ucr = look.truth, look.before, look.bad, look.ucr
        similar = ssim_map(rgb, truth).mean(-1)
        inner = ucr[EDGE:-EDGE, EDGE:-EDGE]
        halves = region_psnr(before, rgb, truth, bad)
        blurred = region_psnr(before, blur_control(before, rgb).image, truth, bad)
        return {
            "psnr": psnr(rgb, truth),
            "psnr_ucr": psnr(rgb, truth, ucr) if bool(ucr.any()) else math.nan,
            "psnr_hpr": psnr(rgb, truth, ~ucr) if bool((~ucr).any()) else math.nan,
            "ssim": float(similar.mean()),
            "ssim_ucr": float(similar[inner].mean()),
            "ssim_hpr": float(similar[~inner].mean()),
            "lpips": self._lpips(rgb, truth),
            "bad_half_db": halves.bad_change,
            "good_half_db": halves.good_change,
            "blur_bad_db": blurred.bad_change,
            "blur_good_db": blurred.good_change,
        }

    def _lpips(self, rgb: Tensor, truth: Tensor) -> float:
        lpips = self._judges.lpips
        if lpips is None or min(rgb.shape[:2]) < SMALLEST:
            return math.nan
        return float(lpips(rgb, truth))

    def _warp_error(self, images: Sequence[Tensor], following: Sequence[Tensor]) -> float:
        errors = [
            warp_error(image, next_image, look.flow).l1
            for look, image, next_image in zip(self._looks, images, following, strict=True)
            if look.flow is not None
        ]
        return _mean(errors)

    def _annotated(self, images: Sequence[Tensor]) -> dict[str, float]:
        """IoU of lanes and vehicles, NaN where they cannot be measured."""
        capture, judges = self.case.scene.capture, self._judges
        values = {"lane_iou": math.nan, "vehicle_iou": math.nan}
        if capture is None:
            return values
        found = AnnotatedViews(
            capture,
            detector=judges.detector if capture.boxes else None,
            lane_net=judges.lane_net if capture.lanes else None,
        )
        for rgb, view in zip(images, self.case.views, strict=True):
            found.add(rgb, view.camera)
        names = {"lane_iou": "lane_iou", "nta_iou": "vehicle_iou"}

        def put(name: str, value: float, _how: str) -> None:
            if name in names:
                values[names[name]] = value if name == "nta_iou" else value / 100

        found.finish(put)
        return values


def _look(scene: Scene, view: TrueView, following: Camera, eig_threshold: float) -> _Look:
    with torch.no_grad():
        before = render_view(scene, view.camera).rgb.cpu()
        regions = split_regions(eig_map(scene, view.camera), eig_threshold)
    flow = None
    if view.depth is not None:
        flow = flow_from_depth(view.depth, view.camera, following)
    bad = bad_half(before, view.rgb)
    return _Look(view.rgb, before, bad, regions.ucr.cpu(), flow)


def _recorded_psnr(scene: Scene, segment: tuple[int, int]) -> list[float]:
    """PSNR of recorded views of the segment at the size they were trained at, dB."""
    assert scene.capture is not None
    start, stop = segment
    values = []
    for index in range(start, stop, max(1, (stop - start) // RECORDED_VIEWS)):
        frame = scene.capture.frames[index]
        camera = frame.camera.scaled(working_scale(scene))
        with torch.no_grad():
            rgb = render_view(scene, camera).rgb
        if scene.exposures is not None:
            rgb = apply_exposure(rgb, scene.exposures[index]).clamp(0, 1)
        values.append(psnr(rgb.cpu(), frame.image((camera.width, camera.height))))
    return values


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan
