"""Where truth comes from for `ff-studio metrics`: held-out frames, another recording, exact side views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.cli import arguments as a
from faithfusion_studio.cli.inputs import CommandLineError, finite, parse_range, parse_size
from faithfusion_studio.cli.learn import select_frames
from faithfusion_studio.scene import Capture, PosedImage, Scene


@dataclass(frozen=True, eq=False)
class TrueFrame:
    """What a scene should look like from one camera."""

    camera: Camera
    """At the size that is measured."""
    image: Float[Tensor, "H W 3"]
    depth: Float[Tensor, "H W"] | None
    """Along z, m, 0 = none; None where no depth lies beside the picture."""
    exposure: Float[Tensor, "3 4"] | None
    """Fitted exposure of a frame that was trained on."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Frames to measure against."""

    capture: Capture
    kind: str
    """In words: which frames these are."""
    size: tuple[int, int] | None
    exposures: Float[Tensor, "T 3 4"] | None = None
    """One per frame where they were trained on."""
    is_recording: bool = False
    """Whether these are recorded views of the scene itself."""

    def __len__(self) -> int:
        return len(self.capture)

    def frames(self) -> Iterator[TrueFrame]:
        """One after the other, decoded when it is its turn."""
        for index, frame in enumerate(self.capture.frames):
            camera = frame.camera if self.size is None else frame.camera.resized(*self.size)
            size = (camera.width, camera.height)
            yield TrueFrame(
                camera=camera,
                image=frame.image(size),
                depth=_depth_beside(frame, size),
                exposure=None if self.exposures is None else self.exposures[index].cpu(),
            )


def find_truth(args: a.Metrics, scene: Scene) -> Truth:
    """The frames a command shall measure against.

    Raises:
        CommandLineError: There is no truth there; says what to give.
    """
    offset = finite("--offset", args.offset)
    if args.against is None:
        if offset != 0:
            raise CommandLineError(
                f"there is no truth at {offset:+g} m beside the recorded path; give a folder that "
                "has it with --against, as `ff-studio synthesize` writes one."
            )
        truth = _own_frames(args, scene)
    elif offset != 0:
        from faithfusion_studio.io.captures import read_capture
        from faithfusion_studio.io.true_views import camera_file

        path = camera_file(args.against, offset)
        capture = select_frames(read_capture(path), args.cameras, 1)
        truth = Truth(capture, f"true frames at {offset:+g} m of {path}", None)
    else:
        from faithfusion_studio.io import load_capture

        capture = select_frames(load_capture(args.against), args.cameras, 1)
        truth = Truth(capture, f"frames of {args.against}", None)
    chosen = parse_range(args.frames, len(truth))
    rows = None if truth.exposures is None else truth.exposures[chosen.start : chosen.stop]
    return Truth(
        truth.capture.select(range(chosen.start, chosen.stop)),
        truth.kind,
        parse_size(args.size),
        rows,
        truth.is_recording,
    )


def _own_frames(args: a.Metrics, scene: Scene) -> Truth:
    if scene.capture is None:
        raise CommandLineError(
            "this scene has no recorded frames to compare with; give a recording with --against."
        )
    held_out = scene.metadata.get("reconstruction", {}).get("holdout", [])
    held_out = [i for i in held_out if isinstance(i, int) and 0 <= i < len(scene.capture)]
    if held_out:
        capture, words, exposures = scene.capture.select(held_out), "held-out frames", None
    else:
        capture, words = scene.capture, "recorded frames, which were trained on"
        exposures = scene.exposures
    if args.cameras is not None:
        names = [name.strip() for name in args.cameras.split(",")]
        rows = [i for i, frame in enumerate(capture.frames) if frame.camera.name in names]
        capture = select_frames(capture, args.cameras, 1)
        exposures = None if exposures is None else exposures[rows]
    return Truth(capture, words, None, exposures, is_recording=True)


def _depth_beside(frame: PosedImage, size: tuple[int, int]) -> Float[Tensor, "H W"] | None:
    """Depth from NAME_depth.npz beside the picture or in the folder depth/ next to its own."""
    import cv2

    if not isinstance(frame.data, Path):
        return None
    name = f"{frame.data.stem}_depth.npz"
    for path in (frame.data.parent / name, frame.data.parent.parent / "depth" / name):
        if path.is_file():
            try:
                with np.load(path) as content:
                    depth = content["depth"].astype(np.float32)
            except (OSError, ValueError, KeyError) as error:
                raise CommandLineError(
                    f"{path}: not readable as depth; expected one array named depth."
                ) from error
            if depth.ndim != 2:
                raise CommandLineError(f"{path}: depth has shape {depth.shape}; expected (H, W).")
            return torch.from_numpy(cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST))
    return None
