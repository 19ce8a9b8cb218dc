// Image loss (L1 + SSIM, value and gradient in one call) and cube-map sky, compiled once per instruction set.
// SSIM: Wang et al. 2004, 11x11 Gaussian window of sigma 1.5, zero padding, data range 1, as in the 3DGS training code.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

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

// out[x] = sum_k tap[k] padded[x + k]; padded holds kRadius zeros at both ends
inline void blur_row(const Window& w, const float* padded, int width, float* out) {
    for (int x = 0; x < width; x++) {
        float sum = 0;
        for (int k = 0; k < kTaps; k++) sum += w.tap[k] * padded[x + k];
        out[x] = sum;
    }
}

// out[x] = sum_k tap[k] plane[y - radius + k][x]
inline void blur_column(const Window& w, const float* plane, int width, int height, int y, float* out) {
    std::fill(out, out + width, 0.0f);
    for (int k = 0; k < kTaps; k++) {
        const int row = y - kRadius + k;
        if (row < 0 || row >= height) continue;
        const float* source = plane + (size_t)row * width;
        const float tap = w.tap[k];
        for (int x = 0; x < width; x++) out[x] += tap * source[x];
    }
}

double loss(const ImageLoss& in, int threads) {
    const int width = in.width, height = in.height;
    const size_t pixels = (size_t)width * height;
    const Window window;
    Buffer moments_buffer, slopes_buffer;
    float* moments = moments_buffer.get<float>(15 * pixels);   // [channel][x, y, xx, yy, xy][H][W], blurred along rows
    float* slopes = slopes_buffer.get<float>(9 * pixels);      // [channel][dS/dmx, dS/dxx, dS/dxy][H][W], likewise
    std::vector<double> row_loss(height, 0.0);
    const float scale = 1.0f / (3.0f * (float)pixels);

    auto plain = [&](int y, int channel, float* x_row, float* y_row) {
        const size_t base = (size_t)y * width;
        for (int x = 0; x < width; x++) {
            const float target = in.image[3 * (base + x) + channel];
            const bool counts = !in.weight || in.weight[base + x] > 0;
            y_row[x] = target;
            x_row[x] = counts ? in.rendered[3 * (base + x) + channel] : target;
        }
    };

    parallel_for(threads, height, [&](int, int64_t y) {
        std::vector<float> padded(5 * (size_t)(width + 2 * kRadius), 0.0f);
        const int stride = width + 2 * kRadius;
        for (int channel = 0; channel < 3; channel++) {
            float *px = padded.data() + kRadius, *py = px + stride, *pxx = py + stride, *pyy = pxx + stride, *pxy = pyy + stride;
            plain((int)y, channel, px, py);
            for (int x = 0; x < width; x++) pxx[x] = px[x] * px[x], pyy[x] = py[x] * py[x], pxy[x] = px[x] * py[x];
            for (int m = 0; m < 5; m++)
                blur_row(window, padded.data() + (size_t)m * stride, width, moments + (5 * channel + m) * pixels + (size_t)y * width);
        }
    });

    parallel_for(threads, height, [&](int, int64_t y) {
        std::vector<float> scratch(5 * (size_t)width + 3 * (size_t)(width + 2 * kRadius), 0.0f);
        float *mx = scratch.data(), *my = mx + width, *xx = my + width, *yy = xx + width, *xy = yy + width;
        const int stride = width + 2 * kRadius;
        float *d0 = xy + width + kRadius, *d1 = d0 + stride, *d2 = d1 + stride;
        double sum = 0;
        for (int channel = 0; channel < 3; channel++) {
            const float* planes = moments + 5 * channel * pixels;
            for (int m = 0; m < 5; m++) blur_column(window, planes + m * pixels, width, height, (int)y, mx + (size_t)m * width);
            const float* weight = in.weight ? in.weight + (size_t)y * width : nullptr;
            float row = 0;
            for (int x = 0; x < width; x++) {
                const float w = weight ? weight[x] : 1.0f;
                const float a1 = 2 * mx[x] * my[x] + kC1, a2 = 2 * (xy[x] - mx[x] * my[x]) + kC2;
                const float b1 = mx[x] * mx[x] + my[x] * my[x] + kC1;
                const float b2 = xx[x] - mx[x] * mx[x] + yy[x] - my[x] * my[x] + kC2;
                const float inverse = 1.0f / (b1 * b2), s = a1 * a2 * inverse;
                const float f = -w * in.ssim_share * scale;   // d loss / d s
                d0[x] = f * (2 * my[x] * (a2 - a1) * inverse - s * 2 * mx[x] * (1.0f / b1 - 1.0f / b2));
                d1[x] = -f * s / b2;
                d2[x] = f * 2 * a1 * inverse;
                row += w * (1.0f - s);
            }
            sum += row;
            for (int m = 0; m < 3; m++)
                blur_row(window, d0 - kRadius + (size_t)m * stride, width, slopes + (3 * channel + m) * pixels + (size_t)y * width);
        }
        row_loss[y] = in.ssim_share * sum;
    });

    parallel_for(threads, height, [&](int, int64_t y) {
        std::vector<float> scratch(5 * (size_t)width);
        float *d0 = scratch.data(), *d1 = d0 + width, *d2 = d1 + width, *x_row = d2 + width, *y_row = x_row + width;
        double sum = 0;
        for (int channel = 0; channel < 3; channel++) {
            const float* planes = slopes + 3 * channel * pixels;
            for (int m = 0; m < 3; m++) blur_column(window, planes + m * pixels, width, height, (int)y, d0 + (size_t)m * width);
            plain((int)y, channel, x_row, y_row);
            for (int x = 0; x < width; x++) {
                const size_t p = (size_t)y * width + x;
                const float w = in.weight ? in.weight[p] : 1.0f;
                const float difference = x_row[x] - y_row[x];
                const float sign = difference > 0 ? 1.0f : difference < 0 ? -1.0f : 0.0f;
                const float g = d0[x] + 2 * x_row[x] * d1[x] + y_row[x] * d2[x] + w * (1 - in.ssim_share) * scale * sign;
                in.gradient[3 * p + channel] = w > 0 ? g : 0.0f;
                sum += w * std::fabs(difference);
            }
        }
        row_loss[y] += (1 - in.ssim_share) * sum;
    });

    double total = 0;
    for (double value : row_loss) total += value;
    return total * scale;
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
    for (size_t i = 0; i < size; i++)
        for (int band = 0; band < kBands; band++) gradient[i] += sums[band * size + i];
}

}  // namespace

ImageKernels image_table() { return {&loss, &sky, &sky_backward}; }

}  // namespace FF_ISA
}  // namespace ff
