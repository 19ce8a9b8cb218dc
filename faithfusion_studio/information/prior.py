"""What is believed before any view, and which Gaussians a stored evidence belongs to.

Symbols: theta_i = the 13 parameters of Gaussian i (mean 3 in its own frame, rotation tangent 3 in
body axes, log-scale 3, opacity logit 1, sh0 3); H_i [13, 13] = Fisher information of the recorded
views; Lambda = diagonal prior precision; sigma_0 = robust pixel noise of the recording.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.errors import StudioError
from faithfusion_studio.render.chain import ChainView, visible_gaussians
from faithfusion_studio.render.views import RasterizedView
from faithfusion_studio.scene import Scene, StoredFisher
from faithfusion_studio.transforms import SH_C0


class MissingFisherError(StudioError):
    """The scene carries no evidence of its recorded views yet."""


class StaleFisherError(StudioError):
    """Evidence of other Gaussians than the scene has now."""


@dataclass(frozen=True)
class FisherPrior:
    """Prior standard deviations of each kind of parameter; raising one makes unseen pixels count more.

    Chosen once on synthetic scenes and never tuned per scene: between a third and three times these
    values the ranking of pixels hardly changes.
    """

    mean: float = 1.0
    """Centre, as a multiple of the Gaussian's own size (root mean square of its three scales)."""
    rotation: float = 0.5
    """Radians."""
    log_scale: float = 0.5
    """Natural logarithm of the scale."""
    logit: float = 1.5
    """Opacity logit."""
    color: float = 0.17
    """Colour of the Gaussian, colour unit."""
    sh: float = 0.1
    """Each higher SH coefficient, as stored."""
    void: float = 0.4
    """Colour behind everything where no view has looked, colour unit."""

    def precision(self, scales: Float32[Tensor, "N 3"]) -> Float32[Tensor, "N 13"]:
        """Diagonal prior precision of every Gaussian.

        Args:
            scales: Standard deviations of the Gaussians, m.
        """
        size2 = scales.square().mean(-1, keepdim=True).clamp(min=1e-12)
        mean = 1 / (self.mean**2 * size2)
        stds = [*[self.rotation] * 3, *[self.log_scale] * 3, self.logit, *[self.color / SH_C0] * 3]
        rest = torch.tensor([1 / std**2 for std in stds], device=scales.device)
        return torch.cat([mean.expand(-1, 3), rest.expand(len(scales), -1)], dim=1)

    @property
    def sh_precision(self) -> float:
        """Prior precision of one higher SH coefficient."""
        return 1 / self.sh**2


def require_fisher(scene: Scene, fisher: StoredFisher | None) -> StoredFisher:
    """The given evidence, or the scene's own, once it is known to fit.

    Raises:
        MissingFisherError: There is none.
        StaleFisherError: It has another number of rows than the scene has Gaussians.
    """
    found = scene.fisher if fisher is None else fisher
    if found is None:
        raise MissingFisherError(
            "this scene has no evidence of its recorded views, so uncertainty cannot be computed; "
            "compute the evidence first (it needs the recording)."
        )
    if len(found.blocks) != scene.num_gaussians:
        raise StaleFisherError(
            f"the stored evidence is about {len(found.blocks)} Gaussians but the scene has "
            f"{scene.num_gaussians}; compute the evidence again."
        )
    return found


def chain_view(scene: Scene, camera: Camera, view: RasterizedView) -> ChainView:
    """The Gaussians a rasterised view drew, with the rows of the scene they belong to."""
    world = view.world
    g = world.gaussians
    rotations = turning = None
    if scene.nodes:
        poses = [node.pose_at(camera.time) for node in scene.nodes]
        eye = torch.eye(4, dtype=torch.float64)
        stacked = torch.stack([eye if pose is None else pose.to(eye) for pose in poses])
        rotations = stacked[:, :3, :3].to(g.means)
        turns = torch.tensor([node.turns_colors for node in scene.nodes], device=rotations.device)
        if g.sh_degree > 0 and bool(turns.any()):
            still = torch.eye(3, device=rotations.device, dtype=rotations.dtype)
            turning = torch.where(turns[:, None, None], rotations, still)
    return ChainView(
        means=g.means.detach(),
        quats=g.quats.detach(),
        scales=g.scales.detach(),
        sh0=g.sh0.detach(),
        shN=g.shN.detach(),
        sh_degree=g.sh_degree,
        viewmat=camera.viewmat.to(g.means),
        K=camera.K.to(torch.float32),  # read as numbers, so it stays on the CPU
        width=camera.width,
        height=camera.height,
        visible=visible_gaussians(view.meta),
        rows=world.rows,
        nodes=None if rotations is None else world.node_index,
        node_rotations=rotations,
        color_rotations=turning,
    )
