// Fisher blocks and posterior covariances of sixteen Gaussians at a time (formulas: render/chain.py).
#include <algorithm>

#include "chain.h"
#include "geometry.h"
#include "harmonics.h"

namespace ff {
namespace FF_ISA {

constexpr int64_t kGroups = 16;   // groups of sixteen Gaussians per task

// Which screen values a parameter moves: means reach everything but opacity, the rest little.
constexpr int kSupport[kParameters][9] = {
    {8, 0, 1, 2, 3, 4, 6, 7, 8}, {8, 0, 1, 2, 3, 4, 6, 7, 8}, {8, 0, 1, 2, 3, 4, 6, 7, 8},
    {3, 2, 3, 4}, {3, 2, 3, 4}, {3, 2, 3, 4}, {3, 2, 3, 4}, {3, 2, 3, 4}, {3, 2, 3, 4},
    {1, 5}, {1, 6}, {1, 7}, {1, 8}};

constexpr int upper(int a, int b, int n) { return a <= b ? a * n - a * (a - 1) / 2 + b - a : upper(b, a, n); }

struct Chain {
    F A[kRecord][kParameters];   // entries outside kSupport are never read
    F basis[16];
    F lit[3];                    // 1 where the colour is not clamped at 0
};

// Row `index[l]` of a [., width] array into lane l; missing lanes repeat the last row.
static FF_INLINE void gather(const float* base, int64_t width, const int32_t* index, F* out, int used) {
    alignas(64) float t[16 * kBlock];
    for (int l = 0; l < 16; l++) {
        const float* row = base + (int64_t)index[l] * width;
        for (int k = 0; k < used; k++) t[k * 16 + l] = row[k];
    }
    for (int k = 0; k < used; k++) out[k] = load(t + 16 * k);
}

static FF_INLINE void color_chain(const ChainView& view, const Geometry& g, const int32_t* index, Chain& out) {
    F v[3], n[3];
    for (int k = 0; k < 3; k++) v[k] = g.m[k] - F(view.cam.origin[k]);
    F inverse = F(1.0f) / sqrt(max(v[0] * v[0] + v[1] * v[1] + v[2] * v[2], F(1e-24f)));
    for (int k = 0; k < 3; k++) n[k] = v[k] * inverse;
    sh_basis(view.sh_degree, n[0], n[1], n[2], out.basis);
    const int coefficients = (view.sh_degree + 1) * (view.sh_degree + 1);
    F sh[48];
    gather(view.sh, 3 * view.sh_coefficients, index, sh, 3 * coefficients);
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

static FF_INLINE void shape_chain(const Geometry& g, Chain& out) {
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

static FF_INLINE void mean_chain(const Camera& cam, const Geometry& g, Chain& out) {
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

// Means of moving objects are stored in the frame of the object.
static FF_INLINE void into_nodes(const ChainView& view, const int32_t* index, Chain& out) {
    bool moving = false;
    alignas(64) float rotation[9][16];
    for (int l = 0; l < 16; l++) {
        const int32_t node = view.nodes[index[l]];
        moving |= node >= 0;
        for (int k = 0; k < 9; k++) rotation[k][l] = node >= 0 ? view.node_rotations[9 * node + k] : (k % 4 == 0 ? 1.0f : 0.0f);
    }
    if (!moving) return;
    for (int r = 0; r < kRecord; r++) {
        if (r == 5) continue;
        F row[3] = {out.A[r][0], out.A[r][1], out.A[r][2]};
        for (int k = 0; k < 3; k++)
            out.A[r][k] = row[0] * load(rotation[k]) + row[1] * load(rotation[3 + k]) + row[2] * load(rotation[6 + k]);
    }
}

static FF_INLINE void make_chain(const ChainView& view, const int32_t* index, Chain& out) {
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
}

static FF_INLINE int take(const ChainView& view, int64_t first, int32_t* index, int32_t* row) {
    const int count = (int)std::min<int64_t>(16, view.count - first);
    for (int l = 0; l < 16; l++) {
        index[l] = view.visible[first + std::min(l, count - 1)];
        row[l] = view.rows ? view.rows[index[l]] : index[l];
    }
    return count;
}

static void add_evidence(const ChainView& view, const Chain& chain, const int32_t* row, int count, const F* S, float* evidence) {
    const int bands = view.sh_coefficients - 1, used = (view.sh_degree + 1) * (view.sh_degree + 1) - 1;
    for (int ch = 0; ch < 3; ch++) {
        F colour = S[upper(6 + ch, 6 + ch, kRecord)] * chain.lit[ch];
        for (int k = 0; k < used; k++) {
            alignas(64) float t[16];
            store(t, colour * chain.basis[k + 1] * chain.basis[k + 1]);
            for (int l = 0; l < count; l++) evidence[((int64_t)row[l] * bands + k) * 3 + ch] += t[l];
        }
    }
}

static void fisher_group(const ChainView& view, int64_t first, const float* information, float* blocks, float* sh_evidence) {
    int32_t index[16], row[16];
    const int count = take(view, first, index, row);
    Chain chain;
    make_chain(view, index, chain);
    F S[kPacked];
    gather(information, kPacked, index, S, kPacked);
    alignas(64) float sums[kBlock][16];
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
            store(sums[k++], sum);
        }
    }
    for (int l = 0; l < count; l++)
        for (int i = 0; i < kBlock; i++) blocks[(int64_t)row[l] * kBlock + i] += sums[i][l];
    if (view.sh_coefficients > 1) add_evidence(view, chain, row, count, S, sh_evidence);
}

static void fisher(const ChainView& view, int threads, const float* information, float* blocks, float* sh_evidence) {
    const int64_t step = 16 * kGroups;
    parallel_for(threads, (view.count + step - 1) / step, [&](int, int64_t task) {
        const int64_t end = std::min(view.count, (task + 1) * step);
        for (int64_t i = task * step; i < end; i += 16) fisher_group(view, i, information, blocks, sh_evidence);
    });
}

// Cholesky and inverse of eight blocks in double precision, the diagonal of H raised by the fraction `raise`. False in the
// lanes where a Schur pivot of H + prior falls below half the prior, which rounding of H alone can cause: H is a sum of squares.
static void factor_eight(const float* const* blocks, const float* const* priors, const double* raise,
                         double L[kParameters][kParameters][8], bool* sound) {
    alignas(64) double prior[8], inverse[kParameters][8];
    for (int l = 0; l < 8; l++) sound[l] = true;
    for (int a = 0; a < kParameters; a++) {
        for (int l = 0; l < 8; l++) prior[l] = priors[l][a];
        for (int b = a; b < kParameters; b++) {
            alignas(64) double sum[8];
            const int k = upper(a, b, kParameters);
            for (int l = 0; l < 8; l++) sum[l] = blocks[l][k];
            if (a == b)
                for (int l = 0; l < 8; l++) sum[l] += prior[l] + raise[l] * sum[l];
            for (int c = 0; c < a; c++)
                for (int l = 0; l < 8; l++) sum[l] -= L[a][c][l] * L[b][c][l];
            if (a == b) {
                for (int l = 0; l < 8; l++) sound[l] &= sum[l] >= 0.5 * prior[l];
                for (int l = 0; l < 8; l++) inverse[a][l] = 1.0 / std::sqrt(std::max(sum[l], prior[l]));
            } else {
                for (int l = 0; l < 8; l++) L[b][a][l] = sum[l] * inverse[a][l];
            }
        }
    }
    for (int b = 0; b < kParameters; b++) {   // rows of the inverse replace those of L from the top
        alignas(64) double row[kParameters][8];
        for (int a = 0; a < b; a++) {
            alignas(64) double sum[8] = {};
            for (int c = a; c < b; c++)
                for (int l = 0; l < 8; l++) sum[l] += L[b][c][l] * L[c][a][l];
            for (int l = 0; l < 8; l++) row[a][l] = -sum[l] * inverse[b][l];
        }
        for (int l = 0; l < 8; l++) row[b][l] = inverse[b][l];
        for (int a = 0; a <= b; a++)
            for (int l = 0; l < 8; l++) L[b][a][l] = row[a][l];
    }
}

static void factor_soundly(const float* const* blocks, const float* const* priors, double L[kParameters][kParameters][8]) {
    alignas(64) double raise[8] = {};
    bool sound[8], again = true;
    while (again) {
        factor_eight(blocks, priors, raise, L, sound);
        again = false;
        for (int l = 0; l < 8; l++)
            if (!sound[l] && raise[l] < 1e-2) {
                raise[l] = raise[l] > 0 ? 10 * raise[l] : 1e-6;
                again = true;
            }
    }
}

static void factor(int threads, int64_t count, const float* blocks, const float* prior, bool diagonal, float* factors) {
    constexpr int64_t step = 256;
    parallel_for(threads, (count + step - 1) / step, [&](int, int64_t task) {
        const int64_t end = std::min(count, (task + 1) * step);
        for (int64_t first = task * step; first < end; first += 8) {
            const int lanes = (int)std::min<int64_t>(8, end - first);
            const float *block[8], *own[8];
            for (int l = 0; l < 8; l++) {
                const int64_t i = first + std::min(l, lanes - 1);
                block[l] = blocks + i * kBlock;
                own[l] = prior + i * kParameters;
            }
            alignas(64) double L[kParameters][kParameters][8];
            if (!diagonal) factor_soundly(block, own, L);
            for (int l = 0; l < lanes; l++) {
                float* out = factors + (first + l) * kBlock;
                for (int b = 0, k = 0; b < kParameters; b++)
                    for (int a = 0; a <= b; a++, k++) {
                        if (!diagonal) out[k] = (float)L[b][a][l];
                        else if (a < b) out[k] = 0.0f;
                        else out[k] = 1.0f / std::sqrt(block[l][upper(b, b, kParameters)] + own[l][b]);
                    }
            }
        }
    });
}

static FF_INLINE void sh_term(const ChainView& view, const Chain& chain, const int32_t* row, const float* evidence, float prior,
                              F* colour) {
    const int bands = view.sh_coefficients - 1, used = (view.sh_degree + 1) * (view.sh_degree + 1) - 1;
    F known[45];
    gather(evidence, 3 * bands, row, known, 3 * used);
    for (int ch = 0; ch < 3; ch++) {
        F sum(0.0f);
        for (int k = 0; k < used; k++) sum += chain.basis[k + 1] * chain.basis[k + 1] / (known[3 * k + ch] + F(prior));
        colour[ch] = sum * chain.lit[ch];
    }
}

static void posterior_group(const ChainView& view, int64_t first, const float* factors, const float* sh_evidence, float sh_prior,
                            float scale, float* out) {
    int32_t index[16], row[16];
    const int count = take(view, first, index, row);
    Chain chain;
    make_chain(view, index, chain);
    F W[kBlock], X[kRecord][kParameters], colour[3] = {F(0.0f), F(0.0f), F(0.0f)};
    gather(factors, kBlock, row, W, kBlock);
    constexpr int begins[kRecord] = {0, 0, 0, 0, 0, 9, 0, 0, 0};   // first parameter that moves the value
    for (int r = 0; r < kRecord; r++)
        for (int p = begins[r]; p < kParameters; p++) {
            const F* w = W + p * (p + 1) / 2;
            F sum(0.0f);
            if (r == 5) sum = w[9];
            const int last = r == 5 ? -1 : r < 2 || r > 5 ? 2 : 8;
            for (int q = 0; q <= std::min(p, last); q++) sum = fma(w[q], chain.A[r][q], sum);
            if (r > 5 && p >= r + 4) sum = fma(w[r + 4], chain.A[r][r + 4], sum);
            X[r][p] = sum;
        }
    if (view.sh_coefficients > 1 && view.sh_degree > 0 && sh_evidence)
        sh_term(view, chain, row, sh_evidence, sh_prior, colour);
    alignas(64) float packed[kPacked][16];
    int k = 0;
    for (int r = 0; r < kRecord; r++)
        for (int s = r; s < kRecord; s++) {
            F sum = r == s && r > 5 ? colour[r - 6] : F(0.0f);
            for (int p = std::max(begins[r], begins[s]); p < kParameters; p++) sum = fma(X[r][p], X[s][p], sum);
            store(packed[k++], sum * F(scale));
        }
    for (int l = 0; l < count; l++)
        for (int i = 0; i < kPacked; i++) out[(int64_t)index[l] * kPacked + i] = packed[i][l];
}

static void posterior(const ChainView& view, int threads, const float* factors, const float* sh_evidence, float sh_prior, float scale,
                      float* out) {
    const int64_t step = 16 * kGroups;
    parallel_for(threads, (view.count + step - 1) / step, [&](int, int64_t task) {
        const int64_t end = std::min(view.count, (task + 1) * step);
        for (int64_t i = task * step; i < end; i += 16)
            posterior_group(view, i, factors, sh_evidence, sh_prior, scale, out);
    });
}

ChainKernels chain_table() { return {fisher, factor, posterior}; }

}  // namespace FF_ISA
}  // namespace ff
