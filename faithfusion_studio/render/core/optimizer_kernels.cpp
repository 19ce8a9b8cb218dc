// Sparse Adam, sixteen rows at a time, compiled once per instruction set.
//
// A row that the view did not see keeps every bit. At its u-th update, at step n, when its last one was at step l:
//   mean   = beta1 mean + (1 - beta1) g
//   square = beta2^(n - l) square + (1 - beta2) g^2
//   value -= rate sqrt(1 - beta2^n) / (1 - beta1^u) mean / (sqrt(square) + eps)
// The second moment is that of dense Adam, which meets a gradient of zero wherever the row is not seen; the first one
// rests, so the whole of a gradient's push is spent while the row is seen instead of behind the camera's back.
#include <algorithm>
#include <cmath>
#include <vector>

#include "lanes.h"
#include "optimizer.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr float kHuge = 1e18f;   // its square is still finite
constexpr float kLimit = 100.0f; // regularisers grow no further beyond it
constexpr int kRows = 16;        // rows of a block
constexpr int kNarrow = 4;       // numbers per row up to which sixteen rows are moved together
constexpr double kBeta1 = 0.9, kBeta2 = 0.999;
constexpr int kTable = 1 << 15;  // steps after which beta2^t is below float precision

struct Powers {
    std::vector<float> first, second, decay;   // 1 / (1 - beta1^t), sqrt(1 - beta2^t), beta2^t
    Powers() : first(kTable), second(kTable), decay(kTable, 1.0f) {
        double b1 = 1, b2 = 1;
        for (int t = 1; t < kTable; t++) {
            b1 *= kBeta1, b2 *= kBeta2;
            first[t] = (float)(1 / (1 - b1)), second[t] = (float)std::sqrt(1 - b2), decay[t] = (float)b2;
        }
    }
};

const Powers& powers() {
    static const Powers table;
    return table;
}

FF_INLINE F exp_of(F x) { return exp2(clamp(x * F(kLog2E), F(-125.0f), F(125.0f))); }

FF_INLINE F activated(Activation a, F x) {
    if (a == Activation::None) return x;
    if (a == Activation::Exp) return exp_of(x);
    return F(1.0f) / (F(1.0f) + exp_of(-x));
}

// row[r] repeated `width` times each
FF_INLINE void spread(const float* row, int width, float* out) {
    for (int r = 0; r < kRows; r++)
        for (int k = 0; k < width; k++) out[r * width + k] = row[r];
}

struct Block {
    int64_t first = 0;   // first row
    int rows = 0;        // 1..16
    alignas(64) float factor[kRows] = {};   // bias correction of each row; 0 = leave alone
    alignas(64) float decay[kRows] = {};    // of each row's second moment since its last update
};

class Pass {
public:
    Pass(const AdamCall& call, const AdamKind* kinds, int count) : call_(call), kinds_(kinds), count_(count) {
        for (int k = 0; k < count; k++)
            for (int i = 0; i < kRows * kinds[k].width; i++) rates_[k][i] = kinds[k].rates[i % kinds[k].width];
    }

    void run(int64_t first, int64_t stop, AdamOutcome& out) const {
        const float second = powers_.second[std::min(call_.now, kTable - 1)];
        for (int64_t row = first; row < stop; row += kRows) {
            Block b;
            b.first = row;
            b.rows = (int)std::min<int64_t>(kRows, stop - row);
            uint32_t seen = 0;
            for (int r = 0; r < b.rows; r++) seen |= (uint32_t)(!call_.visible || call_.visible[row + r]) << r;
            if (!seen) continue;
            const uint32_t good = finite_rows(b, seen);
            out.refused += __builtin_popcount(seen & ~good);
            seen = good;
            for (int r = 0; r < b.rows; r++)
                if (seen >> r & 1) {
                    int32_t* clock = call_.clocks + 2 * (row + r);
                    b.decay[r] = powers_.decay[std::min(call_.now - clock[1], kTable - 1)];
                    clock[0] += 1, clock[1] = call_.now;
                    b.factor[r] = second * powers_.first[std::min(clock[0], kTable - 1)];
                }
            for (int k = 0; k < count_; k++) update(b, k, out);
        }
    }

private:
    // Of the seen rows those whose gradients are all finite. Narrow kinds are looked at together, wide ones row by row.
    uint32_t finite_rows(const Block& b, uint32_t seen) const {
        uint32_t good = seen;
        for (int k = 0; k < count_; k++) {
            const int width = kinds_[k].width;
            const float* g = kinds_[k].gradient + b.first * width;
            if (width <= kNarrow && finite(g, b.rows * width)) continue;
            for (uint32_t m = good; m; m &= m - 1) {
                const int r = __builtin_ctz(m);
                if (!finite(g + r * width, width)) good &= ~(1u << r);
            }
        }
        return good;
    }

