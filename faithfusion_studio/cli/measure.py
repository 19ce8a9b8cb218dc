"""The command metrics: every number that has truth, with its protocol; why the rest has none."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from faithfusion_studio.cli import arguments as a
from faithfusion_studio.cli.annotations import annotated_views
from faithfusion_studio.cli.console import ProgressLine, say
from faithfusion_studio.cli.inputs import CommandLineError
from faithfusion_studio.cli.running import Result, chosen_device, opened, with_evidence
from faithfusion_studio.cli.truth import TrueFrame, Truth, find_truth
from faithfusion_studio.cli.uncertain import RegionSets, uncertain_region
from faithfusion_studio.io.weights import WeightsError
from faithfusion_studio.metrics import PROTOCOL, psnr, ssim
from faithfusion_studio.metrics.depth import depth_errors, depth_protocol
from faithfusion_studio.metrics.frechet import (
    FULL_RANK,
    KID_DRAWS,
    feature_moments,
    frechet_distance,
    kernel_distance,
)
from faithfusion_studio.metrics.inception import InceptionFeatures
from faithfusion_studio.metrics.lpips_weights import fetch_lpips
from faithfusion_studio.metrics.perceptual import SMALLEST, Lpips, load_lpips
from faithfusion_studio.metrics.regions import bad_half, blur_control, drift, region_psnr
from faithfusion_studio.metrics.temporal import flow_from_depth, warp_error
from faithfusion_studio.render.device import device_name
from faithfusion_studio.render.views import RenderedView, apply_exposure, render_view
from faithfusion_studio.scene import Scene

PSNR_WORDS, SSIM_WORDS = PROTOCOL.split("; ", 1)


@dataclass
class Sheet:
    """Numbers per frame, how each was measured, and why some are missing."""

    rows: list[dict[str, float]] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    """Of all frames together."""
    protocol: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value: float, how: str) -> None:
        """A number of the current frame."""
        self.rows[-1][name] = value
        self.protocol[name] = how

    def put_whole(self, name: str, value: float, how: str) -> None:
        """A number of all frames together."""
        self.values[name] = value
        self.protocol[name] = how

    def means(self) -> dict[str, float]:
        """Means over the frames that have a number, then what is of all frames together."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        found = {n: [r[n] for r in self.rows if not math.isnan(r.get(n, math.nan))] for n in names}
        means = {name: float(np.mean(v)) if v else math.nan for name, v in found.items()}
        return {**means, **self.values}


def metrics(args: a.Metrics) -> Result:
    """Measure a scene against truth."""
    if args.fetch_lpips:
        files = fetch_lpips(say)
        if args.scene is None:
            return Result({"files": files}, [f"Wrote {', '.join(map(str, files))}."])
    if args.scene is None:
        raise CommandLineError("no scene was given; expected `ff-studio metrics SCENE`.")
    if not 0 <= args.threshold <= 1:
        raise CommandLineError(f"--threshold: found {args.threshold:g}; expected 0 to 1.")
    device = chosen_device(args.device)
    scene = opened(args.scene, device)
    before = None if args.before is None else opened(args.before, device)
    truth = find_truth(args, scene)
    if args.regions == "eig":
        before, scene = (
            (None, with_evidence(scene)) if before is None else (with_evidence(before), scene)
        )
    started = time.perf_counter()
    sheet, size = _measured(args, scene, before, truth)
    values = sheet.means()
    where = f"{len(truth)} {truth.kind}, {size}, float"
    protocol = {name: f"{how}; {where}" for name, how in sheet.protocol.items()}
    report = {
        "values": values,
        "protocol": protocol,
        "missing": sheet.missing,
        "per_frame": sheet.rows,
        "frames": len(truth),
        "truth": truth.kind,
        "size": size,
        "device": device_name(scene.device),
        "seconds": time.perf_counter() - started,
    }
    width = max(len(name) for name in values)
    lines = [f"{name:<{width}}  {value:9.4f}  {protocol[name]}" for name, value in values.items()]
    return Result(report, [*lines, *(f"{k}: {why}" for k, why in sheet.missing.items())])


