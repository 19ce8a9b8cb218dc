"""Lenses against OpenCV, inverse formulas and, where it is installed, pycolmap in a process of its own."""

import importlib.util
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faithfusion_studio.cameras import Camera
from faithfusion_studio.lens import DISTORTIONS, Lens, lens_of, shown, undistort
from faithfusion_studio.scene import PosedImage

NUMBERS = {
    "SIMPLE_RADIAL": 1, "RADIAL": 2, "OPENCV": 4, "OPENCV_FISHEYE": 4, "FULL_OPENCV": 8, "FOV": 1,
    "SIMPLE_RADIAL_FISHEYE": 1, "RADIAL_FISHEYE": 2, "THIN_PRISM_FISHEYE": 8,
    "RAD_TAN_THIN_PRISM_FISHEYE": 12, "SIMPLE_DIVISION": 1, "DIVISION": 1, "SIMPLE_FISHEYE": 0,
    "FISHEYE": 0, "EUCM": 2, "SIMPLE_PINHOLE": 0, "PINHOLE": 0,
}  # fmt: skip


def parameters(model: str, seed: int) -> tuple[float, ...]:
    g = np.random.default_rng(seed)
    if model == "EUCM":
        return (0.5 + 0.1 * g.random(), 1 + 0.1 * g.random())
    if model == "FOV":
        return (0.5 + 0.3 * g.random(),)
    return tuple(g.normal(size=NUMBERS[model]) * 0.02)


def camera(width: int = 64, height: int = 48, focal: float = 50.0) -> Camera:
    K = torch.tensor([[focal, 0, width / 2 + 0.3], [0, focal * 0.96, height / 2 - 0.2], [0, 0, 1]])
    return Camera(torch.eye(4, dtype=torch.float64), K.double(), width, height)


def test_every_model_is_known_and_keeps_the_axis():
    assert set(DISTORTIONS) == set(NUMBERS)
    for model in DISTORTIONS:
        u, v = Lens(model, parameters(model, 0)).distort(np.zeros(1), np.zeros(1))
        np.testing.assert_allclose([u, v], 0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
@pytest.mark.parametrize("model", ["FULL_OPENCV", "OPENCV", "OPENCV_FISHEYE"])
def test_the_formulas_are_those_of_opencv(model, seed):
    p = parameters(model, seed)
    points = np.random.default_rng(seed).normal(size=(20, 1, 2)) * 0.4
    u, v = Lens(model, p).distort(points[:, 0, 0], points[:, 0, 1])
    if model == "OPENCV_FISHEYE":
        want = cv2.fisheye.distortPoints(points, np.eye(3), np.array(p))[:, 0]
    else:
        spatial = np.concatenate([points[:, 0], np.ones((20, 1))], 1)
        want, _ = cv2.projectPoints(spatial, np.zeros(3), np.zeros(3), np.eye(3), np.array(p))
        want = want[:, 0]
    np.testing.assert_allclose(np.stack([u, v], 1), want, atol=1e-9)


def test_a_division_lens_undoes_its_own_formula():
    u = np.linspace(-0.8, 0.8, 9)
    d, _ = Lens("DIVISION", (-0.3,)).distort(u, np.zeros(9))
    np.testing.assert_allclose(d / (1 - 0.3 * d * d), u, atol=1e-12)


@pytest.mark.parametrize("model", sorted(DISTORTIONS))
def test_the_formulas_are_those_of_pycolmap(model):
    if importlib.util.find_spec("pycolmap") is None:
        pytest.skip("pycolmap is not installed")
    p = parameters(model, 3)
    code = (
        "import json, sys, numpy as np, pycolmap\n"
        "model, given, uv = json.loads(sys.stdin.read())\n"
        "cam = pycolmap.Camera(model=model, width=64, height=48, params=given)\n"
        "print(json.dumps(cam.img_from_cam(np.c_[uv, np.ones(len(uv))]).tolist()))"
    )
    single = model.startswith("SIMPLE") or model in ("RADIAL", "RADIAL_FISHEYE")
    focals = [50.0] if single else [50.0, 48.0]
    uv = (np.random.default_rng(1).normal(size=(20, 2)) * 0.4).tolist()
    call = json.dumps([model, [*focals, 32.0, 24.0, *p], uv])
    done = subprocess.run(
        [sys.executable, "-c", code], input=call, capture_output=True, text=True, check=True
    )
    u, v = Lens(model, p).distort(*np.array(uv).T)
    np.testing.assert_allclose(
        np.stack([focals[0] * u + 32, focals[-1] * v + 24], 1), json.loads(done.stdout), atol=1e-9
    )


def _drawn(lens: Lens | None, view: Camera) -> np.ndarray:
    """A smooth pattern on the plane z = 1, as the lens shows it; computed by inverting per pixel."""
    x, y = np.meshgrid(np.arange(view.width) + 0.5, np.arange(view.height) + 0.5)
    K = view.K.numpy()
    d = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]])
    u = d.copy()
    for _ in range(60 if lens else 0):
        u = u - (np.stack(lens.distort(u[0], u[1])) - d)
    pattern = 0.5 + 0.25 * np.sin(9 * u[0]) + 0.25 * np.cos(7 * u[1])
    return (np.repeat(pattern[..., None], 3, 2) * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("model", ["RADIAL", "OPENCV", "OPENCV_FISHEYE", "EUCM", "FOV"])
def test_a_straightened_photo_is_the_pinhole_picture(model):
    view, lens = camera(), Lens(model, parameters(model, 5))
    straight = undistort(_drawn(lens, view), view, lens)
    seen = shown(view, lens)
    error = np.abs(straight.astype(int) - _drawn(None, view).astype(int)).max(-1)
    assert seen.mean() > 0.7 and np.quantile(error[seen], 0.99) <= 3


def test_a_posed_image_gives_out_the_pinhole_picture_and_masks_what_it_lacks():
    view, lens = camera(), Lens("RADIAL", (0.4, 0.1))
    bent = _drawn(lens, view)
    data = cv2.imencode(".png", bent)[1].tobytes()
    moving = np.zeros((48, 64), np.uint8)
    moving[:, :8] = 255
    frame = PosedImage(
        view, data, dynamic_mask=cv2.imencode(".png", moving)[1].tobytes(), lens=lens
    )
    want = torch.from_numpy(undistort(bent, view, lens)[:, :, ::-1].copy()).float() / 255
    torch.testing.assert_close(frame.image(), want)
    stored = PosedImage(view, frame.encoded())
    assert float((stored.image() - want).abs().mean()) < 0.01
    mask = frame.mask((64, 48))
    assert mask is not None and bool((mask >= torch.from_numpy(~shown(view, lens))).all())
    assert bool(mask[24, 0]) and not bool(mask[24, 32])


def test_zero_coefficients_are_a_pinhole():
    assert lens_of("OPENCV", (0.0, 0.0, 0.0, 0.0)) is None and lens_of("PINHOLE", ()) is None
    assert lens_of("SIMPLE_FISHEYE", ()) == Lens("SIMPLE_FISHEYE", ())
