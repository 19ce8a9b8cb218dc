"""What a repair engine is shown: renders of novel views with their EIG, and the recorded frames around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera, TrajectoryError
from faithfusion_studio.fusion.moving import (
    movers,
    recorded_movers,
    shown_movers,
    without_movers,
)
from faithfusion_studio.scene import Scene

if TYPE_CHECKING:
    from faithfusion_studio.repair.base import Reference, RepairBatch


def working_scale(scene: Scene) -> float:
    """Resolution to repair and learn at, over the recorded one: that of the reconstruction."""
    trained = scene.metadata.get("reconstruction", {})
    if "scale" in trained:
        return float(trained["scale"])
    return min(1.0, 640 / scene.trajectory.cameras[0].width)


def sized_camera(camera: Camera, scene: Scene, size: tuple[int, int] | None) -> Camera:
    """The camera at a size, or at the resolution the scene is repaired and learned at."""
    return camera.scaled(working_scale(scene)) if size is None else camera.resized(*size)


class RecordedReferences:
    """Recorded frames with the depth rendered at their poses, kept while the segment moves past them."""

    KEPT = 32
    """A frame serves several novel views before it falls behind; this many stay in memory."""

    def __init__(self, scene: Scene, size: tuple[int, int] | None) -> None:
        self._scene, self._size = scene, size
        capture = scene.capture
        still = None if capture is None else without_movers(capture, movers(capture)).points
        self._points = None if still is None else still.xyz
        self._cache: dict[int, Reference] = {}

    def around(
        self, cameras: Sequence[Camera], chosen: Sequence[int] = ()
    ) -> tuple[Reference, ...]:
        """The frames that see most of what these cameras see; with `chosen` those and no others.

        Raises:
            TrajectoryError: A frame was chosen that was not recorded.
        """
        wanted = self._wanted(cameras, chosen)
        for index in wanted:
            self._cache[index] = self._cache.pop(index, None) or self._load(index)
        for index in list(self._cache)[: -max(self.KEPT, len(wanted))]:
            del self._cache[index]
        return tuple(self._cache[index] for index in wanted)

    def loading(self, cameras: Sequence[Camera], chosen: Sequence[int] = ()) -> Iterator[None]:
        """Load what `around` will return, one frame per step."""
        for index in self._wanted(cameras, chosen):
            if index not in self._cache:
                with torch.no_grad():
                    self._cache[index] = self._load(index)
                yield

    def _wanted(self, cameras: Sequence[Camera], chosen: Sequence[int]) -> dict[int, None]:
        from faithfusion_studio.repair import select_references

        assert self._scene.capture is not None
        if chosen:
            return dict.fromkeys(self._existing(chosen))
        candidates = self._scene.capture.trajectory.cameras
        return dict.fromkeys(
            index for camera in cameras for index in select_references(camera, candidates)
        )

    def _existing(self, chosen: Sequence[int]) -> Sequence[int]:
        assert self._scene.capture is not None
        count = len(self._scene.capture)
        unknown = [index for index in chosen if not 0 <= index < count]
        if unknown:
            raise TrajectoryError(
                f"reference {unknown[0]} is no recorded frame; choose from 0 to {count - 1}."
            )
        return chosen

    def picture(self, index: int, width: int, height: int) -> Float32[Tensor, "height width 3"]:
        """A recorded image in the scene's own colours."""
        from faithfusion_studio.render.views import apply_exposure

        assert self._scene.capture is not None
        image = self._scene.capture.frames[index].image((width, height))
        if self._scene.exposures is None:
            return image
        inverse = _inverse_exposure(self._scene.exposures[index].cpu())
        return apply_exposure(image, inverse).clamp(0, 1)

    def _load(self, index: int) -> Reference:
        from faithfusion_studio.render.views import render_view
        from faithfusion_studio.repair import Reference, anchor_depth

        capture = self._scene.capture
        assert capture is not None
        frame = capture.frames[index]
        camera = sized_camera(frame.camera, self._scene, self._size)
        view = render_view(self._scene, camera)
        depth = view.depth.cpu()
        if self._points is not None:
            depth = anchor_depth(depth, camera, self._points)
        # Colours are looked up up to twice as finely as the repair, which keeps it sharp.
        finest = min(1.0, 2 * camera.width / frame.camera.width)
        image = self.picture(
            index, round(frame.camera.width * finest), round(frame.camera.height * finest)
        )
        mask = frame.mask((camera.width, camera.height))
        moved = recorded_movers(self._scene, camera)
        if moved is not None:
            mask = moved if mask is None else mask | moved
        return Reference(
            image=image, depth=depth, alpha=view.alpha.cpu(), camera=camera, dynamic_mask=mask
        )


def _inverse_exposure(exposure: Float32[Tensor, "3 4"]) -> Float32[Tensor, "3 4"]:
    """The correction that takes a recorded frame to the scene's own colours."""
    inverse = torch.linalg.inv(exposure[:, :3])
    return torch.cat([inverse, -(inverse @ exposure[:, 3:])], dim=1)


def render_batch(
    scene: Scene,
    cameras: Sequence[Camera],
    references: RecordedReferences,
    eig_threshold: float = 0.4,
    *,
    chosen: Sequence[int] = (),
    released_eig: bool = False,
) -> RepairBatch:
    """Everything a repair engine is given about some views, on the CPU.

    Args:
        scene: Needs stored evidence.
        cameras: Novel views, all of one size.
        references: The scene's recorded frames.
        eig_threshold: tau on calibrated EIG.
        chosen: Recorded frames to refer to; the best ones where empty.
        released_eig: Also compute EIG by the released formula.

    Raises:
        MissingFisherError: The scene has no evidence to compute EIG from.
    """
    from faithfusion_studio.information import eig_map, split_regions
    from faithfusion_studio.render.views import rasterize_view
    from faithfusion_studio.repair import RepairBatch

    with torch.no_grad():
        views = [rasterize_view(scene, camera) for camera in cameras]
        maps = [eig_map(scene, c, view=v) for c, v in zip(cameras, views, strict=True)]
        released = None
        if released_eig:
            found = [eig_map(scene, camera, form="released") for camera in cameras]
            released = torch.stack([m.eig for m in found]).cpu()
        shown = [shown_movers(scene, c, v) for c, v in zip(cameras, views, strict=True)]
        moving = [mask for mask in shown if mask is not None]
        return RepairBatch(
            renders=torch.stack([view.rgb.clamp(0, 1) for view in views]).cpu(),
            alphas=torch.stack([view.alpha for view in views]).cpu(),
            depths=torch.stack([view.depth for view in views]).cpu(),
            eig=torch.stack([m.eig for m in maps]).cpu(),
            calibrated_eig=torch.stack([m.calibrated for m in maps]).cpu(),
            coverage=torch.stack([m.coverage for m in maps]).cpu(),
            ucr=torch.stack([split_regions(m, eig_threshold).ucr for m in maps]).cpu(),
            cameras=tuple(cameras),
            references=references.around(cameras, chosen),
            moving=torch.stack(moving) if moving else None,
            released_eig=released,
            eig_threshold=eig_threshold,
        )
