"""Commands that look at a scene and change nothing: info, eig, render."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from faithfusion_studio import __version__
from faithfusion_studio.cameras import Camera
from faithfusion_studio.cli import arguments as a
from faithfusion_studio.cli.console import ProgressLine, duration
from faithfusion_studio.cli.inputs import (
    CommandLineError,
    cameras_of,
    output_folder,
    parse_pixel,
    parse_range,
    parse_size,
)
from faithfusion_studio.cli.running import (
    Result,
    chosen_device,
    in_words,
    opened,
    provenance_counts,
    scene_notes,
    with_evidence,
)
from faithfusion_studio.render.device import choose_device, device_name
from faithfusion_studio.scene import Capture, Scene

CAUSES_SHOWN = 16
"""An explanation names so many Gaussians."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def info(args: a.Info) -> Result:
    """Count what is in a scene, a splat file or a capture."""
    from faithfusion_studio.io import FORMATS, NATIVE_VERSION, load_capture, load_scene, sniff

    kind = sniff(args.path)
    if kind == "capture":
        capture: Capture | None = load_capture(args.path)
        scene = None
    else:
        scene = load_scene(args.path)
        capture = scene.capture
    trajectory = None if capture is None else capture.trajectory
    values = {
        "gaussians": 0 if scene is None else scene.num_gaussians,
        "frames": 0 if capture is None else len(capture),
        "nodes": [] if scene is None else [node.name for node in scene.nodes],
        "cameras": [] if capture is None else [n or "camera" for n in capture.camera_names],
        "length_m": 0.0 if trajectory is None else round(trajectory.length_m, 3),
        "fisher": scene is not None and scene.fisher is not None,
        "provenance": {} if scene is None else provenance_counts(scene.all_gaussians),
        "version": ".".join(map(str, NATIVE_VERSION)) if kind == "native" else __version__,
        "format": kind,
        "sky": None if scene is None or scene.sky is None else type(scene.sky).__name__,
        "ego_poses": trajectory is not None and not trajectory.ego_is_camera,
        "source": _about("source", scene, capture),
        "licence": _about("licence", scene, capture),
        "notes": [*scene_notes(scene), *(() if capture is None else capture.notes)],
        "studio_version": __version__,
        "device": choose_device().name,
    }
    shown = {**values, "format": FORMATS[kind].split(",", maxsplit=1)[0]}
    width = max(map(len, shown))
    return Result(values, [f"{key:<{width}}  {in_words(value)}" for key, value in shown.items()])


def _about(key: str, scene: Scene | None, capture: Capture | None) -> str:
    found = "" if capture is None else getattr(capture, key)
    return str(found or ("" if scene is None else scene.metadata.get(key, "")))


def eig(args: a.Eig) -> Result:
    """Heat maps and nats along a path."""
    from faithfusion_studio.information import eig_map, split_regions
    from faithfusion_studio.io.pictures import filled_folder, write_npy, write_png
    from faithfusion_studio.render.views import to_uint8
    from faithfusion_studio.video import eig_colors, fit_camera

    scene = opened(args.scene, chosen_device(args.device))
    cameras, stems = cameras_of(scene, args)
    pixel = None if args.explain is None else parse_pixel(args.explain)
    size, scene = parse_size(args.size), with_evidence(scene)
    first = cameras[0] if size is None else fit_camera(cameras[0], *size)
    more, said = _explained(args, scene, first, pixel)
    line, seconds, ucr, values = ProgressLine("EIG of frame"), [], [], []
    with filled_folder(args.out_dir, CommandLineError) as folder:
        for done, (camera, stem) in enumerate(zip(cameras, stems, strict=True), start=1):
            shown = camera if size is None else fit_camera(camera, *size)
            started = time.perf_counter()
            with torch.no_grad():
                found = eig_map(scene, shown, form=args.form)
            seconds.append(time.perf_counter() - started)
            ucr.append(float(split_regions(found, args.threshold).ucr.float().mean()))
            nats = found.eig.cpu().numpy().astype(np.float32)
            write_npy(nats, folder / f"{stem}_eig.npy")
            heat = to_uint8(eig_colors(found.calibrated)).cpu().numpy()
            write_png(heat, folder / f"{stem}_eig.png")
            values.append(nats.ravel())
            line.update(done, len(cameras))
    line.close()
    everything = np.concatenate(values)
    quantiles = np.quantile(everything, QUANTILES).tolist()
    report = {
        "mean": float(everything.mean(dtype=np.float64)),
        "quantiles": {str(q): value for q, value in zip(QUANTILES, quantiles, strict=True)},
        "ucr_share": float(np.mean(ucr)),
        "ms": 1000 * float(np.median(seconds)),
        "frames": len(cameras),
        "form": args.form,
        "threshold": args.threshold,
        "offset": args.offset,
        "device": device_name(scene.device),
        "out": args.out_dir,
        **more,
    }
    return Result(
        report,
        [
            f"EIG of {len(cameras)} views at {args.offset:+g} m: mean {report['mean']:.2f} nats, "
            f"median {quantiles[2]:.2f}, 95 % below {quantiles[4]:.2f}.",
            f"UCR {report['ucr_share']:.1%} of the pixels (calibrated EIG >= {args.threshold:g}); "
            f"{report['ms']:.0f} ms a view. Written to {args.out_dir}.",
            *said,
        ],
    )


