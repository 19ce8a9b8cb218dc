// Screen gradients -> gradients of means, quaternions, scales, opacities, colours and the view matrix.
#include "geometry.h"
#include "harmonics.h"
#include "kernels.h"

namespace ff {
namespace FF_ISA {

struct Screen {   // gradients of one camera's screen quantities
    F mx, my, sxx, sxy, syy, opacity, depth, color[3];
};

struct Accumulated {   // gradients of the parameters and, summed over lanes, of the view
    F m[3], t[3], q[4], s[3], opacity;
    F W[9], origin[3];
};

static FF_INLINE void antialias_backward(const Camera& cam, const Geometry& g, F o, Screen& v, F& v_opacity) {
    F a = g.sxx + F(cam.eps2d), c = g.syy + F(cam.eps2d), b = g.sxy;
    F det0 = determinant(g.sxx, g.sxy, g.syy), det = determinant(a, b, c);
    F ratio = max(F(0.0f), det0 / det), factor = sqrt(ratio);
    v_opacity = v.opacity * factor;
    // d sqrt(det0 / det) = (d det0 - ratio d det) / (2 factor det); flat where det0 is not positive
    F k = keep(det0 > F(0.0f), v.opacity * o * F(0.5f) / ((factor + F(1e-6f)) * det));
    v.sxx += k * (g.syy - ratio * c);
    v.syy += k * (g.sxx - ratio * a);
    v.sxy -= F(2.0f) * k * b * (F(1.0f) - ratio);
}

static FF_INLINE void covariance_backward(const Camera& cam, const Geometry& g, const Screen& v, Accumulated& out) {
    F two(2.0f), vR[9], vA[6];
    for (int k = 0; k < 3; k++) {
        F u = g.A[k], w = g.A[3 + k], s2 = g.s[k] * g.s[k];
        vA[k] = s2 * (two * v.sxx * u + v.sxy * w);
        vA[3 + k] = s2 * (two * v.syy * w + v.sxy * u);
        out.s[k] = two * g.s[k] * (v.sxx * u * u + v.sxy * u * w + v.syy * w * w);
    }
    F vU[6];
    for (int k = 0; k < 3; k++) {
        for (int r = 0; r < 3; r++) vR[3 * r + k] = g.U[r] * vA[k] + g.U[3 + r] * vA[3 + k];
        vU[k] = vA[0] * g.R[3 * k] + vA[1] * g.R[3 * k + 1] + vA[2] * g.R[3 * k + 2];
        vU[3 + k] = vA[3] * g.R[3 * k] + vA[4] * g.R[3 * k + 1] + vA[5] * g.R[3 * k + 2];
    }
    F w = g.q[0], x = g.q[1], y = g.q[2], z = g.q[3];
    F vq[4];
    vq[0] = two * (x * (vR[7] - vR[5]) + y * (vR[2] - vR[6]) + z * (vR[3] - vR[1]));
    vq[1] = two * (F(-2.0f) * x * (vR[4] + vR[8]) + y * (vR[1] + vR[3]) + z * (vR[2] + vR[6]) + w * (vR[7] - vR[5]));
    vq[2] = two * (x * (vR[1] + vR[3]) - two * y * (vR[0] + vR[8]) + z * (vR[5] + vR[7]) + w * (vR[2] - vR[6]));
    vq[3] = two * (x * (vR[2] + vR[6]) + y * (vR[5] + vR[7]) - two * z * (vR[0] + vR[4]) + w * (vR[3] - vR[1]));
    F along = vq[0] * w + vq[1] * x + vq[2] * y + vq[3] * z;
    for (int k = 0; k < 4; k++) out.q[k] = (vq[k] - along * g.q[k]) * g.q_inverse_norm;
    F rz = g.rz, j00 = F(cam.fx) * rz, j11 = F(cam.fy) * rz, j02 = -j00 * g.tx * rz, j12 = -j11 * g.ty * rz;
    F v00(0.0f), v11(0.0f), v02(0.0f), v12(0.0f);
    for (int k = 0; k < 3; k++) {
        v00 = fma(vU[k], F(cam.R[k]), v00);
        v02 = fma(vU[k], F(cam.R[6 + k]), v02);
        v11 = fma(vU[3 + k], F(cam.R[3 + k]), v11);
        v12 = fma(vU[3 + k], F(cam.R[6 + k]), v12);
        out.W[k] = j00 * vU[k];
        out.W[3 + k] = j11 * vU[3 + k];
        out.W[6 + k] = j02 * vU[k] + j12 * vU[3 + k];
    }
    out.t[0] = select(g.clamp_x, F(0.0f), -j00 * rz * v02);
    out.t[1] = select(g.clamp_y, F(0.0f), -j11 * rz * v12);
    F x_term = select(g.clamp_x, -j02, F(-2.0f) * j02) * v02, y_term = select(g.clamp_y, -j12, F(-2.0f) * j12) * v12;
    out.t[2] = rz * (x_term + y_term - j00 * v00 - j11 * v11);
}

static FF_INLINE void position_backward(const Camera& cam, const Geometry& g, const Screen& v, Accumulated& out) {
    F rz = g.rz, px = F(cam.fx) * rz * v.mx, py = F(cam.fy) * rz * v.my;
    out.t[0] += px;
    out.t[1] += py;
    out.t[2] += v.depth - rz * (px * g.t[0] + py * g.t[1]);
    for (int r = 0; r < 3; r++)
        for (int k = 0; k < 3; k++) out.W[3 * r + k] = fma(out.t[r], g.m[k], out.W[3 * r + k]);
    for (int k = 0; k < 3; k++)
        out.m[k] = out.t[0] * F(cam.R[k]) + out.t[1] * F(cam.R[3 + k]) + out.t[2] * F(cam.R[6 + k]);
}

static FF_INLINE void shade_backward(const Frame& f, const Geometry& g, const int32_t* index, int count, const Screen& v,
                                     const Gradients& grads, Accumulated& out) {
    const Inputs& in = f.in;
    F d[3], dir[3], b[16], vb[16];
    for (int k = 0; k < 3; k++) d[k] = g.m[k] - F(f.cam.origin[k]);
    F inverse = F(1.0f) / sqrt(max(d[0] * d[0] + d[1] * d[1] + d[2] * d[2], F(1e-24f)));
    for (int k = 0; k < 3; k++) dir[k] = d[k] * inverse;
    sh_basis(in.sh_degree, dir[0], dir[1], dir[2], b);
    const int used = (in.sh_degree + 1) * (in.sh_degree + 1);
    F bands[45];
    load_rows(in.bands, in.band_stride, index, bands, 3 * used - 3);
    vb[0] = F(0.0f);
    for (int k = 1; k < used; k++) {
        vb[k] = bands[3 * k - 3] * v.color[0];
        for (int ch = 1; ch < 3; ch++) vb[k] = fma(bands[3 * k - 3 + ch], v.color[ch], vb[k]);
    }
    if (grads.colors) {
        F own[48];
        for (int ch = 0; ch < 3; ch++) own[ch] = b[0] * v.color[ch];
        add_rows(own, 3, grads.colors, in.color_stride, index, count);
        for (int k = 1; k < used; k++)
            for (int ch = 0; ch < 3; ch++) own[3 * k - 3 + ch] = b[k] * v.color[ch];
        add_rows(own, 3 * used - 3, grads.bands, in.band_stride, index, count);
    }
    F vd[3] = {F(0.0f), F(0.0f), F(0.0f)};
    sh_basis_backward(in.sh_degree, dir[0], dir[1], dir[2], vb, vd);
    F along = vd[0] * dir[0] + vd[1] * dir[1] + vd[2] * dir[2];
    for (int k = 0; k < 3; k++) {
        F vm = (vd[k] - along * dir[k]) * inverse;
        out.m[k] += vm;
        out.origin[k] = -vm;
    }
}

static FF_INLINE Screen load_screen(const Frame& f, int workers, const float* rows, const int32_t* slots, const int32_t* index,
                                    int count, const Gradients& grads) {
    const int64_t size = f.slots() * kRow;
    F sums[16];
    for (int l = 0; l < 16; l++) {
        sums[l] = F(0.0f);
        if (l >= count) continue;
        const float* row = rows + (int64_t)slots[l] * kRow;
        for (int w = 0; w < workers; w++) sums[l] += load(row + w * size);
    }
    transpose16(sums);
    alignas(64) float t[kRow][16], o[16];
    for (int k = 0; k < kRow; k++) store(t[k], sums[k]);
    const Record* records = f.records.as<Record>();
    for (int l = 0; l < 16; l++) o[l] = records[slots[l]].opacity;
    Screen v;
    const float h = 2.0f / kLog2E;   // h is stored scaled by log2(e) / 2
    v.mx = load(t[1]) * F(h);
    v.my = load(t[2]) * F(h);
    v.sxx = load(t[3]) * F(0.5f * h * h);
    v.sxy = load(t[4]) * F(h * h);
    v.syy = load(t[5]) * F(0.5f * h * h);
    v.opacity = load(t[0]) / load(o);
    for (int ch = 0; ch < 3; ch++) v.color[ch] = load(t[8 + ch]);
    const int depth = f.in.depth_channel ? 8 + f.in.features % 4 : -1;
    v.depth = depth < 0 ? F(0.0f) : load(t[depth]);
    for (int l = 0; l < count; l++) {
        const int64_t i = index[l];
        if (grads.means2d) grads.means2d[2 * i] = t[1][l] * h, grads.means2d[2 * i + 1] = t[2][l] * h;
        if (grads.absgrad) grads.absgrad[2 * i] = t[6][l] * h, grads.absgrad[2 * i + 1] = t[7][l] * h;
    }
    return v;
}

// Zeroes a chunk's part of the outputs just before it is added to, while it is near in the caches.
static void clear_chunk(const Inputs& in, int64_t chunk, const Gradients& g) {
    const int64_t first = chunk * kChunk, count = in.n - first < kChunk ? in.n - first : kChunk;
    auto clear = [&](float* p, int64_t width) {
        if (p) std::memset(p + first * width, 0, sizeof(float) * width * count);
    };
    clear(g.means2d, 2);
    clear(g.absgrad, 2);
    if (!g.fresh) return;
    clear(g.means, 3);
    clear(g.quats, 4);
    clear(g.scales, 3);
    clear(g.opacities, 1);
    if (in.sh_degree < 0) return;
    clear(g.colors, in.color_stride);
    if (in.color_stride == 3) clear(g.bands, in.band_stride);   // otherwise part of the colours
}

static void backward_chunk(const Frame& f, int workers, int64_t chunk, const Reached& some, const float* rows, const Gradients& grads,
                           double* view) {
    const Inputs& in = f.in;
    some.for_each_sixteen(chunk, [&](const int32_t* own, int count, int) {
        alignas(64) int32_t index[16], slots[16];
        uint32_t masked[3] = {0, 0, 0};
        for (int l = 0; l < 16; l++) {
            slots[l] = own[l < count ? l : 0];
            index[l] = f.gaussians.as<int32_t>()[slots[l]];
            const uint32_t clamped = f.clamped.as<uint8_t>()[slots[l]];
            for (int ch = 0; ch < 3; ch++) masked[ch] |= (clamped >> ch & 1) << l;
        }
        Geometry g;
        for (int k = 0; k < 3; k++) g.m[k] = load_indexed(in.means + k, 3, index);
        camera_position(f.cam, g);
        geometry(f.cam, in, index, g);
        Screen v = load_screen(f, workers, rows, slots, index, count, grads);
        Accumulated out;
        out.opacity = v.opacity;
        if (f.cam.antialiased) antialias_backward(f.cam, g, load_indexed(in.opacities, 1, index), v, out.opacity);
        covariance_backward(f.cam, g, v, out);
        position_backward(f.cam, g, v, out);
        for (int k = 0; k < 3; k++) out.origin[k] = F(0.0f);
        if (in.sh_degree >= 0) {
            for (int ch = 0; ch < 3; ch++) v.color[ch] = keep(from_bits(~masked[ch] & 0xffff), v.color[ch]);
            shade_backward(f, g, index, count, v, grads, out);
        }
        if (grads.means) add_rows(out.m, 3, grads.means, 3, index, count);
        if (grads.quats) add_rows(out.q, 4, grads.quats, 4, index, count);
        if (grads.scales) add_rows(out.s, 3, grads.scales, 3, index, count);
        if (grads.opacities) add_rows(&out.opacity, 1, grads.opacities, 1, index, count);
        M real = from_bits((1u << count) - 1);
        if (grads.viewmat)
            for (int k = 0; k < 9; k++) view[k] += sum(keep(real, out.W[k]));
        if (grads.viewmat)
            for (int k = 0; k < 3; k++) {
                view[9 + k] += sum(keep(real, out.t[k]));
                view[12 + k] += sum(keep(real, out.origin[k]));
            }
    });
}

static void project_backward(const Frame& f, const Work& work, const float* rows, const Gradients& grads) {
    Buffer memory;
    double* views = memory.get<double>(15 * f.chunks);
    for (int64_t i = 0; i < 15 * f.chunks; i++) views[i] = 0;
    const Reached some = reached(f, work.threads);   // all others have a gradient of zero
    parallel_for(work.threads, f.chunks, [&](int, int64_t chunk) {
        clear_chunk(f.in, chunk, grads);
        backward_chunk(f, work.workers(), chunk, some, rows, grads, views + 15 * chunk);
    });
    if (!grads.viewmat) return;
    double v[15] = {};
    for (int64_t c = 0; c < f.chunks; c++)
        for (int k = 0; k < 15; k++) v[k] += views[15 * c + k];
    // origin = -inverse(R) t; with u = inverse(R)^T v_origin (R is a rotation): v_t -= u and v_R -= u origin^T
    for (int r = 0; r < 3; r++) {
        double u = 0;
        for (int k = 0; k < 3; k++) u += (double)f.cam.R[3 * r + k] * v[12 + k];
        grads.viewmat[4 * r + 3] += (float)(v[9 + r] - u);
        for (int k = 0; k < 3; k++) grads.viewmat[4 * r + k] += (float)(v[3 * r + k] - u * f.cam.origin[k]);
    }
}

void add_project_backward(Kernels& k) { k.project_backward = project_backward; }

}  // namespace FF_ISA
}  // namespace ff
