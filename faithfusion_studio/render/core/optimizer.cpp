// Python face of the optimiser.
#include "optimizer.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "kernels.h"

namespace nb = nanobind;
using namespace ff;

namespace ff {
namespace baseline { OptimizerKernels optimizer_table(); }
#ifdef FF_X86
namespace avx2 { OptimizerKernels optimizer_table(); }
namespace avx512 { OptimizerKernels optimizer_table(); }
#endif
}  // namespace ff

namespace {

using Array = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<int32_t, nb::c_contig, nb::device::cpu>;

const OptimizerKernels& optimizer_kernels() {
    static const OptimizerKernels table = [] {
#ifdef FF_X86
        if (!std::strcmp(kernels().name, "avx512")) return avx512::optimizer_table();
        if (!std::strcmp(kernels().name, "avx2")) return avx2::optimizer_table();
#endif
        return baseline::optimizer_table();
    }();
    return table;
}

Activation named_activation(const char* name) {
    if (!std::strcmp(name, "exp")) return Activation::Exp;
    if (!std::strcmp(name, "sigmoid")) return Activation::Sigmoid;
    return Activation::None;
}

// (value, mean, square, gradient, rates, activated or None, activation)
AdamKind make_kind(const nb::handle& item) {
    const nb::tuple t = nb::cast<nb::tuple>(item);
    AdamKind kind;
    kind.value = nb::cast<Array>(t[0]).data();
    kind.mean = nb::cast<Array>(t[1]).data();
    kind.square = nb::cast<Array>(t[2]).data();
    kind.gradient = nb::cast<Input>(t[3]).data();
    const Input rates = nb::cast<Input>(t[4]);
    kind.rates = rates.data();
    kind.width = (int)rates.shape(0);
    if (!t[5].is_none()) kind.activated = nb::cast<Array>(t[5]).data();
    kind.activation = named_activation(nb::cast<const char*>(t[6]));
    if (kind.width > kMaxWidth || (kind.activated && kind.width > 4)) throw std::invalid_argument("too many numbers per row");
    return kind;
}

// Moves the rows of all kinds; returns the value of the regularisers and the number of rows refused.
// terms: (kind of scales, kind of opacities, opacity, scale, flat, shape, max_aspect, voxel), or None
std::pair<double, int64_t> adam(nb::list items, std::optional<Bytes> visible, Ints clocks, int now, float eps, float low,
                                float high, nb::object terms, int threads) {
    AdamKind kinds[kMaxKinds];
    const int count = (int)nb::len(items);
    if (count > kMaxKinds) throw std::invalid_argument("too many kinds of parameters");
    for (int k = 0; k < count; k++) kinds[k] = make_kind(items[k]);
    AdamCall call;
    call.rows = (int64_t)clocks.shape(0);
    call.visible = visible ? visible->data() : nullptr;
    call.clocks = clocks.data(), call.now = now;
    call.eps = eps;
    call.low = low, call.high = high;
    if (!terms.is_none()) {
        const nb::tuple t = nb::cast<nb::tuple>(terms);
        auto number = [&](int i) { return nb::cast<float>(t[i]); };
        call.scales = nb::cast<int>(t[0]), call.opacities = nb::cast<int>(t[1]);
        call.terms = {number(2), number(3), number(4), number(5), number(6), number(7)};
    }
    nb::gil_scoped_release release;
    const AdamOutcome out = optimizer_kernels().adam(call, kinds, count, threads);
    return {out.regulariser, out.refused};
}

void activate(const char* name, Input value, Array out, int threads) {
    const Activation a = named_activation(name);
    nb::gil_scoped_release release;
    optimizer_kernels().activate(a, value.data(), out.data(), (int64_t)value.size(), threads);
}

template <class Fn>
void for_each_visible(const Frame& f, int64_t chunk, int64_t rows, Fn&& fn) {
    const int64_t first = chunk * kChunk;
    for (int64_t slot = first; slot < first + f.chunk_counts.as<int32_t>()[chunk]; slot++) {
        const int64_t i = f.gaussians.as<int32_t>()[slot];
        if (i < rows) fn(slot, i);
    }
}

// out[i] = 1 where row i reached a pixel, else 0; rows beyond the array are left out. Returns how many did.
int64_t mark_reached(const Frame& f, Bytes out, int threads) {
    const int64_t rows = (int64_t)out.shape(0);
    uint8_t* mark = out.data();
    nb::gil_scoped_release release;
    const Reached some = reached(f, threads);
    std::fill_n(mark, rows, (uint8_t)0);
    int64_t marked = 0;
    for (int64_t c = 0; c < f.chunks; c++)
        for (int k = 0; k < some.counts[c]; k++) {
            const int64_t i = f.gaussians.as<int32_t>()[some.slots[c * kChunk + k]];
            if (i < rows) mark[i] = 1, marked++;
        }
    return marked;
}

// Adds one view to the statistics of densification: the length of absgrad [N, 2] times `unit` to gradient, 1 to count,
// and the radius on screen over the longer side, if it is larger, to radius. Rows that are not visible keep theirs.
void observe(const Frame& f, Input absgrad, Array gradient, Ints count, Array radius, float unit, int threads) {
    const int64_t rows = (int64_t)gradient.shape(0);
    const float *g = absgrad.data(), share = 1.0f / (float)std::max(f.cam.width, f.cam.height);
    float *sum = gradient.data(), *widest = radius.data();
    int32_t* seen = count.data();
    nb::gil_scoped_release release;
    parallel_for(threads, f.chunks, [&](int, int64_t c) {
        for_each_visible(f, c, rows, [&](int64_t slot, int64_t i) {
            const int32_t* r = f.radii.as<int32_t>() + 2 * slot;
            sum[i] += unit * std::sqrt(g[2 * i] * g[2 * i] + g[2 * i + 1] * g[2 * i + 1]);
            seen[i]++;
            widest[i] = std::max(widest[i], share * (float)std::max(r[0], r[1]));
        });
    });
}

}  // namespace

void bind_optimizer(nb::module_& m) {
    m.def("adam", &adam, nb::arg("kinds"), nb::arg("visible").none(), nb::arg("clocks"), nb::arg("now"), nb::arg("eps"),
          nb::arg("low"), nb::arg("high"), nb::arg("terms").none(), nb::arg("threads"));
    m.def("activate", &activate);
    m.def("mark_reached", &mark_reached);
    m.def("observe", &observe);
}
