// Python face of the image passes.
#include "image.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

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
    m.def("sky", &sky);
    m.def("sky_backward", &sky_backward);
}
