"""`ff-studio engines`: what is found, what is missing and why, licences, and hashes."""

import hashlib
import json

import pytest

from faithfusion_studio import cli
from faithfusion_studio.io.user_settings import read_settings
from faithfusion_studio.repair.listing import engine_facts
from faithfusion_studio.repair.model_store import CATALOG
from faithfusion_studio.repair.registry import REPAIRERS


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("FF_STUDIO_SETTINGS", str(tmp_path / "settings" / "settings.json"))
    monkeypatch.setenv("FF_STUDIO_WEIGHTS", str(tmp_path / "weights"))


def table(capsys, *words):
    assert cli.main(["engines", "--json", *words]) == 0
    values = json.loads(capsys.readouterr().out)
    return {row["engine"]: row for row in values["engines"]}


def put(tmp_path, name):
    entry = CATALOG[name]
    for part in entry.parts:
        path = tmp_path / "weights" / entry.folder / part.path
        if not part.optional and path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"weights")
        elif not part.optional:
            path.mkdir(parents=True)
            (path / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")


def test_every_engine_has_a_row_that_says_what_is_missing(capsys):
    rows = table(capsys)
    assert list(rows) == list(REPAIRERS)
    assert rows["reprojection"]["ready"] and rows["reprojection"]["seconds_40_frames"] > 0
    for name, entry in CATALOG.items():
        row = rows[name]
        assert not row["ready"] and "is missing" in row["problem"]
        assert [file["found"] for file in row["files"]] == [False] * len(entry.parts)
        assert row["licence_url"].startswith("https://") and row["bytes"] > 1e8
        assert row["licence_accepted"] is entry.licence.free


@pytest.mark.parametrize("name", [name for name, e in CATALOG.items() if not e.licence.free])
def test_a_licence_is_accepted_once(tmp_path, capsys, name):
    assert not engine_facts(name).must_accept  # nothing is there yet
    put(tmp_path, name)
    assert f"--accept {name}" in table(capsys)[name]["problem"]
    assert engine_facts(name).must_accept
    row = table(capsys, "--accept", name)[name]
    assert row["licence_accepted"] and row["ready"], row["problem"]
    assert table(capsys)[name]["ready"] and not engine_facts(name).must_accept
    accepted = read_settings()["accepted_licences"][name]
    assert accepted["licence"] == CATALOG[name].licence.name


def test_for_people_it_names_files_and_says_how_it_was_checked(capsys):
    assert cli.main(["engines"]) == 0
    printed = capsys.readouterr().out
    assert "difix: not ready" in printed and "missing: " in printed
    assert "checked against class definitions, not against released weights" in printed


def test_hashes_are_computed_on_request(tmp_path, capsys):
    put(tmp_path, "difix")
    files = table(capsys, "--hash")["difix"]["files"]
    assert files[0]["bytes"] == 7
    assert list(files[0]["sha256"].values()) == [hashlib.sha256(b"weights").hexdigest()]


def test_a_folder_can_be_given_and_remembered(tmp_path, capsys, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    row = table(capsys, "--weights", str(other), "--remember")["difix"]
    assert row["folder"].startswith(str(other))
    monkeypatch.setenv("FF_STUDIO_WEIGHTS", "")
    assert table(capsys)["difix"]["folder"].startswith(str(other))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--accept", "reprojection"], "asks for no acceptance"),
        (["--accept", "magic"], "asks for no acceptance"),
        (["--weights", "not-there"], "is not a folder"),
        (["--remember"], "give both"),
    ],
)
def test_mistakes_are_one_sentence(capsys, words, why):
    assert cli.main(["engines", *words]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1


def test_repairing_without_the_weights_says_where_to_put_them(tmp_path, capsys):
    from faithfusion_studio.repair import MissingWeightsError, create_repairer

    for name in CATALOG:
        with pytest.raises(MissingWeightsError, match="nothing is fetched unasked"):
            create_repairer(name)


def test_damaged_settings_are_named(tmp_path, capsys):
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "settings.json").write_text("{")
    assert cli.main(["engines", "--accept", "difix"]) == 2
    assert "settings.json: is not JSON" in capsys.readouterr().err
