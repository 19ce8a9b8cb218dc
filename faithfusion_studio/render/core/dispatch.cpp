// Chooses the instruction set once, when the module is first used.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace ff {
namespace baseline { Kernels table(); }
#ifdef FF_X86
namespace avx2 { Kernels table(); }
namespace avx512 { Kernels table(); }
#endif

namespace {

Kernels named(const char* name, Kernels k) {
    k.name = name;
    return k;
}

Kernels choose() {
#ifdef FF_X86
    const char* asked = std::getenv("FAITHFUSION_SIMD");
    __builtin_cpu_init();
    const bool has512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
    const bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool limit2 = asked && !std::strcmp(asked, "avx2"), limit0 = asked && !std::strcmp(asked, "baseline");
    if (has512 && !limit2 && !limit0) return named("avx512", avx512::table());
    if (has2 && !limit0) return named("avx2", avx2::table());
#endif
    return named("baseline", baseline::table());
}

}  // namespace

const Kernels& kernels() {
    static const Kernels k = choose();
    return k;
}

}  // namespace ff
