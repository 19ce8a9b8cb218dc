"""What is drawn in 3D over the picture: recorded path, shown path, segment and recorded cameras.

Paths lie on the road below the cameras: at camera height they would shrink to a point in the middle
of the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import viser

from faithfusion_studio.cameras import Camera, Trajectory
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.rig import spread_over_rig
from faithfusion_studio.studio.view_state import ViewState

RECORDED_COLOR = (255, 255, 255)
SHOWN_COLOR = (64, 156, 255)
SEGMENT_COLOR = (255, 150, 30)
FILLING_COLOR = (255, 40, 220)
POINT_SIZE = 0.06
"""Side of a point that would be added, m."""
MAX_CAMERAS = 40
DROP = 1.5
"""Height of a car's camera above the road where the recording does not say, m."""
LIFT = 0.03
"""The segment lies so far above the recorded path, so that it is not hidden by it, m."""
CAMERA_SIZE = 0.25
"""Size of a drawn camera, m."""


class PathGraph:
    """The 3D lines of one client; widgets and keys change them through the view alone."""

    def __init__(self, client: viser.ClientHandle, on_camera: Callable[[int], None]) -> None:
        self._scene = client.scene
        self._on_camera = on_camera
        self._recorded: list[viser.SceneNodeHandle] = []
        self._moving: dict[str, viser.SceneNodeHandle] = {}
        self._cameras: list[viser.SceneNodeHandle] = []
        self._drawn: tuple[object, ...] = ()
        self._filling: Gaussians | None = None

    def draw_recording(self, recorded: Trajectory) -> None:
        """Replace everything that belongs to the recording."""
        for handle in (*self._recorded, *self._cameras):
            handle.remove()
        self._recorded, self._cameras, self._drawn = [], [], ()
        line = self._line("/recorded", ground(recorded), RECORDED_COLOR, 2.0)
        if line is not None:
            self._recorded.append(line)
        for index in spread_over_rig([c.name for c in recorded.cameras], MAX_CAMERAS):
            self._cameras.append(self._frustum(index, recorded.cameras[index]))

    def update(self, state: ViewState, shown: Trajectory | None, *, moving: bool = False) -> None:
        """Follow the view: offset, segment, visibility."""
        visible = state.show_paths and shown is not None and state.compare != "side"
        for handle in self._recorded:
            handle.visible = visible
        for handle in self._cameras:
            handle.visible = state.show_cameras and state.compare != "side"
        wanted = (state.offset, state.segment, visible, id(shown))
        if wanted == self._drawn or moving:
            return
        self._drawn = wanted
        self._remove("/shown/before", "/shown/after", "/segment")
        if shown is None or not visible:
            return
        path = ground(shown)
        start, stop = state.segment
        if state.offset != 0.0:
            before, after = path[: start + 1], path[stop - 1 :]
            self._keep("/shown/before", self._line("/shown/before", before, SHOWN_COLOR, 2.5))
            self._keep("/shown/after", self._line("/shown/after", after, SHOWN_COLOR, 2.5))
        part = path[start:stop] + np.array([0.0, 0.0, LIFT])
        self._keep("/segment", self._line("/segment", part, SEGMENT_COLOR, 4.0))

    def draw_filling(self, filling: Gaussians | None) -> None:
        """Points that would be added to the scene, in the colour of what is generated; None takes them away."""
        if filling is self._filling:
            return
        self._filling = filling
        self._remove("/filling")
        if filling is not None:
            points = filling.means.detach().cpu().numpy().astype(np.float32)
            colors = np.broadcast_to(np.uint8(FILLING_COLOR), points.shape)
            cloud = self._scene.add_point_cloud("/filling", points, colors, point_size=POINT_SIZE)
            self._keep("/filling", cloud)

    def _keep(self, name: str, handle: viser.SceneNodeHandle | None) -> None:
        if handle is not None:
            self._moving[name] = handle

    def _remove(self, *names: str) -> None:
        for name in names:
            handle = self._moving.pop(name, None)
            if handle is not None:
                handle.remove()

    def _line(
        self, name: str, points: np.ndarray, color: tuple[int, int, int], thickness: float
    ) -> viser.SceneNodeHandle | None:
        if len(points) < 2:
            return None
        segments = np.stack([points[:-1], points[1:]], axis=1).astype(np.float32)
        return self._scene.add_line_segments(
            name, segments, colors=color, thickness=thickness, thickness_units="screen"
        )

    def _frustum(self, index: int, camera: Camera) -> viser.SceneNodeHandle:
        from faithfusion_studio.studio.lens import pose_of

        pose = pose_of(camera, (camera.width, camera.height))
        handle = self._scene.add_camera_frustum(
            f"/cameras/{index}",
            fov=pose.fov,
            aspect=camera.width / camera.height,
            scale=CAMERA_SIZE,
            color=RECORDED_COLOR,
            wxyz=pose.wxyz,
            position=pose.position,
            visible=False,
        )

        @handle.on_click
        def _(_event: object) -> None:
            self._on_camera(index)

        return handle


def ground(trajectory: Trajectory) -> np.ndarray:
    """Points on the road along a path, [T, 3], m, below the ego frame.

    Ego frames lie on the ground, or at the height of the camera that stands in for them: then the
    usual height of a car's camera is taken off.
    """
    ego = trajectory.ego_to_worlds
    up = ego[:, :3, 2]
    height = ((trajectory.camtoworlds[:, :3, 3] - ego[:, :3, 3]) * up).sum(-1).mean()
    drop = max(DROP - float(height), 0.0) if float(height) < 0.5 else 0.0
    return (ego[:, :3, 3] - drop * up).numpy()
