"""Annotate what moves in the recording: fit a box at a click, set its keyframes, follow it, write it down."""

from __future__ import annotations

import html
import math
import shlex
from pathlib import Path
from typing import Any, Literal

import torch

from faithfusion_studio.annotating import SIZES
from faithfusion_studio.annotating.sweeps import place_seen, raw_sweep_near
from faithfusion_studio.annotation import SAME_TIME
from faithfusion_studio.boxes import BoxTrack
from faithfusion_studio.cameras import Camera, Trajectory
from faithfusion_studio.editing.boxes import moved_pose, nearest_pose
from faithfusion_studio.errors import StudioError
from faithfusion_studio.fusion.moving import MOVING, SOFT
from faithfusion_studio.scene import Capture
from faithfusion_studio.session.box_commands import (
    AddBox,
    ChangeBox,
    ExportBoxes,
    FitKeyframe,
    FollowBox,
    PlaceBox,
    RemoveBox,
    RemoveKeyframe,
    SetKeyframe,
)
from faithfusion_studio.session.commands import CancelJob
from faithfusion_studio.session.state import SessionState, VehicleInfo
from faithfusion_studio.studio.chosen import Drawn
from faithfusion_studio.studio.layers import frame_time
from faithfusion_studio.studio.scene_graph import ground
from faithfusion_studio.studio.vehicle_outlines import is_by_hand
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.widgets import PLAIN, JobBar, change, note, raw_note, set_button

NONE = "none"
BEFORE, AFTER = "< Keyframe", "Keyframe >"
FIT, CLICK = "Fit a box at a click", "Click on the vehicle (or here to stop)"
HAND, ROAD = "Put a box on the road", "Click below its middle (or here to stop)"
FARTHEST = 150.0
"""A box is not put on the road farther from the camera than this, m."""
REACH = 0.01
"""How far from a click the laser point of a vehicle may be, share of the picture's width."""


class AnnotationToolError(StudioError):
    """A tool that lacks what it needs."""


