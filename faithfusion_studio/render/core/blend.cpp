// Front-to-back alpha blending, tile by tile: 32 Gaussians at a time into one 4x4 block at a time.
#include "blend.h"
#include "kernels.h"

namespace ff {
namespace FF_ISA {

template <int NC>
struct Blocks {
    F t[16], color[16][NC], stop[16];
    uint32_t alive[16];
};

template <int NC>
static FF_INLINE uint32_t blend_block(const Record* batch, uint32_t todo, float position, F px, F py, F& t, F* color,
                                      F& stop, uint32_t& alive_bits) {
    uint32_t contributed = 0;
    M alive = from_bits(alive_bits);
    F c[NC], tt = t;
    for (int k = 0; k < NC; k++) c[k] = color[k];
    for (; todo; todo &= todo - 1) {
        const int j = __builtin_ctz(todo);
        const Record& r = batch[j];
        Seen s = see(r, px, py);
        M valid = s.valid & alive;
        if (!any(valid)) continue;
        F alpha = min(exp2(s.exponent), F(kAlphaMax));
        F w = tt * alpha;
        M stopped = valid & (tt - w <= F(kStop));
        if (any(stopped)) {
            valid = andnot(valid, stopped);
            alive = andnot(alive, stopped);
            stop = select(stopped, F(position + j), stop);
            if (!any(valid)) {
                if (!any(alive)) break;
                continue;
            }
        }
        w = keep(valid, w);
        tt -= w;
        for (int k = 0; k < NC; k++) c[k] = fma(w, F(r.color[k]), c[k]);
        contributed |= 1u << j;
    }
    t = tt;
    for (int k = 0; k < NC; k++) color[k] = c[k];
    alive_bits = bits(alive);
    return contributed;
}

template <int NC>
static void blend_tile(const Frame& f, int64_t index, const float* background, float* image, int stride, float* alpha) {
    const Tile tile = tile_at(f, index);
    Blocks<NC> blocks;
    uint32_t open = 0;
    for (int b = 0; b < 16; b++) {
        blocks.t[b] = F(1.0f);
        blocks.stop[b] = F((float)tile.count);
        for (int k = 0; k < NC; k++) blocks.color[b][k] = F(0.0f);
        blocks.alive[b] = block_inside(f.cam, tile, b);
        if (blocks.alive[b]) open |= 1u << b;
    }
    int64_t batch = 0;
    for (; batch < tile.batches && open; batch++) {
        alignas(64) Record records[kBatch];
        uint32_t masks[16];
        const int count = load_batch(f, tile, batch, false, records);
        block_masks(tile, records, count, masks);
        uint32_t* contributed = tile.contributed + batch * 16;
        for (int b = 0; b < 16; b++) {
            contributed[b] = 0;
            if (!masks[b] || !(open >> b & 1)) continue;
            F px, py;
            block_centres(tile, b, px, py);
            contributed[b] = blend_block<NC>(records, masks[b], (float)(batch * kBatch), px, py, blocks.t[b],
                                             blocks.color[b], blocks.stop[b], blocks.alive[b]);
            if (!blocks.alive[b]) open &= ~(1u << b);
        }
    }
    for (; batch < tile.batches; batch++)
        for (int b = 0; b < 16; b++) tile.contributed[batch * 16 + b] = 0;
    for (int b = 0; b < 16; b++) {
        F t = blocks.t[b];
        store(tile.final_t + 16 * b, t);
        store(tile.stops + 16 * b, blocks.stop[b]);
        for (int k = 0; k < NC; k++)
            store_pixels(image, f.cam, tile, b, stride, k, background ? fma(t, F(background[k]), blocks.color[b][k]) : blocks.color[b][k]);
        if (alpha) store_pixels(alpha, f.cam, tile, b, 1, 0, F(1.0f) - t);
    }
}

static void blend(Frame& f, const Work& work, int count, const float* background, float* image, int stride, float* alpha) {
    parallel_for(work.threads, f.tiles(), [&](int, int64_t tile) {
        switch (count) {
            case 1: blend_tile<1>(f, tile, background, image, stride, alpha); break;
            case 2: blend_tile<2>(f, tile, background, image, stride, alpha); break;
            case 3: blend_tile<3>(f, tile, background, image, stride, alpha); break;
            default: blend_tile<4>(f, tile, background, image, stride, alpha);
        }
    });
}

void add_blend(Kernels& k) { k.blend = blend; }

}  // namespace FF_ISA
}  // namespace ff
