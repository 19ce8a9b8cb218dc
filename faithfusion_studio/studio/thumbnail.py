"""A small picture of the recorded photo beside the timeline."""

from __future__ import annotations

import base64
import html
from functools import lru_cache

import numpy as np

from faithfusion_studio.scene import PosedImage, Scene, SceneError

WIDTH = 152
"""CSS pixels; drawn at twice that for sharp screens."""


def thumbnail_html(scene: Scene, frame: int, left: int, name: str = "") -> str:
    """HTML that lies on the picture, `left` CSS pixels from its edge, with a name; empty without photos."""
    if scene.capture is None or not 0 <= frame < len(scene.capture.frames):
        return ""
    data = small_jpeg(scene.capture.frames[frame], 2 * WIDTH)
    if not data:
        return ""
    return (
        f'<div style="position:fixed;left:{left}px;bottom:12px;width:{WIDTH}px;z-index:4;'
        "pointer-events:none;border-radius:6px;overflow:hidden;background:rgba(16,19,26,.78);"
        'color:#c9cfda;font:11px/1.5 system-ui,sans-serif;text-align:center;">'
        f'<img src="data:image/jpeg;base64,{data}" style="width:100%;display:block;"/>'
        f"photo {html.escape(name or str(frame))}</div>"
    )


@lru_cache(maxsize=256)
def small_jpeg(photo: PosedImage, width: int) -> str:
    """Base64 of a small JPEG so many pixels wide; empty when the photo cannot be read."""
    import cv2

    try:
        image = photo.thumbnail(width)
    except SceneError:
        return ""
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]))
    return base64.b64encode(encoded.tobytes()).decode()
