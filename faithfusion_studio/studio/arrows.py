"""Arrows along three axes and a ring about the up axis, with which something is moved and turned by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.studio.view_state import View
from faithfusion_studio.transforms import quat_to_rotmat, rotmat_to_quat

LEAST_SHIFT, LEAST_TURN = 1e-3, 1e-3
"""m and rad; a smaller movement of the arrows was none."""
Moved: TypeAlias = Callable[[tuple[float, float, float], float], None]


class Arrows:
    """The arrows of one kind of thing in one client.

    Args:
        scene: viser's scene of the client.
        view: Where a failure is told.
        name: Of the nodes in viser's scene, beginning with a slash.
        moved: Called once an arrow or the ring comes to rest, with the shift in the world (m) and the turn
            about the thing's own up axis (rad, counter-clockwise from above).
    """

    def __init__(self, scene: Any, view: View, name: str, moved: Moved) -> None:
        self._scene, self._view, self._name, self._moved = scene, view, name, moved
        self._handles: tuple[Any, ...] = ()
        self._grabbed = False
        self._place: Float[Tensor, "4 4"] | None = None

    @property
    def handles(self) -> tuple[Any, ...]:
        """The arrows and the ring; none while nothing is to be moved."""
        return self._handles

    def show(self, pose: Float[Tensor, "4 4"] | None) -> None:
        """Stand at a pose (thing -> world), or be gone; while somebody drags they stay in the hand."""
        if pose is None:
            for handle in self._handles:
                handle.remove()
            self._handles, self._grabbed = (), False
            return
        self._place = pose
        if not self._handles:
            self._handles = self._new()
            for handle in self._handles:
                handle.on_update(self._view.guarded(self.dragged))
        if not self._grabbed:
            for handle in self._handles:
                put(handle, pose.numpy())

    def _new(self) -> tuple[Any, Any]:
        """Arrows along the three axes, and a ring that turns about the up axis only."""
        add = self._scene.add_transform_controls
        look = {"line_width": 4.0, "depth_test": False}
        return (
            add(
                f"{self._name}_arrows",
                scale=1.6,
                disable_rotations=True,
                disable_sliders=True,
                **look,
            ),
            add(
                f"{self._name}_ring",
                scale=2.2,
                active_axes=(True, True, False),
                disable_axes=True,
                disable_sliders=True,
                **look,
            ),
        )

    def dragged(self, event: Any) -> None:
        """Once an arrow or the ring comes to rest, say so."""
        self._grabbed = event.phase != "end"
        if self._grabbed or not self._handles or self._place is None:
            return
        shift, yaw = movement(self._place, event.target.position, event.target.wxyz)
        if math.hypot(*shift) < LEAST_SHIFT and abs(yaw) < LEAST_TURN:
            put(event.target, self._place.numpy())
            return
        self._moved(shift, yaw)


def movement(
    before: Float[Tensor, "4 4"], position: Any, wxyz: Any
) -> tuple[tuple[float, float, float], float]:
    """Shift in the world (m) and turn about the thing's up axis (rad) from a pose to another one."""
    shift = np.asarray(position, dtype=np.float64) - before[:3, 3].numpy()
    after = quat_to_rotmat(torch.tensor(np.asarray(wxyz), dtype=torch.float64))
    turn = before[:3, :3].T @ after
    yaw = math.atan2(float(turn[1, 0] - turn[0, 1]), float(turn[0, 0] + turn[1, 1]))
    return (float(shift[0]), float(shift[1]), float(shift[2])), yaw


def put(handle: Any, pose: np.ndarray) -> None:
    """Move something of viser's scene, where it is not there already."""
    wxyz = rotmat_to_quat(torch.from_numpy(np.ascontiguousarray(pose[:3, :3]))).numpy()
    if not np.allclose(handle.position, pose[:3, 3], atol=1e-5):
        handle.position = pose[:3, 3]
    if not np.allclose(handle.wxyz, wxyz, atol=1e-6):
        handle.wxyz = wxyz
