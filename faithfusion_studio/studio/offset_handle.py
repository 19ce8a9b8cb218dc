"""The arrow on the road ahead of the ego: dragged sideways, it sets the lateral offset."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from faithfusion_studio.cameras import Trajectory
from faithfusion_studio.studio.keys import snapped
from faithfusion_studio.studio.lens import ClientPose
from faithfusion_studio.studio.scene_graph import LIFT, SHOWN_COLOR, ground
from faithfusion_studio.studio.view_state import View, ViewState
from faithfusion_studio.transforms import quat_to_rotmat, rotmat_to_quat

AHEAD = 12.0
"""Distance of the arrow before the ego, so that it lies above the timeline in the picture, m."""


@dataclass(frozen=True)
class Grab:
    """What a drag began with. The camera follows the offset, so later rays are those of this pose."""

    pose: ClientPose
    point: tuple[float, float, float]
    """Where the arrow was taken, world, m."""
    left: tuple[float, float, float]
    """Unit vector to the left of the ego, world."""
    offset: float
    """Lateral offset at that moment, m."""

    def offset_at(self, screen: tuple[float, float]) -> float:
        """Offset for a pointer position (0..1 from the top left): as far as the grabbed point moved.

        Args:
            screen: On the plane through the grabbed point that faces the camera.
        """
        rotation = quat_to_rotmat(torch.tensor(self.pose.wxyz, dtype=torch.float64)).numpy()
        centre, point = np.array(self.pose.position), np.array(self.point)
        depth = float((point - centre) @ rotation[:, 2])
        half = math.tan(self.pose.fov / 2)
        aspect = self.pose.width / self.pose.height
        ray = np.array([(2 * screen[0] - 1) * half * aspect, (2 * screen[1] - 1) * half, 1.0])
        moved = centre + depth * (rotation @ ray) - point
        return self.offset + float(moved @ np.array(self.left))


class OffsetHandle:
    """The arrow of one client; the timeline, the keys and it are the same value of the view.

    Args:
        scene: viser's scene of the client.
        pose: Gives the client's newest camera.
        view: What it sets.
    """

    def __init__(self, scene: Any, pose: Callable[[], ClientPose | None], view: View) -> None:
        self._scene, self._pose, self._view = scene, pose, view
        self._node: Any = None
        self._left = (0.0, 1.0, 0.0)
        self._grab: Grab | None = None
        self._wanted = 0.0
        self._applying = threading.Lock()

    def update(self, state: ViewState, shown: Trajectory | None) -> None:
        """Put the arrow before the ego of the shown frame."""
        visible = state.show_paths and shown is not None and state.compare != "side"
        if shown is None or not len(shown):
            visible = False
        else:
            index = min(state.frame, len(shown) - 1)
            axes = shown.ego_to_worlds[index, :3, :3]
            self._left = tuple(axes[:, 1].tolist())
            place = ground(shown)[index] + (AHEAD * axes[:, 0] + LIFT * axes[:, 2]).numpy()
            self._put(place, rotmat_to_quat(axes).numpy())
        if self._node is not None and self._node.visible != visible:
            self._node.visible = visible

    def _put(self, place: np.ndarray, wxyz: np.ndarray) -> None:
        if self._node is None:
            vertices, faces = double_arrow()
            self._node = self._scene.add_mesh_simple(
                "/offset_handle",
                vertices,
                faces,
                color=SHOWN_COLOR,
                opacity=0.85,
                side="double",
                cast_shadow=False,
                receive_shadow=False,
                position=place,
                wxyz=wxyz,
            )
            self._node.on_drag("left")(self._dragged)
            return
        if not np.allclose(self._node.position, place, atol=1e-4):
            self._node.position = place
        if not np.allclose(self._node.wxyz, wxyz, atol=1e-5):
            self._node.wxyz = wxyz

    async def _dragged(self, event: Any) -> None:
        """In viser's event loop, which keeps the order; the view is set in a thread, newest wins."""
        if event.phase == "start":
            pose = self._pose()
            if pose is not None:
                offset = self._view.get().offset
                self._grab = Grab(pose, tuple(event.start_position), self._left, offset)
            return
        if self._grab is None:
            return
        self._wanted = snapped(self._grab.offset_at(event.end_screen_pos))
        if event.phase == "end":
            self._grab = None
        asyncio.get_running_loop().run_in_executor(None, self._apply)

    def _apply(self) -> None:
        with self._applying:
            if self._view.get().offset != self._wanted:
                self._view.set(offset=self._wanted)


def double_arrow() -> tuple[np.ndarray, np.ndarray]:
    """Vertices (x forward, y left, m) and faces of a flat arrow that points to both sides."""
    # Wide in x, which is seen at a flat angle, so that the pointer finds it.
    tip, neck, head, bar = 1.1, 0.6, 0.9, 0.4
    half = [(0.0, tip), (head, neck), (bar, neck), (-bar, neck), (-head, neck)]
    flat = [*half, *((x, -y) for x, y in half)]
    vertices = np.array([(x, y, 0.0) for x, y in flat], dtype=np.float32)
    faces = np.array([(0, 1, 4), (5, 9, 6), (2, 3, 8), (2, 8, 7)], dtype=np.uint32)
    return vertices, faces
