"""Annotating what moves: fit a box to laser points, place it at key times, follow it through the recording."""

from faithfusion_studio.annotating.fitting import SIZES, FittedBox, fit_at, fit_box, usual_size
from faithfusion_studio.annotating.following import follow
from faithfusion_studio.annotating.sweeps import place_at, sweep_near
from faithfusion_studio.annotation import Annotation, AnnotationError, Keyframe

__all__ = [
    "SIZES",
    "Annotation",
    "AnnotationError",
    "FittedBox",
    "Keyframe",
    "fit_at",
    "fit_box",
    "follow",
    "place_at",
    "sweep_near",
    "usual_size",
]
