"""Coloured points with cameras (`.npz`, as gsplat's test scene): opened as small round Gaussians.

Arrays: `means3d` (also `points`, `xyz`) [N, 3]; optional `colors` (`rgb`) [N, 3] bytes or 0..1;
optional `viewmats` [C, 4, 4] world -> camera (OpenCV), `Ks` [C, 3, 3], `width` and `height`.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import torch

from faithfusion_studio.cameras import Camera, Trajectory, TrajectoryError, trajectory_from_cameras
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.io.capture_files import MAX_IMAGE_SIDE
from faithfusion_studio.io.ply import SplatFileError
from faithfusion_studio.io.quantised import MAX_RATIO, tensor
from faithfusion_studio.io.splat_files import MAX_COORDINATE, keep_finite, splat_scene
from faithfusion_studio.scene import Scene
from faithfusion_studio.transforms import SH_C0

CAMERAS = "cameras of the file"
"""Name of the path the cameras of a file become."""
_POINTS, _COLORS = ("means3d", "points", "xyz", "means"), ("colors", "rgb", "colours")
_OPACITY = 0.9
_NEIGHBOURS = 3
NOTE = (
    "The file holds points, not Gaussians: each is shown as a small ball as wide as its neighbours "
    "are far; reconstruct the recording to get a real scene."
)


def is_npz(path: Path) -> bool:
    """Whether a zip file is one of NumPy's."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            return bool(names) and all(name.endswith(".npy") for name in names)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def read_point_scene(path: Path | str) -> Scene:
    """A scene of points, with the cameras of the file as a saved path.

    Raises:
        SplatFileError: Damaged, without points, or none of them usable.
    """
    path = Path(path)
    arrays = _arrays(path)
    means = next((arrays[name] for name in _POINTS if name in arrays), None)
    if means is None or means.ndim != 2 or means.shape[1] != 3 or not len(means):
        raise SplatFileError(
            f"{path}: holds {', '.join(list(arrays)[:8]) or 'nothing'}; expected points of shape "
            "(N, 3) as means3d, points or xyz."
        )
    with np.errstate(all="ignore"):
        means = means.astype(np.float32)
    count = len(means)
    colors = next((arrays[name] for name in _COLORS if name in arrays), None)
    if colors is None or colors.shape != (count, 3):
        colors = np.full((count, 3), 128, np.uint8)
    rgb = colors.astype(np.float32) / (255 if colors.dtype.kind in "iu" else 1)
    gaussians = Gaussians(
        means=tensor(means),
        log_scales=tensor(np.log(_spacing(means)))[:, None].expand(count, 3).contiguous(),
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        logit_opacities=torch.full((count,), float(np.log(_OPACITY / (1 - _OPACITY)))),
        sh0=tensor((rgb.clip(0, 1) - 0.5) / SH_C0)[:, None],
        shN=torch.zeros(count, 0, 3),
        provenance=torch.zeros(count, dtype=torch.uint8),
    )
    kept, dropped = keep_finite(gaussians, path)
    scene = splat_scene(kept, dropped, path, [NOTE])
    cameras = _cameras(path, arrays)
    return (
        scene if cameras is None else Scene(kept, metadata=scene.metadata, paths={CAMERAS: cameras})
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total > MAX_RATIO * path.stat().st_size:
                raise SplatFileError(
                    f"{path}: unpacks to {total:,} bytes; it is no recording of points."
                )
            found = {m.filename.removesuffix(".npy"): _array(path, archive, m) for m in members}
        return {name: array for name, array in found.items() if array is not None}
    except SplatFileError:
        raise
    except Exception as error:  # NumPy's header reader and zip raise many kinds on damaged bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise SplatFileError(f"{path}: is not a whole .npz ({reason}); copy it again.") from error


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray | None:
    """One array of numbers, whose shape must account for every byte; None where it is of objects."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise SplatFileError(
                f"{path}: {member.filename} has an unknown version; save it again."
            )
        shape, fortran, kind = read_header(file)
        if kind.kind not in "fiu":
            return None
        size = kind.itemsize * math.prod(shape)
        if file.tell() + size != member.file_size:
            raise SplatFileError(
                f"{path}: {member.filename} promises {size:,} bytes but the file has "
                f"{member.file_size - file.tell():,}; it is truncated or damaged."
            )
        array = np.frombuffer(file.read(size), kind)
    return array.reshape(shape, order="F" if fortran else "C")


def _spacing(means: np.ndarray) -> np.ndarray:
    """Half the mean distance to the nearest neighbours, m; [N]."""
    from scipy.spatial import KDTree

    good = np.isfinite(means).all(1) & (np.abs(means) < MAX_COORDINATE).all(1)
    spacing = np.full(len(means), 1e-3)
    if good.sum() > 1:
        points = means[good].astype(np.float64)
        number = min(_NEIGHBOURS + 1, len(points))
        near = KDTree(points).query(points, k=number)[0][:, 1:]
        spacing[good] = 0.5 * near.mean(1)
    typical = float(np.median(spacing[good])) if good.any() else 1.0
    # Duplicates have no spacing of their own, and lonely points would become clouds.
    return spacing.clip(max(0.05 * typical, 1e-6), max(5 * typical, 1e-6))


def _cameras(path: Path, arrays: dict[str, np.ndarray]) -> Trajectory | None:
    """The cameras of the file as a path; None where it has none."""
    if not {"viewmats", "Ks", "width", "height"} <= set(arrays):
        return None
    views, lenses = arrays["viewmats"], arrays["Ks"]
    size = [arrays[name] for name in ("width", "height")]
    sized = all(a.size == 1 and 0 < float(a.ravel()[0]) <= MAX_IMAGE_SIDE for a in size)
    number = len(views) if views.ndim == 3 else 0
    fits = views.shape == (number, 4, 4) and lenses.shape == (number, 3, 3)
    if not number or not fits or not sized:
        raise SplatFileError(
            f"{path}: has viewmats of shape {views.shape} and Ks of shape {lenses.shape}; expected "
            "(C, 4, 4) and (C, 3, 3), with width and height."
        )
    width, height = (int(a.ravel()[0]) for a in size)
    try:
        poses = np.linalg.inv(views.astype(np.float64))
        return trajectory_from_cameras(
            [
                Camera(torch.from_numpy(pose), torch.from_numpy(K), width, height, time=index / 10)
                for index, (pose, K) in enumerate(
                    zip(poses, lenses.astype(np.float64), strict=True)
                )
            ]
        )
    except (TrajectoryError, np.linalg.LinAlgError) as error:
        raise SplatFileError(f"{path}: a camera is not usable ({error}).") from error
