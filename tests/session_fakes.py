"""A tiny scene, and engines for a session that do next to nothing, one step when a test lets them."""

import contextlib
import threading
import time
from dataclasses import replace

import torch

from faithfusion_studio.cameras import Camera, trajectory_from_cameras
from faithfusion_studio.fusion.repairing import RepairedFrame
from faithfusion_studio.fusion.replay import repaired_views
from faithfusion_studio.fusion.schedule import Progress
from faithfusion_studio.gaussians import Gaussians
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import Capture, PosedImage, Scene, StoredFisher
from faithfusion_studio.session.engines import Engines, RepairEngine

TIMEOUT = 20.0


def make_gaussians(n: int, value: float = 0.0) -> Gaussians:
    return Gaussians(
        means=torch.full((n, 3), value),
        log_scales=torch.zeros(n, 3),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1),
        logit_opacities=torch.zeros(n),
        sh0=torch.zeros(n, 1, 3),
        shN=torch.zeros(n, 0, 3),
        provenance=torch.zeros(n, dtype=torch.uint8),
    )


def make_camera(index: int) -> Camera:
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = index
    K = torch.tensor([[8.0, 0, 4], [0, 8, 3], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, 8, 6, time=float(index))


def make_fisher(n: int) -> StoredFisher:
    return StoredFisher(torch.ones(n, 91), torch.zeros(n, 0, 3), noise_std=0.02, num_views=4)


def make_scene(n: int = 10, frames: int = 6, fisher: bool = True) -> Scene:
    cameras = [make_camera(i) for i in range(frames)]
    capture = Capture(
        tuple(PosedImage(camera, b"", name=str(i)) for i, camera in enumerate(cameras)),
        trajectory_from_cameras(cameras),
    )
    node = RigidNode(
        name="car",
        gaussians=make_gaussians(4),
        poses=torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        timestamps=torch.tensor([0.0, 1.0], dtype=torch.float64),
        visible=torch.ones(2, dtype=torch.bool),
        size=torch.tensor([4.0, 2.0, 1.5]),
    )
    stored = make_fisher(n + 4) if fisher else None
    return Scene(make_gaussians(n), nodes=(node,), capture=capture, fisher=stored)


def make_frame(index: int) -> RepairedFrame:
    half = torch.full((6, 8), 0.5)
    return RepairedFrame(
        frame=index,
        camera=make_camera(index),
        rendered=torch.zeros(6, 8, 3),
        repaired=torch.ones(6, 8, 3),
        depth=half,
        eig=half,
        calibrated=half,
        ucr=torch.ones(6, 8, dtype=torch.bool),
        confidence=half,
        alpha=half,
        rendered_depth=half,
        pixel_provenance=torch.ones(6, 8, dtype=torch.uint8),
    )


class FakeTrainer:
    """Adds one to every centre per step and remembers how often in its optimiser state."""

    def __init__(self, world, scene, steps, optimizer_state, views):
        self.views = views
        self._world, self._scene, self._steps = world, scene, steps
        self._moments = {"means": {"count": torch.zeros(10)}}
        if optimizer_state is not None:
            self._moments = {"means": {"count": optimizer_state["means"]["count"].clone()}}
        self.change = None
        self._means = scene.background.means.clone()

    def run(self):
        for step in range(1, self._steps + 1):
            self._world.step(step)
            self._means += 1
            self._moments["means"]["count"] += 1
            loss = self._world.losses.get(step, 1.0 / step)
            psnr = 20.0 + step if step in (1, self._steps) else float("nan")
            moved = step / 100 if step in (1, self._steps) else float("nan")
            yield Progress(step, self._steps, loss, psnr, 14, 3, float(self._steps - step), moved)

    def scene(self):
        background = replace(self._scene.background, means=self._means.clone())
        return replace(self._scene, background=background, fisher=None)

    def optimizer_state(self):
        return {"means": {"count": self._moments["means"]["count"].clone()}}

    def checkpoint(self):
        raise NotImplementedError


class World:
    """Engines for a session, and the knobs a test turns."""

    def __init__(self):
        self.allowed = threading.Semaphore(0)
        self.free = True
        self.steps_done = 0
        self.fail_at = {}
        self.losses = {}
        self.saved = {}
        self.lost = []
        self.trainer_starts = []
        self.evidence_added = 0
        self.limits = []
        self.exported = []
        self.accepted = []
        self.export_closed = 0
        self.save_error = None

    def hold(self):
        """From now on a step waits for `allow`."""
        self.free = False

    def allow(self, steps=1):
        for _ in range(steps):
            self.allowed.release()

    def step(self, step):
        if not self.free and not self.allowed.acquire(timeout=TIMEOUT):
            raise AssertionError("nobody allowed this step")
        if step in self.fail_at:
            raise self.fail_at.pop(step)
        self.steps_done += 1

    def repair(self, scene, stage):
        for index in range(*stage.segment):
            self.step(index)
            yield make_frame(index)

    def start_trainer(
        self, scene, frames, config, *, steps, weighting, optimizer_state, views=None, **_more
    ):
        self.trainer_starts.append(optimizer_state)
        views = repaired_views(frames, scene, config, weighting) if views is None else views
        return FakeTrainer(self, scene, steps, optimizer_state, views)

    def recorded_evidence(self, scene):
        for index in range(3):
            self.step(index)
            yield index + 1, 3
        return make_fisher(scene.num_gaussians)

    def add_evidence(self, fisher, scene, cameras, weights):
        self.evidence_added += len(cameras)
        return replace(fisher, num_views=fisher.num_views + len(cameras))

    def export_video(self, scene, cameras, request, before):
        try:
            for index in range(len(cameras)):
                self.step(1000 + index)
                yield index + 1
            self.exported.append((scene, before, cameras))
        finally:
            self.export_closed += 1

    def save(self, scene, path):
        if self.save_error is not None:
            raise self.save_error
        path.write_bytes(b"scene")
        self.saved[path] = scene
        return self.lost

    @contextlib.contextmanager
    def thread_limit(self, count):
        self.limits.append(count)
        yield

    def list_engines(self, scene):
        free = RepairEngine("fake", "Fake", "Does nothing.", "MIT", 0.1)
        if "strict" in self.accepted:
            return free, RepairEngine("strict", "Strict", "Does nothing.", "Strict", 0.1)
        problem, terms = "Strict: its licence was not accepted.", "Strict <1>: for tests only."
        return free, RepairEngine(
            "strict", "Strict", "Does nothing.", "Strict", 0.1, problem, terms
        )

    def engines(self):
        return Engines(
            list_engines=self.list_engines,
            accept_licence=self.accepted.append,
            repair=self.repair,
            start_trainer=self.start_trainer,
            recorded_evidence=self.recorded_evidence,
            follow_rows=lambda fisher, change, scene: fisher,
            add_evidence=self.add_evidence,
            export_video=self.export_video,
            export_files=lambda cameras, request, before: (request.path,),
            save=self.save,
            load=lambda path: self.saved[path],
            thread_limit=self.thread_limit,
        )


def wait_until(condition, timeout=TIMEOUT):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
