"""The tiny random scenes of `bench/tiny_scenes.py`, under the name the tests know."""

from faithfusion_studio.bench.tiny_scenes import (
    HEIGHT,
    SKY,
    WIDTH,
    camera_at,
    random_gaussians,
    recorded_cameras,
    slow_scene,
    slow_view,
    tiny_scene,
    tiny_world,
)

__all__ = [
    "HEIGHT",
    "SKY",
    "WIDTH",
    "camera_at",
    "random_gaussians",
    "recorded_cameras",
    "slow_scene",
    "slow_view",
    "tiny_scene",
    "tiny_world",
]
