"""The repair engines by name."""

from __future__ import annotations

from collections.abc import Callable

from faithfusion_studio.repair.base import Repairer, RepairError


def _reprojection() -> Repairer:
    from faithfusion_studio.repair.reprojection import ReprojectionRepairer

    return ReprojectionRepairer()


def _refiner() -> Repairer:
    from faithfusion_studio.repair.refiner import RefinerRepairer

    return RefinerRepairer()


def _eigent_tiny() -> Repairer:
    from faithfusion_studio.repair.eigent_tiny import EigentTinyRepairer

    return EigentTinyRepairer()


def _eigent_tiny_rvc() -> Repairer:
    from faithfusion_studio.repair.eigent_tiny import TWO_STEPS, EigentTinyRepairer

    return EigentTinyRepairer(config=TWO_STEPS)


def _cascade() -> Repairer:
    from faithfusion_studio.repair.cascade import CascadeRepairer

    return CascadeRepairer()


def _difix() -> Repairer:
    from faithfusion_studio.repair.difix import load_difix

    return load_difix()


def _eigent_vace() -> Repairer:
    from faithfusion_studio.repair.eigent_vace import load_eigent_vace

    return load_eigent_vace()


def _eigent_cogvideox() -> Repairer:
    from faithfusion_studio.repair.eigent_cogvideox import load_cogvideox

    return load_cogvideox()


REPAIRERS: dict[str, Callable[[], Repairer]] = {
    "reprojection": _reprojection,
    "refiner": _refiner,
    "eigent-tiny": _eigent_tiny,
    "eigent-tiny-rvc": _eigent_tiny_rvc,
    "cascade": _cascade,
    "difix": _difix,
    "eigent-vace": _eigent_vace,
    "eigent-cogvideox": _eigent_cogvideox,
}
"""Engines by name; calling the value loads the engine."""


def create_repairer(name: str) -> Repairer:
    """The engine with this name, loaded.

    Raises:
        RepairError: No engine has this name.
        MissingWeightsError: It needs weights that are not here.
    """
    if name not in REPAIRERS:
        known = ", ".join(sorted(REPAIRERS))
        raise RepairError(f'there is no repair engine called "{name}"; choose one of: {known}.')
    return REPAIRERS[name]()
