// G of every pixel, and what lies behind the Gaussians, to nats and calibrated values; sixteen pixels at a time.
#include "nats.h"

#include "kernels.h"
#include "simd.h"
#include "sky_lookup.h"

namespace ff {
namespace FF_ISA {

constexpr float kLn2 = 0.693147180559945f;
constexpr float kOpen = 1e-3f;   // remaining transmittance from which the sky's own evidence is looked up

// log(1 + x) for x >= 0 without cancellation where x is small.
static FF_INLINE F log1p(F x) {
    F u = F(1.0f) + x;
    // log(u) is that of a rounded sum; the second factor takes the rounding back (Kahan)
    F rounded = u - F(1.0f);
    F slope = select(rounded <= F(0.0f), F(1.0f), x / max(rounded, F(1e-30f)));
    F exact = log2(u) * F(kLn2) * slope;
    return select(rounded <= F(0.0f), x, exact);
}

static float variance_behind(const NatsImage& in, int x, int y) {
    const Lookup at = lookup(in.view, x, y);
    float evidence = 0;
    for (int k = 0; k < 4; k++) evidence += at.weight[k] * in.evidence[at.index[k]];
    return 1.0f / (evidence + 1.0f / in.void_variance);
}

static float calibrated(const NatsImage& in, float nats) {
    int low = 0, high = in.knot_count - 1;   // the segment [low, low + 1] that holds the value, or the nearest
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (in.knots[2 * middle] < nats ? low : high) = middle;
    }
    const float *a = in.knots + 2 * low, *b = a + 2;
    const float share = (nats - a[0]) / std::max(b[0] - a[0], 1e-12f);
    return a[1] + std::min(std::max(share, 0.0f), 1.0f) * (b[1] - a[1]);
}

static F half_log_det(const F* g) {
    F zero(0.0f), rg = g[0] * g[3] - g[1] * g[1], rb = g[0] * g[5] - g[2] * g[2], gb = g[3] * g[5] - g[4] * g[4];
    F det = g[0] * gb - g[1] * (g[1] * g[5] - g[4] * g[2]) + g[2] * (g[1] * g[4] - g[3] * g[2]);
    F minors = max(rg, zero) + max(rb, zero) + max(gb, zero);
    return F(0.5f) * log1p(max(g[0] + g[3] + g[5], zero) + minors + max(det, zero));
}

static void nats_sixteen(const NatsImage& in, int64_t y, int x, int count) {
    const int64_t first = y * in.view.width + x;
    alignas(64) float open[16], behind[16], out[16];
    for (int l = 0; l < 16; l++) {
        open[l] = 1.0f - in.view.alpha[first + std::min(l, count - 1)];
        behind[l] = in.evidence && open[l] > kOpen && l < count ? variance_behind(in, x + l, (int)y) : in.void_variance;
    }
    F unseen = load(open) * load(open) * load(behind) * F(in.precision), trace, nats;
    if (in.trace) {
        trace = fma(F(3.0f), unseen, load_strided(in.gain + first, 1, count));
        nats = F(0.5f) * trace;
    } else {
        F g[6];
        for (int k = 0; k < 6; k++) g[k] = load_strided(in.gain + 6 * first + k, 6, count);
        for (int k : {0, 3, 5}) g[k] += unseen;
        trace = g[0] + g[3] + g[5];
        nats = in.log_det ? half_log_det(g) : F(0.5f) * trace;
    }
    alignas(64) float mean[16];
    store(out, nats);
    store(mean, trace * F(1.0f / 3.0f));
    for (int l = 0; l < count; l++) {
        in.nats[first + l] = out[l];
        in.calibrated[first + l] = calibrated(in, out[l]);
        in.mean_gain[first + l] = mean[l];
        in.behind[first + l] = behind[l];
    }
}

static void nats(const NatsImage& in, int threads) {
    parallel_for(threads, in.view.height, [&](int, int64_t y) {
        for (int x = 0; x < in.view.width; x += 16) nats_sixteen(in, y, x, std::min(16, in.view.width - x));
    });
}

void add_nats(Kernels& k) { k.nats = nats; }

}  // namespace FF_ISA
}  // namespace ff
