"""What one browser client shows: a frozen `ViewState` and the `View` that holds the newest one.

View changes are not edits: they are per client, not in the session and not undoable.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from faithfusion_studio.cameras import Camera, Segment
from faithfusion_studio.editing.selection import Box
from faithfusion_studio.errors import StudioError
from faithfusion_studio.rig import Rig, single
from faithfusion_studio.studio.chosen import Chosen, Drawn

LAYERS: dict[str, str] = {
    "rgb": "Colour",
    "depth": "Depth",
    "alpha": "Opacity",
    "eig": "EIG (nats)",
    "calibrated": "EIG (0 to 1)",
    "overlay": "EIG over colour",
    "provenance": "Generated splats",
}
"""Layers every scene has, in the order of the keys 1..7, with their names for people."""

SOURCES: dict[str, str] = {
    **LAYERS,
    "before": "Before the last fusion",
    "photo": "Recorded photo",
    "repaired": "Repaired frame",
    "confidence": "Repair confidence",
}
"""Everything that can stand on one side of a comparison."""

Source = Literal[
    "rgb",
    "depth",
    "alpha",
    "eig",
    "calibrated",
    "overlay",
    "provenance",
    "before",
    "photo",
    "repaired",
    "confidence",
]
EigForm = Literal["block", "trace", "diagonal", "joint", "released"]
Compare = Literal["off", "side", "wipe", "difference"]
Filmstrips = Literal["off", "cameras", "drive"]
EIG_LAYERS = frozenset({"eig", "calibrated", "overlay"})
MAX_OFFSET = 6.0
"""Range of the lateral offset to either side, m."""

CALLBACK_ERRORS = (
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    OSError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)
"""What may go wrong in a control without anybody having foreseen it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewState:
    """What one client looks at."""

    layer: Source = "rgb"
    """What fills the picture (or its left part while comparing)."""
    compare: Compare = "off"
    """"side": two halves with the same middle of the picture; "wipe": one picture, divided; "difference": how far
    the two are apart."""
    compare_with: Source = "photo"
    """What stands on the right while comparing."""
    wipe: float = 0.5
    """Where the divider stands, 0 left .. 1 right."""
    before: bool = False
    """Show the scene as it was before the last fusion."""
    tint: bool = False
    """Tint what would be regenerated (UCR) red and the band to check amber."""
    threshold: tuple[float, float] = (0.2, 0.4)
    """Calibrated EIG: start of the band to check, and the UCR/HPR threshold tau."""
    overlay_opacity: float = 0.7
    """Strength of the heat map in the layer "overlay", 0..1."""
    eig_form: EigForm = "block"
    highlight: tuple[int, ...] = ()
    """Rows of splats that are drawn in cyan: the causes of the last pixel that was asked about."""
    selected: str = ""
    """Name of the selected object; empty for none."""
    handle: bool = True
    """Show arrows at the selected object to move and turn it by hand."""
    show_boxes: bool = False
    """Outline all objects, not only the selected one."""
    chosen: Chosen | None = None
    """Splats that are selected; drawn in orange."""
    brushing: bool = False
    """Ctrl+drag draws a stroke that selects splats, not a rectangle."""
    box: Box | None = None
    """The box in the world that selects splats, while it is set up."""
    vehicle: str = ""
    """Name of the selected annotated vehicle of the recording; empty for none."""
    placing: Literal["off", "fit", "hand"] = "off"
    """What the next click on the picture does: a box is fitted to the vehicle there, or put on the road there."""
    show_vehicles: bool = False
    """Draw the boxes of all annotated vehicles, not only of the selected one."""
    show_sweep: bool = False
    """Draw the laser points of the time shown."""
    frame: int = 0
    """Index into the recorded trajectory, which says camera and moment; also sets the time of moving objects."""
    offset: float = 0.0
    """Lateral offset of the shown path, m, positive is left."""
    segment: Segment = Segment(0, 1)
    """Half-open range of frames that repair, fusion and export take."""
    playing: bool = False
    follow: bool = True
    """True while the camera stands on the shown path; False in free flight."""
    show_paths: bool = True
    show_cameras: bool = False
    filmstrip: Filmstrips = "off"
    """Small photos in the timeline: of all cameras now, or of moments along the drive."""
    fov_scale: float = 1.0
    """Factor on the recorded lens' field of view; 1 is the recorded lens."""

    @property
    def needs_eig(self) -> bool:
        """Whether drawing this view takes an EIG pass."""
        shown = {self.layer} | ({self.compare_with} if self.compare != "off" else set())
        return self.tint or bool(shown & EIG_LAYERS)


