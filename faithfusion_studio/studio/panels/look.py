"""What do I see, and how far can I trust it? Layer, comparison, EIG histogram with its threshold."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from faithfusion_studio.session.commands import ComputeFisher
from faithfusion_studio.studio.legend import histogram_svg, shares
from faithfusion_studio.studio.photo_section import PhotoSection
from faithfusion_studio.studio.view_state import LAYERS, SOURCES, Measurement, View, ViewState

COMPARE = {
    "off": "One picture",
    "wipe": "Wipe",
    "side": "Side by side",
    "difference": "Difference",
}
STRIPS = {"off": "Off", "cameras": "All cameras, now", "drive": "Along the drive"}
FORMS = {
    "block": "Block (log-det, default)",
    "trace": "Trace (the paper's bound)",
    "diagonal": "Diagonal (the paper's algorithm 1)",
    "joint": "Joint (colour and depth)",
    "released": "As in the published code",
}


def add_look_panel(gui: Any, session: Any, view: View) -> Callable[[Any], None]:
    """Build the tab Look in the current container; returns what shows a new session state."""
    state = view.get()
    layer = gui.add_dropdown(
        "Layer", tuple(LAYERS.values()), initial_value=LAYERS.get(state.layer, "Colour")
    )
    photo = PhotoSection(gui, session, view)
    compare = gui.add_dropdown(
        "Compare", tuple(COMPARE.values()), initial_value=COMPARE[state.compare]
    )
    compare_with = gui.add_dropdown(
        "With", tuple(SOURCES.values()), initial_value=SOURCES[state.compare_with], visible=False
    )
    wipe = gui.add_slider("Divider", 0.0, 1.0, 0.01, state.wipe, visible=False)
    tint = gui.add_checkbox(
        "Tint UCR",
        state.tint,
        hint="Red: unknown, would be regenerated (UCR). Amber: kept, but worth a look. Key M.",
    )
    histogram = gui.add_html(histogram_svg(state, view.measurement))
    # Without a hint: it would cover the histogram while a thumb is dragged. The line below explains.
    threshold = gui.add_multi_slider("Check | UCR", 0.0, 1.0, 0.01, state.threshold, min_range=0.01)
    numbers = gui.add_html("")
    evidence = gui.add_button(
        "Measure the evidence",
        visible=False,
        hint="EIG needs the Fisher information of the recorded views; this sums it.",
    )
    with gui.add_folder("More", expand_by_default=False):
        update_more = _add_more(gui, view)
    _bind(view, layer, compare, compare_with, wipe, tint, threshold)

    evidence.on_click(view.guarded(lambda _event: session.submit(ComputeFisher())))

    def show_view(state: ViewState) -> None:
        if state.layer in LAYERS:
            _assign(layer, LAYERS[state.layer])
        _assign(compare, COMPARE[state.compare])
        _assign(compare_with, SOURCES[state.compare_with])
        photo.update(state)
        _assign(wipe, state.wipe)
        _assign(tint, state.tint)
        _assign(threshold, state.threshold)
        _show(compare_with, state.compare != "off")
        _show(wipe, state.compare == "wipe")
        show_numbers(view.measurement)
        update_more(state)

    def show_numbers(measurement: Measurement) -> None:
        if not session.state.fisher_ready:
            return
        state = view.get()
        _content(histogram, histogram_svg(state, measurement))
        _content(numbers, _note(shares(state, measurement)))

    view.subscribe(show_view)
    view.on_measured(show_numbers)

    def update(session_state: Any) -> None:
        ready = session_state.fisher_ready
        _show(evidence, not ready and session_state.has_recording)
        _show(histogram, ready)
        _show(threshold, ready)
        _show(numbers, True)
        if not ready:
            _content(numbers, _note(_no_eig(session_state.has_recording)))
        else:
            show_numbers(view.measurement)
        evidence.disabled = session_state.job is not None

    show_view(state)
    return update


def _no_eig(has_recording: bool) -> str:
    if not has_recording:
        return "EIG is not available: this scene came without a recording."
    return "EIG is not available: the evidence of the recorded views is not measured yet."


def _bind(
    view: View,
    layer: Any,
    compare: Any,
    compare_with: Any,
    wipe: Any,
    tint: Any,
    threshold: Any,
) -> None:
    """Widgets to view changes."""

    @layer.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(layer=_key(LAYERS, layer.value))

    @compare.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(compare=_key(COMPARE, compare.value))

    @compare_with.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(compare_with=_key(SOURCES, compare_with.value))

    @wipe.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(wipe=wipe.value)

    @tint.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(tint=tint.value)

    @threshold.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(threshold=(float(threshold.value[0]), float(threshold.value[1])))


def _add_more(gui: Any, view: View) -> Callable[[ViewState], None]:
    """The closed folder: what is rarely needed."""
    state = view.get()
    opacity = gui.add_slider("Heat opacity", 0.1, 1.0, 0.05, state.overlay_opacity)
    form = gui.add_dropdown("EIG form", tuple(FORMS.values()), initial_value=FORMS[state.eig_form])
    paths = gui.add_checkbox(
        "Paths",
        state.show_paths,
        hint="On the road: recorded white, shown blue, segment orange. Key P.",
    )
    strip = gui.add_dropdown(
        "Filmstrip",
        tuple(STRIPS.values()),
        initial_value=STRIPS[state.filmstrip],
        hint="Small photos in the timeline; a click goes there.",
    )
    cameras = gui.add_checkbox(
        "Cameras", state.show_cameras, hint="The recorded cameras in 3D; click one to go there."
    )
    lens = gui.add_slider(
        "Lens", 0.5, 2.0, 0.05, state.fov_scale, hint="1 = the recorded lens; more = wider."
    )
    link = gui.add_button("Link to this view")
    address = gui.add_html("")

    @opacity.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(overlay_opacity=opacity.value)

    @form.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(eig_form=_key(FORMS, form.value))

    @paths.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(show_paths=paths.value)

    @strip.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(filmstrip=_key(STRIPS, strip.value))

    @cameras.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(show_cameras=cameras.value)

    @lens.on_update
    @view.guarded
    def _(_event: Any) -> None:
        view.set(fov_scale=lens.value, follow=True)

    @link.on_click
    @view.guarded
    def _(_event: Any) -> None:
        address.content = _link(view)

    def update(state: ViewState) -> None:
        _assign(opacity, state.overlay_opacity)
        _assign(form, FORMS[state.eig_form])
        _assign(paths, state.show_paths)
        _assign(strip, STRIPS[state.filmstrip])
        _assign(cameras, state.show_cameras)
        _assign(lens, state.fov_scale)

    return update


def _link(view: View) -> str:
    """A link that opens this camera; relative, so it also works through a tunnel."""
    camera = view.current_camera()
    if camera is None:
        return ""
    pose = camera.camtoworld
    fov = 2 * float((0.5 * camera.height / camera.K[1, 1]).atan())
    values = {
        "initialCameraPosition": pose[:3, 3].tolist(),
        "initialCameraLookAt": (pose[:3, 3] + 8 * pose[:3, 2]).tolist(),
        "initialCameraUp": (-pose[:3, 1]).tolist(),
        "initialCameraFov": [fov],
    }
    query = "&".join(
        f"{name}=" + quote(",".join(f"{v:.5f}" for v in numbers), safe=",")
        for name, numbers in values.items()
    )
    target = html.escape("/?" + query, quote=True)
    return (
        '<div style="padding:2px 12px;font-size:12.5px"><a style="color:#6ab0ff" '
        f'target="_blank" href="{target}">Open this camera in a new tab</a> '
        "(or copy the link's address)</div>"
    )


def _key(names: dict[str, str], title: str) -> Any:
    return {value: key for key, value in names.items()}[title]


def _assign(handle: Any, value: Any) -> None:
    if handle.value != value:
        handle.value = value


def _show(handle: Any, visible: bool) -> None:
    if handle.visible != visible:
        handle.visible = visible


def _content(handle: Any, text: str) -> None:
    if handle.content != text:
        handle.content = text


def _note(inner: str) -> str:
    return f'<div style="padding:2px 12px 6px;font-size:12.5px;color:#c9cfda">{inner}</div>'
