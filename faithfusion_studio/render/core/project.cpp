// World Gaussians -> screen records: projection, culling, colour. Sixteen at a time, in index order.
#include <cfloat>

#include "geometry.h"
#include "harmonics.h"
#include "kernels.h"

namespace ff {
namespace FF_ISA {

static FF_INLINE void shade(const Frame& f, const Geometry& g, const int32_t* index, F color[3], uint32_t clamped[3]) {
    const Inputs& in = f.in;
    F d[3];
    for (int k = 0; k < 3; k++) d[k] = g.m[k] - F(f.cam.origin[k]);
    F inverse = F(1.0f) / sqrt(max(d[0] * d[0] + d[1] * d[1] + d[2] * d[2], F(1e-24f)));
    F b[16];
    sh_basis(in.sh_degree, d[0] * inverse, d[1] * inverse, d[2] * inverse, b);
    const int used = (in.sh_degree + 1) * (in.sh_degree + 1);
    F bands[45];
    load_rows(in.bands, in.band_stride, index, bands, 3 * used - 3);
    for (int ch = 0; ch < 3; ch++) {
        F c = fma(b[0], load_indexed(in.colors + ch, in.color_stride, index), F(0.5f));
        for (int k = 1; k < used; k++) c = fma(b[k], bands[3 * k - 3 + ch], c);
        clamped[ch] = bits(c < F(0.0f));
        color[ch] = select(c < F(0.0f), F(0.0f), c);   // keeps NaN, which is then culled
    }
}

// Drops Gaussians with a feature that is not finite: one of them would spoil every pixel it touches.
static FF_INLINE uint32_t finite_features(const Inputs& in, int64_t base, uint32_t mask) {
    uint32_t kept = 0;
    for (; mask; mask &= mask - 1) {
        const int l = __builtin_ctz(mask);
        const float* c = in.colors + (base + l) * in.features;
        float nothing = 0;
        for (int k = 0; k < in.features; k++) nothing += c[k] * 0.0f;
        if (nothing == 0.0f) kept |= 1u << l;
    }
    return kept;
}

// First and last tile with a pixel centre in [centre - half, centre + half]; last < first when there is none.
static FF_INLINE void tile_range(F centre, F half, float size, float* first, float* last) {
    F a = max(ceil(centre - half - F(0.51f)), F(0.0f)), b = min(floor(centre + half - F(0.49f)), F(size - 1.0f));
    M none = b < a;
    store(first, select(none, F(0.0f), floor(a * F(1.0f / kTile))));
    store(last, select(none, F(-1.0f), floor(b * F(1.0f / kTile))));
}

static int project_chunk(Frame& f, int64_t chunk) {
    const Inputs& in = f.in;
    const Camera& cam = f.cam;
    const int64_t slot0 = chunk * kChunk;
    Record* records = f.records.as<Record>() + slot0;
    int32_t* gaussians = f.gaussians.as<int32_t>() + slot0;
    int32_t* radii = f.radii.as<int32_t>() + 2 * slot0;
    TileBox* boxes = f.boxes.as<TileBox>() + slot0;
    uint8_t* clamped_at = f.clamped.as<uint8_t>() + slot0;
    const int64_t end = slot0 + kChunk < in.n ? slot0 + kChunk : in.n;
    int kept = 0;
    for (int64_t base = slot0; base < end; base += 16) {
        const int count = end - base < 16 ? (int)(end - base) : 16;
        alignas(64) int32_t index[16];
        for (int l = 0; l < 16; l++) index[l] = (int32_t)(base + (l < count ? l : count - 1));
        Geometry g;
        for (int k = 0; k < 3; k++) g.m[k] = load_indexed(in.means + k, 3, index);
        camera_position(cam, g);
        F opacity = load_indexed(in.opacities, 1, index);
        M ok = (g.t[2] >= F(cam.near_plane)) & (g.t[2] <= F(cam.far_plane)) & (opacity >= F(kAlphaMin)) &
               from_bits((1u << count) - 1);
        if (!any(ok)) continue;
        geometry(cam, in, index, g);
        F det0 = determinant(g.sxx, g.sxy, g.syy);
        F sxx = g.sxx + F(cam.eps2d), syy = g.syy + F(cam.eps2d), sxy = g.sxy;
        F det = determinant(sxx, sxy, syy);
        if (cam.antialiased) opacity = opacity * sqrt(max(F(0.0f), det0 / det));
        ok = ok & (det > F(0.0f)) & (det < F(FLT_MAX)) & (opacity >= F(kAlphaMin));
        F mx = fma(F(cam.fx), g.t[0] * g.rz, F(cam.cx)), my = fma(F(cam.fy), g.t[1] * g.rz, F(cam.cy));
        F lo = log2(max(opacity, F(kAlphaMin)));
        // extent^2 = 2 ln(255 opacity): where d.conic.d reaches it, alpha is 1/255.
        F extent2 = max(F(2.0f / kLog2E) * (lo - F(kLog2AlphaMin)), F(0.0f));
        F extent = min(F(3.33f), sqrt(extent2));
        F rx = ceil(extent * sqrt(sxx)), ry = ceil(extent * sqrt(syy));
        ok = ok & ((rx > F(cam.radius_clip)) | (ry > F(cam.radius_clip)));
        ok = ok & (mx + rx > F(0.0f)) & (my + ry > F(0.0f)) & (mx - rx < F((float)cam.width)) & (my - ry < F((float)cam.height));
        ok = ok & (g.q_inverse_norm < F(1e12f)) & (opacity < F(FLT_MAX));
        uint32_t clamped[3] = {0, 0, 0};
        F color[3] = {F(0.0f), F(0.0f), F(0.0f)};
        if (in.sh_degree >= 0 && any(ok)) {
            shade(f, g, index, color, clamped);
            for (int k = 0; k < 3; k++) ok = ok & (color[k] < F(FLT_MAX));
        }
        uint32_t mask = bits(ok);
        if (in.sh_degree < 0) mask = finite_features(in, base, mask);
        if (!mask) continue;
        F rdet = F(1.0f) / det, half(0.5f * kLog2E);
        F e = fma(extent2, F(1.002f), F(1e-3f)), rsyy = F(1.0f) / syy;
        F width2 = e * det * rsyy;
        F fields[16] = {mx, my, syy * rdet * half, -sxy * rdet * half, sxx * rdet * half, lo, opacity, g.t[2],   // a Record
                        color[0], color[1], color[2], F(0.0f),
                        sxy * rsyy, width2, det * rsyy * rsyy, sxy * sqrt(e / sxx)};
        transpose16(fields);
        alignas(64) float r[2][16], box[4][16];
        store(r[0], min(rx, F(1e9f))); store(r[1], min(ry, F(1e9f)));
        tile_range(my, sqrt(e * syy), (float)cam.height, box[0], box[1]);
        tile_range(mx, sqrt(e * sxx), (float)cam.width, box[2], box[3]);
        for (; mask; mask &= mask - 1) {
            int l = __builtin_ctz(mask);
            store((float*)(records + kept), fields[l]);
            gaussians[kept] = (int32_t)(base + l);
            boxes[kept] = {(int16_t)box[0][l], (int16_t)box[1][l], (int16_t)box[2][l], (int16_t)box[3][l]};
            if (box[3][l] < box[2][l]) boxes[kept].last_row = -1;
            radii[2 * kept] = (int32_t)r[0][l];
            radii[2 * kept + 1] = (int32_t)r[1][l];
            clamped_at[kept] = (uint8_t)((clamped[0] >> l & 1) | (clamped[1] >> l & 1) << 1 | (clamped[2] >> l & 1) << 2);
            kept++;
        }
    }
    return kept;
}

static void project(Frame& f, const Work& work) {
    f.chunks = (f.in.n + kChunk - 1) / kChunk;
    const int64_t slots = f.slots();
    f.records.get<Record>(slots);
    f.gaussians.get<int32_t>(slots);
    f.boxes.get<TileBox>(slots);
    f.radii.get<int32_t>(2 * slots);
    f.clamped.get<uint8_t>(slots);
    int32_t* counts = f.chunk_counts.get<int32_t>(f.chunks);
    parallel_for(work.threads, f.chunks, [&](int, int64_t chunk) { counts[chunk] = project_chunk(f, chunk); });
}

// Fills record.color[0..count) with channels first.. of the features and, as the last channel, depth.
static void load_colors(Frame& f, const Work& work, int first, int count) {
    const Inputs& in = f.in;
    const int32_t* counts = f.chunk_counts.as<int32_t>();
    if (in.sh_degree >= 0 && !in.depth_channel) return;
    parallel_for(work.threads, f.chunks, [&](int, int64_t chunk) {
        Record* records = f.records.as<Record>() + chunk * kChunk;
        const int32_t* gaussians = f.gaussians.as<int32_t>() + chunk * kChunk;
        for (int i = 0; i < counts[chunk]; i++)
            for (int k = 0; k < count; k++) {
                int channel = first + k;
                if (channel == in.features) records[i].color[k] = records[i].depth;
                else if (in.sh_degree < 0) records[i].color[k] = in.colors[(int64_t)gaussians[i] * in.features + channel];
            }
    });
}

void add_projection(Kernels& k) {
    k.project = project;
    k.load_colors = load_colors;
}

}  // namespace FF_ISA
}  // namespace ff
