"""From a scene and a camera to finished images: time, sky, exposure, depth, colour maps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.gaussians import Provenance
from faithfusion_studio.scene import Scene, WorldGaussians
from faithfusion_studio.sky import ConstantSky, CubemapSky, pixel_directions

if TYPE_CHECKING:
    from faithfusion_studio.render.rasterization import RasterizationMeta, RenderMode


@dataclass(frozen=True)
class ViewOptions:
    """How a view is rendered."""

    near_plane: float = 0.05
    """Gaussians nearer than this are not drawn, m."""
    provenance: bool = False
    """Also render the share of each pixel that was generated rather than recorded."""
    sky: bool = True
    """Fill the remaining transmittance with the scene's sky."""
    depth: bool = True
    """Render depth together with colour; otherwise only if it is asked for, which takes a second pass."""


@dataclass(frozen=True, eq=False)
class RenderedView:
    """One finished view."""

    rgb: Float32[Tensor, "H W 3"]
    """Colour in [0, 1], sky included, clamped."""
    alpha: Float32[Tensor, "H W"]
    """Opacity of the Gaussians alone, 0..1."""
    depth: Float32[Tensor, "H W"]
    """Expected depth along the camera's z axis, m; 0 where nothing is."""
    generated: Float32[Tensor, "H W"] | None = None
    """Share of the pixel's weight that comes from generated Gaussians, 0..1."""


@dataclass(frozen=True, eq=False)
class RasterizedView:
    """A view with what differentiable and information passes need beside it."""

    rgb: Float32[Tensor, "H W 3"]
    """Colour with sky, not clamped; differentiable."""
    alpha: Float32[Tensor, "H W"]
    background: Float32[Tensor, "H W 3"]
    """What is behind the Gaussians: the sky's radiance, or black."""
    meta: RasterizationMeta
    world: WorldGaussians
    load_depth: Callable[[], Tensor] = field(repr=False)
    """Gives `depth` when it is first asked for."""

    @cached_property
    def depth(self) -> Float32[Tensor, "H W"]:
        """Expected depth along the camera's z axis, m; 0 where nothing is."""
        return self.load_depth()


# The scenes drawn last: a viewer draws many views of one moment, sometimes of the scene before beside it.
_RECENT: list[tuple[weakref.ref[Scene], float, WorldGaussians]] = []
_KEPT = 2


def _world(scene: Scene, time: float) -> WorldGaussians:
    """The scene at one time; the same value again while nothing has moved, so that it is activated once."""
    if torch.is_grad_enabled():
        return scene.at(time)
    time = time if scene.nodes else 0.0
    recent = tuple(_RECENT)
    for kept, at, world in recent:
        if kept() is scene and at == time:
            return world
    world = scene.at(time)
    entry = (weakref.ref(scene, lambda _gone: _RECENT.clear()), time, world)
    _RECENT[:] = (entry, *(one for one in recent if one[0]() is not scene))[:_KEPT]
    return world


def rasterize_view(
    scene: Scene, camera: Camera, options: ViewOptions | None = None
) -> RasterizedView:
    """Rasterise one view of a scene and keep the tile lists.

    Args:
        scene: What to draw; nodes are placed at `camera.time`.
        camera: Where from; sizes in pixels.
        options: See `ViewOptions`.
    """
    from faithfusion_studio.render.rasterization import rasterization

    options = options or ViewOptions()
    world = _world(scene, camera.time)
    g = world.gaussians
    device = g.means.device

    def rasterized(mode: RenderMode) -> tuple[Tensor, Tensor, RasterizationMeta]:
        return rasterization(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            (g.sh0, g.shN),
            camera.viewmat.to(device, torch.float32)[None],
            camera.K.to(device, torch.float32)[None],
            camera.width,
            camera.height,
            near_plane=options.near_plane,
            sh_degree=g.sh_degree,
            render_mode=mode,
        )

    colors, alphas, meta = rasterized("RGB+ED" if options.depth else "RGB")
    background = (
        sky_image(scene, camera, device) if options.sky else torch.zeros_like(colors[0, :, :, :3])
    )
    rgb = torch.addcmul(colors[0, :, :, :3], 1 - alphas[0], background)
    rgb = apply_exposure(rgb, scene.tone)

    def depth() -> Tensor:
        return colors[0, :, :, 3] if options.depth else rasterized("ED")[0][0, :, :, 0]

    return RasterizedView(rgb, alphas[0, :, :, 0], background, meta, world, depth)


