"""Where the large engines run: the device, its number format, and giving the memory back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from faithfusion_studio.repair.base import RepairBatch


def engine_device(batch: RepairBatch) -> torch.device:
    """The device a batch asks for."""
    return torch.device(batch.budget.device)


def engine_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU; float32 on the CPU, where half precision is slow and inexact."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@contextmanager
def released(*modules: nn.Module) -> Iterator[None]:
    """On leaving, however that happens, the modules are on the CPU and the GPU's memory is free."""
    try:
        yield
    finally:
        for module in modules:
            if next(module.parameters()).is_cuda:
                module.to("cpu")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def free_vram_gib(device: torch.device | str) -> float | None:
    """Free memory of a GPU, GiB; None for the CPU."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] / 2**30


def teraflops(device: str) -> float:
    """What large networks were seen to reach, 1e12 operations/s: bf16 on a GPU, two CPU cores."""
    return 60.0 if device.startswith("cuda") else 0.1
