// Python face of the core: functions over contiguous float32 arrays; the interpreter lock is released while they work.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "coefficients.h"
#include "kernels.h"
#include "render.h"

namespace nb = nanobind;
using namespace ff;

void bind_chain(nb::module_& m);
void bind_image(nb::module_& m);
void bind_optimizer(nb::module_& m);

namespace {

using Array = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<int32_t, nb::c_contig, nb::device::cpu>;

template <class T>
auto pointer(const std::optional<T>& array) -> decltype(array->data()) {
    return array ? array->data() : nullptr;
}

// An array of the given shape from the memory pool, to which it returns with its last owner; contents undefined.
nb::ndarray<nb::numpy, float> empty(const std::vector<size_t>& shape) {
    size_t count = 1;
    for (size_t n : shape) count *= n;
    auto* buffer = new Buffer;
    nb::capsule owner(buffer, [](void* p) noexcept { delete (Buffer*)p; });
    return nb::ndarray<nb::numpy, float>(buffer->get<float>(count), shape.size(), shape.data(), owner);
}

// Colours are [n, D] features, or with sh_degree all coefficients [n, K, 3], or the first [n, 1, 3] and the others in bands.
void set_colors(Inputs& in, const Input& colors, const std::optional<Input>& bands) {
    in.colors = colors.data();
    in.color_stride = (int64_t)(colors.ndim() == 3 ? 3 * colors.shape(1) : colors.shape(1));
    in.bands = bands ? bands->data() : in.colors + 3;
    in.band_stride = bands ? (int64_t)(3 * bands->shape(1)) : in.color_stride;
}

Inputs inputs(const Input& means, const Input& quats, const Input& scales, const Input& opacities, const Input& colors,
              const std::optional<Input>& bands, int sh_degree, bool depth_channel, bool color_channels) {
    Inputs in;
    in.n = (int64_t)means.shape(0);
    in.means = means.data();
    in.quats = quats.data();
    in.scales = scales.data();
    in.opacities = opacities.data();
    in.depth_channel = depth_channel;
    if (!color_channels) return in;
    set_colors(in, colors, bands);
    in.features = sh_degree >= 0 ? 3 : (int)colors.shape(1);
    in.sh_degree = sh_degree;
    return in;
}

std::unique_ptr<Frame> project(Input means, Input quats, Input scales, Input opacities, Input colors, std::optional<Input> bands,
                               Input viewmat, Input K, int width, int height, float near_plane, float far_plane, float radius_clip,
                               float eps2d, bool antialiased, int sh_degree, bool depth_channel, bool color_channels, int threads) {
    Inputs in = inputs(means, quats, scales, opacities, colors, bands, sh_degree, depth_channel, color_channels);
    Options o{width, height, near_plane, far_plane, radius_clip, eps2d, antialiased};
    auto frame = std::make_unique<Frame>();
    nb::gil_scoped_release release;
    project_frame(*frame, in, make_camera(viewmat.data(), K.data(), o), Work{threads, false});
    return frame;
}

void blend(Frame& frame, Input colors, std::optional<Input> background, Array color, Array alpha, int threads) {
    const float* bg = pointer(background);
    if (frame.in.colors) frame.in.colors = colors.data();
    nb::gil_scoped_release release;
    blend_frame(frame, Work{threads, false}, bg, color.data(), alpha.data());
}

void backward(Frame& frame, Input means, Input quats, Input scales, Input opacities, Input colors, std::optional<Input> bands,
              std::optional<Input> background, Input v_color, Input v_alpha, Array g_means, Array g_quats, Array g_scales,
              Array g_opacities, std::optional<Array> g_colors, std::optional<Array> g_bands, std::optional<Array> g_viewmat,
              Array g_means2d, std::optional<Array> g_absgrad, bool fresh, int threads, bool deterministic) {
    frame.in.means = means.data();
    frame.in.quats = quats.data();
    frame.in.scales = scales.data();
    frame.in.opacities = opacities.data();
    if (frame.in.colors) set_colors(frame.in, colors, bands);
    const float* bg = pointer(background);
    Gradients g;
    g.fresh = fresh;
    g.means = g_means.data();
    g.quats = g_quats.data();
    g.scales = g_scales.data();
    g.opacities = g_opacities.data();
    g.colors = pointer(g_colors);
    g.bands = g_bands ? g_bands->data() : g.colors ? g.colors + 3 : nullptr;
    g.viewmat = pointer(g_viewmat);
    g.means2d = g_means2d.data();
    g.absgrad = pointer(g_absgrad);
    nb::gil_scoped_release release;
    backward_frame(frame, Work{threads, deterministic}, bg, v_color.data(), v_alpha.data(), g.absgrad != nullptr, g);
}

// One colour [3], or one per pixel [H, W, 3].
Backdrop backdrop(const std::optional<Input>& background) {
    return {pointer(background), background && background->ndim() == 3};
}

void accumulate(const Frame& frame, std::optional<Input> background, Input weight, Array out, int threads, bool deterministic) {
    const Backdrop bg = backdrop(background);
    nb::gil_scoped_release release;
    const Work work{threads, deterministic};
    Buffer memory;
    float* rows = memory.get<float>((size_t)work.workers() * frame.slots() * kMomentRow);
    kernels().moments(frame, work, bg, weight.data(), rows);
    kernels().information(frame, work, rows, out.data());
}

void evaluate(const Frame& frame, std::optional<Input> background, Input covariances, Array out, int threads) {
    const Backdrop bg = backdrop(background);
    nb::gil_scoped_release release;
    Buffer memory;
    float* rows = memory.get<float>((size_t)frame.slots() * kBlockRow);
    kernels().unpack(frame, threads, covariances.data(), rows);
    kernels().evaluate(frame, Work{threads, false}, bg, false, rows, out.data());
}

// Writes the screen quantities into [N, ...] arrays; zero for Gaussians that are not visible.
void screen(const Frame& f, Array means2d, Array conics, Ints radii, Array depths, Array opacities,
            std::optional<Array> colors, int threads) {
    float *m = means2d.data(), *q = conics.data(), *d = depths.data(), *o = opacities.data(), *rgb = pointer(colors);
    int32_t* r = radii.data();
    nb::gil_scoped_release release;
    const int32_t* counts = f.chunk_counts.as<int32_t>();
    const float k = 2.0f / kLog2E;
    parallel_for(threads, f.chunks, [&](int, int64_t c) {
        const int64_t first = c * kChunk, count = std::min(kChunk, f.in.n - first);
        std::fill_n(m + 2 * first, 2 * count, 0.0f);
        std::fill_n(q + 3 * first, 3 * count, 0.0f);
        std::fill_n(r + 2 * first, 2 * count, 0);
        std::fill_n(d + first, count, 0.0f);
        std::fill_n(o + first, count, 0.0f);
        if (rgb) std::fill_n(rgb + 3 * first, 3 * count, 0.0f);
        for (int64_t slot = first; slot < first + counts[c]; slot++) {
            const Record& record = f.records.as<Record>()[slot];
            const int64_t i = f.gaussians.as<int32_t>()[slot];
            m[2 * i] = record.mx, m[2 * i + 1] = record.my;
            q[3 * i] = record.a * k, q[3 * i + 1] = record.b * k, q[3 * i + 2] = record.c * k;
            r[2 * i] = f.radii.as<int32_t>()[2 * slot], r[2 * i + 1] = f.radii.as<int32_t>()[2 * slot + 1];
            d[i] = record.depth;
            o[i] = record.opacity;
            if (rgb)
                for (int ch = 0; ch < 3; ch++) rgb[3 * i + ch] = record.color[ch];
        }
    });
}

}  // namespace

