// Image loss (L1 + SSIM, value and gradient in one call) and cube-map sky, compiled once per instruction set.
// SSIM: Wang et al. 2004, 11x11 Gaussian window of sigma 1.5, zero padding, data range 1, as in the 3DGS training code.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "image_passes.h"
#include "lanes.h"
#include "sky_lookup.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr int kRadius = 5, kTaps = 2 * kRadius + 1;
constexpr float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;

struct Window {
    float tap[kTaps];
    Window() {
        double sum = 0;
        for (int i = 0; i < kTaps; i++) sum += std::exp(-(i - kRadius) * (i - kRadius) / 4.5);
        for (int i = 0; i < kTaps; i++) tap[i] = (float)(std::exp(-(i - kRadius) * (i - kRadius) / 4.5) / sum);
    }
};

// Sixteen pixels blurred along their row.
FF_INLINE F blurred(const Window& w, const float* p) {
    F total(0.0f);
    for (int k = 0; k < kTaps; k++) total = fma(F(w.tap[k]), load(p + k - kRadius), total);
    return total;
}

// Sixteen pixels of one plane with a row of zeros where the image ends above or below.
struct Column {
    const float* rows[kTaps];
    Column(const float* plane, const float* zeros, int64_t stride, int height, int y) {
        for (int k = 0; k < kTaps; k++) {
            const int row = y - kRadius + k;
            rows[k] = row < 0 || row >= height ? zeros : plane + row * stride + kPad;
        }
    }
    FF_INLINE F blurred(const Window& w, int x) const {
        F total(0.0f);
        for (int k = 0; k < kTaps; k++) total = fma(F(w.tap[k]), load(rows[k] + x), total);
        return total;
    }
};

}  // namespace

double compare(const ImagePlanes& in, int threads) {
    const int width = in.width, height = in.height;
    const int64_t stride = in.stride, plane = in.plane();
    const Window window;
    Buffer moments_buffer, slopes_buffer;
    float* moments = moments_buffer.get<float>(15 * plane);   // [channel][x, y, xx, yy, xy], blurred along rows
    float* slopes = slopes_buffer.get<float>(9 * plane);      // [channel][dS/dmx, dS/dxx, dS/dxy], likewise
    const std::vector<float> zeros(stride, 0.0f);
    std::vector<double> row_loss(height, 0.0);
    const float scale = 1.0f / (3.0f * (float)width * (float)height), share = in.ssim_share;

    for_rows(threads, height, [&](int y) {
        for (int channel = 0; channel < 3; channel++) {
            const float *px = in.shown + channel * plane + in.row(y), *py = in.target + channel * plane + in.row(y);
            float* out = moments + 5 * channel * plane + in.row(y);
            for (int x = 0; x < width; x += 16) {
                F m[5] = {F(0.0f), F(0.0f), F(0.0f), F(0.0f), F(0.0f)};
                for (int k = 0; k < kTaps; k++) {
                    const F a = load(px + x + k - kRadius), b = load(py + x + k - kRadius), tap(window.tap[k]);
                    const F ta = tap * a, tb = tap * b;
                    m[0] += ta, m[1] += tb;
                    m[2] = fma(ta, a, m[2]), m[3] = fma(tb, b, m[3]), m[4] = fma(ta, b, m[4]);
                }
                for (int i = 0; i < 5; i++) store(out + i * plane + x, m[i]);
            }
        }
    });

    for_rows(threads, height, [&](int y) {
        std::vector<float> scratch(3 * stride, 0.0f);
        double value = 0;
        for (int channel = 0; channel < 3; channel++) {
            const float* planes = moments + 5 * channel * plane;
            const Column cx(planes, zeros.data(), stride, height, y), cy(planes + plane, zeros.data(), stride, height, y);
            const Column cxx(planes + 2 * plane, zeros.data(), stride, height, y), cyy(planes + 3 * plane, zeros.data(), stride, height, y);
            const Column cxy(planes + 4 * plane, zeros.data(), stride, height, y);
            F row(0.0f);
            for (int x = 0; x < width; x += 16) {
                const M inside = first_lanes(width - x);
                const F mx = cx.blurred(window, x), my = cy.blurred(window, x), xy = cxy.blurred(window, x);
                const F xx = cxx.blurred(window, x), yy = cyy.blurred(window, x), two(2.0f);
                const F a1 = two * mx * my + F(kC1), a2 = two * (xy - mx * my) + F(kC2);
                const F b1 = mx * mx + my * my + F(kC1), b2 = xx - mx * mx + yy - my * my + F(kC2);
                const F inverse = F(1.0f) / (b1 * b2), s = a1 * a2 * inverse;
                const F w = in.weight ? load_part(in.weight + (int64_t)y * width + x, width - x) : F(1.0f);
                const F f = keep(inside, w * F(-share * scale));   // d loss / d s
                float* d = scratch.data() + kPad + x;
                store(d, f * (two * my * (a2 - a1) * inverse - s * two * mx * (b2 - b1) * inverse));
                store(d + stride, -f * s * b1 * inverse);
                store(d + 2 * stride, f * two * a1 * inverse);
                row += keep(inside, w * (F(1.0f) - s));
            }
            value += sum(row);
            for (int m = 0; m < 3; m++) {
                float* out = slopes + (3 * channel + m) * plane + in.row(y);
                for (int x = 0; x < width; x += 16) store(out + x, blurred(window, scratch.data() + m * stride + kPad + x));
            }
        }
        row_loss[y] = share * value;
    });

    for_rows(threads, height, [&](int y) {
        double value = 0;
        for (int channel = 0; channel < 3; channel++) {
            const float* planes = slopes + 3 * channel * plane;
            const Column c0(planes, zeros.data(), stride, height, y), c1(planes + plane, zeros.data(), stride, height, y);
            const Column c2(planes + 2 * plane, zeros.data(), stride, height, y);
            const int64_t at = channel * plane + in.row(y);
            F row(0.0f);
            for (int x = 0; x < width; x += 16) {
                const F a = load(in.shown + at + x), b = load(in.target + at + x), difference = a - b, zero(0.0f);
                const F w = in.weight ? load_part(in.weight + (int64_t)y * width + x, width - x) : F(1.0f);
                const F sign = keep(zero < difference, F(1.0f)) - keep(difference < zero, F(1.0f));
                const F g = c0.blurred(window, x) + F(2.0f) * a * c1.blurred(window, x) + b * c2.blurred(window, x) +
                            w * F((1 - share) * scale) * sign;
                store(in.gradient + at + x, keep(zero < w, g));
                row += w * abs(difference);   // zero beyond the width
            }
            value += sum(row);
        }
        row_loss[y] += (1 - share) * value;
    });

    double total = 0;
    for (double value : row_loss) total += value;
    return total * scale;
}