def _measured(
    args: a.Metrics, scene: Scene, before: Scene | None, truth: Truth
) -> tuple[Sheet, str]:
    sheet, line, sizes = Sheet(), ProgressLine("measured frame"), []
    lpips = _perceptual(args, sheet)
    annotated = annotated_views(args, scene, truth, sheet.missing)
    network = lpips if args.inception is None else InceptionFeatures(args.inception)
    neighbours, features = _Neighbours(), ([], [])
    by_eig = args.regions == "eig" and network is not None
    regions = RegionSets(network, args.threshold) if by_eig and network is not None else None
    for done, true in enumerate(truth.frames(), start=1):
        sheet.rows.append({})
        view = render_view(scene, true.camera)
        rgb = _as_recorded(view, true)
        sizes.append(f"{true.camera.width}x{true.camera.height}")
        _image_metrics(sheet, rgb, true, lpips)
        if true.depth is not None:
            _depth_metrics(sheet, view, true)
        if args.regions is not None or before is not None:
            bad = _region_metrics(sheet, args, scene, before, true, rgb, truth.is_recording)
            if regions is not None and min(rgb.shape[:2]) >= SMALLEST:
                regions.add(bad, rgb, true.image)
        neighbours.add(sheet, true, rgb, view.depth.cpu())
        if network is not None and min(rgb.shape[:2]) >= SMALLEST:
            for kept, image in zip(features, (rgb, true.image), strict=True):
                kept.append(network.pooled([image]))
        annotated.add(rgb, true.camera)
        line.update(done, len(truth))
    line.close()
    prefix = _set_metrics(sheet, network, features)
    if regions is not None and prefix is not None:
        regions.finish(sheet, prefix)
    annotated.finish(sheet.put_whole)
    _why_missing(sheet, args, before, truth)
    return sheet, " and ".join(dict.fromkeys(sizes))


def _as_recorded(view: RenderedView, true: TrueFrame) -> Tensor:
    """The render on the CPU, with the exposure that was fitted to a trained frame."""
    return apply_exposure(view.rgb.cpu(), true.exposure).clamp(0, 1)


def _perceptual(args: a.Metrics, sheet: Sheet) -> Lpips | None:
    try:
        return load_lpips(args.lpips_net, args.lpips)
    except WeightsError as error:
        if args.lpips is not None:
            raise
        sheet.missing["lpips"] = str(error)
        return None


def _image_metrics(sheet: Sheet, rgb: Tensor, true: TrueFrame, lpips: Lpips | None) -> None:
    exposed = "" if true.exposure is None else "; each frame's fitted exposure applied"
    sheet.put("psnr", psnr(rgb, true.image), f"dB, mean over frames, {PSNR_WORDS}{exposed}")
    sheet.put("ssim", ssim(rgb, true.image), f"mean over frames, {SSIM_WORDS}{exposed}")
    if lpips is not None:
        if min(rgb.shape[:2]) < SMALLEST:
            sheet.missing["lpips"] = f"LPIPS needs at least {SMALLEST} pixels a side."
            return
        sheet.put("lpips", lpips(rgb, true.image), f"mean over frames, {lpips.protocol}{exposed}")


def _depth_metrics(sheet: Sheet, view: RenderedView, true: TrueFrame) -> None:
    assert true.depth is not None
    found = asdict(depth_errors(view.depth.cpu(), true.depth))
    for name in ("abs_rel", "rmse", "within_125"):
        unit = "m, " if name == "rmse" else ""
        sheet.put(f"depth_{name}", found[name], f"{unit}mean over frames, {depth_protocol()}")


def _region_metrics(
    sheet: Sheet,
    args: a.Metrics,
    scene: Scene,
    before: Scene | None,
    true: TrueFrame,
    rgb: Tensor,
    is_recording: bool,
) -> Tensor:
    """Numbers of both regions; returns which pixels are uncertain, or bad."""
    first = rgb if before is None else _as_recorded(render_view(before, true.camera), true)
    whose = "this scene" if before is None else "the scene before"
    if args.regions == "eig":
        source = scene if before is None else before
        bad = uncertain_region(sheet, source, true, first, args.threshold)
        words, names = f"UCR of {whose}, threshold {args.threshold:g}", ("hpr", "ucr")
    else:
        bad = bad_half(first, true.image)
        words, names = f"split by the error of {whose}, 8x8 averages, halves", ("good", "bad")
    found = region_psnr(first, rgb, true.image, bad)
    for name, value in zip(names, (found.good_after, found.bad_after), strict=True):
        sheet.put(f"psnr_{name}", value, f"dB, mean over frames, {words}")
    if before is None:
        return bad
    control = blur_control(first, rgb)
    blurred = region_psnr(first, control.image, true.image, bad)
    reached = "of equal strength" if control.reached else "as strong as it gets"
    for label, change, how in (
        ("change", found, "after minus before"),
        ("control", blurred, f"the same for a blur {reached}"),
    ):
        for name, value in zip(names, (change.good_change, change.bad_change), strict=True):
            sheet.put(f"psnr_{label}_{name}", value, f"dB, mean over frames, {words}, {how}")
    if is_recording:
        sheet.put("drift", drift(first, rgb, true.image), "dB, PSNR after minus before, recorded")
    return bad


