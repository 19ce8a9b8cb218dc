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

// A row of an interleaved image as one line per channel, zero beyond the width, and back.
template <int kChannels>
inline void part_row(const float* image, int width, int64_t line, float* lines) {
    for (int c = 0; c < kChannels; c++) {
        float* out = lines + c * line;
        for (int x = 0; x < width; x++) out[x] = image[kChannels * x + c];
        for (int64_t x = width; x < line; x++) out[x] = 0.0f;
    }
}

template <int kChannels>
inline void join_row(const float* lines, int width, int64_t line, float* image) {
    for (int x = 0; x < width; x++)
        for (int c = 0; c < kChannels; c++) image[kChannels * x + c] = lines[c * line + x];
}

// One row of a view, channel by channel.
struct Row {
    int width, y;
    int64_t line, first;          // floats per line; index of the first pixel
    std::vector<float> memory;
    float *rendered, *behind;     // [4][line], [3][line]
    float *v_rendered, *v_behind; // gradients, likewise

    Row(const ViewLoss& in, int y)
        : width(in.width), y(y), line((in.width + 15) / 16 * 16), first((int64_t)y * in.width), memory(14 * line) {
        rendered = memory.data(), behind = rendered + 4 * line, v_rendered = behind + 3 * line, v_behind = v_rendered + 4 * line;
        part_row<4>(in.rendered + 4 * first, width, line, rendered);
        if (in.behind) part_row<3>(in.behind + 3 * first, width, line, behind);
    }
};

FF_INLINE F depth_of(F accumulated, F alpha) { return accumulated / max(alpha, F(kEmpty)); }

// Colours as rendered, before the exposure.
FF_INLINE void composed(const Row& row, int x, F alpha, F* rgb) {
    for (int c = 0; c < 3; c++)
        rgb[c] = fma(F(1.0f) - alpha, load(row.behind + c * row.line + x), load(row.rendered + c * row.line + x));
}

