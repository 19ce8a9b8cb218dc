"""Repair data of one's own scenes: render, EIG, truth and reference at poses the scene was not trained on.

The poses are those of held-out frames, or of other cameras of the rig. References and evidence come from
trained frames only, so that nothing of the truth leaks into what a repairer is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.batches import RecordedReferences, render_batch, working_scale
from faithfusion_studio.information.fisher import recorded_fisher
from faithfusion_studio.io.pictures import write_npy, write_png
from faithfusion_studio.repair.reprojection import ReprojectionRepairer, select_references
from faithfusion_studio.scene import PosedImage, Scene

FORMAT = "faithfusion-repair-data-1"
INDEX = "pairs.json"
PICTURES = ("render", "truth", "reference", "warp")
MAPS = ("eig", "released", "calibrated")


class RepairDataError(StudioError):
    """Repair data that cannot be made or read."""


@dataclass(frozen=True, eq=False)
class RepairPair:
    """One view as a repairer would see it, and what it should have given."""

    name: str
    camera: Camera
    """Of all pictures."""
    render: Float32[Tensor, "H W 3"]
    truth: Float32[Tensor, "H W 3"]
    reference: Float32[Tensor, "H W 3"]
    """The nearest trained frame, from its own pose."""
    reference_name: str
    warp: Float32[Tensor, "H W 3"]
    """Trained frames warped into the view; the render where none of them sees it."""
    eig: Float32[Tensor, "H W"]
    """Nats."""
    released: Float32[Tensor, "H W"]
    """By the released formula, which public weights expect."""
    calibrated: Float32[Tensor, "H W"]
    """In [0, 1]."""
    coverage: Bool[Tensor, "H W"]


def without_held_out(scene: Scene) -> tuple[Scene, list[PosedImage]]:
    """A scene that knows its trained frames only, and the frames held out of its training.

    Evidence is summed again, over the trained frames.

    Raises:
        RepairDataError: The scene has no recording, or no frame was held out.
    """
    held = scene.metadata.get("reconstruction", {}).get("holdout", [])
    if scene.capture is None or not held:
        raise RepairDataError(
            "this scene holds no frames out of its training, so it has no truth of its own; "
            "reconstruct it with --holdout-every 8, or give another camera's recording with "
            "--against."
        )
    kept = [i for i in range(len(scene.capture)) if i not in set(held)]
    if not kept:
        raise RepairDataError(
            "all frames of this scene were held out; nothing is left to refer to."
        )
    exposures = None if scene.exposures is None else scene.exposures[kept]
    truth = [scene.capture.frames[i] for i in held if 0 <= i < len(scene.capture)]
    trained = replace(scene, capture=scene.capture.select(kept), exposures=exposures, fisher=None)
    return replace(trained, fisher=recorded_fisher(trained)), truth


def repair_pairs(
    scene: Scene, frames: Sequence[PosedImage], size: tuple[int, int] | None = None
) -> Iterator[RepairPair]:
    """The pair of each frame, made by the code that repairs.

    Args:
        scene: With evidence and a recording that does not contain the frames.
        frames: True pictures with their poses, in the scene's world.
        size: Width and height; None takes the resolution the scene was trained at.

    Raises:
        RepairDataError: The scene has no recording.
        MissingFisherError: It has no evidence.
    """
    if scene.capture is None:
        raise RepairDataError("repair data needs a scene with its recording, for references.")
    references, warping = RecordedReferences(scene, size), ReprojectionRepairer()
    recorded = scene.capture.trajectory.cameras
    for frame in frames:
        camera = frame.camera.resized(*size) if size else frame.camera.scaled(working_scale(scene))
        shape = (camera.width, camera.height)
        batch = render_batch(scene, [camera], references, released_eig=True)
        warped = next(warping.repair(batch))
        assert batch.released_eig is not None and warped.features is not None
        seen = warped.features.weight.clamp(0, 1)[..., None]
        nearest = select_references(camera, recorded, count=1)[0]
        yield RepairPair(
            name=f"{camera.name}_{frame.name}" if camera.name else frame.name,
            camera=camera,
            render=batch.renders[0],
            truth=frame.image(shape),
            reference=references.picture(nearest, *shape),
            reference_name=scene.capture.frames[nearest].name,
            warp=torch.lerp(batch.renders[0], warped.features.fused, seen),
            eig=batch.eig[0],
            released=batch.released_eig[0],
            calibrated=batch.calibrated_eig[0],
            coverage=batch.coverage[0],
        )


def write_pair(pair: RepairPair, folder: Path) -> dict[str, Any]:
    """Write a pair's pictures (8 bit) and maps (float16), and return its entry of the index."""
    from faithfusion_studio.render.views import to_uint8

    for kind in PICTURES:
        write_png(to_uint8(getattr(pair, kind)).numpy(), folder / f"{pair.name}_{kind}.png")
    for kind in MAPS:
        values = getattr(pair, kind).clamp(max=6e4).numpy().astype(np.float16)
        write_npy(values, folder / f"{pair.name}_{kind}.npy")
    write_png(pair.coverage.to(torch.uint8).mul(255).numpy(), folder / f"{pair.name}_coverage.png")
    return {
        "name": pair.name,
        "camera": pair.camera.name,
        "time": pair.camera.time,
        "K": pair.camera.K.tolist(),
        "camtoworld": pair.camera.camtoworld.tolist(),
        "size": [pair.camera.width, pair.camera.height],
        "reference": pair.reference_name,
    }


