"""Repair of degraded novel views: one contract (`base`), several engines (`registry`), one gate (`gated`)."""

from typing import Any

_HOMES = {
    "MissingWeightsError": "base",
    "LicenceError": "model_store",
    "PixelProvenance": "base",
    "REPAIRERS": "registry",
    "FrameRepair": "base",
    "Reference": "base",
    "RepairBatch": "base",
    "RepairBudget": "base",
    "RepairError": "base",
    "RepairResult": "base",
    "Repairer": "base",
    "RepairerInfo": "base",
    "RepairStep": "base",
    "WarpFeatures": "base",
    "create_repairer": "registry",
    "repair_batch": "gated",
    "repair_frames": "gated",
    "repair_steps": "gated",
    "GateConfig": "gate",
    "Bridge": "eigent_network",
    "CascadeRepairer": "cascade",
    "EigentTinyRepairer": "eigent_tiny",
    "SamplingConfig": "eigent_tiny",
    "load_eigent": "eigent_weights",
    "save_eigent": "eigent_weights",
    "anchor_depth": "depth_repair",
    "Refiner": "refiner_network",
    "RefinerRepairer": "refiner",
    "load_refiner": "refiner_weights",
    "save_refiner": "refiner_weights",
    "ReprojectionConfig": "reprojection",
    "ReprojectionRepairer": "reprojection",
    "select_references": "reprojection",
}
__all__ = [
    "Bridge",
    "CascadeRepairer",
    "EigentTinyRepairer",
    "SamplingConfig",
    "load_eigent",
    "save_eigent",
    "FrameRepair",
    "GateConfig",
    "LicenceError",
    "MissingWeightsError",
    "PixelProvenance",
    "REPAIRERS",
    "Refiner",
    "RefinerRepairer",
    "Reference",
    "RepairBatch",
    "RepairBudget",
    "RepairError",
    "RepairResult",
    "Repairer",
    "RepairStep",
    "RepairerInfo",
    "ReprojectionConfig",
    "ReprojectionRepairer",
    "WarpFeatures",
    "anchor_depth",
    "create_repairer",
    "load_refiner",
    "repair_batch",
    "repair_frames",
    "repair_steps",
    "save_refiner",
    "select_references",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
