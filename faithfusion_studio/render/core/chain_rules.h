// Rows of A = d (screen record) / d (parameters) of sixteen Gaussians at a time (formulas: render/chain.py).
#pragma once
#include <algorithm>

#include "chain.h"
#include "geometry.h"
#include "harmonics.h"

namespace ff {
namespace FF_ISA {

// Which screen values a parameter moves: means reach everything but opacity, the rest little.
constexpr int kSupport[kParameters][9] = {
    {8, 0, 1, 2, 3, 4, 6, 7, 8}, {8, 0, 1, 2, 3, 4, 6, 7, 8}, {8, 0, 1, 2, 3, 4, 6, 7, 8},
    {3, 2, 3, 4}, {3, 2, 3, 4}, {3, 2, 3, 4}, {3, 2, 3, 4}, {3, 2, 3, 4}, {3, 2, 3, 4},
    {1, 5}, {1, 6}, {1, 7}, {1, 8}};

constexpr int upper(int a, int b, int n) { return a <= b ? a * n - a * (a - 1) / 2 + b - a : upper(b, a, n); }

struct Chain {
    F A[kRecord][kParameters];   // entries outside kSupport are never read
    F basis[16];                 // of the direction in the axes the SH bands are kept in
    F lit[3];                    // 1 where the colour is not clamped at 0
};

FF_INLINE void color_chain(const ChainView& view, const Geometry& g, const int32_t* index, Chain& out) {
    F v[3], n[3];
    for (int k = 0; k < 3; k++) v[k] = g.m[k] - F(view.cam.origin[k]);
    F inverse = F(1.0f) / sqrt(max(v[0] * v[0] + v[1] * v[1] + v[2] * v[2], F(1e-24f)));
    for (int k = 0; k < 3; k++) n[k] = v[k] * inverse;
    sh_basis(view.sh_degree, n[0], n[1], n[2], out.basis);
    const int coefficients = (view.sh_degree + 1) * (view.sh_degree + 1);
    F sh[48];
    load_rows(view.sh0, 3, index, sh, 3);
    load_rows(view.bands, 3 * view.band_count, index, sh + 3, 3 * coefficients - 3);
    for (int ch = 0; ch < 3; ch++) {
        F value(0.5f), d[3] = {F(0.0f), F(0.0f), F(0.0f)}, own[16];
        for (int k = 0; k < coefficients; k++) {
            own[k] = sh[3 * k + ch];
            value = fma(own[k], out.basis[k], value);
        }
        M lit = value >= F(0.0f);
        out.lit[ch] = select(lit, F(1.0f), F(0.0f));
        sh_basis_backward(view.sh_degree, n[0], n[1], n[2], own, d);
        F along = d[0] * n[0] + d[1] * n[1] + d[2] * n[2];
        for (int k = 0; k < 3; k++) out.A[6 + ch][k] = keep(lit, (d[k] - along * n[k]) * inverse);
        out.A[6 + ch][10 + ch] = F(kSh0) * out.lit[ch];
    }
}

FF_INLINE void shape_chain(const Geometry& g, Chain& out) {
    const F* u = g.A;
    const F* v = g.A + 3;
    F two(2.0f), s2[3];
    for (int k = 0; k < 3; k++) s2[k] = g.s[k] * g.s[k];
    for (int k = 0; k < 3; k++) {
        const int b = (k + 1) % 3, c = (k + 2) % 3;
        F e = s2[b] - s2[c];
        out.A[2][3 + k] = e * two * u[b] * u[c];
        out.A[3][3 + k] = e * (u[b] * v[c] + u[c] * v[b]);
        out.A[4][3 + k] = e * two * v[b] * v[c];
        out.A[2][6 + k] = two * s2[k] * u[k] * u[k];
        out.A[3][6 + k] = two * s2[k] * u[k] * v[k];
        out.A[4][6 + k] = two * s2[k] * v[k] * v[k];
    }
}

FF_INLINE void mean_chain(const Camera& cam, const Geometry& g, Chain& out) {
    F rz = g.rz, fx = F(cam.fx) * rz, fy = F(cam.fy) * rz, zero(0.0f), two(2.0f);
    F Y0[3], Y1[3];   // columns of the camera-frame covariance against the two rows of the pinhole Jacobian
    for (int r = 0; r < 3; r++) {
        Y0[r] = Y1[r] = zero;
        for (int k = 0; k < 3; k++) {
            F body = F(cam.R[3 * r]) * g.R[k] + F(cam.R[3 * r + 1]) * g.R[3 + k] + F(cam.R[3 * r + 2]) * g.R[6 + k];
            body = body * g.s[k] * g.s[k];
            Y0[r] = fma(body, g.A[k], Y0[r]);
            Y1[r] = fma(body, g.A[3 + k], Y1[r]);
        }
    }
    F e0 = -fx * rz, e1 = -fy * rz;
    F a = select(g.clamp_x, zero, e0), b = select(g.clamp_y, zero, e1);
    F c = fx * g.tx * rz * rz, d = fy * g.ty * rz * rz;
    c = select(g.clamp_x, c, two * c);
    d = select(g.clamp_y, d, two * d);
    F in_camera[5][3] = {
        {fx, zero, -fx * g.t[0] * rz},
        {zero, fy, -fy * g.t[1] * rz},
        {two * a * Y0[2], zero, two * (e0 * Y0[0] + c * Y0[2])},
        {a * Y1[2], b * Y0[2], e0 * Y1[0] + c * Y1[2] + e1 * Y0[1] + d * Y0[2]},
        {zero, two * b * Y1[2], two * (e1 * Y1[1] + d * Y1[2])}};
    for (int r = 0; r < 5; r++)
        for (int k = 0; k < 3; k++)
            out.A[r][k] = in_camera[r][0] * F(cam.R[k]) + in_camera[r][1] * F(cam.R[3 + k]) + in_camera[r][2] * F(cam.R[6 + k]);
}

// Rotations node -> world of sixteen Gaussians, the identity for the background; false where all are of the background.
FF_INLINE bool take_rotations(const ChainView& view, const float* rotations, const int32_t* index, float (*out)[16]) {
    bool moving = false;
    for (int l = 0; l < 16; l++) {
        const int32_t node = view.nodes[index[l]];
        moving |= node >= 0;
        for (int k = 0; k < 9; k++) out[k][l] = node >= 0 ? rotations[9 * node + k] : (k % 4 == 0 ? 1.0f : 0.0f);
    }
    return moving;
}

// Means of moving objects are stored in the frame of the object.
FF_INLINE void into_nodes(const ChainView& view, const int32_t* index, Chain& out) {
    alignas(64) float rotation[9][16];
    if (!take_rotations(view, view.node_rotations, index, rotation)) return;
    for (int r = 0; r < kRecord; r++) {
        if (r == 5) continue;
        F row[3] = {out.A[r][0], out.A[r][1], out.A[r][2]};
        for (int k = 0; k < 3; k++)
            out.A[r][k] = row[0] * load(rotation[k]) + row[1] * load(rotation[3 + k]) + row[2] * load(rotation[6 + k]);
    }
}

// So are the SH bands of objects whose colours turn with them: the basis of the evidence is that of the object's axes.
FF_INLINE void turn_basis(const ChainView& view, const Geometry& g, const int32_t* index, Chain& out) {
    alignas(64) float rotation[9][16];
    if (!take_rotations(view, view.color_rotations, index, rotation)) return;
    F v[3], n[3];
    for (int k = 0; k < 3; k++) v[k] = g.m[k] - F(view.cam.origin[k]);
    F inverse = F(1.0f) / sqrt(max(v[0] * v[0] + v[1] * v[1] + v[2] * v[2], F(1e-24f)));
    for (int k = 0; k < 3; k++)
        n[k] = (v[0] * load(rotation[k]) + v[1] * load(rotation[3 + k]) + v[2] * load(rotation[6 + k])) * inverse;
    sh_basis(view.sh_degree, n[0], n[1], n[2], out.basis);
}

FF_INLINE void make_chain(const ChainView& view, const int32_t* index, Chain& out) {
    Inputs in;
    in.quats = view.quats;
    in.scales = view.scales;
    Geometry g;
    for (int k = 0; k < 3; k++) g.m[k] = load_indexed(view.means + k, 3, index);
    camera_position(view.cam, g);
    geometry(view.cam, in, index, g);
    mean_chain(view.cam, g, out);
    shape_chain(g, out);
    color_chain(view, g, index, out);
    out.A[5][9] = F(1.0f);
    if (view.nodes) into_nodes(view, index, out);
    if (view.color_rotations) turn_basis(view, g, index, out);
}

// Gaussians and evidence rows of up to sixteen Gaussians; missing lanes repeat the last one.
FF_INLINE void take(const ChainView& view, const int32_t* gaussians, int count, int32_t* index, int32_t* row) {
    for (int l = 0; l < 16; l++) {
        index[l] = gaussians[std::min(l, count - 1)];
        row[l] = view.rows ? view.rows[index[l]] : index[l];
    }
}

// Variance that the higher SH coefficients give each colour channel.
FF_INLINE void sh_variance(const ChainView& view, const Chain& chain, const int32_t* row, const Posterior& p, F* colour) {
    for (int ch = 0; ch < 3; ch++) colour[ch] = F(0.0f);
    const int bands = view.band_count, used = (view.sh_degree + 1) * (view.sh_degree + 1) - 1;
    if (!p.sh_evidence || used <= 0) return;
    F known[45];
    load_rows(p.sh_evidence, 3 * bands, row, known, 3 * used);
    for (int k = 0; k < used; k++) {
        F squared = chain.basis[k + 1] * chain.basis[k + 1];
        for (int ch = 0; ch < 3; ch++) colour[ch] = fma(squared, reciprocal(known[3 * k + ch] + F(p.sh_prior)), colour[ch]);
    }
    for (int ch = 0; ch < 3; ch++) colour[ch] = colour[ch] * chain.lit[ch];
}

// Packed upper triangle of A (H + prior)^-1 A^T scale, with the variance of the higher SH bands.
FF_INLINE void record_covariance(const ChainView& view, const Chain& chain, const int32_t* row, const Posterior& p, F* packed) {
    F W[kBlock], X[kRecord][kParameters], colour[3];
    load_rows(p.factors, kBlock, row, W, kBlock);
    const auto& A = chain.A;
    constexpr int kOpacity = 9;
#pragma GCC unroll 13
    for (int q = 0; q < kParameters; q++) {   // X = W A^T, by what can differ from zero
        const F* w = W + q * (q + 1) / 2;
#pragma GCC unroll 9
        for (int r = 0; r < kRecord; r++) {
            if (r == 5) {
                X[r][q] = q < kOpacity ? F(0.0f) : w[kOpacity];
                continue;
            }
            F sum = w[0] * A[r][0];
            const int last = r < 2 || r > 5 ? 2 : 8;
#pragma GCC unroll 8
            for (int k = 1; k <= 8; k++)
                if (k <= q && k <= last) sum = fma(w[k], A[r][k], sum);
            if (r > 5 && q >= r + 4) sum = fma(w[r + 4], A[r][r + 4], sum);
            X[r][q] = sum;
        }
    }
    sh_variance(view, chain, row, p, colour);
    int k = 0;
    for (int r = 0; r < kRecord; r++)
        for (int s = r; s < kRecord; s++) {
            const int first = r == 5 || s == 5 ? kOpacity : 0;
            F even = r == s && r > 5 ? colour[r - 6] : F(0.0f), odd(0.0f);   // two chains of additions hide their latency
#pragma GCC unroll 7
            for (int q = 0; q < kParameters; q += 2) {
                if (q >= first) even = fma(X[r][q], X[s][q], even);
                if (q + 1 < kParameters && q + 1 >= first) odd = fma(X[r][q + 1], X[s][q + 1], odd);
            }
            packed[k++] = (even + odd) * F(p.scale);
        }
}

// blocks [n, 91] += A^T S A at the evidence rows of up to sixteen Gaussians.
FF_INLINE void add_block(const Chain& chain, const F* S, const int32_t* row, int count, float* blocks) {
    F sums[kBlock];
    int k = 0;
    for (int a = 0; a < kParameters; a++) {
        F left[kRecord];   // row a of A^T S
        for (int r = 0; r < kRecord; r++) {
            left[r] = F(0.0f);
            for (int i = 1; i <= kSupport[a][0]; i++) {
                const int q = kSupport[a][i];
                left[r] = fma(chain.A[q][a], S[upper(q, r, kRecord)], left[r]);
            }
        }
        for (int b = a; b < kParameters; b++) {
            F sum(0.0f);
            for (int i = 1; i <= kSupport[b][0]; i++) sum = fma(left[kSupport[b][i]], chain.A[kSupport[b][i]][b], sum);
            sums[k++] = sum;
        }
    }
    add_rows(sums, kBlock, blocks, kBlock, row, count);
}

// sh_evidence [n, R, 3] += basis^2 S_cc, likewise.
FF_INLINE void add_bands(const ChainView& view, const Chain& chain, const int32_t* row, int count, const F* S, float* sh_evidence) {
    const int used = (view.sh_degree + 1) * (view.sh_degree + 1) - 1;
    F gain[45];
    for (int k = 0; k < used; k++)
        for (int ch = 0; ch < 3; ch++)
            gain[3 * k + ch] = S[upper(6 + ch, 6 + ch, kRecord)] * chain.lit[ch] * chain.basis[k + 1] * chain.basis[k + 1];
    add_rows(gain, 3 * used, sh_evidence, 3 * view.band_count, row, count);
}

}  // namespace FF_ISA
}  // namespace ff
