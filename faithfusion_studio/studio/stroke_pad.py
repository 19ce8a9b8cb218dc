"""Where a brush is drawn: an invisible globe around the camera, which takes Ctrl+drag while the brush is chosen.

The page reports drags on things only, and the picture itself is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np

from faithfusion_studio.cameras import Camera
from faithfusion_studio.studio.view_state import View, ViewState

RADIUS = 60.0
"""m; things nearer than this can still be clicked."""


class StrokePad:
    """The globe of one client.

    Args:
        scene: viser's scene of the client.
        view: Says whether the brush is chosen, and where the camera stands.
        draw: Takes the places of a stroke, 0..1 from the top left, and the camera it was drawn over.
    """

    def __init__(
        self,
        scene: Any,
        view: View,
        draw: Callable[[list[tuple[float, float]], Camera], None],
    ) -> None:
        self._scene, self._view, self._draw = scene, view, draw
        self._globe: Any = None
        self._places: list[tuple[float, float]] = []

    def update(self, state: ViewState) -> None:
        """Put the globe around the camera, or take it away."""
        camera = self._view.current_camera() if state.brushing else None
        if camera is None:
            if self._globe is not None:
                self._globe.remove()
                self._globe = None
            return
        place = camera.position.numpy()
        if self._globe is None:
            vertices, faces = globe()
            self._globe = self._scene.add_mesh_simple(
                "/brush_globe",
                vertices,
                faces,
                opacity=0.0,
                side="double",
                cast_shadow=False,
                receive_shadow=False,
                position=place,
            )
            self._globe.on_drag("left", modifier="cmd/ctrl")(self._dragged)
        elif not np.allclose(self._globe.position, place, atol=1.0):
            self._globe.position = place

    async def _dragged(self, event: Any) -> None:
        """In viser's event loop, which keeps the order; the selection is made in a thread."""
        x, y = event.end_screen_pos
        if event.phase == "start":
            self._places = [tuple(event.start_screen_pos)]
        self._places.append((float(x), float(y)))
        camera = self._view.current_camera()
        if event.phase == "end" and camera is not None:
            places, self._places = self._places, []
            asyncio.get_running_loop().run_in_executor(None, self._draw, places, camera)


def globe() -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of an octahedron around the origin that no near thing pokes through."""
    vertices = RADIUS * np.array(
        [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], np.float32
    )
    faces = [(x, y, z) for x in (0, 1) for y in (2, 3) for z in (4, 5)]
    return vertices, np.array(faces, np.uint32)
