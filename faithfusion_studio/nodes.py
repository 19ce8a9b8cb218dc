"""Moving objects: Gaussians in a frame of their own, and where that frame is over time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.motion import Motion, moved_to, rows_of
from faithfusion_studio.transforms import pose_between


@dataclass(frozen=True, eq=False)
class RigidNode:
    """A moving object: Gaussians in its own frame, a pose per time, perhaps a motion inside the frame."""

    name: str
    gaussians: Gaussians
    poses: Float64[Tensor, "T 4 4"]
    """Node frame (x forward, y left, z up, origin at the box centre) -> world."""
    timestamps: Float64[Tensor, "T"]
    """Seconds, ascending."""
    visible: Bool[Tensor, "T"]
    size: Float[Tensor, "3"]
    """Length, width, height of the box, m."""
    category: str = "vehicle"
    motion: Motion | None = None
    """How the Gaussians move inside the frame; None for a rigid object."""
    turns_colors: bool = False
    """Whether view-dependent colour turns with the object, as it does in the world. The public driving
    models keep it in world axes, so their checkpoints look as they were trained with False."""
    hidden: bool = False
    """Taken out of every view for now; the recording still shows it (see `Scene.as_recorded`)."""
    locked: bool = False
    """Edits of it are refused until it is unlocked."""
    color: tuple[float, float, float] | None = None
    """RGB in [0, 1] that marks it in lists and outlines; its Gaussians keep theirs."""

    def pose_at(self, time: float) -> Float64[Tensor, "4 4"] | None:
        """Pose at a time (linear position, slerped rotation; ends are held), None while not visible."""
        t = self.timestamps
        nearest = int((t - time).abs().argmin())
        if not bool(self.visible[nearest]):
            return None
        return pose_between(self.poses, t, time)

    def placed_at(self, time: float) -> Gaussians | None:
        """The Gaussians in world axes at a time (s), None while not visible or hidden."""
        pose = None if self.hidden else self.pose_at(time)
        if pose is None:
            return None
        moved = self.gaussians if self.motion is None else self.motion.at(self.gaussians, time)
        return moved.transformed(pose, turn_colors=self.turns_colors)

    def select(self, index: Tensor) -> RigidNode:
        """Only some of the Gaussians (index or mask over rows)."""
        motion = rows_of(self.motion, index)
        return replace(self, gaussians=self.gaussians.select(index), motion=motion)

    def to(self, device: torch.device | str) -> RigidNode:
        """The same object drawn elsewhere; poses and times stay on the CPU."""
        motion = None if self.motion is None else moved_to(self.motion, device)
        return replace(self, gaussians=self.gaussians.to(device), motion=motion)
