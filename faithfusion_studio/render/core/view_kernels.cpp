// All terms of one training view with their gradients: what is shown is composed, compared, and the gradient is taken
// apart again into colour, depth, opacity, sky and exposure. Formulas and reasons: fusion/losses.py.
#include <algorithm>
#include <cmath>
#include <vector>

#include "image_passes.h"
#include "lanes.h"

namespace ff {
namespace FF_ISA {
namespace {

constexpr float kEmpty = 1e-10f;      // opacity below which expected depth is not divided
constexpr float kSolid = 0.5f;        // opacity below which a pixel says nothing about depth
constexpr float kNearest = 0.1f;      // m; nearer depths count as this
constexpr float kRoadBand = 0.06f, kMaxCurvature = 0.05f, kEdge = 10.0f, kOcclusion = 0.2f;

struct Work2D {   // planes of one call, laid out like those of ImagePlanes
    ImagePlanes planes{};
    float *inverse, *solid;          // 1 / depth and 1 where the pixel is solid, else 1 and 0
    float *bend_x, *bend_y;          // d plane term / d (second difference of inverse depth)
    Buffer memory;

    explicit Work2D(const ViewLoss& in) {
        planes.width = in.width, planes.height = in.height, planes.stride = padded_stride(in.width);
        planes.weight = in.weight, planes.ssim_share = in.weights.ssim;
        const int64_t plane = planes.plane();
        float* p = memory.get<float>(13 * plane);
        planes.shown = p, planes.target = p + 3 * plane, planes.gradient = p + 6 * plane;
        inverse = p + 9 * plane, solid = p + 10 * plane, bend_x = p + 11 * plane, bend_y = p + 12 * plane;
    }
};

inline void behind_at(const ViewLoss& in, int64_t p, float* color) {
    for (int c = 0; c < 3; c++) color[c] = in.behind ? in.behind[3 * p + c] : 0.0f;
}

inline float depth_at(const ViewLoss& in, int64_t p) { return in.rendered[4 * p + 3] / std::max(in.alpha[p], kEmpty); }

void compose_row(const ViewLoss& in, Work2D& work, int y) {
    const int64_t plane = work.planes.plane(), row = work.planes.row(y), stride = work.planes.stride;
    for (int k = 0; k < 6; k++) std::fill_n(work.planes.shown + k * plane + row - kPad, stride, 0.0f);
    std::fill_n(work.inverse + row - kPad, stride, 1.0f);
    std::fill_n(work.solid + row - kPad, stride, 0.0f);
    for (int x = 0; x < in.width; x++) {
        const int64_t p = (int64_t)y * in.width + x;
        const float through = 1.0f - in.alpha[p];
        float rgb[3], behind[3], shown[3];
        behind_at(in, p, behind);
        for (int c = 0; c < 3; c++) shown[c] = rgb[c] = in.rendered[4 * p + c] + through * behind[c];
        if (const float* e = in.exposure)
            for (int c = 0; c < 3; c++) shown[c] = e[4 * c] * rgb[0] + e[4 * c + 1] * rgb[1] + e[4 * c + 2] * rgb[2] + e[4 * c + 3];
        const bool counts = !in.weight || in.weight[p] > 0;
        for (int c = 0; c < 3; c++) {
            const float target = in.image[3 * p + c];
            work.planes.target[c * plane + row + x] = target;
            work.planes.shown[c * plane + row + x] = counts ? shown[c] : target;
        }
        if (in.alpha[p] > kSolid) {
            work.solid[row + x] = 1.0f;
            work.inverse[row + x] = 1.0f / std::max(depth_at(in, p), kNearest);
        }
    }
}

// Slope of the plane term along one direction, with respect to the second difference; adds the term to `value`.
FF_INLINE F bend(const Work2D& work, int64_t at, int64_t step, F share, F& value) {
    const F before = load(work.inverse + at - step), middle = load(work.inverse + at), after = load(work.inverse + at + step);
    const F second = before + after - F(2.0f) * middle, curvature = abs(second) / middle, zero(0.0f);
    F edge(0.0f);
    for (int c = 0; c < 3; c++) {
        const float* p = work.planes.target + c * work.planes.plane() + at;
        const F here = load(p);
        edge += abs(load(p - step) - here) + abs(load(p + step) - here);
    }
    const M counts = (zero < load(work.solid + at - step)) & (zero < load(work.solid + at + step));
    const F weight = keep(counts, share * exp2(max(edge * F(-kEdge / 3 * kLog2E), F(-125.0f))));
    value += weight * min(curvature, F(kMaxCurvature));
    const F sign = keep(zero < second, F(1.0f)) - keep(second < zero, F(1.0f));
    return keep(curvature <= F(kMaxCurvature), weight * sign / middle);
}

double bend_row(const ViewLoss& in, Work2D& work, int y) {
    const int width = in.width, height = in.height;
    const int64_t row = work.planes.row(y), stride = work.planes.stride;
    std::fill_n(work.bend_x + row - kPad, stride, 0.0f);
    std::fill_n(work.bend_y + row - kPad, stride, 0.0f);
    const F along_x(width > 2 ? in.weights.plane / ((float)(width - 2) * height) : 0.0f);
    const F along_y(height > 2 ? in.weights.plane / ((float)width * (height - 2)) : 0.0f);
    F value(0.0f);
    for (int x = 0; x < width; x += 16) {
        if (width > 2) store(work.bend_x + row + x, bend(work, row + x, 1, along_x, value));
        if (y > 0 && y + 1 < height) store(work.bend_y + row + x, bend(work, row + x, stride, along_y, value));
    }
    return sum(value);
}

struct RowSums {
    double loss = 0, exposure[12] = {};
};

float plane_slope(const ViewLoss& in, const Work2D& work, int x, int y) {
    const int64_t at = work.planes.row(y) + x, stride = work.planes.stride;
    float slope = work.bend_x[at - 1] + work.bend_x[at + 1] - 2 * work.bend_x[at] - 2 * work.bend_y[at];
    if (y > 0) slope += work.bend_y[at - stride];
    if (y + 1 < in.height) slope += work.bend_y[at + stride];
    const float inverse = work.inverse[at];
    return work.solid[at] > 0 && inverse < 1.0f / kNearest ? -slope * inverse * inverse : 0.0f;
}

void take_apart_row(const ViewLoss& in, const Work2D& work, int y, RowSums& sums) {
    const int64_t plane = work.planes.plane(), row = work.planes.row(y);
    const float pixel = 1.0f / ((float)in.width * in.height);
    for (int x = 0; x < in.width; x++) {
        const int64_t p = (int64_t)y * in.width + x;
        const float a = in.alpha[p], through = 1.0f - a;
        float v[3], rgb[3], behind[3], v_alpha = 0, v_depth = 0;
        behind_at(in, p, behind);
        for (int c = 0; c < 3; c++) v[c] = work.planes.gradient[c * plane + row + x];
        if (const float* e = in.exposure) {
            for (int c = 0; c < 3; c++) rgb[c] = in.rendered[4 * p + c] + through * behind[c];
            for (int c = 0; c < 3; c++) {
                for (int k = 0; k < 3; k++) sums.exposure[4 * c + k] += v[c] * rgb[k];
                sums.exposure[4 * c + 3] += v[c];
            }
            float w[3];
            for (int k = 0; k < 3; k++) w[k] = v[0] * e[k] + v[1] * e[4 + k] + v[2] * e[8 + k];
            std::copy(w, w + 3, v);
        }
        for (int c = 0; c < 3; c++) {
            in.v_rendered[4 * p + c] = v[c];
            v_alpha -= v[c] * behind[c];
            if (in.v_behind) in.v_behind[3 * p + c] = through * v[c];
        }
        if (in.sky_share) {
            const float share = in.sky_share[p];
            sums.loss += in.weights.sky * pixel * (a * share + through * (1 - share));
            v_alpha += in.weights.sky * pixel * (2 * share - 1);
        }
        const float depth = depth_at(in, p);
        if (in.ground && in.ground[p] > 0 && a > kSolid) {
            const float expected = std::max(in.ground[p], 1e-3f), error = (depth - in.ground[p]) / expected;
            if (std::fabs(error) < kRoadBand) {
                sums.loss += in.weights.ground * pixel * std::fabs(error);
                v_depth += in.weights.ground * pixel / expected * (error > 0 ? 1.0f : error < 0 ? -1.0f : 0.0f);
            }
        }
        if (in.weights.plane > 0) v_depth += plane_slope(in, work, x, y);
        const float v_sum = v_depth / std::max(a, kEmpty);
        in.v_rendered[4 * p + 3] = v_sum;
        in.v_alpha[p] = v_alpha - (a > kEmpty ? v_sum * depth : 0.0f);
    }
}

double known_depths(const ViewLoss& in) {
    auto error = [&](int64_t i) { return (depth_at(in, in.pixels[i]) - in.depths[i]) / in.depths[i]; };
    auto counts = [&](int64_t i, float e) { return in.alpha[in.pixels[i]] > kSolid && std::fabs(e) < kOcclusion; };
    int64_t counted = 0;
    double value = 0;
    for (int64_t i = 0; i < in.points; i++) {
        const float e = error(i);
        if (counts(i, e)) counted++, value += std::fabs(e);
    }
    const float each = in.weights.depth / (float)std::max<int64_t>(counted, 1);
    for (int64_t i = 0; i < in.points; i++) {
        const int64_t p = in.pixels[i];
        const float e = error(i), sign = e > 0 ? 1.0f : e < 0 ? -1.0f : 0.0f;
        if (!counts(i, e)) continue;
        const float v_sum = each * sign / in.depths[i] / std::max(in.alpha[p], kEmpty);
        in.v_rendered[4 * p + 3] += v_sum;
        in.v_alpha[p] -= v_sum * depth_at(in, p);
    }
    return each * value;
}

}  // namespace

double view_loss(const ViewLoss& in, int threads) {
    Work2D work(in);
    std::vector<RowSums> rows(in.height);   // added in order: the same for every thread count
    for_rows(threads, in.height, [&](int y) { compose_row(in, work, y); });
    if (in.weights.plane > 0)
        for_rows(threads, in.height, [&](int y) { rows[y].loss += bend_row(in, work, y); });
    double total = compare(work.planes, threads);
    for_rows(threads, in.height, [&](int y) { take_apart_row(in, work, y, rows[y]); });
    double exposure[12] = {};
    for (const RowSums& row : rows) {
        total += row.loss;
        for (int k = 0; k < 12; k++) exposure[k] += row.exposure[k];
    }
    if (in.v_exposure) std::copy(exposure, exposure + 12, in.v_exposure);
    return total + (in.pixels ? known_depths(in) : 0.0);
}

}  // namespace FF_ISA
}  // namespace ff
