"""Between viser's cameras and ours: poses, fields of view, and pictures seen through another lens.

A viser camera has a vertical field of view, the canvas' aspect and its principal point in the middle.
Poses need no conversion: both are OpenCV (x right, y down, z forward).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.transforms import quat_to_rotmat, rotmat_to_quat

SAME_POSITION = 0.02
"""Two camera centres nearer than this count as one, m."""


@dataclass(frozen=True)
class ClientPose:
    """A browser's camera."""

    position: tuple[float, float, float]
    """World, m."""
    wxyz: tuple[float, float, float, float]
    """Rotation camera -> world."""
    fov: float
    """Vertical field of view, rad."""
    width: int
    """Canvas, pixels of the device."""
    height: int

    def camera(self, width: int, height: int, time: float) -> Camera:
        """Our camera of this pose on a grid of the given size."""
        from nerfview import CameraState

        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = quat_to_rotmat(torch.tensor(self.wxyz, dtype=torch.float64))
        pose[:3, 3] = torch.tensor(self.position, dtype=torch.float64)
        state = CameraState(fov=self.fov, aspect=width / height, c2w=pose.numpy())
        K = torch.from_numpy(np.asarray(state.get_K((width, height)), dtype=np.float64))
        return Camera(camtoworld=pose, K=K, width=width, height=height, time=time)

    def stands_like(self, other: ClientPose) -> bool:
        """Same position and direction up to the rounding of one trip through the browser."""
        near = math.dist(self.position, other.position) < 2e-3
        turned = abs(sum(a * b for a, b in zip(self.wxyz, other.wxyz, strict=True)))
        return near and turned > 1 - 1e-6

    def resembles(self, other: ClientPose) -> bool:
        """Same picture: position, direction and lens."""
        return self.stands_like(other) and abs(self.fov - other.fov) < 1e-3


def pose_of(camera: Camera, canvas: tuple[int, int], fov_scale: float = 1.0) -> ClientPose:
    """The client pose that shows a recorded camera on a canvas of width and height."""
    quat = rotmat_to_quat(camera.camtoworld[:3, :3]).tolist()
    position = camera.position.tolist()
    return ClientPose(
        position=(position[0], position[1], position[2]),
        wxyz=(quat[0], quat[1], quat[2], quat[3]),
        fov=vertical_fov(camera, canvas[0] / max(canvas[1], 1), fov_scale),
        width=canvas[0],
        height=canvas[1],
    )


def vertical_fov(camera: Camera, aspect: float, fov_scale: float = 1.0) -> float:
    """Field of view that shows a recorded camera on a canvas of another shape, rad.

    This is the recorded lens: the whole height of the recording, with its sides cut where the canvas
    is narrower. A panorama is not cut to less than half its width; bands above and below it, which
    nobody recorded, are shown instead.
    """
    tangent_y = 0.5 * camera.height / float(camera.K[1, 1])
    tangent_x = 0.5 * camera.width / float(camera.K[0, 0])
    needed = tangent_x / max(aspect, 1e-3)
    tangent = max(tangent_y, 0.5 * needed) * fov_scale
    return 2 * math.atan(min(tangent, 5.0))


def fit_size(width: int, height: int, max_pixels: int) -> tuple[int, int]:
    """The largest size of the same shape within a number of pixels, even, at least 16 x 16."""
    scale = min(1.0, math.sqrt(max_pixels / max(width * height, 1)))
    return max(16, round(width * scale / 2) * 2), max(16, round(height * scale / 2) * 2)


def shares_centre(a: Camera, b: Camera) -> bool:
    """Whether pictures of two cameras can be laid over each other exactly."""
    return float((a.position - b.position).norm()) < SAME_POSITION


def see_through(
    image: Float32[Tensor, "H W 3"], source: Camera, target: Camera
) -> tuple[Float32[Tensor, "h w 3"], Bool[Tensor, "h w"]]:
    """A picture of one camera as another with the same centre sees it.

    Args:
        image: Taken by `source`, in [0, 1]; its size may differ from the camera's.
        source: Camera of the picture.
        target: Camera to show it in.

    Returns:
        The picture on the target's grid, and where the source covers it.
    """
    import cv2

    source = source.resized(image.shape[1], image.shape[0])
    rotation = source.viewmat[:3, :3] @ target.camtoworld[:3, :3]
    homography = source.K @ rotation @ torch.linalg.inv(target.K)
    half = torch.tensor([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]], dtype=torch.float64)
    matrix = (torch.linalg.inv(half) @ homography @ half).numpy()
    size = (target.width, target.height)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(np.ascontiguousarray(image.numpy()), matrix, size, flags=flags)
    ones = np.ones(image.shape[:2], np.float32)
    inside = cv2.warpPerspective(ones, matrix, size, flags=flags)
    facing = _in_front(homography, target)
    return torch.from_numpy(warped), torch.from_numpy(inside > 0.999) & facing


def _in_front(homography: Tensor, target: Camera) -> Tensor:
    """Pixels whose ray the source camera has before it; behind it the homography wraps around."""
    x = torch.arange(target.width, dtype=torch.float64) + 0.5
    y = torch.arange(target.height, dtype=torch.float64) + 0.5
    row = homography[2]
    return row[0] * x[None, :] + row[1] * y[:, None] + row[2] > 1e-6
