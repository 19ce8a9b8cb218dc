"""Pairs for our own networks: clips beside the path of streets that our own trainer reconstructed, with truth.

A street is driven, recorded and reconstructed to two degrees; each time, short clips of neighbouring
frames at several lateral offsets are rendered, warped and traced. How it is recorded makes the kind of
damage: few frames, few steps, a quarter of every image missing, or seen by another camera of the rig.
Everything follows from the street's seed. Finished streets stay in a cache folder outside the
repository, one file each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float16
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from faithfusion_studio.cameras import Camera, offset_laterally
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.batches import RecordedReferences, render_batch
from faithfusion_studio.fusion.reconstruction import Reconstruction
from faithfusion_studio.fusion.schedule import ReconstructionConfig
from faithfusion_studio.information.fisher import recorded_fisher
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.repair.refiner_network import CHANNELS, refiner_inputs
from faithfusion_studio.repair.reprojection import ReprojectionRepairer
from faithfusion_studio.repair.temporal_attention import View
from faithfusion_studio.scene import Capture, Scene
from faithfusion_studio.synthetic.raytrace import trace_view
from faithfusion_studio.synthetic.recording import RIG, RecordingConfig, drive, encode_mask, record
from faithfusion_studio.synthetic.street import Street, StreetConfig, build_street

OFFSETS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -1.0, -2.0, -2.8)
"""Lateral offsets of training views, m; further right stand the parked cars."""
FIRST_TEST_SEED = 400
"""Streets from this seed on are never trained on nor chosen by."""
LAYOUT = "clips-3"
"""Changed when the networks' inputs change, so that an old cache is not mistaken for a new one."""
CLIP = 8
"""Neighbouring frames of a clip."""

Kind = Literal["lateral", "cross-camera", "sparse", "under-fitted", "quadrant"]
"""What is wrong with a training view. lateral: beside the path. cross-camera: as another camera of the
rig sees it, which took no part. sparse: only every 2nd to 4th frame was recorded. under-fitted: the
training stopped early. quadrant: a quarter of every recorded image is missing."""
MIX: tuple[Kind, ...] = (
    *("lateral", "sparse", "under-fitted", "quadrant", "sparse", "cross-camera", "under-fitted"),
    *("lateral", "sparse", "sparse", "under-fitted", "cross-camera", "quadrant", "sparse"),
    *("under-fitted", "lateral", "sparse", "cross-camera", "under-fitted", "quadrant"),
)
"""Kinds of streets in turn: 30 % lateral or cross-camera, 30 % sparse, 25 % under-fitted, 15 % quadrant."""


class TrainingError(StudioError):
    """Training that cannot start or go on."""


@dataclass(frozen=True)
class StreetRecipe:
    """One street, how it is recorded and how well it is learned; all from its seed."""

    street: StreetConfig
    kind: Kind
    every: int
    """Every so many-th frame is recorded; 2 to 4 in sparse recordings."""
    frames: int = 28
    size: tuple[int, int] = (384, 216)
    exposure_drift: float = 0.0
    steps: int = 1500
    max_gaussians: int = 100_000
    stops: tuple[float, ...] = (0.4, 1.0)
    """Shares of the training at which clips are taken."""
    clips: tuple[int, ...] = (2, 4)
    """Clips at each stop."""
    length: int = CLIP
    """Frames of a clip."""


def street_recipe(seed: int) -> StreetRecipe:
    """The recipe of a training street. The family "country" is left out, to be tested on."""
    rng = np.random.default_rng([seed, 17])
    kind = MIX[seed % len(MIX)]
    return StreetRecipe(
        street=StreetConfig(seed=seed, family=("urban", "urban", "suburban")[seed % 3]),
        kind=kind,
        every=int(rng.integers(2, 5)) if kind == "sparse" else 1,
        exposure_drift=0.01 if rng.random() < 0.3 else 0.0,
        steps=int(rng.choice([100, 200, 300] if kind == "under-fitted" else [400, 600, 900])),
        max_gaussians=int(rng.choice([40_000, 70_000, 100_000])),
    )


@dataclass(frozen=True, eq=False)
class TrainingPair:
    """A degraded clip with all that a network sees, and the true clip."""

    degraded: Float16[Tensor, "T C H W"]
    truth: Float16[Tensor, "T 3 H W"]
    depth: Float16[Tensor, "T H W"]
    """The true one along z, m; 0 where there is none or something moves."""
    view: View
    """Cameras."""


def clip_pair(
    scene: Scene, street: Street, views: Sequence[Camera], references: RecordedReferences
) -> TrainingPair:
    """The pair of a clip, made by the code that repairs.

    Args:
        scene: Reconstructed street with evidence.
        street: The truth.
        views: Novel cameras of neighbouring times.
        references: The scene's recorded frames.
    """
    batch = render_batch(scene, views, references)
    with torch.no_grad():
        frames = enumerate(ReprojectionRepairer().repair(batch))
        degraded = [refiner_inputs(batch, t, frame).half() for t, frame in frames]
    traced = [trace_view(street, camera) for camera in views]
    return TrainingPair(
        torch.stack(degraded),
        torch.stack([torch.from_numpy(view.rgb).permute(2, 0, 1) for view in traced]).half(),
        torch.stack(
            [torch.from_numpy(np.where(v.node_index >= 0, 0, v.depth)) for v in traced]
        ).half(),
        View(
            torch.stack([camera.K for camera in views]).double(),
            torch.stack([camera.camtoworld for camera in views]).double(),
        ),
    )


