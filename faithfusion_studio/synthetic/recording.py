"""Drive a rig of cameras through a street: exact images, points, LiDAR, boxes, lanes, and truth.

Ego frame: on the ground under the front camera, x along the road, y left, z up. The front camera
looks along x; "front_left" and "front_right" are turned by 45 degrees to their side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from faithfusion_studio.cameras import Camera, Trajectory, offset_laterally, trajectory_from_cameras
from faithfusion_studio.scene import BoxTrack, Capture, PosedImage
from faithfusion_studio.synthetic.points import LIDAR_DROPOUT, sample_points, simulate_lidar
from faithfusion_studio.synthetic.rays import SyntheticError
from faithfusion_studio.synthetic.raytrace import TracedView, trace_view
from faithfusion_studio.synthetic.street import Street
from faithfusion_studio.transforms import invert_rigid

RIG = {"front": 0.0, "front_left": np.pi / 4, "front_right": -np.pi / 4}
"""Camera names and their yaw from the ego's forward axis, radians, positive = left."""
CAMERA_AXES = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""Camera axes (x right, y down, z forward) in a frame with x forward, y left, z up."""


@dataclass(frozen=True)
class RecordingConfig:
    """What is recorded besides the poses."""

    samples: int = 4
    """Rays averaged per pixel; more is smoother and slower."""
    jpeg_quality: int = 95
    """1..100; colours are not subsampled."""
    num_points: int = 20_000
    """Coloured points for initialisation, like those of structure from motion; 0 = none."""
    point_noise: float = 0.01
    """Standard deviation of each coordinate of the points, m."""
    lidar: bool = False
    """Also simulate one LiDAR sweep per time."""
    exposure_drift: float = 0.0
    """Standard deviation per frame of a random walk of the log of the exposure; 0 = constant."""
    lidar_dropout: float = LIDAR_DROPOUT
    """Share of the LiDAR's returns that are lost, 0..1."""
    pose_noise: float = 0.0
    """Standard deviation of each coordinate of the stored poses per time, m; the pictures are from the true ones."""
    turn_noise: float = 0.0
    """The same of the rotation about each axis, rad."""
    seed: int = 0
    """Of points, LiDAR dropouts and exposure; the street has its own."""


def drive(
    street: Street,
    frames: int = 48,
    size: tuple[int, int] = (640, 360),
    *,
    spacing: float = 0.8,
    fps: float = 10.0,
    height: float = 1.6,
    hfov_deg: float = 70.0,
    rig: Sequence[str] = ("front",),
    start: float = 0.0,
) -> Trajectory:
    """The path of a car that keeps to the middle of the right lane.

    Args:
        street: What to drive through.
        frames: Number of times; each gives one camera per member of the rig.
        size: Width and height in pixels.
        spacing: Metres between frames.
        fps: Frames per second; sets the times.
        height: Of the cameras above the road, m.
        hfov_deg: Horizontal field of view, degrees in (0, 170).
        rig: Names out of `RIG`.
        start: Where the first frame stands, m along the road.

    Raises:
        SyntheticError: No frame or pixel, an unknown camera, or the street is too short.
    """
    if frames < 1 or min(size) < 1 or not 0 < hfov_deg < 170 or spacing <= 0 or fps <= 0:
        raise SyntheticError(
            f"{frames} frames of {size[0]}x{size[1]} with {hfov_deg:g} degrees every {spacing:g} m "
            f"at {fps:g}/s were asked for; all must be positive and the angle below 170."
        )
    unknown = [name for name in rig if name not in RIG]
    if unknown or not rig:
        raise SyntheticError(
            f"the rig names {', '.join(unknown) or 'no camera'}; choose from {', '.join(RIG)}."
        )
    end = start + (frames - 1) * spacing
    if end > street.config.length + 1e-6:
        raise SyntheticError(
            f"{frames} frames every {spacing:g} m end at {end:.1f} m but the street can be driven "
            f"for {street.config.length:g} m; build a longer street or take fewer frames."
        )
    width, tall = size
    focal = width / 2 / np.tan(np.deg2rad(hfov_deg) / 2)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, tall / 2], [0, 0, 1]], dtype=torch.float64)
    cameras, egos = [], []
    for index in range(frames):
        ego = street.bend.pose(start + index * spacing, -street.paint.lane_width / 2)
        for name in rig:
            cosine, sine = np.cos(RIG[name]), np.sin(RIG[name])
            mount = np.eye(4)
            mount[:2, :2] = [[cosine, -sine], [sine, cosine]]
            mount[2, 3] = height
            pose = torch.from_numpy(ego @ mount @ CAMERA_AXES)
            cameras.append(Camera(pose, K, width, tall, index / fps, name))
            egos.append(torch.from_numpy(ego))
    return trajectory_from_cameras(cameras, torch.stack(egos))


def record(
    street: Street, trajectory: Trajectory, config: RecordingConfig | None = None
) -> Capture:
    """Everything a recording of this drive holds.

    Args:
        street: The world.
        trajectory: Cameras with ego poses, for example from `drive`.
        config: What to record; default as `RecordingConfig()`.

    Returns:
        Frames as JPEG bytes, initial points, box tracks and lane lines, all in the world frame.
    """
    config = config or RecordingConfig()
    views = [trace_view(street, camera, config.samples) for camera in trajectory.cameras]
    return capture_of(street, trajectory, views, config)


