// What every pass over tiles shares: batches of records, block masks, pixel blocks.
#pragma once
#include "frame.h"
#include "simd.h"

namespace ff {
namespace FF_ISA {

struct Tile {
    int x0, y0;             // first pixel
    const uint32_t* entries;
    int64_t count, batches;
    uint32_t* contributed;  // [batches, 16]
    float *final_t, *stops; // [256]
};

FF_INLINE Tile tile_at(const Frame& f, int64_t index) {
    const int64_t* starts = f.tile_starts.as<int64_t>();
    const int64_t* batches = f.batch_starts.as<int64_t>();
    return {(int)(index % f.tiles_x) * kTile, (int)(index / f.tiles_x) * kTile,
            f.entries.as<uint32_t>() + starts[index], starts[index + 1] - starts[index],
            batches[index + 1] - batches[index], f.contributed.as<uint32_t>() + batches[index] * 16,
            f.final_t.as<float>() + index * 256, f.stops.as<float>() + index * 256};
}

// Pixel centres of a 4x4 block.
FF_INLINE void block_centres(const Tile& t, int block, F& px, F& py) {
    alignas(64) static const float lane_x[16] = {0.5f, 1.5f, 2.5f, 3.5f, 0.5f, 1.5f, 2.5f, 3.5f,
                                                 0.5f, 1.5f, 2.5f, 3.5f, 0.5f, 1.5f, 2.5f, 3.5f};
    alignas(64) static const float lane_y[16] = {0.5f, 0.5f, 0.5f, 0.5f, 1.5f, 1.5f, 1.5f, 1.5f,
                                                 2.5f, 2.5f, 2.5f, 2.5f, 3.5f, 3.5f, 3.5f, 3.5f};
    px = load(lane_x) + F((float)(t.x0 + 4 * (block & 3)));
    py = load(lane_y) + F((float)(t.y0 + 4 * (block >> 2)));
}

// Which lanes of a block lie inside the image.
FF_INLINE uint32_t block_inside(const Camera& cam, const Tile& t, int block) {
    int nx = cam.width - (t.x0 + 4 * (block & 3)), ny = cam.height - (t.y0 + 4 * (block >> 2));
    if (nx <= 0 || ny <= 0) return 0;
    uint32_t row = nx >= 4 ? 0xfu : (1u << nx) - 1;
    return (row * 0x1111u) & (ny >= 4 ? 0xffffu : (1u << (4 * ny)) - 1);
}

// Reads channel `ch` of an [H, W, stride] image into a block; zero outside.
FF_INLINE F load_pixels(const float* image, const Camera& cam, const Tile& t, int block, int stride, int ch) {
    alignas(64) float v[16] = {};
    int x0 = t.x0 + 4 * (block & 3), y0 = t.y0 + 4 * (block >> 2);
    int nx = cam.width - x0 < 4 ? cam.width - x0 : 4, ny = cam.height - y0 < 4 ? cam.height - y0 : 4;
    for (int y = 0; y < ny; y++)
        for (int x = 0; x < nx; x++) v[4 * y + x] = image[((int64_t)(y0 + y) * cam.width + x0 + x) * stride + ch];
    return load(v);
}

FF_INLINE void store_pixels(float* image, const Camera& cam, const Tile& t, int block, int stride, int ch, F value) {
    alignas(64) float v[16];
    store(v, value);
    int x0 = t.x0 + 4 * (block & 3), y0 = t.y0 + 4 * (block >> 2);
    int nx = cam.width - x0 < 4 ? cam.width - x0 : 4, ny = cam.height - y0 < 4 ? cam.height - y0 : 4;
    for (int y = 0; y < ny; y++)
        for (int x = 0; x < nx; x++) image[((int64_t)(y0 + y) * cam.width + x0 + x) * stride + ch] = v[4 * y + x];
}

// Copies the records of one batch side by side, fetching those of the next one ahead.
FF_INLINE int load_batch(const Frame& f, const Tile& t, int64_t batch, bool backwards, Record* out) {
    const Record* records = f.records.as<Record>();
    const int64_t first = batch * kBatch;
    const int count = t.count - first < kBatch ? (int)(t.count - first) : kBatch;
    for (int j = 0; j < count; j++) out[j] = records[t.entries[first + j]];
    const int64_t ahead = backwards ? first - kBatch : first + kBatch;
    if (ahead >= 0)
        for (int64_t j = ahead; j < ahead + kBatch && j < t.count; j++) __builtin_prefetch(records + t.entries[j]);
    return count;
}

// For each of the 16 blocks, the batch entries whose ellipse may touch one of its pixel centres.
FF_INLINE void block_masks(const Tile& t, const Record* batch, int count, uint32_t masks[16]) {
    for (int b = 0; b < 16; b++) masks[b] = 0;
    for (int half = 0; half < count; half += 16) {
        const int n = count - half < 16 ? count - half : 16;
        const float* p = (const float*)(batch + half);
        F mx = load_strided(p, 16, n) - F((float)t.x0), my = load_strided(p + 1, 16, n) - F((float)t.y0);
        F slope = load_strided(p + 12, 16, n), width2 = load_strided(p + 13, 16, n);
        F bend = load_strided(p + 14, 16, n), peak = load_strided(p + 15, 16, n);
        M real = from_bits(n == 16 ? 0xffffu : (1u << n) - 1);
        for (int row = 0; row < 4; row++) {
            F top = F(4.0f * row + 0.49f) - my, bottom = F(4.0f * row + 3.51f) - my;
            F right_at = clamp(peak, top, bottom), left_at = clamp(-peak, top, bottom);
            F right2 = fma(-bend, right_at * right_at, width2), left2 = fma(-bend, left_at * left_at, width2);
            M hit = real & (right2 >= F(0.0f)) & (left2 >= F(0.0f));
            F right = fma(slope, right_at, mx) + sqrt(max(right2, F(0.0f)));
            F left = fma(slope, left_at, mx) - sqrt(max(left2, F(0.0f)));
            for (int col = 0; col < 4; col++)
                masks[4 * row + col] |= bits(hit & (right >= F(4.0f * col + 0.49f)) & (left <= F(4.0f * col + 3.51f))) << half;
        }
    }
}

// One Gaussian seen from one block. q = log2(e) s; h = Conic d, scaled by log2(e) / 2.
struct Seen {
    F hx, hy, exponent;
    M valid;
};

FF_INLINE Seen see(const Record& r, F px, F py) {
    Seen s;
    F dx = px - F(r.mx), dy = py - F(r.my);
    s.hx = fma(F(r.a), dx, F(r.b) * dy);
    s.hy = fma(F(r.b), dx, F(r.c) * dy);
    F q = fma(s.hx, dx, s.hy * dy);
    s.exponent = F(r.log2_opacity) - q;
    s.valid = (q >= F(0.0f)) & (s.exponent >= F(kLog2AlphaMin));
    return s;
}

}  // namespace FF_ISA
}  // namespace ff