def _explained(
    args: a.Eig, scene: Scene, camera: Camera, pixel: tuple[int, int] | None
) -> tuple[dict[str, Any], list[str]]:
    """What was asked beside the maps: why a pixel is uncertain, and where to drive next."""
    from faithfusion_studio.information import expected_gains, explain_pixel
    from faithfusion_studio.information.next_view import OFFSETS, spread_frames

    more: dict[str, Any] = {}
    said = []
    if pixel is not None:
        found = explain_pixel(scene, camera, *pixel)
        causes = zip(found.rows.tolist(), found.shares.tolist(), strict=True)
        more["explanation"] = {
            "pixel": pixel,
            "nats": found.nats,
            "calibrated": found.calibrated,
            "groups": dict(found.groups),
            "gaussians": [{"row": r, "share": s} for r, s in causes][:CAUSES_SHOWN],
        }
        said.append(f"Pixel {args.explain}: {found.nats:.2f} nats, {found.words()}.")
    if args.where_next:
        if scene.capture is None:
            raise CommandLineError("this scene has no recorded path, so there is none to leave.")
        path, line = scene.capture.trajectory, ProgressLine("offset")
        frames = spread_frames(path, parse_range(args.frames, len(path)))
        gains = []
        for gain in expected_gains(scene, path, OFFSETS, frames=frames):
            gains.append(gain)
            line.update(len(gains), len(OFFSETS))
        line.close()
        gains.sort(key=lambda gain: -gain.nats)
        more["where_next"] = [{"offset": g.offset, "nats": g.nats} for g in gains]
        words = ", ".join(f"{g.offset:+g} m {g.nats:.0f}" for g in gains)
        said.append(f"Where to drive next, nats per view of {len(frames)}: {words}.")
    return more, said


def _pictures(folder: Path | None) -> tuple[Path, ...]:
    """The pictures in a folder, in the order of their names."""
    if folder is None:
        return ()
    if not folder.is_dir():
        raise CommandLineError(f"--truth: {folder} is not a folder; name one with pictures.")
    found = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in (".png", ".jpg", ".jpeg")]
    if not found:
        raise CommandLineError(f"--truth: {folder} holds no PNG or JPEG.")
    return tuple(found)


def render(args: a.Render) -> Result:
    """A video or a folder of pictures."""
    from faithfusion_studio.rig_video import (
        choose_cameras,
        export_rig,
        export_steps,
        rig_files,
    )
    from faithfusion_studio.video import VideoOptions

    device = chosen_device(args.device)
    scene = opened(args.scene, device)
    cameras, stems = cameras_of(scene, args)
    is_video = args.out.suffix.lower() == ".mp4"
    names = list(dict.fromkeys(camera.name for camera in cameras))
    asked = args.rig or ("all" if not is_video or args.arrange == "grid" else names[0] or "camera")
    chosen = choose_cameras(names, [part.strip() for part in asked.split(",")])
    kept = [i for i, camera in enumerate(cameras) if camera.name in chosen]
    cameras, stems = tuple(cameras[i] for i in kept), [stems[i] for i in kept]
    everything = not is_video or args.layout == "side-by-side"
    default = "rgb,eig,depth" if everything else "rgb"
    if args.layers is None and scene.fisher is None and scene.capture is None:
        default = default.replace("eig,", "")
    layers = tuple(part.strip() for part in (args.layers or default).split(","))
    options = VideoOptions(
        layers=layers,
        layout=args.layout,
        size=parse_size(args.size),
        fps=args.fps or _frame_rate([camera.time for camera in cameras]),
        caption=args.caption,
        provenance=args.provenance,
        before=None if args.before is None else opened(args.before, device),
        truth=_pictures(args.truth),
        stems=tuple(stems),
    )
    scene = with_evidence(scene) if "eig" in layers else scene
    output_folder(args.out.absolute().parent)
    started, line = time.perf_counter(), ProgressLine("frame")
    total = export_steps(cameras, args.out, args.arrange)
    for done in export_rig(scene, cameras, args.out, options, arrange=args.arrange):
        line.update(done, total)
    line.close()
    files = rig_files(cameras, args.out, options, args.arrange)
    values = {
        "frames": len(cameras),
        "seconds": time.perf_counter() - started,
        "files": files,
        "layers": layers,
        "layout": args.layout,
        "cameras": [name or "camera" for name in chosen],
        "arrange": args.arrange,
        "fps": options.fps,
        "offset": args.offset,
    }
    names = ", ".join(map(str, files))
    return Result(values, [f"{len(cameras)} frames in {duration(values['seconds'])}: {names}"])


def _frame_rate(times: Sequence[float]) -> float:
    """Frames per second of a recording, 10 where its times do not tell."""
    steps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    positive = [step for step in steps if step > 0]
    if not positive:
        return 10.0
    return round(min(max(1 / float(np.median(positive)), 1.0), 60.0), 3)
