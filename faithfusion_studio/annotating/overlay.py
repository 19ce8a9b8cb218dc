"""Annotated boxes drawn into recorded frames, so that a person can check them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from faithfusion_studio.annotation import Annotation
from faithfusion_studio.boxes import box_edges
from faithfusion_studio.cameras import Camera
from faithfusion_studio.scene import PosedImage

COLORS = (
    (255, 214, 0),
    (0, 230, 118),
    (64, 196, 255),
    (255, 64, 208),
    (255, 145, 0),
    (178, 255, 89),
    (179, 136, 255),
    (255, 82, 82),
)
"""Of the boxes in turn, RGB bytes."""


def drawn(
    frame: PosedImage, annotations: Iterable[Annotation], *, width: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """A recorded frame with the boxes of its time, their names, and an arrow on the road before each front.

    Args:
        frame: What was recorded.
        annotations: Each keeps its colour from frame to frame, whatever others do.
        width: Of the picture, pixels; that of the frame when not given.

    Raises:
        SceneError: The frame cannot be read.
    """
    import cv2

    camera = frame.camera
    if width is not None:
        camera = camera.resized(width, max(1, round(camera.height * width / camera.width)))
    picture = frame.image((camera.width, camera.height)).mul(255).round().to(torch.uint8).numpy()
    picture = np.ascontiguousarray(picture)
    for index, annotation in enumerate(annotations):
        pose = annotation.pose_at(camera.time)
        if pose is None:
            continue
        color = COLORS[index % len(COLORS)]
        lines = [*box_edges(pose, annotation.size, camera), *_arrow(annotation, pose, camera)]
        reach = 16.0 * max(camera.width, camera.height)
        for line in lines:
            a, b = line.clamp(-reach, reach).round().to(torch.int32).tolist()
            cv2.line(picture, a, b, color, 1, cv2.LINE_AA)
        if lines:
            inside = torch.cat(lines).clamp(min=2)
            x, y = float(inside[:, 0].min()), float(inside[:, 1].min())
            place = (int(min(x, camera.width - 40)), int(max(min(y, camera.height - 4), 12)))
            cv2.putText(
                picture,
                annotation.name,
                place,
                cv2.FONT_HERSHEY_SIMPLEX,
                0.45,
                color,
                1,
                cv2.LINE_AA,
            )
    return picture


def _arrow(annotation: Annotation, pose: Tensor, camera: Camera) -> list[Tensor]:
    """A line on the road from under the middle to a metre before the front."""
    length, _, height = annotation.size.tolist()
    thin = torch.tensor([length / 2 + 1, 1e-3, 1e-3])
    ahead = pose.clone()
    ahead[:3, 3] += pose[:3, :3] @ torch.tensor(
        [length / 4 + 0.5, 0, -height / 2], dtype=torch.float64
    )
    edges = box_edges(ahead, thin, camera)
    if not len(edges):
        return []
    return [edges[int((edges[:, 1] - edges[:, 0]).norm(dim=1).argmax())]]


def sheet(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], columns: int
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Pictures in rows, each at its place, on black; sizes may differ."""
    height = max(p.shape[0] for p in pictures)
    width = max(p.shape[1] for p in pictures)
    rows = -(-len(pictures) // columns)
    whole = np.zeros((rows * height, min(columns, len(pictures)) * width, 3), np.uint8)
    for index, picture in enumerate(pictures):
        y, x = index // columns * height, index % columns * width
        whole[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return whole


def captioned(picture: UInt8[np.ndarray, "H W 3"], text: str) -> UInt8[np.ndarray, "H W 3"]:
    """With a line of text in the upper left corner."""
    import cv2

    picture = picture.copy()
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(
            picture, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, width, cv2.LINE_AA
        )
    return picture
