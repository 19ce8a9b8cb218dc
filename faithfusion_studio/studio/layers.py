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

from faithfusion_studio.cameras import Camera
from faithfusion_studio.render.views import (
    RasterizedView,
    ViewOptions,
    colorize,
    generated_share,
    palette,
    rasterize_view,
)
from faithfusion_studio.scene import Scene
from faithfusion_studio.studio.view_state import EigForm, ViewState

if TYPE_CHECKING:
    from faithfusion_studio.information.eig import EigMap

DEPTH_RANGE = (1.0, 100.0)
"""Ends of the logarithmic depth scale, m."""
NATS_KNEE = 0.05
"""The scale of EIG is linear below this and logarithmic above, nats."""
PALETTES = {"depth": "turbo", "alpha": "gray", "eig": "inferno", "calibrated": "inferno"}
UCR_COLOR = (0.95, 0.16, 0.16)
BAND_COLOR = (1.0, 0.72, 0.10)
GENERATED_COLOR = (1.0, 0.15, 0.85)
HISTOGRAM_BINS = 64


@lru_cache(maxsize=8)
def table(name: str) -> Float32[Tensor, "256 3"]:
    """A colour map, built once."""
    return palette(name)


class ViewLayers:
    """All layers of one view of one scene."""

    def __init__(self, scene: Scene, camera: Camera, eig_form: EigForm) -> None:
        self.scene = scene
        self.camera = camera
        self.eig_form: EigForm = eig_form

    @cached_property
    def view(self) -> RasterizedView:
        """The rasterisation all layers share."""
        with torch.no_grad():
            return rasterize_view(self.scene, self.camera, ViewOptions())

    @cached_property
    def rgb(self) -> Float32[Tensor, "H W 3"]:
        """Colour with sky, clamped."""
        return self.view.rgb.detach().clamp(0, 1)

    @cached_property
    def eig(self) -> EigMap:
        """Pixel-wise expected information gain."""
        from faithfusion_studio.information.eig import eig_map

        return eig_map(self.scene, self.camera, form=self.eig_form, view=self.view)

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
            "calibrated": lambda: colorize(self.eig.calibrated, table(PALETTES["calibrated"])),
            "overlay": lambda: self._overlay(state.overlay_opacity),
            "provenance": self._provenance,
        }
        return makers.get(layer, lambda: self.rgb)()

    def _nats(self) -> Float32[Tensor, "H W 3"]:
        end = math.log1p(max(self.eig_max, 1e-6) / NATS_KNEE)
        values = torch.log1p(self.eig.eig / NATS_KNEE) / end
        return colorize(values, table(PALETTES["eig"]))

    def _depth(self) -> Float32[Tensor, "H W 3"]:
        near, far = DEPTH_RANGE
        depth = self.view.depth.detach()
        values = torch.log(depth.clamp(near, far) / near) / math.log(far / near)
        shown = (self.view.alpha.detach() > 0.1)[..., None]
        return colorize(values, table(PALETTES["depth"])) * shown

    def _overlay(self, opacity: float) -> Float32[Tensor, "H W 3"]:
        """Trusted pixels keep their colour; the heat fades in with the calibrated value."""
        value = self.eig.calibrated[..., None]
        heat = colorize(self.eig.calibrated, table(PALETTES["calibrated"]))
        weight = opacity * (value * 2.5).clamp(0, 1)
        return self.rgb * (1 - weight) + heat * weight

    def _provenance(self) -> Float32[Tensor, "H W 3"]:
        grey = self.rgb.mean(-1, keepdim=True).expand_as(self.rgb)
        share = self.generated.clamp(0, 1)[..., None]
        return grey * (1 - 0.8 * share) + torch.tensor(GENERATED_COLOR) * 0.8 * share

    def tinted(
        self, image: Float32[Tensor, "H W 3"], threshold: tuple[float, float]
    ) -> Float32[Tensor, "H W 3"]:
        """The picture with UCR in red and the band to check in amber."""
        from faithfusion_studio.information.regions import split_regions

        low, tau = threshold
        ucr = split_regions(self.eig, tau).ucr
        band = ((self.eig.calibrated >= low) & ~ucr)[..., None]
        tint = torch.where(band, torch.tensor(BAND_COLOR), torch.tensor(UCR_COLOR))
        weight = torch.where(band, 0.22, 0.42 * ucr[..., None].to(torch.float32))
        return image * (1 - weight) + tint * weight

    def histogram(self) -> tuple[float, ...]:
        """Share of pixels per bin of calibrated EIG; uncovered pixels count as 1."""
        values = torch.where(self.eig.coverage, self.eig.calibrated, torch.ones(()))
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
            nats = float(self.eig.eig[row, column])
            value = float(self.eig.calibrated[row, column])
            words.insert(0, f"EIG {nats:.2f} nats ({value:.2f})")
        return " · ".join(words)


def eig_scale_end(scene: Scene) -> float:
    """The nats the scene's calibration maps to 1; 0 without a calibration."""
    if scene.fisher is None or scene.fisher.calibration is None:
        return 0.0
    return float(scene.fisher.calibration[-1, 0])
