"""Recordings written for other tools, read back by our readers and checked against the stored poses."""

import json

import numpy as np
import pytest
import torch
from io_samples import a_capture, cameras, encoded_image

from faithfusion_studio.io import load_capture, write_colmap, write_transforms_json
from faithfusion_studio.io.capture_files import CaptureError
from faithfusion_studio.lens import Lens
from faithfusion_studio.scene import PosedImage

WRITERS = {"colmap": write_colmap, "transforms.json": write_transforms_json}


@pytest.fixture(params=sorted(WRITERS))
def writer(request):
    return WRITERS[request.param]


@pytest.mark.parametrize("names", [("",), ("left", "right")])
def test_poses_lenses_images_and_points_come_back(tmp_path, writer, names):
    capture = a_capture(4, names=names)
    writer(capture, tmp_path)
    again = load_capture(tmp_path)
    assert len(again) == 4 and again.camera_names == list(names)
    for before, after in zip(capture.frames, again.frames, strict=True):
        torch.testing.assert_close(
            after.camera.camtoworld, before.camera.camtoworld, rtol=0, atol=1e-12
        )
        torch.testing.assert_close(after.camera.K, before.camera.K, rtol=0, atol=1e-12)
        assert after.camera.time == pytest.approx(before.camera.time)
        assert after.encoded() == before.encoded()
    torch.testing.assert_close(again.points.xyz, capture.points.xyz)
    assert torch.equal(again.points.rgb, capture.points.rgb)


def test_a_bent_photo_is_written_straight(tmp_path, writer):
    capture = a_capture(2)
    lens = Lens("RADIAL", (0.2, 0.0))
    bent = [
        PosedImage(f.camera, encoded_image(seed=i, suffix=".png"), f.name, lens=lens)
        for i, f in enumerate(capture.frames)
    ]
    from dataclasses import replace

    writer(replace(capture, frames=tuple(bent)), tmp_path)
    again = load_capture(tmp_path)
    assert all(frame.lens is None for frame in again.frames)
    written = again.frames[0].encoded()
    assert written == bent[0].encoded() != bent[0].data


def test_opengl_axes_as_nerfstudio_defines_them(tmp_path):
    capture = a_capture(2)
    write_transforms_json(capture, tmp_path)
    frame = json.loads((tmp_path / "transforms.json").read_text())["frames"][0]
    pose, want = np.array(frame["transform_matrix"]), cameras(2)[0].camtoworld.numpy()
    np.testing.assert_allclose(pose[:3, 0], want[:3, 0])
    np.testing.assert_allclose(pose[:3, 1:3], -want[:3, 1:3])
    np.testing.assert_allclose(pose[:3, 3], want[:3, 3])


def test_a_place_that_cannot_be_written_is_said(tmp_path, writer):
    (tmp_path / "images").write_text("in the way")
    with pytest.raises(CaptureError, match="cannot be made"):
        writer(a_capture(2), tmp_path)
