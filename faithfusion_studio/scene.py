"""The whole editable world as one frozen value: Gaussians, rigid nodes, sky, recording, evidence.

Nothing in here is written after construction; an edit builds a new `Scene` with
`dataclasses.replace` and shares every untouched tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, UInt8
from torch import Tensor

from faithfusion_studio.boxes import BoxTrack
from faithfusion_studio.cameras import Camera, Trajectory
from faithfusion_studio.errors import StudioError
from faithfusion_studio.gaussians import Gaussians, concatenate
from faithfusion_studio.lens import Lens, shown, undistort
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.sky import Sky


class SceneError(StudioError):
    """A scene or recorded frame that cannot be used as asked."""


# ------------------------------------------------------------------------------------ recording


@dataclass(frozen=True, eq=False)
class PosedImage:
    """A stored image with its camera, decoded only on use."""

    camera: Camera
    data: Path | bytes
    """File, or the encoded JPEG or PNG bytes, at the camera's size."""
    name: str = ""
    """File stem or recorded name, unique within a capture."""
    dynamic_mask: bytes | None = None
    """Encoded PNG, non-zero where something moves; None where unknown."""
    lens: Lens | None = None
    """How `data` is bent; what is given out is the pinhole picture. None for a pinhole photo."""

    def encoded(self) -> bytes:
        """The encoded bytes of the pinhole picture: as recorded, or straightened and encoded anew (JPEG 97).

        Raises:
            SceneError: The file is gone or cannot be read.
        """
        if self.lens is None:
            return self._recorded()
        import cv2

        quality = [cv2.IMWRITE_JPEG_QUALITY, 97]
        return cv2.imencode(".jpg", self._decoded(), quality)[1].tobytes()

    def _recorded(self) -> bytes:
        """The bytes as recorded, read from disk if need be.

        Raises:
            SceneError: The file is gone or cannot be read.
        """
        if isinstance(self.data, bytes):
            return self.data
        try:
            return self.data.read_bytes()
        except OSError as error:
            raise SceneError(
                f"{self.data}: the image cannot be read ({error.strerror}); restore the file."
            ) from error

    def image(self, size: tuple[int, int] | None = None) -> Float32[Tensor, "H W 3"]:
        """Decoded colours in [0, 1], sRGB as stored.

        Args:
            size: Width and height to resize to (area filter when shrinking); None keeps the camera's.

        Raises:
            SceneError: The bytes are not an image, or its size is not the camera's.
        """
        import cv2

        raw, expected = self._decoded(), (self.camera.width, self.camera.height)
        if size is not None and size != expected:
            shrink = size[0] < expected[0]
            raw = cv2.resize(
                raw, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
            )
        rgb = torch.from_numpy(np.ascontiguousarray(raw[:, :, ::-1]))
        return rgb.to(torch.float32) / 255.0

    def thumbnail(self, width: int) -> UInt8[np.ndarray, "h w 3"]:
        """A small picture in a fraction of the time of `image`, as high as its shape asks for.

        Raises:
            SceneError: The bytes are not an image.
        """
        import cv2

        kinds = {f: getattr(cv2, f"IMREAD_REDUCED_COLOR_{f}") for f in (8, 4, 2)}
        fits = [kind for f, kind in kinds.items() if self.camera.width >= f * width]
        raw = None
        if fits and self.lens is None:  # a JPEG can be decoded at a fraction of its size
            data = np.frombuffer(self._recorded(), np.uint8)
            raw = cv2.imdecode(data, fits[0] | cv2.IMREAD_IGNORE_ORIENTATION)
        raw = self._decoded() if raw is None else raw  # which says what is wrong
        height = max(1, round(width * self.camera.height / self.camera.width))
        small = cv2.resize(raw, (width, height), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small[:, :, ::-1])

    def _decoded(self) -> np.ndarray:
        """[H, W, 3] BGR bytes of the pinhole picture, at the camera's size."""
        import cv2

        raw = cv2.imdecode(
            np.frombuffer(self._recorded(), np.uint8),
            cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
        )
        where = self.data if isinstance(self.data, Path) else (self.name or "a stored frame")
        if raw is None:
            raise SceneError(f"{where}: not a readable image; replace the damaged file.")
        expected = (self.camera.width, self.camera.height)
        if raw.shape[1::-1] != expected:
            raise SceneError(
                f"{where}: the image is {raw.shape[1]}x{raw.shape[0]} but its camera says "
                f"{expected[0]}x{expected[1]}; give the intrinsics of this image size."
            )
        return raw if self.lens is None else undistort(raw, self.camera, self.lens)

    def mask(self, size: tuple[int, int]) -> Bool[Tensor, "H W"] | None:
        """What to leave out at a width and height: True where something moves, or where a bent photo does
        not reach; None where neither is known."""
        import cv2

        unseen = None
        if self.lens is not None:
            hidden = (~shown(self.camera, self.lens)).astype(np.uint8)
            unseen = torch.from_numpy(cv2.resize(hidden, size, interpolation=cv2.INTER_NEAREST) > 0)
        if self.dynamic_mask is None:
            return unseen
        raw = cv2.imdecode(np.frombuffer(self.dynamic_mask, np.uint8), cv2.IMREAD_GRAYSCALE)
        if raw is None:
            raise SceneError(f"{self.name}: its dynamic mask is not a readable image; replace it.")
        if self.lens is not None and raw.shape[1::-1] == (self.camera.width, self.camera.height):
            raw = undistort(raw, self.camera, self.lens)
        moving = torch.from_numpy(cv2.resize(raw, size, interpolation=cv2.INTER_NEAREST) > 0)
        return moving if unseen is None else moving | unseen


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Coloured points of a recording (structure from motion, or laser), for initialisation."""

    xyz: Float32[Tensor, "M 3"]
    """World, m."""
    rgb: UInt8[Tensor, "M 3"]


@dataclass(frozen=True, eq=False)
class Capture:
    """Recorded data: frames with poses, and what else came along."""

    frames: tuple[PosedImage, ...]
    trajectory: Trajectory
    """One camera per frame, in the same order."""
    points: PointCloud | None = None
    lidar: tuple[Float32[Tensor, "_ 3"], ...] = ()
    """Laser points per sweep, world, m."""
    boxes: tuple[BoxTrack, ...] = ()
    lanes: tuple[Float32[Tensor, "_ 3"], ...] = ()
    """Lane polylines, world, m."""
    source: str = ""
    """Where the recording came from, for people."""
    licence: str = ""
    notes: tuple[str, ...] = ()
    """Sentences for the user about what was left out on reading."""

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def camera_names(self) -> list[str]:
        """Names of the rig's cameras in order of first use."""
        return list(dict.fromkeys(frame.camera.name for frame in self.frames))

    @property
    def sweeps(self) -> tuple[tuple[float, Float32[Tensor, "_ 3"]], ...]:
        """Laser sweeps with their times, s; none where there is not exactly one for each time of the frames."""
        times = sorted(set(self.trajectory.timestamps))
        if len(times) != len(self.lidar):
            return ()
        return tuple(zip(times, self.lidar, strict=True))

    def select(self, indices: list[int] | range) -> Capture:
        """Only these frames (indices into `frames`) and the sweeps of their times, everything else unchanged."""
        indices = list(indices)
        trajectory = self.trajectory.select(indices)
        kept = set(trajectory.timestamps)
        sweeps = tuple(scan for time, scan in self.sweeps if time in kept)
        return replace(
            self,
            frames=tuple(self.frames[i] for i in indices),
            trajectory=trajectory,
            lidar=sweeps or self.lidar,
        )


