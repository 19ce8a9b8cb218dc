"""Render a camera sequence of one scene into a video file or a folder of pictures.

Both appear under their final name complete or not at all: frames go to a `.part` beside it, which
is renamed at the end and removed when the export is cancelled, fails or finds the disk full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import StudioError
from faithfusion_studio.io.mp4 import write_videos
from faithfusion_studio.io.pictures import filled_folder, write_npy, write_png
from faithfusion_studio.render.views import (
    colorize,
    generated_share,
    palette,
    rasterize_view,
    to_uint8,
)
from faithfusion_studio.scene import Scene

Layer = Literal["rgb", "eig", "depth"]
Layout = Literal["single", "side-by-side", "before-after", "columns"]
WITH_BEFORE = ("before-after", "columns")
"""Layouts that need the scene from before."""

DEPTH_RANGE = (1.0, 100.0)
"""Ends of the logarithmic depth colours, m; the `.npy` holds the metres themselves."""


NOT_A_FOLDER = {".avi", ".mov", ".mkv", ".webm", ".gif", ".m4v", ".png", ".jpg", ".jpeg", ".npy"}
"""Suffixes of files that people expect and this module does not write."""


class VideoError(StudioError):
    """An export that cannot be made or written."""


@dataclass(frozen=True, eq=False)
class VideoOptions:
    """What an export shows and how it is encoded."""

    layers: tuple[str, ...] = ("rgb",)
    """Of "rgb", "eig" (calibrated, in false colours) and "depth" (logarithmic, 1 to 100 m)."""
    layout: Layout = "single"
    """One picture, all layers side by side, `before` on the left of now, or the columns before, after, EIG and truth.

    Each of the columns says below what it is and where its pixels come from; the last is there where `truth` is.

    A video of several layers in "single" becomes one file per layer: NAME.mp4 for the first and
    NAME_LAYER.mp4 for the others. A folder always holds one PNG per frame and layer.
    """
    size: tuple[int, int] | None = None
    """Width and height of one picture, pixels; None keeps each camera's."""
    fps: float = 10.0
    crf: int = 18
    """libx264's constant rate factor; larger is smaller and worse, 18 is visually lossless."""
    caption: str = ""
    """Burned into the lower left corner; ASCII."""
    provenance: bool = False
    """Also burn in which share of each picture was generated rather than recorded."""
    before: Scene | None = None
    """The scene on the left of "before-after" and "columns"."""
    truth: tuple[Path, ...] = ()
    """"columns": one picture per frame of what is really seen; empty for none."""
    stems: tuple[str, ...] = ()
    """File stem per frame of a folder; empty numbers them from 000000."""
    eig_form: Literal["block", "trace", "diagonal", "joint", "released"] = "block"


def export_video(
    scene: Scene, cameras: Sequence[Camera], path: Path | str, options: VideoOptions | None = None
) -> Iterator[int]:
    """Write an MP4 (suffix .mp4) or a folder of PNG pictures, yielding the frames done so far.

    Closing the generator cancels: nothing then appears under the final name.

    Args:
        scene: What to render; one value for the whole export.
        cameras: One per frame, in order; nodes are placed at each camera's time.
        path: Target. A folder gets STEM_LAYER.png, STEM_eig.npy (nats) and STEM_depth.npy (m).
        options: See `VideoOptions`.

    Raises:
        VideoError: No cameras, unknown layers, stems that clash, or a target that cannot be written.
        MissingFisherError: The layer "eig" of a scene without evidence.
    """
    options, path = options or VideoOptions(), Path(path)
    check_export(cameras, path, options)
    if options.size is not None:
        cameras = [fit_camera(camera, *options.size) for camera in cameras]
    work = _export_video if path.suffix.lower() == ".mp4" else _export_folder
    return in_words(work(scene, list(cameras), path, options), path)


def export_files(path: Path | str, options: VideoOptions) -> list[Path]:
    """The final names an export writes: the video (one per layer in "single"), or the folder."""
    path = Path(path)
    if path.suffix.lower() != ".mp4" or options.layout != "single":
        return [path]
    return [path, *(path.with_stem(f"{path.stem}_{layer}") for layer in options.layers[1:])]


def fit_camera(camera: Camera, width: int, height: int) -> Camera:
    """The camera on another pixel grid; another aspect ratio keeps the horizontal field of view.

    Args:
        camera: Any pinhole camera.
        width: Pixels.
        height: Pixels; rows are cut or added evenly above and below the principal point.
    """
    factor = width / camera.width
    if abs(camera.height * factor - height) <= 1:
        return camera.resized(width, height)
    K = camera.K * factor
    K[2, 2] = 1.0
    K[1, 2] += (height - camera.height * factor) / 2
    return replace(camera, K=K, width=width, height=height)


