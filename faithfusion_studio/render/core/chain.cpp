// Python face of the chain rules between screen records and parameters.
#include "chain.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "coefficients.h"
#include "kernels.h"
#include "render.h"

namespace nb = nanobind;
using namespace ff;

namespace ff {
namespace baseline { ChainKernels chain_table(); }
#ifdef FF_X86
namespace avx2 { ChainKernels chain_table(); }
namespace avx512 { ChainKernels chain_table(); }
#endif
}  // namespace ff

namespace {

using Array = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Index = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;

const ChainKernels& chain_kernels() {
    static const ChainKernels table = [] {
#ifdef FF_X86
        if (!std::strcmp(kernels().name, "avx512")) return avx512::chain_table();
        if (!std::strcmp(kernels().name, "avx2")) return avx2::chain_table();
#endif
        return baseline::chain_table();
    }();
    return table;
}

template <class T>
auto optional(const nb::handle& o) -> decltype(std::declval<T>().data()) {
    return o.is_none() ? nullptr : nb::cast<T>(o).data();
}

// (means, quats, scales, sh0, bands, sh_degree, visible, rows, nodes, node_rotations, viewmat, K, width, height,
// color_rotations)
ChainView make_view(const nb::tuple& t) {
    ChainView v;
    v.means = nb::cast<Input>(t[0]).data();
    v.quats = nb::cast<Input>(t[1]).data();
    v.scales = nb::cast<Input>(t[2]).data();
    v.sh0 = nb::cast<Input>(t[3]).data();
    Input bands = nb::cast<Input>(t[4]);
    v.bands = bands.data();
    v.band_count = (int)bands.shape(1);
    v.sh_degree = nb::cast<int>(t[5]);
    Index visible = nb::cast<Index>(t[6]);
    v.visible = visible.data();
    v.count = (int64_t)visible.shape(0);
    v.rows = optional<Index>(t[7]);
    v.nodes = optional<Index>(t[8]);
    v.node_rotations = optional<Input>(t[9]);
    v.color_rotations = optional<Input>(t[14]);
    Options o{};
    o.width = nb::cast<int>(t[12]);
    o.height = nb::cast<int>(t[13]);
    v.cam = make_camera(nb::cast<Input>(t[10]).data(), nb::cast<Input>(t[11]).data(), o);
    return v;
}

// Writes which Gaussians a frame drew into an array of its `visible` length.
void visible_gaussians(const Frame& frame, nb::ndarray<int32_t, nb::c_contig, nb::device::cpu> out) {
    int32_t* to = out.data();
    const int32_t* counts = frame.chunk_counts.as<int32_t>();
    for (int64_t c = 0; c < frame.chunks; c++) {
        const int32_t* from = frame.gaussians.as<int32_t>() + c * kChunk;
        to = std::copy(from, from + counts[c], to);
    }
}

// Position, counted from 1 in its tile's front-to-back list, of the last Gaussian blended into each pixel; 0 for none.
void last_positions(const Frame& f, nb::ndarray<int32_t, nb::c_contig, nb::device::cpu> out, int threads) {
    int32_t* to = out.data();
    nb::gil_scoped_release release;
    parallel_for(threads, f.tiles(), [&](int, int64_t tile) {
        const int64_t* starts = f.tile_starts.as<int64_t>() + tile;
        const uint32_t* entries = f.entries.as<uint32_t>() + starts[0];
        const uint32_t* masks = f.contributed.as<uint32_t>() + f.batch_starts.as<int64_t>()[tile] * 16;
        const int64_t count = starts[1] - starts[0];
        const int x0 = (int)(tile % f.tiles_x) * kTile, y0 = (int)(tile / f.tiles_x) * kTile;
        for (int y = y0; y < std::min(y0 + kTile, f.cam.height); y++)
            for (int x = x0; x < std::min(x0 + kTile, f.cam.width); x++) {
                const int block = (y - y0) / 4 * 4 + (x - x0) / 4;
                float t = 1.0f;
                int32_t last = 0;
                for (int64_t j = 0; j < count; j++) {
                    if (!(masks[j / kBatch * 16 + block] >> (j % kBatch) & 1)) continue;
                    const Record& r = f.records.as<Record>()[entries[j]];
                    const float dx = x + 0.5f - r.mx, dy = y + 0.5f - r.my;
                    const float e = r.log2_opacity - (r.a * dx * dx + 2 * r.b * dx * dy + r.c * dy * dy);
                    if (e < kLog2AlphaMin) continue;
                    const float left = t * (1.0f - std::min(std::exp2(e), kAlphaMax));
                    if (left <= kStop) break;
                    t = left;
                    last = (int32_t)j + 1;
                }
                to[(int64_t)y * f.cam.width + x] = last;
            }
    });
}

void fisher_chain(nb::tuple view, Input information, Array blocks, Array sh_evidence, int threads) {
    const ChainView v = make_view(view);
    nb::gil_scoped_release release;
    chain_kernels().fisher(v, threads, information.data(), blocks.data(), sh_evidence.data());
}

// blocks [n, 91] and sh_evidence [n, R, 3] of one view straight from its pixels.
void add_view(const Frame& frame, nb::tuple view, std::optional<Input> background, Input weight, Array blocks, Array sh_evidence,
              int threads, bool deterministic) {
    const ChainView v = make_view(view);
    const Backdrop bg{background ? background->data() : nullptr, background && background->ndim() == 3};
    nb::gil_scoped_release release;
    const Work work{threads, deterministic};
    Buffer memory;
    float* rows = memory.get<float>((size_t)work.workers() * frame.slots() * kMomentRow);
    kernels().moments(frame, work, bg, weight.data(), rows);
    kernels().fisher(frame, v, work, rows, blocks.data(), sh_evidence.data());
}

void factor_blocks(Input blocks, Input prior, bool diagonal, Array factors, int threads) {
    const int64_t count = (int64_t)blocks.shape(0);
    nb::gil_scoped_release release;
    chain_kernels().factor(threads, count, blocks.data(), prior.data(), diagonal, factors.data());
}

Posterior make_posterior(const Input& factors, const std::optional<Input>& sh_evidence, float sh_prior, float scale) {
    return {factors.data(), sh_evidence ? sh_evidence->data() : nullptr, sh_prior, scale};
}

void posterior_covariances(nb::tuple view, Input factors, std::optional<Input> sh_evidence, float sh_prior, float scale, Array out, int threads) {
    const ChainView v = make_view(view);
    const Posterior p = make_posterior(factors, sh_evidence, sh_prior, scale);
    nb::gil_scoped_release release;
    chain_kernels().posterior(v, p, threads, out.data());
}

// The polynomials of every Gaussian that reached a pixel, in the frame's own order (coefficients.h).
void posterior_rows(const Frame& frame, nb::tuple view, Input factors, std::optional<Input> sh_evidence, float sh_prior, float scale,
                    bool trace, Array rows, int threads) {
    const ChainView v = make_view(view);
    const Posterior p = make_posterior(factors, sh_evidence, sh_prior, scale);
    nb::gil_scoped_release release;
    (trace ? kernels().trace_rows : kernels().block_rows)(frame, v, p, threads, rows.data());
}

// G of every pixel [H, W, 6], or the trace [H, W], from such rows.
void evaluate_rows(const Frame& frame, std::optional<Input> background, Input rows, bool trace, Array out, int threads) {
    const Backdrop bg{background ? background->data() : nullptr, background && background->ndim() == 3};
    nb::gil_scoped_release release;
    kernels().evaluate(frame, Work{threads, false}, bg, trace, rows.data(), out.data());
}

// Nats, calibrated values, tr G / 3 and the variance behind everything, all [H, W] (nats.h).
void nats_image(Input gain, bool log_det, Input alpha, std::optional<Input> evidence, Input rotation, Input K, float void_variance,
                float precision, Input knots, Array nats, Array calibrated, Array mean_gain, Array behind, int threads) {
    NatsImage in{};
    in.view.width = (int)alpha.shape(1), in.view.height = (int)alpha.shape(0);
    in.view.resolution = evidence ? (int)evidence->shape(1) : 0;
    std::memcpy(in.view.R, rotation.data(), sizeof in.view.R);
    in.view.fx = K.data()[0], in.view.cx = K.data()[2], in.view.fy = K.data()[4], in.view.cy = K.data()[5];
    in.view.alpha = alpha.data();
    in.gain = gain.data();
    in.trace = gain.ndim() == 2;
    in.log_det = log_det;
    in.evidence = evidence ? evidence->data() : nullptr;
    in.void_variance = void_variance;
    in.precision = precision;
    in.knot_count = (int)knots.shape(0);
    in.knots = knots.data();
    in.nats = nats.data(), in.calibrated = calibrated.data(), in.mean_gain = mean_gain.data(), in.behind = behind.data();
    nb::gil_scoped_release release;
    kernels().nats(in, threads);
}

}  // namespace

void bind_chain(nb::module_& m) {
    m.def("visible_gaussians", &visible_gaussians);
    m.def("last_positions", &last_positions);
    m.def("fisher_chain", &fisher_chain);
    m.def("add_view", &add_view);
    m.def("factor_blocks", &factor_blocks);
    m.def("posterior_covariances", &posterior_covariances, nb::arg("view"), nb::arg("factors"), nb::arg("sh_evidence").none(),
          nb::arg("sh_prior"), nb::arg("scale"), nb::arg("out"), nb::arg("threads"));
    m.attr("BLOCK_ROW") = kBlockRow;
    m.attr("TRACE_ROW") = kTraceRow;
    m.def("posterior_rows", &posterior_rows, nb::arg("frame"), nb::arg("view"), nb::arg("factors"), nb::arg("sh_evidence").none(),
          nb::arg("sh_prior"), nb::arg("scale"), nb::arg("trace"), nb::arg("rows"), nb::arg("threads"));
    m.def("nats_image", &nats_image);
    m.def("evaluate_rows", &evaluate_rows, nb::arg("frame"), nb::arg("background").none(), nb::arg("rows"), nb::arg("trace"),
          nb::arg("out"), nb::arg("threads"));
}
