"""A small picture of the recorded photo beside the timeline."""

from __future__ import annotations

import base64
from functools import lru_cache

import numpy as np

from faithfusion_studio.render.views import to_uint8
from faithfusion_studio.scene import PosedImage, Scene, SceneError

WIDTH = 152
"""CSS pixels; drawn at twice that for sharp screens."""


def thumbnail_html(scene: Scene, frame: int, left: int) -> str:
    """HTML that lies on the picture, `left` CSS pixels from its edge; empty without photos."""
    if scene.capture is None or not 0 <= frame < len(scene.capture.frames):
        return ""
    data = _jpeg(scene.capture.frames[frame])
    if not data:
        return ""
    return (
        f'<div style="position:fixed;left:{left}px;bottom:12px;width:{WIDTH}px;z-index:4;'
        "pointer-events:none;border-radius:6px;overflow:hidden;background:rgba(16,19,26,.78);"
        'color:#c9cfda;font:11px/1.5 system-ui,sans-serif;text-align:center;">'
        f'<img src="data:image/jpeg;base64,{data}" style="width:100%;display:block;"/>'
        f"photo {frame}</div>"
    )


@lru_cache(maxsize=64)
def _jpeg(photo: PosedImage) -> str:
    """Base64 of a small JPEG; empty when the photo cannot be read."""
    import cv2

    width = 2 * WIDTH
    height = max(1, round(width * photo.camera.height / photo.camera.width))
    try:
        image = to_uint8(photo.image((width, height))).numpy()
    except SceneError:
        return ""
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]))
    return base64.b64encode(encoded.tobytes()).decode()
