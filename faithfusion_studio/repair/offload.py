"""Fitting a large model into a GPU: which parts are there when, and how much memory that takes.

The memory stated is estimated from counted parameters and activations; none of it was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from faithfusion_studio.repair.base import RepairError
from faithfusion_studio.repair.devices import free_vram_gib

Profile = Literal["auto", "whole", "parts", "blocks"]
"""whole: everything stays on the GPU. parts: networks and autoencoder take turns, the autoencoder in
tiles. blocks: also the trunk's blocks come one after the other, which is several times slower."""


@dataclass(frozen=True)
class Memory:
    """GPU memory of one engine by profile, GiB, estimated."""

    whole: float
    parts: float
    blocks: float


def choose_profile(wanted: Profile, memory: Memory, device: torch.device) -> Profile:
    """The fastest profile that fits into what is free; on the CPU everything stays where it is.

    Raises:
        RepairError: Not even the smallest fits.
    """
    free = free_vram_gib(device)
    if free is None:
        return "whole" if wanted == "auto" else wanted
    if wanted != "auto":
        return wanted
    for profile in ("whole", "parts", "blocks"):
        if getattr(memory, profile) <= free:
            return profile
    raise RepairError(
        f"this engine needs {memory.blocks:.0f} GiB of GPU memory at least and {free:.1f} GiB are "
        "free; close other programs on the GPU, or choose another engine."
    )


@contextmanager
def on_device(profile: Profile, device: torch.device, *modules: nn.Module) -> Iterator[None]:
    """Inside, modules are on the device; on leaving they make room again unless the profile is whole."""
    for module in modules:
        module.to(device)
    try:
        yield
    finally:
        if profile != "whole" and device.type != "cpu":
            for module in modules:
                module.to("cpu")
            if device.type == "cuda":
                torch.cuda.empty_cache()


@contextmanager
def visiting(
    profile: Profile, device: torch.device, trunk: nn.Module, blocks: nn.ModuleList
) -> Iterator[None]:
    """`on_device` for a trunk whose blocks, in the profile blocks, are there only while they compute."""
    if profile != "blocks":
        with on_device(profile, device, trunk):
            yield
        return
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in trunk.modules():
        if id(module) not in inside:
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(device)
    handles = []
    for block in blocks:
        handles.append(block.register_forward_pre_hook(_arrive(device)))
        handles.append(block.register_forward_hook(_leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        trunk.to("cpu")


def _arrive(device: torch.device) -> Any:
    def hook(block: nn.Module, _inputs: Any) -> None:
        block.to(device)

    return hook


def _leave(block: nn.Module, _inputs: Any, _output: Any) -> None:
    block.to("cpu")
