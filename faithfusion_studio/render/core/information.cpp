// The two information passes, back to front over what the forward pass recorded.
//
// Screen record of a Gaussian: mean2d (2), Sigma2 xx, xy, yy (3), logit of opacity (1), colour (3). A pixel sees
// J = [w gamma k(h)^T, w I3] with k(h) = [hx, hy, hx^2/2, hx hy, hy^2/2, 1 - o], h = Conic (pixel - mean2d),
// gamma = colour - colour behind it (normalised to unit transmittance), w = its blending weight.
// Both matrices are packed upper triangles of 9x9. Where alpha is clamped gamma counts as 0; where a colour channel is
// clamped at 0 its row and column are dropped here, on the way in (evaluate) or out (accumulate).
#include "blend.h"
#include "coefficients.h"
#include "kernels.h"

namespace ff {
namespace FF_ISA {

constexpr int kHalf = 16;

struct Behind {
    F t, color[3];
};

static FF_INLINE void start(const Frame& f, const Tile& tile, Backdrop background, Behind state[16], F stop[16]) {
    for (int b = 0; b < 16; b++) {
        state[b].t = load(tile.final_t + 16 * b);
        stop[b] = load(tile.stops + 16 * b);
        for (int k = 0; k < 3; k++) {
            if (!background.color) state[b].color[k] = F(0.0f);
            else if (background.per_pixel) state[b].color[k] = load_pixels(background.color, f.cam, tile, b, 3, k);
            else state[b].color[k] = F(background.color[k]);
        }
    }
}

struct Sight {   // w and gamma; gamma is 0 where alpha is clamped
    F w, hx, hy, gamma[3];
};

static FF_INLINE Sight step(const Record& r, float position, F px, F py, F stop, Behind& s) {
    Seen seen = see(r, px, py);
    M valid = seen.valid & (F(position) < stop);
    F alpha = keep(valid, min(exp2(seen.exponent), F(kAlphaMax)));
    s.t = s.t * reciprocal(F(1.0f) - alpha);
    Sight out;
    out.w = alpha * s.t;
    out.hx = seen.hx;
    out.hy = seen.hy;
    for (int k = 0; k < 3; k++) {
        F difference = F(r.color[k]) - s.color[k];
        s.color[k] = fma(alpha, difference, s.color[k]);
        out.gamma[k] = difference;
    }
    if (r.log2_opacity > kLog2AlphaMax) {   // else alpha is clamped nowhere
        M free = seen.exponent <= F(kLog2AlphaMax);
        for (int k = 0; k < 3; k++) out.gamma[k] = keep(free, out.gamma[k]);
    }
    return out;
}

// ---- Fisher: sums over pixels ----

static FF_INLINE void add_moments(const Sight& s, F weight, F* a) {
    F x = s.hx, y = s.hy, ww = s.w * s.w * weight;
    F xx = x * x, xy = x * y, yy = y * y;
    F g = ww * fma(s.gamma[0], s.gamma[0], fma(s.gamma[1], s.gamma[1], s.gamma[2] * s.gamma[2]));
    F gxx = g * xx, gxy = g * xy, gyy = g * yy;
    a[0] += g;
    a[1] = fma(g, x, a[1]);
    a[2] = fma(g, y, a[2]);
    a[3] += gxx;
    a[4] += gxy;
    a[5] += gyy;
    a[6] = fma(gxx, x, a[6]);
    a[7] = fma(gxx, y, a[7]);
    a[8] = fma(gyy, x, a[8]);
    a[9] = fma(gyy, y, a[9]);
    a[10] = fma(gxx, xx, a[10]);
    a[11] = fma(gxx, xy, a[11]);
    a[12] = fma(gxx, yy, a[12]);
    a[13] = fma(gyy, xy, a[13]);
    a[14] = fma(gyy, yy, a[14]);
    for (int k = 0; k < 3; k++) {
        F c = ww * s.gamma[k];
        F* b = a + 15 + 6 * k;
        b[0] += c;
        b[1] = fma(c, x, b[1]);
        b[2] = fma(c, y, b[2]);
        b[3] = fma(c, xx, b[3]);
        b[4] = fma(c, xy, b[4]);
        b[5] = fma(c, yy, b[5]);
    }
    a[33] += ww;
}

static void accumulate_tile(const Frame& f, int64_t index, Backdrop background, const float* weight, float* rows) {
    const Tile tile = tile_at(f, index);
    if (!tile.count) return;
    Behind state[16];
    F stop[16], weights[16];
    start(f, tile, background, state, stop);
    for (int b = 0; b < 16; b++) weights[b] = load_pixels(weight, f.cam, tile, b, 1, 0);
    for (int64_t batch = tile.batches - 1; batch >= 0; batch--) {
        const uint32_t* masks = tile.contributed + batch * 16;
        uint32_t touched = 0;
        for (int b = 0; b < 16; b++) touched |= masks[b];
        if (!touched) continue;
        alignas(64) Record records[kBatch];
        load_batch(f, tile, batch, true, records);
        for (int half = kBatch - kHalf; half >= 0; half -= kHalf) {   // 16 at a time: the sums stay in the nearest cache
            const uint32_t part = ((1u << kHalf) - 1) << half;
            if (!(touched & part)) continue;
            F sums[kHalf][kMomentRow];
            for (uint32_t m = touched & part; m; m &= m - 1) {
                const int j = __builtin_ctz(m);
                for (int k = 0; k < kMoments; k++) sums[j - half][k] = F(0.0f);
                const float* row = rows + (int64_t)tile.entries[batch * kBatch + j] * kMomentRow;
                for (int line = 0; line < 3; line++) __builtin_prefetch(row + 16 * line, 1);
            }
            for (int b = 0; b < 16; b++) {
                uint32_t todo = masks[b] & part;
                if (!todo) continue;
                F px, py;
                block_centres(tile, b, px, py);
                Behind s = state[b];
                while (todo) {
                    const int j = 31 - __builtin_clz(todo);
                    todo &= ~(1u << j);
                    add_moments(step(records[j], (float)(batch * kBatch + j), px, py, stop[b], s), weights[b], sums[j - half]);
                }
                state[b] = s;
            }
            for (uint32_t m = touched & part; m; m &= m - 1) {
                const int j = __builtin_ctz(m);
                float* row = rows + (int64_t)tile.entries[batch * kBatch + j] * kMomentRow;
                add_sums16(sums[j - half], row);
                add_sums16(sums[j - half] + 16, row + 16);
                for (int k = 32; k < kMoments; k++) row[k] += sum(sums[j - half][k]);
            }
        }
    }
}

static void moments(const Frame& f, const Work& work, Backdrop background, const float* weight, float* rows) {
    const int64_t size = f.slots() * kMomentRow;
    const Reached some = reached(f, work.threads);
    parallel_for(work.threads, f.chunks, [&](int, int64_t c) {
        for (int i = 0; i < some.counts[c]; i++)
            for (int w = 0; w < work.workers(); w++)
                std::memset(rows + w * size + (int64_t)some.slots[c * kChunk + i] * kMomentRow, 0, sizeof(float) * kMomentRow);
    });
    parallel_accumulate(work, f.tiles(), [&](int worker, int64_t index) {
        accumulate_tile(f, index, background, weight, rows + worker * size);
    });
}

// ---- EIG: G of every pixel ----

static FF_INLINE void add_gain(const Sight& s, const float* c, F g[6]) {
    F x = s.hx, y = s.hy, ww = s.w * s.w;
    F q3 = fma(F(c[11]), y, F(c[6])), q2 = fma(fma(F(c[12]), y, F(c[7])), y, F(c[3]));
    F q1 = fma(fma(fma(F(c[13]), y, F(c[8])), y, F(c[4])), y, F(c[1]));
    F q0 = fma(fma(fma(fma(F(c[14]), y, F(c[9])), y, F(c[5])), y, F(c[2])), y, F(c[0]));
    F quartic = fma(fma(fma(fma(F(c[10]), x, q3), x, q2), x, q1), x, q0);
    F half = F(0.5f) * quartic, l[3];
    for (int k = 0; k < 3; k++) {
        const float* q = c + kLinear + 6 * k;
        F linear = fma(fma(F(q[3]), x, fma(F(q[4]), y, F(q[1]))), x, fma(fma(F(q[5]), y, F(q[2])), y, F(q[0])));
        l[k] = fma(half, s.gamma[k], linear);
    }
    int n = 0;
    for (int i = 0; i < 3; i++)
        for (int j = i; j < 3; j++, n++) {
            F both = i == j ? fma(s.gamma[i], l[i] + l[i], F(c[kConstant + n]))
                            : fma(s.gamma[i], l[j], fma(s.gamma[j], l[i], F(c[kConstant + n])));
            g[n] = fma(ww, both, g[n]);
        }
}

static FF_INLINE F linear_trace(const float* c, int channel, F x, F y) {
    const float* q = c + kTraceLinear + 5 * channel;
    return fma(fma(F(q[2]), x, fma(F(q[3]), y, F(q[0]))), x, fma(F(q[4]), y, F(q[1])) * y);
}

static FF_INLINE void add_trace(const Sight& s, const float* c, F g[1]) {
    F x = s.hx, y = s.hy;
    F q3 = fma(F(c[9]), y, F(c[4])), q2 = fma(fma(F(c[10]), y, F(c[5])), y, F(c[1]));
    F q1 = fma(fma(F(c[11]), y, F(c[6])), y, F(c[2])) * y;
    F q0 = fma(fma(fma(F(c[12]), y, F(c[7])), y, F(c[3])) * y, y, F(c[0]));
    F quartic = fma(fma(fma(fma(F(c[8]), x, q3), x, q2), x, q1), x, q0);
    F total = fma(s.gamma[0], fma(s.gamma[0], quartic, linear_trace(c, 0, x, y)), F(c[kTraceConstant]));
    for (int k = 1; k < 3; k++) total = fma(s.gamma[k], fma(s.gamma[k], quartic, linear_trace(c, k, x, y)), total);
    g[0] = fma(s.w * s.w, total, g[0]);
}

static FF_INLINE uint32_t touched_by(const uint32_t* masks) {
    uint32_t touched = 0;
    for (int b = 0; b < 16; b++) touched |= masks[b];
    return touched;
}

// Fetches the coefficient rows of the batch that comes next, a few at a time while this one is worked on: all at once they
// would wait for each other.
class Upcoming {
public:
    FF_INLINE Upcoming(const Frame& f, const Tile& tile, const float* rows, int width)
        : tile_(tile), records_(f.records.as<Record>()), rows_(rows), width_(width) { start(tile.batches); }
    FF_INLINE void start(int64_t batch) {
        todo_ = 0;
        while (!todo_ && --batch >= 0) todo_ = touched_by(tile_.contributed + batch * 16);
        slots_ = tile_.entries + batch * kBatch;
    }
    FF_INLINE void fetch(int count) {
        for (; todo_ && count; count--, todo_ &= todo_ - 1) {
            const float* row = rows_ + (int64_t)slots_[__builtin_ctz(todo_)] * width_;
            for (int k = 0; k < width_; k += 16) __builtin_prefetch(row + k);
            __builtin_prefetch(records_ + slots_[__builtin_ctz(todo_)]);
        }
    }

private:
    const Tile& tile_;
    const Record* records_;
    const float* rows_;
    const int width_;
    const uint32_t* slots_;
    uint32_t todo_;
};

static FF_INLINE void load_touched(const Frame& f, const Tile& t, int64_t batch, uint32_t touched, Record* out) {
    const Record* records = f.records.as<Record>();
    for (const uint32_t* slots = t.entries + batch * kBatch; touched; touched &= touched - 1) {
        const int j = __builtin_ctz(touched);
        out[j] = records[slots[j]];
    }
}

template <bool TRACE>
static void evaluate_tile(const Frame& f, int64_t index, Backdrop background, const float* rows, float* out) {
    constexpr int kOut = TRACE ? 1 : 6, kWidth = TRACE ? kTraceRow : kBlockRow;
    const Tile tile = tile_at(f, index);
    Behind state[16];
    F stop[16], g[16][kOut];
    start(f, tile, background, state, stop);
    for (int b = 0; b < 16; b++)
        for (int k = 0; k < kOut; k++) g[b][k] = F(0.0f);
    Upcoming upcoming(f, tile, rows, kWidth);
    upcoming.fetch(kBatch);
    for (int64_t batch = tile.batches - 1; batch >= 0; batch--) {
        const uint32_t* masks = tile.contributed + batch * 16;
        const uint32_t touched = touched_by(masks);
        if (!touched) continue;
        alignas(64) Record records[kBatch];
        load_touched(f, tile, batch, touched, records);
        const uint32_t* slots = tile.entries + batch * kBatch;
        upcoming.start(batch);
        for (int b = 0; b < 16; b++) {
            upcoming.fetch(2);
            uint32_t todo = masks[b];
            if (!todo) continue;
            F px, py, sums[kOut];
            block_centres(tile, b, px, py);
            Behind s = state[b];
            for (int k = 0; k < kOut; k++) sums[k] = g[b][k];
            while (todo) {
                const int j = 31 - __builtin_clz(todo);
                todo &= ~(1u << j);
                Sight sight = step(records[j], (float)(batch * kBatch + j), px, py, stop[b], s);
                if (TRACE) add_trace(sight, rows + (int64_t)slots[j] * kWidth, sums);
                else add_gain(sight, rows + (int64_t)slots[j] * kWidth, sums);
            }
            state[b] = s;
            for (int k = 0; k < kOut; k++) g[b][k] = sums[k];
        }
    }
    for (int b = 0; b < 16; b++)
        for (int k = 0; k < kOut; k++) store_pixels(out, f.cam, tile, b, kOut, k, g[b][k]);
}

static void evaluate(const Frame& f, const Work& work, Backdrop background, bool trace, const float* rows, float* out) {
    parallel_for(work.threads, f.tiles(), [&](int, int64_t index) {
        if (trace) evaluate_tile<true>(f, index, background, rows, out);
        else evaluate_tile<false>(f, index, background, rows, out);
    });
}

void add_information_passes(Kernels& k) {
    k.moments = moments;
    k.evaluate = evaluate;
}

}  // namespace FF_ISA
}  // namespace ff
