"""Scenes in the layouts of other tools, made here by an independent writer: ksplat, SOG 1, Inria runs, points."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from test_gaussians import random_gaussians

from faithfusion_studio.errors import StudioError
from faithfusion_studio.io import load_scene, save_scene, sniff, write_ply
from faithfusion_studio.io.ply import SplatFileError
from faithfusion_studio.io.webp import write_webp
from faithfusion_studio.scene import Scene

# --------------------------------------------------------------------------------------- ksplat


def ksplat(g, level: int, bucket: int = 4, block: float = 5.0) -> bytes:
    """A .ksplat of one section: full buckets of `bucket` Gaussians, then one that is not full.

    Buckets are just consecutive Gaussians here, with the middle of each as its centre.
    """
    count, coefficients, steps = len(g), g.shN.shape[1], 32767
    full, left = divmod(count, bucket)
    real = "<f4" if level == 0 else "<f2"
    groups = [g.means[i : i + bucket].numpy() for i in range(0, count, bucket)]
    centers = np.stack([(p.min(0) + p.max(0)) / 2 for p in groups]).astype("<f4")
    rgb = (g.sh0[:, 0] * 0.28209479177387814 + 0.5).clamp(0, 1)
    color = np.rint(torch.cat([rgb, g.opacities[:, None]], 1).numpy() * 255).astype(np.uint8)
    rows = b""
    for i in range(count):
        if level == 0:
            rows += g.means[i].numpy().astype("<f4").tobytes()
        else:
            offset = (g.means[i].numpy() - centers[i // bucket]) / (block / 2) * steps
            rows += np.rint(offset + steps).astype("<u2").tobytes()
        rows += g.scales[i].numpy().astype(real).tobytes()
        rows += g.quats[i].numpy().astype(real).tobytes() + color[i].tobytes()
        for band in range(1, g.sh_degree + 1):
            values = g.shN[i, band * band - 1 : (band + 1) ** 2 - 1].T.reshape(-1).numpy()
            if level == 2:
                rows += np.rint((values + 1.5) / 3 * 255).clip(0, 255).astype("u1").tobytes()
            else:
                rows += values.astype(real).tobytes()
    header = bytearray(4096)
    struct.pack_into("<BB", header, 0, 0, 1)
    struct.pack_into("<IIIIH", header, 4, 1, 1, count, count, level)
    struct.pack_into("<ff", header, 36, -1.5, 1.5)
    section = bytearray(1024)
    partial = 1 if left else 0
    values = (count, count, bucket, len(groups), block, 12)
    struct.pack_into("<IIIIfH", section, 0, *values)
    struct.pack_into("<II", section, 24, steps, 0)
    struct.pack_into("<IIH", section, 32, full, partial, g.sh_degree)
    assert coefficients == (g.sh_degree + 1) ** 2 - 1
    sizes = struct.pack("<I", left) if left else b""
    return bytes(header) + bytes(section) + sizes + centers.tobytes() + rows


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_of_ksplat_is_read(tmp_path, level, degree):
    g = random_gaussians(11, degree, seed=level)
    (tmp_path / "a.ksplat").write_bytes(ksplat(g, level))
    assert sniff(tmp_path / "a.ksplat") == "ksplat"
    found = load_scene(tmp_path / "a.ksplat").background
    close = 1e-6 if level == 0 else 1e-3
    torch.testing.assert_close(found.means, g.means, rtol=0, atol=close)
    torch.testing.assert_close(found.log_scales, g.log_scales, rtol=0, atol=close)
    torch.testing.assert_close(found.quats, g.quats, rtol=0, atol=2 * close)
    torch.testing.assert_close(found.opacities, g.opacities, rtol=0, atol=0.002)
    step = (1e-6, 2e-3, 0.007)[level]
    torch.testing.assert_close(
        found.shN, g.shN.clamp(-1.5, 1.5) if level == 2 else g.shN, rtol=0, atol=step
    )


@pytest.mark.parametrize(
    ("at", "value"),
    [(16, 10), (16, 12), (4096, 10), (4096 + 12, 2), (4096 + 36, 0), (4, 2), (4, 10**6)],
)
def test_a_ksplat_that_contradicts_itself_is_refused(tmp_path, at, value):
    data = bytearray(ksplat(random_gaussians(11, 1), 1))
    struct.pack_into("<I", data, at, value)
    (tmp_path / "a.ksplat").write_bytes(data)
    with pytest.raises(StudioError):
        load_scene(tmp_path / "a.ksplat")


# ------------------------------------------------------------------------------------------ SOG


def test_the_first_version_of_sog_is_read_too(tmp_path):
    rng = np.random.default_rng(0)
    pixels = {n: rng.integers(0, 256, (4, 4, 4), np.uint8) for n in ("l", "u", "s", "c")}
    for picture in pixels.values():
        picture[..., 3] |= 1
    quats = rng.integers(100, 156, (4, 4, 4), np.uint8)
    quats[..., 3] = 252
    meta = {
        "means": {
            "shape": [13, 3],
            "mins": [-1, -2, 0],
            "maxs": [1, 2, 3],
            "files": ["l.webp", "u.webp"],
        },
        "scales": {"mins": [-6, -5, -4], "maxs": [0, 1, 2], "files": ["s.webp"]},
        "quats": {"files": ["q.webp"]},
        "sh0": {"mins": [-1, -1, -1, -4], "maxs": [1, 1, 1, 4], "files": ["c.webp"]},
    }
    for name, picture in {**pixels, "q": quats}.items():
        (tmp_path / f"{name}.webp").write_bytes(write_webp(picture))
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    scene = load_scene(tmp_path)
    assert sniff(tmp_path) == sniff(tmp_path / "meta.json") == "sog" and scene.num_gaussians == 13
    flat = {
        name: picture.reshape(-1, 4)[:13].astype(np.float64) for name, picture in pixels.items()
    }
    log = np.array([-1, -2, 0]) + np.array([2, 4, 3]) * (flat["l"] + 256 * flat["u"])[:, :3] / 65535
    expected = np.sign(log) * (np.exp(np.abs(log)) - 1)
    np.testing.assert_allclose(scene.background.means, expected, rtol=1e-5)
    np.testing.assert_allclose(
        scene.background.logit_opacities, -4 + 8 * flat["c"][:, 3] / 255, rtol=1e-5
    )
    np.testing.assert_allclose(
        scene.background.log_scales, np.array([-6, -5, -4]) + 6 * flat["s"][:, :3] / 255, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["../outside.webp", "/etc/passwd", "a\0b", "", "missing.webp"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_sog_reads_nothing_outside_itself(tmp_path, packed, name):
    folder = tmp_path / "sog"
    save_scene(Scene(random_gaussians(20, 0)), tmp_path / "a.sog")
    with zipfile.ZipFile(tmp_path / "a.sog") as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    (tmp_path / "outside.webp").write_bytes(parts["quats.webp"])
    meta = json.loads(parts["meta.json"])
    meta["quats"]["files"] = [name]
    parts["meta.json"] = json.dumps(meta).encode()
    if packed:
        with zipfile.ZipFile(tmp_path / "a.sog", "w") as archive:
            for part, data in parts.items():
                archive.writestr(part, data)
    else:
        folder.mkdir()
        for part, data in parts.items():
            (folder / part).write_bytes(data)
    with pytest.raises(SplatFileError) as caught:
        load_scene(tmp_path / "a.sog" if packed else folder)
    assert "\n" not in str(caught.value)


def test_many_gaussians_share_view_dependent_colours_and_it_is_said(tmp_path, monkeypatch):
    from faithfusion_studio.io import sog_writer

    monkeypatch.setattr(sog_writer, "MAX_PALETTE", 128)
    monkeypatch.setattr(sog_writer, "_CUTS", 7)
    rng = torch.Generator().manual_seed(0)
    kinds = torch.randn(100, 45, generator=rng) * 0.1
    g = random_gaussians(1000, 3)
    labels = torch.randint(0, 100, (1000,), generator=rng)
    g = type(g)(
        g.means,
        g.log_scales,
        g.quats,
        g.logit_opacities,
        g.sh0,
        kinds[labels].reshape(1000, 15, 3),
        g.provenance,
    )
    notes = save_scene(Scene(g), tmp_path / "a.sog")
    assert any("sets stand for 1,000" in note for note in notes)
    found = load_scene(tmp_path / "a.sog").background
    found = found.select(torch.cdist(g.means, found.means).argmin(1))
    error = float((found.shN - g.shN).pow(2).mean().sqrt())
    assert error < 0.3 * float(g.shN.std())


# -------------------------------------------------------------------------------------- run folders


def test_an_inria_run_opens_with_its_last_iteration_and_its_cameras(tmp_path):
    for step, seed in ((7000, 1), (30000, 2)):
        (tmp_path / f"point_cloud/iteration_{step}").mkdir(parents=True)
        g = random_gaussians(9, 3, seed)
        write_ply(g, tmp_path / f"point_cloud/iteration_{step}/point_cloud.ply")
    turn = [[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]
    entry = {
        "id": 0,
        "img_name": "a",
        "width": 64,
        "height": 48,
        "position": [1, 2, 3],
        "rotation": turn,
    }
    cameras = [
        {**entry, "fx": 50.0, "fy": 51.0},
        {**entry, "id": 1, "position": [2, 2, 3], "fx": 50.0},
    ]
    (tmp_path / "cameras.json").write_text(json.dumps(cameras))
    assert sniff(tmp_path) == "inria_run"
    scene = load_scene(tmp_path)
    assert torch.equal(scene.background.means, g.means)
    (path,) = scene.paths.values()
    assert len(path) == 2 and path.cameras[0].position.tolist() == [1, 2, 3]
    assert path.cameras[0].camtoworld[:3, :3].tolist() == turn
    assert path.cameras[0].K.tolist() == [[50, 0, 32], [0, 51, 24], [0, 0, 1]]


def test_broken_cameras_of_a_run_are_one_sentence(tmp_path):
    (tmp_path / "point_cloud/iteration_1").mkdir(parents=True)
    write_ply(random_gaussians(2, 0), tmp_path / "point_cloud/iteration_1/point_cloud.ply")
    for text in (
        "[{}]",
        "[1]",
        "[",
        '[{"width": 4, "height": 4, "rotation": [], "position": [1, 2, 3]}]',
    ):
        (tmp_path / "cameras.json").write_text(text)
        with pytest.raises(StudioError) as caught:
            load_scene(tmp_path)
        assert "cameras.json" in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------ points


def test_points_with_cameras_open_as_small_balls(tmp_path):
    rng = np.random.default_rng(0)
    means = rng.uniform(0, 1, (500, 3)).astype(np.float32)
    colors = rng.integers(0, 255, (500, 3), np.uint8)
    views = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    views[1, :3, 3] = [0, 0, 5]
    K = np.tile(np.array([[40.0, 0, 16], [0, 40, 12], [0, 0, 1]], np.float32), (2, 1, 1))
    np.savez(
        tmp_path / "a.npz", means3d=means, colors=colors, viewmats=views, Ks=K, width=32, height=24
    )
    assert sniff(tmp_path / "a.npz") == "points"
    scene = load_scene(tmp_path / "a.npz")
    assert scene.num_gaussians == 500
    typical = float(scene.background.scales.median())
    assert 0.02 < typical < 0.08  # 500 points in a cube of 1 m are about 0.07 m apart
    rgb = scene.background.sh0[:, 0] * 0.28209479177387814 + 0.5
    np.testing.assert_allclose(rgb * 255, colors, atol=1e-3)
    (path,) = scene.paths.values()
    assert [c.position.tolist() for c in path.cameras] == [[0, 0, 0], [0, 0, -5]]
    assert "points, not Gaussians" in scene.metadata["notes"][0]


@pytest.mark.parametrize(
    "arrays",
    [
        {"other": np.zeros(3)},
        {"means3d": np.zeros((0, 3))},
        {"means3d": np.zeros((4, 2))},
        {"means3d": np.full((4, 3), np.nan)},
        {"means3d": np.zeros((4, 3)), "viewmats": np.zeros((1, 4, 4)), "Ks": np.zeros((1, 3, 3)), "width": 4, "height": 4},
        {"means3d": np.array([[None, 1, 2]], object)},
    ],
)  # fmt: skip
def test_points_that_are_none_are_one_sentence(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SplatFileError) as caught:
        load_scene(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def test_the_shared_garden_opens_with_its_three_cameras(shared_data):
    scene = load_scene(shared_data("splats/test_garden.npz"))
    assert scene.num_gaussians == 138_766
    (path,) = scene.paths.values()
    assert [(c.width, c.height) for c in path.cameras] == [(648, 420)] * 3
