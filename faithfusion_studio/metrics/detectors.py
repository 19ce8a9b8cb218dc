"""Detectors of vehicles for NTA-IoU: YOLOX by its ONNX file, and an oracle for tests of the metric.

A detector is always named in the protocol; scores of different detectors never share a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from faithfusion_studio.io.weights import WeightsError, file_hash
from faithfusion_studio.metrics.boxes import GRID, Detections, box_iou

KNOWN_FILES = {
    "695e750a5d5754bb5a8d5325643b59282191a7e7a564e435a415fd3c578eab14": "yolox_nano",
}
"""Detectors by the SHA-256 of their files."""
STRIDES = (8, 16, 32)
GREY = 114
"""What fills the picture up to the network's square."""
NMS_IOU = 0.45
LEAST_SCORE = 0.1
"""Detections below are not even suppressed; the metric asks for 0.5."""


@runtime_checkable
class Detector(Protocol):
    """Finds objects in a picture."""

    @property
    def name(self) -> str:
        """For the protocol: the network and the hash of its file."""
        ...

    def detect(self, image: Float[Tensor, "H W 3"]) -> Detections:
        """Objects in an image in [0, 1], on the metric's grid of 480x320."""
        ...


class OracleDetector:
    """Answers with boxes it was given, one set per picture in order: the metric must then be 1.

    Args:
        boxes: Per picture boxes [D, 4] on the grid of 480x320.
    """

    name = "oracle"

    def __init__(self, boxes: Sequence[Float[Tensor, "_ 4"]]) -> None:
        self._boxes = iter(boxes)

    def detect(self, image: Float[Tensor, "H W 3"]) -> Detections:
        """The next set of boxes, as cars with confidence 1."""
        boxes = next(self._boxes)
        return Detections(boxes, torch.ones(len(boxes)), torch.full((len(boxes),), 2))


class YoloxDetector:
    """A YOLOX network exported to ONNX without decoding, run by OpenCV on the CPU.

    Args:
        path: The file. Input [1, 3, S, S], BGR 0..255; output [1, cells, 5 + classes] raw, the cells
            of strides 8, 16, 32 one after the other.
        size: Side S of the network's square, pixels; a multiple of 32.

    Raises:
        WeightsError: The file is missing or not such a network.

    Source: Ge et al., "YOLOX", 2021, and its ONNX demo.
    """

    def __init__(self, path: Path | str, size: int = 416) -> None:
        import cv2

        digest = file_hash(path)
        self._size = size
        self.name = f"{KNOWN_FILES.get(digest, Path(path).stem)} {digest[:12]}"
        try:
            self._net = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise WeightsError(
                f"{path}: OpenCV cannot read this as an ONNX network; expected a YOLOX export."
            ) from error

    def detect(self, image: Float[Tensor, "H W 3"]) -> Detections:
        """Objects in an image in [0, 1], resized into 480x320 first as the metric says.

        Pictures of another shape than 3:2 keep their shape for the network; their boxes are then
        brought to the grid along each axis.
        """
        import cv2

        pixels = (image.clamp(0, 1) * 255 + 0.5).to(torch.uint8).cpu().numpy()
        shrink = min(GRID[0] / pixels.shape[1], GRID[1] / pixels.shape[0])
        fitted = (round(pixels.shape[1] * shrink), round(pixels.shape[0] * shrink))
        picture = cv2.resize(pixels, fitted, interpolation=cv2.INTER_LINEAR)[:, :, ::-1]
        square, ratio = letterboxed(np.ascontiguousarray(picture), self._size)
        self._net.setInput(square)
        raw = torch.from_numpy(np.array(self._net.forward())).flatten(0, -2)
        cells = sum((self._size // s) ** 2 for s in STRIDES)
        if raw.shape[0] != cells or raw.shape[1] < 6:
            raise WeightsError(
                f"{self.name}: the output is {tuple(raw.shape)}; expected ({cells}, 5 + classes), a "
                "YOLOX export without decoding."
            )
        boxes, scores, classes = decoded(raw, self._size)
        sure = scores > LEAST_SCORE
        to_grid = torch.tensor([GRID[0] / fitted[0], GRID[1] / fitted[1]] * 2) / ratio
        boxes, scores, classes = boxes[sure] * to_grid, scores[sure], classes[sure]
        kept = suppressed(boxes, scores, classes)
        return Detections(boxes[kept], scores[kept], classes[kept])


def letterboxed(picture: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """A picture [h, w, 3] uint8 as network input [1, 3, size, size] in its upper left corner, and the scale."""
    import cv2

    height, width = picture.shape[:2]
    ratio = min(size / height, size / width)
    inner = (int(width * ratio), int(height * ratio))
    square = np.full((size, size, 3), GREY, np.uint8)
    square[: inner[1], : inner[0]] = cv2.resize(picture, inner, interpolation=cv2.INTER_LINEAR)
    return square.transpose(2, 0, 1)[None].astype(np.float32), ratio


def decoded(
    raw: Float[Tensor, "cells fields"], size: int
) -> tuple[Float[Tensor, "cells 4"], Float[Tensor, "cells"], Tensor]:
    """Boxes (corners, pixels of the square), scores and classes of the raw output."""
    grids = []
    for stride in STRIDES:
        y, x = torch.meshgrid(*[torch.arange(size // stride)] * 2, indexing="ij")
        cells = torch.stack([x, y], -1).reshape(-1, 2).float()
        grids.append(torch.cat([cells, torch.full((len(cells), 1), float(stride))], -1))
    grid = torch.cat(grids)
    stride = grid[:, 2:]
    centre = (raw[:, :2] + grid[:, :2]) * stride
    half = raw[:, 2:4].exp() * stride / 2
    best, classes = raw[:, 5:].max(-1)
    return torch.cat([centre - half, centre + half], -1), raw[:, 4] * best, classes


def suppressed(boxes: Float[Tensor, "D 4"], scores: Float[Tensor, "D"], classes: Tensor) -> Tensor:
    """Indices that remain when weaker boxes of the same class overlap by more than 0.45; best first."""
    order = torch.argsort(scores, descending=True)
    overlap = (box_iou(boxes, boxes) > NMS_IOU) & (classes[:, None] == classes[None])
    gone, kept = torch.zeros(len(boxes), dtype=torch.bool), []
    for index in order.tolist():
        if not gone[index]:
            kept.append(index)
            gone |= overlap[index]
    return torch.tensor(kept, dtype=torch.long)