def make_pairs(recipe: StreetRecipe, say: Callable[[str], None]) -> list[TrainingPair]:
    """Build, drive, record and reconstruct one street, and take its pairs."""
    street = build_street(recipe.street)
    path = drive(street, recipe.frames, recipe.size)
    rng = np.random.default_rng([recipe.street.seed, 23])
    capture = record(street, path, RecordingConfig(exposure_drift=recipe.exposure_drift))
    if recipe.every > 1:
        capture = capture.select(range(0, len(capture), recipe.every))
    if recipe.kind == "quadrant":
        capture = without_quadrant(capture, int(rng.integers(4)))
    config = ReconstructionConfig(
        steps=recipe.steps, scale=1.0, max_gaussians=recipe.max_gaussians, seed=recipe.street.seed
    )
    work, pairs = Reconstruction(capture, config), []
    stops = {
        round(share * recipe.steps): n for share, n in zip(recipe.stops, recipe.clips, strict=True)
    }
    for progress in work.run():
        if progress.step in stops:
            scene = work.scene()
            scene = replace(scene, fisher=recorded_fisher(scene))
            references = RecordedReferences(scene, None)
            for views in draw_clips(street, recipe, stops[progress.step], rng):
                pairs.append(clip_pair(scene, street, views, references))
            say(f"street {recipe.street.seed}: {len(pairs)} clips after {progress.step} steps")
    return pairs


def without_quadrant(capture: Capture, quadrant: int) -> Capture:
    """A recording in which one quarter of every image (0..3, row by row) counts as not seen."""
    frames = []
    for frame in capture.frames:
        height, width = frame.camera.height, frame.camera.width
        mask = np.zeros((height, width), bool)
        row, column = divmod(quadrant, 2)
        top, left = row * (height // 2), column * (width // 2)
        mask[top : top + (height + 1) // 2, left : left + (width + 1) // 2] = True
        moving = frame.mask((width, height))
        if moving is not None:
            mask |= moving.numpy()
        frames.append(replace(frame, dynamic_mask=encode_mask(mask)))
    return replace(capture, frames=tuple(frames))


def draw_clips(
    street: Street, recipe: StreetRecipe, count: int, rng: np.random.Generator
) -> list[tuple[Camera, ...]]:
    """Clips of neighbouring cameras: every offset in turn, with some path behind and ahead.

    For the kind "cross-camera" they look to the side like the other cameras of the rig, nearer the path.
    """
    offsets = rng.permutation(np.resize(rng.permutation(OFFSETS), count))
    sides = rng.permutation(np.resize([name for name in RIG if name != "front"], count))
    first = rng.integers(2, recipe.frames - recipe.length - 1, count)
    clips = []
    for offset, side, start in zip(offsets, sides, first, strict=True):
        across = recipe.kind == "cross-camera"
        rig = (str(side),) if across else ("front",)
        path = drive(street, recipe.frames, recipe.size, rig=rig)
        cameras = offset_laterally(path, float(offset) / (4 if across else 1)).cameras
        clips.append(tuple(cameras[int(start) : int(start) + recipe.length]))
    return clips


def cached_pairs(recipe: StreetRecipe, folder: Path, say: Callable[[str], None]) -> Path:
    """The file with a street's pairs, made if it is not there yet.

    Raises:
        TrainingError: The folder cannot be written.
    """
    path = folder / f"{LAYOUT}-{recipe.street.seed}.safetensors"
    if not path.exists():
        pairs = make_pairs(recipe, say)
        tensors = {
            "degraded": torch.stack([pair.degraded for pair in pairs]),
            "truth": torch.stack([pair.truth for pair in pairs]),
            "depth": torch.stack([pair.depth for pair in pairs]),
            "intrinsics": torch.stack([pair.view.intrinsics for pair in pairs]),
            "camtoworld": torch.stack([pair.view.camtoworld for pair in pairs]),
        }
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(path, TrainingError) as temporary:
            save_file(tensors, temporary, {"recipe": repr(recipe)})
    return path


class PairFile:
    """The pairs of one street, read crop by crop; `shape` is (pairs, frames, maps, height, width).

    Raises:
        TrainingError: The file is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, "pt")
            self.shape: tuple[int, ...] = tuple(self._file.get_slice("degraded").get_shape())
            self._truth, self._depth, self._intrinsics, self._camtoworld = (
                self._file.get_slice(name)
                for name in ("truth", "depth", "intrinsics", "camtoworld")
            )
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{path}: cannot be read as training pairs ({error}); delete it, it is made again."
            ) from error
        if len(self.shape) != 5 or self.shape[2] != CHANNELS:
            raise TrainingError(
                f"{path}: holds pairs of shape {self.shape}; expected clips of {CHANNELS} maps; delete it, "
                "it is made again."
            )
        self._degraded = self._file.get_slice("degraded")

    def __len__(self) -> int:
        return self.shape[0]

    def crop(
        self, index: int, top: int, left: int, height: int, width: int, times: slice = slice(None)
    ) -> TrainingPair:
        """A window of one pair, all its frames or some."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        intrinsics = self._intrinsics[index, times].clone()
        intrinsics[:, :2, 2] -= torch.tensor([left, top], dtype=torch.float64)
        return TrainingPair(
            self._degraded[index, times, :, rows, columns],
            self._truth[index, times, :, rows, columns],
            self._depth[index, times, rows, columns],
            View(intrinsics, self._camtoworld[index, times]),
        )

    def whole(self, index: int, times: slice = slice(None)) -> TrainingPair:
        """One pair at its full size, all its frames or some."""
        return self.crop(index, 0, 0, self.shape[3], self.shape[4], times)
