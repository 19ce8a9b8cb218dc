"""Repair data and adapters: aligned, without leaks, and trained files load in the real engines."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fusion"))
from tiny_models import need_diffusers, write_cogvideox, write_difix  # noqa: E402
from worlds import tiny_capture, tiny_world  # noqa: E402

from faithfusion_studio import cli  # noqa: E402
from faithfusion_studio.information.fisher import recorded_fisher  # noqa: E402
from faithfusion_studio.io import save_scene  # noqa: E402
from faithfusion_studio.render.views import render_view  # noqa: E402
from faithfusion_studio.training.repair_data import (  # noqa: E402
    RepairData,
    RepairDataError,
    repair_pairs,
    without_held_out,
)

HELD_OUT = [2, 5]


@pytest.fixture(scope="module")
def scene():
    """The true world, a little spoilt, that held two frames out."""
    world = tiny_world()
    spoilt = replace(world.background, means=world.background.means + 0.05)
    metadata = {"reconstruction": {"scale": 0.5, "holdout": HELD_OUT}}
    return replace(world, background=spoilt, capture=tiny_capture(8), metadata=metadata)


@pytest.fixture(scope="module")
def folder(scene, tmp_path_factory):
    """What the command writes of it."""
    place = tmp_path_factory.mktemp("pairs")
    save_scene(scene, place / "scene.ckpt")
    assert cli.main(["pairs", str(place / "scene.ckpt"), str(place / "data"), "--json"]) == 0
    return place / "data"


def test_held_out_frames_are_neither_reference_nor_evidence(scene):
    trained, truth = without_held_out(scene)
    names = [frame.name for frame in trained.capture.frames]
    assert [frame.name for frame in truth] == ["000002", "000005"]
    assert not set(names) & {"000002", "000005"} and len(names) == 6
    assert trained.fisher.num_views == 6
    again = recorded_fisher(replace(trained, fisher=None))
    assert torch.allclose(trained.fisher.blocks, again.blocks, rtol=1e-3, atol=1e-3)


def test_pairs_are_aligned_with_their_truth(scene, folder):
    trained, truth = without_held_out(scene)
    made = list(repair_pairs(trained, truth))
    data = RepairData(folder)
    assert len(data) == len(made) == 2 and data.clips() == [range(0, 2)]
    for index, (pair, frame) in enumerate(zip(made, truth, strict=True)):
        camera = frame.camera.scaled(0.5)
        assert (pair.camera.width, pair.camera.height) == (40, 24)
        assert torch.equal(pair.truth, frame.image((40, 24)))
        assert torch.allclose(pair.render, render_view(trained, camera).rgb.clamp(0, 1), atol=1e-5)
        assert pair.reference_name in {"000001", "000003", "000004", "000006", "000000", "000007"}
        assert float(pair.eig.min()) >= 0 and float(pair.calibrated.max()) <= 1
        again = data.pair(index)
        assert again.name == pair.name and again.reference_name == pair.reference_name
        assert torch.equal(again.camera.camtoworld, pair.camera.camtoworld)
        assert float((again.truth - pair.truth).abs().max()) <= 0.5 / 255 + 1e-6
        assert torch.allclose(again.eig, pair.eig, rtol=2e-3, atol=1e-4)
        assert torch.equal(again.coverage, pair.coverage)
        moved = (pair.truth[:, 1:] - pair.render[:, :-1]).abs().mean()
        assert float((pair.truth - pair.render).abs().mean()) < float(moved)


def test_another_recording_in_the_same_world_gives_truth(scene, tmp_path):
    """Cross-camera: the scene knows six frames, the truth is a recording it never saw."""
    save_scene(replace(scene, capture=tiny_capture(3)), tmp_path / "other.ckpt")
    assert cli.main(["convert", str(tmp_path / "other.ckpt"), str(tmp_path / "other")]) == 0
    save_scene(scene, tmp_path / "scene.ckpt")
    words = ["pairs", str(tmp_path / "scene.ckpt"), str(tmp_path / "data")]
    assert cli.main([*words, "--against", str(tmp_path / "other"), "--size", "32x20"]) == 0
    data = RepairData(tmp_path / "data")
    assert len(data) == 3 and data.entries[0]["size"] == [32, 20]


def test_without_truth_it_says_where_to_get_some(scene, tmp_path, capsys):
    save_scene(replace(scene, metadata={}), tmp_path / "scene.ckpt")
    assert cli.main(["pairs", str(tmp_path / "scene.ckpt"), str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert "--holdout-every" in error and "--against" in error
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("spoil", ["no index", "other format", "no picture", "outside"])
def test_damaged_folders_are_refused(folder, tmp_path, spoil):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = json.loads((tmp_path / "pairs.json").read_text())
    match spoil:
        case "no index":
            (tmp_path / "pairs.json").unlink()
        case "other format":
            (tmp_path / "pairs.json").write_text('{"format": "other", "pairs": []}')
        case "no picture":
            next(tmp_path.glob("*_render.png")).unlink()
        case "outside":
            index["pairs"][0]["name"] = "../secret"
            (tmp_path / "pairs.json").write_text(json.dumps(index))
    with pytest.raises(RepairDataError):
        RepairData(tmp_path).pair(0)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    need_diffusers()
    from faithfusion_studio.repair.model_store import CATALOG, accept_licence

    monkeypatch.setenv("FF_STUDIO_SETTINGS", str(tmp_path / "settings.json"))
    monkeypatch.setenv("FF_STUDIO_WEIGHTS", str(tmp_path / "weights"))
    for entry in CATALOG.values():
        accept_licence(entry)
    return tmp_path / "weights"


def trained(capsys, folder, out, *words):
    words = ["train-adapter", str(folder), str(out), "--json", "--device", "cpu", *words]
    assert cli.main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_an_eig_difix_learns_and_loads_in_the_engine(folder, weights, tmp_path, capsys):
    from faithfusion_studio.repair.difix import DifixRepairer, load_difix
    from faithfusion_studio.repair.difix_networks import read_difix_training

    base = write_difix(weights / "difix_ref")
    out = base / "model_last.pkl"
    first = trained(capsys, folder, tmp_path / "first.pkl", "--steps", "1", "--rate", "1e-3")
    last = trained(capsys, folder, out, "--steps", "40", "--rate", "1e-3")
    assert last["loss"] < first["loss"] and last["parameters"] > 0
    state = read_difix_training(out)
    assert state["rank_vae"] == 4 and len(state["vae_lora_target_modules"]) > 20
    assert all("lora" in name or "skip" in name for name in state["state_dict_vae"])
    engine = load_difix()
    assert engine.unet.uses_eig
    plain = DifixRepairer.from_pretrained(base)
    views = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        changed = engine.vae.decode(engine.vae.encode(views))
        assert not torch.allclose(changed, plain.vae.decode(plain.vae.encode(views)), atol=1e-5)


def test_difix_starts_from_the_engine_it_is_put_upon(folder, weights, tmp_path):
    """Before the first step the trained file gives the folder's own pictures."""
    from faithfusion_studio.repair.difix import PROMPT, DifixRepairer
    from faithfusion_studio.repair.prompts import prompt_embedding
    from faithfusion_studio.training.adapters import AdapterConfig, DifixTask

    base = write_difix(weights / "difix_ref")
    prompt = prompt_embedding(base, PROMPT, "CLIPTextModel", length=77)
    task = DifixTask(base, prompt, RepairData(folder), AdapterConfig())
    task.save(tmp_path / "start.pkl", {})
    started = DifixRepairer.from_pretrained(base, training=tmp_path / "start.pkl")
    plain = DifixRepairer.from_pretrained(base)
    for name, tensor in plain.vae.vae.state_dict().items():
        assert torch.allclose(tensor, started.vae.vae.state_dict()[name], atol=1e-6), name
    latent, text = torch.randn(2, 4, 8, 8), torch.randn(1, 7, 16)
    with torch.no_grad():
        same = plain.unet.noise(latent, text)
        assert torch.allclose(same, started.unet.noise(latent, text), atol=1e-5)


