"""Checkpoints of gsplat and nerfstudio: their layouts, and that nothing in a file ever runs."""

import io as stdlib_io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_gaussians import random_gaussians

from faithfusion_studio.bench.robustness.attacks import malicious_files
from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import StudioError
from faithfusion_studio.io import CheckpointError, load_scene, read_torch_file, save_scene, sniff
from faithfusion_studio.render.views import render_view
from faithfusion_studio.scene import Scene
from faithfusion_studio.transforms import quat_multiply, quat_to_rotmat, rotate_sh, rotmat_to_quat

ATTACKS = malicious_files(Path("/nowhere/canary"))


def assert_same(a, b, **tolerance) -> None:
    for name in ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), msg=name, **tolerance)


def splats(g) -> dict:
    return {
        "means": g.means,
        "scales": g.log_scales,
        "quats": g.quats,
        "opacities": g.logit_opacities,
        "sh0": g.sh0,
        "shN": g.shN,
    }


def rewrite_zip(path, change) -> None:
    """The archive again with `change(name, data) -> data` applied to every member."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, change(name, data))


# ---------------------------------------------------------------------------------------- trust


def test_there_are_thirty_attacks():
    assert len(ATTACKS) == 30


@pytest.mark.parametrize("name", ATTACKS)
def test_a_malicious_pickle_runs_nothing_and_ends_in_one_sentence(tmp_path, name):
    canary, path = tmp_path / "canary", tmp_path / "a.pth"
    path.write_bytes(malicious_files(canary)[name])
    for load in (load_scene, read_torch_file):
        with pytest.raises(StudioError) as caught:
            load(path)
        assert "\n" not in str(caught.value) and "a.pth" in str(caught.value)
    assert not canary.exists()


def test_an_attack_would_work_without_the_fences(tmp_path):
    import pickle

    canary = tmp_path / "canary"
    with zipfile.ZipFile(stdlib_io.BytesIO(malicious_files(canary)["open"])) as archive:
        pickle.loads(archive.read("archive/data.pkl"))["splats"].close()
    assert canary.exists()


def test_numpy_scalars_become_numbers(tmp_path):
    values = {"step": np.int64(30_000), "rate": np.float32(0.5), "flag": np.bool_(True), "n": 3}
    torch.save({**values, "big": np.dtype(">i4").type(7)}, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert found == {"step": 30_000, "rate": 0.5, "flag": True, "n": 3, "big": 7}
    assert type(found["step"]) is int


def test_the_numpy_scalars_of_older_files_are_read_too(tmp_path):
    torch.save({"step": np.int64(7)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert b"numpy._core" in archive.read("a/data.pkl")
    rewrite_zip(tmp_path / "a.pt", lambda _, data: data.replace(b"numpy._core", b"numpy.core"))
    assert read_torch_file(tmp_path / "a.pt") == {"step": 7}


def test_a_tensor_that_only_looks_large_is_refused(tmp_path):
    torch.save({"splats": torch.zeros(1).expand(10**9)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="not stored whole"):
        read_torch_file(tmp_path / "a.pt")
    torch.save({"splats": torch.eye(3).to_sparse()}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="asks to run"):
        read_torch_file(tmp_path / "b.pt")


def test_a_packed_archive_is_refused_before_it_unpacks(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00." + bytes(10**7))
    with pytest.raises(CheckpointError, match="promises"):
        read_torch_file(tmp_path / "a.pt")


# --------------------------------------------------------------------------------------- gsplat


def test_a_gsplat_checkpoint_comes_back_bit_for_bit(tmp_path):
    g = random_gaussians(20, 2)
    save_scene(Scene(g), tmp_path / "a.pt")
    assert sniff(tmp_path / "a.pt") == "gsplat"
    assert_same(load_scene(tmp_path / "a.pt").background, g, rtol=0, atol=0)
    content = read_torch_file(tmp_path / "a.pt")
    assert {k: tuple(v.shape) for k, v in content["splats"].items()} == {
        "means": (20, 3),
        "scales": (20, 3),
        "quats": (20, 4),
        "opacities": (20,),
        "sh0": (20, 1, 3),
        "shN": (20, 8, 3),
    }


@pytest.mark.parametrize(
    "opened", ["ckpts/ckpt_29_rank0.pt", "ckpts/ckpt_29_rank1.pt", "ckpts", "."]
)
def test_the_ranks_of_the_last_step_are_put_together(tmp_path, opened):
    (tmp_path / "ckpts").mkdir()
    g = random_gaussians(30, 1)
    for step, rank, rows in ((7, 0, slice(0, 3)), (29, 0, slice(0, 18)), (29, 1, slice(18, 30))):
        part = {"step": step, "splats": splats(g.select(torch.arange(30)[rows]))}
        torch.save(part, tmp_path / f"ckpts/ckpt_{step}_rank{rank}.pt")
    scene = load_scene(tmp_path / opened)
    assert_same(scene.background, g, rtol=0, atol=0)
    assert "2 ranks of one step were put together." in scene.metadata["notes"]


def test_appearance_colours_stand_in_for_sh(tmp_path):
    g = random_gaussians(5, 0)
    table = splats(g)
    del table["sh0"], table["shN"]
    colors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.save(
        {"step": 1, "splats": {**table, "features": torch.zeros(5, 32), "colors": colors}},
        tmp_path / "a.pt",
    )
    scene = load_scene(tmp_path / "a.pt")
    rgb = scene.background.sh0[:, 0] * 0.28209479177387814 + 0.5
    torch.testing.assert_close(rgb, torch.sigmoid(colors))
    assert any("appearance" in note for note in scene.metadata["notes"])


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("scales", torch.zeros(5, 2), r"splats.scales is float32 of shape \(5, 2\)"),
        ("quats", torch.zeros(4, 4), r"expected floats of shape \(5, 4\)"),
        ("opacities", torch.zeros(5, dtype=torch.long), "is int64"),
        ("shN", torch.zeros(5, 4, 3), "has 4 coefficients"),
        ("means", None, "lacks the tensor means"),
    ],
)
def test_a_wrong_shape_is_named(tmp_path, name, value, match):
    torch.save(
        {"step": 1, "splats": {**splats(random_gaussians(5, 1)), name: value}}, tmp_path / "a.pt"
    )
    with pytest.raises(CheckpointError, match=match):
        load_scene(tmp_path / "a.pt")


# ----------------------------------------------------------------------------------- nerfstudio


def nerfstudio_content(g, prefix: str) -> dict:
    pipeline = {
        f"{prefix}means": g.means,
        f"{prefix}scales": g.log_scales,
        f"{prefix}quats": g.quats,
        f"{prefix}opacities": g.logit_opacities[:, None],
        f"{prefix}features_dc": g.sh0[:, 0],
        f"{prefix}features_rest": g.shN,
        "_model.lpips.weight": torch.zeros(2),
    }
    schedulers = {"means": {"last_lr": [np.float64(1e-4)]}}
    return {"step": 29_999, "pipeline": pipeline, "optimizers": {}, "schedulers": schedulers}


@pytest.mark.parametrize(
    "prefix",
    ["_model.gauss_params.", "_model.", "_model.module.gauss_params.", "_model.module."],
)
def test_every_layout_of_nerfstudio_is_read(tmp_path, prefix):
    g = random_gaussians(9, 3)
    torch.save(nerfstudio_content(g, prefix), tmp_path / "step-000029999.ckpt")
    assert sniff(tmp_path / "step-000029999.ckpt") == "nerfstudio"
    scene = load_scene(tmp_path / "step-000029999.ckpt")
    assert_same(scene.background, g, rtol=0, atol=0)
    assert "was not found" in scene.metadata["notes"][-1]


def test_colours_without_sh_are_behind_a_sigmoid(tmp_path):
    g = random_gaussians(4, 0)
    torch.save(nerfstudio_content(g, "_model.gauss_params."), tmp_path / "a.ckpt")
    rgb = load_scene(tmp_path / "a.ckpt").background.sh0[:, 0] * 0.28209479177387814 + 0.5
    torch.testing.assert_close(rgb, torch.sigmoid(g.sh0[:, 0]))


def run_in_model_axes(folder, g, rotation, shift, scale) -> None:
    """A run of nerfstudio whose data was g: x_model = scale (R x + t), with the colours turned."""
    turn = rotmat_to_quat(rotation).float()
    moved = type(g)(
        ((g.means.double() @ rotation.T + shift) * scale).float(),
        g.log_scales + float(np.log(scale)),
        quat_multiply(turn.expand_as(g.quats), g.quats),
        g.logit_opacities,
        g.sh0,
        rotate_sh(g.shN, rotation),
        g.provenance,
    )
    (folder / "nerfstudio_models").mkdir(parents=True)
    content = nerfstudio_content(moved, "_model.gauss_params.")
    torch.save(content, folder / "nerfstudio_models/step-000000100.ckpt")
    torch.save({"pipeline": {}}, folder / "nerfstudio_models/step-000000050.ckpt")
    transform = torch.cat([rotation, shift[:, None]], dim=1).tolist()
    text = json.dumps({"transform": transform, "scale": scale})
    (folder / "dataparser_transforms.json").write_text(text)


@pytest.mark.parametrize(
    "opened", ["", "nerfstudio_models", "nerfstudio_models/step-000000100.ckpt"]
)
def test_a_run_comes_back_in_the_axes_and_scale_of_its_data(tmp_path, opened):
    generator = torch.Generator().manual_seed(4)
    g = random_gaussians(40, 3)
    rotation = quat_to_rotmat(torch.randn(4, generator=generator, dtype=torch.float64))
    shift = torch.randn(3, generator=generator, dtype=torch.float64)
    run_in_model_axes(tmp_path / "run", g, rotation, shift, 0.07)
    scene = load_scene(tmp_path / "run" / opened)
    torch.testing.assert_close(scene.background.means, g.means, rtol=1e-5, atol=1e-5)
    K = torch.tensor([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = -6
    camera = Camera(pose, K, 32, 24)
    before, after = render_view(Scene(g), camera).rgb, render_view(scene, camera).rgb
    assert float(before.std()) > 0.02
    assert float((before - after).abs().mean()) < 1e-4
    assert "restored from dataparser_transforms.json" in scene.metadata["notes"][-1]


def test_another_model_of_nerfstudio_is_refused_by_name(tmp_path):
    torch.save({"pipeline": {"_model.field.mlp": torch.zeros(1)}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="pipeline holds _model.field.mlp; expected"):
        load_scene(tmp_path / "a.ckpt")


def test_a_broken_transforms_file_is_one_sentence(tmp_path):
    run_in_model_axes(tmp_path, random_gaussians(3, 0), torch.eye(3).double(), torch.zeros(3), 2.0)
    (tmp_path / "dataparser_transforms.json").write_text('{"transform": [[1]], "scale": 1}')
    with pytest.raises(CheckpointError, match="expected a 4x4 pose"):
        load_scene(tmp_path)
