// Loads and stores of fewer than sixteen lanes, and rows shared out among the threads.
#pragma once
#include "frame.h"
#include "simd.h"

namespace ff {
namespace FF_ISA {

FF_INLINE M first_lanes(int64_t count) { return from_bits(count >= 16 ? 0xffffu : (1u << count) - 1); }

// Lanes beyond `count` are zero and never read from memory.
FF_INLINE F load_part(const float* p, int64_t count) {
    return count >= 16 ? load(p) : load_first(p, (int)count);
}

FF_INLINE void store_part(float* p, F v, int64_t count) {
    if (count >= 16) store(p, v);
    else store_first(p, v, (int)count);
}

constexpr int kBand = 8;   // image rows per task: neighbouring rows share most of what they read

template <class Fn>
inline void for_rows(int threads, int height, Fn&& fn) {
    parallel_for(threads, (height + kBand - 1) / kBand, [&](int, int64_t band) {
        const int stop = (int)(band + 1) * kBand < height ? (int)(band + 1) * kBand : height;
        for (int y = (int)band * kBand; y < stop; y++) fn(y);
    });
}

}  // namespace FF_ISA
}  // namespace ff