    static FF_INLINE bool finite(const float* g, int64_t count) {
        M ok = from_bits(0xffff);
        for (int64_t i = 0; i < count; i += 16) ok = ok & (abs(load_part(g + i, count - i)) < F(kHuge));
        return bits(ok) == 0xffff;
    }

    // Gradient of the regularisers with respect to the scales of 16 rows, [16, 3]; their value is added to `out`.
    void regularise_scales(const Block& b, float* extra, AdamOutcome& out) const {
        const ShapeTerms& w = call_.terms;
        const float* scales = kinds_[call_.scales].activated + 3 * b.first;
        const F inverse(1.0f / w.voxel), limit(kLimit), zero(0.0f);
        const M seen = F(0.0f) < load(b.factor);
        F s[3], g[3], value(0.0f);
        for (int k = 0; k < 3; k++) s[k] = load_strided(scales + k, 3, b.rows);
        for (int k = 0; k < 3; k++) {
            const F size = s[k] * inverse;
            value += F(w.scale / 3.0f) * min(size, limit);
            g[k] = keep(size <= limit, F(w.scale / 3.0f) * inverse);
        }
        const F thin = min(min(s[0], s[1]), s[2]), longest = max(max(s[0], s[1]), s[2]);
        const F middle = max(min(s[0], s[1]), min(max(s[0], s[1]), s[2]));
        const F solid = max(middle, F(1e-9f)), aspect = longest / solid - F(w.max_aspect);
        value += F(w.flat) * min(thin * inverse, limit) + F(w.shape) * min(max(aspect, zero), limit);
        const M stretched = (zero < aspect) & (aspect <= limit);
        const F pull = keep(stretched, F(w.shape) / solid), push = keep(F(1e-9f) <= middle, -pull * longest / solid);
        const F flat = keep(thin * inverse <= limit, F(w.flat) * inverse);
        M taken_thin = from_bits(0), taken_long = from_bits(0), taken_middle = from_bits(0);
        for (int k = 0; k < 3; k++) {   // each role goes to one axis, the first that fits
            const M is_long = andnot(longest <= s[k], taken_long);
            taken_long = taken_long | is_long;
            const M is_thin = andnot(andnot(s[k] <= thin, taken_thin), is_long);
            taken_thin = taken_thin | is_thin;
            const M is_middle = andnot(andnot(andnot((s[k] <= middle) & (middle <= s[k]), taken_middle), is_long), is_thin);
            taken_middle = taken_middle | is_middle;
            g[k] += keep(is_long, pull) + keep(is_thin, flat) + keep(is_middle, push);
        }
        alignas(64) float t[3][16];
        for (int k = 0; k < 3; k++) store(t[k], g[k]);
        for (int r = 0; r < kRows; r++)
            for (int k = 0; k < 3; k++) extra[3 * r + k] = t[k][r];
        out.regulariser += sum(keep(seen, value));
    }

    struct Moved {
        F value, mean, square;
    };

    FF_INLINE Moved moved(const AdamKind& kind, int64_t p, int64_t count, F g, F rate, F factor, F decay) const {
        const F m = fma(F((float)kBeta1), load_part(kind.mean + p, count), F((float)(1 - kBeta1)) * g);
        const F v = fma(decay, load_part(kind.square + p, count), F((float)(1 - kBeta2)) * g * g);
        F x = load_part(kind.value + p, count) - rate * factor * m / (sqrt(v) + F(call_.eps));
        if (call_.low < call_.high) x = clamp(x, F(call_.low), F(call_.high));
        return {x, m, v};
    }