def sky_image(
    scene: Scene, camera: Camera, device: torch.device | str = "cpu"
) -> Float32[Tensor, "H W 3"]:
    """The sky's radiance at every pixel; black where the scene has no sky model."""
    if scene.sky is None:
        return torch.zeros(camera.height, camera.width, 3, device=device)
    if isinstance(scene.sky, ConstantSky):
        return scene.sky.color.to(device).expand(camera.height, camera.width, 3)
    if isinstance(scene.sky, CubemapSky) and torch.device(device).type == "cpu":
        from faithfusion_studio.render.images import cubemap_image

        return cubemap_image(scene.sky.texels, camera)
    return scene.sky.radiance(pixel_directions(camera, device))


def render_view(scene: Scene, camera: Camera, options: ViewOptions | None = None) -> RenderedView:
    """One finished view of a scene, without gradients.

    Args:
        scene: What to draw; nodes are placed at `camera.time`.
        camera: Where from.
        options: See `ViewOptions`.
    """
    options = options or ViewOptions()
    with torch.no_grad():
        view = rasterize_view(scene, camera, options)
        generated = generated_share(view, camera) if options.provenance else None
        return RenderedView(view.rgb.clamp(0, 1), view.alpha, view.depth, generated)


def render_views(
    scene: Scene, cameras: Iterable[Camera], options: ViewOptions | None = None
) -> Iterator[RenderedView]:
    """Finished views one after the other."""
    for camera in cameras:
        yield render_view(scene, camera, options)


def generated_share(view: RasterizedView, camera: Camera) -> Float32[Tensor, "H W"]:
    """Alpha-weighted share of generated Gaussians at each pixel, 0..1."""
    feature = (view.world.gaussians.provenance != int(Provenance.RECORDED)).to(torch.float32)
    share, alpha, _ = render_features(view, camera, feature[:, None])
    return share[:, :, 0] / alpha.clamp(min=1e-6)


def render_features(
    view: RasterizedView, camera: Camera, features: Float32[Tensor, "N D"]
) -> tuple[Float32[Tensor, "H W D"], Float32[Tensor, "H W"], RasterizationMeta]:
    """Any features of the Gaussians, blended as their colours are: sum over Gaussians of weight times feature.

    Args:
        view: The same view, rasterised.
        camera: Its camera.
        features: One row per Gaussian of `view.world`; differentiable.

    Returns:
        The blended features, the opacity, and the meta of this rasterisation.
    """
    from faithfusion_studio.render.rasterization import rasterization

    g = view.world.gaussians
    device = g.means.device
    rendered, alphas, meta = rasterization(
        g.means.detach(),
        g.quats.detach(),
        g.scales.detach(),
        g.opacities.detach(),
        features,
        camera.viewmat.to(device, torch.float32)[None],
        camera.K.to(device, torch.float32)[None],
        camera.width,
        camera.height,
        near_plane=ViewOptions().near_plane,
    )
    return rendered[0], alphas[0, :, :, 0], meta


def gather_pixels(
    view: RasterizedView, camera: Camera, pixels: Float32[Tensor, "H W D"]
) -> Float32[Tensor, "N D"]:
    """Any picture summed into the Gaussians that made it: sum over pixels of blending weight times value.

    The transpose of `render_features`, as its gradient.

    Args:
        view: The same view, rasterised.
        camera: Its camera.
        pixels: Values to sum, D of them per pixel.

    Returns:
        One row per Gaussian of `view.world`; a picture of ones gives the pixels each one fills.
    """
    shape = (len(view.world.gaussians), pixels.shape[-1])
    feature = torch.zeros(shape, device=view.alpha.device, requires_grad=True)
    with torch.enable_grad():
        rendered, _, _ = render_features(view, camera, feature)
    return torch.autograd.grad(rendered, feature, pixels.to(rendered))[0]


def apply_exposure(
    rgb: Float32[Tensor, "H W 3"], exposure: Float32[Tensor, "3 4"] | None
) -> Float32[Tensor, "H W 3"]:
    """Affine colour correction, A rgb + b; None leaves the colours."""
    if exposure is None:
        return rgb
    return rgb @ exposure[:, :3].T + exposure[:, 3]


def colorize(
    values: Float[Tensor, "H W"], palette: Float32[Tensor, "256 3"]
) -> Float32[Tensor, "H W 3"]:
    """False colours of values in [0, 1] by table lookup; values outside are clamped, NaN is 0."""
    index = (torch.nan_to_num(values).clamp(0, 1) * 255 + 0.5).long()
    return palette.to(values.device)[index]


def to_uint8(rgb: Float[Tensor, "H W 3"]) -> UInt8[Tensor, "H W 3"]:
    """Colours in [0, 1] as bytes, rounded."""
    return (rgb.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def palette(name: str) -> Float32[Tensor, "256 3"]:
    """A named matplotlib colour map ("turbo", "viridis", "magma", ...) as a table in [0, 1]."""
    import matplotlib

    table = matplotlib.colormaps[name].resampled(256)(range(256))[:, :3]
    return torch.tensor(table, dtype=torch.float32)
