"""From a recording to a scene: one readable loop, as a generator that yields after every step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float32, UInt8
from torch import Tensor

from faithfusion_studio.cameras import Camera
from faithfusion_studio.fusion.completion import completed
from faithfusion_studio.fusion.densify import DensifyState, GradientDensify, initial_state
from faithfusion_studio.fusion.ground import fit_ground
from faithfusion_studio.fusion.initialize import (
    camera_height,
    initial_gaussians,
    initial_sky,
    sky_share,
    thumbnail,
    visible_points,
)
from faithfusion_studio.fusion.learner import Learner
from faithfusion_studio.fusion.losses import SparseDepth, TrainingView
from faithfusion_studio.fusion.moving import (
    Movers,
    measured_inside,
    movers,
    registered_movers,
    without_movers,
)
from faithfusion_studio.fusion.node_seeds import initial_node
from faithfusion_studio.fusion.schedule import Progress, ReconstructionConfig
from faithfusion_studio.nodes import RigidNode
from faithfusion_studio.scene import Capture, Scene

DENSIFY_FROM, DENSIFY_UNTIL, DENSIFY_TIMES = 0.06, 0.6, 32
PIXELS_PER_GAUSSIAN = 6
"""A small recording cannot feed more Gaussians than one per so many recorded pixels."""
NODE_SHARE = 0.3
"""All moving vehicles together start with at most this share of the Gaussians."""
COARSE_UNTIL = 0.25
"""Share of the schedule that trains at half the training resolution."""


@dataclass(frozen=True)
class ReconstructionReport:
    """What a reconstruction reached; PSNR is the mean over frames at the training resolution."""

    steps: int
    seconds: float
    gaussians: int
    psnr_train: float
    """dB, with each frame's fitted exposure."""
    psnr_holdout: float
    """dB, frames never trained on, no exposure; NaN where nothing was held out."""


@dataclass(frozen=True, eq=False)
class _StoredView:
    """A recorded frame between its uses, in small types: 7 bytes per pixel, 8 where something is left out."""

    camera: Camera
    pixels: UInt8[Tensor, "H W 3"]
    sky_share: Float16[Tensor, "H W"]
    ground: Float16[Tensor, "H W"] | None
    depth: SparseDepth | None
    left_out: Bool[Tensor, "H W"] | None = None

    def training_view(self, index: int) -> TrainingView:
        # By numpy, which converts in this thread: torch would wake its own pool for so little.
        image = np.multiply(self.pixels.numpy(), np.float32(1 / 255), dtype=np.float32)
        return TrainingView(
            camera=self.camera,
            image=torch.from_numpy(image),
            weight=None if self.left_out is None else (~self.left_out).to(torch.float32),
            exposure_index=index,
            depth=self.depth,
            ground=None if self.ground is None else _float32(self.ground),
            sky_share=_float32(self.sky_share),
        )


def _float32(values: Float16[Tensor, "H W"]) -> Float32[Tensor, "H W"]:
    return torch.from_numpy(values.numpy().astype(np.float32))


