"""Pictures go before work in the background, and never stop it."""

import threading
import time

import pytest
import torch

from faithfusion_studio.render import priority
from faithfusion_studio.render.cpu import _work
from faithfusion_studio.render.priority import background, foreground, give_way


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_pass_in_the_background_begins_when_the_picture_is_done(monkeypatch):
    monkeypatch.setattr(priority, "PATIENCE", 60.0)
    began = threading.Event()

    def job():
        with background():
            _work()  # what every pass of the core asks first
        began.set()

    with foreground(), foreground():
        thread = in_thread(job)
        assert not began.wait(0.1)
    assert began.wait(10.0)
    thread.join(10.0)


def test_many_pictures_in_a_row_do_not_stop_the_background(monkeypatch):
    monkeypatch.setattr(priority, "PATIENCE", 0.02)
    with foreground(), background():
        start = time.monotonic()
        give_way()
    assert time.monotonic() - start >= 0.02


def test_only_threads_in_the_background_wait(monkeypatch):
    monkeypatch.setattr(priority, "PATIENCE", 60.0)
    start = time.monotonic()
    with foreground():
        give_way()
    with background():
        give_way()  # nobody draws
    with foreground():
        give_way()  # left again
    assert time.monotonic() - start < 30


def test_the_backward_pass_gives_way_too(monkeypatch):
    from faithfusion_studio.render import cpu
    from faithfusion_studio.render.rasterization import rasterization

    asked = []
    means = torch.tensor([[0.0, 0.0, 3.0]], requires_grad=True)
    one = torch.ones(1)
    image, _, _ = rasterization(
        means,
        torch.tensor([[1.0, 0, 0, 0]]),
        0.3 * torch.ones(1, 3),
        0.5 * one,
        torch.ones(1, 3),
        torch.eye(4)[None],
        torch.tensor([[[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]]),
        16,
        16,
    )
    monkeypatch.setattr(cpu, "give_way", lambda: asked.append(1))
    image[..., :4, 0].sum().backward()
    assert asked


def test_an_error_in_a_picture_frees_the_background(monkeypatch):
    monkeypatch.setattr(priority, "PATIENCE", 60.0)
    with pytest.raises(ValueError), foreground():
        raise ValueError
    with background():
        give_way()
