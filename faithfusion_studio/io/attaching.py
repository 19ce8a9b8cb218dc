"""A trained model of another project and the recording it came from, put together into one scene."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float32, Float64
from torch import Tensor
from torch.nn.functional import normalize

from faithfusion_studio.io.drivestudio import KEPT
from faithfusion_studio.io.drivestudio_looks import affine_rows
from faithfusion_studio.scene import Capture, Scene


def attach_capture(scene: Scene, capture: Capture) -> Scene:
    """The scene with a recording, and with what a DriveStudio checkpoint says about its images.

    The checkpoint's tables have one row per image, image = frame x number of cameras + camera; they
    are used where the recording has as many images, and a note says when it has not. Evidence about
    other frames does not fit any more and is dropped.

    Args:
        scene: Any scene; its own recording is replaced.
        capture: In the same world.
    """
    notes = list(scene.metadata.get("notes", []))
    capture, told = _corrected_cameras(scene, capture)
    exposures, more = _exposures(scene, len(capture))
    metadata = {**scene.metadata, "notes": [*notes, *told, *more, *capture.notes]}
    return replace(scene, capture=capture, exposures=exposures, fisher=None, metadata=metadata)


def _table(scene: Scene, name: str) -> dict[str, Tensor]:
    prefix = f"{KEPT}{name}/"
    found = scene.extra_tensors.items()
    return {key.removeprefix(prefix): value for key, value in found if key.startswith(prefix)}


def _corrected_cameras(scene: Scene, capture: Capture) -> tuple[Capture, list[str]]:
    """Cameras moved by the checkpoint's learned corrections: c2w' = c2w [R6d | d]."""
    rows = _table(scene, "CamPose").get("embeds.weight")
    if rows is None:
        return capture, []
    if rows.shape != (len(capture), 9):
        return capture, [_unfit("camera corrections", len(rows), len(capture))]
    identity = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=torch.float64)
    delta = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    delta[:, :3, :3] = rotation_of_six(rows[:, 3:].double() + identity)
    delta[:, :3, 3] = rows[:, :3].double()
    cameras = tuple(
        camera.moved(camera.camtoworld @ delta[i])
        for i, camera in enumerate(capture.trajectory.cameras)
    )
    frames = (replace(f, camera=c) for f, c in zip(capture.frames, cameras, strict=True))
    trajectory = replace(capture.trajectory, cameras=cameras)
    moved = replace(capture, frames=tuple(frames), trajectory=trajectory)
    return moved, ["Recorded cameras were moved by the corrections that training had learned."]


def rotation_of_six(rows: Float64[Tensor, "N 6"]) -> Float64[Tensor, "N 3 3"]:
    """Rotations whose first two rows are the given vectors made orthonormal.

    Source: Zhou et al., "On the Continuity of Rotation Representations in Neural Networks".
    """
    first = normalize(rows[:, :3], dim=-1)
    along = (first * rows[:, 3:]).sum(-1, keepdim=True)
    second = normalize(rows[:, 3:] - along * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)


def _exposures(scene: Scene, frames: int) -> tuple[Float32[Tensor, "T 3 4"] | None, list[str]]:
    """What every frame's colours are corrected by after the scene's tone."""
    table = _table(scene, "Affine")
    if not table or scene.tone is None:
        return None, []
    rows = affine_rows(table)
    if len(rows) != frames:
        return None, [_unfit("affine colours", len(rows), frames)]
    tone = torch.eye(4)
    tone[:3] = scene.tone
    padded = torch.eye(4).repeat(frames, 1, 1)
    padded[:, :3] = rows
    return (padded @ torch.linalg.inv(tone))[:, :3].contiguous(), []


def _unfit(what: str, rows: int, frames: int) -> str:
    return (
        f"The checkpoint's {what} are for {rows} images and the recording has {frames}, so they were "
        "not used."
    )
