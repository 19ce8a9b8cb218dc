// Back-to-front pass for gradients. With v the gradient of the pixel, s = v.c and b = v.(colour behind at unit
// transmittance), alpha dL/dalpha = w (s - b): no division and no cancellation. Alpha is one more channel of colour 1 over 0.
// Sums per Gaussian: 0 g | 1,2 g h | 3,4,5 g hxhx, g hxhy, g hyhy | 6,7 |g h| | 8.. w v.
#include "blend.h"
#include "kernels.h"

namespace ff {
namespace FF_ISA {

constexpr int kColorSum = 8;

template <int NC, bool ABS>
static FF_INLINE void backward_block(const Record* batch, uint32_t todo, float position, F px, F py, F& t, F& behind,
                                     const F* v, F v_alpha, F stop, F (*sums)[kRow]) {
    F tt = t, b = behind;
    while (todo) {
        const int j = 31 - __builtin_clz(todo);
        todo &= ~(1u << j);
        const Record& r = batch[j];
        Seen s = see(r, px, py);
        M valid = s.valid & (F(position + j) < stop);
        F alpha = keep(valid, min(exp2(s.exponent), F(kAlphaMax)));
        tt = tt * reciprocal(F(1.0f) - alpha);
        F w = alpha * tt, value = v_alpha;
        for (int k = 0; k < NC; k++) value = fma(v[k], F(r.color[k]), value);
        F difference = value - b;
        F g = keep(s.exponent <= F(kLog2AlphaMax), w * difference);
        b = fma(alpha, difference, b);
        F gx = g * s.hx, gy = g * s.hy;
        F* a = sums[j];
        a[0] += g;
        a[1] += gx;
        a[2] += gy;
        a[3] = fma(gx, s.hx, a[3]);
        a[4] = fma(gx, s.hy, a[4]);
        a[5] = fma(gy, s.hy, a[5]);
        if (ABS) {
            a[6] += abs(gx);
            a[7] += abs(gy);
        }
        for (int k = 0; k < NC; k++) a[kColorSum + k] = fma(w, v[k], a[kColorSum + k]);
    }
    t = tt;
    behind = b;
}

template <int NC, bool ABS>
static void backward_tile(const Frame& f, int64_t index, const float* background, const float* v_color, int stride,
                          const float* v_alpha, float* rows) {
    const Tile tile = tile_at(f, index);
    if (!tile.count) return;
    F t[16], behind[16], v[16][NC], va[16], stop[16];
    for (int b = 0; b < 16; b++) {
        t[b] = load(tile.final_t + 16 * b);
        stop[b] = load(tile.stops + 16 * b);
        va[b] = v_alpha ? load_pixels(v_alpha, f.cam, tile, b, 1, 0) : F(0.0f);
        behind[b] = F(0.0f);
        for (int k = 0; k < NC; k++) {
            v[b][k] = load_pixels(v_color, f.cam, tile, b, stride, k);
            if (background) behind[b] = fma(v[b][k], F(background[k]), behind[b]);
        }
    }
    for (int64_t batch = tile.batches - 1; batch >= 0; batch--) {
        const uint32_t* masks = tile.contributed + batch * 16;
        uint32_t touched = 0;
        for (int b = 0; b < 16; b++) touched |= masks[b];
        if (!touched) continue;
        alignas(64) Record records[kBatch];
        load_batch(f, tile, batch, true, records);
        F sums[kBatch][kRow];
        for (uint32_t m = touched; m; m &= m - 1) {
            const int j = __builtin_ctz(m);
            for (int k = 0; k < kRow; k++) sums[j][k] = F(0.0f);
            __builtin_prefetch(rows + (int64_t)tile.entries[batch * kBatch + j] * kRow, 1);
        }
        for (int b = 0; b < 16; b++) {
            if (!masks[b]) continue;
            F px, py;
            block_centres(tile, b, px, py);
            backward_block<NC, ABS>(records, masks[b], (float)(batch * kBatch), px, py, t[b], behind[b], v[b], va[b], stop[b], sums);
        }
        for (uint32_t m = touched; m; m &= m - 1) {
            const int j = __builtin_ctz(m);
            add_sums16(sums[j], rows + (int64_t)tile.entries[batch * kBatch + j] * kRow);
        }
    }
}

static void blend_backward(const Frame& f, const Work& work, int count, const float* background, const float* v_color,
                           int stride, const float* v_alpha, bool absgrad, float* rows) {
    const int64_t size = f.slots() * kRow;
    auto tile = [&](auto kernel) {
        parallel_accumulate(work, f.tiles(), [&](int worker, int64_t index) {
            kernel(f, index, background, v_color, stride, v_alpha, rows + worker * size);
        });
    };
    switch (2 * count + (absgrad ? 1 : 0)) {
        case 2: tile(backward_tile<1, false>); break;
        case 3: tile(backward_tile<1, true>); break;
        case 4: tile(backward_tile<2, false>); break;
        case 5: tile(backward_tile<2, true>); break;
        case 6: tile(backward_tile<3, false>); break;
        case 7: tile(backward_tile<3, true>); break;
        case 8: tile(backward_tile<4, false>); break;
        default: tile(backward_tile<4, true>);
    }
}

void add_blend_backward(Kernels& k) { k.blend_backward = blend_backward; }

}  // namespace FF_ISA
}  // namespace ff