namespace {

double loss(const ImageLoss& in, int threads) {
    ImagePlanes planes{in.width, in.height, padded_stride(in.width)};
    planes.weight = in.weight, planes.ssim_share = in.ssim_share;
    Buffer memory;
    planes.shown = memory.get<float>(9 * planes.plane());
    planes.target = planes.shown + 3 * planes.plane(), planes.gradient = planes.target + 3 * planes.plane();
    for_rows(threads, in.height, [&](int y) {
        for (int channel = 0; channel < 3; channel++) {
            float* shown = planes.shown + channel * planes.plane() + y * planes.stride;
            float* target = planes.target + channel * planes.plane() + y * planes.stride;
            std::fill_n(shown, planes.stride, 0.0f);
            std::fill_n(target, planes.stride, 0.0f);
            for (int x = 0; x < in.width; x++) {
                const int64_t p = (int64_t)y * in.width + x;
                target[kPad + x] = in.image[3 * p + channel];
                shown[kPad + x] = !in.weight || in.weight[p] > 0 ? in.rendered[3 * p + channel] : target[kPad + x];
            }
        }
    });
    const double value = compare(planes, threads);
    for_rows(threads, in.height, [&](int y) {
        for (int channel = 0; channel < 3; channel++) {
            const float* gradient = planes.gradient + channel * planes.plane() + planes.row(y);
            for (int x = 0; x < in.width; x++) in.gradient[3 * ((int64_t)y * in.width + x) + channel] = gradient[x];
        }
    });
    return value;
}

inline bool opaque(const SkyView& v, size_t p) { return v.alpha && 1.0f - v.alpha[p] <= v.transparent; }

void sky(const SkyView& v, int threads, const float* texels, float* image) {
    parallel_for(threads, v.height, [&](int, int64_t y) {
        for (int x = 0; x < v.width; x++) {
            const size_t p = (size_t)y * v.width + x;
            float color[3] = {0, 0, 0};
            if (!opaque(v, p)) {
                const Lookup l = lookup(v, x, (int)y);
                for (int k = 0; k < 4; k++)
                    for (int c = 0; c < 3; c++) color[c] += l.weight[k] * texels[3 * (size_t)l.index[k] + c];
            }
            for (int c = 0; c < 3; c++) image[3 * p + c] = color[c];
        }
    });
}

void sky_backward(const SkyView& v, int threads, const float* v_image, float* gradient) {
    // Fixed bands with sums of their own: no atomics, and the same result for every thread count.
    constexpr int kBands = 4;
    const size_t size = 18 * (size_t)v.resolution * v.resolution;
    std::vector<float> sums(kBands * size, 0.0f);
    parallel_for(threads, kBands, [&](int, int64_t band) {
        float* sum = sums.data() + band * size;
        const int stop = (int)(v.height * (band + 1) / kBands);
        for (int y = (int)(v.height * band / kBands); y < stop; y++)
            for (int x = 0; x < v.width; x++) {
                const size_t p = (size_t)y * v.width + x;
                if (opaque(v, p)) continue;
                const Lookup l = lookup(v, x, y);
                for (int k = 0; k < 4; k++)
                    for (int c = 0; c < 3; c++) sum[3 * (size_t)l.index[k] + c] += l.weight[k] * v_image[3 * p + c];
            }
    });
    for (size_t i = 0; i < size; i++) {
        gradient[i] = 0;
        for (int band = 0; band < kBands; band++) gradient[i] += sums[band * size + i];
    }
}

}  // namespace

ImageKernels image_table() { return {&loss, &view_loss, &sky, &sky_backward}; }

}  // namespace FF_ISA
}  // namespace ff