class _Neighbours:
    """Warp error between consecutive frames of each camera."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[TrueFrame, Tensor, Tensor]] = {}

    def add(self, sheet: Sheet, true: TrueFrame, rgb: Tensor, depth: Tensor) -> None:
        last = self._last.get(true.camera.name)
        z = depth if true.depth is None else true.depth
        self._last[true.camera.name] = (true, rgb, z)
        if last is None or last[2].shape != z.shape:
            return
        flow = flow_from_depth(last[2], last[0].camera, true.camera, z)
        source = "rendered" if true.depth is None else "true"
        step = abs(true.camera.time - last[0].camera.time)
        how = f"mean absolute RGB difference along the flow of {source} depth, {step:.2g} s apart"
        sheet.put("warp_l1", warp_error(last[1], rgb, flow).l1, how)
        sheet.put("warp_l1_truth", warp_error(last[0].image, true.image, flow).l1, f"{how}, truth")


def _set_metrics(
    sheet: Sheet,
    network: Lpips | InceptionFeatures | None,
    features: tuple[list[Tensor], list[Tensor]],
) -> str | None:
    """Distances of the sets of renders and of true frames, under the network's own name; returns the Frechet distance's."""
    is_fid = isinstance(network, InceptionFeatures) and network.is_fid
    if not is_fid:
        sheet.missing["fid"] = (
            "FID and KID are defined by one network, --inception pt_inception-2015-12-05-6726825d.pth; "
            "fd and kd are the same mathematics on the network they name and never compare with them."
        )
    if network is None or len(features[0]) < 2:
        reason = "a network: --inception, or LPIPS weights" if network is None else "two frames"
        sheet.missing["fd"] = f"Frechet and kernel distance need {reason}."
        return None
    rendered, true = (torch.cat(rows) for rows in features)
    label = network.name.split(" ", maxsplit=1)[0]
    frechet, kernel = ("fid", "kid") if is_fid else (f"fd_{label}", f"kd_{label}")
    few = "" if len(true) >= FULL_RANK else f", biased below {FULL_RANK}"
    how = f"mean features of {network.protocol}, n = {len(true)} a side"
    distance = frechet_distance(feature_moments(rendered), feature_moments(true))
    sheet.put_whole(frechet, distance, f"Frechet distance, {how}{few}")
    found = kernel_distance(rendered, true)
    words = f"cubic kernel, subsets of {found.subset}, {KID_DRAWS} draws, seed 0"
    sheet.put_whole(kernel, found.mean, f"kernel distance, {words}, {how}")
    sheet.put_whole(f"{kernel}_sd", found.deviation, f"spread over the draws, {words}, {how}")
    return frechet


def _why_missing(sheet: Sheet, args: a.Metrics, before: Scene | None, truth: Truth) -> None:
    """One sentence for everything that has no number."""
    reasons = {
        "depth": (
            "depth_rmse",
            "no depth lies beside the true pictures (NAME_depth.npz with the array depth).",
        ),
        "regions": ("psnr_hpr", "not asked for; choose --regions eig or --regions error."),
        "change": ("psnr_change_hpr", "what a repair changed needs the scene before it: --before."),
        "drift": ("drift", "drift needs --before and the scene's own recorded frames."),
        "warp": ("warp_l1", "warp error needs two frames of one camera."),
        "changed_outside": (
            "",
            "the share of pixels changed outside the mask is of a repaired picture, not of a scene; "
            "`ff-studio repair` counts it as hpr_changed.",
        ),
    }
    alternatives = {"psnr_hpr": "psnr_good", "psnr_change_hpr": "psnr_change_good"}
    for name, (number, why) in reasons.items():
        if number not in sheet.protocol and alternatives.get(number) not in sheet.protocol:
            sheet.missing[name] = why
