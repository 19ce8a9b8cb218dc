// The passes that exist once per instruction set, as a table chosen when the module is loaded.
#pragma once
#include "chain.h"
#include "frame.h"
#include "nats.h"

namespace ff {

struct Backdrop {   // what is behind the Gaussians
    const float* color = nullptr;
    bool per_pixel = false;
};

struct Kernels {
    const char* name;
    void (*project)(Frame&, const Work&);
    void (*load_colors)(Frame&, const Work&, int first_channel, int count);
    // colour [H, W, stride] from `first`, alpha [H, W] or null; background [count] or null
    void (*blend)(Frame&, const Work&, int count, const float* background, float* color, int stride, float* alpha);
    // rows [workers][slots][kRow] are added to
    void (*blend_backward)(const Frame&, const Work&, int count, const float* background, const float* v_color,
                           int stride, const float* v_alpha, bool absgrad, float* rows);
    void (*project_backward)(const Frame&, const Work&, const float* rows, const Gradients&);
    // background [3], or [H, W, 3] where it differs from pixel to pixel, or null; rows [workers][slots][kMomentRow] are
    // set for the Gaussians that reached a pixel
    void (*moments)(const Frame&, const Work&, Backdrop background, const float* weight, float* rows);
    // of such rows: screen information [n, 45], overwritten; or blocks [n, 91] and sh_evidence [n, R, 3], added to
    void (*information)(const Frame&, const Work&, const float* rows, float* out);
    void (*fisher)(const Frame&, const ChainView&, const Work&, const float* rows, float* blocks, float* sh_evidence);
    // rows [slots, kBlockRow] and out [H, W, 6], or for the trace [slots, kTraceRow] and [H, W]
    void (*evaluate)(const Frame&, const Work&, Backdrop background, bool trace, const float* rows, float* out);
    // rows of coefficients.h from covariances [n, 45], or straight from a posterior
    void (*unpack)(const Frame&, int threads, const float* covariances, float* rows);
    void (*block_rows)(const Frame&, const ChainView&, const Posterior&, int threads, float* rows);
    void (*trace_rows)(const Frame&, const ChainView&, const Posterior&, int threads, float* rows);
    void (*nats)(const NatsImage&, int threads);
};

const Kernels& kernels();                      // the best for this machine, or FAITHFUSION_SIMD=baseline|avx2|avx512

}  // namespace ff
