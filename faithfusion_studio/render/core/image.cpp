// Python face of the image passes.
#include "image.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include <array>
#include <cstring>
#include <optional>

#include "kernels.h"

namespace nb = nanobind;
using namespace ff;

namespace ff {
namespace baseline { ImageKernels image_table(); }
#ifdef FF_X86
namespace avx2 { ImageKernels image_table(); }
namespace avx512 { ImageKernels image_table(); }
#endif
}  // namespace ff

namespace {

using Array = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Longs = nb::ndarray<const int64_t, nb::c_contig, nb::device::cpu>;

template <class T>
auto pointer(const std::optional<T>& array) -> decltype(array->data()) {
    return array ? array->data() : nullptr;
}

const ImageKernels& image_kernels() {
    static const ImageKernels table = [] {
#ifdef FF_X86
        if (!std::strcmp(kernels().name, "avx512")) return avx512::image_table();
        if (!std::strcmp(kernels().name, "avx2")) return avx2::image_table();
#endif
        return baseline::image_table();
    }();
    return table;
}

double image_loss(Input rendered, Input image, std::optional<Input> weight, float ssim_share, Array gradient, int threads) {
    const ImageLoss in{(int)rendered.shape(1), (int)rendered.shape(0), rendered.data(), image.data(),
                       weight ? weight->data() : nullptr, ssim_share, gradient.data()};
    nb::gil_scoped_release release;
    return image_kernels().loss(in, threads);
}

// Gradients are written; `weights` are those of ViewWeights in order.
double view_loss(Input rendered, Input alpha, std::optional<Input> behind, std::optional<Input> exposure, Input image,
                 std::optional<Input> weight, std::optional<Longs> pixels, std::optional<Input> depths, std::optional<Input> ground,
                 std::optional<Input> sky_share, std::array<float, 5> weights, Array v_rendered, Array v_alpha,
                 std::optional<Array> v_behind, std::optional<Array> v_exposure, int threads) {
    ViewLoss in{};
    in.height = (int)image.shape(0), in.width = (int)image.shape(1);
    in.rendered = rendered.data(), in.alpha = alpha.data(), in.behind = pointer(behind), in.exposure = pointer(exposure);
    in.image = image.data(), in.weight = pointer(weight);
    in.pixels = pixels && pixels->size() ? pixels->data() : nullptr, in.depths = pointer(depths);
    in.points = in.pixels ? (int64_t)pixels->size() : 0;
    in.ground = pointer(ground), in.sky_share = pointer(sky_share);
    in.weights = {weights[0], weights[1], weights[2], weights[3], weights[4]};
    in.v_rendered = v_rendered.data(), in.v_alpha = v_alpha.data();
    in.v_behind = pointer(v_behind), in.v_exposure = pointer(v_exposure);
    nb::gil_scoped_release release;
    return image_kernels().view_loss(in, threads);
}

SkyView sky_view(const Input& rotation, const Input& K, int width, int height, int resolution, const std::optional<Input>& alpha,
                 float transparent) {
    SkyView v{};
    v.width = width, v.height = height, v.resolution = resolution;
    std::memcpy(v.R, rotation.data(), sizeof v.R);
    v.fx = K.data()[0], v.cx = K.data()[2], v.fy = K.data()[4], v.cy = K.data()[5];
    v.alpha = alpha ? alpha->data() : nullptr;
    v.transparent = transparent;
    return v;
}

void sky(Input texels, Input rotation, Input K, std::optional<Input> alpha, float transparent, Array image, int threads) {
    const SkyView v = sky_view(rotation, K, (int)image.shape(1), (int)image.shape(0), (int)texels.shape(1), alpha, transparent);
    nb::gil_scoped_release release;
    image_kernels().sky(v, threads, texels.data(), image.data());
}

void sky_backward(Input rotation, Input K, std::optional<Input> alpha, float transparent, Input v_image, Array gradient, int threads) {
    const SkyView v = sky_view(rotation, K, (int)v_image.shape(1), (int)v_image.shape(0), (int)gradient.shape(1), alpha, transparent);
    nb::gil_scoped_release release;
    image_kernels().sky_backward(v, threads, v_image.data(), gradient.data());
}

}  // namespace

void bind_image(nb::module_& m) {
    m.def("image_loss", &image_loss);
    m.def("view_loss", &view_loss, nb::arg("rendered"), nb::arg("alpha"), nb::arg("behind").none(), nb::arg("exposure").none(),
          nb::arg("image"), nb::arg("weight").none(), nb::arg("pixels").none(), nb::arg("depths").none(), nb::arg("ground").none(),
          nb::arg("sky_share").none(), nb::arg("weights"), nb::arg("v_rendered"), nb::arg("v_alpha"), nb::arg("v_behind").none(),
          nb::arg("v_exposure").none(), nb::arg("threads"));
    m.def("sky", &sky);
    m.def("sky_backward", &sky_backward);
}
