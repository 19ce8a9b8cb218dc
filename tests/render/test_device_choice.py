"""CUDA that is absent or broken is one sentence and the CPU."""

import sys
import types

import pytest
import torch

from faithfusion_studio.render import device as choosing
from faithfusion_studio.render.device import choose_device, device_name

CPU = torch.device("cpu")


@pytest.fixture
def seemingly_cuda(monkeypatch):
    """A PyTorch that finds a device, and a gsplat whose extension is `load()`; returns a setter of `load`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gsplat, kernels, backend = (types.ModuleType(n) for n in ("gsplat", "cuda", "_backend"))
    gsplat.__version__, gsplat.__path__, gsplat.cuda = "1.5.3", [], kernels
    kernels._backend = backend
    modules = {"gsplat": gsplat, "gsplat.cuda": kernels, "gsplat.cuda._backend": backend}
    modules["triton"] = types.ModuleType("triton")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    def loads(load):
        backend.__class__ = type("Loaded", (types.ModuleType,), {"_C": property(load)})

    loads(lambda self: object())
    return loads


def one_sentence(problem: str | None) -> str:
    assert problem is not None
    assert "\n" not in problem
    assert problem.endswith("; the CPU is used.")
    return problem


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_without_cuda_the_cpu_is_used_and_said_only_when_cuda_was_asked_for() -> None:
    assert choose_device("auto") == choosing.DeviceChoice(CPU)
    assert choose_device("cpu") == choosing.DeviceChoice(CPU)
    choice = choose_device("cuda")
    assert choice.device == CPU
    assert "CUDA" in one_sentence(choice.problem)
    assert choice.name.startswith("CPU (")


def test_a_missing_driver_is_told_apart_from_a_cpu_build(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "nvidia-smi" in one_sentence(choose_device("cuda").problem)


def test_gsplat_is_not_touched_without_cuda(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(choosing, "_require_packages", lambda tell: pytest.fail("touched"))
    assert choose_device("cuda").device == CPU


@pytest.mark.parametrize("package", ["gsplat", "triton"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    monkeypatch, seemingly_cuda, package
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    problem = one_sentence(choose_device("auto").problem)
    assert package in problem
    assert "pip install" in problem


def test_another_gsplat_is_refused(monkeypatch, seemingly_cuda) -> None:
    monkeypatch.setattr(sys.modules["gsplat"], "__version__", "1.6.0")
    assert "1.6.0" in one_sentence(choose_device("auto").problem)


def test_an_extension_that_cannot_be_built_is_one_sentence(seemingly_cuda) -> None:
    def fails(_module):
        raise ImportError("gsplat_cuda.so: cannot open shared object file\nsecond line")

    seemingly_cuda(fails)
    told: list[str] = []
    choice = choose_device("auto", told.append)
    assert choice.device == CPU
    problem = one_sentence(choice.problem)
    assert "cannot open shared object file" in problem
    assert "second line" not in problem
    assert "minutes" in told[0]


def test_a_missing_toolkit_is_one_sentence(seemingly_cuda) -> None:
    seemingly_cuda(lambda _module: None)
    assert "nvcc" in one_sentence(choose_device("auto").problem)


def test_what_gsplat_prints_leaves_standard_output_alone(seemingly_cuda, capsys) -> None:
    def speaks(_module):
        sys.stdout.write("gsplat: No CUDA toolkit found.\n")

    seemingly_cuda(speaks)
    choose_device("auto")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "toolkit" in captured.err


@pytest.mark.parametrize("failure", [RuntimeError("CUDA error: no kernel image\nmore"), OSError()])
def test_a_device_that_fails_at_work_is_one_sentence(monkeypatch, seemingly_cuda, failure) -> None:
    def trial(device):
        if device.type == "cuda":
            raise failure
        return []

    monkeypatch.setattr(choosing, "_trial", trial)
    choice = choose_device("cuda")
    assert choice.device == CPU
    assert "does not work" in one_sentence(choice.problem)


def test_a_device_that_draws_something_else_is_not_used(monkeypatch, seemingly_cuda) -> None:
    monkeypatch.setattr(choosing, "_trial", lambda device: [torch.ones(3) * (device == CPU)])
    assert "another picture" in one_sentence(choose_device("auto").problem)


def test_a_device_that_works_is_used_by_itself(monkeypatch, seemingly_cuda) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(choosing, "_trial", lambda device: [torch.ones(3)])
    choice = choose_device("auto")
    assert choice.device.type == "cuda"
    assert choice.problem is None
    assert choice.name == "A GPU"
    assert choose_device("cpu").device == CPU


def test_the_trial_has_gradients_and_information_to_compare() -> None:
    rgb, alphas, gradient, S, G = choosing._trial(CPU)
    assert all(float(t.abs().max()) > 0 for t in (rgb, alphas, gradient, S, G))
    assert device_name(CPU).endswith("threads")