def write_index(entries: Sequence[dict[str, Any]], folder: Path, about: dict[str, Any]) -> None:
    """Write `pairs.json`, with the pairs in the order of cameras and times."""
    ordered = sorted(entries, key=lambda entry: (entry["camera"], entry["time"]))
    content = {"format": FORMAT, **about, "pairs": ordered}
    (folder / INDEX).write_text(json.dumps(content, indent=1))


class RepairData:
    """A folder of pairs, read one by one.

    Args:
        folder: Written by `ff-studio pairs`.

    Raises:
        RepairDataError: It is not such a folder, or a file is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            found = json.loads((folder / INDEX).read_text())
        except (OSError, ValueError) as error:
            raise RepairDataError(
                f"{folder / INDEX}: cannot be read ({error}); expected a folder that `ff-studio "
                "pairs` wrote."
            ) from error
        entries = found.get("pairs") if isinstance(found, dict) else None
        if found.get("format") != FORMAT or not isinstance(entries, list) or not entries:
            raise RepairDataError(
                f"{folder / INDEX}: is not repair data of the form {FORMAT}; write it with "
                "`ff-studio pairs`."
            )
        self.entries: list[dict[str, Any]] = entries

    def __len__(self) -> int:
        return len(self.entries)

    def clips(self) -> list[range]:
        """Runs of pairs of one camera and one size, as half-open ranges of indices."""
        runs, start = [], 0
        for i in range(1, len(self) + 1):
            before = self.entries[i - 1]
            if i == len(self) or any(
                self.entries[i][key] != before[key] for key in ("camera", "size")
            ):
                runs.append(range(start, i))
                start = i
        return runs

    def pair(self, index: int) -> RepairPair:
        """One pair."""
        entry = self.entries[index]
        name = str(entry["name"])
        if Path(name).name != name:
            raise RepairDataError(f"{self.folder / INDEX}: {name!r} is no file name.")
        pictures = {kind: self._picture(name, kind) for kind in PICTURES}
        maps = {kind: self._map(name, kind) for kind in MAPS}
        width, height = entry["size"]
        camera = Camera(
            torch.tensor(entry["camtoworld"], dtype=torch.float64),
            torch.tensor(entry["K"], dtype=torch.float64),
            width,
            height,
            float(entry["time"]),
            str(entry["camera"]),
        )
        coverage = self._picture(name, "coverage")[..., 0] > 0.5
        return RepairPair(
            name=name,
            camera=camera,
            reference_name=str(entry["reference"]),
            coverage=coverage,
            **pictures,
            **maps,
        )

    def _picture(self, name: str, kind: str) -> Float32[Tensor, "H W 3"]:
        import cv2

        path = self.folder / f"{name}_{kind}.png"
        found = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if found is None:
            raise RepairDataError(f"{path}: is missing or damaged; write the folder again.")
        return torch.from_numpy(found[:, :, ::-1].astype(np.float32) / 255)

    def _map(self, name: str, kind: str) -> Float32[Tensor, "H W"]:
        path = self.folder / f"{name}_{kind}.npy"
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        except (OSError, ValueError) as error:
            raise RepairDataError(f"{path}: cannot be read ({error}); write it again.") from error
