"""Boxes around objects over the picture, and the arrows that move and turn the selected one by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from faithfusion_studio.editing.selection import Box
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.session.commands import MoveNode
from faithfusion_studio.studio.arrows import Arrows
from faithfusion_studio.studio.view_state import View, ViewState
from faithfusion_studio.studio.wireframes import Wire, Wireframes, edges

SELECTED_COLOR = (255, 225, 70)
PLAIN_COLOR = (170, 180, 195)
BOX_COLOR = (255, 140, 13)
"""As the splats a box selects are drawn."""


class ObjectOutlines:
    """The outlines of one client; what they show follows from the view and the scene alone.

    Args:
        scene: viser's scene of the client.
        session: Whose objects they are.
        view: What is selected.
    """

    def __init__(self, scene: Any, session: Any, view: View) -> None:
        self._session, self._view = session, view
        self._lines = Wireframes(scene)
        self._arrows = Arrows(scene, view, "/object", self._move)

    def update(self, state: ViewState, time: float) -> None:
        """Show the boxes of a moment (s), the arrows at the selected object, and the box that selects."""
        flat = state.compare == "side"
        wanted: dict[str, Wire] = {}
        chosen = None
        for index, node in enumerate(self._session.store.latest().scene.nodes):
            pose, selected = node.pose_at(time), node.name == state.selected
            if flat or pose is None or not (selected or (state.show_boxes and not node.hidden)):
                continue
            if selected:
                chosen = (node, pose)
            size = tuple(node.size.tolist())
            wanted[f"/objects/{index}"] = Wire(
                edges(size),
                outline_color(node, selected),
                4.0 if selected else 2.0,
                pose.numpy(),
            )
        if state.box is not None and not flat:
            box = Wire(edges(state.box.size), BOX_COLOR, 3.0, placed(state.box))
            wanted["/selection_box"] = box
        self._lines.show(wanted)
        self._put_arrows(chosen if state.handle else None)

    def _put_arrows(self, chosen: tuple[RigidNode, Tensor] | None) -> None:
        free = chosen is not None and not chosen[0].locked and self._session.state.job is None
        self._arrows.show(chosen[1] if chosen is not None and free else None)

    def _move(self, shift: tuple[float, float, float], yaw: float) -> None:
        self._session.submit(MoveNode(self._view.get().selected, shift, yaw))


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
