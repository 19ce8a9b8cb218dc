"""Windows, letterboxes, and EIG on the grids of latents and tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from faithfusion_studio.repair.clips import (
    Letterbox,
    Window,
    any_per_token,
    crossfade,
    dilated,
    mapped_eig,
    mean_per_token,
    plan_windows,
    soft_keep,
    to_latents,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(2, 60), st.data())
def test_windows_cover_every_frame_and_start_from_made_ones(total, size, data):
    overlap = data.draw(st.integers(1, size - 1))
    windows = plan_windows(total, size, overlap)
    assert windows[0].start == 0 and windows[-1].stop == total
    for before, window in zip(windows, windows[1:], strict=False):
        assert window.stop - window.start == size
        assert window.start < before.stop < window.stop
        assert window.overlap == before.stop - window.start >= overlap


def test_the_official_clip_is_one_window():
    assert plan_windows(49, 49, 9) == (Window(0, 49, 0),)
    assert plan_windows(60, 49, 9) == (Window(0, 49, 0), Window(11, 60, 38))


def test_a_letterbox_keeps_the_shape_and_gives_the_picture_back():
    box = Letterbox(36, 64, 48, 64)
    assert box.inner == (36, 64) and box.padding == (0, 0, 6, 6)
    images = torch.rand(2, 3, 36, 64)
    inside = box.put(images)
    assert inside.shape == (2, 3, 48, 64)
    assert torch.equal(inside[:, :, 0], inside[:, :, 6])
    assert torch.equal(box.take(inside), images)
    wide = Letterbox(31, 53, 480, 720)
    smooth = functional.interpolate(torch.rand(1, 3, 4, 6), (31, 53), mode="bicubic").clamp(0, 1)
    again = wide.take(wide.put(smooth))
    assert again.shape == smooth.shape and float((again - smooth).abs().max()) < 0.02


def test_eig_is_mapped_to_grey_levels_as_released():
    eig = torch.tensor([[[0.0, 0.05, 0.1, 7.0, 0.0999]]])
    coverage = torch.tensor([[[True, True, True, True, True]]])
    grey = mapped_eig(eig, coverage, 0.1)[0, 0]
    assert grey.tolist() == pytest.approx([0, 127 / 255, 1, 1, 254 / 255], abs=1e-6)
    assert float(mapped_eig(eig, ~coverage, 0.1).min()) == 1


def test_a_token_is_extreme_where_any_of_its_latents_is():
    values = torch.zeros(2, 4, 6)
    values[1, 3, 5] = 1.0
    tokens = any_per_token(values > 0.99)
    assert tokens.shape == (12,) and tokens.nonzero().flatten().tolist() == [11]
    assert float(mean_per_token(values)[11]) == 0.25
    maps = torch.arange(9.0)[:, None, None].expand(9, 16, 16)
    assert to_latents(maps, 3, 2, 2)[:, 0, 0].tolist() == [0.0, 3.0, 6.0]


def test_kept_latents_follow_eig():
    made, kept = torch.ones(4), torch.zeros(4)
    eig = torch.tensor([0.0, 0.05, 0.1, 0.9])
    assert soft_keep(made, kept, eig).tolist() == pytest.approx([0, 0.5, 1, 1])


def test_fading_and_growing():
    fade = crossfade(torch.zeros(3, 2, 2, 3), torch.ones(3, 2, 2, 3))
    assert fade[:, 0, 0, 0].tolist() == [0.25, 0.5, 0.75]
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 4, 4] = True
    assert int(dilated(mask, 2).sum()) == 25
