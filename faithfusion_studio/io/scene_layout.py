"""Which tensor and which JSON value of a native file holds which part of a `Scene`.

Tensors: `background/*`, `nodes/<i>/*`, `sky/*`, `trajectory/*`, `paths/<i>/*`,
`frames/<i>/{image,dynamic_mask}` (encoded bytes), `points/*`, `lidar/<i>/points`, `boxes/<i>/*`,
`lanes/<i>/points`, `exposures`, `fisher/*`. Any other tensor is kept as it is.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from faithfusion_studio.cameras import Camera, Trajectory
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.fisher_packing import put_fisher, take_fisher
from faithfusion_studio.io.tensor_table import FLOATS, LayoutError, TensorTable, json_value
from faithfusion_studio.scene import (
    BoxTrack,
    Capture,
    ConstantSky,
    CubemapSky,
    PointCloud,
    PosedImage,
    RigidNode,
    Scene,
    Sky,
)


def scene_to_tensors(scene: Scene) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Named tensors and a JSON description of a scene.

    Raises:
        LayoutError: The sky is of a kind the file does not know.
    """
    tensors: dict[str, Tensor] = dict(scene.extra_tensors)
    tensors |= _gaussian_tensors("background", scene.background)
    for i, node in enumerate(scene.nodes):
        tensors |= _gaussian_tensors(f"nodes/{i}", node.gaussians)
        for key in ("poses", "timestamps", "visible", "size"):
            tensors[f"nodes/{i}/{key}"] = getattr(node, key)
    description: dict[str, Any] = {
        "generator": "FaithFusion Studio",
        "nodes": [{"name": n.name, "category": n.category} for n in scene.nodes],
        "sky": _put_sky(tensors, scene.sky),
        "capture": None if scene.capture is None else _put_capture(tensors, scene.capture),
        "fisher": None if scene.fisher is None else put_fisher(tensors, scene.fisher),
        "paths": [
            {"name": name, **_put_trajectory(tensors, f"paths/{i}", path)}
            for i, (name, path) in enumerate(scene.paths.items())
        ],
        "metadata": dict(scene.metadata),
    }
    if scene.exposures is not None:
        tensors["exposures"] = scene.exposures
    return tensors, description


def scene_from_tensors(tensors: dict[str, Tensor], description: dict[str, Any]) -> Scene:
    """The scene that `scene_to_tensors` described; tensors it does not know are kept.

    Raises:
        LayoutError: Something is missing or has another shape or kind.
    """
    source = TensorTable(tensors)
    background = _take_gaussians(source, "background")
    nodes = []
    for i, entry in enumerate(json_value(description, "nodes", list)):
        gaussians = _take_gaussians(source, f"nodes/{i}")
        poses = source.take(f"nodes/{i}/poses", (None, 4, 4), (torch.float64,))
        nodes.append(
            RigidNode(
                name=json_value(entry, "name", str),
                gaussians=gaussians,
                poses=poses,
                timestamps=source.take(f"nodes/{i}/timestamps", (len(poses),), (torch.float64,)),
                visible=source.take(f"nodes/{i}/visible", (len(poses),), (torch.bool,)),
                size=source.take(f"nodes/{i}/size", (3,), FLOATS),
                category=json_value(entry, "category", str),
            )
        )
    sky = _take_sky(source, description.get("sky"))
    capture = _take_capture(source, description.get("capture"))
    fisher = take_fisher(source, description.get("fisher"))
    paths = {
        json_value(entry, "name", str): _take_trajectory(source, f"paths/{i}", entry)
        for i, entry in enumerate(json_value(description, "paths", list))
    }
    exposures = None
    if "exposures" in source.left:
        exposures = source.take("exposures", (None, 3, 4), (torch.float32,))
    return Scene(
        background=background,
        nodes=tuple(nodes),
        sky=sky,
        capture=capture,
        fisher=fisher,
        exposures=exposures,
        paths=paths,
        metadata=json_value(description, "metadata", dict),
        extra_tensors=source.left,
    )


# -------------------------------------------------------------------------------- parts of a scene


def _gaussian_tensors(prefix: str, gaussians: Gaussians) -> dict[str, Tensor]:
    return {f"{prefix}/{f.name}": getattr(gaussians, f.name) for f in fields(Gaussians)}


def _take_gaussians(source: TensorTable, prefix: str) -> Gaussians:
    means = source.take(f"{prefix}/means", (None, 3), FLOATS)
    n = len(means)
    shN = source.take(f"{prefix}/shN", (n, None, 3), FLOATS)
    if shN.shape[1] not in (0, 3, 8, 15):
        raise LayoutError(f"{prefix}/shN has {shN.shape[1]} coefficients, not 0, 3, 8 or 15")
    return Gaussians(
        means=means,
        log_scales=source.take(f"{prefix}/log_scales", (n, 3), FLOATS),
        quats=source.take(f"{prefix}/quats", (n, 4), FLOATS),
        logit_opacities=source.take(f"{prefix}/logit_opacities", (n,), FLOATS),
        sh0=source.take(f"{prefix}/sh0", (n, 1, 3), FLOATS),
        shN=shN,
        provenance=source.take(f"{prefix}/provenance", (n,), (torch.uint8,)),
    )


def _put_sky(tensors: dict[str, Tensor], sky: Sky | None) -> dict[str, str] | None:
    if sky is None:
        return None
    if isinstance(sky, ConstantSky):
        tensors["sky/color"] = sky.color
        return {"kind": "constant"}
    if isinstance(sky, CubemapSky):
        tensors["sky/texels"] = sky.texels
        return {"kind": "cubemap"}
    raise LayoutError(f"the sky is a {type(sky).__name__}; expected ConstantSky or CubemapSky")


def _take_sky(source: TensorTable, entry: Any) -> Sky | None:
    if entry is None:
        return None
    kind = json_value(entry, "kind", str)
    if kind == "constant":
        return ConstantSky(source.take("sky/color", (3,), FLOATS))
    if kind == "cubemap":
        texels = source.take("sky/texels", (6, None, None, 3), FLOATS)
        if texels.shape[1] != texels.shape[2] or texels.shape[1] == 0:
            raise LayoutError(f"sky/texels has faces of shape {tuple(texels.shape[1:3])}")
        return CubemapSky(texels)
    raise LayoutError(f"the sky is of the unknown kind {kind[:40]!r}")


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
    return BoxTrack(
        name=json_value(entry, "name", str),
        category=json_value(entry, "category", str),
        size=source.take(f"boxes/{i}/size", (3,), FLOATS),
        poses=poses,
        timestamps=source.take(f"boxes/{i}/timestamps", (len(poses),), (torch.float64,)),
    )


def _byte_tensor(data: bytes) -> Tensor:
    if not data:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
