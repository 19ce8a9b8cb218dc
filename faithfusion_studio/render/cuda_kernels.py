"""Both information loops in Triton, over gsplat's tile lists.

Symbols as in render/core/information.cpp: h = Conic (pixel - mean2d), s = h.d / 2, w = the weight a Gaussian
is blended with, gamma = its colour minus the colour behind it, normalised to unit transmittance. One program
owns the pixels of a tile (or of a horizontal part of it) and walks the tile's list from the last entry that
any of them blended to the first, so the colour behind is known at each step.

Transmittance is recovered by division on the way, from 1 behind the last Gaussian: all weights of a pixel come
out too large by the same factor, which is known once the front is reached and divided out there. That needs no
image of the forward pass and does not carry the rounding of 1 - alpha.

Arrays: records [slots, 12] = mean2d 2, conic 3, opacity, colour 3, unused 3; slot = camera * N + Gaussian;
entries [pairs] = slots, tile by tile; starts [tiles + 1] = where each tile's list starts; last [C, H, W] = the
entry at which each pixel stopped; backgrounds [C, H, W, 3] or [C, 3].
"""

import triton
import triton.language as tl

RECORD = tl.constexpr(12)
MOMENTS = tl.constexpr(34)
"""Sums of w^2 |gamma|^2 times the 15 monomials of h up to degree 4, for each channel of w^2 gamma times the 6
up to degree 2, and of w^2. Monomials are graded: 1, x, y, xx, xy, yy, xxx, ..."""
COEFFICIENTS = tl.constexpr(39)
"""15 of the quartic Q(h), 6 of the quadratic L(h) of each channel, the 6 constants of M."""
ALPHA_MIN = tl.constexpr(1 / 255)
ALPHA_MAX = tl.constexpr(0.999)


