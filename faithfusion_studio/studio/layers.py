"""The pictures one view can show, each made on first use from one shared rasterisation.

Colours have one meaning everywhere: UCR red, the band to check amber, generated magenta, trusted
pixels untouched. Colour scales are fixed per scene, so that two views can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera, Trajectory
from faithfusion_studio.render.views import (
    RasterizedView,
    ViewOptions,
    colorize,
    generated_share,
    palette,
    rasterize_view,
    render_features,
)
from faithfusion_studio.scene import Scene
from faithfusion_studio.studio.chosen import Chosen
from faithfusion_studio.studio.lens import ClientPose
from faithfusion_studio.studio.view_state import EigForm, ViewState

if TYPE_CHECKING:
    from faithfusion_studio.information.eig import EigMap
    from faithfusion_studio.information.explain import Explanation

DEPTH_RANGE = (1.0, 100.0)
"""Ends of the logarithmic depth scale, m."""
NATS_KNEE = 0.05
"""The scale of EIG is linear below this and logarithmic above, nats."""
PALETTES = {
    "depth": "turbo",
    "alpha": "gray",
    "eig": "inferno",
    "calibrated": "inferno",
    "difference": "inferno",
}
UCR_COLOR = (0.95, 0.16, 0.16)
BAND_COLOR = (1.0, 0.72, 0.10)
GENERATED_COLOR = (1.0, 0.15, 0.85)
HIGHLIGHT_COLOR = (0.1, 0.95, 0.95)
CHOSEN_COLOR = (1.0, 0.55, 0.05)
HISTOGRAM_BINS = 64
_SHARED = ("view", "eig_view")
"""What layers in different forms of EIG have in common."""


@lru_cache(maxsize=8)
def table(name: str) -> Float32[Tensor, "256 3"]:
    """A colour map, built once."""
    return palette(name)


class Superseded(Exception):  # noqa: N818 - not an error: the picture is not wanted any more
    """A newer camera came before an expensive layer was begun."""


class ViewLayers:
    """All layers of one view of one scene.

    Args:
        scene: What is drawn.
        camera: Where from.
        eig_form: Form of the EIG layers.
        depth: Render depth at once; otherwise when it is first asked for.
    """

    def __init__(
        self, scene: Scene, camera: Camera, eig_form: EigForm, *, depth: bool = True
    ) -> None:
        self.scene = scene
        self.camera = camera
        self.eig_form: EigForm = eig_form
        self.superseded: Callable[[], bool] = lambda: False
        """Asked before EIG is begun; True raises `Superseded` there."""
        self._options = ViewOptions(depth=depth)

    def in_form(self, eig_form: EigForm) -> ViewLayers:
        """The same view with EIG in another form, over the same rasterisation."""
        if eig_form == self.eig_form:
            return self
        other = ViewLayers(self.scene, self.camera, eig_form, depth=self._options.depth)
        kept = {name: self.__dict__[name] for name in _SHARED if name in self.__dict__}
        other.__dict__.update(kept)
        return other

    def ready(self, state: ViewState) -> bool:
        """Whether a view can be shown without a pass over the Gaussians."""
        return "view" in self.__dict__ and (not state.needs_eig or "eig" in self.__dict__)

    @cached_property
    def view(self) -> RasterizedView:
        """The rasterisation all layers share."""
        with torch.no_grad():
            return rasterize_view(self.scene, self.camera, self._options)

    @cached_property
    def rgb(self) -> Float32[Tensor, "H W 3"]:
        """Colour with sky, clamped."""
        return self.view.rgb.detach().clamp(0, 1)

    @cached_property
    def eig_view(self) -> tuple[Camera, RasterizedView]:
        """Where EIG is evaluated: this view, with pixels no smaller than the recorded ones.

        EIG is what one recorded pixel would tell; smaller ones see finer detail, of which less is known.
        So a larger window would seem less known than what is repaired.
        """
        scale = recorded_focal(self.scene) / float(self.camera.K[1, 1])
        if not 0 < scale < 0.95:
            return self.camera, self.view
        camera = self.camera.scaled(scale)
        with torch.no_grad():
            return camera, rasterize_view(self.scene, camera, ViewOptions(depth=False))

    @cached_property
    def eig(self) -> EigMap:
        """Pixel-wise expected information gain, on the grid of `eig_view`."""
        from faithfusion_studio.information.eig import eig_map

        camera, view = self.eig_view
        if self.superseded():
            raise Superseded
        return eig_map(self.scene, camera, form=self.eig_form, view=view)

    @cached_property
    def certainty(self) -> Float32[Tensor, "H W"]:
        """What the threshold is compared with, on the grid of `eig_view`: see `smoothed_value`."""
        from faithfusion_studio.information.regions import smoothed_value

        return smoothed_value(self.eig)

    def _on_screen(self, values: Float32[Tensor, "h w"]) -> Float32[Tensor, "H W"]:
        """A map of the grid of `eig_view` on the pixels of the picture."""
        size = (self.camera.height, self.camera.width)
        if values.shape == size:
            return values
        fine = torch.nn.functional.interpolate(
            values[None, None], size, mode="bilinear", align_corners=False
        )
        return fine[0, 0]

    @cached_property
    def eig_max(self) -> float:
        """End of the colour scale in nats: what the scene's calibration calls unknown."""
        return eig_scale_end(self.scene) or float(self.eig.eig.max())

    @cached_property
    def generated(self) -> Float32[Tensor, "H W"]:
        """Share of each pixel that comes from generated Gaussians."""
        with torch.no_grad():
            return generated_share(self.view, self.camera)

    def image(self, layer: str, state: ViewState) -> Float32[Tensor, "H W 3"]:
        """One layer in colours, [0, 1]."""
        makers: dict[str, Callable[[], Tensor]] = {
            "depth": self._depth,
            "alpha": lambda: colorize(self.view.alpha.detach(), table(PALETTES["alpha"])),
            "eig": self._nats,
            "calibrated": self._zero_to_one,
            "overlay": lambda: self._overlay(state.overlay_opacity),
            "provenance": self._provenance,
        }
        return makers.get(layer, lambda: self.rgb)()

    def _zero_to_one(self) -> Float32[Tensor, "H W 3"]:
        return colorize(self._on_screen(self.eig.calibrated), table(PALETTES["calibrated"]))

    def _nats(self) -> Float32[Tensor, "H W 3"]:
        end = math.log1p(max(self.eig_max, 1e-6) / NATS_KNEE)
        values = torch.log1p(self.eig.eig / NATS_KNEE) / end
        return colorize(self._on_screen(values), table(PALETTES["eig"]))

    def _depth(self) -> Float32[Tensor, "H W 3"]:
        near, far = DEPTH_RANGE
        depth = self.view.depth.detach()
        values = torch.log(depth.clamp(near, far) / near) / math.log(far / near)
        shown = (self.view.alpha.detach() > 0.1)[..., None]
        return colorize(values, table(PALETTES["depth"])) * shown

    def _overlay(self, opacity: float) -> Float32[Tensor, "H W 3"]:
        """Trusted pixels keep their colour; the heat fades in with what the threshold looks at."""
        value = self._on_screen(self.certainty)
        heat = colorize(value, table(PALETTES["calibrated"]))
        weight = opacity * (value * 2.5).clamp(0, 1)[..., None]
        return self.rgb * (1 - weight) + heat * weight

    def _provenance(self) -> Float32[Tensor, "H W 3"]:
        grey = self.rgb.mean(-1, keepdim=True).expand_as(self.rgb)
        share = self.generated.clamp(0, 1)[..., None]
        color = torch.tensor(GENERATED_COLOR, device=grey.device)
        return grey * (1 - 0.8 * share) + color * 0.8 * share

    def tinted(
        self, image: Float32[Tensor, "H W 3"], threshold: tuple[float, float]
    ) -> Float32[Tensor, "H W 3"]:
        """The picture with UCR in red and the band to check in amber."""
        from faithfusion_studio.information.regions import split_regions

        low, tau = threshold
        kind = (self._on_screen(self.certainty) >= low).to(torch.long)
        kind[self._on_screen(split_regions(self.eig, tau).ucr.to(torch.float32)) > 0.5] = 2
        weight = torch.tensor([0.0, 0.22, 0.42], device=image.device)
        colors = torch.tensor([[0.0] * 3, BAND_COLOR, UCR_COLOR], device=image.device)
        tint = weight[:, None] * colors
        return torch.addcmul(tint[kind], image, (1 - weight)[kind][..., None])

    def highlighted(
        self, image: Float32[Tensor, "H W 3"], rows: tuple[int, ...]
    ) -> Float32[Tensor, "H W 3"]:
        """The picture dimmed, and some splats of the scene in cyan as far as they are seen."""
        chosen = torch.zeros(self.scene.num_gaussians, device=image.device)
        chosen[torch.tensor([r for r in rows if r < len(chosen)], dtype=torch.long)] = 1
        return self._over(0.6 * image, chosen, HIGHLIGHT_COLOR)

    def with_chosen(
        self, image: Float32[Tensor, "H W 3"], chosen: Chosen
    ) -> Float32[Tensor, "H W 3"]:
        """The picture with the selected splats in orange as far as they are seen."""
        return self._over(image, chosen.mask.to(image), CHOSEN_COLOR)

    def _over(
        self,
        image: Float32[Tensor, "H W 3"],
        chosen: Float32[Tensor, "N"],
        color: tuple[float, float, float],
    ) -> Float32[Tensor, "H W 3"]:
        """Some splats in one colour; as they may be smaller than a pixel, each is drawn a little larger."""
        world = self.view.world
        values = chosen if world.rows is None else chosen[world.rows.to(chosen.device)]
        with torch.no_grad():
            share, _, _ = render_features(self.view, self.camera, values[:, None])
        larger = torch.nn.functional.max_pool2d(share.permute(2, 0, 1), 5, stride=1, padding=2)
        weight = (0.9 * larger.sqrt()).clamp(0, 1).permute(1, 2, 0)
        return image * (1 - weight) + torch.tensor(color, device=image.device) * weight

    @cached_property
    def histogram(self) -> tuple[float, ...]:
        """Share of pixels per bin of what the threshold is compared with; uncovered ones count as 1."""
        values = torch.where(self.eig.coverage, self.certainty, 1.0)
        counts = torch.histc(values.clamp(0, 1), bins=HISTOGRAM_BINS, min=0.0, max=1.0)
        return tuple((counts / max(values.numel(), 1)).tolist())

    def probe(self, x: float, y: float) -> str:
        """What is at a picture position (0..1 each), in words with units."""
        column = min(int(x * self.camera.width), self.camera.width - 1)
        row = min(int(y * self.camera.height), self.camera.height - 1)
        alpha = float(self.view.alpha[row, column])
        depth = float(self.view.depth[row, column])
        where = f"depth {depth:.1f} m" if alpha > 0.1 else "nothing here but sky"
        words = [where, f"opacity {alpha:.2f}"]
        if self.scene.fisher is not None:
            height, width = self.eig.eig.shape
            place = min(int(y * height), height - 1), min(int(x * width), width - 1)
            nats, value = float(self.eig.eig[place]), float(self.eig.calibrated[place])
            words.insert(0, f"EIG {nats:.2f} nats ({value:.2f})")
        return " · ".join(words)

    def object_at(self, x: float, y: float) -> str:
        """Name of the object at a picture position (0..1 each); empty for none."""
        from faithfusion_studio.editing import object_at

        column = min(max(int(x * self.camera.width), 0), self.camera.width - 1)
        row = min(max(int(y * self.camera.height), 0), self.camera.height - 1)
        return object_at(self.scene, self.view, column, row) or ""

    def explain(self, x: float, y: float) -> Explanation | None:
        """Why the pixel at a picture position (0..1 each) is uncertain; None without evidence."""
        from faithfusion_studio.information.explain import explain_pixel

        scene = self.scene
        if scene.fisher is None or len(scene.fisher.blocks) != scene.num_gaussians:
            return None
        camera, view = self.eig_view
        column = min(max(int(x * camera.width), 0), camera.width - 1)
        row = min(max(int(y * camera.height), 0), camera.height - 1)
        return explain_pixel(scene, camera, column, row, view=view)