class VehicleTools:
    """The folder of annotated vehicles, in the current container."""

    def __init__(self, gui: Any, session: Any, view: View) -> None:
        self._session, self._view = session, view
        self._names_before: set[str] | None = None
        self._filled: tuple[object, ...] = ()
        self._folder = gui.add_folder(
            "Vehicles in the recording",
            visible=False,
            expand_by_default=not session.store.latest().scene.nodes,
        )
        with self._folder:
            self._about = gui.add_html("")
            self._boxes = gui.add_checkbox("Boxes", False, hint="Of all annotated vehicles.")
            self._points = gui.add_checkbox(
                "Laser points",
                False,
                hint="Those of the moment shown; the selected box's in yellow.",
            )
            self._kind = gui.add_dropdown(
                "A new box is a", tuple(SIZES), hint="Says how large what the laser did not see is."
            )
            self._fit = gui.add_button(FIT)
            self._put = gui.add_button(
                HAND, color=PLAIN, hint="Of the usual size, where the laser sees too little."
            )
            self._vehicle = gui.add_dropdown("Vehicle", (NONE,))
            self._one = gui.add_folder("Selected vehicle", visible=False)
            with self._one:
                self._add_selected(gui)
            self._job = JobBar(gui)
            self._cancel = gui.add_button("Cancel", color="red", visible=False)
            self._use = gui.add_folder("Use them", visible=False)
            with self._use:
                path = str(session.run_folder / "boxes.json")
                self._path = gui.add_text("Boxes file", path, hint="A .json file on this machine.")
                self._write = gui.add_button("Write the boxes", color=PLAIN)
                self._next = gui.add_html("")
        self._bind()

    def _add_selected(self, gui: Any) -> None:
        self._facts = gui.add_html("")
        self._step = gui.add_button_group("Go to", (BEFORE, AFTER))
        self._refit = gui.add_button(
            "Fit to the points here", color=PLAIN, hint="Sets a keyframe; the size stays."
        )
        self._follow = gui.add_button(
            "Follow through the recording",
            hint="Finds the box in every sweep around the keyframes set by hand, which stay.",
        )
        with gui.add_folder("Place, size and name", expand_by_default=False):
            self._center = gui.add_vector3("Place (m)", (0.0, 0.0, 0.0), step=0.05)
            self._heading = gui.add_number(
                "Heading (°)", 0.0, step=1.0, hint="Counter-clockwise from the world's x axis."
            )
            self._set = gui.add_button("Set a keyframe here", color=PLAIN)
            self._unset = gui.add_button("Remove the keyframe here", color=PLAIN)
            self._name = gui.add_text("Name", "")
            self._category = gui.add_text("Kind", "", hint=f"E.g. {', '.join(SIZES)}.")
            self._size = gui.add_vector3("L, W, H (m)", (4.0, 2.0, 1.5), step=0.05)
            self._apply = gui.add_button("Apply name, kind and size", color=PLAIN)
        self._delete = gui.add_button("Delete the vehicle's box", color="red")

    def _bind(self) -> None:
        guarded, view, submit = self._view.guarded, self._view, self._session.submit

        def name() -> str:
            return self._view.get().vehicle

        def choose(_event: Any) -> None:
            view.set(vehicle="" if self._vehicle.value == NONE else self._vehicle.value)

        def export(_event: Any) -> None:
            path = Path(self._path.value.strip())
            submit(ExportBoxes(str(path if path.suffix else path.with_suffix(".json"))))

        self._boxes.on_update(guarded(lambda _e: view.set(show_vehicles=self._boxes.value)))
        self._points.on_update(guarded(lambda _e: view.set(show_sweep=self._points.value)))
        self._fit.on_click(guarded(lambda _e: self._place("fit")))
        self._put.on_click(guarded(lambda _e: self._place("hand")))
        self._vehicle.on_update(guarded(choose))
        self._step.on_click(guarded(lambda e: self._go(-1 if e.target.value == BEFORE else 1)))
        self._refit.on_click(guarded(lambda _e: submit(FitKeyframe(name(), self._time))))
        self._follow.on_click(guarded(lambda _e: submit(FollowBox(name()))))
        self._cancel.on_click(guarded(lambda _e: submit(CancelJob())))
        self._set.on_click(guarded(lambda _e: self._set_keyframe()))
        self._unset.on_click(guarded(lambda _e: submit(RemoveKeyframe(name(), self._time))))
        self._apply.on_click(guarded(lambda _e: self._change()))
        self._delete.on_click(guarded(lambda _e: submit(RemoveBox(name()))))
        self._write.on_click(guarded(export))
        view.on_drawn(self._on_drawn)

    # ------------------------------------------------------------------------------- what is shown

    @property
    def _capture(self) -> Capture | None:
        return self._session.store.latest().scene.capture

    @property
    def _time(self) -> float:
        return frame_time(self._session.store.latest().scene, self._view.get().frame)

    def show(self, state: SessionState) -> None:
        """Follow the session and the view."""
        capture = self._capture
        change(self._folder, visible=capture is not None)
        if capture is None:
            return
        vehicles = state.vehicles
        self._select_new(vehicles)
        names = (NONE, *(one.name for one in vehicles))
        if self._vehicle.options != names:
            self._vehicle.options = names
        if self._view.get().vehicle not in names:
            self._view.set(vehicle="")
        view = self._view.get()
        seen = bool(capture.sweeps)
        change(self._vehicle, visible=bool(vehicles), value=view.vehicle or NONE)
        change(self._boxes, visible=bool(vehicles), value=view.show_vehicles)
        change(
            self._about, content=note(_about(vehicles, seen, {node.name for node in state.nodes}))
        )
        for widget in (self._points, self._fit):
            change(widget, visible=seen)
        busy = state.job is not None
        fits, puts = view.placing == "fit", view.placing == "hand"
        first = not vehicles and view.placing == "off"
        change(self._fit, label=CLICK if fits else FIT, disabled=busy)
        change(self._fit, color=None if fits or first else PLAIN)
        change(self._put, label=ROAD if puts else HAND, disabled=busy)
        change(self._put, color=None if puts or (first and not seen) else PLAIN)
        follows = state.job is not None and state.job.kind == "follow"
        self._job.show(state.job if follows else None)
        change(self._cancel, visible=follows)
        change(self._use, visible=bool(vehicles))
        change(self._next, content=raw_note(_next(state, self._path.value)))
        set_button(self._write, "a job is running" if busy else "")
        track = next((box for box in capture.boxes if box.name == view.vehicle), None)
        change(self._one, visible=track is not None)
        if track is not None:
            self._show_track(track, busy, seen)

    def _show_track(self, track: BoxTrack, busy: bool, seen: bool) -> None:
        time = self._time
        pose, here = track.pose_at(time), is_by_hand(track, time)
        change(self._facts, content=raw_note(_facts(track, time)))
        change(self._refit, disabled=busy or pose is None, visible=seen)
        followed = track.by_hand is not None and not bool(track.by_hand.all())
        change(self._follow, visible=seen, disabled=busy, color=PLAIN if followed else None)
        for button in (self._set, self._apply, self._delete):
            change(button, disabled=busy)
        change(self._unset, disabled=busy or not here)
        if self._filled == (track, time):
            return  # what somebody types stays until the box or the moment is another
        self._filled = (track, time)
        self._name.value, self._category.value = track.name, track.category
        self._size.value = tuple(round(v, 2) for v in track.size.tolist())
        pose = nearest_pose(track, time)
        self._center.value = tuple(round(v, 2) for v in pose[:3, 3].tolist())
        self._heading.value = round(math.degrees(_heading(pose)), 1)

    def _select_new(self, vehicles: tuple[VehicleInfo, ...]) -> None:
        """A box that was asked for here is selected once it is there."""
        if self._names_before is None:
            return
        new = [one.name for one in vehicles if one.name not in self._names_before]
        if new:
            self._names_before = None
            self._view.set(vehicle=new[-1])

    # ------------------------------------------------------------------------------- what is done

    def _place(self, how: Literal["fit", "hand"]) -> None:
        self._view.set(placing="off" if self._view.get().placing == how else how)

    def _on_drawn(self, drawn: Drawn) -> None:
        """A click while a vehicle is asked for: the laser point there becomes a box."""
        capture = self._capture
        if drawn.kind != "place" or capture is None:
            return
        if self._view.get().compare == "side":
            raise AnnotationToolError("end the side-by-side comparison first, then click.")
        camera, kind = drawn.camera, self._kind.value
        if self._view.get().placing == "fit":
            x, y, z = self._laser_point(capture, camera, drawn.points[0])
            command: AddBox | PlaceBox = AddBox((x, y, z), camera.time, kind)
        else:
            x, y, z = road_point(capture.trajectory, camera, drawn.points[0])
            command = PlaceBox((x, y, z), camera.time, kind)
        self._names_before = {box.name for box in capture.boxes}
        self._view.set(placing="off", show_vehicles=True)
        self._session.submit(command)

    def _laser_point(
        self, capture: Capture, camera: Camera, pixel: tuple[float, float]
    ) -> list[float]:
        scan, _ = raw_sweep_near(capture, camera.time)
        found = place_seen(scan, camera, pixel, reach=REACH * camera.width)
        if found is None:
            raise AnnotationToolError(
                "the laser met nothing there; switch the laser points on and click near one of the vehicle."
            )
        return found.tolist()

    def _track(self) -> BoxTrack:
        boxes, name = self._capture.boxes if self._capture else (), self._view.get().vehicle
        found = next((box for box in boxes if box.name == name), None)
        if found is None:
            raise AnnotationToolError("choose a vehicle first.")
        return found

    def _go(self, way: int) -> None:
        """To the next keyframe that was set by hand."""
        track, now = self._track(), self._time
        marks = [True] * len(track.poses) if track.by_hand is None else track.by_hand.tolist()
        times = [t for t, mark in zip(track.timestamps.tolist(), marks, strict=True) if mark]
        ahead = [t for t in times if way * (t - now) > SAME_TIME]
        if not ahead:
            where = "before" if way < 0 else "after"
            raise AnnotationToolError(f"{track.name} has no keyframe set by hand {where} this one.")
        target = min(ahead, key=lambda t: abs(t - now))
        moments = self._view.rig.times
        moment = min(range(len(moments)), key=lambda i: abs(moments[i] - target))
        self._view.set(frame=self._view.frame_at(moment), playing=False, follow=True)

    def _set_keyframe(self) -> None:
        """The numbers become a keyframe; what leans on the road keeps leaning."""
        track, time = self._track(), self._time
        pose = nearest_pose(track, time)
        yaw = math.radians(float(self._heading.value)) - _heading(pose)
        x, y, z = (float(v) for v in self._center.value)
        turned = moved_pose(pose, (0.0, 0.0, 0.0), yaw)
        turned[:3, 3] = torch.tensor([x, y, z], dtype=torch.float64)
        self._session.submit(SetKeyframe(track.name, time, turned))

    def _change(self) -> None:
        track = self._track()
        name = self._name.value.strip()
        length, width, height = (float(v) for v in self._size.value)
        if name != track.name and self._capture is not None:
            self._names_before = {box.name for box in self._capture.boxes}
        category = self._category.value.strip() or track.category
        self._session.submit(ChangeBox(track.name, name, category, (length, width, height)))