@triton.jit
def _place(columns, rows, TILE: tl.constexpr, ROWS: tl.constexpr):
    """Tile, camera and pixel positions of this program."""
    parts: tl.constexpr = TILE // ROWS
    program = tl.program_id(0)
    tile = program // parts
    camera = tile // (columns * rows)
    inside = tile % (columns * rows)
    lane = tl.arange(0, TILE * ROWS)
    x = (inside % columns) * TILE + lane % TILE
    y = (inside // columns) * TILE + (program % parts) * ROWS + lane // TILE
    return tile, camera, x, y


@triton.jit
def _behind(backgrounds, camera, pixel, inside, PER_PIXEL: tl.constexpr):
    """The colour behind everything at each pixel."""
    at = backgrounds + (pixel if PER_PIXEL else camera + pixel * 0) * 3
    red = tl.load(at, mask=inside, other=0.0)
    green = tl.load(at + 1, mask=inside, other=0.0)
    blue = tl.load(at + 2, mask=inside, other=0.0)
    return red, green, blue


@triton.jit
def _see(record, x, y):
    """h, the opacity before it is limited, and alpha (0 where the Gaussian is not seen) at each pixel."""
    dx = x + 0.5 - tl.load(record)
    dy = y + 0.5 - tl.load(record + 1)
    a = tl.load(record + 2)
    b = tl.load(record + 3)
    c = tl.load(record + 4)
    hx = a * dx + b * dy
    hy = b * dx + c * dy
    s = 0.5 * (hx * dx + hy * dy)
    raw = tl.load(record + 5) * tl.exp(-s)
    alpha = tl.minimum(raw, ALPHA_MAX)
    return hx, hy, raw, tl.where((s >= 0) & (alpha >= ALPHA_MIN), alpha, 0.0)


@triton.jit
def _pass(record, channel, raw, alpha, behind):
    """gamma of one channel (0 where alpha is limited), and the colour behind the next Gaussian in front."""
    difference = tl.load(record + 6 + channel) - behind
    return tl.where(raw <= ALPHA_MAX, difference, 0.0), behind + alpha * difference


# ------------------------------------------------------------------------------------ G of every pixel


@triton.jit
def _quartic(c, x, y):
    """15 coefficients in graded order at h = (x, y), by Horner's rule."""
    q4 = tl.load(c + 10)
    q3 = tl.load(c + 11) * y + tl.load(c + 6)
    q2 = (tl.load(c + 12) * y + tl.load(c + 7)) * y + tl.load(c + 3)
    q1 = ((tl.load(c + 13) * y + tl.load(c + 8)) * y + tl.load(c + 4)) * y + tl.load(c + 1)
    q0 = (tl.load(c + 14) * y + tl.load(c + 9)) * y + tl.load(c + 5)
    q0 = (q0 * y + tl.load(c + 2)) * y + tl.load(c)
    return (((q4 * x + q3) * x + q2) * x + q1) * x + q0


@triton.jit
def _quadratic(c, x, y):
    """6 coefficients in graded order at h = (x, y)."""
    linear = tl.load(c + 3) * x + (tl.load(c + 4) * y + tl.load(c + 1))
    return linear * x + ((tl.load(c + 5) * y + tl.load(c + 2)) * y + tl.load(c))


@triton.jit
def evaluate_block(
    records,
    coefficients,
    entries,
    starts,
    last,
    backgrounds,
    out,
    width,
    height,
    columns,
    rows,
    PER_PIXEL: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """G [C, H, W, 6] = sum of w^2 (gamma gamma^T Q + gamma L^T + L gamma^T + M); no atomics."""
    tile, camera, x, y = _place(columns, rows, TILE, ROWS)
    inside = (x < width) & (y < height)
    pixel = (camera.to(tl.int64) * height + y) * width + x
    stop = tl.load(last + pixel, mask=inside, other=-1)
    b0, b1, b2 = _behind(backgrounds, camera, pixel, inside, PER_PIXEL)
    t = tl.full((TILE * ROWS,), 1.0, tl.float32)
    rr = tl.zeros((TILE * ROWS,), tl.float32)
    rg = rr
    rb = rr
    gg = rr
    gb = rr
    bb = rr
    start = tl.load(starts + tile)
    furthest = tl.max(stop, axis=0)
    for back in range(0, furthest - start + 1):
        entry = furthest - back
        slot = tl.load(entries + entry).to(tl.int64)
        record = records + slot * RECORD
        hx, hy, raw, alpha = _see(record, x, y)
        alpha = tl.where(entry <= stop, alpha, 0.0)
        if tl.max(alpha, axis=0) > 0:
            c = coefficients + slot * COEFFICIENTS
            t = t / (1.0 - alpha)
            w = alpha * t
            ww = w * w
            g0, b0 = _pass(record, 0, raw, alpha, b0)
            g1, b1 = _pass(record, 1, raw, alpha, b1)
            g2, b2 = _pass(record, 2, raw, alpha, b2)
            half = 0.5 * _quartic(c, hx, hy)
            l0 = half * g0 + _quadratic(c + 15, hx, hy)
            l1 = half * g1 + _quadratic(c + 21, hx, hy)
            l2 = half * g2 + _quadratic(c + 27, hx, hy)
            rr += ww * (2 * g0 * l0 + tl.load(c + 33))
            rg += ww * (g0 * l1 + g1 * l0 + tl.load(c + 34))
            rb += ww * (g0 * l2 + g2 * l0 + tl.load(c + 35))
            gg += ww * (2 * g1 * l1 + tl.load(c + 36))
            gb += ww * (g1 * l2 + g2 * l1 + tl.load(c + 37))
            bb += ww * (2 * g2 * l2 + tl.load(c + 38))
    scale = 1.0 / (t * t)
    at = out + pixel * 6
    tl.store(at, rr * scale, mask=inside)
    tl.store(at + 1, rg * scale, mask=inside)
    tl.store(at + 2, rb * scale, mask=inside)
    tl.store(at + 3, gg * scale, mask=inside)
    tl.store(at + 4, gb * scale, mask=inside)
    tl.store(at + 5, bb * scale, mask=inside)


@triton.jit
def evaluate_trace(
    records,
    coefficients,
    entries,
    starts,
    last,
    backgrounds,
    out,
    width,
    height,
    columns,
    rows,
    PER_PIXEL: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """tr G [C, H, W]; coefficients [slots, 34] belong to the moments, in their order; no atomics."""
    tile, camera, x, y = _place(columns, rows, TILE, ROWS)
    inside = (x < width) & (y < height)
    pixel = (camera.to(tl.int64) * height + y) * width + x
    stop = tl.load(last + pixel, mask=inside, other=-1)
    b0, b1, b2 = _behind(backgrounds, camera, pixel, inside, PER_PIXEL)
    t = tl.full((TILE * ROWS,), 1.0, tl.float32)
    trace = tl.zeros((TILE * ROWS,), tl.float32)
    start = tl.load(starts + tile)
    furthest = tl.max(stop, axis=0)
    for back in range(0, furthest - start + 1):
        entry = furthest - back
        slot = tl.load(entries + entry).to(tl.int64)
        record = records + slot * RECORD
        hx, hy, raw, alpha = _see(record, x, y)
        alpha = tl.where(entry <= stop, alpha, 0.0)
        if tl.max(alpha, axis=0) > 0:
            c = coefficients + slot * MOMENTS
            t = t / (1.0 - alpha)
            w = alpha * t
            g0, b0 = _pass(record, 0, raw, alpha, b0)
            g1, b1 = _pass(record, 1, raw, alpha, b1)
            g2, b2 = _pass(record, 2, raw, alpha, b2)
            one = (g0 * g0 + g1 * g1 + g2 * g2) * _quartic(c, hx, hy) + tl.load(c + 33)
            one += g0 * _quadratic(c + 15, hx, hy) + g1 * _quadratic(c + 21, hx, hy)
            trace += w * w * (one + g2 * _quadratic(c + 27, hx, hy))
    tl.store(out + pixel, trace / (t * t), mask=inside)


# -------------------------------------------------------------------------- information of every Gaussian


@triton.jit
def _add(moments, at, values):
    tl.atomic_add(moments + at, tl.sum(values, axis=0), sem="relaxed")


@triton.jit
def _add_channel(moments, at, weighted, x, y):
    """Adds w^2 gamma times the monomials of h up to degree 2."""
    _add(moments, at, weighted)
    _add(moments, at + 1, weighted * x)
    _add(moments, at + 2, weighted * y)
    _add(moments, at + 3, weighted * x * x)
    _add(moments, at + 4, weighted * x * y)
    _add(moments, at + 5, weighted * y * y)


@triton.jit
def accumulate_block(
    records,
    entries,
    starts,
    last,
    backgrounds,
    weights,
    moments,
    width,
    height,
    columns,
    rows,
    PER_PIXEL: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Adds this tile's share to moments [slots, 34]; weights [C, H, W] >= 0 is the evidence of each pixel."""
    tile, camera, x, y = _place(columns, rows, TILE, ROWS)
    inside = (x < width) & (y < height)
    pixel = (camera.to(tl.int64) * height + y) * width + x
    evidence = tl.load(weights + pixel, mask=inside, other=0.0)
    stop = tl.load(last + pixel, mask=inside & (evidence > 0), other=-1)
    b0, b1, b2 = _behind(backgrounds, camera, pixel, inside, PER_PIXEL)
    start = tl.load(starts + tile)
    furthest = tl.max(stop, axis=0)
    t = tl.full((TILE * ROWS,), 1.0, tl.float32)
    for entry in range(start, furthest + 1):
        record = records + tl.load(entries + entry).to(tl.int64) * RECORD
        _, _, _, alpha = _see(record, x, y)
        t = t * (1.0 - tl.where(entry <= stop, alpha, 0.0))
    for back in range(0, furthest - start + 1):
        entry = furthest - back
        slot = tl.load(entries + entry).to(tl.int64)
        record = records + slot * RECORD
        hx, hy, raw, alpha = _see(record, x, y)
        alpha = tl.where(entry <= stop, alpha, 0.0)
        if tl.max(alpha, axis=0) > 0:
            row = moments + slot * MOMENTS
            t = t / (1.0 - alpha)
            ww = alpha * t
            ww = ww * ww * evidence
            g0, b0 = _pass(record, 0, raw, alpha, b0)
            g1, b1 = _pass(record, 1, raw, alpha, b1)
            g2, b2 = _pass(record, 2, raw, alpha, b2)
            g = ww * (g0 * g0 + g1 * g1 + g2 * g2)
            xx = g * hx * hx
            xy = g * hx * hy
            yy = g * hy * hy
            _add(row, 0, g)
            _add(row, 1, g * hx)
            _add(row, 2, g * hy)
            _add(row, 3, xx)
            _add(row, 4, xy)
            _add(row, 5, yy)
            _add(row, 6, xx * hx)
            _add(row, 7, xx * hy)
            _add(row, 8, yy * hx)
            _add(row, 9, yy * hy)
            _add(row, 10, xx * hx * hx)
            _add(row, 11, xx * hx * hy)
            _add(row, 12, xx * hy * hy)
            _add(row, 13, yy * hx * hy)
            _add(row, 14, yy * hy * hy)
            _add_channel(row, 15, ww * g0, hx, hy)
            _add_channel(row, 21, ww * g1, hx, hy)
            _add_channel(row, 27, ww * g2, hx, hy)
            _add(row, 33, ww)
