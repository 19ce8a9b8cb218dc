"""How much the recorded views have told about each Gaussian: 0 for one that no view has shown."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.information.prior import FisherPrior, require_fisher
from faithfusion_studio.render.chain import PARAMETERS, factor_blocks
from faithfusion_studio.scene import Scene, StoredFisher


def learned_nats(
    scene: Scene, *, fisher: StoredFisher | None = None, prior: FisherPrior | None = None
) -> Float32[Tensor, "N"]:
    """Information gain of the views so far about each Gaussian, 1/2 log det(I + Lambda^-1 H), nats.

    Args:
        scene: The Gaussians.
        fisher: Evidence of the recorded views; None uses the scene's.
        prior: What was believed before any view.

    Returns:
        One value per row of the scene, >= 0: evidence, so large means certain.

    Raises:
        MissingFisherError: The scene carries no evidence.
        StaleFisherError: The evidence is about other Gaussians.

    Source: the determinant of the 13x13 blocks of `fisher`; higher SH bands are left out.
    """
    fisher = require_fisher(scene, fisher)
    parts = (scene.background, *(node.gaussians for node in scene.nodes))
    with torch.no_grad():
        precision = (prior or FisherPrior()).precision(torch.cat([part.scales for part in parts]))
        factors = factor_blocks(fisher.blocks, precision)
        at = torch.arange(PARAMETERS, device=factors.device)
        diagonal = factors[:, at * (at + 1) // 2 + at].double()
        nats = -diagonal.log().sum(1) - 0.5 * precision.double().log().sum(1)
        return nats.clamp(min=0).float()
