"""What the recorded views say about every Gaussian, and how uncertain each pixel of a new view is."""

from typing import Any

_HOMES = {
    "FisherPrior": "prior",
    "MissingFisherError": "prior",
    "StaleFisherError": "prior",
    "FisherAccumulator": "fisher",
    "accumulate_fisher": "fisher",
    "add_views": "fisher",
    "follow_topology": "fisher",
    "recorded_fisher": "fisher",
    "EigForm": "eig",
    "EigMap": "eig",
    "eig_map": "eig",
    "predicted_std": "eig",
    "Explanation": "explain",
    "explain_pixel": "explain",
    "learned_nats": "learned",
    "ViewGain": "next_view",
    "expected_gains": "next_view",
    "Calibration": "calibration",
    "Regions": "regions",
    "smoothed_value": "regions",
    "split_regions": "regions",
}
__all__ = [
    "Calibration",
    "EigForm",
    "EigMap",
    "Explanation",
    "FisherAccumulator",
    "FisherPrior",
    "MissingFisherError",
    "Regions",
    "StaleFisherError",
    "ViewGain",
    "accumulate_fisher",
    "add_views",
    "eig_map",
    "expected_gains",
    "explain_pixel",
    "follow_topology",
    "learned_nats",
    "predicted_std",
    "recorded_fisher",
    "smoothed_value",
    "split_regions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
