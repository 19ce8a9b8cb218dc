"""What an engine is worth on streets it never saw: render, repair and truth beside the path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.cameras import Trajectory, offset_laterally
from faithfusion_studio.fusion.reconstruction import Reconstruction
from faithfusion_studio.fusion.repairing import RecordedReferences, render_batch
from faithfusion_studio.fusion.schedule import ReconstructionConfig
from faithfusion_studio.information.fisher import recorded_fisher
from faithfusion_studio.io import load_scene, save_scene
from faithfusion_studio.metrics import psnr, ssim
from faithfusion_studio.repair.base import Repairer, repair_batch
from faithfusion_studio.scene import Scene
from faithfusion_studio.synthetic.raytrace import trace_view
from faithfusion_studio.synthetic.recording import drive, record
from faithfusion_studio.synthetic.street import Family, StreetConfig, build_street

TEST_OFFSETS = (1.0, 3.0, 6.0, -2.0)
"""m; positive = left."""
TEST_FRAMES, TEST_SIZE = 48, (480, 270)
TEST_STEPS = 1800
TEST_GAUSSIANS = 150_000


@dataclass(frozen=True)
class Comparison:
    """One view: PSNR in dB and SSIM by who made it ("render" among them)."""

    street: str
    offset: float
    frame: int
    ucr_share: float
    psnr: Mapping[str, float]
    psnr_ucr: Mapping[str, float]
    ssim: Mapping[str, float]


def street_scene(seed: int, family: Family, path: Trajectory, file: Path) -> Scene:
    """The reconstruction of a test street with its evidence; kept in a file."""
    if not file.exists():
        street = build_street(StreetConfig(seed=seed, family=family))
        config = ReconstructionConfig(
            steps=TEST_STEPS, scale=1.0, max_gaussians=TEST_GAUSSIANS, seed=0
        )
        work = Reconstruction(record(street, path), config)
        for _ in work.run():
            pass
        scene = work.scene()
        file.parent.mkdir(parents=True, exist_ok=True)
        save_scene(replace(scene, fisher=recorded_fisher(scene)), file)
    return load_scene(file)


def compare_on_street(
    seed: int,
    family: Family,
    engines: Sequence[Repairer],
    folder: Path,
    *,
    frames: Sequence[int] = range(8, 41, 4),
    offsets: Sequence[float] = TEST_OFFSETS,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Comparison]:
    """Every view of one test street, repaired by every engine as the studio repairs it.

    Args:
        seed: Of the street; test streets have seeds of 400 and more, training never.
        family: Of the street.
        engines: What to compare.
        folder: Where reconstructions are kept.
        frames: Of `TEST_FRAMES`.
        offsets: Lateral offsets, m.
        say: Told what is being done.
    """
    street = build_street(StreetConfig(seed=seed, family=family))
    path = drive(street, TEST_FRAMES, TEST_SIZE)
    say(f"street {seed} ({family})")
    scene = street_scene(seed, family, path, folder / f"{family}-{seed}.ckpt")
    references = RecordedReferences(scene, None)
    for frame in frames:
        for offset in offsets:
            camera = offset_laterally(path, offset).cameras[frame]
            batch = render_batch(scene, [camera], references)
            images = {"render": batch.renders[0]}
            images |= {e.name: repair_batch(e, batch).rgb[0] for e in engines}
            truth, ucr = torch.from_numpy(trace_view(street, camera).rgb), batch.ucr[0]
            yield Comparison(
                street=f"{family} {seed}",
                offset=offset,
                frame=frame,
                ucr_share=float(ucr.float().mean()),
                psnr={name: psnr(image, truth) for name, image in images.items()},
                psnr_ucr={name: psnr(image, truth, ucr) for name, image in images.items()},
                ssim={name: ssim(image, truth) for name, image in images.items()},
            )


def table(rows: Sequence[Comparison]) -> list[str]:
    """Means per offset as lines of Markdown."""
    names = list(rows[0].psnr)
    head = ["offset", "views", *(f"{n} dB" for n in names), *(f"{n} UCR dB" for n in names)]
    head += [f"{n} SSIM" for n in names]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for offset in dict.fromkeys(row.offset for row in rows):
        own = [row for row in rows if row.offset == offset]
        cells = [f"{offset:+g} m", str(len(own))]
        for kind, digits in (("psnr", 2), ("psnr_ucr", 2), ("ssim", 3)):
            for name in names:
                value = np.nanmean([getattr(row, kind)[name] for row in own])
                cells.append(f"{value:.{digits}f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines
