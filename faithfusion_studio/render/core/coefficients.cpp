// Posterior covariances of screen records -> polynomials (coefficients.h), sixteen Gaussians at a time, in slot order.
#include "coefficients.h"

#include "chain_rules.h"
#include "kernels.h"

namespace ff {
namespace FF_ISA {

constexpr float k1 = 2.0f / kLog2E, k2 = k1 * k1, k3 = k2 * k1, k4 = k2 * k2;   // h is stored scaled by log2(e) / 2

// m: packed upper triangle of a 9x9; e = 1 - opacity.
static FF_INLINE void block_polynomials(const F* m, F e, F* out) {
    auto M = [&](int i, int j) { return m[upper(i, j, kRecord)]; };
    F two(2.0f), quarter(0.25f), half(0.5f);
    out[0] = M(5, 5) * e * e;
    out[1] = M(0, 5) * e * F(2 * k1);
    out[2] = M(1, 5) * e * F(2 * k1);
    out[3] = fma(M(2, 5), e, M(0, 0)) * F(k2);
    out[4] = fma(M(3, 5), e, M(0, 1)) * F(2 * k2);
    out[5] = fma(M(4, 5), e, M(1, 1)) * F(k2);
    out[6] = M(0, 2) * F(k3);
    out[7] = fma(two, M(0, 3), M(1, 2)) * F(k3);
    out[8] = fma(two, M(1, 3), M(0, 4)) * F(k3);
    out[9] = M(1, 4) * F(k3);
    out[10] = M(2, 2) * quarter * F(k4);
    out[11] = M(2, 3) * F(k4);
    out[12] = fma(half, M(2, 4), M(3, 3)) * F(k4);
    out[13] = M(3, 4) * F(k4);
    out[14] = M(4, 4) * quarter * F(k4);
    for (int ch = 0; ch < 3; ch++) {
        F* q = out + kLinear + 6 * ch;
        q[0] = M(5, 6 + ch) * e;
        q[1] = M(0, 6 + ch) * F(k1);
        q[2] = M(1, 6 + ch) * F(k1);
        q[3] = M(2, 6 + ch) * F(0.5f * k2);
        q[4] = M(3, 6 + ch) * F(k2);
        q[5] = M(4, 6 + ch) * F(0.5f * k2);
    }
    int n = kConstant;
    for (int i = 0; i < 3; i++)
        for (int j = i; j < 3; j++) out[n++] = M(6 + i, 6 + j);
    for (; n < kBlockRow; n++) out[n] = F(0.0f);
}

// A and the variances d of the parameters; `colour` adds to the three colour variances.
static FF_INLINE void trace_polynomials(const Chain& chain, const F* d, const F* colour, F scale, F e, F* out) {
    const auto& A = chain.A;
    F scaled[5][9], M[5][5];
    for (int i = 0; i < 5; i++)
        for (int p = 0; p < (i < 2 ? 3 : 9); p++) scaled[i][p] = A[i][p] * d[p] * scale;
    for (int i = 0; i < 5; i++)
        for (int j = i; j < 5; j++) {
            M[i][j] = F(0.0f);
            for (int p = 0; p < (i < 2 ? 3 : 9); p++) M[i][j] = fma(scaled[i][p], A[j][p], M[i][j]);
        }
    F two(2.0f), half(0.5f), quarter(0.25f);
    out[0] = d[9] * scale * e * e;
    out[1] = M[0][0] * F(k2);
    out[2] = M[0][1] * F(2 * k2);
    out[3] = M[1][1] * F(k2);
    out[4] = M[0][2] * F(k3);
    out[5] = fma(two, M[0][3], M[1][2]) * F(k3);
    out[6] = fma(two, M[1][3], M[0][4]) * F(k3);
    out[7] = M[1][4] * F(k3);
    out[8] = M[2][2] * quarter * F(k4);
    out[9] = M[2][3] * F(k4);
    out[10] = fma(half, M[2][4], M[3][3]) * F(k4);
    out[11] = M[3][4] * F(k4);
    out[12] = M[4][4] * quarter * F(k4);
    F constant(0.0f);
    for (int ch = 0; ch < 3; ch++) {
        const F* row = A[6 + ch];
        F variance = fma(row[10 + ch] * row[10 + ch], d[10 + ch], colour[ch]);
        for (int p = 0; p < 3; p++) variance = fma(row[p] * row[p], d[p], variance);
        constant = fma(variance, scale, constant);
        F* q = out + kTraceLinear + 5 * ch;
        const float unit[5] = {2 * k1, 2 * k1, k2, 2 * k2, k2};
        for (int i = 0; i < 5; i++) {
            F cross = scaled[i][0] * row[0];
            cross = fma(scaled[i][1], row[1], cross);
            cross = fma(scaled[i][2], row[2], cross);
            q[i] = cross * F(unit[i]);
        }
    }
    out[kTraceConstant] = constant;
    for (int n = kTraceLinear + 15; n < kTraceRow; n++) out[n] = F(0.0f);
}

// Lane l of columns[0..width) becomes row slots[l]; width is a multiple of sixteen and rows begin on cache lines.
static FF_INLINE void store_rows(F* columns, int width, const int32_t* slots, int count, float* rows) {
    for (int k = 0; k < width; k += 16) {
        transpose16(columns + k);
        for (int l = 0; l < count; l++) stream(rows + (int64_t)slots[l] * width + k, columns[k + l]);
    }
}

struct Sixteen {   // what a group needs of its Gaussians; missing lanes repeat the last one
    alignas(64) int32_t index[16], row[16];
    F see_through;   // 1 - opacity
    uint32_t lit[3];
};

static FF_INLINE void take(const Frame& f, const int32_t* rows, const int32_t* slots, int count, Sixteen& out) {
    alignas(64) float clear[16];
    out.lit[0] = out.lit[1] = out.lit[2] = 0;
    for (int l = 0; l < 16; l++) {
        const int64_t slot = slots[std::min(l, count - 1)];
        out.index[l] = f.gaussians.as<int32_t>()[slot];
        out.row[l] = rows ? rows[out.index[l]] : out.index[l];
        clear[l] = 1.0f - f.records.as<Record>()[slot].opacity;
        for (int ch = 0; ch < 3; ch++) out.lit[ch] |= (uint32_t)(~f.clamped.as<uint8_t>()[slot] >> ch & 1) << l;
    }
    out.see_through = load(clear);
}

// Starts fetching the factors of Gaussians that will be taken soon.
static FF_INLINE void fetch(const Frame& f, const int32_t* rows, const int32_t* slots, int count, const float* factors, int width) {
    for (int l = 0; l < count; l++) {
        const int32_t i = f.gaussians.as<int32_t>()[slots[l]];
        const float* row = factors + (int64_t)(rows ? rows[i] : i) * width;
        for (int k = 0; k < width; k += 16) __builtin_prefetch(row + k);
    }
}

// covariances [n, 45]; rows and columns of colours that were clamped at 0 are dropped.
static void unpack(const Frame& f, int threads, const float* covariances, float* rows) {
    const Reached some = reached(f, threads);
    parallel_for(threads, f.chunks, [&](int, int64_t chunk) {
        some.for_each_sixteen(chunk, [&](const int32_t* slots, int count, int next) {
            Sixteen g;
            take(f, nullptr, slots, count, g);
            fetch(f, nullptr, slots + 16, next, covariances, kPacked);
            F m[kPacked], out[kBlockRow];
            load_rows(covariances, kPacked, g.index, m, kPacked);
            for (int ch = 0; ch < 3; ch++)
                for (int i = 0; i < kRecord; i++) {
                    F& value = m[upper(i, 6 + ch, kRecord)];
                    value = keep(from_bits(g.lit[ch]), value);
                }
            block_polynomials(m, g.see_through, out);
            store_rows(out, kBlockRow, slots, count, rows);
        });
    });
}

static void block_rows(const Frame& f, const ChainView& view, const Posterior& p, int threads, float* rows) {
    const Reached some = reached(f, threads);
    parallel_for(threads, f.chunks, [&](int, int64_t chunk) {
        some.for_each_sixteen(chunk, [&](const int32_t* slots, int count, int next) {
            Sixteen g;
            take(f, view.rows, slots, count, g);
            fetch(f, view.rows, slots + 16, next, p.factors, kBlock);
            Chain chain;
            make_chain(view, g.index, chain);
            F m[kPacked], out[kBlockRow];
            record_covariance(view, chain, g.row, p, m);
            block_polynomials(m, g.see_through, out);
            store_rows(out, kBlockRow, slots, count, rows);
        });
    });
}

static void trace_rows(const Frame& f, const ChainView& view, const Posterior& p, int threads, float* rows) {
    const Reached some = reached(f, threads);
    parallel_for(threads, f.chunks, [&](int, int64_t chunk) {
        some.for_each_sixteen(chunk, [&](const int32_t* slots, int count, int next) {
            Sixteen g;
            take(f, view.rows, slots, count, g);
            fetch(f, view.rows, slots + 16, next, p.factors, 16);
            Chain chain;
            make_chain(view, g.index, chain);
            F d[16], colour[3], out[kTraceRow];
            load_rows(p.factors, 16, g.row, d, 16);
            sh_variance(view, chain, g.row, p, colour);
            trace_polynomials(chain, d, colour, F(p.scale), g.see_through, out);
            store_rows(out, kTraceRow, slots, count, rows);
        });
    });
}

void add_coefficients(Kernels& k) {
    k.unpack = unpack;
    k.block_rows = block_rows;
    k.trace_rows = trace_rows;
}

}  // namespace FF_ISA
}  // namespace ff
