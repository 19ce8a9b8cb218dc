"""Which device draws and learns: CUDA where all of it works, the CPU otherwise, with the reason in one sentence."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

Device = Literal["auto", "cpu", "cuda"]
EXTRA = "pip install 'faithfusion-studio[cuda]'"


class _UnusableError(Exception):
    """Why CUDA cannot be used."""


@dataclass(frozen=True)
class DeviceChoice:
    """Where to put a scene."""

    device: torch.device
    problem: str | None = None
    """Why CUDA is not used although it was asked for or is there, one sentence; None otherwise."""

    @property
    def name(self) -> str:
        """For people."""
        return device_name(self.device)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU with its kind and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU ({platform.machine()}), {count} threads"


def choose_device(
    asked: Device = "auto", tell: Callable[[str], None] = lambda line: None
) -> DeviceChoice:
    """CUDA where it is there and a small picture with its information comes out right, else the CPU.

    Args:
        asked: "auto" takes CUDA where it works and is silent where there is none; "cuda" says why not.
        tell: Hears that something takes long: gsplat compiles its kernels when it is first used.
    """
    cpu = torch.device("cpu")
    if asked == "cpu":
        return DeviceChoice(cpu)
    if not torch.cuda.is_available():
        # Asked before gsplat is touched, which would try to compile without a device to run on.
        return DeviceChoice(cpu, f"{_absent()}; the CPU is used." if asked == "cuda" else None)
    device = torch.device("cuda", 0)
    try:
        with redirect_stdout(sys.stderr):  # gsplat speaks on standard output
            _require_packages(tell)
            _try(device)
    except _UnusableError as problem:
        return DeviceChoice(cpu, f"{problem}; the CPU is used.")
    return DeviceChoice(device)


def _absent() -> str:
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return "PyTorch finds no CUDA device, so check the driver with nvidia-smi"


def _require_packages(tell: Callable[[str], None]) -> None:
    try:
        import gsplat
        import triton  # noqa: F401
    except ImportError as error:
        raise _UnusableError(f"{error.name} is not installed, so run {EXTRA}") from error
    if not gsplat.__version__.startswith("1.5."):
        raise _UnusableError(f"found gsplat {gsplat.__version__} but expected 1.5, so run {EXTRA}")
    if find_spec("gsplat.csrc") is None:
        tell("gsplat compiles its CUDA kernels when it is first used, which takes a few minutes.")
    try:
        from gsplat.cuda import _backend

        extension = _backend._C  # type: ignore[attr-defined]
    except Exception as error:  # whatever a compiler and a loader can come up with
        raise _UnusableError(
            f"gsplat's CUDA kernels cannot be built ({_first_line(error)})"
        ) from error
    if extension is None:
        raise _UnusableError("gsplat's CUDA kernels need the CUDA toolkit (nvcc), which is missing")


def _try(device: torch.device) -> None:
    """Draw two Gaussians with gradients and information there and on the CPU, and compare."""
    try:
        found, expected = _trial(device), _trial(torch.device("cpu"))
    except (
        Exception
    ) as error:  # drivers, compilers and kernels fail in many ways, none of them ours
        raise _UnusableError(f"CUDA does not work here ({_first_line(error)})") from error
    for a, b in zip(found, expected, strict=True):
        if not torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(b.abs().max())):
            raise _UnusableError("CUDA draws another picture than the CPU")


def _trial(device: torch.device) -> list[torch.Tensor]:
    from faithfusion_studio.render.rasterization import (
        accumulate_information,
        evaluate_information,
        rasterization,
    )

    means = torch.tensor([[0.0, 0.0, 3.0], [0.1, 0.1, 4.0]], device=device, requires_grad=True)
    K = [[20.0, 0.0, 12.0], [0.0, 20.0, 12.0], [0.0, 0.0, 1.0]]
    rgb, alphas, meta = rasterization(
        means,
        torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2, device=device),
        torch.full((2, 3), 0.3, device=device),
        torch.full((2,), 0.7, device=device),
        torch.full((2, 1, 3), 0.4, device=device),
        torch.eye(4, device=device)[None],
        torch.tensor([K], device=device),
        24,
        24,
        sh_degree=0,
    )
    rgb.square().sum().backward()
    S = accumulate_information(meta, torch.ones(1, 24, 24, device=device))
    G = evaluate_information(meta, S)
    assert means.grad is not None
    return [t.detach().cpu() for t in (rgb, alphas, means.grad, S, G)]


def _first_line(error: Exception) -> str:
    words = " ".join(str(error).split("\n", maxsplit=1)[0].split())
    return words[:160] or type(error).__name__