    // A kind with many numbers per row, in which rows that rest are not even read.
    void update_wide(const Block& b, int k) const {
        const AdamKind& kind = kinds_[k];
        for (int r = 0; r < b.rows; r++) {
            if (!(b.factor[r] > 0)) continue;
            for (int i = 0; i < kind.width; i += 16) {
                const int64_t p = (b.first + r) * kind.width + i;
                const int count = std::min(16, kind.width - i);
                const Moved to = moved(kind, p, count, load_part(kind.gradient + p, count), load(rates_[k] + i), F(b.factor[r]), F(b.decay[r]));
                store_part(kind.value + p, to.value, count);
                store_part(kind.mean + p, to.mean, count);
                store_part(kind.square + p, to.square, count);
            }
        }
    }

    // A kind with few numbers per row: those of sixteen rows together.
    template <int W>
    void update_narrow(const Block& b, int k, AdamOutcome& out) const {
        const AdamKind& kind = kinds_[k];
        const int size = b.rows * W;
        const int64_t base = b.first * W;
        alignas(64) float factor[kRows * W], decay[kRows * W], extra[kRows * 3];
        spread(b.factor, W, factor), spread(b.decay, W, decay);
        const bool shaped = k == call_.scales;
        if (shaped) regularise_scales(b, extra, out);
        for (int i = 0; i < size; i += 16) {
            const F f = load(factor + i);
            const M moves = F(0.0f) < f;
            if (!any(moves)) continue;
            const int count = std::min(16, size - i);
            const int64_t p = base + i;
            F g = load_part(kind.gradient + p, count), a(0.0f);
            if (shaped) g += load(extra + i);
            if (kind.activated) {
                a = load_part(kind.activated + p, count);
                if (k == call_.opacities) {
                    out.regulariser += sum(keep(moves, F(call_.terms.opacity) * a));
                    g += F(call_.terms.opacity);
                }
                g = g * (kind.activation == Activation::Exp ? a : a * (F(1.0f) - a));
            }
            const Moved to = moved(kind, p, count, g, load(rates_[k] + i), f, load(decay + i));
            const F x = select(moves, to.value, load_part(kind.value + p, count));
            store_part(kind.value + p, x, count);
            store_part(kind.mean + p, select(moves, to.mean, load_part(kind.mean + p, count)), count);
            store_part(kind.square + p, select(moves, to.square, load_part(kind.square + p, count)), count);
            if (kind.activated) store_part(kind.activated + p, select(moves, activated(kind.activation, x), a), count);
        }
    }

    void update(const Block& b, int k, AdamOutcome& out) const {
        switch (kinds_[k].width) {
            case 1: return update_narrow<1>(b, k, out);
            case 3: return update_narrow<3>(b, k, out);
            case 4: return update_narrow<4>(b, k, out);
            default: update_wide(b, k);
        }
    }

    const AdamCall& call_;
    const AdamKind* kinds_;
    int count_;
    const Powers& powers_ = powers();
    alignas(64) float rates_[kMaxKinds][kRows * kMaxWidth];
};

AdamOutcome adam(const AdamCall& call, const AdamKind* kinds, int count, int threads) {
    const Pass pass(call, kinds, count);
    const int64_t chunks = (call.rows + kChunk - 1) / kChunk;
    std::vector<AdamOutcome> parts(chunks);   // summed in order: the same for every thread count
    parallel_for(threads, chunks, [&](int, int64_t c) {
        pass.run(c * kChunk, std::min(call.rows, (c + 1) * kChunk), parts[c]);
    });
    AdamOutcome total;
    for (const AdamOutcome& part : parts) total.regulariser += part.regulariser, total.refused += part.refused;
    return total;
}

void activate(Activation a, const float* value, float* out, int64_t count, int threads) {
    constexpr int64_t kPart = 1 << 14;
    parallel_for(threads, (count + kPart - 1) / kPart, [&](int, int64_t c) {
        const int64_t stop = std::min(count, (c + 1) * kPart);
        for (int64_t i = c * kPart; i < stop; i += 16)
            store_part(out + i, activated(a, load_part(value + i, stop - i)), stop - i);
    });
}

}  // namespace

OptimizerKernels optimizer_table() { return {&adam, &activate}; }

}  // namespace FF_ISA
}  // namespace ff
