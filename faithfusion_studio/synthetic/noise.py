"""Repeatable noise: tileable tables with mip levels, and hashes of integer cells.

Everything here is a pure function of its arguments, so equal points have equal colours in every
view. Footprints are the size of one pixel in the units of the coordinates; patterns finer than
that fade to their mean, which keeps neighbouring views consistent.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from faithfusion_studio.synthetic.geometry import Real

SIZE = 512
LEVELS = 9


@lru_cache(maxsize=64)
def _table(seed: int, roughness: Real) -> tuple[np.ndarray, np.ndarray]:
    """Flat mip chain of a tileable fractal table with mean 0 and deviation 1, and level offsets."""
    rng = np.random.default_rng(seed)
    total = np.zeros((SIZE, SIZE))
    amplitude, cells = 1.0, 8
    while cells <= SIZE:
        grid = rng.normal(size=(cells, cells))
        step = SIZE // cells
        total += amplitude * _upsampled(grid, step)
        amplitude *= roughness
        cells *= 2
    total = (total - total.mean()) / total.std()
    levels = [total]
    for _ in range(LEVELS - 1):
        last = levels[-1]
        levels.append((last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2]) / 4)
    offsets = np.cumsum([0, *[level.size for level in levels[:-1]]])
    return np.concatenate([level.ravel() for level in levels]).astype(np.float32), offsets


def _upsampled(grid: np.ndarray, step: int) -> np.ndarray:
    """Periodic smooth interpolation of a coarse grid to `step` times its size."""
    for axis in (0, 1):
        position = np.arange(grid.shape[axis] * step) / step
        low = position.astype(int)
        blend = position - low
        blend = (blend * blend * (3 - 2 * blend)).reshape((-1, 1) if axis == 0 else (1, -1))
        following = np.roll(grid, -1, axis=axis).take(low, axis=axis)
        grid = grid.take(low, axis=axis) * (1 - blend) + following * blend
    return grid


def fractal(
    x: np.ndarray,
    y: np.ndarray,
    period: Real,
    footprint: np.ndarray,
    *,
    seed: int = 0,
    roughness: Real = 0.7,
) -> np.ndarray:
    """Fractal noise [n], mean 0 and deviation about 1, repeating every `period` metres.

    Args:
        x: First coordinate [n], m.
        y: Second coordinate [n], m.
        period: Size of the tile, m; its finest detail is period / 512.
        footprint: Pixel size [n], m; detail below it is left out.
        seed: Which table.
        roughness: Amplitude of each octave over the coarser one, in (0, 1).
    """
    table, offsets = _table(seed, roughness)
    texels = np.maximum(footprint * np.float32(SIZE / period), 1e-6)
    level = np.clip(np.log2(texels) + 0.5, 0, LEVELS - 1).astype(np.int32)
    bits = 9 - level
    side = np.left_shift(1, bits).astype(np.int32)
    inverse = np.float32(1 / period)
    u = x * inverse * side - np.float32(0.5)
    v = y * inverse * side - np.float32(0.5)
    column, row = np.floor(u), np.floor(v)
    a, b = (u - column).astype(np.float32), (v - row).astype(np.float32)
    column, row, mask = column.astype(np.int32), row.astype(np.int32), side - 1
    c0, c1 = column & mask, (column + 1) & mask
    base = offsets.astype(np.int32)[level]
    r0, r1 = base + ((row & mask) << bits), base + (((row + 1) & mask) << bits)
    top = table[r0 + c0] * (1 - a) + table[r0 + c1] * a
    low = table[r1 + c0] * (1 - a) + table[r1 + c1] * a
    return top * (1 - b) + low * b


def cell_hash(x: np.ndarray, y: np.ndarray, salt: np.ndarray | int = 0) -> np.ndarray:
    """Random number in [0, 1) of each integer cell [n]."""
    h = x.astype(np.int32).astype(np.uint32) * np.uint32(0x9E3779B1)
    h ^= y.astype(np.int32).astype(np.uint32) * np.uint32(0x85EBCA77)
    scale = 1 if isinstance(salt, int) else 65536
    h += np.atleast_1d(np.asarray(salt) * scale).astype(np.uint32) * np.uint32(0xC2B2AE3D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    h ^= h >> np.uint32(12)
    h *= np.uint32(0x297A2D39)
    h ^= h >> np.uint32(15)
    return h.astype(np.float32) * np.float32(2.0**-32)


def band(
    x: np.ndarray, low: np.ndarray | Real, high: np.ndarray | Real, footprint: np.ndarray
) -> np.ndarray:
    """Share [n] of each pixel that lies between two lines."""
    half = np.maximum(footprint, 1e-4) * np.float32(0.5)
    covered = np.minimum(x + half, high) - np.maximum(x - half, low)
    return np.clip(covered / (2 * half), 0, 1)


def lines(x: np.ndarray, period: Real, width: Real, footprint: np.ndarray) -> np.ndarray:
    """Share [n] of each pixel covered by lines of `width` at multiples of `period`."""
    distance = np.abs(x - np.round(x * np.float32(1 / period)) * np.float32(period))
    near = band(distance, -width / 2, width / 2, footprint)
    fade = np.clip(footprint * np.float32(2 / period) - 1, 0, 1)
    return near * (1 - fade) + np.float32(width / period) * fade


def detail_fade(footprint: np.ndarray, size: Real) -> np.ndarray:
    """1 where cells of `size` are resolved, falling to 0 where a pixel covers several."""
    return np.clip(np.float32(1.5) - footprint / np.float32(size), 0, 1)