def road_point(
    trajectory: Trajectory, camera: Camera, pixel: tuple[float, float]
) -> tuple[float, float, float]:
    """Where a pixel's ray meets the plane of the road below the recording vehicle at the camera's time, world, m.

    Raises:
        AnnotationToolError: It meets the road nowhere within `FARTHEST`.
    """
    times = trajectory.timestamps
    nearest = min(range(len(times)), key=lambda i: abs(times[i] - camera.time))
    road, up = ground(trajectory)[nearest], trajectory.ego_to_worlds[nearest, :3, 2]
    ray = torch.linalg.solve(camera.K, camera.K.new_tensor([*pixel, 1.0]))
    ray = camera.camtoworld[:3, :3] @ ray
    falls = float(ray @ up)
    share = float((torch.from_numpy(road) - camera.position) @ up) / falls if falls < 0 else -1.0
    if not 0 < share * float(ray.norm()) < FARTHEST:
        raise AnnotationToolError(
            "there is no road within reach at this place; click on the road below the vehicle's middle."
        )
    x, y, z = (camera.position + share * ray).tolist()
    return x, y, z


def _heading(pose: torch.Tensor) -> float:
    return math.atan2(float(pose[1, 0]), float(pose[0, 0]))


def _moves(vehicle: VehicleInfo) -> bool:
    return vehicle.travel > MOVING and vehicle.category.lower() not in SOFT


