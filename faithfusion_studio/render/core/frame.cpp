// One camera from start to end. More than four channels are blended four at a time over the same tile lists.
#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "render.h"

namespace ff {
namespace {

constexpr int kGroup = 4;

void clear_rows(const Frame& f, const Work& work, float* rows) {
    const Reached some = reached(f, work.threads);
    parallel_for(work.threads, f.chunks, [&](int, int64_t c) {
        for (int i = 0; i < some.counts[c]; i++)
            for (int w = 0; w < work.workers(); w++)
                std::memset(rows + (w * f.slots() + some.slots[c * kChunk + i]) * kRow, 0, sizeof(float) * kRow);
    });
}

// Moves the colour sums of one group of feature channels to their gradient.
void take_features(const Frame& f, const Work& work, int first, int count, float* rows, float* grad) {
    const int features = f.in.features;
    const Reached some = reached(f, work.threads);
    const int end = std::min(features - first, count);
    parallel_for(work.threads, f.chunks, [&](int, int64_t c) {
        for (int i = 0; i < some.counts[c]; i++) {
            const int64_t slot = some.slots[c * kChunk + i], gaussian = f.gaussians.as<int32_t>()[slot];
            for (int w = 0; w < work.workers(); w++)
                for (int k = 0; k < end; k++) {
                    float& sum = rows[(w * f.slots() + slot) * kRow + 8 + k];
                    if (grad) grad[gaussian * features + first + k] += sum;
                    sum = 0;
                }
        }
    });
}

}  // namespace

Camera make_camera(const float* viewmat, const float* K, const Options& o) {
    Camera cam;
    for (int r = 0; r < 3; r++) {
        for (int k = 0; k < 3; k++) cam.R[3 * r + k] = viewmat[4 * r + k];
        cam.t[r] = viewmat[4 * r + 3];
    }
    for (int k = 0; k < 3; k++) {
        double origin = 0;
        for (int r = 0; r < 3; r++) origin -= (double)cam.R[3 * r + k] * cam.t[r];
        cam.origin[k] = (float)origin;
    }
    cam.fx = K[0];
    cam.fy = K[4];
    cam.cx = K[2];
    cam.cy = K[5];
    cam.width = o.width;
    cam.height = o.height;
    cam.near_plane = o.near_plane;
    cam.far_plane = o.far_plane;
    cam.radius_clip = o.radius_clip;
    cam.eps2d = o.eps2d;
    cam.antialiased = o.antialiased;
    return cam;
}

void project_frame(Frame& f, const Inputs& in, const Camera& cam, const Work& work) {
    f.in = in;
    f.cam = cam;
    kernels().project(f, work);
    bin_tiles(f, work);
}

void blend_frame(Frame& f, const Work& work, const float* background, float* color, float* alpha) {
    const int channels = f.in.channels();
    f.reached_known = false;
    for (int first = 0; first < channels; first += kGroup) {
        const int count = std::min(kGroup, channels - first);
        kernels().load_colors(f, work, first, count);
        kernels().blend(f, work, count, background ? background + first : nullptr, color + first, channels, first ? nullptr : alpha);
    }
}

void backward_frame(Frame& f, const Work& work, const float* background, const float* v_color, const float* v_alpha,
                    bool absgrad, const Gradients& grads) {
    const int channels = f.in.channels();
    Buffer memory;
    float* rows = memory.get<float>((size_t)work.workers() * f.slots() * kRow);
    clear_rows(f, work, rows);
    if (grads.fresh && grads.colors && f.in.sh_degree < 0)
        std::memset(grads.colors, 0, sizeof(float) * f.in.n * f.in.features);
    for (int first = 0; first < channels; first += kGroup) {
        const int count = std::min(kGroup, channels - first);
        if (channels > kGroup) kernels().load_colors(f, work, first, count);
        kernels().blend_backward(f, work, count, background ? background + first : nullptr, v_color + first, channels,
                                 first ? nullptr : v_alpha, absgrad, rows);
        if (f.in.sh_degree < 0) take_features(f, work, first, count, rows, grads.colors);
    }
    kernels().project_backward(f, work, rows, grads);
}

}  // namespace ff
