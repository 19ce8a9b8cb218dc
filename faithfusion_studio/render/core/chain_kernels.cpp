// Fisher blocks and posterior covariances of sixteen Gaussians at a time (formulas: render/chain.py).
#include "chain_rules.h"

namespace ff {
namespace FF_ISA {

constexpr int64_t kGroups = 16;   // groups of sixteen Gaussians per task

static void fisher_group(const ChainView& view, int64_t first, const float* information, float* blocks, float* sh_evidence) {
    const int count = (int)std::min<int64_t>(16, view.count - first);
    int32_t index[16], row[16];
    take(view, view.visible + first, count, index, row);
    Chain chain;
    make_chain(view, index, chain);
    F S[kPacked];
    load_rows(information, kPacked, index, S, kPacked);
    add_block(chain, S, row, count, blocks);
    if (view.band_count > 0) add_bands(view, chain, row, count, S, sh_evidence);
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

static void posterior(const ChainView& view, const Posterior& p, int threads, float* out) {
    const int64_t step = 16 * kGroups;
    parallel_for(threads, (view.count + step - 1) / step, [&](int, int64_t task) {
        const int64_t end = std::min(view.count, (task + 1) * step);
        for (int64_t first = task * step; first < end; first += 16) {
            const int count = (int)std::min<int64_t>(16, view.count - first);
            int32_t index[16], row[16];
            take(view, view.visible + first, count, index, row);
            Chain chain;
            make_chain(view, index, chain);
            F packed[kPacked];
            record_covariance(view, chain, row, p, packed);
            alignas(64) float t[kPacked][16];
            for (int k = 0; k < kPacked; k++) store(t[k], packed[k]);
            for (int l = 0; l < count; l++)
                for (int k = 0; k < kPacked; k++) out[(int64_t)index[l] * kPacked + k] = t[k][l];
        }
    });
}

ChainKernels chain_table() { return {fisher, factor, posterior}; }

}  // namespace FF_ISA
}  // namespace ff
