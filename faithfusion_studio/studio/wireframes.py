"""Lines in viser's scene that are made, moved and taken away as what is wanted changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from faithfusion_studio.studio.arrows import put


class Wire(NamedTuple):
    """Line segments in a frame of their own."""

    segments: np.ndarray
    """[K, 2, 3], m."""
    color: tuple[int, int, int]
    width: float
    """Pixels of the screen."""
    pose: np.ndarray
    """[4, 4], frame of the segments -> world."""


class Wireframes:
    """The lines of one kind in one client.

    Args:
        scene: viser's scene of the client.
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self._shown: dict[str, tuple[tuple[object, ...], Any]] = {}

    @property
    def names(self) -> set[str]:
        """Of what is shown."""
        return set(self._shown)

    def show(self, wanted: Mapping[str, Wire]) -> None:
        """Show these lines, by name of their nodes in viser's scene, and no others."""
        for name in set(self._shown) - set(wanted):
            self._shown.pop(name)[1].remove()
        for name, (segments, color, width, pose) in wanted.items():
            look = (segments.tobytes(), color, width)
            known = self._shown.get(name)
            if known is None or known[0] != look:
                handle = self._scene.add_line_segments(
                    name, segments, colors=color, thickness=width, thickness_units="screen"
                )
                known = self._shown[name] = (look, handle)
            put(known[1], pose)


def edges(size: tuple[float, ...]) -> np.ndarray:
    """The twelve edges of a box about the origin, and a mark on the middle of its front, [K, 2, 3], m."""
    half = np.array(size, dtype=np.float32) / 2
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
    pairs = [
        (signs[i] * half, signs[j] * half)
        for i in range(8)
        for j in range(i + 1, 8)
        if np.abs(signs[i] - signs[j]).sum() == 2
    ]
    x, y, z = half.tolist()
    tip = np.array([x, 0.0, -z], np.float32)
    pairs += [(np.array([0.5 * x, s * y, -z], np.float32), tip) for s in (-0.6, 0.6)]
    return np.stack([np.stack(pair) for pair in pairs])
