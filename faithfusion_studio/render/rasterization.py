"""The one rasterisation signature, the two information kernels, and their dispatch by tensor device.

Frames: means are in world coordinates (metres), `viewmats` map world to camera (OpenCV: x right, y down, z forward),
pixel centres lie at +0.5. Semantics are those of gsplat 1.5.3: alpha = min(0.999, o exp(-s)), Gaussians below 1/255
are skipped, a pixel stops before its transmittance would fall to 1e-4.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from faithfusion_studio.errors import StudioError

RenderMode = Literal["RGB", "D", "ED", "RGB+D", "RGB+ED"]
RasterizeMode = Literal["classic", "antialiased"]
MAX_SH_DEGREE = 3
MAX_SIDE = 32768


class BackendError(StudioError):
    """The rasteriser cannot run: no CUDA, the compiled core is missing, or tensors that do not fit together."""


@dataclass(frozen=True)
class ScreenQuantities:
    """What each camera sees of each Gaussian; zero where the Gaussian was culled."""

    means2d: Float[Tensor, "C N 2"]
    """Projected centres, pixels."""
    conics: Float[Tensor, "C N 3"]
    """Inverse screen covariance (xx, xy, yy), 1 / pixel^2, blur included."""
    radii: Int32[Tensor, "C N 2"]
    """Half extent of the touched box, pixels; 0 = culled."""
    depths: Float[Tensor, "C N"]
    """z in the camera, m."""
    opacities: Float[Tensor, "C N"]
    """Opacity used for blending (with the factor of the antialiased mode), [0, 1]."""
    colors: Float[Tensor, "C N D"]
    """Evaluated colour or the given features."""


@dataclass(eq=False)
class RasterizationMeta:
    """What a rasterisation leaves behind for densification and for the information kernels.

    `grad_means2d` and `absgrad` are None until a backward pass through the rasterisation has run.
    """

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    backgrounds: Tensor | None
    """[C, X] as blended, or None for black."""
    tiles: Any
    """Projected Gaussians and tile lists; opaque, owned by the backend of `device`."""
    device: torch.device
    """Where the rasterisation ran."""
    load_screen: Callable[[], ScreenQuantities] = field(repr=False)
    """Computes `screen` when it is first asked for; a viewer never pays for it."""
    grad_means2d: Float[Tensor, "C N 2"] | None = None
    """d loss / d means2d of the last backward pass, 1 / pixel."""
    absgrad: Float[Tensor, "C N 2"] | None = None
    """Sum over pixels of |d loss / d means2d| of the last backward pass, when asked for."""

    @cached_property
    def screen(self) -> ScreenQuantities:
        """All screen quantities, computed once."""
        return self.load_screen()

    @property
    def means2d(self) -> Float[Tensor, "C N 2"]:
        """Projected centres, pixels."""
        return self.screen.means2d

    @property
    def conics(self) -> Float[Tensor, "C N 3"]:
        """Inverse screen covariances (xx, xy, yy)."""
        return self.screen.conics

    @property
    def radii(self) -> Int32[Tensor, "C N 2"]:
        """Half extents in pixels; 0 = culled."""
        return self.screen.radii

    @property
    def depths(self) -> Float[Tensor, "C N"]:
        """z in the camera, m."""
        return self.screen.depths

    @property
    def opacities(self) -> Float[Tensor, "C N"]:
        """Opacities used for blending."""
        return self.screen.opacities

    @property
    def colors(self) -> Float[Tensor, "C N D"]:
        """Evaluated colours or the given features."""
        return self.screen.colors


def backend(device: torch.device) -> ModuleType:
    """The module that renders tensors of a device.

    Raises:
        BackendError: No such device here.
    """
    if device.type == "cpu":
        from faithfusion_studio.render import cpu

        return cpu
    if device.type == "cuda" and torch.cuda.is_available():
        from faithfusion_studio.render import cuda

        return cuda
    raise BackendError(
        f"The tensors are on {device}, but this PyTorch can only render on the CPU; move them with .to('cpu')."
    )


def _require(condition: bool, found: str, expected: str) -> None:
    if not condition:
        raise BackendError(f"Found {found}; expected {expected}.")


def _check_tensors(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    device = tensors["means"].device
    for name, tensor in tensors.items():
        _require(tensor.is_floating_point(), f"{name} of {tensor.dtype}", "a floating point tensor")
        _require(tensor.device == device, f"{name} on {tensor.device}", f"{device}, like means")
        if name in shapes:
            shape = tuple(tensor.shape)
            _require(shape == shapes[name], f"{name} of shape {shape}", f"shape {shapes[name]}")


def _check_features(colors: Tensor, n: int) -> int:
    """Number of channels of valid features."""
    shape = tuple(colors.shape)
    _require(
        colors.ndim == 2 and shape[0] == n and shape[1] >= 1,
        f"colors of shape {shape} without sh_degree",
        f"({n}, D) features",
    )
    return shape[1]


def _check_harmonics(parts: tuple[Tensor, ...], n: int, sh_degree: int) -> None:
    """SH coefficients in one tensor, or the first and the higher ones apart."""
    _require(0 <= sh_degree <= MAX_SH_DEGREE, f"sh_degree {sh_degree}", f"0 to {MAX_SH_DEGREE}")
    needed, shapes = (sh_degree + 1) ** 2, [tuple(part.shape) for part in parts]
    fits = all(len(shape) == 3 and shape[0] == n and shape[2] == 3 for shape in shapes)
    if len(parts) == 1:
        expected = f"({n}, K, 3) with K at least {needed}"
        _require(
            fits and shapes[0][1] >= needed,
            f"colors of shape {shapes[0]} for sh_degree {sh_degree}",
            expected,
        )
        return
    _require(
        fits and len(parts) == 2 and shapes[0][1] == 1 and shapes[1][1] >= needed - 1,
        f"colors of shapes {', '.join(map(str, shapes))} for sh_degree {sh_degree}",
        f"({n}, 1, 3) and ({n}, K - 1, 3) with K at least {needed}",
    )


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor | tuple[Tensor, Tensor],
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,
    render_mode: RenderMode = "RGB",
    rasterize_mode: RasterizeMode = "classic",
    absgrad: bool = False,
) -> tuple[Tensor, Tensor, RasterizationMeta]:
    """Render 3D Gaussians from C cameras, differentiably, on the device that holds them.

    Args:
        means: [N, 3] centres, world, m.
        quats: [N, 4] orientations wxyz, body to world; normalised here.
        scales: [N, 3] standard deviations along the body axes, m, positive (activated).
        opacities: [N] in [0, 1] (activated).
        colors: [N, D] features, or with `sh_degree` all SH coefficients [N, K, 3], or the pair (first
            [N, 1, 3], higher [N, K - 1, 3]) as they are stored and learned, which saves a copy.
        viewmats: [C, 4, 4] world to camera, rigid.
        Ks: [C, 3, 3] pinhole intrinsics, pixels; no gradient flows to them.
        width: Image width, pixels.
        height: Image height, pixels.
        near_plane: Gaussians whose centre is nearer are skipped, m.
        far_plane: Gaussians whose centre is farther are skipped, m.
        radius_clip: Gaussians whose screen radius is not larger are skipped, pixels.
        eps2d: Added to the diagonal of the screen covariance, pixels^2.
        sh_degree: Degree of the harmonics to use, 0 to 3; None means plain features.
        backgrounds: [C, D] colours behind everything (depth has 0 behind it); None is black.
        render_mode: Colours, accumulated depth (D), expected depth (ED), or colours then depth.
        rasterize_mode: "antialiased" scales opacity by what the blur of `eps2d` took away.
        absgrad: Also collect `meta.absgrad` in the backward pass.

    Returns:
        Colours [C, H, W, X], alphas [C, H, W, 1] (remaining transmittance is 1 - alpha), and the meta.

    Raises:
        BackendError: Shapes, types or devices do not fit, or the device has no backend.

    Source: names and semantics of gsplat 1.5.3 `rasterization`.
    """
    n, cameras = (
        int(means.shape[0]) if means.ndim else 0,
        int(viewmats.shape[0]) if viewmats.ndim else 0,
    )
    tensors = {"means": means, "quats": quats, "scales": scales, "opacities": opacities}
    tensors |= {"viewmats": viewmats, "Ks": Ks}
    parts = colors if isinstance(colors, tuple) else (colors,)
    tensors |= dict(zip(("colors", "higher colors"), parts, strict=False))
    shapes = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,)}
    shapes |= {"viewmats": (cameras, 4, 4), "Ks": (cameras, 3, 3)}
    if sh_degree is None:
        _require(len(parts) == 1, "a pair of colors without sh_degree", f"({n}, D) features")
        channels = _check_features(parts[0], n)
    else:
        _check_harmonics(parts, n, sh_degree)
        channels = 3
    if backgrounds is not None:
        tensors["backgrounds"] = backgrounds
        shapes["backgrounds"] = (cameras, channels)
    _check_tensors(tensors, shapes)
    _require(cameras > 0, "no camera", "at least one viewmat")
    _require(
        0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE,
        f"an image of {width}x{height}",
        f"sides of 1 to {MAX_SIDE} pixels",
    )
    _require(
        render_mode in get_args(RenderMode),
        f"render_mode {render_mode!r}",
        f"one of {get_args(RenderMode)}",
    )
    _require(
        rasterize_mode in get_args(RasterizeMode),
        f"rasterize_mode {rasterize_mode!r}",
        f"one of {get_args(RasterizeMode)}",
    )
    return backend(means.device).rasterization(
        means,
        quats,
        scales,
        opacities,
        parts,
        viewmats,
        Ks,
        width,
        height,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        sh_degree=sh_degree,
        backgrounds=backgrounds,
        render_mode=render_mode,
        rasterize_mode=rasterize_mode,
        absgrad=absgrad,
    )


def accumulate_information(
    meta: RasterizationMeta,
    pixel_weight: Float[Tensor, "C H W"],
    backgrounds: Float[Tensor, "C H W 3"] | None = None,
) -> Float[Tensor, "C N 45"]:
    """Sum weight(p) J_i(p)^T J_i(p) over the pixels of each camera: the screen Fisher blocks.

    J_i(p) [3, 9] = d colour(p) / d record of Gaussian i; the record is mean2d (2, pixels), screen covariance
    (xx, xy, yy; pixels^2), logit of the blended opacity (1), colour (3). Rows of a colour that was clamped at 0
    and geometry behind an alpha clamped at 0.999 are already zero: callers need not mask.

    Args:
        meta: From `rasterization` with three colour channels (depth may follow).
        pixel_weight: Weight of each pixel's evidence, >= 0.
        backgrounds: What was put behind the Gaussians after rasterising, such as a sky; None is `meta.backgrounds`.

    Returns:
        Upper triangles, row by row, of symmetric 9x9 matrices; zero for Gaussians that were culled.

    Raises:
        BackendError: The meta has no three colour channels, or the weight has another size.
    """
    return backend(meta.device).accumulate_information(meta, pixel_weight, backgrounds)


def evaluate_information(
    meta: RasterizationMeta,
    covariances: Float[Tensor, "C N 45"],
    backgrounds: Float[Tensor, "C H W 3"] | None = None,
) -> Float[Tensor, "C H W 6"]:
    """Sum J_i(p) M_i J_i(p)^T over the Gaussians of each pixel: the predictive colour covariance G.

    Args:
        meta: From `rasterization` with three colour channels (depth may follow).
        covariances: M_i over the screen record of `accumulate_information`, packed upper triangles of 9x9.
        backgrounds: As in `accumulate_information`.

    Returns:
        G packed as (rr, rg, rb, gg, gb, bb) per pixel; 0 where nothing was drawn.

    Raises:
        BackendError: The meta has no three colour channels, or the covariances have another shape.
    """
    return backend(meta.device).evaluate_information(meta, covariances, backgrounds)
