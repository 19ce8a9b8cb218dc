"""Scenes with true views from aside: procedural streets, and recordings on disk that bring their truth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio import __version__
from faithfusion_studio.bench.report import BenchError
from faithfusion_studio.cameras import Camera, offset_laterally
from faithfusion_studio.fusion.reconstruction import Reconstruction
from faithfusion_studio.fusion.schedule import ReconstructionConfig
from faithfusion_studio.information.fisher import recorded_fisher
from faithfusion_studio.io import load_capture, load_scene, read_camera_path, save_scene
from faithfusion_studio.io.camera_files import camera_path_stems
from faithfusion_studio.io.weights import cache_folder
from faithfusion_studio.scene import Capture, PosedImage, Scene
from faithfusion_studio.synthetic.street import Family

OFFSETS = (1.0, 3.0, 6.0)
"""Lateral offsets of the true views of a procedural street, m."""
HELD_OUT = "interpolation"
"""Name of the views that were recorded but never trained on."""


@dataclass(frozen=True, eq=False)
class TrueView:
    """What a camera really sees."""

    camera: Camera
    rgb: Float32[Tensor, "H W 3"]
    depth: Float32[Tensor, "H W"] | None
    """Along z, m; 0 = sky. None where it is not known."""


@dataclass(frozen=True, eq=False)
class TruthScene:
    """A recording to train on, and what was seen from elsewhere."""

    name: str
    capture: Capture
    """What is trained on, held-out frames among it."""
    beside: dict[str, list[TrueView]]
    """True views by the name of their block, such as "3 m"."""


def procedural_scene(
    seed: int,
    size: tuple[int, int],
    frames: int,
    views: int,
    scale: float = 1.0,
    offsets: Sequence[float] = OFFSETS,
    family: Family = "urban",
) -> TruthScene:
    """A street with a recording and exact views beside it.

    Args:
        seed: Of the street.
        size: Width and height of the recording, pixels.
        frames: Of the recording.
        views: True views per offset, spread over the drive without its ends.
        scale: Size of the true views over the recorded one.
        offsets: m, positive = left.
        family: Kind of street.
    """
    from faithfusion_studio.synthetic import (
        StreetConfig,
        build_street,
        drive,
        record,
        trace_view,
    )

    street = build_street(StreetConfig(seed=seed, family=family))
    path = drive(street, frames, size)
    chosen = _spread(range(frames), views)
    beside = {}
    for offset in offsets:
        moved = offset_laterally(path, offset).cameras
        cameras = [moved[i].scaled(scale) for i in chosen]
        traced = [(camera, trace_view(street, camera)) for camera in cameras]
        beside[f"{offset:g} m"] = [
            TrueView(c, torch.from_numpy(v.rgb).float(), torch.from_numpy(v.depth).float())
            for c, v in traced
        ]
    name = f"street {seed}" if family == "urban" else f"{family} street {seed}"
    return TruthScene(name, record(street, path), beside)


def recorded_scene(folder: Path, views: int, scale: float) -> TruthScene:
    """A recording on disk with its truth: `synthesize` writes one; or a rig whose second camera is the truth.

    Args:
        folder: With `recorded/` and `truth/` as `synthesize` writes them, or a recording of two cameras.
        views: True views per block.
        scale: Size of the true views over the recorded one.

    Raises:
        BenchError: There is neither.
    """
    if (folder / "recorded").is_dir():
        beside = {
            f"{float(file.stem.removeprefix('cameras_')):g} m": _written_views(file, views, scale)
            for file in sorted((folder / "truth").glob("cameras_*.json"))
            if float(file.stem.removeprefix("cameras_")) != 0
        }
        return TruthScene(folder.name, load_capture(folder / "recorded"), beside)
    capture = load_capture(folder)
    names = capture.camera_names
    if len(names) != 2:
        raise BenchError(
            f"{folder}: found a recording of {len(names)} camera(s) and no folder truth/; give one that "
            "`ff-studio synthesize` wrote, or a stereo recording."
        )
    first, second = (
        [i for i, frame in enumerate(capture.frames) if frame.camera.name == name] for name in names
    )
    seen = []
    for index in _spread(second, views):
        camera = capture.frames[index].camera.scaled(scale)
        seen.append(
            TrueView(camera, capture.frames[index].image((camera.width, camera.height)), None)
        )
    return TruthScene(folder.name, capture.select(first), {f"camera {names[1]}": seen})


def _written_views(file: Path, views: int, scale: float) -> list[TrueView]:
    import cv2

    path, stems = read_camera_path(file), camera_path_stems(file)
    folder = file.parent / file.stem.removeprefix("cameras_")
    found = []
    for index in _spread(range(len(path)), views):
        whole = path.cameras[index]
        camera = whole.scaled(scale)
        size = (camera.width, camera.height)
        image = PosedImage(whole, folder / f"{stems[index]}.jpg").image(size)
        stored, depth = folder / f"{stems[index]}_depth.npz", None
        if stored.exists():
            # Nearest: a depth between two surfaces is on neither.
            values = np.load(stored)["depth"].astype(np.float32)
            values = cv2.resize(values, size, interpolation=cv2.INTER_NEAREST)
            depth = torch.from_numpy(np.nan_to_num(values, posinf=0.0))
        found.append(TrueView(camera, image, depth))
    return found


def _spread(items: Sequence[int], count: int) -> list[int]:
    places = np.linspace(0.15 * len(items), 0.85 * len(items) - 1, min(count, len(items)))
    return [items[round(i)] for i in places]


def held_out_views(capture: Capture, indices: Sequence[int], scale: float) -> list[TrueView]:
    """The recorded frames that were never trained on, as true views without depth."""
    views = []
    for index in indices:
        camera = capture.frames[index].camera.scaled(scale)
        views.append(
            TrueView(camera, capture.frames[index].image((camera.width, camera.height)), None)
        )
    return views


def trained(
    test: TruthScene,
    config: ReconstructionConfig,
    say: Callable[[str], None],
    frames: Sequence[int],
) -> Scene:
    """The reconstruction of some frames of a recording by our own trainer, with its evidence.

    It is kept under a name made of everything it depends on: the frames' bytes, their cameras, the
    configuration and the version of the program.

    Args:
        test: What is reconstructed.
        config: How; `holdout_every` should be 0, `frames` says what is trained on.
        say: Told what is being done.
        frames: Indices into the recording that are trained on.
    """
    capture = test.capture.select(list(frames))
    folder = cache_folder() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{_digest(capture, config)}.ckpt"
    if file.exists():
        return load_scene(file)
    say(f"{test.name}: reconstructing from {len(frames)} frames, {config.steps} steps")
    work = Reconstruction(capture, config)
    for _ in work.run():
        pass
    scene = work.scene()
    scene = replace(scene, fisher=recorded_fisher(scene))
    save_scene(scene, file)
    return load_scene(file)


def _digest(capture: Capture, config: ReconstructionConfig) -> str:
    sha = hashlib.sha256(json.dumps([__version__, asdict(config)], default=str).encode())
    for frame in capture.frames:
        camera = frame.camera
        sha.update(camera.camtoworld.numpy().tobytes() + camera.K.numpy().tobytes())
        sha.update((frame.image((64, 36)) * 255).to(torch.uint8).numpy().tobytes())
    if capture.points is not None:
        sha.update(capture.points.xyz.numpy().tobytes())
    return sha.hexdigest()[:24]
