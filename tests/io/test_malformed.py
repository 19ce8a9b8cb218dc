"""Seeded mutants of every format: only a StudioError may come out, and soon."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from io_samples import a_capture, a_scene, write_colmap
from test_captures import write_transforms
from test_gaussians import random_gaussians
from test_splat_files import compress

from faithfusion_studio.errors import StudioError
from faithfusion_studio.io import (
    camera_path_stems,
    load_capture,
    load_scene,
    read_camera_path,
    save_scene,
    write_camera_path,
    write_cameras_json,
    write_ply,
)

MUTANTS = {load_scene: 300, load_capture: 150}
COUNTS = [0, 1, -1, 2**31, 10**18, 2**64 - 1, 2**63]


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes cut, flipped, lengthened, shortened, or with a count that cannot be true."""
    at = int(rng.integers(0, len(data)))
    some = int(rng.integers(1, 40))
    count = COUNTS[int(rng.integers(0, len(COUNTS)))]
    start = int(rng.integers(0, 40))
    flipped = bytearray(data)
    for place in rng.integers(0, len(data), 1 + some // 8):
        flipped[place] = int(rng.integers(0, 256))
    head = bytearray(data)
    head[int(rng.integers(0, min(len(data), 400)))] ^= 1 << int(rng.integers(0, 8))
    digits = [i for i in range(min(len(data), 4000)) if 48 <= data[i] <= 57] or [0]
    digit = digits[int(rng.integers(0, len(digits)))]
    kinds = [
        data[:at],
        bytes(flipped),
        bytes(head),
        data[:at] + rng.bytes(some) + data[at:],
        data[:at] + data[at + some :],
        data[:start] + (count % 2**64).to_bytes(8, "little") + data[start + 8 :],
        data[:digit] + str(count).encode() + data[digit + 1 :],
    ]
    return kinds[int(rng.integers(0, len(kinds)))]


def make_native(folder: Path) -> Path:
    save_scene(a_scene(12), folder / "a.ckpt")
    return folder / "a.ckpt"


def make_ply(folder: Path) -> Path:
    write_ply(random_gaussians(6, 3), folder / "a.ply")
    return folder / "a.ply"


def make_ascii_ply(folder: Path) -> Path:
    names = ["x", "y", "z", "opacity", "scale_0", "scale_1", "scale_2"]
    names += [f"rot_{i}" for i in range(4)] + [f"f_dc_{i}" for i in range(3)]
    rows = np.random.default_rng(0).normal(size=(8, len(names))).round(3)
    lines = ["ply", "format ascii 1.0", "element vertex 8", *(f"property float {n}" for n in names)]
    lines += ["end_header", *(" ".join(map(str, row)) for row in rows.tolist()), ""]
    (folder / "a.ply").write_text("\n".join(lines))
    return folder / "a.ply"


def make_compressed(folder: Path) -> Path:
    compress(folder / "a.ply", random_gaussians(30, 1), True)
    return folder / "a.ply"


def make_cameras(folder: Path) -> Path:
    write_cameras_json(a_capture(), folder)
    return folder / "cameras.json"


def make_points(folder: Path) -> Path:
    write_cameras_json(a_capture(), folder)
    return folder / "points3d.ply"


def make_transforms(folder: Path) -> Path:
    write_transforms(folder, a_capture().trajectory.cameras)
    return folder / "transforms.json"


def make_path(folder: Path) -> Path:
    write_camera_path(a_capture().trajectory, folder / "path.json")
    return folder / "path.json"


def make_image(folder: Path) -> Path:
    write_cameras_json(a_capture(2), folder)
    return folder / "images/000000.jpg"


def colmap_part(name: str):
    def make(folder: Path) -> Path:
        shutil.rmtree(folder)
        write_colmap(folder, ["0.jpg", "1.jpg"], binary=name.endswith(".bin"))
        return folder / "sparse/0" / name

    return make


def load_path(path: Path) -> None:
    read_camera_path(path)
    camera_path_stems(path)


FORMATS = {
    "native scene": (make_native, load_scene),
    "Inria PLY": (make_ply, load_scene),
    "ascii PLY": (make_ascii_ply, load_scene),
    "compressed PLY": (make_compressed, load_scene),
    "cameras.json": (make_cameras, None),
    "points3d.ply": (make_points, None),
    "transforms.json": (make_transforms, None),
    "camera path": (make_path, load_path),
    "image header": (make_image, None),
    **{
        f"COLMAP {part}{suffix}": (colmap_part(part + suffix), None)
        for part in ("cameras", "images", "points3D")
        for suffix in (".bin", ".txt")
    },
}


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_end_in_one_sentence_or_open(tmp_path, name):
    folder = tmp_path / "good"
    folder.mkdir()
    make, load = FORMATS[name]
    path = make(folder)
    load = load or load_capture
    target = path if load is not load_capture else folder
    load(target)
    good = path.read_bytes()
    rng = np.random.default_rng(sum(name.encode()))

    def too_slow(*_):
        raise TimeoutError(f"{name}: a mutant took longer than 5 s")

    previous = signal.signal(signal.SIGALRM, too_slow)
    refused = 0
    try:
        for _ in range(MUTANTS.get(load, 300)):
            path.write_bytes(mutant(good, rng))
            signal.alarm(5)
            try:
                load(target)
            except StudioError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 700
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert refused > 0
