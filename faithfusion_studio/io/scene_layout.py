"""Which tensor and which JSON value of a native file holds which part of a `Scene`.

Tensors: `background/*`, `nodes/<i>/*`, `sky/*`, `trajectory/*`, `paths/<i>/*`,
`frames/<i>/{image,dynamic_mask}` (encoded bytes), `points/*`, `lidar/<i>/points`, `boxes/<i>/*`,
`lanes/<i>/points`, `exposures`, `tone`, `fisher/*`. Any other tensor is kept as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from faithfusion_studio.cameras import Camera, Trajectory
from faithfusion_studio.io.fisher_packing import put_fisher, take_fisher
from faithfusion_studio.io.node_layout import (
    gaussian_tensors,
    put_node,
    put_sky,
    take_gaussians,
    take_node,
    take_sky,
)
from faithfusion_studio.io.tensor_table import FLOATS, LayoutError, TensorTable, json_value
from faithfusion_studio.scene import BoxTrack, Capture, PointCloud, PosedImage, Scene


def scene_to_tensors(scene: Scene) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Named tensors and a JSON description of a scene.

    Raises:
        LayoutError: The sky is of a kind the file does not know.
    """
    tensors: dict[str, Tensor] = dict(scene.extra_tensors)
    tensors |= gaussian_tensors("background", scene.background)
    description: dict[str, Any] = {
        "generator": "FaithFusion Studio",
        "nodes": [put_node(tensors, f"nodes/{i}", node) for i, node in enumerate(scene.nodes)],
        "sky": put_sky(tensors, scene.sky),
        "capture": None if scene.capture is None else _put_capture(tensors, scene.capture),
        "fisher": None if scene.fisher is None else put_fisher(tensors, scene.fisher),
        "paths": [
            {"name": name, **_put_trajectory(tensors, f"paths/{i}", path)}
            for i, (name, path) in enumerate(scene.paths.items())
        ],
        "metadata": dict(scene.metadata),
    }
    for name in ("exposures", "tone"):
        if getattr(scene, name) is not None:
            tensors[name] = getattr(scene, name)
    return tensors, description


def scene_from_tensors(tensors: dict[str, Tensor], description: dict[str, Any]) -> Scene:
    """The scene that `scene_to_tensors` described; tensors it does not know are kept.

    Raises:
        LayoutError: Something is missing or has another shape or kind.
    """
    source = TensorTable(tensors)
    background = take_gaussians(source, "background")
    nodes = tuple(
        take_node(source, f"nodes/{i}", entry)
        for i, entry in enumerate(json_value(description, "nodes", list))
    )
    sky = take_sky(source, description.get("sky"))
    capture = _take_capture(source, description.get("capture"))
    fisher = take_fisher(source, description.get("fisher"))
    paths = {
        json_value(entry, "name", str): _take_trajectory(source, f"paths/{i}", entry)
        for i, entry in enumerate(json_value(description, "paths", list))
    }
    exposures = None
    if "exposures" in source.left:
        exposures = source.take("exposures", (None, 3, 4), (torch.float32,))
    tone = None
    if "tone" in source.left:
        tone = source.take("tone", (3, 4), (torch.float32,))
    return Scene(
        background=background,
        nodes=nodes,
        sky=sky,
        capture=capture,
        fisher=fisher,
        exposures=exposures,
        tone=tone,
        paths=paths,
        metadata=json_value(description, "metadata", dict),
        extra_tensors=source.left,
    )


# -------------------------------------------------------------------------------- parts of a scene


def _put_trajectory(
    tensors: dict[str, Tensor], prefix: str, trajectory: Trajectory
) -> dict[str, Any]:
    cameras = trajectory.cameras
    if cameras:
        tensors[f"{prefix}/camtoworlds"] = trajectory.camtoworlds
        tensors[f"{prefix}/Ks"] = torch.stack([camera.K for camera in cameras])
    else:
        tensors[f"{prefix}/camtoworlds"] = torch.zeros(0, 4, 4, dtype=torch.float64)
        tensors[f"{prefix}/Ks"] = torch.zeros(0, 3, 3, dtype=torch.float64)
    tensors[f"{prefix}/ego_to_worlds"] = trajectory.ego_to_worlds
    tensors[f"{prefix}/timestamps"] = torch.tensor(trajectory.timestamps, dtype=torch.float64)
    return {
        "ego_is_camera": trajectory.ego_is_camera,
        "cameras": [[c.name, c.width, c.height] for c in cameras],
    }


