"""Taking Gaussians out of a scene, with everything that is kept per Gaussian.

Rows run over the whole scene: background first, then the nodes in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from faithfusion_studio.errors import StudioError
from faithfusion_studio.gaussians import TopologyChange, kept_rows
from faithfusion_studio.information import follow_topology
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import Scene, StoredFisher


class EditError(StudioError):
    """An edit that this scene does not allow."""


@dataclass(frozen=True, eq=False)
class Edited:
    """A scene after an edit, and what became of the rows an optimiser knows."""

    scene: Scene
    background: TopologyChange | None = None
    """Of the background's rows; None while they are the same."""


def node_rows(scene: Scene) -> list[range]:
    """Rows of each node."""
    ranges, start = [], len(scene.background)
    for node in scene.nodes:
        ranges.append(range(start, start + len(node.gaussians)))
        start += len(node.gaussians)
    return ranges


def node_index(scene: Scene, name: str) -> int:
    """Place of a node in `scene.nodes`.

    Raises:
        EditError: There is no node of this name.
    """
    names = [node.name for node in scene.nodes]
    if name not in names:
        known = ", ".join(names) if names else "none"
        raise EditError(f"there is no object called {name!r}; the scene has: {known}.")
    return names.index(name)


def require_unlocked(node: RigidNode, *, what: str) -> None:
    """Refuse to change a locked node.

    Args:
        node: The node.
        what: What was asked for, as in "moved".

    Raises:
        EditError: It is locked.
    """
    if node.locked:
        raise EditError(f"{node.name} is locked, so it cannot be {what}; unlock it first.")


def delete_rows(scene: Scene, rows: Int[Tensor, "M"]) -> Edited:
    """Remove Gaussians of the background and of nodes; evidence and motions follow.

    Args:
        scene: The scene before; untouched tensors are shared with the result.
        rows: Which, in any order.

    Raises:
        EditError: No row is given, one does not exist or belongs to a locked node, or nothing would be left.
    """
    total = scene.num_gaussians
    if len(rows) == 0:
        raise EditError("no splats are selected; select some first.")
    wrong = rows[(rows < 0) | (rows >= total)]
    if len(wrong):
        raise EditError(
            f"row {int(wrong[0])} does not exist; the scene has {total} splats. Select again."
        )
    keep = torch.ones(total, dtype=torch.bool)
    keep[rows.cpu()] = False
    if not bool(keep.any()):
        raise EditError("all splats of the scene are selected; leave at least one.")
    nodes = []
    for node, span in zip(scene.nodes, node_rows(scene), strict=True):
        part = keep[span.start : span.stop]
        if bool(part.all()):
            nodes.append(node)
            continue
        require_unlocked(node, what="cut")
        nodes.append(node.select(part.to(scene.device)))
    background, change = scene.background, None
    part = keep[: len(background)]
    if not bool(part.all()):
        change = kept_rows(part)
        background = background.select(part.to(scene.device))
    edited = replace(scene, background=background, nodes=tuple(nodes))
    return Edited(with_evidence(edited, scene.fisher, [keep.nonzero()[:, 0]]), change)


def with_evidence(
    scene: Scene, fisher: StoredFisher | None, sources: Sequence[Int[Tensor, "_"] | int]
) -> Scene:
    """The scene with evidence that belongs to its rows.

    Args:
        scene: After an edit.
        fisher: Evidence before it; None stays None.
        sources: In the order of the new rows: old rows whose evidence is taken along, or how many rows
            nobody has seen yet.
    """
    if fisher is None:
        return replace(scene, fisher=None)
    parts = [
        torch.zeros(part, dtype=torch.long) if isinstance(part, int) else part for part in sources
    ]
    fresh = [
        torch.full((len(rows),), isinstance(part, int))
        for part, rows in zip(sources, parts, strict=True)
    ]
    followed = follow_topology(fisher, TopologyChange(torch.cat(parts), torch.cat(fresh)))
    if (
        followed.residual_variance is not None
    ):  # nobody knows how well an unseen one explains a photo
        unseen = torch.cat(fresh).to(followed.residual_variance.device)
        residual = followed.residual_variance.masked_fill(unseen, followed.noise_std**2)
        followed = replace(followed, residual_variance=residual)
    sets = (scene.background, *(node.gaussians for node in scene.nodes))
    bands = max(part.shN.shape[1] for part in sets)
    missing = bands - followed.sh.shape[1]
    if missing:  # another highest degree among the parts; negative padding cuts
        sh = torch.nn.functional.pad(followed.sh, (0, 0, 0, missing))
        followed = replace(followed, sh=sh)
    return replace(scene, fisher=followed)
