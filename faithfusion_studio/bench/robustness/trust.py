"""What only a hostile file tries: running code, reading outside its folder, numbers that are none."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from faithfusion_studio.bench.robustness.attacks import malicious_files
from faithfusion_studio.bench.robustness.samples import SAMPLES, broken_rows, capture
from faithfusion_studio.errors import StudioError
from faithfusion_studio.io import load_capture, load_scene, read_torch_file, save_scene

ESCAPES = (
    "../secret.jpg", "../../secret.jpg", "images/../../secret.jpg", "./../secret.jpg", "{secret}",
    "//{secret}", "..\\secret.jpg", "images\\..\\..\\secret.jpg", "file://{secret}", "~/secret.jpg",
    "%2e%2e/secret.jpg", "..%2fsecret.jpg", "link.jpg", "linked/secret.jpg", "secret.jpg\0.jpg",
    "\\\\server\\share\\secret.jpg", "C:\\secret.jpg", "/dev/zero", "/proc/self/environ", "",
)  # fmt: skip
"""Names a recording gives its picture or a SOG its parts; `{secret}` is the absolute path outside."""
NONFINITE_ENDS = ("a.ckpt", "a.ply", "a.pt", "a.pth")
"""Files that keep every float, so that broken rows can be put into them."""


def pickles() -> tuple[int, int, list[str]]:
    """Malicious pickles opened, those that ran, and those that did not end in one sentence."""
    ran, unclear = 0, []
    with tempfile.TemporaryDirectory() as place:
        canary, path = Path(place) / "canary", Path(place) / "a.pth"
        files = malicious_files(canary)
        for name, data in files.items():
            path.write_bytes(data)
            for load in (load_scene, read_torch_file):
                try:
                    load(path)
                    unclear.append(f"{name}: opened")
                except StudioError as error:
                    if "\n" in str(error):
                        unclear.append(f"{name}: {str(error)[:80]!r}")
                except Exception as error:  # exactly what must not come out of a reader
                    unclear.append(f"{name}: {type(error).__name__}")
            ran += canary.exists()
            canary.unlink(missing_ok=True)
    return len(files), ran, unclear


def escapes() -> tuple[int, int, list[str]]:
    """Paths that lead outside tried, those that were read, and those that ended in a traceback."""
    tried, read, unclear = 0, 0, []
    with tempfile.TemporaryDirectory() as place:
        secret = Path(place) / "secret.jpg"
        secret.write_bytes(capture().frames[0].encoded())
        for kind in ("cameras.json", "transforms.json", "SOG folder"):
            root = Path(place) / kind
            root.mkdir()
            (root / "link.jpg").symlink_to(secret)
            (root / "linked").symlink_to(place)
            described = SAMPLES[kind].make(root, 8)
            good = described.read_bytes()
            for escape in ESCAPES:
                changed = _pointed_outside(kind, good, escape.format(secret=secret))
                described.write_text(changed)
                tried += 1
                try:
                    read += _reads_outside(kind, root)
                except StudioError:
                    continue
                except Exception as error:  # exactly what must not come out of a reader
                    unclear.append(f"{kind} {escape!r}: {type(error).__name__}")
    return tried, read, unclear


def _pointed_outside(kind: str, good: bytes, name: str) -> str:
    content = json.loads(good)
    if kind == "SOG folder":
        content["quats"]["files"] = [name]
    else:
        content["frames"][1]["file" if kind == "cameras.json" else "file_path"] = name
    return json.dumps(content)


def _reads_outside(kind: str, root: Path) -> bool:
    if kind == "SOG folder":
        load_scene(root)
        return True  # none of these names is a picture of the SOG
    frames = load_capture(root).frames
    files = [frame.data for frame in frames if isinstance(frame.data, Path)]
    return any(root.resolve() not in file.resolve().parents for file in files)


def nonfinite(files: int, seed: int) -> tuple[int, list[str]]:
    """Files with broken Gaussians opened, and those whose count of dropped ones was not exact."""
    import numpy as np

    rng, wrong = np.random.default_rng(seed), []
    with tempfile.TemporaryDirectory() as place:
        for index in range(files):
            bad, end = int(rng.integers(1, 20)), NONFINITE_ENDS[index % len(NONFINITE_ENDS)]
            path = Path(place) / end
            _written_as_is(broken_rows(24, bad, seed + index), path)
            found = load_scene(path)
            notes = " ".join(map(str, found.metadata.get("notes", [])))
            told = re.search(rf"{bad} of 24 Gaussians were left out", notes)
            if found.num_gaussians != 24 - bad or told is None:
                wrong.append(f"{end}: {bad} broken, {found.num_gaussians} kept")
    return files, wrong


def _written_as_is(scene: Any, path: Path) -> None:
    """Broken rows too, which `save_scene` would leave out of a splat file."""
    from faithfusion_studio.io import write_gsplat, write_ply

    if path.suffix == ".ply":
        write_ply(scene.background, path)
    elif path.suffix == ".pt":
        write_gsplat(scene.background, path)
    else:
        save_scene(scene, path)