def check_export(cameras: Sequence[Camera], path: Path, options: VideoOptions) -> None:
    """Refuse what cannot be exported before anything is rendered.

    Raises:
        VideoError: See `export_video`.
    """
    if path.suffix.lower() in NOT_A_FOLDER:
        raise VideoError(
            f"{path}: {path.suffix} files are not written; name an .mp4 file, or a folder for pictures."
        )
    if not cameras:
        raise VideoError(f"{path}: there are no frames to export; choose at least one camera.")
    unknown = [layer for layer in options.layers if layer not in get_args(Layer)]
    if unknown or not options.layers:
        found = ", ".join(unknown) or "none"
        raise VideoError(f"layers: found {found}; choose from {', '.join(get_args(Layer))}.")
    if len(set(options.layers)) < len(options.layers):
        raise VideoError(f"layers: {','.join(options.layers)} names one twice; name each once.")
    if options.layout not in get_args(Layout):
        raise VideoError(
            f"layout: found {options.layout!r}; choose from {', '.join(get_args(Layout))}."
        )
    if options.layout in WITH_BEFORE and options.before is None:
        raise VideoError(
            f"layout {options.layout} needs the scene from before; give it, or change it."
        )
    if options.truth and len(options.truth) != len(cameras):
        raise VideoError(
            f"truth: found {len(options.truth)} pictures for {len(cameras)} frames; give one per frame."
        )
    if options.size is not None and min(options.size) < 2:
        raise VideoError(f"size: found {options.size}; expected at least 2x2 pixels.")
    if not 0 < options.fps <= 240:
        raise VideoError(f"fps: found {options.fps:g}; expected more than 0 and at most 240.")
    if options.stems and len(set(options.stems)) != len(cameras):
        raise VideoError(
            f"{len(cameras)} frames have {len(set(options.stems))} different names; "
            "give every frame of the camera file its own file name."
        )
    if not path.absolute().parent.is_dir():
        raise VideoError(f"{path}: its folder does not exist; create it or choose another one.")


def in_words(work: Iterator[int], path: Path) -> Iterator[int]:
    """The same generator, with failures of disk and encoder as one sentence."""
    try:
        yield from work
    except OSError as error:
        reason = error.strerror or str(error)
        raise VideoError(
            f"{path}: cannot be written ({reason}); nothing was left behind, so free some space "
            "or choose another folder and export again."
        ) from error


# -------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True, eq=False)
class LayerImages:
    """One frame of every layer asked for."""

    pictures: dict[str, UInt8[Tensor, "H W 3"]]
    eig: Float32[Tensor, "H W"] | None
    """Nats."""
    depth: Float32[Tensor, "H W"] | None
    """m along the camera's z axis, 0 = nothing there."""
    generated: float | None
    """Share of the whole picture that comes from generated Gaussians."""


def render_layers(scene: Scene, camera: Camera, options: VideoOptions) -> LayerImages:
    """All layers of one frame from one shared rasterisation."""
    with torch.no_grad():
        view = rasterize_view(scene, camera)
        pictures, eig, depth = {}, None, None
        for layer in options.layers:
            if layer == "rgb":
                pictures[layer] = to_uint8(view.rgb)
            elif layer == "depth":
                depth = view.depth.to("cpu", torch.float32)
                pictures[layer] = to_uint8(_depth_colors(view.depth, view.alpha))
            else:
                from faithfusion_studio.information.eig import eig_map

                found = eig_map(scene, camera, form=options.eig_form, view=view)
                eig = found.eig.to("cpu", torch.float32)
                pictures[layer] = to_uint8(eig_colors(found.calibrated))
        share = None
        if options.provenance:
            share = float((generated_share(view, camera) * view.alpha).mean())
    return LayerImages({k: v.cpu() for k, v in pictures.items()}, eig, depth, share)


def eig_colors(calibrated: Float32[Tensor, "H W"]) -> Float32[Tensor, "H W 3"]:
    """The heat map of calibrated EIG in [0, 1]: dark is trusted, bright is uncertain."""
    return colorize(calibrated, _table("inferno"))


def _depth_colors(depth: Tensor, alpha: Tensor) -> Tensor:
    near, far = DEPTH_RANGE
    values = torch.log(depth.clamp(near, far) / near) / math.log(far / near)
    return colorize(values, _table("turbo")) * (alpha > 0.1)[..., None]


@lru_cache(maxsize=4)
def _table(name: str) -> Tensor:
    return palette(name)


