"""Hands freed memory back to the system, so that a long job does not keep its peak.

glibc keeps what images and gradients of many sizes leave behind: a repair and a fusion of the shipped
scene ended at 1.4 GB resident of which 0.7 GB was free.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any


def release_unused() -> None:
    """Return free heap pages to the system; does nothing where the C library has no such call."""
    trim = _trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