def test_an_eigent_branch_learns_and_loads_in_the_engine(folder, weights, tmp_path, capsys):
    from faithfusion_studio.repair.eigent_cogvideox import load_cogvideox

    base = write_cogvideox(weights / "eigent_cogvideox")
    kept = base / "branch"
    for file in list(kept.iterdir()):
        file.unlink()
    kept.rmdir()
    words = ("--engine", "eigent-cogvideox", "--layers", "1", "--rate", "3e-3")
    first = trained(capsys, folder, tmp_path / "first", *words, "--steps", "1")
    last = trained(capsys, folder, kept, *words, "--steps", "12")
    assert 0 < last["loss"] < 1.2 * first["loss"]
    engine = load_cogvideox()
    assert len(engine.branch.branch_blocks) == 1
    assert bool(engine.branch.branch_blocks[0].weight.any())


def test_the_branch_alone_is_learned_and_the_trunk_stays(folder, weights):
    from faithfusion_studio.repair.prompts import prompt_embedding
    from faithfusion_studio.training.adapters import AdapterConfig, EigentTask, train_adapter

    base = write_cogvideox(weights / "eigent_cogvideox")
    prompt = prompt_embedding(base, "any", "T5EncoderModel", length=226)
    config = AdapterConfig(steps=2, rate=1e-2, layers=1, eig_dropout=0.0, reference_dropout=0.0)
    task = EigentTask(base, prompt, RepairData(folder), config)
    before = {k: v.clone() for k, v in task._engine.trunk.state_dict().items()}
    list(train_adapter(task, config))
    after = task._engine.trunk.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert bool(task.branch.branch_blocks[0].weight.any())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["missing", "a.pkl"], "cannot be read"),
        (["missing", "a.pkl", "--steps", "0"], "expected 1 to"),
        (["missing", "folder"], "ending in .pkl"),
        (["missing", "a.pkl", "--engine", "eigent-cogvideox"], "name of a folder"),
    ],
)
def test_mistakes_are_one_sentence(capsys, words, why):
    assert cli.main(["train-adapter", *words]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1
