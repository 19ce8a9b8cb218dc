"""Pairs for the refiner: frames beside the path of streets that our own trainer reconstructed, with truth.

A street is driven, recorded and reconstructed to two degrees; each time, views at several lateral
offsets are rendered, warped and traced. Everything follows from the street's seed. Finished streets
stay in a cache folder outside the repository, one file each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from faithfusion_studio.cameras import Camera, Trajectory, offset_laterally
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.reconstruction import Reconstruction
from faithfusion_studio.fusion.repairing import RecordedReferences, render_batch
from faithfusion_studio.fusion.schedule import ReconstructionConfig
from faithfusion_studio.information.fisher import recorded_fisher
from faithfusion_studio.io.atomic import write_atomically
from faithfusion_studio.repair.refiner_network import CHANNELS, refiner_inputs
from faithfusion_studio.repair.reprojection import ReprojectionRepairer
from faithfusion_studio.scene import Scene
from faithfusion_studio.synthetic.raytrace import trace_view
from faithfusion_studio.synthetic.recording import RecordingConfig, drive, record
from faithfusion_studio.synthetic.street import Street, StreetConfig, build_street

OFFSETS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -1.0, -2.0, -2.8)
"""Lateral offsets of training views, m; further right stand the parked cars."""
FIRST_TEST_SEED = 400
"""Streets from this seed on are never trained on nor chosen by."""
LAYOUT = "refiner-pairs-1"
"""Changed when the network's inputs change, so that an old cache is not mistaken for a new one."""


class TrainingError(StudioError):
    """Training that cannot start or go on."""


@dataclass(frozen=True)
class StreetRecipe:
    """One street, how it is recorded and how well it is learned; all from its seed."""

    street: StreetConfig
    every: int
    """Every so many-th frame is recorded; 2 is a sparse recording."""
    frames: int = 28
    size: tuple[int, int] = (384, 216)
    exposure_drift: float = 0.0
    steps: int = 1500
    max_gaussians: int = 100_000
    stops: tuple[float, ...] = (0.4, 1.0)
    """Shares of the training at which pairs are taken."""
    views: tuple[int, ...] = (6, 12)
    """Pairs at each stop."""


def street_recipe(seed: int) -> StreetRecipe:
    """The recipe of a training street. The family "country" is left out, to be tested on."""
    rng = np.random.default_rng([seed, 17])
    return StreetRecipe(
        street=StreetConfig(seed=seed, family=("urban", "urban", "suburban")[seed % 3]),
        every=2 if rng.random() < 0.25 else 1,
        exposure_drift=0.01 if rng.random() < 0.3 else 0.0,
        steps=int(rng.choice([400, 600, 900])),
        max_gaussians=int(rng.choice([40_000, 70_000, 100_000])),
    )


@dataclass(frozen=True, eq=False)
class TrainingPair:
    """One degraded view with all the network sees, and the true view."""

    degraded: Float16[Tensor, "C H W"]
    truth: Float16[Tensor, "3 H W"]


def scene_pairs(
    scene: Scene, street: Street, views: Sequence[Camera], references: RecordedReferences
) -> Iterator[TrainingPair]:
    """The pair of each view, made by the code that repairs.

    Args:
        scene: Reconstructed street with evidence.
        street: The truth.
        views: Novel cameras.
        references: The scene's recorded frames.
    """
    engine = ReprojectionRepairer()
    for camera in views:
        batch = render_batch(scene, [camera], references)
        with torch.no_grad():
            inputs = refiner_inputs(batch, 0, next(engine.repair(batch)))
        truth = torch.from_numpy(trace_view(street, camera).rgb).permute(2, 0, 1)
        yield TrainingPair(inputs.half(), truth.half())


def make_pairs(recipe: StreetRecipe, say: Callable[[str], None]) -> list[TrainingPair]:
    """Build, drive, record and reconstruct one street, and take its pairs."""
    street = build_street(recipe.street)
    path = drive(street, recipe.frames, recipe.size)
    capture = record(street, path, RecordingConfig(exposure_drift=recipe.exposure_drift))
    if recipe.every > 1:
        capture = capture.select(range(0, len(capture), recipe.every))
    config = ReconstructionConfig(
        steps=recipe.steps, scale=1.0, max_gaussians=recipe.max_gaussians, seed=recipe.street.seed
    )
    work, pairs = Reconstruction(capture, config), []
    stops = {
        round(share * recipe.steps): n for share, n in zip(recipe.stops, recipe.views, strict=True)
    }
    rng = np.random.default_rng([recipe.street.seed, 23])
    for progress in work.run():
        if progress.step in stops:
            scene = work.scene()
            scene = replace(scene, fisher=recorded_fisher(scene))
            views = draw_views(path, stops[progress.step], rng)
            pairs += scene_pairs(scene, street, views, RecordedReferences(scene, None))
            say(f"street {recipe.street.seed}: {len(pairs)} pairs after {progress.step} steps")
    return pairs


def draw_views(path: Trajectory, count: int, rng: np.random.Generator) -> list[Camera]:
    """Cameras beside the path: every offset in turn, frames with some path behind and ahead."""
    offsets = rng.permutation(np.resize(rng.permutation(OFFSETS), count))
    frames = rng.integers(4, len(path) - 4, count)
    return [
        offset_laterally(path, float(offset)).cameras[int(frame)]
        for offset, frame in zip(offsets, frames, strict=True)
    ]


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
        }
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(path, TrainingError) as temporary:
            save_file(tensors, temporary, {"recipe": repr(recipe)})
    return path


class PairFile:
    """The pairs of one street, read crop by crop.

    Raises:
        TrainingError: The file is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, "pt")
            self.shape: tuple[int, ...] = tuple(self._file.get_slice("degraded").get_shape())
            self._truth = self._file.get_slice("truth")
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{path}: cannot be read as training pairs ({error}); delete it, it is made again."
            ) from error
        if len(self.shape) != 4 or self.shape[1] != CHANNELS:
            raise TrainingError(
                f"{path}: holds pairs of shape {self.shape}; expected {CHANNELS} maps; delete it, "
                "it is made again."
            )
        self._degraded = self._file.get_slice("degraded")

    def __len__(self) -> int:
        return self.shape[0]

    def crop(self, index: int, top: int, left: int, height: int, width: int) -> TrainingPair:
        """A window of one pair."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        return TrainingPair(
            self._degraded[index, :, rows, columns], self._truth[index, :, rows, columns]
        )
