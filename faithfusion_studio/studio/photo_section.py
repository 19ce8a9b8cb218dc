"""The recorded photo beside the rendering, exactly where its camera stood: wipe, side by side, difference."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from faithfusion_studio.scene import PosedImage, Scene, SceneError
from faithfusion_studio.studio.view_state import Compare, View, ViewState
from faithfusion_studio.studio.widgets import change, note

WAYS: dict[str, Compare] = {
    "Off": "off",
    "Wipe": "wipe",
    "Side by side": "side",
    "Difference": "difference",
}


def no_photo(scene: Scene, state: ViewState) -> str:
    """Why the photo of the shown frame cannot stand beside the rendering, one sentence; empty when it can."""
    if scene.capture is None or not 0 <= state.frame < len(scene.capture.frames):
        return "This scene came without recorded photos, so there is none to compare with."
    if state.offset != 0.0:
        return "A photo fits only where it was taken: go back to the recorded lane first (key 0)."
    if not state.follow:
        return "A photo fits only where it was taken: go back to the recorded camera first (key C)."
    return _unreadable(scene.capture.frames[state.frame])


@lru_cache(maxsize=64)
def _unreadable(photo: PosedImage) -> str:
    try:
        photo.thumbnail(32)
    except SceneError as error:
        return str(error)
    return ""


class PhotoSection:
    """A choice in the current container, and below it why it is off."""

    def __init__(self, gui: Any, session: Any, view: View) -> None:
        self._session, self._view = session, view
        self._way = gui.add_dropdown(
            "Photo beside", tuple(WAYS), hint="The recorded photo beside the rendering. Key F."
        )
        self._why = gui.add_html("", visible=False)
        self._way.on_update(view.guarded(lambda _event: self._chosen()))

    def _chosen(self) -> None:
        way = WAYS[self._way.value]
        if way == "off":
            self._view.set(compare="off")
        else:
            self._view.set(layer="rgb", compare=way, compare_with="photo", before=False)

    def update(self, state: ViewState) -> None:
        """Show whether there is a photo here, and how it is compared."""
        reason = no_photo(self._session.store.latest().scene, state)
        shown = state.compare if state.compare_with == "photo" else "off"
        change(self._way, value=next(title for title, way in WAYS.items() if way == shown))
        change(self._way, disabled=bool(reason) and shown == "off")
        change(self._why, content=note(reason, warn=shown != "off"), visible=bool(reason))