NB_MODULE(_core, m) {
    nb::set_leak_warnings(false);   // a frame that is alive at exit is no error
    m.doc() = "Compiled CPU core: rasterisation and information passes over contiguous float32 arrays.";
    nb::class_<Frame>(m, "Frame", "One camera's projected Gaussians and tile lists.")
        .def_prop_ro("visible", [](const Frame& f) { return f.visible; })
        .def_prop_ro("slots", [](const Frame& f) { return f.slots(); })
        .def_prop_ro("pairs", [](const Frame& f) { return f.pairs; });
    m.def("instruction_set", [] { return kernels().name; });
    m.def("empty", &empty);
    m.def("project", &project, nb::arg("means"), nb::arg("quats"), nb::arg("scales"), nb::arg("opacities"), nb::arg("colors"),
          nb::arg("bands").none(), nb::arg("viewmat"), nb::arg("K"), nb::arg("width"), nb::arg("height"), nb::arg("near_plane"),
          nb::arg("far_plane"), nb::arg("radius_clip"), nb::arg("eps2d"), nb::arg("antialiased"), nb::arg("sh_degree"),
          nb::arg("depth_channel"), nb::arg("color_channels"), nb::arg("threads"));
    m.def("blend", &blend);
    m.def("backward", &backward);
    m.def("accumulate", &accumulate);
    m.def("evaluate", &evaluate);
    m.def("screen", &screen);
    bind_chain(m);
    bind_image(m);
    bind_optimizer(m);
}
