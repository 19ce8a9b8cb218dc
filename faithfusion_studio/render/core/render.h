// The whole rasterisation of one camera, made of the passes in kernels.h.
#pragma once
#include <vector>

#include "frame.h"

namespace ff {

struct Options {
    int width, height;
    float near_plane, far_plane, radius_clip, eps2d;
    bool antialiased;
};

Camera make_camera(const float* viewmat, const float* K, const Options& options);
void project_frame(Frame& frame, const Inputs& in, const Camera& camera, const Work& work);
// background [channels] or null; color [H, W, channels], alpha [H, W]
void blend_frame(Frame& frame, const Work& work, const float* background, float* color, float* alpha);
void backward_frame(Frame& frame, const Work& work, const float* background, const float* v_color, const float* v_alpha,
                    bool absgrad, const Gradients& grads);

}  // namespace ff
