"""Select single splats by rectangle, brush, box or range of a number; see how many; delete them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from faithfusion_studio.editing import (
    Box,
    Rectangle,
    Stroke,
    by_value,
    combined,
    in_box,
    in_shape,
    limited_to,
)
from faithfusion_studio.editing.quantities import QUANTITIES, Histogram, histogram, values_of
from faithfusion_studio.errors import StudioError
from faithfusion_studio.gaussians import Provenance
from faithfusion_studio.scene import Scene
from faithfusion_studio.session.commands import DeleteGaussians
from faithfusion_studio.session.state import SessionState
from faithfusion_studio.studio.chosen import Chosen, Drawn
from faithfusion_studio.studio.layers import frame_time
from faithfusion_studio.studio.view_state import View
from faithfusion_studio.studio.widgets import PLAIN, change, note

TOOLS = {
    "rectangle": "Rectangle on the picture",
    "brush": "Brush on the picture",
    "box": "Box in the world",
    "range": "Range of a number",
}
WAYS = {"new": "A new one each time", "add": "Add to it", "remove": "Take away from it"}
EVERYTHING, BACKGROUND = "everything", "background"
AHEAD = 8.0
"""A new box stands so far before the camera, m."""
HELP = {
    "rectangle": "Hold Ctrl and drag a rectangle over the picture.",
    "brush": "Hold Ctrl and paint over the picture, or click.",
    "box": "Set the orange box, then select what is in it.",
    "range": "Move both ends; the bars in orange are selected.",
}


class SelectionError(StudioError):
    """A selection that cannot be made here."""


class SplatTools:
    """The folder of splat selection, in the current container."""

    def __init__(self, gui: Any, session: Any, view: View) -> None:
        self._session, self._view = session, view
        self._bars: Histogram | None = None
        with gui.add_folder("Select splats", expand_by_default=False):
            self._tool = gui.add_dropdown("By", tuple(TOOLS.values()))
            self._target = gui.add_dropdown("Among", (EVERYTHING, BACKGROUND))
            self._way = gui.add_dropdown("Selection", tuple(WAYS.values()))
            self._help = gui.add_html(note(HELP["rectangle"]))
            self._seen = gui.add_checkbox(
                "Only what is seen", True, hint="Leave out splats behind other things."
            )
            self._radius = gui.add_slider("Brush (px)", 4, 200, 2, 40, visible=False)
            self._add_box(gui)
            self._add_range(gui)
            self._count = gui.add_html(note("No splats are selected."))
            self._delete = gui.add_button("Delete the selected splats", color="red", disabled=True)
            self._clear = gui.add_button("Clear the selection", color=PLAIN, disabled=True)
        self._how = "new"
        self._bind()

    def _add_box(self, gui: Any) -> None:
        self._center = gui.add_vector3("Centre (m)", (0.0, 0.0, 0.0), step=0.1, visible=False)
        self._size = gui.add_vector3("Size (m)", (3.0, 3.0, 3.0), step=0.1, visible=False)
        self._yaw = gui.add_number("Turned (\u00b0)", 0.0, step=5.0, visible=False)
        self._here = gui.add_button(
            "Put it here",
            color=PLAIN,
            visible=False,
            hint=f"Around the selected object, or {AHEAD:.0f} m before the camera where none is.",
        )
        self._inside = gui.add_button("Select what is inside", color=PLAIN, visible=False)

    def _add_range(self, gui: Any) -> None:
        names = tuple(QUANTITIES.values())
        self._quantity = gui.add_dropdown("Number", names, visible=False)
        self._chart = gui.add_html("", visible=False)
        self._range = gui.add_multi_slider("Range", 0, 100, 1, (0, 10), visible=False)

    # ----------------------------------------------------------------------------------- events

    def _bind(self) -> None:
        guarded, view = self._view.guarded, self._view

        @self._tool.on_update
        @guarded
        def _(_event: Any) -> None:
            self._show_tool()

        @self._way.on_update
        @guarded
        def _(_event: Any) -> None:
            self._how = next(key for key, title in WAYS.items() if title == self._way.value)

        for widget in (self._center, self._size, self._yaw):
            widget.on_update(guarded(lambda _e: view.set(box=self._box())))
        self._here.on_click(guarded(lambda _e: self._put_box()))
        self._inside.on_click(guarded(lambda _e: self._select_box()))
        self._quantity.on_update(guarded(lambda _e: self._new_range()))
        self._range.on_update(guarded(lambda _e: self._select_range()))
        self._clear.on_click(guarded(lambda _e: view.set(chosen=None)))
        self._delete.on_click(guarded(lambda _e: self._submit()))
        view.on_drawn(self._on_drawn)
        view.subscribe(lambda _state: self._show_count())

    @property
    def _scene(self) -> Scene:
        return self._session.store.latest().scene

    def _key(self) -> str:
        return next(key for key, title in TOOLS.items() if title == self._tool.value)

    def _show_tool(self) -> None:
        key = self._key()
        for names, widgets in (
            (("rectangle", "brush"), (self._seen,)),
            (("brush",), (self._radius,)),
            (("box",), (self._center, self._size, self._yaw, self._here, self._inside)),
            (("range",), (self._quantity, self._chart, self._range)),
        ):
            for widget in widgets:
                change(widget, visible=key in names)
        change(self._help, content=note(HELP[key]))
        if key == "range":
            self._new_range()
        elif key == "box" and not any(self._center.value):
            self._put_box()
        self._view.set(box=self._box() if key == "box" else None, brushing=key == "brush")

    def show(self, state: SessionState) -> None:
        """Follow the session: what there is to select among, and whether a selection still holds."""
        options = (EVERYTHING, BACKGROUND, *(one.name for one in state.nodes))
        if self._target.options != options:
            self._target.options = options
        chosen = self._view.get().chosen
        if chosen is not None and not chosen.fits(self._scene):
            self._view.set(chosen=None)
        self._show_count()

    def _show_count(self) -> None:
        chosen = self._view.get().chosen
        empty = chosen is None or not len(chosen.rows)
        words = "No splats are selected." if chosen is None else chosen.words()
        change(self._count, content=note(words))
        change(self._delete, disabled=empty or self._session.state.job is not None)
        change(self._clear, disabled=chosen is None)

    # ------------------------------------------------------------------------------- selections

    def _choose(self, found: Tensor) -> None:
        scene, chosen = self._scene, self._view.get().chosen
        found = found & limited_to(scene, self._target.value)
        current = torch.zeros_like(found)
        if chosen is not None and chosen.fits(scene):
            current = chosen.mask
        self._view.set(chosen=Chosen(scene, combined(current, found, self._how)))

    def _on_drawn(self, drawn: Drawn) -> None:
        key = self._key()
        if drawn.kind == "place":
            return  # of a vehicle's box
        if key == "rectangle" and drawn.kind == "rectangle":
            shape: Rectangle | Stroke = Rectangle(*drawn.points)
        elif key == "brush" and drawn.kind == "stroke":
            shape = Stroke(drawn.points, float(self._radius.value))
        elif key == "brush":
            return  # the page draws a rectangle around every stroke, too
        else:
            raise SelectionError(
                "Ctrl selects on the picture with the rectangle or the brush: choose one in the tab Objects."
            )
        if self._view.get().compare == "side":
            raise SelectionError("end the side-by-side comparison first, then select.")
        with torch.no_grad():
            self._choose(in_shape(self._scene, drawn.camera, shape, seen_only=self._seen.value))

    def _box(self) -> Box:
        center, size = self._center.value, self._size.value
        return Box(
            (float(center[0]), float(center[1]), float(center[2])),
            (float(size[0]), float(size[1]), float(size[2])),
            math.radians(float(self._yaw.value)),
        )

    def _put_box(self) -> None:
        """Around the selected object, or some metres before the camera."""
        state, camera = self._view.get(), self._view.current_camera()
        node = next((one for one in self._scene.nodes if one.name == state.selected), None)
        pose = None if node is None else node.pose_at(self._time())
        if node is not None and pose is not None:
            center, size = pose[:3, 3], node.size
            yaw = math.degrees(math.atan2(float(pose[1, 0]), float(pose[0, 0])))
        elif camera is not None:
            center = camera.position + AHEAD * camera.camtoworld[:3, 2]
            size, yaw = torch.tensor([3.0, 3.0, 3.0]), 0.0
        else:
            return
        self._center.value = tuple(round(v, 2) for v in center.tolist())
        self._size.value = tuple(round(v, 2) for v in size.tolist())
        self._yaw.value = round(yaw, 1)
        self._view.set(box=self._box())

    def _select_box(self) -> None:
        box = self._box()
        self._view.set(box=box)
        self._choose(in_box(self._scene, box, self._time()))

    def _time(self) -> float:
        return frame_time(self._scene, self._view.get().frame)

    def _quantity_key(self) -> Any:
        return next(key for key, title in QUANTITIES.items() if title == self._quantity.value)

    def _new_range(self) -> None:
        """The histogram of another number; nothing is selected before its ends are moved."""
        quantity = self._quantity_key()
        among = limited_to(self._scene, self._target.value)
        values = values_of(self._scene, quantity).cpu()[among]
        if not len(values):
            raise SelectionError("there are no splats to select among.")
        if quantity == "provenance":
            self._bars = None
        else:
            self._bars = histogram(values, logarithmic=quantity == "size")
        self._show_chart(touched=False)

    def _ends(self) -> tuple[float, float]:
        low, high = (float(v) for v in self._range.value)
        if self._bars is None:
            last = len(Provenance) - 1
            return round(low / 100 * last), round(high / 100 * last)
        return self._bars.at(low / 100), self._bars.at(high / 100)

    def _select_range(self) -> None:
        low, high = self._ends()
        self._choose(by_value(self._scene, self._quantity_key(), low, high))
        self._show_chart()

    def _show_chart(self, *, touched: bool = True) -> None:
        change(self._chart, content=chart(self._bars, *(self._ends() if touched else (1.0, 0.0))))

    def _submit(self) -> None:
        chosen = self._view.get().chosen
        if chosen is None or not chosen.fits(self._scene):
            raise SelectionError(
                "the scene has changed since the splats were selected; select again."
            )
        self._session.submit(DeleteGaussians(chosen.rows))


def chart(bars: Histogram | None, low: float, high: float) -> str:
    """Bars of a histogram as HTML, those in [low, high] in orange, and the ends in words; low > high: none."""
    if bars is None and low > high:
        return note("Move the ends to select.")
    if bars is None:
        names = [p.name.lower() for p in Provenance if low <= int(p) <= high]
        return note(f"Selects: {', '.join(names)}.")
    top = math.log1p(max(*bars.counts, 1))
    width = 300 / len(bars.counts)
    rects = []
    for index, number in enumerate(bars.counts):
        inside = bars.edges[index + 1] > low and bars.edges[index] < high
        tall = 60 * math.log1p(number) / top
        rects.append(
            f'<rect x="{index * width:.1f}" y="{64 - tall:.1f}" width="{width - 0.6:.1f}" '
            f'height="{tall:.1f}" fill="{"#ffa040" if inside else "#6f7a8c"}"/>'
        )
    svg = (
        f'<svg viewBox="0 0 300 64" preserveAspectRatio="none" style="width:100%;height:64px;'
        f'display:block">{"".join(rects)}</svg>'
    )
    words = f"{low:.3g} to {high:.3g}" if low <= high else "Move the ends to select."
    # Padded so that the bars stand over the track of the slider below.
    return f'<div style="padding:2px 14px 0 109px">{svg}</div>{note(words)}'
