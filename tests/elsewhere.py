"""A device that is not the CPU, on a machine that has no other: its tensors compute, and refuse to mix.

They call themselves `meta`, the one device beside the CPU that every PyTorch has, but hold numbers. Everything
around the kernels can so be executed, backward pass included: a tensor left behind on the CPU, one created
there, or a `.numpy()` without `.cpu()` raises, as it would with CUDA.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from faithfusion_studio.render import chain, cpu, one_view, rasterization
from faithfusion_studio.render.rasterization import RasterizationMeta, ScreenQuantities

ELSEWHERE = torch.device("meta")
COPIES = ("aten::copy_", "aten::_to_copy")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class Elsewhere(torch.Tensor):
    """A CPU tensor behind the face of one on another device."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> "Elsewhere":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=ELSEWHERE,
        )

    def __init__(self, host: Tensor) -> None:
        self.host = host

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.host})"

    def numpy(self, **options: Any):
        raise TypeError("can't convert a tensor on another device to numpy; use .cpu() first")

    def tolist(self) -> Any:
        return self.host.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees what is created from nothing."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def to_host(value: Any) -> Any:
    """The CPU tensor behind one that is elsewhere; anything else unchanged."""
    return value.host if isinstance(value, Elsewhere) else value


def _check(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether anything is elsewhere; raises where CUDA would refuse the mixture."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    away = [t for t in tensors if isinstance(t, Elsewhere)]
    here = [t for t in tensors if not isinstance(t, Elsewhere) and t.ndim > 0]
    if any(t.device == ELSEWHERE for t in tensors if not isinstance(t, Elsewhere)):
        # PyTorch makes these itself, from a list used as an index; the real device would copy it over.
        raise RuntimeError(f"{name}: an index or value was given as a list; make a tensor of it")
    indexed = name in INDEXED and isinstance(args[0], Elsewhere)
    if away and here and name not in COPIES and not indexed:
        shapes = [tuple(t.shape) for t in here]
        raise RuntimeError(f"{name}: tensors of shape {shapes} are on the CPU, others are not")
    return bool(away)


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    name = func._schema.name
    away = _check(name, args, kwargs)
    asked = kwargs.get("device")
    if asked is not None:
        away = torch.device(asked) == ELSEWHERE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    with _disable_current_modes():
        result = func(*tree_map(to_host, args), **tree_map(to_host, kwargs))
    if func._schema.is_mutable:
        if "out" in kwargs:
            return kwargs["out"]
        if name.endswith("_"):
            return args[0] if result is not None else None
    return tree_map(lambda v: Elsewhere(v) if isinstance(v, Tensor) and away else v, result)


@contextmanager
def elsewhere(monkeypatch, backend: Any = None) -> Iterator[torch.device]:
    """Inside, this device computes; `backend` rasterises there, or the CPU core by copies."""
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        """`torch.tensor` would make a real meta tensor, before the mode sees it."""
        made = make(data, **options)
        return made if device is None else made.to(device)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"],
        "_get_fused_kernels_supported_devices",
        lambda: ["cpu", ELSEWHERE.type],
    )
    choose, chosen = rasterization.backend, backend or Backend
    for module in (rasterization, chain, one_view):
        monkeypatch.setattr(
            module, "backend", lambda device: chosen if device == ELSEWHERE else choose(device)
        )
    with _Mode():
        yield ELSEWHERE


class _AwayMeta(RasterizationMeta):
    """A meta of the CPU core, seen from the other device."""

    def __init__(self, inner: RasterizationMeta) -> None:
        self.inner = inner
        self.width, self.height, self.device = inner.width, inner.height, ELSEWHERE
        self.backgrounds = None if inner.backgrounds is None else inner.backgrounds.to(ELSEWHERE)

    @property
    def screen(self) -> ScreenQuantities:
        moved = {f.name: getattr(self.inner.screen, f.name) for f in fields(ScreenQuantities)}
        return ScreenQuantities(**{name: t.to(ELSEWHERE) for name, t in moved.items()})

    @property
    def grad_means2d(self) -> Tensor:
        return self.inner.grad_means2d.to(ELSEWHERE)

    @property
    def absgrad(self) -> Tensor:
        return self.inner.absgrad.to(ELSEWHERE)


class Backend:
    """The CPU core as the backend of the other device; gradients flow through the copies."""

    @staticmethod
    def rasterization(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, RasterizationMeta]:
        def fetch(value: Any) -> Any:
            return value.cpu() if isinstance(value, Tensor) else value

        given = tree_map(fetch, (args, kwargs))
        rendered, alphas, meta = cpu.rasterization(*given[0], **given[1])
        return rendered.to(ELSEWHERE), alphas.to(ELSEWHERE), _AwayMeta(meta)

    @staticmethod
    def accumulate_information(meta: Any, weight: Tensor, backgrounds: Tensor | None) -> Tensor:
        behind = None if backgrounds is None else backgrounds.cpu()
        return cpu.accumulate_information(meta.inner, weight.cpu(), behind).to(ELSEWHERE)

    @staticmethod
    def evaluate_information(meta: Any, covariances: Tensor, backgrounds: Tensor | None) -> Tensor:
        behind = None if backgrounds is None else backgrounds.cpu()
        return cpu.evaluate_information(meta.inner, covariances.cpu(), behind).to(ELSEWHERE)

    @staticmethod
    def evaluate_trace(meta: Any, covariances: Tensor, backgrounds: Tensor | None) -> Tensor:
        return Backend.evaluate_information(meta, covariances, backgrounds)[
            ..., torch.tensor([0, 3, 5], device=ELSEWHERE)
        ].sum(-1)

    @staticmethod
    def visible_gaussians(meta: Any) -> Tensor:
        return cpu.visible_gaussians(meta.inner).to(ELSEWHERE)

    @staticmethod
    def last_positions(meta: Any) -> Tensor:
        return cpu.last_positions(meta.inner).to(ELSEWHERE)
