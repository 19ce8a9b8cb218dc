"""A short repair leaves alone what other recorded frames show best."""

import torch
from fusion import test_trainer
from fusion.test_trainer import FAST, damaged  # noqa: F401 (a fixture)
from fusion.worlds import drive_camera, tiny_world

from faithfusion_studio.fusion import trainer
from faithfusion_studio.fusion.reach import shown_best_elsewhere
from faithfusion_studio.fusion.trainer import Trainer


def test_the_frame_that_has_a_point_in_its_picture_from_closest_owns_it():
    cameras = [drive_camera(float(x)) for x in (0, 5, 10)]
    means = torch.tensor([[3.0, 0, 1], [8.0, 0, 1], [20.0, 0, 1], [-9.0, 0, 1]])
    elsewhere = shown_best_elsewhere(means, cameras, near={0})
    assert elsewhere.tolist() == [False, True, True, False]
    assert shown_best_elsewhere(means, cameras, {0, 1, 2}).tolist() == [False] * 4
    assert shown_best_elsewhere(means, (), set()).tolist() == [False] * 4


def test_what_later_frames_show_best_stays_bit_for_bit(damaged, monkeypatch):  # noqa: F811
    """Kept from a bug: four repaired frames cost the far end of the shipped street 10 dB."""
    monkeypatch.setattr(trainer, "MARGIN", 1)
    frames = test_trainer._frames(damaged, tiny_world(), count=2)
    running = Trainer(damaged, frames, steps=12, config=FAST)
    cameras = damaged.capture.trajectory.cameras
    far = shown_best_elsewhere(damaged.background.means, cameras, {1, 2, 3, 4})
    assert 50 < int(far.sum()) < len(far) - 50
    progress = list(running.run())
    learned, before = running.scene().background, damaged.background
    for name in ("means", "log_scales", "quats", "logit_opacities", "sh0"):
        old, new = getattr(before, name), getattr(learned, name)[: len(before)]
        assert torch.equal(old[far], new[far]), name
        assert not torch.equal(old[~far], new[~far]), name
    assert all(p.psnr_recorded == p.psnr_recorded for p in progress[-1:])