# ---------------------------------------------------------------------------------------- scene


@dataclass(frozen=True, eq=False)
class StoredFisher:
    """Evidence of the recorded views as plain tensors (what it means: `information.fisher`).

    Rows run over all Gaussians of the scene: background first, then the nodes in order.
    """

    blocks: Float32[Tensor, "N 91"]
    """Packed upper triangle, row-major, of the 13x13 Fisher block of each Gaussian."""
    sh: Float32[Tensor, "N R 3"]
    """Diagonal Fisher of the higher SH coefficients."""
    noise_std: float
    """Global robust pixel noise sigma_0, colour unit."""
    num_views: int
    """How many views were summed."""
    sky: Float32[Tensor, "6 R2 R2"] | None = None
    """Evidence per sky texel; None without a cube-map sky."""
    residual_variance: Float32[Tensor, "N"] | None = None
    """Mean squared residual of the recorded pixels each Gaussian explains, colour unit squared."""
    calibration: Float32[Tensor, "Q 2"] | None = None
    """Knots (nats, calibrated value in [0, 1]) of the scene's monotone map, ascending."""


_Tensors = TypeVar("_Tensors")


def _moved(values: _Tensors, device: torch.device | str) -> _Tensors:
    """A dataclass with all its tensors on a device; None stays None."""
    if not is_dataclass(values) or isinstance(values, type):
        return values
    found = {f.name: getattr(values, f.name) for f in fields(values)}
    moved = {name: t.to(device) for name, t in found.items() if isinstance(t, Tensor)}
    return replace(values, **moved)


