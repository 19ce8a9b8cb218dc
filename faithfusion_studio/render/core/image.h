// Passes over whole images that training and viewing need beside the Gaussians: the image loss and the sky.
#pragma once
#include "frame.h"

namespace ff {

struct ImageLoss {   // all images [H, W, 3]; weight [H, W] or null
    int width, height;
    const float *rendered, *image, *weight;
    float ssim_share;
    float* gradient;   // d loss / d rendered
};

struct SkyView {   // a cube map seen by one camera; faces +x -x +y -y +z -z in world axes
    int width, height, resolution;
    float R[9];        // camera -> world
    float fx, fy, cx, cy;
    const float* alpha;   // [H, W] or null; pixels with 1 - alpha <= transparent are left at zero
    float transparent;
};

struct ImageKernels {
    // mean over pixels and channels of weight ((1 - share) |x - y| + share (1 - SSIM(x, y)))
    double (*loss)(const ImageLoss&, int threads);
    void (*sky)(const SkyView&, int threads, const float* texels, float* image);
    // gradient [6, R, R, 3] of sum(v_image * sky), added to
    void (*sky_backward)(const SkyView&, int threads, const float* v_image, float* gradient);
};

}  // namespace ff
