"""A file system that really is full: one sentence, nothing half written, nothing old lost."""

import shutil
import subprocess
import time
from types import SimpleNamespace

import pytest
from test_real_engines import make_street, recorded

from faithfusion_studio.io import load_scene, save_scene
from faithfusion_studio.session import commands as c
from faithfusion_studio.session.session import Session


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own, too small for any result."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount")
    asked = [mount or "mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def session(tmp_path, small_disk, monkeypatch):
    # The check beforehand would refuse; the file system may also fill up while a job writes.
    plenty = SimpleNamespace(free=1 << 40)
    monkeypatch.setattr(c.shutil, "disk_usage", lambda _folder: plenty)
    opened = tmp_path / "opened.ckpt"
    save_scene(recorded(make_street()), opened)
    made = Session(load_scene(opened), path=opened, run_folder=small_disk / "run")
    yield made
    made.close(save=False)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def attempt(session, command):
    """Submit, wait for the end, and return the error."""
    before = session.state.error_id
    session.submit(command)
    deadline = time.monotonic() + 60
    while session.state.error_id == before or session.state.export or session.state.job:
        assert time.monotonic() < deadline, "no error came"
        time.sleep(0.02)
    return session.state.error


@pytest.mark.parametrize("name", ["new.ckpt", "new.ply"])
def test_saving(session, small_disk, name):
    target = small_disk / name
    target.write_bytes(b"an older file")
    error = attempt(session, c.SaveAs(str(target)))
    assert "cannot be written" in error and "choose another folder" in error
    assert "\n" not in error
    assert files(small_disk) == {name: b"an older file"}
    assert not session.state.exports


@pytest.mark.parametrize("name", ["new.mp4", "new.ply", "pictures"])
def test_exporting(session, small_disk, name, caplog):
    request = c.ExportRequest(path=str(small_disk / name), size=(640, 480), layers=("rgb", "depth"))
    error = attempt(session, c.Export(request))
    assert "cannot be written" in error and "\n" not in error
    assert files(small_disk) == {}
    assert session.state.exports == ()
    assert not any(record.exc_info for record in caplog.records)


def test_unsaved_work_is_kept_elsewhere_when_the_run_folder_is_full(
    session, small_disk, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "elsewhere"))
    session.submit(c.SetSky((0.1, 0.2, 0.3)))
    assert session.wait_idle(20.0)
    kept = session.close()
    assert kept is not None and kept.is_relative_to(tmp_path / "elsewhere")
    assert load_scene(kept).num_gaussians == session.store.latest().scene.num_gaussians
    assert files(small_disk) == {}