def truth(
    street: Street, trajectory: Trajectory, lateral_offset: float | int, samples: int = 4
) -> list[TracedView]:
    """What the cameras would have seen from the side.

    Args:
        street: The world.
        trajectory: The recorded path.
        lateral_offset: m along +y of the ego frame at each frame; positive = left. Where cars are
            parked, about -3.3..-5.1 and +6.8..+8.6 m lie inside them.
        samples: Rays per pixel.
    """
    shifted = offset_laterally(trajectory, float(lateral_offset))
    return [trace_view(street, camera, samples) for camera in shifted.cameras]


def capture_of(
    street: Street,
    trajectory: Trajectory,
    views: Sequence[TracedView],
    config: RecordingConfig,
) -> Capture:
    """A `Capture` from views that have been traced already (one per camera of the path)."""
    rng = np.random.default_rng(config.seed)
    times = sorted(set(trajectory.timestamps))
    walk = np.cumsum(rng.normal(0, config.exposure_drift, len(times)))
    gain = dict(zip(times, np.exp(walk - walk.mean()), strict=True))
    frames = tuple(
        PosedImage(
            camera=camera,
            data=encode_jpeg(view.rgb * np.float32(gain[camera.time]), config.jpeg_quality),
            name=frame_name(trajectory, index),
            dynamic_mask=encode_mask(view.node_index >= 0) if street.vehicles else None,
        )
        for index, (camera, view) in enumerate(zip(trajectory.cameras, views, strict=True))
    )
    points = None
    if config.num_points:
        points = sample_points(
            trajectory.cameras, views, config.num_points, config.point_noise, rng
        )
    lidar: tuple[torch.Tensor, ...] = ()
    if config.lidar:
        egos = {
            c.time: ego for c, ego in zip(trajectory.cameras, trajectory.ego_to_worlds, strict=True)
        }
        lidar = tuple(
            simulate_lidar(street, egos[time], time, rng, config.lidar_dropout) for time in times
        )
    if config.pose_noise > 0 or config.turn_noise > 0:
        trajectory = misplaced(trajectory, config)
        frames = tuple(
            replace(frame, camera=camera)
            for frame, camera in zip(frames, trajectory.cameras, strict=True)
        )
    return Capture(
        frames=frames,
        trajectory=trajectory,
        points=points,
        lidar=lidar,
        boxes=box_tracks(street, times),
        lanes=tuple(torch.from_numpy(lane.astype(np.float32)) for lane in street.lanes()),
        source=f"procedural street, family {street.config.family}, seed {street.config.seed}",
        licence="CC0-1.0",
    )


def misplaced(trajectory: Trajectory, config: RecordingConfig) -> Trajectory:
    """The path as a localisation with noise would report it: one error per time, shared by the rig."""
    rng = np.random.default_rng(
        [config.seed, 1]
    )  # apart from the other draws, which stay as they are
    errors = {}
    for time in sorted(set(trajectory.timestamps)):
        x, y, z = rng.normal(0, config.turn_noise, 3)
        turn = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
        error = torch.eye(4, dtype=torch.float64)
        error[:3, :3] = torch.linalg.matrix_exp(turn)
        error[:3, 3] = torch.from_numpy(rng.normal(0, config.pose_noise, 3))
        errors[time] = error
    egos = torch.stack(
        [
            ego @ errors[c.time]
            for c, ego in zip(trajectory.cameras, trajectory.ego_to_worlds, strict=True)
        ]
    )
    cameras = tuple(
        camera.moved(moved @ invert_rigid(ego) @ camera.camtoworld)
        for camera, ego, moved in zip(
            trajectory.cameras, trajectory.ego_to_worlds, egos, strict=True
        )
    )
    return replace(trajectory, cameras=cameras, ego_to_worlds=egos)


def frame_name(trajectory: Trajectory, index: int) -> str:
    """Running number of the frame, with the camera's name where the rig has several."""
    rig = list(dict.fromkeys(camera.name for camera in trajectory.cameras))
    number = f"{index // len(rig):06d}"
    return number if len(rig) == 1 else f"{number}_{trajectory.cameras[index].name}"


def box_tracks(street: Street, times: Sequence[float]) -> tuple[BoxTrack, ...]:
    """Boxes of the moving vehicles at these times, origin at the box centre, world."""
    tracks = []
    for vehicle in street.vehicles:
        lift = np.eye(4)
        lift[2, 3] = vehicle.size[2] / 2
        poses = np.stack([vehicle.pose(street.bend, time) @ lift for time in times])
        tracks.append(
            BoxTrack(
                name=vehicle.name,
                category="vehicle",
                size=torch.tensor(vehicle.size),
                poses=torch.from_numpy(poses),
                timestamps=torch.tensor(list(times), dtype=torch.float64),
            )
        )
    return tuple(tracks)


def encode_jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """JPEG bytes (4:4:4) of an image [H, W, 3] in [0, 1]."""
    import cv2

    pixels = np.clip(rgb[..., ::-1] * 255 + 0.5, 0, 255).astype(np.uint8)
    options = [
        *(cv2.IMWRITE_JPEG_QUALITY, quality),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ]
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask [H, W] as the PNG that `PosedImage` keeps."""
    import cv2

    return cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()