def _about(vehicles: tuple[VehicleInfo, ...], seen: bool, objects: set[str]) -> str:
    """What is annotated, what becomes of it, and what to do first.

    Args:
        vehicles: What is annotated.
        seen: Whether there is a laser sweep for each moment.
        objects: Names of the moving objects the scene has already.
    """
    if not seen:
        first = (
            "This recording has no laser sweep for each of its moments, so boxes are put on the road by hand "
            "and moved with their arrows, one keyframe after the other."
        )
    elif not vehicles:
        return (
            "Go to a moment that shows a moving vehicle well, press the button and click on it: "
            "with a box it can become an object of its own."
        )
    else:
        first = ""
    known = [vehicle for vehicle in vehicles if vehicle.name in objects]
    moving = sum(_moves(vehicle) for vehicle in vehicles if vehicle not in known)
    words = f"{len(vehicles)} annotated"
    words += f", {len(known)} of them learned as objects already" if known else ""
    become = "an object of its own" if moving == 1 else "objects of their own"
    words += "." if len(known) == len(vehicles) else f"; {moving} can become {become}."
    if len(known) + moving < len(vehicles):
        words += f" What travels less than {MOVING:g} m, or is no vehicle, stays in the background."
    return f"{first} {words}".strip() if vehicles else first


def _facts(track: BoxTrack, time: float) -> str:
    """What the selected vehicle is, how well it is annotated, and what holds at the moment shown."""
    sides = " x ".join(f"{side:.2f}" for side in track.size.tolist())
    count = len(track.timestamps)
    hand = count if track.by_hand is None else int(track.by_hand.sum())
    followed = f", {count - hand} followed" if count > hand else ""
    here = "not annotated at this moment"
    if track.pose_at(time) is not None:
        here = "between keyframes here"
        if bool(((track.timestamps - time).abs() < SAME_TIME).any()):
            here = "keyframe here" if is_by_hand(track, time) else "followed here"
    return (
        f"{html.escape(track.category)}, {sides} m, travels {track.travel:.1f} m"
        f"<br>{hand} keyframe{'s' * (hand != 1)}{followed}; <b>{here}</b>"
    )


def _next(state: SessionState, path: str) -> str:
    """The command that makes objects of the boxes."""
    if not any(map(_moves, state.vehicles)):
        return (
            f"Nothing to reconstruct yet: no vehicle travels more than {MOVING:g} m. Set keyframes at "
            "other moments, or follow it."
        )
    recording = shlex.quote(state.path) if state.path else "RECORDING"
    lines = ("ff-studio reconstruct", recording, "vehicles.ckpt", f"--boxes {shlex.quote(path)}")
    command = " \\\n  ".join(lines)
    return (
        "Then learn each moving vehicle as an object of its own:"
        '<pre style="margin:4px 0;user-select:all;font-size:11.5px;overflow-x:auto">'
        f"{html.escape(command)}</pre>"
    )