@dataclass(frozen=True, eq=False)
class WorldGaussians:
    """Every visible Gaussian at one time, in world axes."""

    gaussians: Gaussians
    node_index: Int[Tensor, "N"]
    """-1 for the background, else the index into `Scene.nodes`."""
    rows: Int[Tensor, "N"] | None
    """Row of each Gaussian in the scene's order (background, nodes...); None when 0..N-1."""


@dataclass(frozen=True, eq=False)
class Scene:
    """The whole editable world."""

    background: Gaussians
    nodes: tuple[RigidNode, ...] = ()
    sky: Sky | None = None
    capture: Capture | None = None
    fisher: StoredFisher | None = None
    exposures: Float32[Tensor, "T 3 4"] | None = None
    """Affine colour correction fitted per recorded frame; used on recorded views only."""
    tone: Float32[Tensor, "3 4"] | None = None
    """Affine colour correction of every view, which a checkpoint's mean appearance asks for; `exposures` come on
    top of it. None leaves the colours."""
    paths: Mapping[str, Trajectory] = field(default_factory=dict)
    """Saved novel paths by name."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values about the scene: how it was trained, source, licence."""
    extra_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of a newer file version, kept so that writing loses nothing."""

    @property
    def num_gaussians(self) -> int:
        """Background and all nodes together."""
        return len(self.background) + sum(len(node.gaussians) for node in self.nodes)

    @property
    def trajectory(self) -> Trajectory:
        """The recorded path.

        Raises:
            SceneError: The scene came without a recording.
        """
        if self.capture is None:
            raise SceneError(
                "this scene has no recorded path (it was opened from a bare splat file); "
                "open a scene with a recording, or reconstruct one from a capture."
            )
        return self.capture.trajectory

    @property
    def all_gaussians(self) -> Gaussians:
        """Background and nodes concatenated in scene order, nodes in their own frames."""
        return concatenate([self.background, *(node.gaussians for node in self.nodes)])

    @property
    def device(self) -> torch.device:
        """Where the scene is drawn and computed with; the recording and its cameras stay on the CPU."""
        return self.background.means.device

    def to(self, device: torch.device | str) -> Scene:
        """The same scene drawn elsewhere; returns self where nothing has to move."""
        if self.device == torch.device(device):
            return self
        nodes = (node.to(device) for node in self.nodes)
        return replace(
            self,
            background=self.background.to(device),
            nodes=tuple(nodes),
            sky=_moved(self.sky, device),
            fisher=_moved(self.fisher, device),
            exposures=None if self.exposures is None else self.exposures.to(device),
            tone=None if self.tone is None else self.tone.to(device),
        )

    def as_recorded(self) -> Scene:
        """The same scene with hidden nodes shown: what the recorded frames are pictures of."""
        if not any(node.hidden for node in self.nodes):
            return self
        return replace(self, nodes=tuple(replace(node, hidden=False) for node in self.nodes))

    def at(self, time: float) -> WorldGaussians:
        """Background and visible nodes placed at a time (s), in world axes."""
        parts, device = [self.background], self.device
        indices = [torch.full((len(self.background),), -1, dtype=torch.long, device=device)]
        rows = [torch.arange(len(self.background), device=device)]
        start = len(self.background)
        for index, node in enumerate(self.nodes):
            placed = node.placed_at(time)
            count = len(node.gaussians)
            if placed is not None:
                parts.append(placed)
                indices.append(torch.full((count,), index, dtype=torch.long, device=device))
                rows.append(torch.arange(start, start + count, device=device))
            start += count
        all_rows = None if len(parts) == len(self.nodes) + 1 else torch.cat(rows)
        return WorldGaussians(concatenate(parts), torch.cat(indices), all_rows)


def after_tone(
    exposure: Float32[Tensor, "3 4"], tone: Float32[Tensor, "3 4"] | None
) -> Float32[Tensor, "3 4"]:
    """One affine correction that does what `tone` and then `exposure` do."""
    if tone is None:
        return exposure
    product = exposure[:, :3] @ tone
    return torch.cat([product[:, :3], product[:, 3:] + exposure[:, 3:]], dim=1)