def _take_trajectory(source: TensorTable, prefix: str, entry: Any) -> Trajectory:
    rows = json_value(entry, "cameras", list)
    n = len(rows)
    double = (torch.float64,)
    poses = source.take(f"{prefix}/camtoworlds", (n, 4, 4), double)
    Ks = source.take(f"{prefix}/Ks", (n, 3, 3), double)
    egos = source.take(f"{prefix}/ego_to_worlds", (n, 4, 4), double)
    times = source.take(f"{prefix}/timestamps", (n,), double).tolist()
    cameras = []
    for i, row in enumerate(rows):
        if (
            not isinstance(row, list)
            or len(row) != 3
            or not isinstance(row[0], str)
            or not all(type(side) is int and 1 <= side <= 65_535 for side in row[1:])
        ):
            raise LayoutError(f"camera {i} of {prefix} has an impossible name or size")
        cameras.append(Camera(poses[i], Ks[i], row[1], row[2], time=times[i], name=row[0]))
    return Trajectory(tuple(cameras), egos, ego_is_camera=json_value(entry, "ego_is_camera", bool))


def _put_capture(tensors: dict[str, Tensor], capture: Capture) -> dict[str, Any]:
    for i, frame in enumerate(capture.frames):
        tensors[f"frames/{i}/image"] = _byte_tensor(frame.encoded())
        if frame.dynamic_mask is not None:
            tensors[f"frames/{i}/dynamic_mask"] = _byte_tensor(frame.dynamic_mask)
    if capture.points is not None:
        tensors["points/xyz"] = capture.points.xyz
        tensors["points/rgb"] = capture.points.rgb
    for i, sweep in enumerate(capture.lidar):
        tensors[f"lidar/{i}/points"] = sweep
    for i, box in enumerate(capture.boxes):
        for key in ("size", "poses", "timestamps"):
            tensors[f"boxes/{i}/{key}"] = getattr(box, key)
        if box.by_hand is not None:
            tensors[f"boxes/{i}/by_hand"] = box.by_hand
    for i, lane in enumerate(capture.lanes):
        tensors[f"lanes/{i}/points"] = lane
    return {
        "trajectory": _put_trajectory(tensors, "trajectory", capture.trajectory),
        "frames": [frame.name for frame in capture.frames],
        "boxes": [{"name": box.name, "category": box.category} for box in capture.boxes],
        "lidar": len(capture.lidar),
        "lanes": len(capture.lanes),
        "source": capture.source,
        "licence": capture.licence,
        "notes": list(capture.notes),
    }


def _take_capture(source: TensorTable, entry: Any) -> Capture | None:
    if entry is None:
        return None
    trajectory = _take_trajectory(source, "trajectory", json_value(entry, "trajectory", dict))
    names = json_value(entry, "frames", list)
    if len(names) != len(trajectory):
        raise LayoutError(f"{len(names)} frames have {len(trajectory)} cameras")
    frames = []
    for i, name in enumerate(names):
        mask = f"frames/{i}/dynamic_mask"
        frames.append(
            PosedImage(
                camera=trajectory.cameras[i],
                data=source.bytes(f"frames/{i}/image"),
                name=str(name),
                dynamic_mask=source.bytes(mask) if mask in source.left else None,
            )
        )
    points = None
    if "points/xyz" in source.left:
        xyz = source.take("points/xyz", (None, 3), (torch.float32,))
        points = PointCloud(xyz, source.take("points/rgb", (len(xyz), 3), (torch.uint8,)))
    single = (torch.float32,)
    return Capture(
        frames=tuple(frames),
        trajectory=trajectory,
        points=points,
        lidar=tuple(
            source.take(f"lidar/{i}/points", (None, 3), single)
            for i in range(_count(source, entry, "lidar"))
        ),
        boxes=tuple(
            _take_box(source, i, box) for i, box in enumerate(json_value(entry, "boxes", list))
        ),
        lanes=tuple(
            source.take(f"lanes/{i}/points", (None, 3), single)
            for i in range(_count(source, entry, "lanes"))
        ),
        source=json_value(entry, "source", str),
        licence=json_value(entry, "licence", str),
        notes=tuple(str(note) for note in json_value(entry, "notes", list)),
    )


def _count(source: TensorTable, entry: Any, key: str) -> int:
    return min(json_value(entry, key, int), len(source.left) + 1)


def _take_box(source: TensorTable, i: int, entry: Any) -> BoxTrack:
    poses = source.take(f"boxes/{i}/poses", (None, 4, 4), (torch.float64,))
    by_hand = None
    if f"boxes/{i}/by_hand" in source.left:
        by_hand = source.take(f"boxes/{i}/by_hand", (len(poses),), (torch.bool,))
    return BoxTrack(
        name=json_value(entry, "name", str),
        category=json_value(entry, "category", str),
        size=source.take(f"boxes/{i}/size", (3,), FLOATS),
        poses=poses,
        timestamps=source.take(f"boxes/{i}/timestamps", (len(poses),), (torch.float64,)),
        by_hand=by_hand,
    )


def _byte_tensor(data: bytes) -> Tensor:
    if not data:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
