"""One file of every kind is counted by `info` and drawn: ours are written here, real ones lie in ../shared/data."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from test_drivestudio_capture import SETS, write_folder

from faithfusion_studio import cli
from faithfusion_studio.bench.robustness import samples
from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io import (
    load_capture,
    load_scene,
    save_scene,
    write_cameras_json,
    write_colmap,
    write_transforms_json,
)
from faithfusion_studio.render import render_view
from faithfusion_studio.render.views import RenderedView
from faithfusion_studio.scene import Capture, Scene
from faithfusion_studio.transforms import look_at, rgb_to_sh0

COUNT = 24


@dataclass(frozen=True)
class Kind:
    """A file or folder that people have."""

    make: Callable[[Path], Path]
    format: str
    """What `info` calls it."""


def _sample(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        sample = samples.SAMPLES[name]
        path = sample.make(folder, COUNT)
        return folder if sample.by_folder else path

    return make


def _inside(name: str, place: str) -> Callable[[Path], Path]:
    """A file of a run where its project puts it; the folder is opened."""

    def make(folder: Path) -> Path:
        made = _sample(name)(folder)
        (folder / place).parent.mkdir(parents=True)
        shutil.move(made, folder / place)
        return folder

    return make


def _recording(write: Callable, capture: Callable = samples.capture) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write(capture(), folder)
        return folder

    return make


def _ranks(folder: Path) -> Path:
    """A gsplat checkpoint of two processes; half of the splats in each."""
    (folder / "ckpts").mkdir()
    for rank in range(2):
        save_scene(Scene(samples.gaussians(COUNT // 2, 1, rank)), folder / "a.pt")
        (folder / "a.pt").rename(folder / f"ckpts/ckpt_29999_rank{rank}.pt")
    return folder


def _drivestudio(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_folder(folder, name)
        return folder

    return make


KINDS = {
    "native .ckpt": Kind(_sample("native .ckpt"), "native"),
    **{name: Kind(_sample(name), "ply") for name in ("Inria PLY", "ascii PLY")},
    "compressed PLY": Kind(_sample("compressed PLY"), "compressed_ply"),
    "Inria run folder": Kind(
        _inside("Inria PLY", "point_cloud/iteration_30000/point_cloud.ply"), "inria_run"
    ),
    ".splat": Kind(_sample("splat"), "splat"),
    **{f"SPZ {v}": Kind(_sample(f"SPZ {v}"), "spz") for v in (1, 2, 3, 4)},
    ".ksplat": Kind(_sample("ksplat"), "ksplat"),
    "SOG": Kind(_sample("SOG"), "sog"),
    "SOG folder": Kind(_sample("SOG folder"), "sog"),
    "gsplat .pt": Kind(_sample("gsplat .pt"), "gsplat"),
    "gsplat run of 2 ranks": Kind(_ranks, "gsplat"),
    "nerfstudio .ckpt": Kind(_sample("nerfstudio .ckpt"), "nerfstudio"),
    "nerfstudio run folder": Kind(
        _inside("nerfstudio .ckpt", "nerfstudio_models/step-000000009.ckpt"), "nerfstudio"
    ),
    "DriveStudio .pth": Kind(_sample("DriveStudio .pth"), "drivestudio"),
    "points .npz": Kind(_sample("points .npz"), "points"),
    "cameras.json folder": Kind(_recording(write_cameras_json), "capture"),
    "transforms.json folder": Kind(_recording(write_transforms_json), "capture"),
    "COLMAP, binary": Kind(_recording(write_colmap), "capture"),
    "COLMAP, text": Kind(_sample("COLMAP images.txt"), "capture"),
    "COLMAP with a rig": Kind(_recording(write_colmap, samples.rig), "capture"),
    **{f"DriveStudio folder, {name}": Kind(_drivestudio(name), "capture") for name in SETS},
}


def drawn(path: Path, kind: str) -> RenderedView:
    """What is seen of a file through its own first camera, else from before it; a recording is drawn as its points."""
    if kind == "capture":
        capture = load_capture(path)
        scene, path_of = Scene(balls(capture)), capture.trajectory
    else:
        scene = load_scene(path)
        saved = next(iter(scene.paths.values()), None)
        path_of = scene.capture.trajectory if scene.capture else saved
    camera = None if path_of is None else path_of.cameras[0]
    cameras = [] if camera is None else [camera.scaled(min(1.0, 480 / camera.width))]
    for one in (*cameras, before(scene)):
        view = render_view(scene, one)
        if float(view.alpha.max()) > 0.3:
            break
    return view


def balls(capture: Capture) -> Gaussians:
    """The points of a recording, else its laser returns, as small balls of a few pixels."""
    if capture.points is not None:
        xyz, rgb = capture.points.xyz, capture.points.rgb / 255
    else:
        xyz = torch.cat(capture.lidar)
        rgb = torch.full_like(xyz, 0.7)
    count, far = len(xyz), (xyz - xyz.median(0).values).norm(dim=1).median()
    size = float(far) / count**0.5 / 2 + 1e-3
    return Gaussians(
        means=xyz,
        log_scales=torch.full((count, 3), size).log(),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(count, 4).clone(),
        logit_opacities=torch.full((count,), 3.0),
        sh0=rgb_to_sh0(rgb)[:, None],
        shN=torch.zeros(count, 0, 3),
        provenance=torch.zeros(count, dtype=torch.uint8),
    )


def before(scene: Scene) -> Camera:
    """A camera that has the splats in view, for files that store none."""
    world = scene.at(0.0).gaussians.means.double()
    middle = world.median(0).values
    away = 2.5 * (world - middle).norm(dim=1).quantile(0.7) + 0.1
    direction = torch.tensor([-1.0, 0.3, 0.25], dtype=torch.float64)
    pose = look_at(
        middle + away * direction, middle, torch.tensor([0.0, 0, 1], dtype=torch.float64)
    )
    K = torch.tensor([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, 320, 240)


@pytest.fixture
def info(capsys):
    def call(path: Path) -> dict:
        assert cli.main(["info", str(path), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_every_kind_is_counted_and_drawn(tmp_path, info, name):
    kind = KINDS[name]
    path = kind.make(tmp_path)
    told = info(path)
    assert told["format"] == kind.format
    if kind.format == "capture":
        assert told["frames"] >= 3 and told["gaussians"] == 0
    else:
        assert told["gaussians"] == COUNT
    view = drawn(path, kind.format)
    assert float(view.alpha.max()) > 0.3 and bool(torch.isfinite(view.rgb).all())


@pytest.mark.parametrize(
    ("name", "kind", "gaussians", "frames"),
    [
        ("splats/guitar.compressed.ply", "compressed_ply", 90_854, 0),
        ("splats/test_garden.npz", "points", 138_766, 0),
        ("kitti_boulevard", "capture", 0, None),
        ("kitti_stereo_country", "capture", 0, None),
        ("kitti_traffic_lidar", "capture", 0, None),
        ("street/recorded", "capture", 0, None),
    ],
)
def test_real_files_are_counted(shared_data, info, name, kind, gaussians, frames):
    told = info(shared_data(name))
    assert (told["format"], told["gaussians"]) == (kind, gaussians)
    assert told["frames"] == frames if frames is not None else told["frames"] > 10