class LayerCache:
    """The layers of the view drawn last: what changes over the picture needs no new rendering."""

    def __init__(self) -> None:
        self._place: tuple[Scene, ClientPose, int] | None = None
        self._by_width: dict[int, ViewLayers] = {}

    def find(
        self, scene: Scene, pose: ClientPose, state: ViewState, size: tuple[int, int]
    ) -> ViewLayers | None:
        """Layers of this view: of this size, or larger ones that are ready to be shown."""
        place = self._place
        if place is None or place[0] is not scene or place[1:] != (pose, state.frame):
            return None
        for width in sorted(self._by_width):
            layers = self._by_width[width].in_form(state.eig_form)
            if width == size[0] or (width > size[0] and layers.ready(state)):
                self._by_width[width] = layers
                return layers
        return None

    def get(
        self,
        scene: Scene,
        pose: ClientPose,
        state: ViewState,
        size: tuple[int, int],
        *,
        depth: bool = True,
    ) -> ViewLayers:
        """Layers of a view from the cache, or new ones that are kept."""
        found = self.find(scene, pose, state, size)
        if found is not None:
            return found
        place = (scene, pose, state.frame)
        if self._place is None or self._place[0] is not scene or self._place[1:] != place[1:]:
            self._place, self._by_width = place, {}
        camera = pose.camera(*size, time=frame_time(scene, state.frame))
        layers = ViewLayers(scene, camera, state.eig_form, depth=depth)
        self._by_width[size[0]] = layers
        return layers

    def clear(self) -> None:
        """Forget the last view."""
        self._place, self._by_width = None, {}


def frame_time(scene: Scene, frame: int) -> float:
    """Time of a recorded frame, s; 0 without a recording."""
    if scene.capture is None or not scene.capture.trajectory.cameras:
        return 0.0
    cameras = scene.capture.trajectory.cameras
    return cameras[min(max(frame, 0), len(cameras) - 1)].time


def recorded_focal(scene: Scene) -> float:
    """The longest vertical focal length of the recording, pixels; 0 without one."""
    if scene.capture is None or not scene.capture.trajectory.cameras:
        return 0.0
    return _longest_focal(scene.capture.trajectory)


@lru_cache(maxsize=2)
def _longest_focal(trajectory: Trajectory) -> float:
    return max(float(camera.K[1, 1]) for camera in trajectory.cameras)


def eig_scale_end(scene: Scene) -> float:
    """The nats the scene's calibration maps to 1; 0 without a calibration."""
    if scene.fisher is None or scene.fisher.calibration is None:
        return 0.0
    return float(scene.fisher.calibration[-1, 0])
