"""Boxes around objects over the picture, and the arrows that move and turn the selected one by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.editing.selection import Box
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.session.commands import MoveNode
from faithfusion_studio.studio.view_state import View, ViewState
from faithfusion_studio.transforms import quat_to_rotmat, rotmat_to_quat

SELECTED_COLOR = (255, 225, 70)
PLAIN_COLOR = (170, 180, 195)
BOX_COLOR = (255, 140, 13)
"""As the splats a box selects are drawn."""
LEAST_SHIFT, LEAST_TURN = 1e-3, 1e-3
"""m and rad; a smaller movement of the arrows was none."""


class ObjectOutlines:
    """The outlines of one client; what they show follows from the view and the scene alone.

    Args:
        scene: viser's scene of the client.
        session: Whose objects they are.
        view: What is selected.
    """

    def __init__(self, scene: Any, session: Any, view: View) -> None:
        self._scene, self._session, self._view = scene, session, view
        self._lines: dict[str, tuple[tuple[object, ...], Any]] = {}
        self._arrows: tuple[Any, ...] = ()
        self._grabbed = False
        self._place: Float[Tensor, "4 4"] | None = None

    def update(self, state: ViewState, time: float) -> None:
        """Show the boxes of a moment (s), the arrows at the selected object, and the box that selects."""
        flat = state.compare == "side"
        wanted: dict[str, tuple[np.ndarray, tuple[int, int, int], float, np.ndarray]] = {}
        chosen = None
        for index, node in enumerate(self._session.store.latest().scene.nodes):
            pose, selected = node.pose_at(time), node.name == state.selected
            if flat or pose is None or not (selected or (state.show_boxes and not node.hidden)):
                continue
            if selected:
                chosen = (node, pose)
            size = tuple(node.size.tolist())
            wanted[f"/objects/{index}"] = (
                edges(size),
                outline_color(node, selected),
                4.0 if selected else 2.0,
                pose.numpy(),
            )
        if state.box is not None and not flat:
            wanted["/selection_box"] = (edges(state.box.size), BOX_COLOR, 3.0, placed(state.box))
        self._show(wanted)
        self._put_arrows(chosen if state.handle else None)

    def _show(self, wanted: dict[str, tuple[np.ndarray, Any, float, np.ndarray]]) -> None:
        for name in set(self._lines) - set(wanted):
            self._lines.pop(name)[1].remove()
        for name, (segments, color, width, pose) in wanted.items():
            look = (segments.tobytes(), color, width)
            known = self._lines.get(name)
            if known is None or known[0] != look:
                handle = self._scene.add_line_segments(
                    name, segments, colors=color, thickness=width, thickness_units="screen"
                )
                known = self._lines[name] = (look, handle)
            put(known[1], pose)

    def _put_arrows(self, chosen: tuple[RigidNode, Tensor] | None) -> None:
        if chosen is None or chosen[0].locked or self._session.state.job is not None:
            for handle in self._arrows:
                handle.remove()
            self._arrows, self._grabbed = (), False
            return
        self._place = chosen[1]
        if not self._arrows:
            self._arrows = self._new_arrows()
            for handle in self._arrows:
                handle.on_update(self._view.guarded(self._dragged))
        if not self._grabbed:
            for handle in self._arrows:
                put(handle, chosen[1].numpy())

    def _new_arrows(self) -> tuple[Any, Any]:
        """Arrows along the three axes, and a ring that turns about the object's up axis only."""
        add = self._scene.add_transform_controls
        look = {"line_width": 4.0, "depth_test": False}
        return (
            add("/object_arrows", scale=1.6, disable_rotations=True, disable_sliders=True, **look),
            add(
                "/object_ring",
                scale=2.2,
                active_axes=(True, True, False),
                disable_axes=True,
                disable_sliders=True,
                **look,
            ),
        )

    def _dragged(self, event: Any) -> None:
        """Once an arrow or the ring comes to rest: one move of the object at all times."""
        self._grabbed = event.phase != "end"
        if self._grabbed or not self._arrows or self._place is None:
            return
        shift, yaw = movement(self._place, event.target.position, event.target.wxyz)
        if math.hypot(*shift) < LEAST_SHIFT and abs(yaw) < LEAST_TURN:
            put(event.target, self._place.numpy())
            return
        self._session.submit(MoveNode(self._view.get().selected, shift, yaw))


def movement(
    before: Float[Tensor, "4 4"], position: Any, wxyz: Any
) -> tuple[tuple[float, float, float], float]:
    """Shift in the world (m) and turn about the object's up axis (rad) from a pose to another one."""
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


def placed(box: Box) -> np.ndarray:
    """Pose of a box, its frame -> world."""
    pose = np.eye(4)
    c, s = math.cos(box.yaw), math.sin(box.yaw)
    pose[:2, :2] = [[c, -s], [s, c]]
    pose[:3, 3] = box.center
    return pose


def outline_color(node: RigidNode, selected: bool) -> tuple[int, int, int]:
    """The object's own colour where it has one."""
    if node.color is None:
        return SELECTED_COLOR if selected else PLAIN_COLOR
    r, g, b = (round(255 * c) for c in node.color)
    return (r, g, b)


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