@dataclass(frozen=True)
class Measurement:
    """What the viewport found out about the picture a client sees at rest."""

    ms: float
    """Time to draw the last picture, milliseconds."""
    fps: float
    """Pictures per second over the last second of movement; 0 at rest."""
    size: tuple[int, int]
    """Rendered width and height, pixels."""
    coarse: bool
    histogram: tuple[float, ...] = ()
    """Share of covered and uncovered pixels per bin of calibrated EIG, 0..1; empty without EIG."""
    eig_max: float = 0.0
    """End of the colour scale of the layer "eig", nats."""
    probe: str = ""
    """The value at the pixel the user asked for, in words."""
    problem: str = ""
    """Why the picture could not be drawn as asked, one sentence; empty when it could."""
    version: int = 0
    """Version of the scene shown."""

    def share_above(self, value: float) -> float:
        """Share of pixels whose calibrated EIG is at least `value`, from the histogram."""
        if not self.histogram:
            return float("nan")
        bins = len(self.histogram)
        position = min(max(value, 0.0), 1.0) * bins
        whole = min(int(position), bins - 1)
        partial = self.histogram[whole] * (whole + 1 - position)
        return float(sum(self.histogram[whole + 1 :]) + partial)


@runtime_checkable
class Window(Protocol):
    """The browser side of one client, as far as panels need it."""

    def notify(self, title: str, body: str, error: bool) -> None:
        """Show a short message."""
        ...

    def download(self, name: str, data: bytes) -> None:
        """Hand a file to the browser."""
        ...

    def current_camera(self) -> Camera | None:
        """What the client looks through, at full size; None before its first message."""
        ...


