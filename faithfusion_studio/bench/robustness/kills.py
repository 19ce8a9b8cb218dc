"""SIGKILL during saves: afterwards the file is the old one or the new one, whole.

Run as a module in a process of its own, which has not started any threads: it forks one child per
save. Arguments: kills, Gaussians, seed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ENDS = ("a.ckpt", "a.ply", "a.compressed.ply", "a.splat", "a.spz", "a.sog", "a.pt", "a.pth")


def main() -> None:
    """Kill, look, and print one JSON object."""
    kills, count, seed = (int(word) for word in sys.argv[1:4])
    import cv2
    import torch

    # A fork of a process with a pool of threads may hang in the child.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    from faithfusion_studio.bench.robustness.samples import gaussians
    from faithfusion_studio.errors import StudioError
    from faithfusion_studio.io import load_scene, save_scene
    from faithfusion_studio.scene import Scene

    rng = np.random.default_rng(seed)
    old, new = Scene(gaussians(count, 1, 1)), Scene(gaussians(count + 7, 1, 2))
    told = {"kills": 0, "old": 0, "new": 0, "corrupt": [], "leftovers": 0}
    with tempfile.TemporaryDirectory() as place:
        for end in ENDS:
            path = Path(place) / end
            save_scene(old, path)
            usual = max(_seconds_in(lambda path=path: save_scene(old, path)) for _ in range(2))
            for _ in range(-(-kills // len(ENDS))):
                if told["kills"] == kills:
                    break
                save_scene(old, path)
                _killed_in(lambda path=path: save_scene(new, path), usual * 1.1 * rng.random())
                told["kills"] += 1
                try:
                    found = load_scene(path).num_gaussians
                except StudioError as error:
                    told["corrupt"].append(f"{end}: {error}")
                    continue
                which = {count: "old", count + 7: "new"}.get(found)
                if which is None:
                    told["corrupt"].append(f"{end}: {found} Gaussians")
                else:
                    told[which] += 1
            save_scene(old, path)  # which clears away what the killed ones left
            leftovers = [p for p in Path(place).iterdir() if p.name.endswith(".part")]
            told["leftovers"] += len(leftovers)
            for leftover in leftovers:
                leftover.unlink()
    sys.stdout.write(json.dumps(told) + "\n")


def _seconds_in(work) -> float:
    """How long something takes in a child: several times as long as here, since memory is copied as it is touched."""
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return time.perf_counter() - started


def _killed_in(work, seconds: float) -> None:
    """Do something in a child that is killed after a while, if it is not done before."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)  # no clean-up of the parent's things
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
