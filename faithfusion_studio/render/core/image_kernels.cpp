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

// The newest kTaps rows of several planes; rows outside the image are zero.
class Ring {
public:
    Ring(float* memory, const float* zeros, int planes, int64_t stride, int height)
        : memory_(memory), zeros_(zeros), planes_(planes), stride_(stride), height_(height) {}
    float* row(int y, int plane) { return memory_ + ((y + kTaps) % kTaps * planes_ + plane) * stride_ + kPad; }
    // The rows around y of one plane.
    void column(int y, int plane, const float** rows) {
        for (int k = 0; k < kTaps; k++) {
            const int at = y - kRadius + k;
            rows[k] = at < 0 || at >= height_ ? zeros_ + kPad : row(at, plane);
        }
    }

private:
    float* memory_;
    const float* zeros_;
    int planes_;
    int64_t stride_;
    int height_;
};

// Sixteen pixels blurred along their column.
FF_INLINE F blurred(const Window& w, const float* const* rows, int x) {
    F total(0.0f);
    for (int k = 0; k < kTaps; k++) total = fma(F(w.tap[k]), load(rows[k] + x), total);
    return total;
}

// One colour of a band of rows, from top to bottom. Everything between image and gradient lives in two rings that fit a
// core's own cache; rows that two bands need are computed by both, to the same bits.
class Band {
public:
    Band(const ImagePlanes& in, const Window& window, int channel, float* memory, const float* zeros)
        : in_(in), w_(window), shown_(in.shown + channel * in.plane()), target_(in.target + channel * in.plane()),
          gradient_(in.gradient + channel * in.plane()), slopes_(memory + kTaps * 5 * in.stride, zeros, 3, in.stride, in.height),
          moments_(memory, zeros, 5, in.stride, in.height), scratch_(memory + kTaps * 8 * in.stride),
          scale_(1.0f / (3.0f * (float)in.width * (float)in.height)) {}

    static int64_t floats(int64_t stride) { return (kTaps * 8 + 3) * stride; }

    // loss[y] is written for y in [first, stop)
    void run(int first, int stop, double* loss) {
        std::fill_n(scratch_, 3 * in_.stride, 0.0f);
        for (int y = std::max(0, first - 2 * kRadius); y < stop + 2 * kRadius; y++) {
            if (y < in_.height) blur_row(y);
            const int middle = y - kRadius, last = middle - kRadius;
            if (middle >= std::max(0, first - kRadius) && middle < std::min(in_.height, stop + kRadius)) {
                const double value = slope_row(middle);
                if (middle >= first && middle < stop) loss[middle] = in_.ssim_share * value;
            }
            if (last >= first && last < stop) loss[last] += (1 - in_.ssim_share) * gradient_row(last);
        }
    }

private:
    void blur_row(int y) {   // x, y, xx, yy, xy
        const float *px = shown_ + in_.row(y), *py = target_ + in_.row(y);
        float* out[5];
        for (int i = 0; i < 5; i++) out[i] = moments_.row(y, i);
        for (int x = 0; x < in_.width; x += 16) {
            F m[5] = {F(0.0f), F(0.0f), F(0.0f), F(0.0f), F(0.0f)};
            for (int k = 0; k < kTaps; k++) {
                const F a = load(px + x + k - kRadius), b = load(py + x + k - kRadius), tap(w_.tap[k]);
                const F ta = tap * a, tb = tap * b;
                m[0] += ta, m[1] += tb;
                m[2] = fma(ta, a, m[2]), m[3] = fma(tb, b, m[3]), m[4] = fma(ta, b, m[4]);
            }
            for (int i = 0; i < 5; i++) store(out[i] + x, m[i]);
        }
    }

    FF_INLINE F weight(int y, int x) const {
        return in_.weight ? load_part(in_.weight + (int64_t)y * in_.width + x, in_.width - x) : F(1.0f);
    }

    double slope_row(int y) {   // dS/dmx, dS/dxx, dS/dxy, blurred along the row; returns the sum of weight (1 - S)
        const float* columns[5][kTaps];
        for (int i = 0; i < 5; i++) moments_.column(y, i, columns[i]);
        F total(0.0f);
        for (int x = 0; x < in_.width; x += 16) {
            const M inside = first_lanes(in_.width - x);
            const F two(2.0f), mx = blurred(w_, columns[0], x), my = blurred(w_, columns[1], x);
            const F xx = blurred(w_, columns[2], x), yy = blurred(w_, columns[3], x), xy = blurred(w_, columns[4], x);
            const F a1 = two * mx * my + F(kC1), a2 = two * (xy - mx * my) + F(kC2);
            const F b1 = mx * mx + my * my + F(kC1), b2 = xx - mx * mx + yy - my * my + F(kC2);
            const F inverse = F(1.0f) / (b1 * b2), s = a1 * a2 * inverse, w = weight(y, x);
            const F f = keep(inside, w * F(-in_.ssim_share * scale_));   // d loss / d s
            float* d = scratch_ + kPad + x;
            store(d, f * (two * my * (a2 - a1) * inverse - s * two * mx * (b2 - b1) * inverse));
            store(d + in_.stride, -f * s * b1 * inverse);
            store(d + 2 * in_.stride, f * two * a1 * inverse);
            total += keep(inside, w * (F(1.0f) - s));
        }
        for (int i = 0; i < 3; i++) {
            float* out = slopes_.row(y, i);
            for (int x = 0; x < in_.width; x += 16) store(out + x, blurred(w_, scratch_ + i * in_.stride + kPad + x));
        }
        return sum(total);
    }

    double gradient_row(int y) {   // returns the sum of weight |x - y|
        const float* columns[3][kTaps];
        for (int i = 0; i < 3; i++) slopes_.column(y, i, columns[i]);
        const F zero(0.0f);
        F total(0.0f);
        for (int x = 0; x < in_.width; x += 16) {
            const F a = load(shown_ + in_.row(y) + x), b = load(target_ + in_.row(y) + x), difference = a - b, w = weight(y, x);
            const F sign = keep(zero < difference, F(1.0f)) - keep(difference < zero, F(1.0f));
            const F g = blurred(w_, columns[0], x) + F(2.0f) * a * blurred(w_, columns[1], x) + b * blurred(w_, columns[2], x) +
                        w * F((1 - in_.ssim_share) * scale_) * sign;
            store(gradient_ + in_.row(y) + x, keep(zero < w, g));
            total += w * abs(difference);   // zero beyond the width
        }
        return sum(total);
    }

    const ImagePlanes& in_;
    const Window& w_;
    const float *shown_, *target_;
    float* gradient_;
    Ring slopes_, moments_;
    float* scratch_;
    float scale_;
};

}  // namespace

double compare(const ImagePlanes& in, int threads) {
    static const Window window;
    const int height = in.height;
    const int bands = std::max({1, 2 * ((height + 64) / 128), std::min(threads, height / 32)});
    const int rows = (height + bands - 1) / bands;
    const std::vector<float> zeros(in.stride, 0.0f);
    std::vector<double> loss(3 * (size_t)height, 0.0);
    parallel_for(threads, 3 * bands, [&](int, int64_t task) {
        const int channel = (int)(task % 3), first = (int)(task / 3) * rows;
        Buffer memory;
        Band band(in, window, channel, memory.get<float>(Band::floats(in.stride)), zeros.data());
        band.run(first, std::min(height, first + rows), loss.data() + (size_t)channel * height);
    });
    double total = 0;   // in order: the same for every thread count and number of bands
    for (double value : loss) total += value;
    return total / (3.0 * in.width * height);
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