void compose_row(const ViewLoss& in, Work2D& work, int y) {
    const int64_t plane = work.planes.plane(), at = work.planes.row(y), stride = work.planes.stride;
    for (int k = 0; k < 6; k++) std::fill_n(work.planes.shown + k * plane + at - kPad, stride, 0.0f);
    std::fill_n(work.inverse + at - kPad, stride, 1.0f);
    std::fill_n(work.solid + at - kPad, stride, 0.0f);
    const Row row(in, y);
    for (int c = 0; c < 3; c++)
        for (int x = 0; x < row.width; x++) work.planes.target[c * plane + at + x] = in.image[3 * (row.first + x) + c];
    for (int x = 0; x < row.width; x += 16) {
        const int64_t left = row.width - x;
        const F alpha = load_part(in.alpha + row.first + x, left);
        F rgb[3], shown[3];
        composed(row, x, alpha, rgb);
        for (int c = 0; c < 3; c++) {
            shown[c] = rgb[c];
            if (const float* e = in.exposure)
                shown[c] = fma(F(e[4 * c]), rgb[0], fma(F(e[4 * c + 1]), rgb[1], fma(F(e[4 * c + 2]), rgb[2], F(e[4 * c + 3]))));
        }
        const M inside = first_lanes(left);
        const M counts = in.weight ? F(0.0f) < load_part(in.weight + row.first + x, left) : inside;
        for (int c = 0; c < 3; c++) {
            const F target = load(work.planes.target + c * plane + at + x);
            store(work.planes.shown + c * plane + at + x, select(counts, shown[c], target));
        }
        const M solid = F(kSolid) < alpha;
        const F depth = max(depth_of(load(row.rendered + 3 * row.line + x), alpha), F(kNearest));
        store(work.inverse + at + x, select(solid, F(1.0f) / depth, F(1.0f)));
        store(work.solid + at + x, keep(solid, F(1.0f)));
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

// d plane term / d depth of sixteen pixels
FF_INLINE F plane_slope(const ViewLoss& in, const Work2D& work, int x, int y) {
    const int64_t at = work.planes.row(y) + x, stride = work.planes.stride;
    const F two(2.0f);
    F slope = load(work.bend_x + at - 1) + load(work.bend_x + at + 1) - two * (load(work.bend_x + at) + load(work.bend_y + at));
    if (y > 0) slope += load(work.bend_y + at - stride);
    if (y + 1 < in.height) slope += load(work.bend_y + at + stride);
    const F inverse = load(work.inverse + at);
    return keep((F(0.0f) < load(work.solid + at)) & (inverse < F(1.0f / kNearest)), -slope * inverse * inverse);
}

FF_INLINE F sign_of(F x) { return keep(F(0.0f) < x, F(1.0f)) - keep(x < F(0.0f), F(1.0f)); }

void take_apart_row(const ViewLoss& in, const Work2D& work, int y, RowSums& sums) {
    const int64_t plane = work.planes.plane(), at = work.planes.row(y);
    const float pixel = 1.0f / ((float)in.width * in.height);
    const F one(1.0f), sky(in.weights.sky * pixel), road(in.weights.ground * pixel);
    Row row(in, y);
    F loss(0.0f), exposure[12];
    for (F& e : exposure) e = F(0.0f);
    for (int x = 0; x < row.width; x += 16) {
        const int64_t left = row.width - x, p = row.first + x;
        const M inside = first_lanes(left);
        const F alpha = load_part(in.alpha + p, left), through = one - alpha;
        F v[3], v_alpha(0.0f), v_depth(0.0f);
        for (int c = 0; c < 3; c++) v[c] = keep(inside, load(work.planes.gradient + c * plane + at + x));
        if (const float* e = in.exposure) {
            F rgb[3], w[3];
            composed(row, x, alpha, rgb);
            for (int c = 0; c < 3; c++) {
                for (int k = 0; k < 3; k++) exposure[4 * c + k] = fma(v[c], rgb[k], exposure[4 * c + k]);
                exposure[4 * c + 3] += v[c];
            }
            for (int k = 0; k < 3; k++) w[k] = fma(v[0], F(e[k]), fma(v[1], F(e[4 + k]), v[2] * F(e[8 + k])));
            for (int k = 0; k < 3; k++) v[k] = w[k];
        }
        for (int c = 0; c < 3; c++) {
            store(row.v_rendered + c * row.line + x, v[c]);
            v_alpha -= v[c] * load(row.behind + c * row.line + x);
            store(row.v_behind + c * row.line + x, through * v[c]);
        }
        if (in.sky_share) {
            const F share = load_part(in.sky_share + p, left);
            loss += keep(inside, sky * (alpha * share + through * (one - share)));
            v_alpha += sky * (F(2.0f) * share - one);
        }
        const F depth = depth_of(load(row.rendered + 3 * row.line + x), alpha);
        if (in.ground) {
            const F ground = load_part(in.ground + p, left), expected = max(ground, F(1e-3f)), error = (depth - ground) / expected;
            const M counts = (F(0.0f) < ground) & (F(kSolid) < alpha) & (abs(error) < F(kRoadBand));
            loss += keep(counts, road * abs(error));
            v_depth += keep(counts, road * sign_of(error) / expected);
        }
        if (in.weights.plane > 0) v_depth += plane_slope(in, work, x, y);
        const F v_sum = v_depth / max(alpha, F(kEmpty));
        store(row.v_rendered + 3 * row.line + x, v_sum);
        store_part(in.v_alpha + p, v_alpha - keep(F(kEmpty) < alpha, v_sum * depth), left);
    }
    join_row<4>(row.v_rendered, row.width, row.line, in.v_rendered + 4 * row.first);
    if (in.v_behind) join_row<3>(row.v_behind, row.width, row.line, in.v_behind + 3 * row.first);
    sums.loss += sum(loss);
    for (int k = 0; k < 12; k++) sums.exposure[k] = sum(exposure[k]);
}

float depth_at(const ViewLoss& in, int64_t p) { return in.rendered[4 * p + 3] / std::max(in.alpha[p], kEmpty); }

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
