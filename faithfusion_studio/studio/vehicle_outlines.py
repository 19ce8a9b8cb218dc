"""The annotated vehicles of the recording over the picture: boxes, the way of the selected one, laser points."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from faithfusion_studio.annotating import sweep_near
from faithfusion_studio.annotation import SAME_TIME
from faithfusion_studio.boxes import BoxTrack, first_hit, inside_box
from faithfusion_studio.editing.boxes import moved_pose, nearest_pose
from faithfusion_studio.render.views import palette
from faithfusion_studio.scene import Capture
from faithfusion_studio.session.box_commands import SetKeyframe
from faithfusion_studio.studio.arrows import Arrows
from faithfusion_studio.studio.object_outlines import PLAIN_COLOR, SELECTED_COLOR
from faithfusion_studio.studio.view_state import View, ViewState
from faithfusion_studio.studio.wireframes import Wire, Wireframes, edges

VEHICLE_COLOR = (90, 230, 140)
ABSENT_COLOR = PLAIN_COLOR
"""Of the selected vehicle at a moment at which it is not annotated: its box stands at the nearest keyframe."""
POINT_SIZE = 0.02
"""Side of a laser point, m."""
HIGHEST = 4.0
"""Points this high above the lowest ones, m, have the last colour."""
AROUND = 0.1
"""Points of a vehicle may lie so far outside of its box, and the road reaches so far into it, m."""
CROSS = 0.15
"""Half the size of the mark of a keyframe that was set by hand, m."""


class VehicleOutlines:
    """What one client sees of the annotation; it follows from the view and the scene alone.

    Args:
        scene: viser's scene of the client.
        session: Whose recording is annotated.
        view: What is selected.
    """

    def __init__(self, scene: Any, session: Any, view: View) -> None:
        self._scene, self._session, self._view = scene, session, view
        self._lines = Wireframes(scene)
        self._arrows = Arrows(scene, view, "/vehicle", self._move)
        self._cloud: Any = None
        self._drawn: tuple[object, ...] = ()
        self._swept: tuple[object, Tensor] = (None, torch.zeros(0, 3))
        self._time = 0.0

    def update(self, state: ViewState, time: float) -> None:
        """Show boxes and points of a moment, s."""
        capture = self._session.store.latest().scene.capture
        if state.compare == "side":
            capture = None
        self._time = time
        boxes = () if capture is None else capture.boxes
        wanted, chosen = {}, None
        for index, track in enumerate(boxes):
            selected = track.name == state.vehicle
            if not (selected or state.show_vehicles):
                continue
            pose = track.pose_at(time)
            color = SELECTED_COLOR if selected else VEHICLE_COLOR
            if selected:
                wanted["/vehicle_way"] = way(track)
                color = color if pose is not None else ABSENT_COLOR
                pose = chosen = nearest_pose(track, time)
            if pose is None:
                continue
            width = 4.0 if selected and is_by_hand(track, time) else 2.0
            box = edges(tuple(track.size.tolist()))
            wanted[f"/vehicles/{index}"] = Wire(box, color, width, pose.numpy())
        self._lines.show({name: wire for name, wire in wanted.items() if len(wire.segments)})
        free = state.handle and not state.selected and self._session.state.job is None
        self._arrows.show(
            chosen if free else None
        )  # those of a selected object would be in the same place
        self._show_points(capture, state, time)

    def hit(self, x: float, y: float) -> str:
        """The vehicle whose box is at a place of the picture (0..1); empty for none, or where they are hidden."""
        capture, camera = self._session.store.latest().scene.capture, self._view.current_camera()
        if capture is None or camera is None or not self._view.get().show_vehicles:
            return ""
        found = first_hit(capture.boxes, camera, (x * camera.width, y * camera.height))
        return "" if found is None else found.name

    def _move(self, shift: tuple[float, float, float], yaw: float) -> None:
        capture, name = self._session.store.latest().scene.capture, self._view.get().vehicle
        track = next((one for one in capture.boxes if one.name == name), None)
        if track is not None:
            pose = moved_pose(nearest_pose(track, self._time), shift, yaw)
            self._session.submit(SetKeyframe(name, self._time, pose))

    def _show_points(self, capture: Capture | None, state: ViewState, time: float) -> None:
        boxes = () if capture is None else capture.boxes
        track = next((one for one in boxes if one.name == state.vehicle), None)
        if not state.show_sweep:
            capture = None
        drawn = () if capture is None else (id(capture.lidar), id(track), time)
        if drawn == self._drawn:
            return
        self._drawn = drawn
        if self._cloud is not None:
            self._cloud.remove()
            self._cloud = None
        scan = torch.zeros(0, 3) if capture is None else self._standing(capture, time)
        if not len(scan):
            return
        pose = None if track is None else track.pose_at(time)
        middle = scan.mean(0)
        self._cloud = self._scene.add_point_cloud(
            "/sweep",
            (scan - middle).numpy(),
            point_colors(scan, track, pose),
            point_size=POINT_SIZE,
            precision="float32",
            point_shading="flat",
            position=middle.numpy(),
        )

    def _standing(self, capture: Capture, time: float) -> Tensor:
        """Laser points of a moment without the road, which would hide the picture; none between the sweeps."""
        key = (id(capture.lidar), time)
        if self._swept[0] != key:
            found = torch.zeros(0, 3)
            if any(abs(when - time) < SAME_TIME for when, _ in capture.sweeps):
                found = sweep_near(capture, time)[0]
            self._swept = (key, found)
        return self._swept[1]


def is_by_hand(track: BoxTrack, time: float) -> bool:
    """Whether a person set where a vehicle is at a time, s."""
    here = (track.timestamps - time).abs() < SAME_TIME
    return bool((here if track.by_hand is None else here & track.by_hand).any())


def way(track: BoxTrack) -> Wire:
    """The way of a vehicle along the road, with a cross where a person set a keyframe."""
    down = 0.5 * float(track.size[2]) * track.poses[:, :3, 2]
    places = (track.poses[:, :3, 3] - down).numpy()
    origin = places[0]
    marks = track.timestamps.new_ones(len(places)) if track.by_hand is None else track.by_hand
    set_by_hand = places[marks.bool().numpy()]
    ends = CROSS * np.array([[[-1, -1, 0], [1, 1, 0]], [[-1, 1, 0], [1, -1, 0]]], np.float64)
    crosses = (set_by_hand[:, None, None] + ends).reshape(-1, 2, 3)
    steps = np.stack([places[:-1], places[1:]], axis=1)
    pose = np.eye(4)
    pose[:3, 3] = origin
    segments = (np.concatenate([steps, crosses]) - origin).astype(np.float32)
    return Wire(segments, SELECTED_COLOR, 2.0, pose)


def point_colors(scan: Tensor, track: BoxTrack | None, pose: Tensor | None) -> np.ndarray:
    """Colours of laser points by their height, [M, 3] bytes; those in a vehicle's box are yellow."""
    height = (scan[:, 2] - scan[:, 2].quantile(0.02)) / HIGHEST
    index = (torch.nan_to_num(height).clamp(0, 1) * 255).long()
    colors = (palette("cool")[index] * 255).to(torch.uint8).numpy()
    if track is not None and pose is not None:
        colors[inside_box(scan, pose, track.size, margin=AROUND, floor=AROUND).numpy()] = (
            SELECTED_COLOR
        )
    return colors