class View:
    """The newest `ViewState` of one client, for panels, keys and the viewport alike."""

    def __init__(
        self, state: ViewState, *, num_frames: int, window: Window, rig: Rig | None = None
    ) -> None:
        self._state = state
        self._lock = threading.RLock()
        self._subscribers: list[Callable[[ViewState], None]] = []
        self._measured: list[Callable[[Measurement], None]] = []
        self._drawn: list[Callable[[Drawn], None]] = []
        self._measurement = Measurement(ms=0.0, fps=0.0, size=(0, 0), coarse=False)
        self._window = window
        self.num_frames = num_frames
        """Frames of the recorded trajectory; 0 without a recording."""
        self.rig = rig or single(num_frames)
        """Moments and cameras of the recorded trajectory."""
        self._wipes: dict[int, float] = {}

    def get(self) -> ViewState:
        """The newest state."""
        return self._state

    def set(self, **changes: Any) -> None:
        """Change fields at once; subscribers are called in this thread if anything changed.

        Args:
            changes: Fields of `ViewState`; frame, offset, wipe and segment are clamped to what exists.
        """
        with self._lock:
            state = replace(self._state, **self._clamped(changes))
            if state == self._state:
                return
            self._state = state
            subscribers = tuple(self._subscribers)
        for call in subscribers:
            self._tell(call, state)

    @property
    def moment(self) -> int:
        """The moment of the shown frame."""
        return self.rig.moment_of(self._state.frame)

    def frame_at(self, moment: int) -> int:
        """The shown camera's frame at a moment."""
        if not self.num_frames:
            return 0
        return self.rig.frame_at(moment, self.rig.camera_of(self._state.frame))

    def look_through(self, camera: int) -> None:
        """Another camera of the rig, at the same moment, with the divider where it stood for this camera."""
        if not self.num_frames:
            return
        state = self._state
        self._wipes[self.rig.camera_of(state.frame)] = state.wipe
        camera %= len(self.rig.names)
        frame = self.rig.frame_at(self.rig.moment_of(state.frame), camera)
        self.set(frame=frame, follow=True, wipe=self._wipes.get(camera, 0.5))

    def _tell(self, call: Callable[[Any], None], news: Any) -> None:
        """One listener that fails must not keep the others, or the setter, from going on."""
        try:
            call(news)
        except CALLBACK_ERRORS as error:
            _log.exception("a listener of the view failed")
            self.notify("A panel could not be updated", describe(error), error=True)

    def _clamped(self, changes: dict[str, Any]) -> dict[str, Any]:
        last = max(self.num_frames - 1, 0)
        if "frame" in changes:
            changes["frame"] = min(max(int(changes["frame"]), 0), last)
        if "offset" in changes:
            offset = min(max(float(changes["offset"]), -MAX_OFFSET), MAX_OFFSET)
            changes["offset"] = round(offset, 3) + 0.0
        if "wipe" in changes:
            changes["wipe"] = min(max(float(changes["wipe"]), 0.0), 1.0)
        if "segment" in changes:
            start, stop = changes["segment"]
            start = min(max(int(start), 0), last)
            changes["segment"] = Segment(start, min(max(int(stop), start + 1), last + 1))
        return changes

    def subscribe(self, call: Callable[[ViewState], None]) -> Callable[[], None]:
        """Call back after each change; returns the function that ends it."""
        with self._lock:
            self._subscribers.append(call)
        return lambda: _discard(self._lock, self._subscribers, call)

    @property
    def measurement(self) -> Measurement:
        """What the viewport measured last."""
        return self._measurement

    def publish_measurement(self, measurement: Measurement, *, tell: bool = True) -> None:
        """Called by the viewport.

        Args:
            measurement: Of the picture just sent.
            tell: Tell the panels that show numbers of the picture; False only keeps it.
        """
        with self._lock:
            if measurement == self._measurement and not tell:
                return
            self._measurement = measurement
            calls = tuple(self._measured) if tell else ()
        for call in calls:
            self._tell(call, measurement)

    def on_measured(self, call: Callable[[Measurement], None]) -> Callable[[], None]:
        """Call back with each new measurement; returns the function that ends it."""
        with self._lock:
            self._measured.append(call)
        return lambda: _discard(self._lock, self._measured, call)

    def publish_drawn(self, drawn: Drawn) -> None:
        """Called by the window when something was drawn over the picture."""
        with self._lock:
            calls = tuple(self._drawn)
        for call in calls:
            call(drawn)

    def on_drawn(self, call: Callable[[Drawn], None]) -> Callable[[], None]:
        """Call back with each gesture on the picture; returns the function that ends it."""
        with self._lock:
            self._drawn.append(call)
        return lambda: _discard(self._lock, self._drawn, call)

    def guarded(self, call: Callable[[Any], None]) -> Callable[[Any], None]:
        """Wrap a viser callback: our own assignments are ignored, errors become a notification."""

        @functools.wraps(call)
        def run(event: Any) -> None:
            if event.client is None:
                return
            try:
                call(event)
            except StudioError as error:
                self.notify("Not possible", str(error), error=True)
            except CALLBACK_ERRORS as error:
                _log.exception("a control failed")
                self.notify("That did not work", describe(error), error=True)

        return run

    def notify(self, title: str, body: str = "", *, error: bool = False) -> None:
        """Show a short message to this client."""
        self._window.notify(title, body, error)

    def download(self, name: str, data: bytes) -> None:
        """Hand a file to this client's browser."""
        self._window.download(name, data)

    def current_camera(self) -> Camera | None:
        """What this client looks through, at full size; None before its first message."""
        return self._window.current_camera()


def describe(error: BaseException) -> str:
    """One line about an unexpected error, for people."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    line = f"{name}: {text}" if text else name
    return line if len(line) <= 200 else line[:199] + "…"


def _discard(lock: threading.RLock, calls: list[Any], call: Any) -> None:
    with lock:
        if call in calls:
            calls.remove(call)
