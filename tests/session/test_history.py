"""Going back gives the very same tensors, from memory or from a file."""

from dataclasses import replace

import pytest
import torch

from faithfusion_studio.session.history import History


def with_means(scene, value):
    means = torch.full_like(scene.background.means, value)
    return replace(scene, background=replace(scene.background, means=means))


def make(tools, max_bytes):
    files = {}
    written = []

    def save(scene, path):
        path.write_bytes(b"x")
        written.append(path)
        files[path] = scene

    scene = tools.scene(n=1000)
    return scene, History(scene, max_bytes=max_bytes, save=save, load=files.__getitem__), written


def test_a_push_after_an_undo_drops_what_could_be_redone(tools):
    scene, history, _ = make(tools, 1 << 30)
    for label in ("a", "b"):
        history.push(label, scene)
    history.go_to(1)
    history.push("c", scene)
    assert history.labels == ("Opened", "a", "c")
    assert history.cursor == 2


def test_shared_tensors_count_once(tools):
    scene, history, _ = make(tools, 1 << 30)
    before = history.num_bytes()
    history.push("move", with_means(scene, 1.0))
    assert history.num_bytes() - before == scene.background.means.nbytes


def test_over_the_cap_the_oldest_spill_and_come_back_bit_by_bit(tools):
    scene, history, written = make(tools, max_bytes=0)
    moments = {"means": {"exp_avg": torch.arange(5.0)}, "step": 7, "list": [torch.ones(2)]}
    for value in (1.0, 2.0, 3.0):
        history.push(f"v{value:g}", with_means(scene, value), moments)
    assert [path.name for path in written] == ["1.ckpt", "2.ckpt"]
    entry = history.go_to(1)
    assert bool((entry.scene.background.means == 1).all())
    assert entry.scene.capture is scene.capture
    assert entry.scene.extra_tensors == scene.extra_tensors
    assert entry.optimizer_state["step"] == 7
    assert torch.equal(entry.optimizer_state["means"]["exp_avg"], torch.arange(5.0))
    assert torch.equal(entry.optimizer_state["list"][0], torch.ones(2))


def test_the_opened_and_the_shown_entry_never_spill(tools):
    scene, history, written = make(tools, max_bytes=0)
    history.push("a", with_means(scene, 1.0))
    assert written == []
    assert history.opened is scene


def test_an_entry_that_cannot_be_read_back_leaves_the_cursor(tools):
    scene, history, _ = make(tools, max_bytes=0)
    history.push("a", with_means(scene, 1.0))
    history.push("b", with_means(scene, 2.0))

    def broken(path):
        raise OSError("gone")

    history._load = broken
    with pytest.raises(OSError, match="gone"):
        history.go_to(1)
    assert history.cursor == 2


def test_closing_removes_the_spilled_files(tools):
    scene, history, written = make(tools, max_bytes=0)
    for value in (1.0, 2.0):
        history.push("v", with_means(scene, value))
    assert written[0].exists()
    history.close()
    assert not written[0].exists()