class Reconstruction:
    """Trains Gaussians on a capture.

    Args:
        capture: Frames with poses; points help (see `initialize`), and box tracks of what moves.
        config: See `ReconstructionConfig`.
        device: Where to draw and learn.
    """

    def __init__(
        self,
        capture: Capture,
        config: ReconstructionConfig,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.capture, self.config = capture, config
        every = config.holdout_every
        indices = range(len(capture))
        self.holdout = [i for i in indices if every > 0 and i % every == every // 2]
        self.holdout = self.holdout if len(self.holdout) < len(capture) else []
        self.training = [i for i in indices if i not in set(self.holdout)]
        self._random = np.random.default_rng(config.seed)
        self._generator = torch.Generator().manual_seed(config.seed)
        self._views: dict[tuple[int, float], _StoredView] = {}
        self._steps_done, self._seconds = 0, 0.0
        self._movers = movers(capture) if config.nodes else Movers()
        if config.poses.laser:
            x, y, *_, turn = config.poses.bounds
            self._movers = registered_movers(capture, self._movers, (x, y, turn))
        self._still = without_movers(capture, self._movers)
        self._ground = fit_ground(self._still, camera_height(self._still))
        self._first_sky = initial_sky(capture.select(self.training), config.sky_resolution)
        self._learner, self._densify = self._prepare(torch.device(device))
        self._state = self._fresh_state()

    def _prepare(self, device: torch.device) -> tuple[Learner, GradientDensify]:
        config = self.config
        trained = self._still.select(self.training)
        pixels = sum(f.camera.width * f.camera.height for f in trained.frames) * config.scale**2
        limit = min(config.max_gaussians, max(2000, int(pixels / PIXELS_PER_GAUSSIAN)))
        gaussians, extent = initial_gaussians(
            trained,
            seed=config.seed,
            sh_degree=config.sh_degree,
            limit=int(0.7 * limit),
            moving=self._movers.mask if self._movers.all else None,
        )
        nodes = self._first_nodes(int(NODE_SHARE * limit))
        exposures = torch.eye(3, 4).repeat(len(self.capture), 1, 1) if config.exposure else None
        scene = Scene(
            background=gaussians,
            nodes=nodes,
            sky=self._first_sky,
            capture=self.capture,
            exposures=exposures,
        )
        scene = scene.to(device)
        learner = Learner(
            scene,
            config.rates,
            config.weights,
            extent=extent,
            capacity=limit,
            poses=config.poses,
            times=trained.trajectory.timestamps,
        )
        return learner, GradientDensify(extent=extent, max_gaussians=limit)

    def _first_nodes(self, limit: int) -> tuple[RigidNode, ...]:
        """A node for each vehicle that moves, if any of it was seen."""
        trained = self.capture.select(self.training)
        pictures: dict[int, Tensor] = {}

        def image(index: int) -> Tensor:
            if index not in pictures:
                pictures[index] = thumbnail(trained.frames[index])
            return pictures[index]

        tracks = self._movers.rigid
        nodes = [
            initial_node(
                trained,
                track,
                image,
                seed=self.config.seed + number,
                sh_degree=self.config.sh_degree,
                limit=limit // len(tracks),
            )
            for number, track in enumerate(tracks)
        ]
        return tuple(node for node in nodes if len(node.gaussians))

    def _view(self, index: int, factor: float) -> TrainingView:
        """A recorded frame at a share of its recorded size; kept in small types between uses."""
        key = (index, factor)
        if key not in self._views:
            self._views[key] = self._load_view(index, factor)
        return self._views[key].training_view(index)

    def _load_view(self, index: int, factor: float) -> _StoredView:
        frame, points = self.capture.frames[index], self._still.points
        camera = frame.camera.scaled(factor)
        image = frame.image((camera.width, camera.height))
        up = self.capture.trajectory.ego_to_worlds[:, :3, 2].mean(0).to(torch.float32)
        ground = None if self._ground is None else self._ground.depth(index, camera)
        depth = None if points is None else visible_points(points.xyz, camera)
        if self._movers.all:
            moving = self._movers.mask(camera)
            ground = None if ground is None else ground.masked_fill(moving, 0)
            depth = self._depth_beside(moving, depth, camera)
        return _StoredView(
            camera=camera,
            pixels=(image * 255 + 0.5).to(torch.uint8),
            sky_share=sky_share(camera, image, self._first_sky, up).to(torch.float16),
            ground=None if ground is None else ground.to(torch.float16),
            depth=depth,
            left_out=self._movers.unlearned(frame, camera),
        )

    def _depth_beside(
        self, moving: Tensor, depth: SparseDepth | None, camera: Camera
    ) -> SparseDepth | None:
        """Known depths off what moves, and those that a laser measured on it at that time."""
        measured = measured_inside(self.capture, self._movers.rigid, camera.time)
        found = visible_points(measured, camera)
        if depth is None:
            return found if len(found.pixels) else None
        off = ~moving.flatten()[depth.pixels]
        return SparseDepth(
            torch.cat([depth.pixels[off], found.pixels]),
            torch.cat([depth.depths[off], found.depths]),
        )

    def run(self) -> Iterator[Progress]:
        """Train; stop consuming to stop early, whatever was learned stays in `scene()`."""
        config, learner = self.config, self._learner
        budget = math.inf if config.minutes is None else config.minutes * 60
        densify_at = np.linspace(DENSIFY_FROM, DENSIFY_UNTIL, DENSIFY_TIMES).tolist()
        order: list[int] = []
        for step in range(config.steps):
            started = time.monotonic()
            done = max(step / config.steps, self._seconds / budget)
            if done >= 1:
                return
            order = order or self._random.permutation(self.training).tolist()
            factor = config.scale * (0.5 if done < COARSE_UNTIL else 1.0)
            learner.parameters.set_rate(
                "means", config.rates.means * learner.extent * math.exp(math.log(0.01) * done)
            )
            if learner.nodes is not None:
                learner.nodes.set_pose_factor(0.1**done)
            sh_degree = min(config.sh_degree, int(done * 4 * (config.sh_degree + 1)))
            densifying = bool(densify_at)
            view = self._view(order.pop(), factor)
            loss, meta = learner.step(view, sh_degree, absgrad=densifying)
            if densifying:
                self._densify.observe(meta, self._state)
                if done >= densify_at[0]:
                    densify_at.pop(0)
                    self._change_rows()
            self._steps_done = step + 1
            self._seconds += time.monotonic() - started
            yield self._progress(loss, budget)

    def _change_rows(self) -> None:
        change = self._densify.update(self._learner.parameters, self._state, self._generator)
        if change is not None:
            if self._learner.nodes is not None:
                self._learner.nodes.follow(change)
            self._state = self._fresh_state()

    def _fresh_state(self) -> DensifyState:
        return initial_state(len(self._learner.parameters), self._learner.device)

    def _progress(self, loss: float, budget: float) -> Progress:
        per_step = self._seconds / self._steps_done
        left = min((self.config.steps - self._steps_done) * per_step, budget - self._seconds)
        return Progress(
            step=self._steps_done,
            steps=self.config.steps,
            loss=loss,
            psnr_recorded=math.nan,
            num_gaussians=len(self._learner.parameters),
            num_generated=0,
            seconds_left=max(left, 0.0),
        )

    def scene(self) -> Scene:
        """The scene as learned so far, without evidence."""
        metadata = {
            "reconstruction": {
                **asdict(self.config),
                "steps_done": self._steps_done,
                "seconds": round(self._seconds, 1),
                "holdout": self.holdout,
            },
            "source": self.capture.source,
            "licence": self.capture.licence,
        }
        scene = replace(self._learner.snapshot(), metadata=metadata)
        if self.config.symmetric:
            frames = [self.capture.frames[index].camera for index in self.training]
            scene = completed(scene, [camera.scaled(self.config.scale) for camera in frames])
        return scene

    def report(self, scene: Scene | None = None) -> ReconstructionReport:
        """Measure trained and held-out frames (a fraction of a second per frame)."""
        scene = scene or self.scene()
        return ReconstructionReport(
            steps=self._steps_done,
            seconds=self._seconds,
            gaussians=scene.num_gaussians,
            psnr_train=self._mean_psnr(scene, self.training, exposed=True),
            psnr_holdout=self._mean_psnr(scene, self.holdout, exposed=False),
        )

    def _mean_psnr(self, scene: Scene, indices: list[int], *, exposed: bool) -> float:
        from faithfusion_studio.metrics import psnr
        from faithfusion_studio.render.views import apply_exposure, render_view

        values = []
        for index in indices:
            view = self._view(index, self.config.scale)
            rgb = render_view(scene, view.camera).rgb
            if exposed and scene.exposures is not None:
                rgb = apply_exposure(rgb, scene.exposures[index]).clamp(0, 1)
            values.append(psnr(rgb.cpu(), view.image))
        return float(np.mean(values)) if values else math.nan
