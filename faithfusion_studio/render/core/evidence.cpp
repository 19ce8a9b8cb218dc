// Sums over pixels (coefficients.h) -> screen information of a Gaussian, and through the chain its Fisher block.
#include "chain_rules.h"
#include "coefficients.h"
#include "kernels.h"

namespace ff {
namespace FF_ISA {

// Packed upper triangle of the 9x9 screen information; m: sums with h still scaled by log2(e) / 2, e = 1 - opacity.
static FF_INLINE void screen_information(const F* m, F e, const uint32_t* lit, F* out) {
    constexpr float k1 = 2.0f / kLog2E, k2 = k1 * k1, k3 = k2 * k1, k4 = k2 * k2;
    F m10 = m[1] * F(k1), m01 = m[2] * F(k1), m20 = m[3] * F(k2), m11 = m[4] * F(k2), m02 = m[5] * F(k2), half(0.5f), quarter(0.25f);
    F m30 = m[6] * F(k3), m21 = m[7] * F(k3), m12 = m[8] * F(k3), m03 = m[9] * F(k3);
    F m40 = m[10] * F(k4), m31 = m[11] * F(k4), m22 = m[12] * F(k4), m13 = m[13] * F(k4), m04 = m[14] * F(k4);
    const F geometry[21] = {m20, m11, m30 * half, m21, m12 * half, e * m10,
                            m02, m21 * half, m12, m03 * half, e * m01,
                            m40 * quarter, m31 * half, m22 * quarter, e * m20 * half,
                            m22, m13 * half, e * m11,
                            m04 * quarter, e * m02 * half,
                            e * e * m[0]};
    int n = 0;
    for (int i = 0; i < 6; i++)
        for (int j = i; j < 6; j++) out[upper(i, j, kRecord)] = geometry[n++];
    for (int ch = 0; ch < 3; ch++) {
        const F* c = m + kLinear + 6 * ch;
        const F cross[6] = {c[1] * F(k1), c[2] * F(k1), c[3] * F(0.5f * k2), c[4] * F(k2), c[5] * F(0.5f * k2), e * c[0]};
        for (int i = 0; i < 6; i++) out[upper(i, 6 + ch, kRecord)] = keep(from_bits(lit[ch]), cross[i]);
        for (int other = 0; other < ch; other++) out[upper(6 + other, 6 + ch, kRecord)] = F(0.0f);
        out[upper(6 + ch, 6 + ch, kRecord)] = keep(from_bits(lit[ch]), m[kMoments - 1]);
    }
}

// Sums of all workers of up to sixteen Gaussians, and the information they give.
static FF_INLINE void load_information(const Frame& f, int workers, const float* rows, const int32_t* slots, int count,
                                       int32_t* gaussians, F* S) {
    alignas(64) int32_t own[16];
    alignas(64) float clear[16];
    uint32_t lit[3] = {0, 0, 0};
    for (int l = 0; l < 16; l++) {
        own[l] = slots[std::min(l, count - 1)];
        gaussians[l] = f.gaussians.as<int32_t>()[own[l]];
        clear[l] = 1.0f - f.records.as<Record>()[own[l]].opacity;
        for (int ch = 0; ch < 3; ch++) lit[ch] |= (uint32_t)(~f.clamped.as<uint8_t>()[own[l]] >> ch & 1) << l;
    }
    F sums[kMoments], more[kMoments];
    load_rows(rows, kMomentRow, own, sums, kMoments);
    for (int w = 1; w < workers; w++) {
        load_rows(rows + w * f.slots() * kMomentRow, kMomentRow, own, more, kMoments);
        for (int k = 0; k < kMoments; k++) sums[k] += more[k];
    }
    screen_information(sums, load(clear), lit, S);
}

// out [n, 45] is overwritten; zero for Gaussians that reached no pixel.
static void information(const Frame& f, const Work& work, const float* rows, float* out) {
    const Reached some = reached(f, work.threads);
    parallel_for(work.threads, f.chunks, [&](int, int64_t chunk) {
        const int64_t first = chunk * kChunk, count = f.in.n - first < kChunk ? f.in.n - first : kChunk;
        std::memset(out + kPacked * first, 0, sizeof(float) * kPacked * count);
        some.for_each_sixteen(chunk, [&](const int32_t* slots, int n, int) {
            int32_t gaussians[16];
            F S[kPacked];
            load_information(f, work.workers(), rows, slots, n, gaussians, S);
            add_rows(S, kPacked, out, kPacked, gaussians, n);
        });
    });
}

static void fisher(const Frame& f, const ChainView& view, const Work& work, const float* rows, float* blocks, float* sh_evidence) {
    const Reached some = reached(f, work.threads);
    parallel_for(work.threads, f.chunks, [&](int, int64_t chunk) {
        some.for_each_sixteen(chunk, [&](const int32_t* slots, int count, int next) {
            int32_t gaussians[16], index[16], row[16];
            F S[kPacked];
            load_information(f, work.workers(), rows, slots, count, gaussians, S);
            take(view, gaussians, count, index, row);
            for (int l = 0; l < next; l++) {   // the next blocks are read and written: ask for them early
                const int32_t i = f.gaussians.as<int32_t>()[slots[16 + l]];
                const float* block = blocks + (int64_t)(view.rows ? view.rows[i] : i) * kBlock;
                for (int k = 0; k < kBlock; k += 16) __builtin_prefetch(block + k, 1);
            }
            Chain chain;
            make_chain(view, index, chain);
            add_block(chain, S, row, count, blocks);
            if (view.band_count > 0) add_bands(view, chain, row, count, S, sh_evidence);
        });
    });
}

void add_evidence(Kernels& k) {
    k.information = information;
    k.fisher = fisher;
}

}  // namespace FF_ISA
}  // namespace ff
