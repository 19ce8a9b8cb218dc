"""Which tensor and which JSON value of a native file holds which part of a `Scene`.

Tensors: `background/*`, `nodes/<i>/*`, `sky/*`, `trajectory/*`, `paths/<i>/*`,
`frames/<i>/{image,dynamic_mask}` (encoded bytes), `points/*`, `lidar/<i>/points`, `boxes/<i>/*`,
`lanes/<i>/points`, `exposures`, `fisher/*`. Any other tensor is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from faithfusion_studio.cameras import Camera, Trajectory
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.fisher_packing import (
    diagonal_of,
    pack_correlations,
    pack_logs,
    unpack_blocks,
    unpack_logs,
)
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
    StoredFisher,
)

FISHER_ENCODING = "log16 diagonal, 12-bit partial correlations, byte planes, deflate"
_FLOATS = (torch.float32, torch.float64, torch.float16)


class LayoutError(Exception):
    """A scene and a set of named tensors that do not fit; always turned into a NativeFileError."""


class _Source:
    """Tensors that are taken out one by one, so that what is left is known to be unknown."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.left = dict(tensors)

    def take(
        self, name: str, shape: tuple[int | None, ...], kinds: tuple[torch.dtype, ...]
    ) -> Tensor:
        """A tensor of a shape (None = any length) and one of the dtypes; it is then used up."""
        tensor = self.left.pop(name, None)
        if tensor is None:
            raise LayoutError(f"the tensor {name} is missing")
        fits = tensor.dim() == len(shape) and all(
            want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype not in kinds:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise LayoutError(
                f"the tensor {name} is {tensor.dtype} of shape {tuple(tensor.shape)} where "
                f"({wanted}) was expected"
            )
        return tensor

    def bytes(self, name: str) -> bytes:
        return self.take(name, (None,), (torch.uint8,)).numpy().tobytes()


def _value(table: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(table, Mapping) or key not in table:
        raise LayoutError(f"the description lacks {key!r}")
    value = table[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise LayoutError(f"the description's {key!r} is a {type(value).__name__}")
    return value


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
        "fisher": None if scene.fisher is None else _put_fisher(tensors, scene.fisher),
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
    source = _Source(tensors)
    background = _take_gaussians(source, "background")
    nodes = []
    for i, entry in enumerate(_value(description, "nodes", list)):
        gaussians = _take_gaussians(source, f"nodes/{i}")
        poses = source.take(f"nodes/{i}/poses", (None, 4, 4), (torch.float64,))
        nodes.append(
            RigidNode(
                name=_value(entry, "name", str),
                gaussians=gaussians,
                poses=poses,
                timestamps=source.take(f"nodes/{i}/timestamps", (len(poses),), (torch.float64,)),
                visible=source.take(f"nodes/{i}/visible", (len(poses),), (torch.bool,)),
                size=source.take(f"nodes/{i}/size", (3,), _FLOATS),
                category=_value(entry, "category", str),
            )
        )
    sky = _take_sky(source, description.get("sky"))
    capture = _take_capture(source, description.get("capture"))
    fisher = _take_fisher(source, description.get("fisher"))
    paths = {
        _value(entry, "name", str): _take_trajectory(source, f"paths/{i}", entry)
        for i, entry in enumerate(_value(description, "paths", list))
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
        metadata=_value(description, "metadata", dict),
        extra_tensors=source.left,
    )


# -------------------------------------------------------------------------------- parts of a scene


def _gaussian_tensors(prefix: str, gaussians: Gaussians) -> dict[str, Tensor]:
    return {f"{prefix}/{f.name}": getattr(gaussians, f.name) for f in fields(Gaussians)}


def _take_gaussians(source: _Source, prefix: str) -> Gaussians:
    means = source.take(f"{prefix}/means", (None, 3), _FLOATS)
    n = len(means)
    shN = source.take(f"{prefix}/shN", (n, None, 3), _FLOATS)
    if shN.shape[1] not in (0, 3, 8, 15):
        raise LayoutError(f"{prefix}/shN has {shN.shape[1]} coefficients, not 0, 3, 8 or 15")
    return Gaussians(
        means=means,
        log_scales=source.take(f"{prefix}/log_scales", (n, 3), _FLOATS),
        quats=source.take(f"{prefix}/quats", (n, 4), _FLOATS),
        logit_opacities=source.take(f"{prefix}/logit_opacities", (n,), _FLOATS),
        sh0=source.take(f"{prefix}/sh0", (n, 1, 3), _FLOATS),
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


def _take_sky(source: _Source, entry: Any) -> Sky | None:
    if entry is None:
        return None
    kind = _value(entry, "kind", str)
    if kind == "constant":
        return ConstantSky(source.take("sky/color", (3,), _FLOATS))
    if kind == "cubemap":
        texels = source.take("sky/texels", (6, None, None, 3), _FLOATS)
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


def _take_trajectory(source: _Source, prefix: str, entry: Any) -> Trajectory:
    rows = _value(entry, "cameras", list)
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
    return Trajectory(tuple(cameras), egos, ego_is_camera=_value(entry, "ego_is_camera", bool))


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


def _take_capture(source: _Source, entry: Any) -> Capture | None:
    if entry is None:
        return None
    trajectory = _take_trajectory(source, "trajectory", _value(entry, "trajectory", dict))
    names = _value(entry, "frames", list)
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
            _take_box(source, i, box) for i, box in enumerate(_value(entry, "boxes", list))
        ),
        lanes=tuple(
            source.take(f"lanes/{i}/points", (None, 3), single)
            for i in range(_count(source, entry, "lanes"))
        ),
        source=_value(entry, "source", str),
        licence=_value(entry, "licence", str),
        notes=tuple(str(note) for note in _value(entry, "notes", list)),
    )


def _count(source: _Source, entry: Any, key: str) -> int:
    return min(_value(entry, key, int), len(source.left) + 1)


def _take_box(source: _Source, i: int, entry: Any) -> BoxTrack:
    poses = source.take(f"boxes/{i}/poses", (None, 4, 4), (torch.float64,))
    return BoxTrack(
        name=_value(entry, "name", str),
        category=_value(entry, "category", str),
        size=source.take(f"boxes/{i}/size", (3,), _FLOATS),
        poses=poses,
        timestamps=source.take(f"boxes/{i}/timestamps", (len(poses),), (torch.float64,)),
    )


def _byte_tensor(data: bytes) -> Tensor:
    if not data:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


# ------------------------------------------------------------------------------------------ Fisher


def _put_fisher(tensors: dict[str, Tensor], fisher: StoredFisher) -> dict[str, Any]:
    tensors["fisher/diagonal"] = pack_logs(diagonal_of(fisher.blocks))
    tensors["fisher/correlations"] = pack_correlations(fisher.blocks)
    tensors["fisher/sh"] = pack_logs(fisher.sh)
    entry: dict[str, Any] = {
        "encoding": FISHER_ENCODING,
        "rows": len(fisher.blocks),
        "sh_coefficients": fisher.sh.shape[1],
        "noise_std": fisher.noise_std,
        "num_views": fisher.num_views,
        "sky_side": None,
    }
    if fisher.sky is not None:
        entry["sky_side"] = list(fisher.sky.shape[1:])
        tensors["fisher/sky"] = pack_logs(fisher.sky)
    if fisher.residual_variance is not None:
        tensors["fisher/residual_variance"] = pack_logs(fisher.residual_variance)
    if fisher.calibration is not None:
        tensors["fisher/calibration"] = fisher.calibration
    return entry


def _take_fisher(source: _Source, entry: Any) -> StoredFisher | None:
    if entry is None:
        return None
    if _value(entry, "encoding", str) != FISHER_ENCODING:
        raise LayoutError(f"the Fisher encoding {entry['encoding'][:80]!r} is unknown")
    n = _value(entry, "rows", int)
    coefficients = _value(entry, "sh_coefficients", int)
    if not (0 <= n <= 10**9 and 0 <= coefficients <= 24):
        raise LayoutError(f"the Fisher evidence has {n} rows of {coefficients} coefficients")

    def logs(key: str, shape: tuple[int, ...]) -> Tensor:
        packed = source.take(f"fisher/{key}", (None,), (torch.uint8,))
        try:
            return unpack_logs(packed, shape)
        except ValueError as error:
            raise LayoutError(f"fisher/{key}: {error}") from error

    diagonal = logs("diagonal", (n, 13))
    try:
        blocks = unpack_blocks(
            source.take("fisher/correlations", (None,), (torch.uint8,)), diagonal
        )
    except ValueError as error:
        raise LayoutError(f"fisher/correlations: {error}") from error
    sky = None
    if entry.get("sky_side") is not None:
        side = _value(entry, "sky_side", list)
        if len(side) != 2 or not all(type(s) is int and 0 < s <= 8192 for s in side):
            raise LayoutError("the sky evidence has an impossible size")
        sky = logs("sky", (6, side[0], side[1]))
    calibration = None
    if "fisher/calibration" in source.left:
        calibration = source.take("fisher/calibration", (None, 2), (torch.float32,))
    residual = "fisher/residual_variance" in source.left
    return StoredFisher(
        blocks=blocks,
        sh=logs("sh", (n, coefficients, 3)),
        noise_std=float(_value(entry, "noise_std", (int, float))),
        num_views=_value(entry, "num_views", int),
        sky=sky,
        residual_variance=logs("residual_variance", (n,)) if residual else None,
        calibration=calibration,
    )