def panels(scene: Scene, camera: Camera, options: VideoOptions, index: int = 0) -> list[np.ndarray]:
    """The finished pictures of one frame: one per output file, captions included."""
    if options.layout == "columns" and options.before is not None:
        return [_columns(scene, options.before, camera, options, index)]
    now = render_layers(scene, camera, options)
    pictures = [now.pictures[layer] for layer in options.layers]
    caption = options.caption
    if now.generated is not None:
        caption = f"{caption}  generated {now.generated:.1%} of this picture".strip()
    if options.layout == "before-after" and options.before is not None:
        before = render_layers(options.before, camera, replace(options, provenance=False))
        pairs = zip(options.layers, pictures, strict=True)
        pictures = [torch.cat([before.pictures[layer], new], dim=1) for layer, new in pairs]
        pictures = [torch.cat(pictures, dim=0)]
    elif options.layout == "side-by-side":
        pictures = [torch.cat(pictures, dim=1)]
    return [_captioned(picture.numpy(), caption) for picture in pictures]


def _columns(
    scene: Scene, before: Scene, camera: Camera, options: VideoOptions, index: int
) -> np.ndarray:
    """Before, after, EIG and truth beside each other, each with a caption of its own."""
    wanted = replace(options, layers=("rgb", "eig"), provenance=True)
    old = render_layers(before, camera, replace(wanted, layers=("rgb",)))
    new = render_layers(scene, camera, wanted)
    columns = [
        (old.pictures["rgb"].numpy(), f"before, {old.generated or 0:.1%} from repair"),
        (new.pictures["rgb"].numpy(), f"after, {new.generated or 0:.1%} from repair"),
        (new.pictures["eig"].numpy(), "EIG of after, 0 to 1"),
    ]
    if options.truth:
        columns.append(
            (_picture(options.truth[index], camera), f"truth, {options.truth[index].name}")
        )
    said = [_captioned(np.array(picture), text) for picture, text in columns]
    return np.concatenate(said, axis=1)


def _picture(path: Path, camera: Camera) -> np.ndarray:
    """A picture from a file, at the camera's size."""
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise VideoError(f"{path}: is no picture that can be read; name a folder of PNG or JPEG.")
    size = (camera.width, camera.height)
    return cv2.resize(pixels[:, :, ::-1], size, interpolation=cv2.INTER_AREA)


def _captioned(picture: np.ndarray, caption: str) -> np.ndarray:
    """The picture with a line of text on a dark strip at the lower left."""
    if not caption:
        return picture
    import cv2

    picture = np.ascontiguousarray(picture)
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, picture.shape[0] / 900)
    text = caption.encode("ascii", "replace").decode()
    (width, height), base = cv2.getTextSize(text, font, scale, 1)
    pad, bottom = max(3, height // 2), picture.shape[0]
    strip = picture[bottom - height - base - 2 * pad :, : width + 2 * pad]
    strip[:] = (strip * 0.35).astype(np.uint8)
    where = (pad, bottom - base - pad)
    cv2.putText(picture, text, where, font, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


# ----------------------------------------------------------------------------------------- video


def _export_video(
    scene: Scene, cameras: list[Camera], path: Path, options: VideoOptions
) -> Iterator[int]:
    size = (cameras[0].width, cameras[0].height)
    cameras = [fit_camera(camera, *size) for camera in cameras]
    frames = (panels(scene, camera, options, i) for i, camera in enumerate(cameras))
    yield from write_videos(export_files(path, options), frames, fps=options.fps, crf=options.crf)


# ---------------------------------------------------------------------------------------- folder


def _export_folder(
    scene: Scene, cameras: list[Camera], path: Path, options: VideoOptions
) -> Iterator[int]:
    stems = options.stems or tuple(f"{i:06d}" for i in range(len(cameras)))
    with filled_folder(path, VideoError) as part:
        for done, (camera, stem) in enumerate(zip(cameras, stems, strict=True), start=1):
            if options.layout == "single":
                _write_layers(render_layers(scene, camera, options), part, stem, options)
            else:
                picture = panels(scene, camera, options, done - 1)[0]
                write_png(picture, part / f"{stem}_{options.layout}.png")
            yield done


def _write_layers(images: LayerImages, folder: Path, stem: str, options: VideoOptions) -> None:
    for layer, picture in images.pictures.items():
        write_png(_captioned(picture.numpy(), options.caption), folder / f"{stem}_{layer}.png")
    for name, values in (("eig", images.eig), ("depth", images.depth)):
        if values is not None:
            write_npy(values.numpy(), folder / f"{stem}_{name}.npy")
